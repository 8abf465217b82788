"""torch tensors in, torch tensors out, with the bits of the NumPy path."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest

import mmabits
from mmabits.emulator.codecs import from_codes
from mmabits.isa import OperandTypeError, parse

torch = pytest.importorskip("torch", reason="needs the torch extra")

Array = np.ndarray[Any, Any]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
TORCH = {
    "f64": torch.float64, "tf32": torch.float32, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "ue8m0": torch.float8_e8m0fnu, "ue4m3": torch.float8_e4m3fn,
    "s8": torch.int8, "u8": torch.uint8, "s32": torch.int32,
}  # fmt: skip
PRODUCTS = (
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16"),
    ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"),
    ("sm_80", "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
    ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"),
    ("sm_80", "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e5m2.e4m3.ue8m0"),
)


def draw(text: str, *, kind: str = "raw_finite") -> tuple[dict[str, Array], dict[str, str]]:
    """Operands of a product of 20 x 12, K = 70, by argument name, and their types."""
    row = parse(text)
    rng = operands.generator("interop", text)
    types = {"a": row.a_type.name, "b": row.b_type.name, "c": row.c_type.name}
    shapes = {"a": (20, 70), "b": (70, 12), "c": (20, 12)}
    if row.scale_type is not None:
        types |= {"scale_a": row.scale_type.name, "scale_b": row.scale_type.name}
        shapes |= {"scale_a": (20, 3), "scale_b": (3, 12)}
    return {name: from_codes(operands.draw(kind, types[name], shapes[name], rng), types[name]) for name in types}, types


def to_torch(array: Array, name: str) -> Any:
    """A tensor of the same bits."""
    codes = np.ascontiguousarray(array).view("u1" if array.itemsize == 1 else f"i{array.itemsize}").copy()
    return torch.from_numpy(codes).view(TORCH[name])


def same_bits(tensor: Any, array: Array) -> bool:
    """Whether a tensor has the dtype, shape and bits of an array."""
    codes = tensor.detach().contiguous().view(BITS[tensor.element_size()]).numpy()
    return tuple(tensor.shape) == array.shape and codes.tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(("arch", "text"), PRODUCTS, ids=[text for _, text in PRODUCTS])
def test_tensors_give_the_bits_of_arrays(arch: str, text: str) -> None:
    arrays, types = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch=arch)
    got = mmabits.gemm(**{name: to_torch(array, types[name]) for name, array in arrays.items()}, instruction=text, arch=arch)
    assert isinstance(got, torch.Tensor)
    assert got.dtype is TORCH[parse(text).d_type.name]
    assert got.device.type == "cpu" and not got.requires_grad
    assert same_bits(got, want)


@pytest.mark.parametrize(("arch", "text"), PRODUCTS[:3], ids=[text for _, text in PRODUCTS[:3]])
def test_strided_tensors(arch: str, text: str) -> None:
    """Transposed, every second element, and a slice that starts inside its storage."""
    arrays, types = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch=arch)
    a, b, c = (to_torch(arrays[name], types[name]) for name in "abc")
    a_transposed = to_torch(arrays["a"].T, types["a"]).t()
    wide = torch.zeros(140, 13, dtype=BITS[b.element_size()]).view(b.dtype)
    wide[1::2, 1:] = b
    assert not a_transposed.is_contiguous() and not wide[1::2, 1:].is_contiguous()
    assert same_bits(mmabits.gemm(a_transposed, wide[1::2, 1:], c, instruction=text, arch=arch), want)
    assert torch.equal(a.view(BITS[a.element_size()]), to_torch(arrays["a"], types["a"]).view(BITS[a.element_size()]))


def test_tensors_that_require_gradients() -> None:
    """They are read as they are; the result is no part of a graph."""
    text = PRODUCTS[3][1]
    arrays, types = draw(text, kind="plain")
    want = mmabits.gemm(**arrays, instruction=text, arch="sm_80")
    a = to_torch(arrays["a"], types["a"]).requires_grad_()
    b = torch.nn.Parameter(to_torch(arrays["b"], types["b"]))
    got = mmabits.gemm(a * 1, b, to_torch(arrays["c"], types["c"]), instruction=text, arch="sm_80")
    assert same_bits(got, want) and got.grad_fn is None
    assert a.requires_grad and b.requires_grad


def test_subclasses_of_tensors() -> None:
    """A class of the caller's own, from a module that is not torch's."""

    class Weight(torch.Tensor):
        pass

    text = PRODUCTS[2][1]
    arrays, types = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch="sm_80")
    a = to_torch(arrays["a"], types["a"]).as_subclass(Weight)
    got = mmabits.gemm(a, arrays["b"], arrays["c"], instruction=text, arch="sm_80")
    assert isinstance(got, torch.Tensor) and same_bits(got, want)


def test_mixed_kinds_give_the_kind_of_a() -> None:
    arch, text = PRODUCTS[6]
    arrays, types = draw(text)
    want = mmabits.gemm(**arrays, instruction=text, arch=arch)
    tensors = {name: to_torch(array, types[name]) for name, array in arrays.items()}
    for from_torch in (("a",), ("a", "c", "scale_b"), ("b",), ("c", "scale_a"), ("b", "scale_a", "scale_b")):
        got = mmabits.gemm(**(arrays | {name: tensors[name] for name in from_torch}), instruction=text, arch=arch)
        assert isinstance(got, torch.Tensor) == ("a" in from_torch), from_torch
        assert same_bits(got, want) if "a" in from_torch else got.tobytes() == want.tobytes(), from_torch


def test_one_instruction_and_batches() -> None:
    text = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"
    rng = operands.generator("interop mma")
    a, b = (from_codes(operands.draw("plain", "e4m3", shape, rng), "e4m3") for shape in ((3, 16, 32), (32, 8)))
    want = mmabits.mma(text, a, b, arch="sm_89")
    got = mmabits.mma(text, to_torch(a, "e4m3"), to_torch(b, "e4m3"), arch="sm_89")
    assert got.shape == (3, 16, 8) and same_bits(got, want)


def test_tensors_are_left_alone_and_not_shared() -> None:
    arch, text = PRODUCTS[0]
    arrays, types = draw(text)
    tensors = {name: to_torch(array, types[name]) for name, array in arrays.items()}
    got = mmabits.gemm(**tensors, instruction=text, arch=arch)
    assert all(same_bits(tensor, arrays[name]) for name, tensor in tensors.items())
    got.zero_()
    assert same_bits(tensors["c"], arrays["c"])


def test_packed_fp4_is_refused_with_the_way_out() -> None:
    packed = torch.zeros(64, 32, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    b = np.zeros((64, 8), ml_dtypes.float4_e2m1fn)
    with pytest.raises(
        OperandTypeError, match=r"^a is packed FP4 .*: pass mmabits\.layouts\.unpack_fp4\(a\.view\(torch\.uint8\)\.numpy\(\)\)$"
    ):
        mmabits.gemm(packed, b, instruction="tcgen05.mma.kind::mxf4.block_scale", arch="sm_100a")
    assert mmabits.layouts.unpack_fp4(packed.view(torch.uint8).numpy()).shape == (64, 64)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.float8_e4m3fnuz, "b has torch type float8_e4m3fnuz, which has no NumPy counterpart"),
     (torch.bool, "b has dtype bool; allowed are"), (torch.int64, "b has dtype int64; allowed are"),
     (torch.complex64, "b has dtype complex64; allowed are")],
)  # fmt: skip
def test_other_torch_types_are_refused(dtype: Any, message: str) -> None:
    a = torch.zeros(16, 32, dtype=torch.float8_e4m3fn)
    with pytest.raises(OperandTypeError, match=message):
        mmabits.gemm(a, torch.zeros(32, 8, dtype=torch.uint8).to(dtype), instruction="mma.sync", arch="sm_89")
