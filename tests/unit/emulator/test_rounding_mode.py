"""The assumption under the engine: plain LLVM arithmetic rounds in the mode that the thread has where it stands in the program.

LLVM promises that only for its `constrained` intrinsics, which it optimizes poorly. So it is held here, of the machine code that runs:
what rounds stands between the instructions that change the mode, and gives the bits of that mode.
"""

from __future__ import annotations

import ctypes
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numba import types

import mmabits
from mmabits.emulator.engine import jit, machine_code
from mmabits.emulator.engine.jit import address_of, array_at, compiled_object, enter_rounding, intrinsic, leave_rounding
from mmabits.emulator.engine.machine_code import _Object
from mmabits.emulator.engine.native import variants
from mmabits.emulator.engine.plan import NEAREST_EVEN, TOWARD_NEGATIVE, TOWARD_POSITIVE, TOWARD_ZERO
from mmabits.emulator.engine.record import Variant
from mmabits.isa import CompilerError
from mmabits.isa.lowering import lowerings

Array = np.ndarray[Any, Any]
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}.get(platform.machine(), platform.machine())
MODES = {"rz": TOWARD_ZERO, "rn": NEAREST_EVEN, "rp": TOWARD_POSITIVE, "rm": TOWARD_NEGATIVE}


def rounded(exact: Fraction, mode: str) -> float:
    """A fraction to float64; Python rounds it to nearest even."""
    nearest = float(exact)
    up = nearest if Fraction(nearest) >= exact else math.nextafter(nearest, math.inf)
    down = nearest if Fraction(nearest) <= exact else math.nextafter(nearest, -math.inf)
    return {"rn": nearest, "rp": up, "rm": down, "rz": down if exact > 0 else up}[mode]


def test_the_reference_rounds() -> None:
    third = Fraction(1, 3)
    assert [rounded(third, mode) - 1 / 3 for mode in ("rn", "rz", "rm")] == [0.0] * 3 and rounded(third, "rp") > 1 / 3
    assert rounded(-third, "rm") < -1 / 3 == rounded(-third, "rp") == rounded(-third, "rz")


# --------------------------------------------------------------------------------------------------------- small functions


def loaded(function: Callable[[Any], None], symbol: str) -> Callable[[Array], None]:
    """A function of one address, as the engine's are compiled."""
    address = machine_code._load(_Object(*compiled_object(function, symbol)), symbol)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
    return lambda array: call(array.ctypes.data)


SMALL = 2.0**-60
COUNT = 64


def in_mode(mode: int) -> Callable[[Any], None]:
    """Operations on columns of 64 numbers: x, y, then results."""

    def run(pointer: Any) -> None:
        table = array_at(address_of(pointer), (8, COUNT), np.float64)
        before = enter_rounding(mode)
        for i in range(COUNT):
            table[2, i] = table[0, i] + table[1, i]
            table[3, i] = table[0, i] * table[1, i]
            table[4, i] = table[0, i] - SMALL
            table[5, i] = table[0, 0] + table[1, 0]  # the same in every pass
            table[6, i] = np.float32(table[0, i])
            table[7, i] = table[0, i] / table[1, i]
        leave_rounding(before)

    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["random", "all alike"])
def test_variables_round_in_the_mode_that_was_entered(mode: str, kind: str) -> None:
    table = np.zeros((8, COUNT))
    table[:2] = np.random.default_rng(7).standard_normal((2, COUNT)) if kind == "random" else [[1.0], [SMALL]]
    loaded(in_mode(MODES[mode]), f"in_mode_{mode}")(table)
    x, y = ([Fraction(value) for value in row] for row in table[:2])
    for i in range(COUNT):
        assert table[2, i] == rounded(x[i] + y[i], mode)
        assert table[3, i] == rounded(x[i] * y[i], mode)
        assert table[4, i] == rounded(x[i] - Fraction(SMALL), mode)
        assert table[5, i] == rounded(x[0] + y[0], mode)
        assert table[7, i] == rounded(x[i] / y[i], mode)
        near, other = np.float32(table[0, i]), np.float32(table[6, i])
        assert table[6, i] == other and abs(int(near.view(np.int32)) - int(other.view(np.int32))) <= 1
        below = Fraction(float(other)) <= x[i]
        assert {"rz": abs(Fraction(float(other))) <= abs(x[i]), "rn": near == other, "rm": below, "rp": Fraction(float(other)) >= x[i]}[
            mode
        ]


def test_the_same_sum_is_computed_anew_in_another_mode() -> None:
    def run(pointer: Any) -> None:
        table = array_at(address_of(pointer), 6, np.float64)
        before = enter_rounding(TOWARD_POSITIVE)
        table[2] = table[0] + table[1]
        inner = enter_rounding(TOWARD_NEGATIVE)
        table[3] = table[0] + table[1]
        leave_rounding(inner)
        table[4] = table[0] + table[1]
        leave_rounding(before)
        table[5] = table[0] + table[1]

    table = np.array([1.0, SMALL, 0, 0, 0, 0])
    loaded(run, "modes_in_modes")(table)
    above = math.nextafter(1.0, 2.0)
    assert table[2:].tolist() == [above, 1.0, above, 1.0]


# -------------------------------------------------------------------------------------------------------------- the engine


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["random", "all alike", "one step beside"])
def test_chains_of_the_engine_round_in_every_direction(mode: str, kind: str) -> None:
    """f64 on tensor cores: a chain of fused multiply-adds, each rounded as the instruction says."""
    random = np.random.default_rng(11)
    a, b, c = random.standard_normal((8, 4)), random.standard_normal((4, 8)), random.standard_normal((8, 8))
    if kind == "all alike":
        a[:], b[:], c[:] = 1.0, SMALL, 1.0
    elif kind == "one step beside":
        a[:], b[:], c[:] = 1.0 + 2.0**-52, 1.0 + 2.0**-52, -1.0
    got = mmabits.mma(f"mma.sync.aligned.m8n8k4.row.col{'' if mode == 'rn' else f'.{mode}'}.f64.f64.f64.f64", a, b, c, arch="sm_90a")
    for row in range(8):
        for column in range(8):
            value = float(c[row, column])
            for k in range(4):
                value = rounded(Fraction(float(a[row, k])) * Fraction(float(b[k, column])) + Fraction(value), mode)
            assert got[row, column] == value


def test_promoted_sums_round_to_nearest_amid_truncated_ones() -> None:
    """The chain truncates, and is added to the total in the other mode, by the engine in one function."""
    random = np.random.default_rng(13)
    a, b = random.standard_normal((24, 512)).astype(np.float16), random.standard_normal((512, 40)).astype(np.float16)
    whole = mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a", promote_every=128)
    parts = [mmabits.gemm(a[:, k : k + 128], b[k : k + 128], instruction="wgmma", arch="sm_90a") for k in range(0, 512, 128)]
    nearest = np.zeros_like(whole)
    for part in parts:
        nearest = nearest + part
    exact = sum(part.astype(np.float64) for part in parts)
    truncated = np.nextafter(nearest, np.float32(0), where=np.abs(nearest) > np.abs(exact), out=nearest.copy())
    assert (truncated != nearest).any()  # so that the mode matters
    assert (whole.view(np.int32) == nearest.view(np.int32)).all()


FE_UPWARD = {"x86_64": 0x800, "AMD64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}


@pytest.mark.skipif(sys.platform == "win32" or platform.machine() not in FE_UPWARD, reason="no known number of a rounding mode")
def test_the_callers_mode_neither_counts_nor_changes() -> None:
    up, library = FE_UPWARD[platform.machine()], ctypes.CDLL(None)
    a = np.random.default_rng(17).standard_normal((16, 64)).astype(np.float16)
    b = np.random.default_rng(19).standard_normal((64, 8)).astype(np.float16)
    want = mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80")
    before = library.fegetround()
    library.fesetround(up)
    try:
        got = mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80")
        after = library.fegetround()
    finally:
        library.fesetround(before)
    assert after == up
    assert (got.view(np.int32) == want.view(np.int32)).all()


FLUSHING = {"x86_64": 0x9FC0, "aarch64": 0x1000000}
"""MXCSR and FPCR of a thread that takes subnormals for zeros, as PyTorch and JAX may leave it."""


@intrinsic
def exchange_state(_context: Any, state: Any) -> Any:
    """Write MXCSR or FPCR; returns what it held."""

    def codegen(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        unit = jit._unit(builder)
        before = unit.state()
        unit.set(builder.trunc(arguments[0], before.type))
        return builder.zext(before, arguments[0].type)

    return types.int64(types.int64), codegen


def test_a_thread_that_flushes_subnormals_neither_counts_nor_changes() -> None:
    def run(pointer: Any) -> None:
        words = array_at(address_of(pointer), 1, np.int64)
        words[0] = exchange_state(words[0])

    def exchanged(state: int) -> int:
        word = np.array([state])
        call(word)
        return int(word[0])

    call = loaded(run, "exchange_state")
    a, b = (np.full(shape, 2.0**-74, ml_dtypes.bfloat16) for shape in ((16, 32), (32, 8)))
    c = np.full((16, 8), 2.0**-140, np.float32)
    before = exchanged(FLUSHING[MACHINE])
    try:
        got = mmabits.gemm(a, b, c, instruction="mma.sync", arch="sm_80")
        after = exchanged(FLUSHING[MACHINE])
    finally:
        exchanged(before)
    assert after & ~0x3F == FLUSHING[MACHINE] & ~0x3F  # but for x86's flags of what happened
    assert (got == np.float32(2.0**-140 + 32 * 2.0**-148)).all()


@pytest.mark.parametrize("machine", ["ppc64le", ""])
def test_other_processors_are_refused(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(CompilerError, match=f"the engine runs on x86-64 and AArch64, this is '{machine}'"):
        jit._unit(None)


# ---------------------------------------------------------------------------------------------------------- machine code
# Each function's code is walked along its jumps and calls with the number of modes entered. What rounds at 0 would round in the
# caller's mode.

LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*?)\s*$")
LABEL = re.compile(r"^([0-9a-f]+) <(.+)>:$")
RELOCATION = re.compile(r"^\s*[0-9a-f]+: R_(?:X86_64|AARCH64)_\w+\s+(\S+)")
LOCAL = re.compile(r"\.l?text(?:\+0x([0-9a-f]+))?")
"""How a relocation names a function that only this object has: by where it begins."""
ROUNDS = re.compile(
    {
        "aarch64": r"f(add|sub|n?mul|div|sqrt|n?madd|n?msub|mla|mls|addp|cvtn2?|cvtxn2?|cvt|mulx|recps|rsqrts|cadd|cmla) .*|[su]cvtf .*",
    }.get(
        MACHINE,
        r"v?((add|sub|mul|div|sqrt)[ps][sd]|f[n]?m(add|sub)\w+|cvt(pd2ps|sd2ss|si2ss|si2sd|si2sdq|si2ssq|dq2ps|qq2p[sd]|u?[dq]q2ps)\w*) .*",
    )
)
"""Instructions, with their operands, that may round."""
WIDENS = re.compile(r"fcvt d\d+, s\d+.*")
"""Of them those that are exact."""
FUSED = re.compile(r"f(madd|mla|n?msub|mls) .*" if MACHINE == "aarch64" else r"vf[n]?m(add|sub).*")
ADDS = re.compile(r"fadd (v\d+\.[24]s|s\d+), .*" if MACHINE == "aarch64" else r"v?add[ps]s .*")
"""Sums in float32."""


class Instruction(NamedTuple):
    place: int
    name: str
    operands: str
    symbol: str
    """What a relocation in it names."""

    @property
    def text(self) -> str:
        return f"{self.name} {self.operands}"

    @property
    def rounds(self) -> bool:
        return ROUNDS.fullmatch(self.text) is not None and WIDENS.fullmatch(self.text) is None

    @property
    def reads_mode(self) -> bool:
        return self.name.endswith("stmxcsr") or (self.name == "mrs" and self.operands.endswith(", fpcr"))

    @property
    def writes_mode(self) -> bool:
        return self.name.endswith("ldmxcsr") or (self.name == "msr" and self.operands.startswith("fpcr, "))

    @property
    def calls(self) -> bool:
        return self.name.startswith("call") or self.name in ("bl", "blr")

    @property
    def ends(self) -> bool:
        return self.name.startswith(("ret", "ud2", "brk", "udf"))

    @property
    def jumps(self) -> bool:
        return re.fullmatch(r"j\w+|br?|bc?\.\w+|[ct]bn?z", self.name) is not None

    @property
    def falls_through(self) -> bool:
        return self.name not in ("jmp", "b", "br")

    @property
    def target(self) -> int:
        """Where it jumps to."""
        assert not self.operands.startswith("*") and self.name != "br", f"{self} jumps to what is not known"
        return int(re.findall(r"(?:^|, )(?:0x)?([0-9a-f]+) <", self.operands)[-1], 16)


def disassembled(code: Path) -> dict[str, list[Instruction]]:
    """The instructions of every function."""
    text = subprocess.run(["objdump", "-dr", "--no-show-raw-insn", code], capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[Instruction]] = {}
    found: list[Instruction] = []
    begins: dict[int, str] = {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            begins[int(label[1], 16)] = label[2]
            found = functions.setdefault(label[2], [])
        elif relocation := RELOCATION.match(line):
            found[-1] = found[-1]._replace(symbol=relocation[1])
        elif parts := LINE.match(line):
            found.append(Instruction(int(parts[1], 16), parts[2], parts[3].split("//")[0].strip(), ""))
    for code in functions.values():
        for at, each in enumerate(code):
            if local := LOCAL.fullmatch(each.symbol):
                code[at] = each._replace(symbol=begins[int(local[1] or "0", 16)])
    return functions


def called(code: list[Instruction], at: int) -> set[str]:
    """The functions that a call may reach through a register: what was moved there last, by way of others and of the stack too."""
    if code[at].symbol:
        return {code[at].symbol}
    wanted = code[at].operands.removeprefix("*")
    for each in reversed(code[:at]):
        source, _, target = each.operands.rpartition(",")
        if each.name.startswith("mov") and target == wanted:
            if each.symbol:
                return {each.symbol}
            wanted = source
    return named(code)


def named(code: list[Instruction]) -> set[str]:
    """All that a function names, and so all that it can call."""
    return {each.symbol for each in code if each.symbol}


def walked(functions: dict[str, list[Instruction]], symbol: str) -> Iterator[tuple[int, Instruction]]:
    """Every instruction that can be reached, with each number of modes that may have been entered there.

    A call counts as leaving the mode as it was. Numba's ways out for errors, which nothing here raises, do not; they are followed too.

    Raises:
        AssertionError: a way that this cannot follow.
    """
    entered = {(symbol, 0)}
    waiting = [(symbol, 0)]
    while waiting:
        name, depth = waiting.pop()
        code = functions[name]
        reached: set[tuple[str, int]] = set()
        if any(each.writes_mode for each in code):
            for here, at in ways(code, depth):
                yield here, code[at]
                if code[at].calls or (code[at].jumps and code[at].symbol):
                    reached |= {(target, here) for target in called(code, at)}
        else:
            yield from ((depth, each) for each in code)
            reached = {(target, depth) for target in named(code)}
        for target, here in reached - entered:
            if target in functions:
                entered.add((target, here))
                waiting.append((target, here))


def ways(code: list[Instruction], depth: int) -> Iterator[tuple[int, int]]:
    """(modes entered, index) along every way through a function that changes the mode."""
    index = {each.place: i for i, each in enumerate(code)}
    open_ways = [(0, depth, False)]
    seen = set(open_ways)
    while open_ways:
        at, here, stored = open_ways.pop()
        yield here, at
        each, after = code[at], [at + 1]
        if each.reads_mode:
            stored = True
        elif each.writes_mode:  # where a mode is entered, the one before has just been stored
            here, stored = here + (1 if stored else -1), False
            assert 0 <= here <= 2, f"{each} enters or leaves too often"
        elif each.ends:
            after = []
        elif each.jumps:
            after = [*([] if each.symbol else [index[each.target]]), *(after if each.falls_through else [])]
        for place in after:
            if (place, here, stored) not in seen:
                seen.add((place, here, stored))
                open_ways.append((place, here, stored))


VARIANTS = {variant.symbol: variant for lowering in lowerings() for variant in variants(lowering)}


@pytest.mark.skipif(MACHINE not in ("x86_64", "aarch64"), reason="reads the machine code of x86-64 and AArch64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not here (binutils)")
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_rounds_stands_where_the_mode_is_set(variant: Variant, tmp_path: Path) -> None:
    made = machine_code._read(variant.symbol) or machine_code._make(variant)
    file = tmp_path / "code.o"
    file.write_bytes(made.code)
    depths: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for depth, each in walked(disassembled(file), variant.symbol):
        if each.rounds:
            depths[depth].append(each.text)
    assert depths[0] == []
    if variant.kind == "integer":
        assert depths[1] == depths[2] == []
    elif variant.kind == "chain":
        assert any(FUSED.fullmatch(text) for text in depths[1]) and depths[2] == []
    else:  # the sums of the steps, and amid them those that are promoted
        in_bytes = variant.kind.startswith("grouped_bytes")  # their products are integers
        assert in_bytes or any(FUSED.fullmatch(text) for text in depths[1])
        assert any("add" in text and not FUSED.fullmatch(text) for text in depths[1])
        assert depths[2] and all(ADDS.fullmatch(text) for text in depths[2])


def test_the_walk_finds_a_sum_outside(tmp_path: Path) -> None:
    """So the test above can fail: the same check on a function whose second sum stands behind the mode."""
    if MACHINE not in ("x86_64", "aarch64") or shutil.which("objdump") is None:
        pytest.skip("needs objdump, and x86-64 or AArch64")

    def run(pointer: Any) -> None:
        table = array_at(address_of(pointer), 4, np.float64)
        before = enter_rounding(TOWARD_ZERO)
        table[2] = table[0] + table[1]
        leave_rounding(before)
        table[3] = table[0] * table[1]

    (tmp_path / "code.o").write_bytes(compiled_object(run, "outside")[0])
    found = [(depth, each.name) for depth, each in walked(disassembled(tmp_path / "code.o"), "outside") if each.rounds]
    names = ("fadd", "fmul") if MACHINE == "aarch64" else ("addsd", "mulsd")
    assert [(depth, name.removeprefix("v")) for depth, name in found] == list(zip((1, 0), names, strict=True))
