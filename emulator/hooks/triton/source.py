"""Kernels as the interpreter runs them, and what their source says about a call."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from mmabits.isa import EmulationError

_DEF = re.compile(r"^def\s+\w+\s*\(", re.MULTILINE)
_FUTURE_ANNOTATIONS = 0x1000000  # CO_FUTURE_ANNOTATIONS


@dataclass(eq=False)
class Kernel:
    """A function of a program, rewritten for the interpreter."""

    name: str
    run: Callable[..., Any]
    """What is called in its place. It shares the globals of the original and adds nothing to them."""
    tree: ast.FunctionDef
    """The source as written; lines and columns are those of `run`'s code."""

    @cached_property
    def nodes(self) -> dict[tuple[int, int, int, int], ast.AST]:
        """Expressions and statements by their place."""
        found: dict[tuple[int, int, int, int], ast.AST] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.expr, ast.stmt)) and node.end_lineno is not None and node.end_col_offset is not None:
                found.setdefault((node.lineno, node.end_lineno, node.col_offset, node.end_col_offset), node)
        return found

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """The node around each node."""
        return {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def node_at(self, frame: FrameType) -> ast.AST | None:
        """What the frame is evaluating; None where its code has no place for it."""
        positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
        line, end_line, column, end_column = positions
        if line is None or end_line is None or column is None or end_column is None:
            return None
        return self.nodes.get((line, end_line, column, end_column))

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around a node, from the inside."""
        while node in self.parents:
            node = self.parents[node]
            yield node

    def result_used_once(self, node: ast.AST) -> bool | None:
        """Whether the value of an expression has one use; None where the source does not settle it.

        An operand has one, and what is returned; a name counts by how often it is read.
        """
        match self.parents.get(node):
            case ast.BinOp() | ast.AugAssign() | ast.Return():
                return True
            case ast.Assign(targets=[ast.Name(id=name)]):
                return self._read_once(name)
            case _:
                return None

    def operand_read_once(self, node: ast.AST) -> bool | None:
        """Whether an operand is a call, or a name that is read once; None where the source does not settle it."""
        match node:
            case ast.Call():
                return True
            case ast.Name(id=name):
                return self._read_once(name)
            case _:
                return None

    def _read_once(self, name: str) -> bool | None:
        found = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name) and node.id == name]
        reads = [node for node in found if isinstance(node.ctx, ast.Load)]
        augmented = any(isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") == name for node in ast.walk(self.tree))
        if augmented or len(found) - len(reads) != 1:
            return None
        if len(reads) == 1:
            return True
        # Of several readers some may stand in branches that the compiler drops.
        (bound,) = (node for node in found if not isinstance(node.ctx, ast.Load))
        shared = set(self.around(bound))
        conditional = any(isinstance(node, (ast.If, ast.IfExp)) and node not in shared for read in reads for node in self.around(read))
        return None if conditional else False

    def is_carried(self, call: ast.AST, name: str, constants: frozenset[str]) -> bool:
        """Whether the value of a name at a call comes from the pass before of a loop that stays a loop.

        The compiler unrolls static ranges, and dissolves a loop whose bounds it knows if that has one pass; of a loop with
        several passes only the first could see the value from outside, and what that computes goes to the next.

        Args:
            call: where the name is read.
            name: the name.
            constants: names that the compiler knows the values of.
        """
        for loop in self.around(call):
            binds = isinstance(loop, (ast.For, ast.While)) and any(
                isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store) for node in ast.walk(loop)
            )
            if binds and not (isinstance(loop, ast.For) and self._is_constant(loop.iter, constants, frozenset())):
                return True
        return False

    def _is_constant(self, expression: ast.AST, constants: frozenset[str], seen: frozenset[str]) -> bool:
        if isinstance(expression, ast.Call) and ast.unparse(expression.func).endswith("static_range"):
            return True
        functions = {id(node.func) for node in ast.walk(expression) if isinstance(node, ast.Call)}
        for node in ast.walk(expression):
            if not isinstance(node, ast.Name) or id(node) in functions or node.id in constants or node.id == "tl":
                continue
            values = [
                other.value for other in ast.walk(self.tree)
                if isinstance(other, ast.Assign) and any(getattr(target, "id", "") == node.id for target in other.targets)
            ]  # fmt: skip
            known = node.id not in seen and values and all(self._is_constant(value, constants, seen | {node.id}) for value in values)
            if not known:
                return False
        return True


class Kernels:
    """The functions met so far."""

    def __init__(self) -> None:
        self._by_function: weakref.WeakKeyDictionary[Callable[..., Any], Kernel] = weakref.WeakKeyDictionary()
        self.by_code: dict[CodeType, Kernel] = {}

    def kernel(self, function: Callable[..., Any]) -> Kernel:
        """A function rewritten. Found by the function, never by its JITFunction, whose hash reads the whole program.

        Raises:
            EmulationError: its source cannot be read.
        """
        found = self._by_function.get(function)
        if found is None:
            found = self._by_function[function] = _rewritten(function)
            self.by_code[found.run.__code__] = found
        return found


def _rewritten(function: Callable[..., Any]) -> Kernel:
    from triton.runtime import interpreter

    try:
        lines, first = inspect.getsourcelines(function)
    except OSError as error:
        raise EmulationError(f"{function.__name__}: the source of a kernel must be readable: {error}") from error
    text = textwrap.dedent("".join(lines))
    start = _DEF.search(text)
    if start is None:
        raise EmulationError(f"{function.__name__}: no definition found in its source")
    text, first = text[start.start() :], first + text[: start.start()].count("\n")
    trees = [_parsed(text, first) for _ in range(2)]
    transformed = interpreter.ASTTransformer().visit(trees[0])
    transformed.name = "mmabits_kernel"  # its own name stays the module's, for functions that call themselves
    # The names that the transformed code needs, and those that the function closes over, come from a function around it.
    given = {name: getattr(interpreter, name) for name in ("interpreter_semantic", "_InterpreterComparison") if hasattr(interpreter, name)}
    free = function.__code__.co_freevars
    maker = ast.parse(f"def mmabits_maker({', '.join((*given, *free))}):\n    return mmabits_kernel")
    assert isinstance(maker.body[0], ast.FunctionDef)
    maker.body[0].body.insert(0, transformed)
    ast.fix_missing_locations(maker)
    flags = function.__code__.co_flags & _FUTURE_ANNOTATIONS
    code = compile(maker, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    made: dict[str, Any] = {}
    exec(code, function.__globals__, made)
    draft = made["mmabits_maker"](**given, **dict.fromkeys(free))
    cells = dict(zip(free, function.__closure__ or (), strict=True))
    closure = tuple(cells.get(name) or CellType(given[name]) for name in draft.__code__.co_freevars)
    run = FunctionType(draft.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    run.__kwdefaults__, run.__annotations__ = function.__kwdefaults__, function.__annotations__
    return Kernel(name=function.__name__, run=run, tree=trees[1])


def _parsed(text: str, first_line: int) -> ast.FunctionDef:
    tree = ast.parse(text)
    ast.increment_lineno(tree, first_line - 1)
    assert isinstance(tree.body[0], ast.FunctionDef)
    return tree.body[0]
