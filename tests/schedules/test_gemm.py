"""`gemm(..., schedule=...)` against the slow reference, and what it refuses."""

import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import slow_schedules
from operands import draw, generator
from schedule_cases import fields

import mmabits
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.schedules import BlockSums, Chains, LaneSums, LibraryBug, PartSums, RangeSums, Schedule
from mmabits.isa import InsufficientEvidence, OperandError, OperandTypeError, UnknownInstruction, format_spec

FAMILIES = {"sm_90a": "wgmma", "sm_100a": "tcgen05", "sm_103a": "tcgen05"}
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn}
OPTIONS = {
    "vectors by halves": (36, 42, 44, 46, 48, 40), "single by halves": (35, 37, 41, 43, 49, 51), "in order": (0, 6, 7, 8, 11, 12),
}  # fmt: skip
KINDS = (
    "plain", "split", "split_blocks", "k_per_dot", "merge f32", "merge parts", "merge total", "gemmsn", "vectors by halves",
    "single by halves", "in order", "gemv_cslice", "gemv14",
)  # fmt: skip


def drawn(kind, number, rng):
    """A configuration of a kind, (M, N, K), the operand type and the architecture; K has remainders of every sort."""
    pick = rng.choice
    arch = str(pick(["sm_90a", "sm_100a", "sm_103a"]))
    k = int(rng.integers(1, 400))
    form = str(pick(["f16", "bf16", "e4m3"])) if kind in ("plain", "split", "split_blocks") else ("f16", "bf16")[number % 4 == 3]
    vector = (1, 3) if number % 2 else (3, 1)
    config = dict.fromkeys(("ALGO_ID", "SPLITK_NUM"), 1) | {"REDUCTION_SCHEME": 0, "CUSTOM_OPTION": 0, "STAGES_ID": 35}
    shape = (2, 2)
    match kind:
        case "plain":
            config |= {"ALGO_ID": 66}
        case "split":
            k = int(rng.integers(130, 500))
            config |= {"ALGO_ID": 66, "SPLITK_NUM": int(rng.integers(2, -(-k // 64)))}
        case "split_blocks":
            k, arch = int(rng.integers(257, 900)), "sm_90a"
            config |= {"ALGO_ID": 66, "SPLITK_NUM": int(rng.integers(1, -(-k // 128))), "STAGES_ID": 36}
        case "k_per_dot":
            config |= {"ALGO_ID": 12, "STAGES_ID": int(pick([0, 0, 7, 13, 19]))}
        case "merge f32" | "merge parts" | "merge total":
            scheme = {"merge f32": 2, "merge parts": 4, "merge total": number % 2}[kind]
            config |= {"ALGO_ID": 21, "STAGES_ID": int(pick([0, 7, 13, 19])), "REDUCTION_SCHEME": scheme}
            k = int(rng.integers(65, 400))
            config["SPLITK_NUM"] = int(rng.integers(2, 5))
        case "gemmsn":
            algo = int(pick([11, 16]))
            k = k if number % 3 else int(rng.integers(600, 1200))
            config |= {"ALGO_ID": algo, "CUSTOM_OPTION": 0 if algo == 16 else int(pick([0, 1]))}
        case "vectors by halves" | "single by halves" | "in order":
            shape = vector
            if number % 5 == 0:
                k = int(rng.integers(500, 1400))
            config |= {"ALGO_ID": 13, "CUSTOM_OPTION": int(pick(OPTIONS[kind])), "SPLITK_NUM": int(pick([1, 1, 2, 3]))}
        case "gemv_cslice":
            shape = (1, 3)
            k = k if number % 3 else int(rng.integers(600, 1200))
            config |= {"ALGO_ID": 13, "CUSTOM_OPTION": 5}
        case "gemv14":
            shape, k = vector, int(rng.integers(1, 1200))
            config |= {"ALGO_ID": 14, "SPLITK_NUM": int(pick([1, 2, 3, 130]))}
    return config, (*shape, k), form, arch


def operands(form, shape, kind, rng):
    m, n, k = shape
    a, b = draw(kind, form, (m, k), rng), draw(kind, form, (k, n), rng)
    zero = 1 << (format_spec(form).code_bits - 1)
    for codes in (a, b):  # zeros of both signs
        codes[rng.random(codes.shape) < 0.05] = 0
        codes[rng.random(codes.shape) < 0.05] = zero
    if rng.random() < 0.1:
        a[:] = zero
    return a, b


def check(kind, number):
    rng = generator(kind, number)
    config, shape, form, arch = drawn(kind, number, rng)
    schedule = Schedule.cublaslt(config, *shape, form, arch=arch)
    a, b = operands(form, shape, str(rng.choice(["plain", "plain", "cancelling", "raw_finite", "sparse"])), rng)
    scales = (np.float32(1.7), np.float32(0.3)) if form == "e4m3" else (None, None)
    factor = None if scales[0] is None else int((scales[0] * scales[1]).view(np.uint32))
    left, right = from_codes(a, format_spec(form)), from_codes(b, format_spec(form))
    types = (form, form, schedule.output)
    rounds = number % 4 == 0  # else f32 comes out, which shows what a last rounding would hide
    schedule = schedule if rounds else replace(schedule, output=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LibraryBug)
        got = mmabits.gemm(left, right, arch=arch, schedule=schedule, scale_a=scales[0], scale_b=scales[1])
    for i, j in np.ndindex(*got.shape):
        family = "mma" if schedule.on_tensor_cores and schedule.sums.group else FAMILIES[arch]
        plan = fields(schedule)
        element = slow_schedules.Element(plan, a[i], b[:, j], types=types, arch=arch, family=family)
        want = element.result(factor, rounds=rounds)
        found = int(as_codes(got, format_spec(schedule.output or "f32"))[i, j])
        assert found == want, (kind, number, plan, shape, form, arch, (i, j), hex(found), hex(want))


@pytest.mark.parametrize("kind", KINDS)
def test_some_shapes_of_each_kind(kind):
    for number in range(8):
        check(kind, number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_shapes_of_each_kind(kind):
    for number in range(8, 108):
        check(kind, number)


@pytest.mark.parametrize(("blocks", "columns"), [(9, 12), (140, 2)])
def test_a_dot_of_many_blocks(blocks, columns):
    """With more blocks than the second kernel has threads every level of its sums has something to add."""
    rng = generator("dot", blocks)
    k = (blocks - 1) * 128 + 37
    schedule = Schedule.cublaslt([14, None, blocks, 0, None, 0, 0, None, None], 1, columns, k, ("f16", "f16", "f32"), arch="sm_90a")
    a, b = draw("plain", "f16", (1, k), rng), draw("plain", "f16", (k, columns), rng)
    got = mmabits.gemm(from_codes(a, format_spec("f16")), from_codes(b, format_spec("f16")), arch="sm_90a", schedule=schedule)
    for column in range(columns):
        element = slow_schedules.Element(fields(schedule), a[0], b[:, column], types=("f16", "f16", "f32"), arch="sm_90a", family="wgmma")
        assert int(got.view(np.uint32)[0, column]) == element.result(rounds=False)


NVJET = {"ALGO_ID": 66, "SPLITK_NUM": 1, "STAGES_ID": 35}


def ones(m, n, k, dtype=np.float16):
    return np.ones((m, k), dtype), np.ones((k, n), dtype)


def test_the_lost_tail():
    a, b = ones(1, 8, 11528)
    schedule = Schedule.cublaslt({**NVJET, "SPLITK_NUM": 9}, 1, 8, 11528, ("f16", "f16", "f32"), arch="sm_90a")
    assert np.all(mmabits.gemm(a, b, arch="sm_90a", schedule=schedule, bugs=True) == 11520)
    with pytest.warns(LibraryBug, match="does not sum the last 8 of K"):
        assert np.all(mmabits.gemm(a, b, arch="sm_90a", schedule=schedule) == 11528)


def test_a_plain_schedule_is_gemm_and_promotion_too():
    rng = generator("plain")
    a, b = rng.standard_normal((20, 333)).astype(np.float16), rng.standard_normal((333, 24)).astype(np.float16)
    plain = mmabits.gemm(a, b, arch="sm_90a", instruction="wgmma")
    assert np.array_equal(mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=Chains())), plain)
    promoted = mmabits.gemm(a, b, arch="sm_90a", instruction="wgmma", promote_every=128)
    assert np.array_equal(mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=Chains(promote_every=128))), promoted)
    assert not np.array_equal(plain, promoted)


def test_narrow_groups_are_narrow_instructions_and_zeros_between_give_the_same():
    rng = generator("groups")
    a, b = rng.standard_normal((8, 203)).astype(np.float16), rng.standard_normal((203, 8)).astype(np.float16)
    narrow = Schedule(sums=Chains(instruction="mma.sync.m16n8k8", group=8, lead_block=32))
    padded = replace(narrow, sums=replace(narrow.sums, instruction=None))
    assert np.array_equal(*(mmabits.gemm(a, b, arch="sm_90a", schedule=each) for each in (narrow, padded)))
    last = replace(narrow, sums=replace(narrow.sums, lead_block=0))
    assert not np.array_equal(*(mmabits.gemm(a, b, arch="sm_90a", schedule=each) for each in (narrow, last)))


@pytest.mark.parametrize(
    "sums", [Chains(lead_block=32), PartSums(parts=2), LaneSums(vector=1, lanes=4, halves=True), RangeSums(lanes=8, close_every=4)]
)
def test_batches_are_products_one_by_one(sums):
    rng = generator("batch")
    schedule = Schedule(sums=sums, slices=2, slice_k=40, output="f16")
    a, b = rng.standard_normal((2, 3, 4, 75)).astype(np.float16), rng.standard_normal((3, 75, 5)).astype(np.float16)
    got = mmabits.gemm(a, b, arch="sm_90a", schedule=schedule)
    assert got.shape == (2, 3, 4, 5) and got.dtype == np.float16
    for i, j in np.ndindex(2, 3):
        assert np.array_equal(got[i, j], mmabits.gemm(a[i, j], b[j], arch="sm_90a", schedule=schedule))


@pytest.mark.parametrize("wide", [False, True])
def test_narrow_and_wide_products_of_cuda_cores_are_the_same(wide):
    """Narrow ones form all products first; the columns of a wide one must not differ from them."""
    rng = generator("narrow", wide)
    a, b = rng.standard_normal((1, 500)).astype(np.float16), rng.standard_normal((500, 700)).astype(np.float16)
    for sums in (
        PartSums(parts=2, block=64),
        LaneSums(vector=8, lanes=16, close_every=2, halves=True),
        RangeSums(lanes=32, close_every=16),
    ):
        whole = mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=sums))
        few = mmabits.gemm(a, b[:, 5:7], arch="sm_90a", schedule=Schedule(sums=sums))
        assert np.array_equal(whole[:, 5:7], few)


def test_bfloat16_products_below_f32_are_fused():
    tiny = np.array([[2.0**-80, -(2.0**-80)]], ml_dtypes.bfloat16)
    other = np.array([[2.0**-70], [2.0**-71]], ml_dtypes.bfloat16)
    got = mmabits.gemm(tiny, other, arch="sm_90a", schedule=Schedule(sums=PartSums(parts=1)))
    assert got[0, 0] == 0 and np.signbit(got[0, 0])  # -2^-151 + 0 rounds to -0; a product rounded first would leave +0
    huge = np.array([[-1.0, 2.0**100]], ml_dtypes.bfloat16), np.array([[1.5 * 2.0**127], [2.0**28]], ml_dtypes.bfloat16)
    assert mmabits.gemm(*huge, arch="sm_90a", schedule=Schedule(sums=PartSums(parts=1)))[0, 0] == 2.0**126


def test_empty_products():
    for m, n, k in ((0, 3, 5), (3, 0, 5), (3, 4, 0)):
        for sums in (Chains(), PartSums(parts=2)):
            got = mmabits.gemm(*ones(m, n, k), arch="sm_90a", schedule=Schedule(sums=sums, output="bf16"))
            assert got.shape == (m, n) and got.dtype == ml_dtypes.bfloat16 and not got.astype(float).any()


def test_nan_is_the_gpus():
    a, b = ones(1, 1, 40)
    a[0, 3] = np.nan
    for sums in (Chains(), PartSums(parts=2), BlockSums(blocks=2, vector=1)):
        assert mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=sums)).view(np.uint32)[0, 0] == 0x7FFFFFFF
        assert mmabits.gemm(a, b, arch="sm_90a", schedule=Schedule(sums=sums, output="f16")).view(np.uint16)[0, 0] == 0x7FFF


PLANNED = Schedule.cublaslt(NVJET, 4, 4, 64, "f16", arch="sm_90a")
CORES = Schedule(sums=PartSums(parts=2))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"schedule": "plain"}, OperandError, "must be a mmabits.Schedule"),
        ({"c": np.zeros((4, 4), np.float32)}, OperandError, "takes no c"),
        ({"promote_every": 128}, OperandError, "takes no promote_every"),
        ({"arch": "sm_100a", "instruction": None}, OperandError, "planned for architecture sm_90a"),
        ({"a": np.ones((5, 64), np.float16)}, OperandError, r"planned for M, N and K \(4, 4, 64\), got \(5, 4, 64\)"),
        ({"a": np.ones((4, 64), ml_dtypes.bfloat16), "b": np.ones((64, 4), ml_dtypes.bfloat16)}, OperandError, "planned for types"),
        ({"schedule": CORES, "instruction": "wgmma"}, OperandError, "takes no instruction"),
        ({"schedule": CORES, "a": np.ones((4, 64), DTYPES["e4m3"])}, OperandTypeError, "float16 and bfloat16"),
        ({"schedule": CORES, "require": "published"}, InsufficientEvidence, "inferred evidence"),
        ({"schedule": CORES, "device": "cuda"}, OperandError, "on the CPU"),
        ({"schedule": CORES, "b": np.ones((63, 4), np.float16)}, OperandError, "they must agree"),
        ({"schedule": CORES, "b": None}, OperandTypeError, "b must be an array"),
        ({"instruction": "mma.sync.m16n8k8", "schedule": Schedule(sums=Chains(group=16))}, OperandError, "16 of K"),
        ({"instruction": "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"}, OperandError, "f32 accumulators"),
        ({"scale_a": 2.0}, OperandError, "scale_b is one float32 number, got None"),
        ({"scale_a": np.ones(2, np.float32), "scale_b": 1.0}, OperandError, "scale_a is one float32 number"),
        ({"bugs": 1}, OperandError, "bugs must be"),
        ({"schedule": None}, UnknownInstruction, "or there is a schedule"),
        ({"schedule": None, "instruction": "wgmma", "bugs": True}, OperandError, "without a schedule"),
    ],
)
def test_what_a_schedule_does_not_take(changes, error, text):
    a, b = ones(4, 4, 64)
    given = {"a": a, "b": b, "arch": "sm_90a", "schedule": PLANNED, **changes}
    with pytest.raises(error, match=text):
        mmabits.gemm(given.pop("a"), given.pop("b"), **given)


def test_a_plan_runs_on_a_what_if_of_its_architecture_and_elsewhere_when_let():
    a, b = ones(4, 4, 64)
    assert mmabits.gemm(a, b, arch="sm_100a", schedule=replace(PLANNED, planned=None))[0, 0] == 64
    name = "hopper-for-schedules"
    mmabits.what_if(name, base="sm_90a", rows={"wgmma.f16.f32": {"fraction_bits": 10}}, promote_every=128)
    rng = generator("what if")
    a, b = rng.standard_normal((4, 256)).astype(np.float16), rng.standard_normal((256, 4)).astype(np.float16)
    found = Schedule.cublaslt(NVJET, 4, 4, 256, ("f16", "f16", "f32"), arch=name)
    got = mmabits.gemm(a, b, arch=name, schedule=found)
    assert not np.array_equal(got, mmabits.gemm(a, b, arch="sm_90a", schedule=found))  # its own arithmetic
    assert not np.array_equal(got, mmabits.gemm(a, b, arch=name, instruction="wgmma"))  # and not its own promotion


def test_torch_and_jax_get_their_own_arrays_back():
    torch = pytest.importorskip("torch")
    a = torch.ones((4, 64), dtype=torch.bfloat16)
    got = mmabits.gemm(a, a.T, arch="sm_90a", schedule=Schedule(sums=Chains(), output="bf16"))
    assert got.dtype == torch.bfloat16 and got.tolist() == [[64.0] * 4] * 4
