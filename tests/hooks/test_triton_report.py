"""What the report lists as not emulated: every operation whose bits are not, or may not be, the GPU's, and no other."""

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

THIRD = tl.constexpr(3)


def emulate(arch):
    return mmabits.emulate(arch, frameworks=["triton"], triton="interpreted")


@triton.jit
def times(x, y):
    return x * y


@triton.jit
def plus(x, y):
    return x + y


@triton.jit
def largest(a, b):
    return tl.maximum(a, b)


@triton.jit
def kernel(x_ptr, y_ptr, z_ptr, h_ptr, i_ptr, o_ptr, s, n, N: tl.constexpr, MODE: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    z = tl.load(z_ptr + at)
    h = tl.load(h_ptr + at)
    i = tl.load(i_ptr + at)
    m = i > 2
    r = x
    # Not a GPU's
    if MODE == "x / y":
        r = x / y
    if MODE == "x / 448":
        r = x / 448.0
    if MODE == "x / argument":
        r = x / s
    if MODE == "x / integer argument":
        r = x / n
    if MODE == "1 / x":
        r = 1.0 / x
    if MODE == "fdiv":
        r = tl.fdiv(x, y)
    if MODE == "h / 3":
        r = h / THIRD
    if MODE == "remainder":
        r = x % y
    if MODE == "exp":
        r = tl.exp(x)
    if MODE == "exp2":
        r = tl.exp2(x)
    if MODE == "log":
        r = tl.log(tl.abs(x))
    if MODE == "log2":
        r = tl.log2(tl.abs(x))
    if MODE == "sqrt":
        r = tl.sqrt(tl.abs(x))
    if MODE == "rsqrt":
        r = tl.rsqrt(tl.abs(x))
    if MODE == "sin":
        r = tl.sin(x)
    if MODE == "cos":
        r = tl.cos(x)
    if MODE == "erf":
        r = tl.erf(x)
    if MODE == "sigmoid":
        r = tl.sigmoid(x)
    if MODE == "softmax":
        r = tl.softmax(x)
    if MODE == "randn":
        r = tl.randn(n, at)
    if MODE == "sum":
        r = x - tl.sum(x, 0)
    if MODE == "cumsum":
        r = tl.cumsum(x, 0)
    if MODE == "cumprod":
        r = tl.cumprod(x, 0)
    if MODE == "sums by a function":
        r = x - tl.reduce(x, 0, plus)
    if MODE == "scan by a function":
        r = tl.associative_scan(x, 0, times)
    if MODE == "sum of products":
        r = x - tl.sum(x * y, 0)
    if MODE == "atomic sum":
        tl.atomic_add(z_ptr + at, x)
    if MODE == "atomic value":
        r = x + tl.atomic_add(i_ptr + at // 2, 1)
    if MODE == "swapped":
        r = x + tl.atomic_cas(i_ptr + at // 2, i, i)
    if MODE == "any of the largest":
        r = x + tl.argmax(i * 0, 0, tie_break_left=False)
    if MODE == "integer division by zero":
        r = x + i // (i - i)
    if MODE == "shift too far":
        r = x + (i << n * 16)
    if MODE == "x / y + z":
        r = x / y + z
    # Fused
    if MODE == "x y + z":
        r = x * y + z
    if MODE == "z - x y":
        r = z - x * y
    if MODE == "x y - z":
        r = x * y - z
    if MODE == "augmented":
        r = z
        r += x * y
    if MODE == "h g + h":
        r = (h * h + h).to(tl.float32)
    if MODE == "reshaped":
        r = tl.reshape(x[:, None] * y[:, None], (N,)) + z
    if MODE == "transposed":
        r = tl.reshape(tl.trans(x[:, None] * y[:, None]), (N,)) + z
    if MODE == "broadcast":
        r = z + (s * (n + 0.5))
    if MODE == "functions":
        r = plus(times(x, y), z)
    if MODE == "bitcast":
        r = (x * y).to(tl.int32, bitcast=True).to(tl.float32, bitcast=True) + z
    if MODE == "by way of f64":
        r = ((x * y).to(tl.float64) + z.to(tl.float64)).to(tl.float32)
    if MODE == "two products":
        r = x * y + x * z
    if MODE == "joined and summed":
        r = tl.sum(tl.join(x * y, y * z), 1)
    if MODE == "in a loop":
        for _ in range(0, n):
            r = r * y + z
    # As on a GPU
    if MODE == "nothing":
        r = y
    if MODE == "sums":
        r = x + y - z
    if MODE == "products":
        r = x * y * z * 0.3
    if MODE == "integers":
        r = (i * 3 + i // 7 - i % 5 + (i << 2) + (i >> 1)).to(tl.float32)
    if MODE == "x / 4":
        r = x / 4.0
    if MODE == "x / constant 4":
        r = x / (N // 16)
    if MODE == "div_rn":
        r = tl.div_rn(x, y)
    if MODE == "sqrt_rn":
        r = tl.sqrt_rn(tl.abs(x))
    if MODE == "fma":
        r = tl.fma(x, y, z)
    if MODE == "extrema":
        r = tl.maximum(x, y) + tl.minimum(z, 0.0) + tl.max(x, 0) - tl.min(y, 0) + tl.argmax(x, 0)
    if MODE == "rounded":
        r = tl.floor(x) + tl.ceil(y) + tl.abs(z)
    if MODE == "largest by a function":
        r = tl.reduce(x, 0, largest) + tl.associative_scan(x, 0, largest)
    if MODE == "integer sums":
        r = (tl.sum(i, 0) + tl.cumsum(i, 0) + tl.xor_sum(i, 0)).to(tl.float32)
    if MODE == "sum of two":
        r = tl.sum(tl.join(x, y), 1)
    if MODE == "histogram":
        r = tl.histogram(i, N).to(tl.float32)
    if MODE == "sorted":
        r = tl.sort(x)
    if MODE == "flipped and gathered":
        r = tl.flip(x, 0) + tl.gather(x, at, 0)
    if MODE == "rand":
        r = tl.rand(n, at)
    if MODE == "casts":
        r = x.to(tl.float16).to(tl.float32) + x.to(tl.bfloat16).to(tl.float32) + i.to(tl.float32) + x.to(tl.int32)
    if MODE == "product cut to f16":
        r = ((x * y).to(tl.float16) + h).to(tl.float32)
    if MODE == "product of f16 widened":
        r = (h * h).to(tl.float32) + z
    if MODE == "selected product":
        r = tl.where(m, x * y, 0.0) + z
    if MODE == "largest of a product":
        r = tl.maximum(x * y, 0.0) + z
    if MODE == "abs of a product":
        r = tl.abs(x * y) + z
    if MODE == "gathered product":
        r = tl.gather(x * y, at, 0) + z
    if MODE == "2 x + z":
        r = x * 2.0 + z
    if MODE == "x / 2 + z":
        r = x / 2.0 + z
    if MODE == "product and zero":
        r = x * y + 0.0
    if MODE == "atomic count":
        tl.atomic_add(i_ptr + at // 2, 1)
    if MODE == "atomic maximum":
        tl.atomic_max(i_ptr + at // 2, i)
    if MODE == "tied":
        r = x + tl.argmax(i, 0)
    tl.store(o_ptr + at, r)


FUSED = ("a product and a sum",)
DIVISION = ("division",)
LISTED = {
    **dict.fromkeys(("x / y", "x / 448", "x / argument", "x / integer argument", "1 / x", "fdiv", "h / 3"), DIVISION),
    "x / y + z": ["division", "a quotient and a sum"],
    "remainder": ["remainder of floats"], "exp": ["exp"], "exp2": ["exp2"], "log": ["log"], "log2": ["log2"], "sqrt": ["sqrt"],
    "rsqrt": ["rsqrt"], "sin": ["sin"], "cos": ["cos"], "erf": ["erf"], "sigmoid": ["exp", "division"],
    "softmax": ["exp", "sum of floats", "division"], "sum": ["sum of floats"], "cumsum": ["scan of floats"], "cumprod": ["scan of floats"],
    "sums by a function": ["reduction of floats"], "scan by a function": ["scan of floats"],
    "sum of products": [*FUSED, "sum of floats"], "joined and summed": FUSED, "atomic sum": ["atomic sum of floats"],
    "atomic value": ["what an atomic operation returns"], "swapped": ["what an atomic operation returns"],
    "any of the largest": ["index of an extremum"], "integer division by zero": ["integer division by zero"],
    "shift too far": ["shift by more than the width"],
    **dict.fromkeys((
        "x y + z", "z - x y", "x y - z", "augmented", "h g + h", "reshaped", "transposed", "broadcast", "functions", "bitcast",
        "by way of f64", "two products", "in a loop",
    ), FUSED),
}  # fmt: skip
EXACT = (
    "nothing", "sums", "products", "integers", "x / 4", "x / constant 4", "div_rn", "sqrt_rn", "fma", "extrema", "rounded",
    "largest by a function", "integer sums", "sum of two", "histogram", "sorted", "flipped and gathered", "rand", "casts",
    "product cut to f16", "product of f16 widened", "selected product", "largest of a product", "abs of a product", "gathered product",
    "2 x + z", "x / 2 + z", "product and zero", "atomic count", "atomic maximum", "tied",
)  # fmt: skip


def run(mode, grid=2, edit=None, **options):
    rng = np.random.default_rng(0)
    x, y, z = (torch.from_numpy(rng.uniform(0.5, 2, 64).astype(np.float32)) for _ in range(3))
    if edit is not None:
        x[3] = edit
    out = torch.zeros(64)
    with emulate("sm_90a") as session:
        kernel[(grid,)](x, y, z, x.half(), torch.arange(64, dtype=torch.int32), out, 1.7, 3, N=64, MODE=mode, **options)
    return session.report().skipped


@pytest.mark.parametrize("mode", LISTED)
def test_what_differs_is_listed(mode):
    lines = run(mode)
    assert list(dict.fromkeys(line.operation for line in lines)) == list(LISTED[mode])
    for line in lines:
        assert re.match(r"kernel( in \w+)?, line \d+", line.site)
        assert line.count % 2 == 0


@pytest.mark.parametrize("mode", EXACT)
def test_what_does_not_differ_is_not_listed(mode):
    assert run(mode) == ()


@pytest.mark.parametrize("mode", [mode for mode, operations in LISTED.items() if FUSED[0] in operations])
def test_nothing_is_fused_without_fusion(mode, monkeypatch):
    assert FUSED[0] not in [line.operation for line in run(mode, enable_fp_fusion=False)]
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    assert FUSED[0] not in [line.operation for line in run(mode)]
    assert FUSED[0] in [line.operation for line in run(mode, enable_fp_fusion=True)]


@pytest.mark.parametrize(("mode", "edit"), [("2 x + z", 3e38), ("x / 2 + z", 1.5e-45)])
def test_a_power_of_two_is_exact_only_within_the_range(mode, edit):
    """2 x overflows, x / 2 loses a bit of a subnormal number: rounded once, the sum would not."""
    assert run(mode, edit=edit)[0].operation.endswith("and a sum")


def test_one_program_alone_has_an_order():
    assert run("atomic value", grid=1)[0].operation == "what an atomic operation returns"  # two of its elements share an address


@triton.jit
def rows(x_ptr, o_ptr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + at)
    x = tl.exp(x - tl.max(x, 0))
    tl.store(o_ptr + at, x / tl.sum(x, 0))


def test_lines_are_counted_and_placed():
    with emulate("sm_90a") as session:
        rows[(5,)](torch.ones(5, 64), torch.zeros(5, 64), N=64)
    first = rows.starting_line_number
    lines = [(line.site, line.operation, line.count) for line in session.report().skipped]
    assert lines == [
        (f"rows, line {first + 4}", "exp", 5), (f"rows, line {first + 5}, tl.sum", "sum of floats", 5),
        (f"rows, line {first + 5}", "division", 5),
    ]  # fmt: skip
    assert "Not emulated" in str(session.report())


def test_the_inner_of_two_sessions_tells():
    with emulate("sm_90a") as outer, emulate("sm_80") as inner:
        rows[(5,)](torch.ones(5, 64), torch.zeros(5, 64), N=64)
    assert [line.count for line in inner.report().skipped] == [5, 5, 5]
    assert outer.report().skipped == ()


@triton.jit
def f64_kernel(x_ptr, o_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(o_ptr + at, tl.sqrt(x) / (x + 0.1))


def test_division_and_roots_of_f64_are_ieee():
    with emulate("sm_90a") as session:
        f64_kernel[(1,)](torch.ones(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64), N=64)
    assert session.report().skipped == ()


@triton.jit
def accumulated(a_ptr, b_ptr, c_ptr, scale, FOLDED: tl.constexpr):
    i = tl.arange(0, 64)
    at = i[:, None] * 64 + i[None, :]
    a = tl.load(a_ptr + at)
    b = tl.load(b_ptr + at)
    c = tl.load(c_ptr + at)
    c = c * scale + tl.dot(a, b) if FOLDED else c * scale - tl.dot(a, b)
    tl.store(c_ptr + at, c)


@pytest.mark.parametrize("folded", [True, False])
def test_a_product_that_becomes_an_accumulator_is_not_fused(folded):
    a, b, c = (torch.ones(64, 64, dtype=dtype) for dtype in (torch.float16, torch.float16, torch.float32))
    with emulate("sm_90a") as session:
        accumulated[(1,)](a, b, c, 1.3, FOLDED=folded)
    assert [line.operation for line in session.report().skipped] == ([] if folded else [*FUSED])


INEXACT = re.compile(r"\b(div\.full|div\.approx|ex2|lg2|sqrt\.approx|rsqrt|sin\.|cos\.)")
POINTERS = {name: "*fp32" for name in ("x_ptr", "y_ptr", "z_ptr", "o_ptr")} | {"h_ptr": "*fp16", "i_ptr": "*i32"}


def compiled(mode):
    signature = {**POINTERS, "s": "fp32", "n": "i32"}
    names = [parameter.name for parameter in kernel.params]
    types = {name: signature.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in POINTERS}
    source = ASTSource(kernel, types, {(names.index("N"),): 256, (names.index("MODE"),): mode}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True}).asm["ptx"]


ALIKE = ("2 x + z", "x / 2 + z", "product and zero", "x / 4", "x / constant 4")
"""Fused, or divided, with the same bits."""
POLYNOMIALS = ("randn", "remainder", "log", "log2", "sin", "cos", "erf", "fma")
"""Of multiply-adds whatever stands around them."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in (*LISTED, *EXACT) if mode not in (*ALIKE, *POLYNOMIALS)])
def test_the_compiler_emits_what_is_listed(mode):
    ptx, operations = compiled(mode), LISTED.get(mode, ())
    assert bool(INEXACT.search(ptx)) == bool({"division", "exp", "exp2", "sqrt", "rsqrt"} & set(operations))
    assert ("fma.rn" in ptx) == (FUSED[0] in operations)
