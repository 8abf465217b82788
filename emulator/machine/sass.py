"""The machine code that ptxas makes of a kernel, beside what the machine executes: products, sums and fused multiply-adds.

nvdisasm names the line of the PTX that each machine instruction comes from. For every product and sum of the text the machine code says
whether it was fused; what was unrolled occurs several times, the same each time.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

from mmabits.emulator.machine.fusion import contracted, folded
from mmabits.emulator.machine.program import base_of
from mmabits.emulator.machine.ptx import Entry, Immediate, PtxInstruction, read_ptx
from mmabits.isa import MmabitsError, OperandError, architecture
from mmabits.isa.contraction import contraction
from mmabits.isa.errors import DeviceUnavailable

_TIMEOUT_S: Final = 120
_MOST_SHOWN: Final = 12
_LINE: Final = re.compile(r'\s*//## File "[^"]*", line (\d+)')
_CODE: Final = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([^;]+?)\s*;")
_FUNCTION: Final = re.compile(r"^\.text\.([\w$.]+):")
_VERSION: Final = re.compile(r"\bV(\d[\d.]*)")
_PRODUCT, _SUM, _FUSED = "product", "sum", "fused"
_KINDS: Final = {
    "FFMA": _FUSED, "FFMA2": _FUSED, "UFFMA": _FUSED, "DFMA": _FUSED, "HFMA2": _FUSED, "FHFMA": _FUSED, "FADD": _SUM, "FADD2": _SUM,
    "UFADD": _SUM, "DADD": _SUM, "HADD2": _SUM, "FHADD": _SUM, "FMUL": _PRODUCT, "FMUL2": _PRODUCT, "UFMUL": _PRODUCT, "DMUL": _PRODUCT,
    "HMUL2": _PRODUCT,
}  # fmt: skip
_EXPANDED: Final = ("div", "rcp", "sqrt", "ex2", "rsqrt", "lg2", "sin", "cos")
"""Opcodes that become several machine instructions, or one of another kind."""
_FLOATS: Final = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64")


# ------------------------------------------------------------------------------------------------------------------- the tools


@lru_cache(maxsize=8)
def tool(name: str) -> Path | None:
    """A program of the CUDA toolkit: the one that an installed Triton brings, else the one on the PATH; None without either."""
    spec = importlib.util.find_spec("triton")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        path = Path(folder, "backends", "nvidia", "bin", name)
        if path.is_file():
            return path
    found = shutil.which(name)
    return None if found is None else Path(found)


def assembler(arch: str) -> Path:
    """The ptxas for an architecture: Triton brings an older one for those before Hopper.

    Raises:
        DeviceUnavailable: there is none.
    """
    names = ("ptxas-blackwell", "ptxas") if architecture(arch).capability_number >= 90 else ("ptxas",)
    found = next((path for path in map(tool, names) if path is not None), None)
    if found is None:
        raise DeviceUnavailable("no ptxas: it comes with the CUDA toolkit and with Triton")
    return found


@lru_cache(maxsize=8)
def version(path: Path) -> str:
    """`ptxas 12.9.86`."""
    text = _run([str(path), "--version"])
    found = _VERSION.search(text)
    return f"ptxas {found[1]}" if found else "ptxas of an unknown version"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise MmabitsError(f"{Path(command[0]).name} refuses: {' '.join((done.stderr or done.stdout).split())[:400]}")
    return done.stdout


def assemble(text: str, *, arch: str, contracts: bool = True) -> bytes:
    """A cubin of PTX, with the lines of the text in it.

    Raises:
        DeviceUnavailable: no ptxas.
        MmabitsError: it does not take the text.
    """
    target = architecture(arch)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text, encoding="utf-8")
        flags = [] if contracts else ["--fmad=false"]
        _run([str(assembler(arch)), f"-arch={target.name}", "-lineinfo", *flags, str(source), "-o", str(cubin)])
        return cubin.read_bytes()


@lru_cache(maxsize=4)
def by_line(cubin: bytes) -> dict[str, dict[int, list[str]]]:
    """Machine instructions of each kernel of a cubin, by the line of the PTX that they come from; nothing where it names no lines.

    Raises:
        DeviceUnavailable: no nvdisasm.
    """
    path = tool("nvdisasm")
    if path is None:
        raise DeviceUnavailable("no nvdisasm: it comes with the CUDA toolkit and with Triton")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        text = _run([str(path), "-c", "-gp", str(file)])
    found: dict[str, dict[int, list[str]]] = {}
    lines: dict[int, list[str]] = {}
    line = 0
    for each in text.splitlines():
        if function := _FUNCTION.match(each):
            lines, line = found.setdefault(function[1], defaultdict(list)), 0
        elif at := _LINE.match(each):
            line = int(at[1])
        elif line and (code := _CODE.match(each)):
            lines[line].append(" ".join(code[1].split()))
    return found


# ------------------------------------------------------------------------------------------------------------------ comparison


def kinds_of(code: str) -> tuple[str, ...]:
    """What a machine instruction computes: `product`, `sum` or `fused`; nothing of others.

    HFMA2 stands for products too, with zero for addend, and for sums, with one for a factor: such a one is both. HFMA2 of zeros moves a
    constant, HADD2.F32 converts, and HADD2 with zero copies.
    """
    name, _, rest = code.partition(" ")
    words = name.split(".")
    kind = _KINDS.get(words[0])
    if kind is None:
        return ()
    operands = [each.strip() for each in rest.split(",")][1:]
    is_zero = [each.lstrip("-").startswith("RZ") for each in operands]
    if words[0] == "HADD2" and ("F32" in words or any(is_zero)):
        return ()
    if words[0] == "HFMA2":
        if all(is_zero[:2]):
            return ()
        if is_zero[-1]:
            return (_PRODUCT, _FUSED)
        if "1" in operands[:3]:
            return (_SUM, _FUSED)
    return (kind,)


def _wanted(instruction: PtxInstruction) -> str | None:
    """What an instruction of the text computes here, likewise."""
    words = instruction.opcode.split(".")
    return {"mul": _PRODUCT, "add": _SUM, "sub": _SUM, "fma": _FUSED}.get(words[0]) if words[-1] in _FLOATS else None


def _has_factor_one(instruction: PtxInstruction) -> bool:
    """Whether a factor is one: product, sum and fused multiply-add are then the same."""
    factors = [getattr(each, "operand", each) for each in instruction.operands[1:3]]
    ones = [isinstance(each, Immediate) and each.number & 0x7FFF_FFFF == 0x3F80_0000 for each in factors]
    return base_of(instruction.opcode) in ("mul", "fma") and any(ones)


@dataclass(frozen=True, kw_only=True)
class FusionLine:
    """A line of the text whose machine code is another than is executed here."""

    instruction: PtxInstruction
    here: str
    found: str

    def __str__(self) -> str:
        return f"{self.instruction}: here {self.here}, in the machine code {self.found}"


@dataclass(frozen=True, kw_only=True)
class FusionCheck:
    """A kernel's machine code beside what is executed here."""

    kernel: str
    arch: str
    assembler: str
    here: Counter[str]
    """How many products, sums and fused multiply-adds of the text were compared, as executed here."""
    found: Counter[str]
    """Those of the machine code under the same lines; more where loops are unrolled."""
    compared: int
    """Lines of the text."""
    parted: tuple[FusionLine, ...]
    missing: int
    """Lines of which the machine code has nothing: computed once with another, or two halves of f16 as one."""
    expanded: Counter[str] = field(default_factory=Counter)
    """Opcodes that become several machine instructions, which are not compared."""

    @property
    def agrees(self) -> bool:
        """Whether every line that can be compared is the same."""
        return not self.parted

    def __str__(self) -> str:
        text = f"{self.kernel} on {self.arch}, {self.assembler}: {self.compared} products and sums of the text compared, "
        text += "all as in the machine code" if self.agrees else f"{len(self.parted)} differ"
        if self.missing:
            text += f"; {self.missing} have no machine code of their own"
        if self.expanded:
            text += f"; {self.expanded.total()} expanded ones are not compared ({', '.join(sorted(self.expanded))})"
        more = [f"  and {len(self.parted) - _MOST_SHOWN} more"] if len(self.parted) > _MOST_SHOWN else []
        return "\n".join([text, *(f"  {each}" for each in self.parted[:_MOST_SHOWN]), *more])


def check_fusion(text: str, *, arch: str, kernel: str | None = None, contracts: bool = True, cubin: bytes | None = None) -> FusionCheck:
    """Compare what ptxas makes of a kernel's products and sums with what is executed here.

    Args:
        text: PTX: `kernel.asm["ptx"]` of a compiled Triton kernel, or any other.
        arch: `"sm_90a"`, or a GPU of it.
        kernel: its name; the only one if None.
        contracts: False for `--fmad=false`.
        cubin: what a compiler made of the text; assembled here if None, or if it names no lines.

    Raises:
        DeviceUnavailable: no ptxas or nvdisasm; Triton brings both.
        OperandError: no such kernel.
        MmabitsError: ptxas does not take the text.
    """
    module = read_ptx(text)
    name = kernel if kernel is not None else module.kernels[0] if len(module.kernels) == 1 else ""
    if name not in module.kernels:
        there = f"the PTX has the kernels {', '.join(module.kernels)}" if module.kernels else "the PTX has no kernel (.entry)"
        raise OperandError(there if kernel is None else f"{there}; got {kernel!r}")
    target = architecture(arch)
    lines = by_line(cubin).get(name) if cubin is not None else None
    if not lines:
        lines = by_line(assemble(text, arch=target.name, contracts=contracts)).get(name, {})
    entry = module.entries[name]
    rule = contraction(target.name)
    after = folded(entry, rule, contracts=contracts)
    if contracts:
        after, _ = contracted(after, rule)
    return _compared(entry, after, lines, target.name, version(assembler(target.name)))


def _compared(entry: Entry, after: Entry, lines: dict[int, list[str]], arch: str, assembled: str) -> FusionCheck:
    executed: dict[int, list[PtxInstruction]] = defaultdict(list)
    for each in after.instructions:
        executed[each.line].append(each)
    here: Counter[str] = Counter()
    found: Counter[str] = Counter()
    expanded: Counter[str] = Counter()
    parted: list[FusionLine] = []
    compared = missing = 0
    seen: set[int] = set()
    for each in entry.instructions:
        is_expanded = base_of(each.opcode) in _EXPANDED and each.opcode.rpartition(".")[2] in _FLOATS
        if (_wanted(each) is None and not is_expanded) or each.line in seen:
            continue
        seen.add(each.line)
        if is_expanded and not _is_folded(each, executed[each.line]):
            expanded[each.opcode] += 1
            continue
        wanted = Counter(kind for one in executed[each.line] if (kind := _wanted(one)) is not None)
        machine = [kinds for one in lines.get(each.line, ()) if (kinds := kinds_of(one))]
        if not machine and wanted:
            missing += 1
            continue
        compared += 1
        here += wanted
        seen_there = Counter(next((kind for kind in kinds if kind in wanted), kinds[0]) for kinds in machine)
        found += seen_there
        if set(seen_there) != set(wanted) and not any(map(_has_factor_one, executed[each.line])):
            parted.append(FusionLine(instruction=each, here=_words(wanted), found=_words(seen_there)))
    return FusionCheck(
        kernel=entry.name, arch=arch, assembler=assembled, here=here, found=found, compared=compared, parted=tuple(parted), missing=missing,
        expanded=expanded,
    )  # fmt: skip


def _is_folded(original: PtxInstruction, executed: list[PtxInstruction]) -> bool:
    """Whether a function of a constant stands here as a product or a number."""
    return not any(each.opcode == original.opcode or each.opcode.startswith("rcp") for each in executed)


def _words(kinds: Counter[str]) -> str:
    return " and ".join(sorted(kinds)) or "nothing"
