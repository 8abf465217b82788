"""PTX text as modules, kernels and instructions: what Triton, NVRTC and their inline assembly write.

Registers get names of their own where a scope hides another's; everything keeps the line of the text and, from `.loc`, that of the
source.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from mmabits.isa import EmulationError, OperandError
from mmabits.isa.opcodes import width

_MOST_SHOWN: Final = 80
"""Characters of the text in a message."""


class PtxError(EmulationError):
    """PTX that this reader does not understand."""


# ------------------------------------------------------------------------------------------------------------------- operands


class Register(NamedTuple):
    """A register of a lane."""

    name: str
    bits: int
    """1 of a predicate."""
    negated: bool = False
    """Read as its opposite."""


class SpecialRegister(NamedTuple):
    """A register that the hardware writes: `%tid.x`."""

    name: str


class Immediate(NamedTuple):
    """A constant: an integer, or the code of a float."""

    number: int
    form: str = ""
    """`f32` or `f64` of a float."""


class Symbol(NamedTuple):
    """A name: a label, a variable, a function."""

    name: str


class Address(NamedTuple):
    """A place in memory, `[base + offset]`; of a tensor, its map and the coordinates."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()


class Vector(NamedTuple):
    """`{a, b, ...}`."""

    items: tuple[Operand, ...]


class Pair(NamedTuple):
    """`a|b`."""

    first: Operand
    second: Operand


class Negative(NamedTuple):
    """A floating-point operand with the other sign: what contraction leaves."""

    operand: Operand


class Sink(NamedTuple):
    """`_`: a result that nobody wants."""


Operand = Register | SpecialRegister | Immediate | Symbol | Address | Vector | Pair | Negative | Sink


# --------------------------------------------------------------------------------------------------------------------- pieces


class Location(NamedTuple):
    """A line of the source."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, eq=False)
class PtxInstruction:
    """One instruction."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None
    line: int
    """Of the PTX text, from 1."""
    location: Location | None
    text: str
    end: int = 0
    """Where the statement ends in the text."""

    def __str__(self) -> str:
        where = f", {self.location}" if self.location else ""
        return f"`{shown(self.text, 4 * _MOST_SHOWN)}` (line {self.line} of the PTX{where})"


@dataclass(frozen=True)
class Variable:
    """A variable of the module or of a kernel."""

    name: str
    space: str
    """`shared`, `global`, `const`, `local` or `param`."""
    align: int
    size: int
    """Bytes; 0 of shared memory whose size the launch gives."""
    kind: str
    """Type of an element."""
    initial: tuple[int | Address, ...] = ()
    """First elements: numbers, and places of other variables."""


@dataclass(eq=False)
class Entry:
    """A kernel, or a function that kernels call."""

    name: str
    is_kernel: bool
    parameters: list[Variable]
    returns: list[Variable] = field(default_factory=list)
    attributes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """`reqntid` and the like."""
    instructions: list[PtxInstruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Index of the instruction that a label stands before."""
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets of indirect branches."""
    variables: dict[str, Variable] = field(default_factory=dict)
    """Of shared and local memory, declared inside."""

    @property
    def threads(self) -> int | None:
        """Threads of a CTA, where the text says so."""
        sizes = self.attributes.get("reqntid")
        if sizes is None:
            return None
        count = 1
        for size in sizes:
            count *= size
        return count


@dataclass(eq=False)
class Module:
    """A PTX file."""

    version: str = ""
    target: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(name for name, entry in self.entries.items() if entry.is_kernel)


# -------------------------------------------------------------------------------------------------------------------- reading

_MOST_DIGITS: Final = 66
"""Of a number: 64 bits in binary, and the prefix."""
_MOST_BYTES: Final = 1 << 40
"""Of a variable, far beyond what any memory has."""
_SPACE: Final = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/)+", re.S)
_LABEL: Final = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)")
_LINE_DIRECTIVE: Final = re.compile(r"\.(loc|file|version|target|address_size)\b([^\n;]*)")
_NUMBER: Final = re.compile(r"(-?)(0[xX][0-9a-fA-F]+|0[0-7]+|0[bB][01]+|\d+)U?$")
_DECIMAL: Final = re.compile(r"-?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
_FLOAT: Final = re.compile(r"(-?)0([fFdD])([0-9a-fA-F]{8}(?:[0-9a-fA-F]{8})?)$")
_ATTRIBUTE: Final = re.compile(r"\.attribute\s*\((?:[^()]|\([^()]*\))*\)\s*")
"""Of a variable: `.managed`, which says who else reaches it."""
_GENERIC: Final = re.compile(r"generic\(\s*([\w$.]+)\s*\)")
_GUARD: Final = re.compile(r"@\s*(!?)\s*([%\w$]+)\s+")
_DECLARED: Final = re.compile(r"\.(extern|visible|weak|common|const|global|shared|local|param|reg)\b")
_SPECIALS: Final = re.compile(
    r"%(?:(?:tid|ntid|ctaid|nctaid|clusterid|nclusterid|cluster_ctaid|cluster_nctaid)\.[xyz]|laneid|warpid|nwarpid|smid|nsmid|gridid"
    r"|is_explicit_cluster|cluster_ctarank|cluster_nctarank|lanemask_(?:eq|le|lt|ge|gt)|clock(?:_hi|64)?|globaltimer(?:_lo|_hi)?|envreg\d+"
    r"|total_smem_size|aggr_smem_size|dynamic_smem_size|reserved_smem_offset_\w+|current_graph_exec|pm\d+(?:_64)?)$"
)


def shown(text: str, most: int = _MOST_SHOWN) -> str:
    """Text for a message, so many characters of it."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def split_commas(text: str) -> list[str]:
    """Pieces between commas that no bracket encloses."""
    if "{" not in text and "[" not in text and "(" not in text:
        return [each.strip() for each in text.split(",")] if text.strip() else []
    pieces, depth, start = [], 0, 0
    for place, sign in enumerate(text):
        if sign in "{[(":
            depth += 1
        elif sign in "}])":
            depth -= 1
        elif sign == "," and depth == 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    last = text[start:].strip()
    return [*pieces, last] if last else pieces


class _Scope:
    """Names of registers, variables and labels."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        """Instructions before it."""
        self.labels: dict[str, str] = {}
        """The names that its labels have in the whole kernel."""
        self.single: dict[str, Register] = {}
        self.families: dict[str, int] = {}
        self.variables: set[str] = set()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.module = Module()
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.files = {int(each[1]): each[2] for each in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"\n]*)"', text, re.M)}
        self.plain: dict[str, Operand] = {}
        """Operands outside every inner scope, which a kernel names again and again."""
        self.location: Location | None = None
        self.scopes: list[_Scope] = []
        self.entry: Entry | None = None
        self.renamed = 0

    # -------------------------------------------------------------------------------------------------------- the text itself

    def line_of(self, place: int) -> int:
        return bisect_right(self.starts, place)

    def fail(self, what: str) -> PtxError:
        return PtxError(f"line {self.line_of(self.place)} of the PTX: {what}")

    def sign(self) -> str:
        """The next character; none at the end."""
        return self.text[self.place : self.place + 1]

    def skip(self) -> bool:
        """Past spaces and comments; whether anything is left."""
        found = _SPACE.match(self.text, self.place)
        if found:
            self.place = found.end()
        return self.place < len(self.text)

    def statement(self) -> str:
        """The text up to the next semicolon, without comments, spaces made single."""
        end = self.text.find(";", self.place)
        while True:  # a semicolon inside a comment does not count
            if end < 0:
                raise self.fail("the text ends inside a statement")
            start = self.text.rfind("\n", self.place, end) + 1 or self.place
            comment = self.text.find("//", start, end)
            if comment < 0:
                break
            end = self.text.find(";", self.text.find("\n", end))
        found = self.text[self.place : end]
        if found.count('"') % 2:
            raise self.fail(f"a string that does not end: {shown(found)}")
        self.place = end + 1
        if "/" in found:
            found = _SPACE.sub(" ", found)
        return " ".join(found.split())

    # ---------------------------------------------------------------------------------------------------------------- modules

    def read(self) -> Module:
        while self.skip():
            if not self.directive():
                self.declaration()
        return self.module

    def directive(self) -> bool:
        """A directive that ends with its line."""
        found = _LINE_DIRECTIVE.match(self.text, self.place)
        if not found:
            if self.text.startswith(".section", self.place):
                self.skip_block()
                return True
            return False
        self.place = found.end()
        name, rest = found[1], found[2].partition("//")[0].strip()
        if self.text.startswith(";", self.place):
            self.place += 1
        if name == "version":
            self.module.version = rest
        elif name == "target":
            self.module.target = rest.partition(",")[0].strip()
        elif name == "loc":
            words = re.match(r"(\d+)[\s,]+(\d+)", rest)
            if words is None:
                raise self.fail(f"a line of the source that is not understood: .loc {shown(rest)}")
            self.location = Location(self.files.get(int(words[1]), words[1]), int(words[2])) if int(words[2]) else None
        return True

    def skip_block(self) -> None:
        depth = 0
        for found in re.compile(r"[{}]").finditer(self.text, self.place):
            depth += 1 if found[0] == "{" else -1
            if depth == 0:
                self.place = found.end()
                return
        raise self.fail("the text ends inside a section")

    def declaration(self) -> None:
        found = re.compile(r"(?:\.\w+\s+)*?\.(entry|func)\b").match(self.text, self.place)
        if found:
            self.place = found.end()
            self.function(found[1] == "entry")
            return
        text = self.statement()
        if text.startswith((".pragma", ".alias", "@@DWARF")):
            return
        for variable in self.variables(text):
            self.module.variables[variable.name] = variable

    def variables(self, text: str) -> Iterator[Variable]:
        """`.shared .align 16 .b8 name[4] = {...}, ...`."""
        words = re.match(r"((?:\.\w+(?:\s+\d+)?\s+)*)(.*)", _ATTRIBUTE.sub("", text), re.S)
        assert words is not None
        attributes = words[1].split()
        space = next((word[1:] for word in attributes if word in (".shared", ".global", ".const", ".local", ".param")), None)
        if space is None:
            raise self.fail(f"not understood: {shown(text)}")
        kind = next((word[1:] for word in reversed(attributes) if re.fullmatch(r"\.(?:pred|[bsuf]\d+|f16x2|bf16|tf32)", word)), None)
        if kind is None:
            raise self.fail(f"a variable without a type: {shown(text)}")
        lanes = 4 if ".v4" in attributes else 2 if ".v2" in attributes else 1
        unit = max(1, self.width(kind) // 8) * lanes
        told = re.search(r"\.align\s+(\d+)", words[1])
        align = int(told[1]) if told else unit
        if align < 1 or align & (align - 1):
            raise self.fail(f"an alignment that is no power of two: {align}")
        for piece in split_commas(words[2]):
            name, _, initial = (part.strip() for part in piece.partition("="))
            sizes = re.findall(r"\[([^\]]*)\]", name)
            numbers = tuple(self.initial(each) for each in split_commas(initial.strip("{}"))) if initial else ()
            count = 1
            for place, size in enumerate(sizes):
                count *= self.size(size) if size else -(-len(numbers) // lanes) if place == 0 else 0
            if len(numbers) > count * lanes:
                raise self.fail(f"{len(numbers)} initial values for {count * lanes} of {shown(name)}")
            if unit * count > _MOST_BYTES:
                raise self.fail(f"a variable of more bytes than there are: {shown(name)}")
            yield Variable(name.partition("[")[0].strip(), space, align, unit * count, kind, numbers)

    def width(self, kind: str) -> int:
        """Bits of a type."""
        try:
            return width(kind)
        except ValueError:
            raise self.fail(f"no PTX type is called {shown(kind)}") from None

    def size(self, text: str) -> int:
        """Of an array."""
        found = self.operand(text.strip())
        if isinstance(found, Immediate) and not found.form and found.number >= 0:
            return found.number
        raise self.fail(f"a size that is no number: {shown(text)}")

    def initial(self, text: str) -> int | Address:
        """A number, or `generic(name)+4`."""
        found = self.operand(_GENERIC.sub(r"\1", text.strip()))
        if isinstance(found, Immediate):
            return found.number
        if isinstance(found, Symbol):
            return Address(found)
        if isinstance(found, Address) and isinstance(found.base, Symbol):
            return found
        raise self.fail(f"an initial value that is no number: {shown(text)}")

    def function(self, is_kernel: bool) -> None:
        returns: list[Variable] = []
        self.skip()
        if self.sign() == "(":
            returns = self.parameters()
            self.skip()
        found = re.compile(r"[\w$]+").match(self.text, self.place)
        if not found:
            raise self.fail("a function without a name")
        self.place = found.end()
        self.skip()
        parameters = self.parameters() if self.sign() == "(" else []
        entry = Entry(found[0], is_kernel, parameters, returns)
        self.skip()
        while self.sign() == ".":
            word = re.compile(r"\.(\w+)((?:\s*,?\s*\d+)*)").match(self.text, self.place)
            if word is None:
                raise self.fail("an attribute of a function that is not understood")
            self.place = word.end()
            entry.attributes[word[1]] = tuple(int(each) for each in re.findall(r"\d+", word[2]))
            self.skip()
        if self.sign() == ";":  # declared, defined elsewhere
            self.place += 1
            return
        if self.sign() != "{":
            raise self.fail(f"{shown(entry.name)} has no body")
        if entry.name in self.module.entries:
            raise self.fail(f"{shown(entry.name)} is defined twice")
        self.module.entries[entry.name] = entry
        self.entry, self.location = entry, None
        self.plain.clear()
        self.body()
        self.entry = None

    def parameters(self) -> list[Variable]:
        end = self.text.find(")", self.place)
        if end < 0:
            raise self.fail("the text ends inside parameters")
        inside = _SPACE.sub(" ", self.text[self.place + 1 : end])
        self.place = end + 1
        found: list[Variable] = []
        for piece in split_commas(inside):
            piece = re.sub(r"\.ptr(?:\s+\.(?:global|shared|const|local|generic))?(?:\s+\.align\s+\d+)?", "", piece)
            found.extend(self.variables(piece.replace(".reg", ".param") + ""))
        return found

    # ------------------------------------------------------------------------------------------------------------------ bodies

    def body(self) -> None:
        entry = self.entry
        assert entry is not None
        self.place += 1
        self.scopes = [_Scope()]
        while self.scopes:
            if not self.skip():
                raise self.fail(f"the text ends inside {entry.name}")
            if self.directive():
                continue
            sign = self.text[self.place]
            if sign in "{}":
                self.place += 1
                if sign == "{":
                    self.scopes.append(_Scope(len(entry.instructions)))
                else:
                    self.close(entry, self.scopes.pop())
                continue
            label = _LABEL.match(self.text, self.place)
            if label:
                scope = self.scopes[-1]
                if label[1] in scope.labels:
                    raise self.fail(f"the label {shown(label[1])} stands twice in {shown(entry.name)}")
                self.place = label.end()
                self.skip()
                self.renamed += 1
                name = scope.labels[label[1]] = label[1] if len(self.scopes) == 1 else f"{label[1]}@{self.renamed}"
                if self.text.startswith(".branchtargets", self.place):
                    entry.tables[name] = tuple(split_commas(self.statement().removeprefix(".branchtargets").strip()))
                elif self.text.startswith(".callprototype", self.place):
                    self.statement()
                else:
                    entry.labels[name] = len(entry.instructions)
                continue
            self.one(entry)

    def close(self, entry: Entry, scope: _Scope) -> None:
        """At the end of a scope branches inside it to its labels are known: those of inner scopes have other names by now."""
        if not self.scopes:
            return
        for place in range(scope.first, len(entry.instructions) if scope.labels else 0):
            instruction = entry.instructions[place]
            if instruction.opcode.startswith(("bra", "brx")):
                operands = tuple(
                    Symbol(scope.labels.get(each.name, each.name)) if isinstance(each, Symbol) else each for each in instruction.operands
                )
                entry.instructions[place] = replace(instruction, operands=operands)
        for name in scope.labels.values():
            if name in entry.tables:
                entry.tables[name] = tuple(scope.labels.get(each, each) for each in entry.tables[name])

    def one(self, entry: Entry) -> None:
        """A declaration or an instruction."""
        line = self.line_of(self.place)
        text = self.statement()
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            self.registers(text)
            return
        if _DECLARED.match(text):
            for variable in self.variables(text):
                self.declare(entry, variable)
            return
        rest, guard = text, None
        found = _GUARD.match(text)
        if found:
            register = self.predicate(found[2])
            guard, rest = register._replace(negated=bool(found[1])), text[found.end() :]
        opcode, _, operands = rest.partition(" ")
        if "{" in opcode or "[" in opcode:  # operands without a space before them
            end = min(place for place in (opcode.find("{"), opcode.find("[")) if place >= 0)
            opcode, operands = rest[:end], rest[end:]
        if opcode.startswith("."):
            raise self.fail(f"a directive that is not understood: {shown(text)}")
        entry.instructions.append(
            PtxInstruction(
                opcode, tuple(self.operand(each) for each in split_commas(operands)), guard, line, self.location, text, self.place
            )
        )

    def declare(self, entry: Entry, variable: Variable) -> None:
        """A variable of a function. One behind another of the same name may take its place: their scopes do not overlap."""
        before = entry.variables.get(variable.name)
        if any(variable.name in scope.variables for scope in self.scopes):
            raise self.fail(f"{variable.name} is declared again inside its scope")
        self.scopes[-1].variables.add(variable.name)
        if before is not None:
            if before.space != variable.space or variable.space == "shared":
                raise self.fail(f"{variable.name} is declared in two scopes")
            variable = replace(variable, size=max(before.size, variable.size), align=max(before.align, variable.align))
        entry.variables[variable.name] = variable

    def registers(self, text: str) -> None:
        """`.reg .b32 %r<10>, a, b`."""
        found = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.+)", text, re.S)
        if found is None:
            raise self.fail(f"registers that are not understood: {shown(text)}")
        bits, names = self.width(found[1]), found[2]
        scope = self.scopes[-1]
        for name in split_commas(names):
            family = re.fullmatch(r"([\w$%]+)<\d+>", name)
            if family:
                scope.families[family[1]] = bits
                continue
            self.renamed += 1
            unique = name if len(self.scopes) == 1 else f"{name}@{self.renamed}"
            scope.single[name] = Register(unique, bits)

    def find(self, name: str) -> Register | None:
        prefix = name.rstrip("0123456789")
        for scope in reversed(self.scopes):
            if name in scope.single:
                return scope.single[name]
            if prefix != name and prefix in scope.families:
                return Register(name, scope.families[prefix])
        return None

    def register(self, name: str) -> Register:
        found = self.find(name)
        if found is None:
            raise self.fail(f"no register is called {shown(name)}")
        return found

    def predicate(self, name: str) -> Register:
        found = self.register(name)
        if found.bits != 1:
            raise self.fail(f"{shown(name)} is no predicate")
        return found

    def operand(self, text: str) -> Operand:
        if len(self.scopes) != 1:
            return self.read_operand(text)
        found = self.plain.get(text)
        if found is None:
            found = self.plain[text] = self.read_operand(text)
        return found

    def read_operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return Vector(tuple(self.operand(each) for each in split_commas(text[1:-1])))
        if text.startswith("["):
            return self.address(text)
        if text.startswith("("):
            return Vector(tuple(self.operand(each) for each in split_commas(text[1:-1])))
        if text == "_":
            return Sink()
        if "|" in text:
            first, _, second = text.partition("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        if text.startswith("!"):
            return self.predicate(text[1:].strip())._replace(negated=True)
        number = _NUMBER.match(text)
        if number:
            digits = number[2]
            if len(digits) > _MOST_DIGITS:
                raise self.fail(f"a number of {len(digits)} digits: {shown(text)}")
            octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567"
            try:
                value = int(digits, 8) if octal else int(digits, 0)
            except ValueError:
                raise self.fail(f"a number that is not understood: {shown(text)}") from None
            return Immediate(-value if number[1] else value)
        code = _FLOAT.match(text)
        if code:
            value = int(code[3], 16)
            bits = 64 if code[2] in "dD" else 32
            return Immediate(value ^ (bool(code[1]) << (bits - 1)), f"f{bits}")
        if _DECIMAL.match(text):
            return Immediate(int.from_bytes(struct.pack("<d", float(text)), "little"), "f64")
        if text == "WARP_SZ":
            return Immediate(32)
        if _SPECIALS.match(text):
            return SpecialRegister(text)
        found = self.find(text) if self.scopes else None
        if found is not None:
            return found
        plus = re.fullmatch(r"([\w$.]+)\s*\+\s*(-?\d+)", text)
        if plus:
            return Address(Symbol(plus[1]), int(plus[2]))
        if re.fullmatch(r"[A-Za-z_$][\w$.]*", text):
            return Symbol(text)
        raise self.fail(f"an operand that is not understood: {shown(text)}")

    def address(self, text: str) -> Operand:
        pieces = split_commas(text[1:-1])
        found = re.fullmatch(r"([%\w$.]+)\s*(?:([+-])\s*(-?\w+))?", pieces[0] if pieces else "")
        if not found:
            raise self.fail(f"an address that is not understood: {shown(text)}")
        offset = 0
        if found[3]:
            number = self.operand(found[3])
            if not isinstance(number, Immediate) or number.form:
                raise self.fail(f"an address that is not understood: {shown(text)}")
            offset = -number.number if found[2] == "-" else number.number
        base = self.operand(found[1])
        if not isinstance(base, (Register, Symbol, Immediate)):
            raise self.fail(f"an address that is not understood: {shown(text)}")
        coordinates: tuple[Operand, ...] = ()
        if len(pieces) > 1:
            more = self.operand(pieces[1])
            coordinates = more.items if isinstance(more, Vector) else (more,)
        return Address(base, offset, coordinates)


def read_ptx(text: str) -> Module:
    """A PTX file.

    Args:
        text: PTX, as Triton, NVRTC or LLVM write it.

    Raises:
        PtxError: what is not understood, with its line.
        OperandError: no text.
    """
    if not isinstance(text, str):
        raise OperandError(f"PTX is given as text, not as {type(text).__name__}")
    reader = _Reader(text)
    try:
        return reader.read()
    except RecursionError:
        raise reader.fail("nested too deeply") from None


def registers_of(operand: Operand) -> Iterator[Register]:
    """Registers that an operand names."""
    if isinstance(operand, Register):
        yield operand._replace(negated=False)
    elif isinstance(operand, Address):
        if isinstance(operand.base, Register):
            yield operand.base
        for each in operand.coordinates:
            yield from registers_of(each)
    elif isinstance(operand, Vector):
        for each in operand.items:
            yield from registers_of(each)
    elif isinstance(operand, Negative):
        yield from registers_of(operand.operand)
    elif isinstance(operand, Pair):
        yield from registers_of(operand.first)
        yield from registers_of(operand.second)
