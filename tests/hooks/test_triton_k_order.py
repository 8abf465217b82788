"""In which order mma.sync takes the K of a tile, by what the operands of a dot were made of: held against Triton's compiler."""

from __future__ import annotations

import re

import numpy as np
import pytest

import mmabits

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mmabits.emulator.hooks.triton.compiler import CannotAsk, Compiler  # noqa: E402
from mmabits.isa import Family  # noqa: E402

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
K = 128


@pytest.fixture(autouse=True)
def by_the_table(monkeypatch):
    """Not asking the compiler saves a second for each kind of dot; the slow test holds what is taken here against it."""

    def cannot(self, question):
        raise CannotAsk

    monkeypatch.setattr(Compiler, "ask", cannot)


@triton.jit
def widened(x):
    return x.to(tl.float16)


@triton.jit
def operands(a_ptr, s8_ptr, f16_ptr, f32_ptr, w_ptr, c_ptr, flag, n, K: tl.constexpr, MODE: tl.constexpr):
    """A dot of f16 with a right operand `w` that is made as MODE says, mostly of `y`, loaded as int8."""
    i = tl.arange(0, 32)
    k = tl.arange(0, K)
    half = tl.arange(0, K // 2)
    at = k[:, None] * 32 + i[None, :]
    half_at = half[:, None] * 32 + i[None, :]
    x = tl.load(a_ptr + i[:, None] * K + k[None, :])
    y = tl.load(s8_ptr + at)
    h = tl.load(f16_ptr + at)
    w = h
    if MODE == "cast":
        w = y.to(tl.float16)
    if MODE == "shift":
        w = (y >> 4).to(tl.float16)
    if MODE == "mask":
        w = (y & 15).to(tl.float16)
    if MODE == "integer division":
        w = (y // 16).to(tl.float16)
    if MODE == "remainder":
        w = (y % 16).to(tl.float16)
    if MODE == "integer abs":
        w = tl.abs(y).to(tl.float16)
    if MODE == "abs":
        w = tl.abs(y.to(tl.float16))
    if MODE == "negative":
        w = (-y).to(tl.float16)
    if MODE == "select":
        w = tl.where(y > 0, h, 0.0)
    if MODE == "clamp":
        w = tl.clamp(y.to(tl.float32), -9.0, 9.0).to(tl.float16)
    if MODE == "fma":
        w = tl.fma(y.to(tl.float32), 2.0, 1.0).to(tl.float16)
    if MODE == "exp":
        w = tl.exp(y.to(tl.float32) / 64).to(tl.float16)
    if MODE == "erf":
        w = tl.erf(y.to(tl.float32)).to(tl.float16)
    if MODE == "rsqrt":
        w = tl.rsqrt(tl.abs(y).to(tl.float32) + 1).to(tl.float16)
    if MODE == "high product":
        w = tl.umulhi(y.to(tl.uint32) << 20, 1 << 14).to(tl.float16)
    if MODE == "bitcast":
        w = y.to(tl.uint8, bitcast=True).to(tl.float16)
    if MODE == "transposed":
        w = tl.trans(tl.load(s8_ptr + i[:, None] * K + k[None, :])).to(tl.float16)
    if MODE == "T":
        w = tl.load(s8_ptr + i[:, None] * K + k[None, :]).T.to(tl.float16)
    if MODE == "reshaped":
        w = tl.reshape(tl.load(s8_ptr + tl.arange(0, K * 32)), (K, 32)).to(tl.float16)
    if MODE == "split":
        pairs = tl.load(s8_ptr + k[:, None, None] * 32 + i[None, :, None] + tl.arange(0, 2)[None, None, :])
        w, _ = tl.split(pairs.to(tl.float16))
    if MODE == "scaled by a row of int8":
        w = h * tl.load(s8_ptr + k)[:, None].to(tl.float16)
    if MODE == "scaled by an int8":
        w = h * tl.load(s8_ptr).to(tl.float16)
    if MODE == "scaled by a maximum":
        w = h * tl.max(y, 0)[None, :].to(tl.float16)
    if MODE == "running sum":
        w = tl.cumsum(y.to(tl.float32), 0).to(tl.float16)
    if MODE == "gathered":
        w = tl.gather(y, k[:, None] + i[None, :] * 0, 0).to(tl.float16)
    if MODE == "flipped":
        w = tl.flip(y, 0).to(tl.float16)
    if MODE == "load masked by int8":
        w = tl.load(f16_ptr + at, mask=y > 0, other=0.0)
    if MODE == "load with other":
        w = tl.load(f16_ptr + at, mask=k[:, None] < 3, other=y.to(tl.float16))
    if MODE == "load by index":
        w = tl.load(f16_ptr + 128 + y.to(tl.int32))
    if MODE == "joined":
        w = tl.join(tl.load(s8_ptr + half_at).to(tl.float16), tl.load(s8_ptr + half_at + 32).to(tl.float16))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32))
    if MODE == "joined f16":
        w = tl.join(tl.load(f16_ptr + half_at), tl.load(f16_ptr + half_at + 32))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32))
    if MODE == "joined int8":
        w = tl.join(tl.load(s8_ptr + half_at), tl.load(s8_ptr + half_at + 32))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32)).to(tl.float16)
    if MODE == "joined f32":
        w = tl.join(tl.load(f32_ptr + half_at), tl.load(f32_ptr + half_at + 32))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32)).to(tl.float16)
    if MODE == "joined by way of f32":
        w = tl.join(tl.load(s8_ptr + half_at).to(tl.float32), tl.load(s8_ptr + half_at + 32).to(tl.float32))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32)).to(tl.float16)
    if MODE == "joined numbers":
        w = tl.join((half[:, None] + i[None, :]).to(tl.float32), (half[:, None] * i[None, :] % 7).to(tl.float32))
        w = tl.reshape(tl.permute(w, (0, 2, 1)), (K, 32)).to(tl.float16)
    if MODE == "joined twice":
        q = tl.load(s8_ptr + tl.arange(0, K // 4)[:, None] * 32 + i[None, :])
        q = tl.reshape(tl.permute(tl.join(q, q >> 1), (0, 2, 1)), (K // 2, 32)).to(tl.float16)
        w = tl.reshape(tl.permute(tl.join(q, q * 3), (0, 2, 1)), (K, 32))
    if MODE == "unpacked":
        z = tl.load(s8_ptr + half_at)
        w = tl.reshape(tl.permute(tl.join((z >> 4).to(tl.float16), (z & 15).to(tl.float16)), (0, 2, 1)), (K, 32))
    if MODE == "product of int8":
        z = tl.load(s8_ptr + k[:, None] * K + k[None, :])
        w = (tl.dot(z, y) / 4096).to(tl.float16)
    if MODE == "atomic":
        w = tl.atomic_add(f32_ptr + at, y.to(tl.float32)).to(tl.float16)
    if MODE == "f16":
        w = h + h
    if MODE == "constant":
        w = h * tl.full((K, 32), 0.5, tl.float16)
    if MODE == "device descriptor":
        w = tl.make_tensor_descriptor(s8_ptr, [K, 32], [32, 1], [K, 32]).load([0, 0]).to(tl.float16)
    if MODE == "gathered by a descriptor":
        w = tl.make_tensor_descriptor(s8_ptr, [K, 32], [32, 1], [1, 32]).gather(k, 0).to(tl.float16)
    if MODE == "function":
        w = widened(y)
    if MODE == "unrolled loop":
        for _ in tl.static_range(0, 2):
            w += y.to(tl.float16)
    if MODE == "loop carried":
        for _ in range(0, n):
            w += y.to(tl.float16)
    if MODE == "loop that carries int8":
        for _ in range(0, n):
            y = -y
        w = y.to(tl.float16)
    if MODE == "loop of one pass":
        for _ in range(0, 1):
            w += y.to(tl.float16)
    if MODE == "while":
        s = 0
        while s < n:
            w += y.to(tl.float16)
            s += 1
    if MODE == "branch":  # noqa: SIM102 - a branch on an argument alone
        if flag > 0:
            w = y.to(tl.float16)
    if MODE == "branch on a program":  # noqa: SIM102
        if tl.program_id(0) == 0:
            w = y.to(tl.float16)
    if MODE == "conditional expression":
        w = y.to(tl.float16) if flag > 0 else h
    if MODE == "settled branch" and K > 16:
        w = y.to(tl.float16)
    tl.store(w_ptr + at, w)
    c = tl.zeros((32, 32), tl.float32)
    if MODE == "inside a loop":
        for s in range(0, n):
            w = tl.load(s8_ptr + s + at).to(tl.float16)
            tl.store(w_ptr + at, w)
            c = tl.dot(x, w)
    elif MODE == "fetched before":
        for s in range(0, n):
            w = y.to(tl.float16)
            tl.store(w_ptr + at, w)
            c = tl.dot(x, w)
            y = tl.load(s8_ptr + s + at)
    else:
        c = tl.dot(x, w)
    tl.store(c_ptr + i[:, None] * 32 + i[None, :], c)


EARLY = VERSION < (3, 8)
WIDTHS = {
    **dict.fromkeys((
        "cast", "shift", "mask", "integer division", "remainder", "integer abs", "abs", "negative", "select", "clamp", "fma", "exp", "erf",
        "rsqrt", "high product", "bitcast", "transposed", "T", "reshaped", "split", "scaled by a row of int8", "flipped",
        "load masked by int8", "load with other", "load by index", "function", "unrolled loop", "settled branch", "inside a loop",
        "device descriptor",
    ), 4),
    **dict.fromkeys(("scaled by an int8", "scaled by a maximum", "running sum", "gathered", "product of int8", "atomic", "f16",
        "constant"), 2),
    "joined": 8, "unpacked": 8, "joined by way of f32": 8 if EARLY else 4, "joined f32": 4,
    "joined f16": 4 if EARLY else 2, "joined int8": 8 if EARLY else 4,
}  # fmt: skip
"""Neighbours in K that a thread holds (kWidth), as the compiler of every version from 3.6 to 3.9 lays the operands out."""

UNKNOWN = {
    "gathered by a descriptor": 4, "loop carried": 2, "loop that carries int8": 2, "loop of one pass": 4,
    "while": 2, "branch": 2, "branch on a program": 2, "conditional expression": 2, "fetched before": 2,
}  # fmt: skip
"""Likewise, where the report says that the order is not known."""

(WIDTHS if EARLY else UNKNOWN).update({"joined twice": 8 if EARLY else 4, "joined numbers": 4 if EARLY else 2})


def order(width):
    """K as getValuesFromDotOperandLayoutStruct hands it to instructions of 16: for runs of 2, 4 and 8 neighbours."""
    taken = []
    for start in range(0, K, 8 * width):
        for pair in range(width // 2):
            for half in range(2):
                taken += [start + half * 4 * width + thread * width + 2 * pair + e for thread in range(4) for e in range(2)]
    return taken


def run(mode, arch="sm_80"):
    rng = np.random.default_rng(0)
    s8 = torch.from_numpy(rng.integers(-128, 127, 4 * K * K, dtype=np.int8))
    a, f16 = (torch.from_numpy(rng.standard_normal(shape).astype(np.float16)) for shape in ((32, K), (4 * K * K,)))
    w, c = torch.zeros(K, 32, dtype=torch.float16), torch.zeros(32, 32)
    with mmabits.emulate(arch, frameworks=["triton"], triton="interpreted") as session:
        operands[(1,)](a, s8, f16, torch.from_numpy(rng.standard_normal((K, 32)).astype(np.float32)), w, c, 3, 2, K=K, MODE=mode)
    products = [
        mmabits.gemm(
            np.ascontiguousarray(a.numpy()[:, order(width)]), np.ascontiguousarray(w.numpy()[order(width)]),
            instruction="mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", arch=arch,
        )
        for width in (2, 4, 8)
    ]  # fmt: skip
    assert len({each.tobytes() for each in products}) == 3, "the operands show no difference between the orders"
    (last,) = (line for line in session.report().emulated if "f16.f16" in line.instruction.ptx)
    return c.numpy(), dict(zip((2, 4, 8), products, strict=True)), last


@pytest.mark.parametrize("mode", WIDTHS)
def test_the_order_of_k_follows_the_narrowest_load(mode):
    got, products, line = run(mode)
    assert got.tobytes() == products[WIDTHS[mode]].tobytes()
    assert "not known" not in line.note
    assert ("K permuted" in line.note) == (WIDTHS[mode] > 2)


@pytest.mark.parametrize("mode", UNKNOWN)
def test_an_order_that_is_not_known_is_said_to_be_so(mode):
    got, products, line = run(mode)
    assert got.tobytes() in {each.tobytes() for each in products.values()}
    assert "order of K within the tile not known" in line.note
    assert "compiles it" not in line.note and "by the table" not in line.note


def test_what_no_known_operation_made_is_not_known():
    from triton.runtime.interpreter import TensorHandle

    from mmabits.emulator.hooks.triton.origins import NOTHING, UNKNOWN, origin

    assert origin(TensorHandle(np.zeros((2, 2), np.float16), tl.float16)) is UNKNOWN
    assert origin(TensorHandle(np.zeros(1, np.float16), tl.float16)) is NOTHING
    assert UNKNOWN.widths(16, False) == (16, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*WIDTHS, *UNKNOWN])
def test_widths_are_those_of_the_compiler(mode):
    pointers = {"a_ptr": "*fp16", "s8_ptr": "*i8", "f16_ptr": "*fp16", "f32_ptr": "*fp32", "w_ptr": "*fp16", "c_ptr": "*fp32"}
    signature = {**pointers, "flag": "i32", "n": "i32", "K": "constexpr", "MODE": "constexpr"}
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(pointers))}
    source = ASTSource(operands, signature, {(8,): K, (9,): mode}, aligned)
    options = {"enable_fp_fusion": True}
    text = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ttgir"]
    widths = [re.findall(r"kWidth = (\d+)", line) for line in text.splitlines() if "tt.dot " in line]
    assert widths[-1] == [str({**WIDTHS, **UNKNOWN}[mode])] * 2


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_operands_in_shared_memory_ascend_whatever_they_were_made_of(arch):
    rng = np.random.default_rng(0)
    a, b = (
        torch.from_numpy(rng.standard_normal((64, 64)).astype(np.float16)),
        torch.from_numpy(rng.integers(-9, 9, (64, 64), dtype=np.int8)),
    )
    c = torch.zeros(64, 64)
    with mmabits.emulate(arch, frameworks=["triton"], triton="interpreted") as session:
        shifted[(1,)](a, b, c)
    (line,) = session.report().emulated
    assert line.instruction.family is not Family.MMA_SYNC
    assert "order" not in line.note and "permuted" not in line.note


@triton.jit
def shifted(a_ptr, b_ptr, c_ptr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    b = tl.load(b_ptr + at)
    for _ in range(0, 3):
        b = b >> 1
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), b.to(tl.float16)))


@triton.jit
def scales(a_ptr, scale_ptr, b_ptr, c_ptr, COMPUTED: tl.constexpr):
    i = tl.arange(0, 128)
    at = i[:, None] * 128 + i[None, :]
    a = tl.load(a_ptr + at)
    if COMPUTED:
        a = a.to(tl.float32).to(tl.float8e5)
        scale = (tl.full((128, 4), 127, tl.int32)).to(tl.uint8)
    else:
        scale = tl.load(scale_ptr + i[:, None] * 4 + tl.arange(0, 4)[None, :])
    b = tl.load(b_ptr + at).to(tl.float32).to(tl.float8e5)
    tl.store(c_ptr + at, tl.dot_scaled(a, scale, "e5m2", b, scale, "e5m2"))


@pytest.mark.parametrize("computed", [False, True])
def test_scaled_dots_of_elements_that_were_not_loaded(computed):
    some = torch.ones(128, 128)
    a = some.half() if computed else some.to(torch.float8_e5m2)
    with mmabits.emulate("sm_80", frameworks=["triton"], triton="interpreted") as session:
        scales[(1,)](a, torch.full((128, 4), 127, dtype=torch.uint8), some.half(), torch.zeros(128, 128), COMPUTED=computed)
    (line,) = session.report().emulated
    assert ("order of K within the tile not known" in line.note) == computed
