"""What a GPU leaves undefined stands in the report, and `undefined="poison"` makes it NaN."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits import layouts
from mmabits.emulator.hooks.session import JUNK, Session, poison
from mmabits.isa import OperandError

torch = pytest.importorskip("torch")

from mmabits.emulator.hooks.torch import mode, scaled, undefined  # noqa: E402

SCALED = hasattr(torch, "_scaled_mm") and hasattr(torch, "float4_e2m1fn_x2")
needs_scaled = pytest.mark.skipif(not SCALED, reason="this PyTorch has no scaled products of packed FP4")
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs the jax extra")


def emulated(arch="sm_90a", **options):
    return mmabits.emulate(arch, frameworks=["torch"], **options)


def ends(*values):
    return torch.tensor(values, dtype=torch.int32)


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


# The option


@pytest.mark.parametrize("wrong", ["nan", "zeros", "", None, 0, ["zero"]])
def test_another_way_to_fill_is_refused(wrong):
    with pytest.raises(OperandError, match="undefined must be 'zero' or 'poison', got"), mmabits.emulate("sm_90a", undefined=wrong):
        pass


def test_the_report_has_a_table_of_its_own_only_where_there_is_something():
    session = Session(arch="sm_90a")
    assert session.report().undefined == () and "Undefined" not in str(session.report())
    session.leave_open("kernel[grid]", "op", "some [values]")
    session.leave_open("kernel[grid]", "op", "some [values]")
    (line,) = session.report().undefined
    assert (line.site, line.operation, line.what, line.here, line.count) == ("kernel[grid]", "op", "some [values]", "zeros", 2)
    text = str(session.report())
    assert all(words in text for words in ("Undefined on a GPU", "kernel[grid]", "some [values]", "zeros"))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float32, np.nan), (np.complex64, np.nan), (ml_dtypes.bfloat16, np.nan), (ml_dtypes.float8_e4m3fn, np.nan),
        (ml_dtypes.float8_e8m0fnu, np.nan), (np.bool_, True), (np.int8, -91), (np.uint8, 0xA5), (np.int32, -1515870811),
        (np.uint64, 0xA5A5A5A5A5A5A5A5), (ml_dtypes.float4_e2m1fn, -3.0),
    ],
    ids=str,
)  # fmt: skip
def test_poison_of_each_type(dtype, expected):
    value = poison(np.dtype(dtype))
    assert value.dtype == dtype
    assert np.isnan(value) if expected is np.nan else value == expected


# Grouped products


@pytest.mark.parametrize("filling", ["zero", "poison"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_rows_past_the_last_offset(arch, filling):
    a, b = normal(32, 64).bfloat16(), normal(3, 64, 48, seed=1).bfloat16()
    with emulated(arch, undefined=filling) as session:
        d = torch._grouped_mm(a, b, offs=ends(8, 8, 16))
        parts = [a[:8] @ b[0], a[8:16] @ b[2]]
        whole = torch._grouped_mm(a, b, offs=ends(8, 8, 32))
    assert torch.equal(d[:16], torch.cat(parts))
    assert d[16:].isnan().all() if filling == "poison" else not d[16:].any()
    assert not whole.isnan().any() and whole[16:].any()
    (line,) = session.report().undefined
    assert line.operation == "_grouped_mm" and line.what == "rows past the last offset are written by no kernel"
    assert (line.here, line.count) == ("poison" if filling == "poison" else "zeros", 1) and "test_undefined.py" in line.site
    notes = [line.note for line in session.report().emulated if line.site.startswith("_grouped_mm")]
    assert sum("rows past the last offset" in note for note in notes) == 1  # the whole one has none, and is another line


def test_columns_past_the_last_offset_and_groups_without_elements():
    a, b = normal(3, 16, 64).bfloat16(), normal(64, 48, seed=1).bfloat16()
    with emulated(undefined="poison") as session:
        columns = torch._grouped_mm(a, b, offs=ends(8, 8, 32))
        by_k = torch._grouped_mm(a[0], b, offs=ends(0, 32, 48))
        nothing = torch._grouped_mm(a[0], b.expand(2, 64, 48), offs=ends(0, 0))
    assert columns[:, 32:].isnan().all() and torch.isfinite(columns[:, :32]).all()
    assert not by_k[0].any() and torch.isfinite(by_k).all()  # a sum of nothing, and K past the last offset is read by nobody
    assert nothing.isnan().all()
    assert [line.what.split()[0] for line in session.report().undefined] == ["columns", "rows"]


@needs_scaled
def test_rows_past_the_last_offset_of_a_scaled_product():
    a, b = normal(32, 64).to(torch.float8_e4m3fn), normal(2, 48, 64, seed=1).to(torch.float8_e4m3fn).transpose(1, 2)
    with emulated(undefined="poison") as session:
        d = torch._scaled_grouped_mm(a, b, torch.ones(32), torch.ones(2, 48), offs=ends(8, 16), out_dtype=torch.bfloat16)
    assert d[16:].isnan().all() and torch.isfinite(d[:16]).all()
    assert [line.operation for line in session.report().undefined] == ["_scaled_grouped_mm"]
    assert all("rows past the last offset" in line.note for line in session.report().emulated)


# Padding of scales

FORMS = {
    "NVFP4": (torch.float4_e2m1fn_x2, torch.float8_e4m3fn, 16, 0x7F),
    "MXFP4": (torch.float4_e2m1fn_x2, torch.float8_e8m0fnu, 32, 0xFF),
    "MXFP8": (torch.float8_e4m3fn, torch.float8_e8m0fnu, 32, 0xFF),
}


def block_scaled(form, m, n, k):
    """Codes of A and B, both with K last, and codes of their scales."""
    rng = np.random.default_rng(6)
    dtype, _, block, _ = FORMS[form]
    top = 16 if dtype == torch.float4_e2m1fn_x2 else 0x78
    codes = [rng.integers(0, top, (rows, k), dtype=np.uint8) for rows in (m, n)]
    scales = [rng.integers(0x30, 0x40, (rows, -(-k // block)), dtype=np.uint8) for rows in (m, n)]
    return (*codes, *scales)


def operand(form, codes):
    dtype = FORMS[form][0]
    return torch.from_numpy(layouts.pack_fp4(codes) if dtype == torch.float4_e2m1fn_x2 else codes).view(dtype)


def swizzled(form, scales, padding=None):
    """Scales in the 128x4 layout; `padding` are the columns after them."""
    whole = scales if padding is None else np.concatenate([scales, padding], axis=1)
    return torch.from_numpy(layouts.swizzle_scales(whole)).view(FORMS[form][1])


def multiply(form, a, b, scale_a, scale_b):
    return torch._scaled_mm(operand(form, a), operand(form, b).t(), scale_a, scale_b, out_dtype=torch.float32)


@needs_scaled
@pytest.mark.parametrize(("form", "read"), [("NVFP4", 2), ("MXFP4", 1)])
def test_nan_in_the_padding_that_the_last_instruction_reads(form, read):
    """K = 96 of instructions with K = 64: what is multiplied is the product with zeros up to K = 128, and all scales up to there."""
    m, n, k = 136, 48, 96
    a, b, scale_a, scale_b = block_scaled(form, m, n, k)
    nan = FORMS[form][3]
    padding_a, padding_b = np.full((m, read), 0x38, np.uint8), np.full((n, read), 0x38, np.uint8)
    padding_a[[3, 130], -1] = nan
    padding_b[7, 0] = nan
    with emulated("sm_100a") as session:
        clean = multiply(form, a, b, swizzled(form, scale_a), swizzled(form, scale_b))
        got = multiply(form, a, b, swizzled(form, scale_a, padding_a), swizzled(form, scale_b, padding_b))
        zeros = [np.pad(codes, ((0, 0), (0, 32))) for codes in (a, b)]
        written = [np.concatenate(pair, axis=1) for pair in ((scale_a, padding_a), (scale_b, padding_b))]
        want = multiply(form, *zeros, *(swizzled(form, scales) for scales in written))
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))
    expected = torch.zeros(m, n, dtype=torch.bool)
    expected[[3, 130]] = True
    expected[:, 7] = True
    assert torch.equal(got.isnan(), expected) and torch.equal(got[~expected], clean[~expected])
    assert (got.view(torch.int32)[expected] == 0x7FFFFFFF).all()
    notes = [line.note for line in session.report().emulated]
    assert sum("NaN in the padding of the scales" in note for note in notes) == 1 and session.report().undefined == ()


@needs_scaled
@pytest.mark.parametrize("filling", ["zero", "poison"])
def test_nan_in_the_padding_past_the_last_instruction(filling):
    """MXFP8 has an instruction for each block of 32: K = 96 takes three scales, and the fourth of the layout is a whole tile's."""
    m, n, k = 16, 32, 96
    a, b, scale_a, scale_b = block_scaled("MXFP8", m, n, k)
    padding = np.full((m, 1), 0x7F, np.uint8)
    padding[5] = 0xFF
    with emulated("sm_100a", undefined=filling) as session:
        clean = multiply("MXFP8", a, b, swizzled("MXFP8", scale_a), swizzled("MXFP8", scale_b))
        got = multiply("MXFP8", a, b, swizzled("MXFP8", scale_a, padding), swizzled("MXFP8", scale_b))
    (line,) = session.report().undefined
    assert "past the last instruction's K" in line.what and line.here == ("poison" if filling == "poison" else "not read")
    assert got[5].isnan().all() if filling == "poison" else torch.equal(got[5], clean[5])
    others = torch.arange(m) != 5
    assert torch.equal(got[others], clean[others]) and torch.isfinite(clean).all()


@needs_scaled
def test_rows_of_the_padding_belong_to_no_result():
    """Rows up to 128 are multiplied with rows of zeros, whose results nobody stores."""
    m, n, k = 16, 32, 128
    a, b, scale_a, scale_b = block_scaled("NVFP4", m, n, k)
    filled = layouts.swizzle_scales(scale_a, pad=0x7F)
    with emulated("sm_100a", undefined="poison") as session:
        clean = multiply("NVFP4", a, b, swizzled("NVFP4", scale_a), swizzled("NVFP4", scale_b))
        got = multiply("NVFP4", a, b, torch.from_numpy(filled).view(torch.float8_e4m3fn), swizzled("NVFP4", scale_b))
    assert torch.equal(got, clean) and session.report().undefined == ()


@needs_scaled
def test_padding_of_scales_of_groups():
    """Each group's scales are padded by themselves."""
    m, n, k = 16, 32, 96
    a, b, scale_a, scale_b = block_scaled("MXFP8", m, n, k)
    bad = layouts.swizzle_scales(scale_a, pad=0xFF)
    scales = torch.from_numpy(np.stack([layouts.swizzle_scales(scale_a), bad]).reshape(256, 4)).view(torch.float8_e8m0fnu)
    stack = torch.stack([swizzled("MXFP8", scale_b)] * 2)
    both = torch.cat([operand("MXFP8", a)] * 2)
    weights = torch.stack([operand("MXFP8", b).t()] * 2)
    with emulated("sm_100a", undefined="poison") as session:
        d = torch._scaled_grouped_mm(both, weights, scales, stack, offs=ends(m, 2 * m), out_dtype=torch.bfloat16)
    assert torch.isfinite(d[:m]).all() and d[m:].isnan().all()
    assert [line.here for line in session.report().undefined] == ["poison"]


# scale_result


@needs_scaled
@pytest.mark.parametrize(("version", "applied"), [((2, 9), True), ((2, 10), False), ((2, 13), False), ((2, 14), True), ((3, 0), True)])
def test_scale_result_is_applied_where_pytorchs_cuda_backend_does_it(monkeypatch, version, applied):
    a, b = normal(16, 64).to(torch.float8_e4m3fn), normal(32, 64, seed=1).to(torch.float8_e4m3fn).t()
    one = torch.tensor(1.0)
    monkeypatch.setattr(scaled, "VERSION", version)
    with emulated("sm_100a") as session:
        exact = torch._scaled_mm(a, b, one, one, out_dtype=torch.float32)
        plain = torch._scaled_mm(a, b, one, one, out_dtype=torch.float8_e4m3fn)
        got = torch._scaled_mm(a, b, one, one, scale_result=one / 64, out_dtype=torch.float8_e4m3fn)
        wide = torch._scaled_mm(a, b, one, one, scale_result=one / 64, out_dtype=torch.float32)
    smaller = (exact / 64).to(torch.float8_e4m3fn)
    assert not torch.equal(plain.view(torch.uint8), smaller.view(torch.uint8))
    assert torch.equal(got.view(torch.uint8), (smaller if applied else plain).view(torch.uint8)) and torch.equal(wide, exact)
    notes = [line.note for line in session.report().emulated]
    assert "scale_result" not in notes[0] + notes[1]
    assert ("times scale_result in f32" if applied else "scale_result is not applied: the CUDA backend of PyTorch 2.10 to 2.13") in notes[2]
    assert "scale_result is for FP8 results" in notes[3]


@needs_scaled
def test_scale_result_is_checked_even_where_it_is_not_applied():
    a, b = torch.zeros(16, 64).to(torch.float8_e4m3fn), torch.zeros(32, 64).to(torch.float8_e4m3fn).t()
    one = torch.tensor(1.0)
    with emulated("sm_100a"), pytest.raises(OperandError, match="scale_result must have one element"):
        torch._scaled_mm(a, b, one, one, scale_result=torch.ones(2), out_dtype=torch.bfloat16)


# Memory that nothing has written


@pytest.mark.parametrize("make", [
    lambda: torch.empty(3, 4), lambda: torch.empty_like(torch.zeros(2)), lambda: torch.zeros(1).new_empty(5), lambda: torch.empty(()),
    lambda: torch.empty_strided((2, 3), (1, 2)), lambda: torch.empty_permuted((2, 3), (1, 0)), lambda: torch.Tensor(2, 2),
    lambda: torch.zeros(1).new_empty_strided((2, 2), (2, 1)), lambda: torch.empty(2, dtype=torch.bfloat16),
    lambda: torch.empty(2, dtype=torch.float8_e4m3fn), lambda: torch.empty(2, dtype=torch.float8_e8m0fnu),
    lambda: torch.empty(2, dtype=torch.complex64), lambda: torch.empty(2, 2, dtype=torch.float64).t(),
], ids=range(13))  # fmt: skip
def test_unwritten_memory_is_poisoned(make):
    with emulated(undefined="poison"):
        found = make()
    assert found.to(torch.complex64 if found.is_complex() else torch.float32).isnan().all() and found.numel()


def test_unwritten_memory_without_nan():
    with emulated(undefined="poison"):
        found = {
            dtype: torch.empty(2, 3, dtype=dtype) for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64, torch.float4_e2m1fn_x2)
        }
        true, none, meta = torch.empty(2, dtype=torch.bool), torch.empty(0, 3), torch.empty(3, device="meta")
    assert all((tensor.view(torch.uint8) == JUNK).all() for tensor in found.values())
    assert true.all() and none.shape == (0, 3) and meta.is_meta


def test_only_unwritten_memory_is_poisoned_and_only_in_the_block(monkeypatch):
    poisoned = []
    monkeypatch.setattr(mode, "unwritten", lambda func, args, kwargs: poisoned.append(func) or undefined.unwritten(func, args, kwargs))
    with emulated(undefined="poison"):
        written = [torch.zeros(3), torch.ones(3), torch.full((3,), 2.0), torch.empty(3).fill_(1), torch.randn(3), torch.eye(3)]
        product = torch.addmm(torch.empty(4, 4), torch.ones(4, 8), torch.ones(8, 4), beta=0)
        with emulated():
            torch.empty(1000)
    torch.empty(1000)
    assert not any(tensor.isnan().any() for tensor in [*written, product])
    assert len(poisoned) == 2


@needs_scaled
def test_scales_whose_padding_nobody_wrote_show():
    """A scale tensor made by `torch.empty`, of which only the rows and columns of the operand are written."""
    m, n, k = 16, 32, 96
    a, b, scale_a, scale_b = block_scaled("NVFP4", m, n, k)
    places = layouts.swizzle_scales(np.ones_like(scale_a)).astype(bool)
    with emulated("sm_100a", undefined="poison"):
        unswept = torch.empty(1024, dtype=torch.float8_e4m3fn)
        unswept.view(torch.uint8)[torch.from_numpy(places)] = torch.from_numpy(layouts.swizzle_scales(scale_a)[places])
        got = multiply("NVFP4", a, b, unswept, swizzled("NVFP4", scale_b))
    assert got.isnan().all()


@needs_jax
def test_lax_empty():
    import jax
    from jax import lax
    from jax import numpy as jnp

    made = jax.jit(lambda: (lax.empty((2, 3), jnp.float32), lax.empty((2,), jnp.bfloat16), lax.empty((2,), jnp.int32), jnp.empty(2)))
    zeros = made()
    with mmabits.emulate("sm_90a", frameworks=["jax"], undefined="poison"):
        poisoned, eager = made(), lax.empty((2,), jnp.float8_e4m3fn)
    with mmabits.emulate("sm_90a", frameworks=["jax"]):
        plain = made()
    assert np.isnan(poisoned[0]).all() and np.isnan(poisoned[1]).all() and (poisoned[2] == -1515870811).all()
    assert not poisoned[3].any()  # numpy.empty of JAX is zeros everywhere
    assert np.isnan(np.asarray(eager)).all()
    assert not any(np.asarray(each).any() for each in (*plain, *zeros, *made()))


@needs_jax
def test_rows_past_the_groups_of_ragged_dot_are_zero():
    """JAX masks them on every platform: they are defined."""
    from jax import lax
    from jax import numpy as jnp

    with mmabits.emulate("sm_90a", frameworks=["jax"], undefined="poison") as session:
        d = lax.ragged_dot(jnp.ones((16, 32), jnp.bfloat16), jnp.ones((2, 32, 8), jnp.bfloat16), jnp.array([3, 4], jnp.int32))
    assert (d[:7] == 32).all() and not d[7:].any() and session.report().undefined == ()
