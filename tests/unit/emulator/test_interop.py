"""torch tensors in, torch tensors out, with the bits of the NumPy path."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest
from arrays import same_bits

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


NVFP4 = {"instruction": "tcgen05.mma.kind::mxf4nvf4.block_scale", "arch": "sm_100a"}


def packed_pair(m: int, n: int, k: int) -> tuple[Array, Array, Any, Any]:
    """Codes of A (M, K) and B (K, N), and torch's packed tensors of both, packed along K as its operators want them."""
    rng = operands.generator("packed fp4")
    a, b = rng.integers(0, 16, (m, k), dtype=np.uint8), rng.integers(0, 16, (k, n), dtype=np.uint8)
    left = torch.from_numpy(a[:, 0::2] | a[:, 1::2] << 4).view(torch.float4_e2m1fn_x2)
    right = torch.from_numpy(np.ascontiguousarray((b[0::2] | b[1::2] << 4).T)).view(torch.float4_e2m1fn_x2).t()
    return a, b, left, right


def test_packed_fp4_is_unpacked_along_k() -> None:
    a, b, left, right = packed_pair(24, 16, 96)
    kinds = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
    scales = {"scale_a": np.full((24, 6), 0.5, kinds[1]), "scale_b": np.full((6, 16), 2.0, kinds[1])}
    tensors = {name: to_torch(scale, "ue4m3") for name, scale in scales.items()}
    want = mmabits.gemm(a.view(kinds[0]), b.view(kinds[0]), **scales, **NVFP4)
    assert want.any() and same_bits(mmabits.gemm(left, right, **tensors, **NVFP4), want)
    assert mmabits.explain(left, right, **tensors, row=3, column=5, **NVFP4).trace.result.code == want.view(np.uint32)[3, 5]
    vectors = mmabits.explain(left[3], right[:, 5], scale_a=tensors["scale_a"][3], scale_b=tensors["scale_b"][:, 5], **NVFP4)
    assert vectors.trace.result.code == want.view(np.uint32)[3, 5]
    allowed = mmabits.tolerance(left, right, **tensors, **NVFP4)
    exact = (a.view(kinds[0]).astype(np.float64) * 0.5) @ (b.view(kinds[0]).astype(np.float64) * 2)
    np.testing.assert_array_equal(allowed.reference, exact)


def test_packed_fp4_in_codecs_and_layouts() -> None:
    a, _, left, _ = packed_pair(4, 4, 12)
    np.testing.assert_array_equal(mmabits.decode(left, "e2m1"), a.view(ml_dtypes.float4_e2m1fn).astype(np.float64))
    np.testing.assert_array_equal(mmabits.layouts.unpack_fp4(left).view(np.uint8), a)
    np.testing.assert_array_equal(mmabits.layouts.unpack_fp4(left, axis=0).view(np.uint8)[::2, :6], a[:, 0::2])
    np.testing.assert_array_equal(mmabits.layouts.pack_fp4(left), left.view(torch.uint8).numpy())
    with pytest.raises(OperandTypeError, match="codes must have a dimension to be packed FP4"):
        mmabits.decode(left[0, 0], "e2m1")


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "ue8m0", "bf16", "f16"])
def test_codecs_take_tensors_of_the_formats_own_type(name: str) -> None:
    """torch converts them, too."""
    codes = np.arange(256, dtype=np.uint8) if name in ("e4m3", "e5m2", "ue8m0") else np.arange(0, 65536, 97, dtype=np.uint16)
    tensor = torch.from_numpy(codes.view(np.int16 if codes.itemsize == 2 else np.uint8)).view(TORCH[name])
    np.testing.assert_array_equal(mmabits.decode(tensor, name), tensor.to(torch.float64).numpy())
    strided = tensor.reshape(-1, 1).expand(-1, 3)[::2, 1]
    np.testing.assert_array_equal(mmabits.decode(strided, name), tensor.to(torch.float64).numpy()[::2])
    if name != "ue8m0":
        small = tensor.to(torch.float32).nan_to_num(0).clamp(-400, 400).to(tensor.dtype)
        expected = small.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        np.testing.assert_array_equal(mmabits.encode(small, "e4m3"), expected)


def test_layouts_take_tensors() -> None:
    rows, columns = 5, 3
    scales = torch.arange(1, 1 + rows * columns, dtype=torch.uint8).reshape(rows, columns).view(torch.float8_e8m0fnu)
    flat = mmabits.layouts.swizzle_scales(scales)
    assert flat.shape == (512,) and flat.dtype == ml_dtypes.float8_e8m0fnu
    for row in range(rows):
        for column in range(columns):
            assert flat.view(np.uint8)[16 * row + column] == 1 + columns * row + column
    again = mmabits.layouts.unswizzle_scales(torch.from_numpy(flat.view(np.uint8)).view(torch.float8_e8m0fnu), rows, columns)
    np.testing.assert_array_equal(again.view(np.uint8), scales.view(torch.uint8).numpy())


def test_negated_and_conjugated_views_are_read_as_what_they_mean() -> None:
    text = PRODUCTS[3][1]
    arrays, types = draw(text, kind="plain")
    for name in "abc":
        half = torch.view_as_complex(torch.stack([torch.zeros(arrays[name].shape), to_torch(arrays[name], types[name])], -1))
        negative = half.conj().imag
        assert negative.is_neg()
        want = mmabits.gemm(**(arrays | {name: -arrays[name]}), instruction=text, arch="sm_80")
        got = mmabits.gemm(**(arrays | {name: negative}), instruction=text, arch="sm_80")
        assert np.asarray(got).tobytes() == want.tobytes()
        np.testing.assert_array_equal(mmabits.encode(negative, "f32").view(np.float32), -arrays[name])


def without_data() -> dict[str, tuple[Any, str]]:
    """Tensors that are no plain arrays, and what is said of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ones = torch.ones(16, 16)
    with FakeTensorMode():
        fake = torch.ones(16, 16)
    return {
        "meta": (ones.to("meta"), "a tensor on the meta device, which has a shape and no numbers"),
        "fake": (fake, "a FakeTensor, a shape without numbers"),
        "coo": (ones.to_sparse(), r"a tensor of layout torch.sparse_coo; pass what to_dense\(\)"),
        "csr": (ones.to_sparse_csr(), r"a tensor of layout torch.sparse_csr; pass what to_dense\(\)"),
        "nested": (torch.nested.nested_tensor([ones]), "a nested tensor; pass its parts"),
        "jagged": (torch.nested.nested_tensor([ones], layout=torch.jagged), "a nested tensor; pass its parts"),
        "quantized": (torch.quantize_per_tensor(ones, 0.5, 0, torch.qint8), r"a quantized tensor \(torch.qint8\); pass what int_repr"),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*torch.nested", "ignore:.*nested tensors", "ignore:.*quantiz")
@pytest.mark.parametrize("kind", ["meta", "fake", "coo", "csr", "nested", "jagged", "quantized"])
def test_tensors_that_are_no_plain_arrays_are_refused_with_the_reason(kind: str) -> None:
    tensor, reason = without_data()[kind]
    plain = np.ones((16, 16), np.float32)
    product = {"instruction": "mma.sync", "arch": "sm_80"}
    for name in "abc":
        with pytest.raises(OperandTypeError, match=f"^{name} must be a plain array, got {reason}"):
            mmabits.gemm(**({"a": plain, "b": plain, "c": plain} | {name: tensor}), **product)
    for what, call in {
        "codes": lambda: mmabits.decode(tensor, "f32"), "values": lambda: mmabits.encode(tensor, "e4m3"),
        "block scales": lambda: mmabits.layouts.swizzle_scales(tensor), "packed fp4": lambda: mmabits.layouts.unpack_fp4(tensor),
        "a": lambda: mmabits.tolerance(tensor, plain, **product), "b": lambda: mmabits.explain(plain, tensor, **product),
        "d": lambda: mmabits.tolerance(plain, plain, **product).violations(tensor),
    }.items():  # fmt: skip
        with pytest.raises(OperandTypeError, match=f"^{what} must be a plain array, got {reason}"):
            call()


def test_inside_vmap_there_are_no_numbers() -> None:
    plain = np.ones((16, 16), np.float32)
    with pytest.raises(OperandTypeError, match="a must be a plain array, got a Tensor that torch makes none of: Cannot access data"):
        torch.func.vmap(lambda a: mmabits.gemm(a, plain, instruction="mma.sync", arch="sm_80"))(torch.ones(2, 16, 16))


def test_study_takes_tensors() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((8, 32)).astype(np.float32), rng.standard_normal((32, 8)).astype(np.float32)
    assert mmabits.study(torch.from_numpy(a), torch.from_numpy(b)).rows() == mmabits.study(a, b).rows()


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(torch.float8_e4m3fnuz, "b: torch type float8_e4m3fnuz has no NumPy counterpart"),
     (torch.bool, "b has dtype bool; allowed are"), (torch.int64, "b has dtype int64; allowed are"),
     (torch.complex64, "b has dtype complex64; allowed are")],
)  # fmt: skip
def test_other_torch_types_are_refused(dtype: Any, message: str) -> None:
    a = torch.zeros(16, 32, dtype=torch.float8_e4m3fn)
    with pytest.raises(OperandTypeError, match=message):
        mmabits.gemm(a, torch.zeros(32, 8, dtype=torch.uint8).to(dtype), instruction="mma.sync", arch="sm_89")
