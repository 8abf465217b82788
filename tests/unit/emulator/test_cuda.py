"""`device="cuda"`: the bits of the engine of the CPU and of the exact model.

The cases run in one process of Numba's CUDA simulator, or, where there is a GPU, on it as well. The simulator lacks the fused
multiply-adds of f64, so there it is given those of the exact model.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.isa import DATAPATHS, DeviceUnavailable, Evidence, OperandError, instructions, lower

TESTS = Path(__file__).resolve().parents[2]
SIDE = 2
MODIFIED = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2.negA"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16.negB"),
    ("sm_90a", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e2m3.e4m3.ue8m0.negA"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3.negB"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n8k64.f32.e2m1.e2m1.ue8m0"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f16.f16.f16.scale_input_d::15"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n8k32.f32.e3m2.e2m1"),
    ("sm_80", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rz.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rm.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rp.f64.f64.f64.f64"),
)
"""Beside one instruction of every distinct datapath: modifiers, mixed types, both scale types."""
PROMOTED = {MODIFIED[i][1] for i in (0, 2, 3, 4, 5, 7)}

PROGRAM = """
import json, sys
sys.path[:0] = {paths!r}
import numba
import numba.cuda
if numba.config.ENABLE_CUDASIM:
    import types
    import numpy as np
    import slow_reference

    def fma(rounding):
        def rounded(*numbers):
            codes = [int(np.float64(number).view(np.uint64)) for number in numbers]
            return np.uint64(slow_reference.ieee_fma("f64", *codes, rounding)).view(np.float64)
        return rounded

    names = {{"fma_rn": "rn", "fma_rz": "rz", "fma_ru": "rp", "fma_rd": "rm"}}
    functions = types.SimpleNamespace(**{{name: fma(rounding) for name, rounding in names.items()}})
    sys.modules["numba.cuda.libdevice"] = functions
import {module} as cases
print(json.dumps(cases.{function}()))
"""


def in_a_process(function: str, **environment: str) -> Any:
    """What a function of this module returns in a new interpreter, from JSON."""
    paths = [str(Path(__file__).parent), str(TESTS), str(Path(mmabits.__file__).parents[1])]
    program = PROGRAM.format(paths=paths, module=Path(__file__).stem, function=function)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------------------------- in the other interpreter


def lines(every: bool) -> list[tuple[str, str]]:
    """An instruction for each set of numbers that drives a kernel, those of walking K aside if not `every`, and the modified ones."""
    from mmabits.emulator.engine import plan

    found: dict[object, tuple[str, str]] = {}
    for line in instructions():
        if line.modelled and line.example is not None:
            lowering, row = lower(line.example, line.arch), line.example
            numbers = plan.step_numbers(lowering)
            if not every:
                numbers = numbers._replace(step=0, k_instruction=0, restart=min(numbers.restart, 1))
            key = numbers, plan.result_numbers(lowering), row.a_type, row.scale_type, lowering.datapath.arithmetic
            found.setdefault(key, (line.arch, str(row)))
    return [*found.values(), *MODIFIED]


def one_case(arch: str, text: str, kind: str) -> list[str]:
    """What is wrong with a product over two instructions, the second not whole, and its promoted twin."""
    import operands
    import slow_reference

    from mmabits.emulator.codecs import as_codes, from_codes

    row = mmabits.isa.parse(text)
    k = row.k + (row.block or 1) if row.k > 16 else 2 * row.k - 3

    rng = operands.generator("cuda", text, kind)
    types = (row.a_type.name, row.b_type.name)

    def draw(n: int) -> operands.Operands:
        if row.scale_type is None or row.block is None:
            return operands.draw_pair(kind, *types, n, k, rng, c_format=row.c_type.name)
        return operands.draw_scaled(kind, *types, n, k, rng, scale_format=row.scale_type.name, block=row.block)

    drawn, c = draw(SIDE), draw(SIDE * SIDE).c.reshape(SIDE, SIDE)
    np.fill_diagonal(c, drawn.c)  # rows, columns and accumulators of one draw belong together
    scales: dict[str, Any] = {}
    if row.scale_type is not None and drawn.scale_a is not None and drawn.scale_b is not None:
        scales = {"scale_a": from_codes(drawn.scale_a, row.scale_type), "scale_b": from_codes(drawn.scale_b.T, row.scale_type)}
    a, b = from_codes(drawn.a, row.a_type), from_codes(drawn.b.T, row.b_type)
    wrong = []
    for promote in (None, row.k) if text in PROMOTED else (None,):
        call = functools.partial(mmabits.gemm, a, b, from_codes(c, row.c_type), instruction=row, arch=arch, promote_every=promote, **scales)
        cpu, cuda = (as_codes(call(device=device), row.d_type) for device in ("cpu", "cuda"))
        if not (cpu == cuda).all():
            wrong.append(f"{text} {arch} {kind} promote {promote}: cpu {cpu.tolist()} cuda {cuda.tolist()}")
        family = {"mma.sync": "mma", "wgmma.mma_async": "wgmma", "tcgen05.mma": "tcgen05"}[row.family.value]
        for i in range(SIDE):
            mine = operands.negate(drawn.a[i], types[0]) if row.negate_a != row.negate_b else drawn.a[i]
            exact = slow_reference.dot(
                arch, family, *types, row.d_type.name, mine, drawn.b[i], int(drawn.c[i]), k_instruction=row.k,
                scale_a=None if drawn.scale_a is None else drawn.scale_a[i], scale_b=None if drawn.scale_b is None else drawn.scale_b[i],
                scale_type=row.scale_type.name if row.scale_type else None, block=row.block, promote_every=promote,
                rounding=row.rounding or "rn", satfinite=row.satfinite, scale_input_d=row.scale_input_d,
            )  # fmt: skip
            if int(cuda[i, i]) != exact:
                wrong.append(f"{text} {arch} {kind} promote {promote}: exact {exact:#x} cuda {int(cuda[i, i]):#x}")
    return wrong


def cases(every: bool) -> dict[str, Any]:
    """Lines with every kind of input."""
    import operands

    wrong: list[str] = []
    arithmetic = set()
    for arch, text in lines(every):
        arithmetic.add(lower(mmabits.isa.parse(text), arch).datapath.arithmetic.name)
        for kind in operands.KINDS:
            wrong += one_case(arch, text, kind)
    return {"lines": len(lines(every)), "wrong": wrong[:20], "arithmetic": sorted(arithmetic)}


def some_cases() -> dict[str, Any]:
    return cases(every=False)


def all_cases() -> dict[str, Any]:
    return cases(every=True)


def pieces() -> list[str]:
    """What is wrong with products of each arithmetic whose elements are computed three at a launch, of which there are two."""
    import operands

    from mmabits.emulator.engine import cuda

    launches: list[int] = []
    launch = cuda._launch

    def noted(function: Any, cells: int, *arguments: Any) -> None:
        if function in (cuda.fused_kernel, cuda.grouped_kernel, cuda.integer_kernel, cuda.chain_kernel):
            launches.append(cells)
        launch(function, cells, *arguments)

    cuda.FEWEST_CELLS, cuda.PIECE, cuda._launch = 3, 0.0, noted
    some = [MODIFIED[i] for i in (0, 5, 8, 9)]
    wrong = [each for line in some for each in one_case(*line, operands.KINDS[0])]
    products = len(some) + sum(text in PROMOTED for _, text in some)
    return wrong if launches == [3, 1] * products else [*wrong, f"launches of {launches}"]


def last_bits(every: bool = False) -> list[str]:
    """What is wrong with zeros, infinities and NaN: products that end in the middle of an instruction, and their promoted twins."""
    import special_values

    from mmabits.emulator.codecs import as_codes, from_codes
    from mmabits.isa import format_spec

    wrong = []
    for arch, text in [*dict.fromkeys([*lines(every), *special_values.MODIFIED])]:
        lowering = special_values.lowered(arch, text)
        row = lowering.instruction
        for promote in (None, row.k) if special_values.promotes(lowering) else (None,):
            form = format_spec("f32") if promote else row.d_type
            given = special_values.product(row, 2 * row.k - 3 if row.k > 4 else 7, c_format="f32" if promote else None)
            if not every:
                given = special_values.some_columns(given)
            scales: dict[str, Any] = {}
            if row.scale_type is not None and given.scale_a is not None and given.scale_b is not None:
                scales = {"scale_a": from_codes(given.scale_a, row.scale_type), "scale_b": from_codes(given.scale_b.T, row.scale_type)}
            got = mmabits.gemm(
                from_codes(given.a, row.a_type), from_codes(given.b.T, row.b_type),
                from_codes(given.c, form if promote else row.c_type), instruction=row, arch=arch, promote_every=promote, device="cuda",
                **scales,
            )  # fmt: skip
            codes, exact = as_codes(got, form), special_values.exact(row, arch, given, promote)
            if not (codes == exact).all():
                i, j = np.argwhere(codes != exact)[0]
                wrong.append(f"{text} {arch} promote {promote} at {i}, {j}: exact {exact[i, j]:#x} cuda {codes[i, j]:#x}")
    return wrong


def all_last_bits() -> list[str]:
    return last_bits(every=True)


def halves() -> list[int]:
    """Codes of f16 that do not come back from what is made of them: none."""
    from mmabits.emulator.engine import cuda, plan

    @cuda.kernel
    def there_and_back(codes: Any, single: Any, back: Any, result: Any) -> None:
        for i in range(len(codes)):
            single[i] = started(codes[i], result)
            back[i] = finished(np.int64(single[i]), result)

    started, finished = cuda.started, cuda.finished
    result = plan.result_numbers(lower(mmabits.isa.parse("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"), "sm_80"))
    codes = np.arange(0, 1 << 16, 31).astype(np.uint16)  # 31 does not divide the period of anything here
    edges = np.array([0, 1, 0x3FF, 0x400, 0x401, 0x7BFF, 0x7C00, 0x7C01, 0x7FFF], np.uint16)
    codes = np.concatenate([codes, edges, edges | np.uint16(0x8000)])
    single, back = cuda._to_device(np.zeros(len(codes), np.uint32)), cuda._to_device(np.zeros(len(codes), np.uint16))
    cuda._launch(there_and_back, 1, cuda._to_device(codes), single, back, result)
    with np.errstate(invalid="ignore"):  # signalling NaN
        values, held = codes.view(np.float16).astype(np.float32), single.copy_to_host().view(np.float32)
    nan = np.isnan(values)
    same = np.where(nan, np.isnan(held) & (back.copy_to_host() == 0x7FFF), (held == values) & (back.copy_to_host() == codes))
    return codes[~same].tolist()


def batches() -> list[str]:
    """What is wrong with batches, with a shared B, and with promotion of an instruction that adds C itself."""
    rng = np.random.default_rng(5)
    e4m3 = ml_dtypes.float8_e4m3fn
    a, b = rng.normal(size=(2, 3, 40)).astype(e4m3), rng.normal(size=(2, 40, 2)).astype(e4m3)
    c = rng.normal(size=(2, 3, 2)).astype(np.float32)
    wrong = []
    for operands, options in (
        ((a, b, c), {"instruction": "wgmma", "arch": "sm_90a"}),
        ((a, b[0], c), {"instruction": "wgmma", "arch": "sm_90a"}),
        ((a, b, c), {"instruction": "mma.sync", "arch": "sm_100a", "promote_every": 32}),
        ((a, b, c.astype(np.float16)), {"instruction": "mma.sync", "arch": "sm_90a"}),
    ):
        cpu, cuda = (mmabits.gemm(*operands, device=device, **options) for device in ("cpu", "cuda"))
        if cpu.dtype != cuda.dtype or cpu.shape != cuda.shape or cpu.tobytes() != cuda.tobytes():
            wrong.append(f"{options}: {cpu} {cuda}")
    tile = rng.normal(size=(2, 16, 32)).astype(e4m3), rng.normal(size=(32, 8)).astype(e4m3)
    cpu, cuda = (mmabits.mma("mma.sync", *tile, arch="sm_89", device=device) for device in ("cpu", "cuda"))
    return wrong if cpu.tobytes() == cuda.tobytes() else [*wrong, "mma"]


def groups() -> list[float]:
    """1 beside a group of exponent 35 and 36 that sums to zero, and one of zeros: the page's section 4."""
    found = []
    for first, second, exponent in ((1, -1, 35), (1, -1, 36), (0, 0, 36)):
        a = np.array([[first, second, *[0] * 30, 1, *[0] * 31]], np.float32).astype(ml_dtypes.float4_e2m1fn)
        scale_a = np.array([[2.0**exponent, 1.0]], np.float32).astype(ml_dtypes.float8_e8m0fnu)
        options = {"scale_a": scale_a, "scale_b": np.ones((2, 1), np.float32).astype(ml_dtypes.float8_e8m0fnu), "arch": "sm_100a"}
        text = "tcgen05.mma.kind::mxf4.block_scale"
        found.append(mmabits.gemm(a, np.ones_like(a).T, instruction=text, device="cuda", **options).item())
    return found


def sums() -> list[str]:
    """What is wrong with the IEEE sums that are made of integers."""
    import operands
    import slow_reference

    from mmabits.emulator.engine import cuda

    @cuda.kernel
    def add(pairs: Any, out: Any, first: int, last: int) -> None:
        for i in range(first, last):
            out[i] = cuda_sum(np.int64(pairs[i, 0]), np.int64(pairs[i, 1]), 23, -126, 127)

    cuda_sum = cuda.nearest_sum
    rng = operands.generator("sums")
    x = rng.integers(0, 1 << 32, 600, dtype=np.uint32)
    near = (x ^ 0x80000000) + rng.integers(-3, 4, 600).astype(np.uint32) + (rng.integers(-40, 41, 600) << 23).astype(np.uint32)
    edges = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000], np.uint32)
    edges = np.concatenate([edges, edges | np.uint32(1 << 31)])
    pairs = np.concatenate([np.stack([x, near], 1), np.array([(p, q) for p in edges for q in edges], np.uint32)])
    out = np.zeros(len(pairs), np.uint32)
    cuda._compute(add, (pairs,), out)
    want = [slow_reference.ieee_add("f32", int(p), int(q)) for p, q in pairs]
    return [f"{p:#x} + {q:#x}: {got:#x}, exact {exact:#x}" for (p, q), got, exact in zip(pairs, out, want, strict=True) if got != exact]


# ------------------------------------------------------------------------------------------------------------------ in this


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    pytest.importorskip("numba.cuda.simulator", reason="this Numba has no CUDA simulator")
    names = ("some_cases", "pieces", "last_bits", "halves", "batches", "groups", "sums")
    return {name: in_a_process(name, NUMBA_ENABLE_CUDASIM="1") for name in names}


def test_every_datapath_and_kind_of_input_in_the_simulator(simulated: dict[str, Any]) -> None:
    found = simulated["some_cases"]
    assert found["wrong"] == []
    assert found["arithmetic"] == sorted({row.arithmetic.name for row in DATAPATHS.values()})
    assert found["lines"] >= len(MODIFIED) + 20


@pytest.mark.slow
def test_every_set_of_numbers_in_the_simulator() -> None:
    pytest.importorskip("numba.cuda.simulator", reason="this Numba has no CUDA simulator")
    assert in_a_process("all_cases", NUMBA_ENABLE_CUDASIM="1")["wrong"] == []
    assert in_a_process("all_last_bits", NUMBA_ENABLE_CUDASIM="1") == []


def test_last_bits_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["last_bits"] == []


def test_every_f16_comes_back_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["halves"] == []


def test_a_product_in_pieces_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["pieces"] == []


def test_batches_and_promotion_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["batches"] == []


def test_a_group_that_sums_to_zero_keeps_its_exponent_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["groups"] == [1.0, 0.0, 1.0]


def test_sums_of_accumulators_in_the_simulator(simulated: dict[str, Any]) -> None:
    assert simulated["sums"] == []


def gpu_is_missing() -> bool:
    program = "import sys, numba.cuda; sys.exit(0 if numba.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode != 0


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    if gpu_is_missing():
        pytest.skip("no NVIDIA GPU that Numba can use")
    assert in_a_process("all_cases")["wrong"] == []
    assert in_a_process("pieces") == []
    assert in_a_process("all_last_bits") == []
    assert in_a_process("halves") == []
    assert in_a_process("batches") == []
    assert in_a_process("groups") == [1.0, 0.0, 1.0]


def test_without_a_gpu_one_error_says_so() -> None:
    if not gpu_is_missing():
        pytest.skip("there is a GPU")
    a = np.zeros((2, 16), np.float16)
    with pytest.raises(DeviceUnavailable, match=r"^device='cuda' .*pip install 'mmabits\[cuda\]'"):
        mmabits.gemm(a, a.T, instruction="mma.sync", arch="sm_80", device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "", None, 0, Evidence.RECORDED])
def test_other_devices_are_refused(device: Any) -> None:
    a = np.zeros((16, 16), np.float16)
    with pytest.raises(OperandError, match=r"^device must be 'cpu' or 'cuda', got "):
        mmabits.gemm(a, a, instruction="mma.sync", arch="sm_80", device=device)
    with pytest.raises(OperandError, match=r"^device must be 'cpu' or 'cuda', got "):
        mmabits.mma("mma.sync", a, a[:, :8], arch="sm_80", device=device)
