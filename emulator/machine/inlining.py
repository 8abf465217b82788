"""Calls of functions of the same PTX: the function's instructions stand in the call's place.

Parameters and results of a call are variables of a lane's local memory. A function that calls itself, or one that is not in the PTX, is an
error that says so. Calls of the host's functions stay (host.py); behind that of an assertion comes a trap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from mmabits.emulator.machine.hostcalls import FAILS, FUNCTIONS
from mmabits.emulator.machine.program import base_of
from mmabits.emulator.machine.ptx import (
    Address,
    Entry,
    Module,
    Negative,
    Operand,
    Pair,
    PtxError,
    PtxInstruction,
    Register,
    Symbol,
    Variable,
    Vector,
)  # fmt: skip

_MOST: Final = 1 << 20
"""Instructions of a kernel with all that it calls."""
_PARAMETER: Final = (".param", ".param::func")


def expanded(module: Module, entry: Entry) -> Entry:
    """A kernel with the functions that it calls in it.

    Raises:
        PtxError: a call that is not emulated, with the reason and its place.
    """
    if not any(base_of(each.opcode) == "call" for each in entry.instructions):
        return entry
    made = _Expansion(module, entry)
    made.body(entry, {}, (entry.name,), 0, "")
    return Entry(
        entry.name, entry.is_kernel, entry.parameters, entry.returns, entry.attributes, made.instructions, made.labels, made.tables,
        made.variables,
    )  # fmt: skip


class _Expansion:
    def __init__(self, module: Module, entry: Entry) -> None:
        self.module, self.kernel = module, entry
        self.instructions: list[PtxInstruction] = []
        self.labels: dict[str, int] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, Variable] = {}
        self.calls = 0

    def refused(self, why: str, instruction: PtxInstruction) -> PtxError:
        return PtxError(f"{self.kernel.name}: {why}, in {instruction}")

    def body(self, entry: Entry, given: dict[str, str], path: tuple[str, ...], number: int, end: str) -> None:
        """The instructions of a function, or of the kernel.

        Args:
            entry: the function.
            given: its parameters and results, and the variables of the caller that they are.
            path: functions from the kernel to it.
            number: of the call; what it names has this number behind it; 0 of the kernel.
            end: the label behind it; empty of the kernel.
        """
        suffix = f"@@{number}" if number else ""
        symbols = dict(given)
        for variable in entry.variables.values():
            # One of a lane for each call, as functions do not call themselves; shared memory is one for all calls.
            name = variable.name + (f"@@{entry.name}" if number and variable.space == "shared" else suffix)
            symbols[variable.name] = name
            self.variables[name] = replace(variable, name=name, space="local" if variable.space == "param" else variable.space)
        for label in (*entry.labels, *entry.tables):
            symbols[label] = label + suffix
        for name, targets in entry.tables.items():
            self.tables[name + suffix] = tuple(each + suffix for each in targets)
        starts: dict[int, list[str]] = {}
        for label, place in entry.labels.items():
            starts.setdefault(place, []).append(label + suffix)
        rename = _renaming(symbols, suffix)
        own = {variable.name for variable in entry.variables.values() if variable.space == "param"} | set(given)
        for place, instruction in enumerate(entry.instructions):
            for label in starts.get(place, ()):
                self.labels[label] = len(self.instructions)
            made = replace(
                instruction, operands=tuple(rename(each) for each in instruction.operands),
                guard=None if instruction.guard is None else _renamed_register(instruction.guard, suffix),
            )  # fmt: skip
            base = base_of(instruction.opcode)
            names = any(isinstance(each, Symbol) and each.name in own for each in instruction.operands)
            if (names and base != "call" and not (number and base == "mov")) or (
                number and ".param" in instruction.opcode and base == "cvta"
            ):
                raise self.refused("the address of a parameter of a call is not emulated", instruction)
            if base == "call":
                self.call(made, instruction, path)
            elif number and base == "ret":
                self.add(replace(made, opcode="bra", operands=(Symbol(end),)))
            elif _is_of_call(instruction, own, called=bool(number)):
                words = ["local" if f".{word}" in _PARAMETER else word for word in instruction.opcode.split(".")]
                self.add(replace(made, opcode=".".join(words)))
            else:
                self.add(made)
        for label in starts.get(len(entry.instructions), ()):
            self.labels[label] = len(self.instructions)

    def add(self, instruction: PtxInstruction) -> None:
        self.instructions.append(instruction)
        if len(self.instructions) > _MOST:
            raise self.refused(f"more than {_MOST:,} instructions with all functions that are called", instruction)

    def call(self, made: PtxInstruction, instruction: PtxInstruction, path: tuple[str, ...]) -> None:
        """The function in the call's place; under a guard a branch around it."""
        groups = [each.items for each in made.operands if isinstance(each, Vector)]
        names = [each for each in instruction.operands if not isinstance(each, Vector)]
        if len(names) != 1 or not isinstance(names[0], Symbol):
            raise self.refused("a call by an address is not emulated", instruction)
        name = names[0].name
        called = self.module.entries.get(name)
        if called is None and name in FUNCTIONS:
            self.host(made, instruction, groups)
            if name in FAILS:
                self.add(replace(made, opcode="trap", operands=()))
            return
        if called is None or called.is_kernel:
            raise self.refused(f"the function {name} is not in the PTX", instruction)
        if name in path:
            raise self.refused(f"recursion is not emulated: {' calls '.join((*path, name))}", instruction)
        formal = [called.returns] * bool(called.returns) + [called.parameters] * bool(called.parameters)
        groups = [each for each in groups if each]
        if [len(each) for each in formal] != [len(each) for each in groups]:
            raise self.refused(f"a call with other parameters than {name} has", instruction)
        given = {}
        for variables, actual in zip(formal, groups, strict=True):
            for variable, each in zip(variables, actual, strict=True):
                if not isinstance(each, Symbol) or each.name not in self.variables or self.variables[each.name].size < variable.size:
                    raise self.refused("a parameter of a call that is no variable of .param, or a smaller one", instruction)
                given[variable.name] = each.name
        self.calls += 1
        number, end = self.calls, f"@@end{self.calls}"
        if made.guard is not None:
            around = made.guard._replace(negated=not made.guard.negated)
            self.add(replace(made, opcode="bra", operands=(Symbol(end),), guard=around))
        self.body(called, given, (*path, name), number, end)
        self.labels[end] = len(self.instructions)

    def host(self, made: PtxInstruction, instruction: PtxInstruction, groups: list[tuple[Operand, ...]]) -> None:
        """A call of a function of the host."""
        places = [each.name for group in groups for each in group if isinstance(each, Symbol)]
        if len(places) != sum(map(len, groups)) or any(each not in self.variables for each in places):
            raise self.refused("a parameter of a call that is no variable of .param", instruction)
        self.add(made)


def _renamed_register(register: Register, suffix: str) -> Register:
    return register._replace(name=register.name + suffix)


def _renaming(symbols: dict[str, str], suffix: str) -> Callable[[Operand], Operand]:
    """Gives operands the names that they have in the kernel."""

    def renamed(operand: Operand) -> Operand:
        if isinstance(operand, Register):
            return _renamed_register(operand, suffix)
        if isinstance(operand, Symbol):
            return Symbol(symbols.get(operand.name, operand.name))
        if isinstance(operand, Address):
            base = renamed(operand.base)
            assert isinstance(base, type(operand.base))
            return operand._replace(base=base, coordinates=tuple(renamed(each) for each in operand.coordinates))
        if isinstance(operand, Vector):
            return Vector(tuple(renamed(each) for each in operand.items))
        if isinstance(operand, Pair):
            return Pair(renamed(operand.first), renamed(operand.second))
        return Negative(renamed(operand.operand)) if isinstance(operand, Negative) else operand

    return renamed


def _is_of_call(instruction: PtxInstruction, own: set[str], *, called: bool) -> bool:
    """Whether an instruction reads or writes a parameter or result of a call; in a function that is called, addresses are such."""
    if not any(word in instruction.opcode for word in _PARAMETER):
        return False
    places = [each.base for each in instruction.operands if isinstance(each, Address)]
    return any(each.name in own if isinstance(each, Symbol) else called for each in places)
