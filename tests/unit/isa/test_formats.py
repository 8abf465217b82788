"""The format rows and what follows from them."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from mmabits.isa.errors import MmabitsError, UnknownFormat
from mmabits.isa.formats import FORMATS, FormatSpec, NonFinite, format_spec

# name: bits sign/exponent/fraction, bias, infinity, NaN, largest number, smallest positive number. From IEEE 754, the OCP
# specifications of OFP8 and MX and the PTX ISA.
PUBLISHED = {
    "f64": (1, 11, 52, 1023, 0x7FF0000000000000, 0x7FFFFFFFFFFFFFFF, 1.7976931348623157e308, 5e-324),
    "f32": (1, 8, 23, 127, 0x7F800000, 0x7FFFFFFF, 3.4028234663852886e38, 2.0**-149),
    "tf32": (1, 8, 10, 127, 0x7F800000, 0x7FFFE000, (2 - 2.0**-10) * 2.0**127, 2.0**-136),
    "f16": (1, 5, 10, 15, 0x7C00, 0x7FFF, 65504.0, 2.0**-24),
    "bf16": (1, 8, 7, 127, 0x7F80, 0x7FFF, (2 - 2.0**-7) * 2.0**127, 2.0**-133),
    "e4m3": (1, 4, 3, 7, None, 0x7F, 448.0, 2.0**-9),
    "e5m2": (1, 5, 2, 15, 0x7C, 0x7F, 57344.0, 2.0**-16),
    "e3m2": (1, 3, 2, 3, None, None, 28.0, 0.0625),
    "e2m3": (1, 2, 3, 1, None, None, 7.5, 0.125),
    "e2m1": (1, 2, 1, 1, None, None, 6.0, 0.5),
    "ue8m0": (0, 8, 0, 127, None, 0xFF, 2.0**127, 2.0**-127),
    "ue4m3": (0, 4, 3, 7, None, 0x7F, 448.0, 2.0**-9),
    "s8": (1, 0, 7, 0, None, None, 127.0, 1.0),
    "u8": (0, 0, 8, 0, None, None, 255.0, 1.0),
    "s4": (1, 0, 3, 0, None, None, 7.0, 1.0),
    "u4": (0, 0, 4, 0, None, None, 15.0, 1.0),
    "s32": (1, 0, 31, 0, None, None, 2147483647.0, 1.0),
}


def test_the_rows_are_the_published_formats():
    assert list(FORMATS) == list(PUBLISHED)
    for name, row in FORMATS.items():
        got = (row.sign_bits, row.exponent_bits, row.fraction_bits, row.bias, row.infinity, row.nan, row.max_finite, row.min_positive)
        assert got == PUBLISHED[name], name


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_consistent(name):
    row = FORMATS[name]
    assert row.name == name and row.source
    assert row.codes == 1 << row.code_bits
    assert row.is_integer == (row.exponent_bits == 0)
    assert row.sign_mask in (0, row.codes >> 1)
    assert row.sign_mask & row.magnitude_mask == 0 and row.exponent_mask & row.fraction_mask == 0
    assert (row.infinity is None) != row.has_infinity and (row.nan is None) != row.has_nan
    assert row.max_finite_magnitude & ~row.magnitude_mask == 0
    assert repr(row) == f"<format {name}>"
    dtype = np.dtype(getattr(ml_dtypes, row.numpy_name, row.numpy_name))
    assert dtype.itemsize * 8 == row.container_bits


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if not row.is_integer and name not in ("tf32", "ue4m3")])
def test_a_row_agrees_with_the_array_type(name):
    row = FORMATS[name]
    info = ml_dtypes.finfo(getattr(ml_dtypes, row.numpy_name, row.numpy_name))
    assert float(info.max) == row.max_finite
    assert float(info.smallest_subnormal) == row.min_positive
    assert info.nmant == row.fraction_bits
    assert row.min_exponent == info.minexp
    assert row.max_exponent == np.floor(np.log2(row.max_finite)) if name != "f64" else row.max_exponent == 1023


def test_what_the_special_rows_are():
    assert {name for name, row in FORMATS.items() if row.scale_only} == {"ue8m0", "ue4m3"}
    assert {name for name, row in FORMATS.items() if not row.has_zero} == {"ue8m0"}
    assert {name for name, row in FORMATS.items() if row.ignored_low_bits} == {"tf32"}
    assert {name for name, row in FORMATS.items() if row.ignored_sign} == {"ue4m3"}
    assert {name for name, row in FORMATS.items() if row.code_bits < row.container_bits} == {"e3m2", "e2m3", "e2m1", "s4", "u4"}


def test_a_name_or_a_row_finds_the_row():
    assert format_spec("e4m3") is FORMATS["e4m3"]
    assert format_spec(FORMATS["f16"]) is FORMATS["f16"]


def test_an_unknown_name_says_what_is_near():
    with pytest.raises(UnknownFormat, match=r"^unknown format 'f61'; did you mean .*f16.*; known: f64, f32, tf32, "):
        format_spec("f61")
    with pytest.raises(KeyError):
        format_spec("E4M3")
    with pytest.raises(MmabitsError):
        format_spec("")


NAMES = {
    "f64": ("float64", "torch.float64", "double", "fp64"),
    "f32": ("float32", "np.float32", "fp32"),
    "f16": ("float16", "torch.float16", "half", "tl.float16", "fp16"),
    "bf16": ("bfloat16", "torch.bfloat16", "ml_dtypes.bfloat16"),
    "e4m3": ("float8_e4m3fn", "torch.float8_e4m3fn", "fp8e4nv"),
    "e5m2": ("float8_e5m2", "jnp.float8_e5m2", "fp8e5"),
    "e3m2": ("float6_e3m2fn",),
    "e2m3": ("float6_e2m3fn",),
    "e2m1": ("float4_e2m1fn", "torch.float4_e2m1fn_x2"),
    "ue8m0": ("float8_e8m0fnu", "torch.float8_e8m0fnu"),
    "s8": ("int8", "torch.int8"),
    "u8": ("uint8",),
    "s4": ("int4",),
    "u4": ("uint4",),
    "s32": ("int32",),
}


@pytest.mark.parametrize(("wanted", "name"), [(wanted, name) for wanted, names in NAMES.items() for name in names])
def test_the_name_of_a_dtype_is_taken(wanted, name):
    assert format_spec(name) is FORMATS[wanted]


@pytest.mark.parametrize("name", sorted({row.numpy_name for row in FORMATS.values()}))
def test_a_dtype_is_taken_as_an_object(name):
    kind = getattr(ml_dtypes, name, None) or getattr(np, name)
    wanted = format_spec(name)
    assert wanted.numpy_name == name and not (wanted.scale_only and name != "float8_e8m0fnu")
    assert format_spec(kind) is format_spec(np.dtype(kind)) is wanted


def test_dtypes_of_frameworks_are_taken_as_objects():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    assert format_spec(torch.float8_e4m3fn) is format_spec(jnp.float8_e4m3fn) is FORMATS["e4m3"]
    assert format_spec(torch.bfloat16) is format_spec(jnp.bfloat16) is FORMATS["bf16"]
    assert format_spec(torch.float8_e8m0fnu) is FORMATS["ue8m0"]


def test_a_dtype_that_stands_for_two_formats_is_a_scale_where_one_is_meant():
    assert format_spec("float8_e4m3fn", scale=True) is format_spec(ml_dtypes.float8_e4m3fn, scale=True) is FORMATS["ue4m3"]
    assert format_spec("float8_e8m0fnu", scale=True) is FORMATS["ue8m0"]
    assert format_spec("e4m3", scale=True) is FORMATS["e4m3"]


@pytest.mark.parametrize(
    "name", ["float8_e4m3", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", "float", "fp8", "x.float16", 3, None]
)
def test_other_formats_and_vague_names_are_refused(name):
    """float8_e4m3 of ml_dtypes has infinities, fnuz has another bias."""
    with pytest.raises(UnknownFormat, match=r"^unknown format .*; known: f64, f32, .*and dtypes$"):
        format_spec(name)


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["f16"].bias = 16


WHOLE = dict(
    name="x",
    container_bits=8,
    sign_bits=1,
    exponent_bits=4,
    fraction_bits=3,
    bias=7,
    non_finite=NonFinite.NONE,
    numpy_name="uint8",
    source="-",
)


@pytest.mark.parametrize("wrong", [{"fraction_bits": 4}, {"container_bits": 7}, {"sign_bits": 0, "exponent_bits": 0, "fraction_bits": 0}])
def test_fields_that_do_not_fit_the_container_are_refused(wrong):
    FormatSpec(**WHOLE)
    with pytest.raises(ValueError, match=r"format x: .* bits do not fit a container of"):
        FormatSpec(**(WHOLE | wrong))


@pytest.mark.parametrize("wrong", [{"exponent_bits": -1}, {"sign_bits": 2, "exponent_bits": 3}])
def test_impossible_field_widths_are_refused(wrong):
    with pytest.raises(ValueError, match="format x: negative field width"):
        FormatSpec(**(WHOLE | wrong))
