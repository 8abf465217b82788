"""The Triton kernels of schemes 1 to 5: quantizers under emulation, bit for bit; what the compiler makes of them; refusals."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from arrays import same_bits, tensor

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from kernel_calls import UNIT  # noqa: E402

from mmabits.emulator.hooks.session import Session, emulate  # noqa: E402
from mmabits.isa.errors import OperandError, OperandTypeError  # noqa: E402
from mmabits.kernels.quantize import MX_RECIPES  # noqa: E402
from mmabits.kernels.schemes import fp8, fp8_blockwise, mxfp6_mxfp4, mxfp8, nvfp4  # noqa: E402
from mmabits.kernels.schemes.scaling import RECIPES  # noqa: E402
from mmabits.kernels.triton import block_scaled, quantizing  # noqa: E402
from mmabits.kernels.triton import fp8 as triton_fp8  # noqa: E402
from mmabits.kernels.triton import fp8_blockwise as triton_blockwise  # noqa: E402
from mmabits.kernels.triton import mxfp6_mxfp4 as triton_mxfp4  # noqa: E402
from mmabits.kernels.triton import mxfp8 as triton_mxfp8  # noqa: E402
from mmabits.kernels.triton import nvfp4 as triton_nvfp4  # noqa: E402

SEED = 20260204
M, N, K = 40, 72, 288  # the last step over K is not full
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
Run = Callable[[str], Any]


@lru_cache(maxsize=1)
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    x = (rng.standard_normal((M, K)) * 2.0 ** rng.integers(-9, 9, (M, K))).astype(np.float32)
    w = (rng.standard_normal((K, N)) * 2.0 ** rng.integers(-9, 9, (K, N))).astype(np.float32)
    return x, w


@contextmanager
def emulated(arch: str) -> Iterator[Session]:
    with emulate(arch, frameworks=["triton"], triton="interpreted") as session:
        yield session
    report = session.report()
    assert not report.skipped


# Quantizers -----------------------------------------------------------------------------------------------------------


def adversarial() -> np.ndarray:
    """32 x 64: ties, powers of two and their neighbours, subnormals, the largest number, zeros, NaN and infinities."""
    rng = np.random.default_rng(SEED)
    rows = [np.zeros(64), np.full(64, -0.0), np.full(64, 3.4e38), np.full(64, 2.0**-149), np.linspace(-1e-38, 1e-38, 64)]
    rows += [2.0**power * np.linspace(-top, top, 64) for power in (-130, -20, 0, 17) for top in (4.0, 6.0, 7.0, 7.5, 448.0)]
    rows += [np.tile([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0], 8), np.tile([1.0, 1.0625, 1.1875, 448.0], 16)]
    rows += [np.nextafter(np.float32(2.0**power), np.float32(9e9)) * np.ones(64) for power in (-10, 3)]
    values = np.array(rows, np.float64).astype(np.float32)
    extra = rng.integers(0, 0x7F000000, (30 - len(values), 64)).astype(np.uint32).view(np.float32)
    special = np.ones((2, 64), np.float32)
    special[0, 5], special[1, 40] = np.nan, -np.inf
    return np.concatenate([values, extra, special])


def values_of(kind: str) -> np.ndarray:
    return adversarial() if kind == "adversarial" else data()[0][:32, :256].copy()


ONE_ARCH = pytest.mark.parametrize("kind", ["random", "adversarial"])


@ONE_ARCH
@pytest.mark.parametrize("recipe", [each for each in RECIPES if not each.endswith("-full")])  # those need compiled kernels
def test_fp8_quantizers(recipe: str, kind: str) -> None:
    values = values_of(kind)
    with emulated("sm_90a"):
        for element in ("e4m3", "e5m2"):
            elements, scales = triton_fp8.quantize_rows(tensor(values), format=element, recipe=recipe)
            wanted = fp8.quantize(values, per="row", format=element, recipe=recipe)
            assert same_bits(elements, tensor(wanted.elements))
            assert same_bits(scales, tensor(wanted.scales.ravel()))
        tiled = values if kind == "random" else np.tile(values, (1, 2))
        for quantize, tile in ((triton_blockwise.quantize_activations, (1, 128)), (triton_blockwise.quantize_weights, (128, 128))):
            elements, scales = quantize(tensor(tiled), recipe=recipe)
            tiles = fp8_blockwise.quantize(tiled, tile=tile, recipe=recipe)
            assert same_bits(elements, tensor(tiles.elements))
            assert same_bits(scales, tensor(tiles.scales))


@ONE_ARCH
@pytest.mark.parametrize("recipe", MX_RECIPES)
def test_mx_quantizers(recipe: str, kind: str) -> None:
    values = values_of(kind)
    with emulated("sm_100a"):
        for element in ("e4m3", "e5m2"):
            rows, columns = (triton_mxfp8.quantize_rows, triton_mxfp8.quantize_columns)
            for quantize, wanted in (
                (rows, mxfp8.quantize_rows(values, format=element, recipe=recipe)),
                (columns, mxfp8.quantize_columns(values, format=element, recipe=recipe).T),
            ):
                elements, scales = quantize(tensor(values), format=element, recipe=recipe)
                assert same_bits(elements, tensor(wanted.elements))
                assert same_bits(scales, tensor(wanted.scales))
        for quantize, wanted in (
            (triton_mxfp4.quantize_mxfp4_rows, mxfp6_mxfp4.quantize_rows(values, recipe=recipe)),
            (triton_mxfp4.quantize_mxfp4_columns, mxfp6_mxfp4.quantize_columns(values, recipe=recipe).T),
        ):
            elements, scales = quantize(tensor(values), recipe=recipe)
            assert same_bits(elements, tensor(wanted.elements))
            assert same_bits(scales, tensor(wanted.scales))


@ONE_ARCH
@pytest.mark.parametrize("square", [False, True])
def test_nvfp4_quantizers(square: bool, kind: str) -> None:
    values = values_of(kind)
    with emulated("sm_100a"):
        for columns in (False, True):
            elements, scales, whole = triton_nvfp4.quantize(tensor(values), columns=columns, square=square)
            wanted = nvfp4.quantize_columns(values, square=square).T if columns else nvfp4.quantize_rows(values, square=square)
            assert same_bits(elements, tensor(wanted.elements))
            assert same_bits(scales, tensor(wanted.scales))
            assert whole.item() == wanted.tensor_scale


# Fused multiply-add ---------------------------------------------------------------------------------------------------


@triton.jit
def fma_kernel(x_ptr, y_ptr, z_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.fma(tl.load(x_ptr + at), tl.load(y_ptr + at), tl.load(z_ptr + at)))


def test_fma_rounds_once() -> None:
    x = np.full(16, 1 + 2.0**-12, np.float32)
    z = np.full(16, -1 - 2.0**-11, np.float32)
    out = torch.empty(16)
    with emulate("sm_90a", frameworks=["triton"], triton="interpreted"):
        fma_kernel[(1,)](tensor(x), tensor(x), tensor(z), out, SIZE=16)
    assert out.tolist() == [2.0**-24] * 16


# Compiled for GPUs, without one ---------------------------------------------------------------------------------------

FLOATS, BYTES, E4M3 = "*fp32", "*u8", "*fp8e4nv"
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 128}
WIDE_TILE = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128}
COMPILED: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
    "fp8": (
        triton_fp8.fp8_kernel, {"x_ptr": E4M3, "w_ptr": E4M3}, {"PER_ROW": True, "PER_COLUMN": True, "IMPRECISE": None, **TILE},
    ),
    "fp8-tiles": (
        triton_blockwise.fp8_blockwise_kernel, {"x_ptr": E4M3, "w_ptr": E4M3}, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK": 128},
    ),
    "mxfp8": (
        block_scaled.block_scaled_kernel, {"a_ptr": E4M3, "b_ptr": E4M3, "a_scale_ptr": BYTES, "b_scale_ptr": BYTES},
        {"A_FORMAT": "e4m3", "B_FORMAT": "e4m3", "GROUP": 32, "SWIZZLED": False, "ALPHA": False, **WIDE_TILE},
    ),
    "mxfp4": (
        block_scaled.block_scaled_kernel, {"a_ptr": BYTES, "b_ptr": BYTES, "a_scale_ptr": BYTES, "b_scale_ptr": BYTES},
        {"A_FORMAT": "e2m1", "B_FORMAT": "e2m1", "GROUP": 32, "SWIZZLED": True, "ALPHA": False, **WIDE_TILE},
    ),
    "nvfp4": (
        block_scaled.block_scaled_kernel, {"a_ptr": BYTES, "b_ptr": BYTES, "a_scale_ptr": E4M3, "b_scale_ptr": E4M3},
        {"A_FORMAT": "e2m1", "B_FORMAT": "e2m1", "GROUP": 16, "SWIZZLED": True, "ALPHA": True, **WIDE_TILE},
    ),
    "mxfp6": (
        triton_mxfp4.mxfp6_kernel, {"a_ptr": BYTES, "b_ptr": BYTES, "a_scale_ptr": BYTES, "b_scale_ptr": BYTES},
        {"A_EXPONENT": 3, "B_EXPONENT": 2, **WIDE_TILE},
    ),
    "quantize-rows": (triton_fp8.fp8_rows_kernel, {"out_ptr": E4M3}, {"MAX": 448.0, "RECIPE": "divide", "BLOCK": 1024}),
    "quantize-tiles": (
        triton_blockwise.tiles_kernel, {"out_ptr": E4M3, "least": "fp32"},
        {"MAX": 448.0, "RECIPE": "reciprocal", "SQUARE": True, "ROWS": 128, "BLOCK": 128},
    ),
    "quantize-mxfp8": (
        quantizing.mx_kernel, {"out_ptr": E4M3, "scale_ptr": BYTES},
        {"EMAX": 8, "FRACTION_BITS": 3, "MAX": 448.0, "RECIPE": "rceil", "PACK": 1, "BLOCK_R": 32},
    ),
    "quantize-mxfp4": (
        quantizing.mx_kernel, {"out_ptr": BYTES, "scale_ptr": BYTES},
        {"EMAX": 2, "FRACTION_BITS": 1, "MAX": 6.0, "RECIPE": "rceil", "PACK": 2, "BLOCK_R": 32},
    ),
    "quantize-nvfp4": (triton_nvfp4.nvfp4_kernel, {"out_ptr": BYTES, "scale_ptr": BYTES}, {"SQUARE": True, "BLOCK_R": 16}),
}  # fmt: skip
CAPABILITIES = {"sm_89": 89, "sm_90a": 90, "sm_100a": 100, "sm_120a": 120}


def ptx(name: str, capability: int) -> str:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, types, constants = COMPILED[name]
    names = [parameter.name for parameter in kernel.params]
    kinds = {each: "constexpr" if each in constants else types.get(each, FLOATS if each.endswith("_ptr") else "i32") for each in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, each in enumerate(names) if kinds[each].startswith("*") or each == "K"}
    source = ASTSource(kernel, kinds, {(names.index(each),): value for each, value in constants.items()}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    return str(compiled.asm["ptx"])


def compiled_cases() -> Iterator[Any]:
    for name in COMPILED:
        for arch in CAPABILITIES:
            quick = (name, arch) in {("fp8-tiles", "sm_90a"), ("nvfp4", "sm_100a"), ("quantize-nvfp4", "sm_100a")}
            if not (name == "nvfp4" and VERSION < (3, 8) and arch in ("sm_89", "sm_90a")):
                yield pytest.param(name, arch, marks=() if quick else pytest.mark.slow, id=f"{name}-{arch}")


@pytest.mark.parametrize(("name", "arch"), list(compiled_cases()))
def test_what_the_compiler_emits_for_a_gpu(name: str, arch: str) -> None:
    """Whole kernels, with the instructions that the comparisons saw, and nothing whose rounding is left open."""
    text = ptx(name, CAPABILITIES[arch])
    assert "div.full" not in text and ".ftz" not in text
    fused = len(re.findall(r"\bfma\.rn\.f32", text))
    found = set(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[.\w:]*", text))
    if name.startswith("quantize"):
        assert not found and not fused and "div.rn.f32" in text
        return
    part = UNIT.get((name.split("-")[0], arch), "bf16.bf16")
    if arch == "sm_100a":  # types stand in a descriptor there
        part = part.rstrip(".")
    assert found and all(part in each for each in found), found
    if name == "fp8-tiles":
        assert fused
    elif arch in ("sm_100a", "sm_120a") or name == "fp8":  # elsewhere scales are multiplied in by fma with 0, and masked
        assert not fused


# Refusals -------------------------------------------------------------------------------------------------------------


def fp8_of(*shape: int) -> Any:
    return torch.zeros(shape, dtype=torch.uint8).view(torch.float8_e4m3fn)


def bytes_of(*shape: int) -> Any:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: triton_fp8.fp8_matmul(torch.ones(4, 32), torch.ones(1), fp8_of(4, 32), torch.ones(1)),
            OperandTypeError,
            "x must be a torch tensor of float8_e4m3fn or float8_e5m2, got float32",
        ),
        (lambda: triton_fp8.fp8_matmul(fp8_of(4, 32), torch.ones(3), fp8_of(4, 32), torch.ones(1)), OperandError, r"\(1,\) or \(4,\)"),
        (
            lambda: triton_fp8.fp8_matmul(
                fp8_of(4, 32), torch.ones(1), fp8_of(4, 32), torch.ones(1), fast_accumulation=False, block_k=64
            ),
            OperandError,
            "multiple of the promotion's 128, got 64",
        ),
        (lambda: triton_fp8.quantize_rows(torch.ones(4, 4), recipe="even"), OperandError, "unknown scale recipe 'even'"),
        (
            lambda: triton_blockwise.fp8_blockwise_matmul(fp8_of(4, 96), torch.ones(4, 1), fp8_of(4, 96), torch.ones(1, 1)),
            OperandError,
            "K must be a multiple of the block size 128, got 96",
        ),
        (lambda: triton_blockwise.quantize_activations(torch.ones(4, 100)), OperandError, "K must be a multiple of the block size 128"),
        (lambda: triton_mxfp8.quantize_rows(torch.ones(4, 40)), OperandError, "K must be a multiple of the block size 32, got 40"),
        (lambda: triton_mxfp8.quantize_rows(torch.ones(4, 32), format="e2m1"), OperandError, "MXFP8 has no elements of e2m1"),
        (lambda: triton_mxfp8.quantize_rows(fp8_of(4, 32)), OperandTypeError, "values must be a torch tensor of float32"),
        (
            lambda: triton_mxfp8.mxfp8_matmul(fp8_of(4, 40), bytes_of(4, 1), fp8_of(4, 40), bytes_of(4, 1)),
            OperandError,
            "multiple of the block size 32, got 40",
        ),
        (lambda: triton_mxfp4.mxfp4_matmul(bytes_of(4, 16), None, bytes_of(4, 16), None), OperandError, "need scales, got None"),
        (
            lambda: triton_mxfp4.mxfp4_matmul(bytes_of(4, 16), bytes_of(4, 2), bytes_of(4, 16), bytes_of(4, 1)),
            OperandError,
            r"a_scales must have shape \(4, 1\)",
        ),
        (
            lambda: triton_mxfp4.mxfp6_matmul(bytes_of(4, 20), bytes_of(4, 1), "e3m2", bytes_of(4, 20), bytes_of(4, 1), "e3m2"),
            OperandError,
            "of 24 bytes, got 20",
        ),
        (
            lambda: triton_nvfp4.nvfp4_matmul(bytes_of(4, 8), bytes_of(4, 1), torch.ones(1), bytes_of(4, 8), bytes_of(4, 1), torch.ones(1)),
            OperandTypeError,
            "a_scales must be a torch tensor of float8_e4m3fn, got uint8",
        ),
        (
            lambda: triton_nvfp4.nvfp4_matmul(bytes_of(4, 8), fp8_of(4, 1), None, bytes_of(4, 8), fp8_of(4, 1), None),
            OperandError,
            "need the scale of their tensor",
        ),
        (lambda: triton_nvfp4.quantize(torch.ones(8, 16), square=True), OperandError, "multiple of the tile size 16, got 8"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
