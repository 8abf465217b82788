"""Kernels as the interpreter runs them, and what their source says about a call."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import CellType, FrameType, FunctionType
from typing import Any

from mmabits.isa import EmulationError

_DEF = re.compile(r"^def\s+\w+\s*\(", re.MULTILINE)
_FUTURE_ANNOTATIONS = 0x1000000  # CO_FUTURE_ANNOTATIONS


@dataclass(eq=False)
class RewrittenKernel:
    """A function of a program, rewritten for the interpreter."""

    name: str
    run: Callable[..., Any]
    """What is called in its place. It shares the globals of the original and adds nothing to them."""
    tree: ast.FunctionDef
    """The source as written; lines and columns are those of `run`'s code."""
    library: bool = False
    """It belongs to triton.language itself."""

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
            case ast.Assign(targets=[ast.Name(id=name)]) as statement:
                return self._read_once(name, statement)
            case _:
                return None

    def operand_read_once(self, node: ast.AST) -> bool | None:
        """Whether an operand is a call, or a name that is read once; None where the source does not settle it."""
        match node:
            case ast.Call():
                return True
            case ast.Name(id=name):
                return self._read_once(name, self._binding(node, name))
            case _:
                return None

    def _read_once(self, name: str, statement: ast.stmt | None) -> bool | None:
        """Whether a name is read once, or what a statement bound to it, where that is bound again further down."""
        uses = None if statement is None else self._uses(statement, name)
        if uses is not None:
            return uses == 1
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

    def _block(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements among which one stands."""
        lists = (getattr(self.parents[statement], name, []) for name in ("body", "orelse"))
        return next((block for block in lists if isinstance(block, list) and statement in block), [])

    def _binding(self, read: ast.AST, name: str) -> ast.stmt | None:
        """The statement before a read, among the same ones, that bound its name; None where it stands elsewhere."""
        here = next(node for node in (read, *self.around(read)) if isinstance(node, ast.stmt))
        block = self._block(here)
        for earlier in reversed(block[: block.index(here)] if here in block else []):
            if name in _bound([earlier]):
                return earlier if isinstance(earlier, ast.Assign) else None
        return None

    def _uses(self, statement: ast.stmt, name: str) -> int | None:
        """How often what a statement binds to a name is read before it is bound again; None where that is not a matter of one line
        after the other.
        """
        block = self._block(statement)
        uses = 0
        for later in block[block.index(statement) + 1 :] if block else []:
            found = [node for node in ast.walk(later) if isinstance(node, ast.Name) and node.id == name]
            if found and not isinstance(later, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.Return)):
                return None
            stores = [node for node in found if isinstance(node.ctx, ast.Store)]
            uses += len(found) - len(stores) + (isinstance(later, ast.AugAssign) and later.target in stores)
            if stores:
                return uses
        return uses if block is self.tree.body else None

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
        self._by_function: weakref.WeakKeyDictionary[Callable[..., Any], RewrittenKernel] = weakref.WeakKeyDictionary()
        self.by_code: dict[int, RewrittenKernel] = {}
        """By the id of their code, which has no cheap hash; a kernel keeps its code alive."""

    def kernel(self, function: Callable[..., Any]) -> RewrittenKernel:
        """A function rewritten. Found by the function, never by its JITFunction, whose hash reads the whole program.

        Raises:
            EmulationError: its source cannot be read.
        """
        found = self._by_function.get(function)
        if found is None:
            found = self._by_function[function] = _rewritten(function)
            self.by_code[id(found.run.__code__)] = found
        return found


def _rewritten(function: Callable[..., Any]) -> RewrittenKernel:
    from triton.runtime import interpreter

    from mmabits.emulator.hooks.triton import origins

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
    dynamic = _dynamic_names(trees[1], function.__annotations__)
    transformed = interpreter.ASTTransformer().visit(_Crossings(dynamic).visit(trees[0]))
    transformed.name = "mmabits_kernel"  # its own name stays the module's, for functions that call themselves
    # The names that the transformed code needs, and those that the function closes over, come from a function around it.
    given = {name: getattr(interpreter, name) for name in ("interpreter_semantic", "_InterpreterComparison") if hasattr(interpreter, name)}
    given |= {
        "mmabits_crossing": origins.crossing, "mmabits_crossed": origins.crossed, "mmabits_parts": _parts, "mmabits_value": _value,
        "mmabits_locals": locals,
    }  # fmt: skip
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
    library = function.__module__ is not None and function.__module__.split(".")[:2] == ["triton", "language"]
    return RewrittenKernel(name=function.__name__, run=run, tree=trees[1], library=library)


def _parts(value: Any) -> Any:
    """What a tuple is taken apart into: its numbers are tensors, as the compiler has them."""
    from triton.runtime.interpreter import interpreter_semantic

    return tuple(interpreter_semantic.to_tensor(part, False) for part in value) if type(value) is tuple else value


def _value(constant: Any) -> Any:
    return constant if constant is None or isinstance(constant, (int, float, str)) else constant.value


def _dynamic_names(tree: ast.FunctionDef, annotations: dict[str, Any]) -> frozenset[str]:
    """Names that the compiler may not know the value of: parameters and variables that are not declared constexpr."""
    constant = {name for name, kind in annotations.items() if "constexpr" in str(getattr(kind, "__name__", kind))}
    arguments = tree.args
    names = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - constant
    declared = {
        node.target.id for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "constexpr" in ast.unparse(node.annotation)
    }  # fmt: skip
    return frozenset(
        names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} - declared
    )


def _bound(nodes: Iterable[ast.AST]) -> list[str]:
    """The names that statements bind."""
    found = {node.id for each in nodes for node in ast.walk(each) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return sorted(found)


class _Crossings(ast.NodeTransformer):
    """Marks what loops carry and branches give, for `origins`, and takes tuples apart as the compiler does.

    Args:
        dynamic: names whose values the compiler may not know; a branch that depends on none of them, and on no call, is settled.
    """

    def __init__(self, dynamic: frozenset[str]) -> None:
        self.dynamic = dynamic

    def visit_For(self, node: ast.For) -> Any:
        """A loop, unless the compiler unrolls it."""
        self.generic_visit(node)
        if isinstance(node.iter, ast.Call) and ast.unparse(node.iter.func).endswith("static_range"):
            return node
        return self._loop(node)

    def visit_While(self, node: ast.While) -> Any:
        """A loop."""
        self.generic_visit(node)
        return self._loop(node)

    def visit_If(self, node: ast.If) -> Any:
        """A branch that the compiler may keep."""
        self.generic_visit(node)
        names = _bound([*node.body, *node.orelse])
        return node if self._is_settled(node.test) or not names else [node, _mark(names, node)]

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """Likewise."""
        self.generic_visit(node)
        return node if self._is_settled(node.test) else _call("mmabits_crossed", [node], node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        """The numbers in a tuple."""
        self.generic_visit(node)
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Tuple):
            node.value = _call("mmabits_parts", [node.value], node.value)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """`N.value` of a parameter that is a constant to the compiler, and a number here."""
        self.generic_visit(node)
        return _call("mmabits_value", [node.value], node) if node.attr == "value" and isinstance(node.ctx, ast.Load) else node

    def _loop(self, node: ast.For | ast.While) -> Any:
        names = _bound([node])
        if not names:
            return node
        node.body.insert(0, _mark(names, node))
        return [node, _mark(names, node)]

    def _is_settled(self, test: ast.AST) -> bool:
        if isinstance(test, ast.Compare) and all(isinstance(op, (ast.Is, ast.IsNot)) for op in test.ops):
            return True
        if isinstance(test, ast.BoolOp):
            return all(self._is_settled(value) for value in test.values)
        if isinstance(test, ast.UnaryOp):
            return self._is_settled(test.operand)
        return not any(isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in self.dynamic) for node in ast.walk(test))


def _call(name: str, arguments: list[ast.expr], place: ast.AST) -> ast.Call:
    call = ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=arguments, keywords=[])
    for node in (call, call.func):
        ast.copy_location(node, place)
    return call


def _mark(names: list[str], place: ast.AST) -> ast.Expr:
    """`mmabits_crossing(names, locals())`."""
    known = ast.Tuple(elts=[ast.Constant(value=name) for name in names], ctx=ast.Load())
    marked = ast.Expr(value=_call("mmabits_crossing", [known, _call("mmabits_locals", [], place)], place))
    return ast.copy_location(marked, place)


def _parsed(text: str, first_line: int) -> ast.FunctionDef:
    tree = ast.parse(text)
    ast.increment_lineno(tree, first_line - 1)
    assert isinstance(tree.body[0], ast.FunctionDef)
    return tree.body[0]
