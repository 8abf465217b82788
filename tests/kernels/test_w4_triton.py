"""The Triton kernels of schemes 6 to 9 under emulation, bit for bit against the compositions; and compiled for GPUs."""

import collections
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import mmabits  # noqa: E402
from mmabits.emulator.hooks.session import SessionReport, emulate  # noqa: E402
from mmabits.emulator.hooks.triton.plans import k_order  # noqa: E402
from mmabits.isa import EmulationError  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.schemes import attention, gptq, moe, w4a8, w4a16, w8a8  # noqa: E402
from mmabits.kernels.schemes.dots import Dots  # noqa: E402
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors, GptqTensors  # noqa: E402
from mmabits.kernels.triton import attention as triton_attention  # noqa: E402
from mmabits.kernels.triton import moe as triton_moe  # noqa: E402
from mmabits.kernels.triton import w4a8 as triton_w4a8  # noqa: E402
from mmabits.kernels.triton import w4a16 as triton_w4a16  # noqa: E402
from mmabits.kernels.triton import w8a8 as triton_w8a8  # noqa: E402

SEED = 20260118
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
M, N, K = 70, 72, 256
Run = Callable[[str], Any]


def tensor(array: np.ndarray) -> Any:
    """A torch tensor of the same bits."""
    for dtype, bits, name in ((BF16, np.int16, "bfloat16"), (E4M3, np.uint8, "float8_e4m3fn")):
        if array.dtype == dtype:
            return torch.from_numpy(array.view(bits)).view(getattr(torch, name))
    return torch.from_numpy(np.ascontiguousarray(array))


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [tensor(array) for array in arrays]


def is_mma_sync(arch: str) -> bool:
    return arch in ("sm_80", "sm_89", "sm_120a")


def casts_through_f16(arch: str) -> bool:
    """Triton before 3.9 has no direct cast from f32 to e4m3 on Ada."""
    return arch == "sm_89" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


@lru_cache(maxsize=1)
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x, w = rng.standard_normal((M, K)).astype(np.float32), rng.standard_normal((K, N)).astype(np.float32)
    x[:, [3, 77]] *= 20
    q, k, v = (rng.standard_normal((heads, 100, 64)).astype(np.float32) for heads in (4, 2, 2))
    return {"x": x, "w": w, "q": q, "k": k, "v": v}


# Pairs of kernel and composition --------------------------------------------------------------------------------------


def awq(dtype: Any) -> tuple[Run, Run]:
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"].astype(dtype)
    return (
        lambda arch: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales)),
        lambda arch: w4a16.w4a16_matmul(x, weights, arch=arch),
    )


def gptq_act_order(dtype: Any, minus_one: bool) -> tuple[Run, Run]:
    w = data()["w"]
    weights = gptq.gptq_quantize(w, gptq.hessian(data()["x"]), group=64, act_order=True, symmetric=minus_one)
    packed, x = GptqTensors.pack(weights, zeros_minus_one=minus_one), data()["x"].astype(dtype)
    given = (x, packed.qweight, packed.qzeros, packed.scales, packed.g_idx)
    return (
        lambda arch: triton_w4a16.gptq_matmul(*tensors(*given), zeros_minus_one=minus_one),
        lambda arch: w4a16.w4a16_matmul(x, weights, arch=arch),
    )


def int8() -> tuple[Run, Run]:
    x, w = w8a8.quantize_int8(data()["x"], axis=0), w8a8.quantize_int8(data()["w"], axis=1)
    return (
        lambda arch: triton_w8a8.w8a8_matmul(*tensors(x.codes, x.scales, w.codes, w.scales)),
        lambda arch: w8a8.w8a8_matmul(x, w, arch=arch),
    )


def llm_int8() -> tuple[Run, Run]:
    x, w = w8a8.split_outliers(data()["x"].astype(np.float16)), w8a8.quantize_int8(data()["w"], axis=1)
    w16 = data()["w"].astype(np.float16)
    assert x.columns.tolist() == [3, 77]
    given = (x.regular.codes, x.regular.scales, w.codes, w.scales, x.outliers, x.columns, w16)
    return lambda arch: triton_w8a8.llm_int8_matmul(*tensors(*given)), lambda arch: w8a8.llm_int8_matmul(x, w16, w, arch=arch)


def int4_int8(group: int) -> tuple[Run, Run]:
    x, w = w8a8.quantize_int8(data()["x"], axis=0), w4a8.quantize_w4a8(data()["w"], group=group)
    scales = None if w.group_scales is None else tensor(w.group_scales)
    return (
        lambda arch: triton_w4a8.w4a8_matmul(*tensors(x.codes, x.scales, w.pack(), w.output_scales), scales),
        lambda arch: w4a8.w4a8_matmul(x, w, arch=arch),
    )


def sage(causal: bool) -> tuple[Run, Run]:
    q, k, v = attention.quantize_queries(data()["q"]), attention.quantize_keys(data()["k"]), data()["v"].astype(np.float16)
    given = (q.codes, q.scales, k.codes, k.scales, v)
    return (
        lambda arch: triton_attention.sage_attention(*tensors(*given), causal=causal),
        lambda arch: attention.sage_attention(q, k, v, arch=arch, causal=causal),
    )


def sage2(causal: bool) -> tuple[Run, Run]:
    q, k = attention.quantize_queries(data()["q"]), attention.quantize_keys(data()["k"])
    v = attention.quantize_values(data()["v"])
    given = (q.codes, q.scales, k.codes, k.scales, v.codes, attention.sage2_output_scales(v))
    return (
        lambda arch: triton_attention.sage2_attention(*tensors(*given), causal=causal),
        lambda arch: attention.sage2_attention(q, k, v, arch=arch, causal=causal, through_f16=casts_through_f16(arch)),
    )


def fp8_cache() -> tuple[Run, Run]:
    rng = np.random.default_rng(SEED)
    cache = attention.empty_cache(40, 16, 2, 64, key_scale=1 / 64, value_scale=1 / 64)
    tables, lengths = rng.permutation(40)[:14].reshape(2, 7).astype(np.int32), np.array([100, 71], np.int32)
    for row, length in enumerate(lengths):
        token = np.arange(length)
        fresh = rng.standard_normal((2, length, 2, 64)).astype(np.float32)
        cache.write(tables[row][token // 16].astype(np.int64) * 16 + token % 16, fresh[0], fresh[1])
    queries = rng.standard_normal((2 * 4, 5, 64)).astype(np.float32)
    q = attention.quantize_fp8_queries(queries, scale=1 / 64).reshape(2, 4, 5, 64)
    factor = np.array([attention.fp8_score_factor(64, 1 / 64, cache.key_scale)])
    given = (q, cache.keys, cache.values, tables, lengths, factor, np.array([cache.value_scale]))
    return (
        lambda arch: triton_attention.fp8_attention(*tensors(*given)),
        lambda arch: attention.fp8_attention(q, cache, tables, lengths, query_scale=1 / 64, arch=arch, through_f16=casts_through_f16(arch)),
    )


def routing() -> tuple[moe.Routing, list[Any]]:
    routed = moe.route(np.random.default_rng(SEED).standard_normal((M, 4)).astype(np.float32), top_k=2)
    aligned = moe.align(routed)
    return routed, tensors(routed.weights, aligned.choices, aligned.experts)


def moe_int4(dtype: Any) -> tuple[Run, Run]:
    rng = np.random.default_rng(SEED)
    experts = moe.Int4Experts.pack([w4a16.quantize_int4(rng.standard_normal((K, N)).astype(np.float32)) for _ in range(4)])
    x, (routed, where) = data()["x"].astype(dtype), routing()
    return (
        lambda arch: triton_moe.moe_w4a16(*tensors(x, experts.qweight, experts.qzeros, experts.scales), *where),
        lambda arch: moe.moe_w4a16(x, experts, routed, arch=arch),
    )


def moe_mxfp4() -> tuple[Run, Run]:
    experts = moe.quantize_mxfp4_experts(np.random.default_rng(SEED).standard_normal((4, K, N)).astype(np.float32))
    x, (routed, where) = data()["x"].astype(BF16), routing()

    def composition(arch: str) -> Any:
        # Where mma.sync takes B from registers, e2m1 unpacked there puts 8 neighbours of K in a thread.
        order = k_order(8, 16, 64, 16) if is_mma_sync(arch) else ()
        return moe.moe_mxfp4(x, experts, routed, arch=Dots(arch=arch, k_order=order))

    return lambda arch: triton_moe.moe_mxfp4(*tensors(x, experts.codes, experts.scales), *where), composition


PAIRS: dict[str, Callable[[], tuple[Run, Run]]] = {
    "w4a16-awq-f16": lambda: awq(np.float16),
    "w4a16-awq-bf16": lambda: awq(BF16),
    "w4a16-gptq-f16": lambda: gptq_act_order(np.float16, False),
    "w4a16-gptq-minus-one-bf16": lambda: gptq_act_order(BF16, True),
    "w8a8": int8,
    "llm-int8": llm_int8,
    "w4a8-channel": lambda: int4_int8(0),
    "w4a8-group": lambda: int4_int8(64),
    "sage": lambda: sage(False),
    "sage-causal": lambda: sage(True),
    "sage2": lambda: sage2(False),
    "sage2-causal": lambda: sage2(True),
    "fp8-cache": fp8_cache,
    "moe-w4a16": lambda: moe_int4(np.float16),
    "moe-mxfp4": moe_mxfp4,
}
FP8 = ("sage2", "sage2-causal", "fp8-cache")
CAPABILITIES = {"sm_80": 80, "sm_89": 89, "sm_90a": 90, "sm_100a": 100, "sm_120a": 120}
ARCHES = [
    pytest.param("sm_80", marks=pytest.mark.slow), "sm_89", "sm_90a", pytest.param("sm_100a", marks=pytest.mark.slow),
    pytest.param("sm_120a", marks=pytest.mark.slow),
]  # fmt: skip


def emulated(kernel: Run, arch: str) -> tuple[np.ndarray, SessionReport]:
    with emulate(arch, frameworks=["triton"]) as session:
        result = kernel(arch).numpy()
    return result, session.report()


def comparisons() -> list[Any]:
    """All on Hopper, and on Ada those that it computes otherwise; the rest takes longer."""
    ada = ("w4a16-gptq-f16", "w4a8-channel", "sage2-causal", "fp8-cache", "moe-mxfp4")
    found = []
    for arch in CAPABILITIES:
        for name in PAIRS:
            quick = arch == "sm_90a" or (arch == "sm_89" and name in ada)
            found.append(pytest.param(name, arch, marks=() if quick else pytest.mark.slow, id=f"{name}-{arch}"))
    return found


@pytest.mark.parametrize(("name", "arch"), comparisons())
def test_kernel_and_composition_have_the_same_bits(name: str, arch: str) -> None:
    kernel, composition = PAIRS[name]()
    if arch == "sm_80" and name in FP8:
        with pytest.raises(EmulationError, match="fp8e4nv"):
            emulated(kernel, arch)
        with pytest.raises(mmabits.isa.UnsupportedInstruction):
            composition(arch)
        return
    got, report = emulated(kernel, arch)
    wanted = composition(arch)
    assert got.shape == wanted.shape and np.isfinite(wanted).all() and wanted.any()
    different = np.argwhere(got.view(np.uint32) != wanted.view(np.uint32))
    assert not len(different), f"{len(different)} differ, first at {different[0]}: {got[tuple(different[0])]} {wanted[tuple(different[0])]}"
    assert report.emulated
    attention = name.startswith(("sage", "fp8-cache"))
    assert {line.operation for line in report.skipped} == ({"exp2"} if attention else set())


@pytest.mark.parametrize("arch", ARCHES)
def test_the_instructions_of_sageattention(arch: str) -> None:
    """INT8 scores into s32; P V into f16, and in the successor from e4m3 into f32."""
    _, report = emulated(sage(False)[0], arch)
    kinds = {(line.instruction.a_type.name, line.instruction.d_type.name) for line in report.emulated}
    assert kinds == {("s8", "s32"), ("f16", "f16")}
    if arch != "sm_80":
        _, report = emulated(sage2(False)[0], arch)
        assert {(line.instruction.a_type.name, line.instruction.d_type.name) for line in report.emulated} == {
            ("s8", "s32"),
            ("e4m3", "f32"),
        }


def test_two_levels_are_two_levels() -> None:
    """On Hopper the bits of the successor are not those of one chain through the tensor core's accumulator."""
    q, k = attention.quantize_queries(data()["q"]), attention.quantize_keys(data()["k"])
    v = attention.quantize_values(data()["v"])
    got, _ = emulated(sage2(False)[0], "sm_90a")
    f16 = attention.sage_attention(q, k, data()["v"].astype(np.float16), arch="sm_90a")
    blackwell = attention.sage2_attention(q, k, v, arch="sm_100a")
    assert not np.array_equal(got, f16) and not np.array_equal(got, blackwell)


@pytest.mark.parametrize("block", [(64, 32, 32), (128, 128, 64)])
def test_the_tile_does_not_change_the_bits(block: tuple[int, int, int]) -> None:
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"].astype(np.float16)
    sizes = dict(zip(("block_m", "block_n", "block_k"), block, strict=True))
    got, _ = emulated(lambda arch: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales), **sizes), "sm_90a")
    assert np.array_equal(got, w4a16.w4a16_matmul(x, weights, arch="sm_90a"))


def test_few_rows_on_hopper_take_mma_sync() -> None:
    """Tiles of 16 rows, as for decoding: too few for wgmma."""
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"][:11].astype(np.float16)
    got, report = emulated(
        lambda arch: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales), block_m=16), "sm_90a"
    )
    assert {str(line.instruction.family) for line in report.emulated} == {"mma.sync"}
    assert np.array_equal(got, w4a16.w4a16_matmul(x, weights, arch=Dots(arch="sm_90a", instruction="mma.sync")))


def test_small_blocks_of_mxfp4_experts_on_hopper() -> None:
    experts = moe.quantize_mxfp4_experts(np.random.default_rng(SEED).standard_normal((4, K, N)).astype(np.float32))
    x, (routed, where) = data()["x"].astype(BF16), routing()
    aligned = moe.align(routed, block=16)
    given = (*tensors(x, experts.codes, experts.scales), where[0], *tensors(aligned.choices, aligned.experts))
    got, report = emulated(lambda arch: triton_moe.moe_mxfp4(*given, block_m=16), "sm_90a")
    # The compiler turns the product round, so that the weights' 64 columns are the rows of wgmma.
    assert {str(line.instruction.family) for line in report.emulated} == {"wgmma.mma_async"}
    assert np.array_equal(got, moe.moe_mxfp4(x, experts, routed, arch="sm_90a"))


def test_infinities_and_nan_in_the_activations() -> None:
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"].astype(np.float16)
    x[2, 5], x[4, 9], x[4, 200], x[6, 1] = np.inf, np.inf, -np.inf, np.nan
    got, _ = emulated(lambda arch: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales)), "sm_90a")
    wanted = w4a16.w4a16_matmul(x, weights, arch="sm_90a")
    assert np.isnan(wanted[6]).all() and np.isinf(wanted[2]).any()
    assert np.array_equal(got.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x, p: triton_w4a16.awq_matmul(x.float(), *p), OperandTypeError, "float16 or bfloat16, got float32"),
        (lambda x, p: triton_w4a16.awq_matmul(x[:, :128].contiguous(), *p), OperandError, r"qweight must have shape \(128, any\)"),
        (lambda x, p: triton_w4a16.awq_matmul(x.T.contiguous().T, *p), OperandError, "contiguous"),
        (lambda x, p: triton_w4a16.awq_matmul(x, p[0], p[1], p[2][:1]), OperandError, r"qzeros must have shape \(1, 9\)"),
        (lambda x, p: triton_w4a16.gptq_matmul(x, p[0], p[1], p[2], p[1]), OperandError, r"qweight must have shape \(32, any\)"),
        (lambda x, p: triton_w8a8.w8a8_matmul(x, p[2], p[0], p[2]), OperandTypeError, "x must be a torch tensor of int8, got float16"),
        (lambda x, p: triton_w4a8.w4a8_matmul(x.numpy(), p[2], p[0], p[2]), OperandTypeError, "int8, got float16"),
        (lambda x, p: triton_attention.sage_attention(x, x, x, x, x), OperandTypeError, "q must be a torch tensor of int8"),
        (lambda x, p: triton_moe.moe_mxfp4(x, *p, x, x), OperandTypeError, "bfloat16, got float16"),
    ],
)  # fmt: skip
def test_launchers_refuse_before_any_work(call: Callable[..., Any], error: type[Exception], text: str) -> None:
    packed = AwqTensors.pack(w4a16.quantize_int4(data()["w"]))
    with pytest.raises(error, match=text):
        call(tensor(data()["x"].astype(np.float16)), tensors(packed.qweight, packed.qzeros, packed.scales))


# Compiled for GPUs, without one ---------------------------------------------------------------------------------------

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
INT4 = {"x_ptr": "*fp16", "qweight_ptr": "*i32", "qzeros_ptr": "*i32", "scales_ptr": "*fp16"}
CHOICES = {"choices_ptr": "*i32", "experts_ptr": "*i32", "weights_ptr": "*fp32", "rows_ptr": "*fp32"}
INT8 = {"x_ptr": "*i8", "x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32", "out_ptr": "*fp32"}
SAGE = {name: "*fp32" for name in ("q_scale_ptr", "k_scale_ptr", "v_scale_ptr", "out_ptr")} | {"q_ptr": "*i8", "k_ptr": "*i8"}
HEAD = {"D": 64, "BLOCK_Q": 64, "BLOCK_K": 64, "LEVELS": 6}
CACHE = {
    "q_ptr": "*fp8e4nv", "k_ptr": "*fp8e4nv", "v_ptr": "*fp8e4nv", "tables_ptr": "*i32", "lengths_ptr": "*i32", "out_ptr": "*fp32",
    "factor_ptr": "*fp32", "v_scale_ptr": "*fp32",
}  # fmt: skip
COMPILED: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "w4a16-awq-f16": (triton_w4a16.awq_kernel, {**INT4, "out_ptr": "*fp32"}, {**TILE, "GROUP": 128}),
    "w4a16-awq-bf16": (triton_w4a16.awq_kernel, {**INT4, "x_ptr": "*bf16", "out_ptr": "*fp32"}, {**TILE, "GROUP": 128}),
    "w4a16-gptq-f16": (triton_w4a16.gptq_kernel, {**INT4, "g_idx_ptr": "*i32", "out_ptr": "*fp32"}, {**TILE, "ADD_TO_ZERO": 1}),
    "w8a8": (triton_w8a8.w8a8_kernel, {**INT8, "w_ptr": "*i8"}, TILE),
    "llm-int8": (
        triton_w8a8.llm_int8_kernel, {**INT8, "w_ptr": "*i8", "outliers_ptr": "*fp16", "columns_ptr": "*i32", "w16_ptr": "*fp16"},
        {**TILE, "BLOCK_OUTLIERS": 16},
    ),
    "w4a8-group": (
        triton_w4a8.w4a8_kernel, {**INT8, "w_ptr": "*i32", "group_scale_ptr": "*fp16", "out_scale_ptr": "*fp32"}, {**TILE, "GROUP": 64},
    ),
    "sage": (triton_attention.sage_kernel, {**SAGE, "v_ptr": "*fp16"}, {**HEAD, "CAUSAL": False, "FP8": False}),
    "sage2": (triton_attention.sage_kernel, {**SAGE, "v_ptr": "*fp8e4nv"}, {**HEAD, "CAUSAL": False, "FP8": True}),
    "fp8-cache": (triton_attention.fp8_kernel, CACHE, {**HEAD, "PAGE": 16}),
    "moe-w4a16": (triton_moe.moe_w4a16_kernel, {**INT4, **CHOICES}, {**TILE, "GROUP": 128}),
    "moe-mxfp4": (triton_moe.moe_mxfp4_kernel, {"x_ptr": "*bf16", "codes_ptr": "*u8", "scales_ptr": "*u8", **CHOICES}, TILE),
}  # fmt: skip
OPCODE = re.compile(r"^(?:@\S+\s+)?(mma\.\S+|wgmma\.mma_async\S+|tcgen05\.mma[.\w:]*)", re.MULTILINE)
WIDTH = re.compile(r"x(?:bf16|f16|i8|f8\w+), #\w+\.dot_op<\{opIdx = \d, parent = #\w+, kWidth = (\d+)\}>")


def stages(name: str, capability: int) -> dict[str, str]:
    """The texts that Triton's compiler makes of a kernel, up to PTX."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend

    kernel, pointers, constants = COMPILED[name]
    names = [parameter.name for parameter in kernel.params]
    signature = {name: pointers.get(name) or ("constexpr" if name in constants else "i32") for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in constants}
    source = ASTSource(kernel, signature, {(names.index(key),): value for key, value in constants.items()}, aligned)
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": 4, "enable_fp_fusion": False})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module: Any = source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    passes: dict[str, Any] = {}
    backend.add_stages(passes, options, source.language)
    metadata = {"target": target, **options.__dict__}
    texts = {}
    for stage in list(passes)[: list(passes).index("cubin")]:
        module = passes[stage](module, metadata)
        texts[stage] = str(module)
    return texts


def cases() -> Iterator[Any]:
    for name in COMPILED:
        for arch in CAPABILITIES:
            if arch != "sm_80" or name not in FP8:
                marks = () if (name, arch) in {("sage2", "sm_90a"), ("moe-mxfp4", "sm_89")} else pytest.mark.slow
                yield pytest.param(name, arch, marks=marks, id=f"{name}-{arch}")


@pytest.mark.parametrize(("name", "arch"), list(cases()))
def test_the_compiler_emits_what_the_report_says(name: str, arch: str) -> None:
    """The hook asks the compiler about single dots; here the whole kernel is compiled, as for a GPU."""
    texts = stages(name, CAPABILITIES[arch])
    opcodes = collections.Counter(opcode.rstrip(";") for opcode in OPCODE.findall(re.sub(r"^\s+", "", texts["ptx"], flags=re.MULTILINE)))
    _, report = emulated(PAIRS[name]()[0], arch)
    spelled = {line.instruction.ptx for line in report.emulated}
    if arch == "sm_100a":  # shape and types stand in a descriptor there
        spelled = {".".join(ptx.split(".")[:4]) for ptx in spelled}
    assert set(opcodes) == spelled
    assert not re.search(r"\bfma\.rn\.(f32|f16)", texts["ptx"])
    if is_mma_sync(arch):
        widths = {int(width) for line in texts["ttgir"].splitlines() if "tt.dot " in line for width in WIDTH.findall(line)}
        assert widths <= ({8} if name == "moe-mxfp4" else {2, 4})


def test_a_caller_cannot_forget_the_context() -> None:
    """On CPU tensors without `emulate` Triton itself says that there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(RuntimeError, match="0 active drivers"):
        int8()[0]("sm_90a")
