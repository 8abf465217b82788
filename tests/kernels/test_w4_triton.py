"""The Triton kernels of schemes 6 to 9: tiles, instructions and special values under emulation; refusals; and compiled for GPUs."""

import collections
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from arrays import tensor

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from kernel_calls import composed, emulated, launched  # noqa: E402

from mmabits.conformance.diff.kernel_cases import KERNEL_CASES  # noqa: E402
from mmabits.emulator.hooks.session import SessionReport, emulate  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.schemes import moe, w4a16  # noqa: E402
from mmabits.kernels.schemes.dots import Dots  # noqa: E402
from mmabits.kernels.schemes.packing_awq_gptq import AwqTensors  # noqa: E402
from mmabits.kernels.triton import attention as triton_attention  # noqa: E402
from mmabits.kernels.triton import moe as triton_moe  # noqa: E402
from mmabits.kernels.triton import w4a8 as triton_w4a8  # noqa: E402
from mmabits.kernels.triton import w4a16 as triton_w4a16  # noqa: E402
from mmabits.kernels.triton import w8a8 as triton_w8a8  # noqa: E402

SEED = 20260118
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
M, N, K = 70, 72, 256


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [tensor(array) for array in arrays]


def is_mma_sync(arch: str) -> bool:
    return arch in ("sm_80", "sm_89", "sm_120a")


@lru_cache(maxsize=1)
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x, w = rng.standard_normal((M, K)).astype(np.float32), rng.standard_normal((K, N)).astype(np.float32)
    x[:, [3, 77]] *= 20
    return {"x": x, "w": w}


def routing() -> tuple[moe.Routing, list[Any]]:
    routed = moe.route(np.random.default_rng(SEED).standard_normal((M, 4)).astype(np.float32), top_k=2)
    aligned = moe.align(routed)
    return routed, tensors(routed.weights, aligned.choices, aligned.experts)


FP8 = ("sage2", "fp8-attention")
CAPABILITIES = {"sm_80": 80, "sm_89": 89, "sm_90a": 90, "sm_100a": 100, "sm_120a": 120}
ARCHES = [
    pytest.param("sm_80", marks=pytest.mark.slow), "sm_89", "sm_90a", pytest.param("sm_100a", marks=pytest.mark.slow),
    pytest.param("sm_120a", marks=pytest.mark.slow),
]  # fmt: skip


def ran(kernel: Callable[[], Any], arch: str) -> tuple[np.ndarray, SessionReport]:
    with emulate(arch, frameworks=["triton"], triton="interpreted") as session:
        result = kernel().numpy()
    return result, session.report()


@pytest.mark.parametrize("arch", ARCHES)
def test_the_instructions_of_sageattention(arch: str) -> None:
    """INT8 scores into s32; P V into f16, and in the successor from e4m3 into f32."""
    _, report = emulated("triton-sage", arch)
    kinds = {(line.instruction.a_type.name, line.instruction.d_type.name) for line in report.emulated}
    assert kinds == {("s8", "s32"), ("f16", "f16")}
    if arch != "sm_80":
        _, report = emulated("triton-sage2", arch)
        assert {(line.instruction.a_type.name, line.instruction.d_type.name) for line in report.emulated} == {
            ("s8", "s32"),
            ("e4m3", "f32"),
        }


def test_two_levels_are_two_levels() -> None:
    """On Hopper the bits of the successor are not those of one chain through the tensor core's accumulator."""
    got, _ = emulated("triton-sage2", "sm_90a")
    f16 = composed(KERNEL_CASES["triton-sage"], "sm_90a")
    blackwell = composed(KERNEL_CASES["triton-sage2"], "sm_100a")
    assert not np.array_equal(got, f16) and not np.array_equal(got, blackwell)


@pytest.mark.parametrize("block", [(64, 32, 32), (128, 128, 64)])
def test_the_tile_does_not_change_the_bits(block: tuple[int, int, int]) -> None:
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"].astype(np.float16)
    sizes = dict(zip(("block_m", "block_n", "block_k"), block, strict=True))
    got, _ = ran(lambda: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales), **sizes), "sm_90a")
    assert np.array_equal(got, w4a16.w4a16_matmul(x, weights, arch="sm_90a"))


def test_few_rows_on_hopper_take_mma_sync() -> None:
    """Tiles of 16 rows, as for decoding: too few for wgmma."""
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"][:11].astype(np.float16)
    got, report = ran(lambda: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales), block_m=16), "sm_90a")
    assert {str(line.instruction.family) for line in report.emulated} == {"mma.sync"}
    assert np.array_equal(got, w4a16.w4a16_matmul(x, weights, arch=Dots(arch="sm_90a", instruction="mma.sync")))


def test_small_blocks_of_mxfp4_experts_on_hopper() -> None:
    experts = moe.quantize_mxfp4_experts(np.random.default_rng(SEED).standard_normal((4, K, N)).astype(np.float32))
    x, (routed, where) = data()["x"].astype(BF16), routing()
    aligned = moe.align(routed, block=16)
    given = (*tensors(x, experts.codes, experts.scales), where[0], *tensors(aligned.choices, aligned.experts))
    got, report = ran(lambda: triton_moe.moe_mxfp4(*given, block_m=16), "sm_90a")
    # The compiler turns the product round, so that the weights' 64 columns are the rows of wgmma.
    assert {str(line.instruction.family) for line in report.emulated} == {"wgmma.mma_async"}
    assert np.array_equal(got, moe.moe_mxfp4(x, experts, routed, arch="sm_90a"))


def test_infinities_and_nan_in_the_activations() -> None:
    weights = w4a16.quantize_int4(data()["w"])
    packed, x = AwqTensors.pack(weights), data()["x"].astype(np.float16)
    x[2, 5], x[4, 9], x[4, 200], x[6, 1] = np.inf, np.inf, -np.inf, np.nan
    got, _ = ran(lambda: triton_w4a16.awq_matmul(*tensors(x, packed.qweight, packed.qzeros, packed.scales)), "sm_90a")
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
    "fp8-attention": (triton_attention.fp8_kernel, CACHE, {**HEAD, "PAGE": 16}),
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
    _, report = emulated(f"triton-{name}", arch)
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
        row = KERNEL_CASES["triton-w8a8"]
        launched(row, row.draw(0))
