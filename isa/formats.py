"""Number formats as rows. Everything that follows from a row's fields is a property of it, written nowhere else."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from mmabits.isa.errors import UnknownFormat, nearest


class NonFinite(enum.Enum):
    """Which codes of a format are not finite numbers."""

    IEEE = "all-ones exponent: infinity where the fraction is 0, else NaN"
    NAN_ONLY = "all-ones exponent and fraction: NaN; no infinity"
    NONE = "every code is a finite number"


@dataclass(frozen=True, kw_only=True, eq=False)
class FormatSpec:
    """One number format.

    A code is held in `container_bits` bits: from the top, unused or ignored high bits, sign, exponent, fraction,
    then `ignored_low_bits` that the hardware does not read. Integer formats have `exponent_bits` 0.
    """

    name: str
    """PTX spelling."""
    container_bits: int
    """Bits an element takes in an array here (sub-byte codes take one byte each, in its low bits)."""
    sign_bits: int
    """1 where a sign bit (or, for integers, two's complement) is there and read."""
    exponent_bits: int
    fraction_bits: int
    """Bits after the binary point of the significand; for integers the bits of the magnitude."""
    bias: int
    non_finite: NonFinite
    has_subnormals: bool = True
    """The all-zero exponent holds zero and subnormals; without them it is an ordinary exponent."""
    ignored_low_bits: int = 0
    ignored_sign: bool = False
    """A sign bit is there but not read."""
    numpy_name: str
    """dtype of the arrays that hold it: a NumPy name or an ml_dtypes name."""
    also: tuple[str, ...] = ()
    """What NumPy, PyTorch and Triton call it besides."""
    scale_only: bool = False
    """Only ever a block scale, never an operand."""
    source: str

    def __post_init__(self) -> None:
        used = self.sign_bits + self.ignored_sign + self.exponent_bits + self.fraction_bits + self.ignored_low_bits
        if not (0 < used <= self.container_bits and self.container_bits in (8, 16, 32, 64)):
            raise ValueError(f"format {self.name}: {used} bits do not fit a container of {self.container_bits}")
        if self.exponent_bits < 0 or self.fraction_bits < 0 or self.sign_bits not in (0, 1):
            raise ValueError(f"format {self.name}: negative field width")

    def __reduce__(self) -> str | tuple[Any, ...]:
        return (format_spec, (self.name,)) if FORMATS.get(self.name) is self else super().__reduce__()  # rows are compared by identity

    @property
    def is_integer(self) -> bool:
        """Whether the codes are integers."""
        return self.exponent_bits == 0

    @property
    def code_bits(self) -> int:
        """Bits that matter or are ignored inside a code, without the unused top bits of its container."""
        return self.sign_bits + self.ignored_sign + self.exponent_bits + self.fraction_bits + self.ignored_low_bits

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return 1 << self.code_bits

    @property
    def sign_mask(self) -> int:
        """The sign bit that is read, 0 where there is none."""
        return self.sign_bits << (self.code_bits - 1)

    @property
    def exponent_mask(self) -> int:
        """The exponent field in place."""
        return ((1 << self.exponent_bits) - 1) << (self.fraction_bits + self.ignored_low_bits)

    @property
    def fraction_mask(self) -> int:
        """The fraction field in place."""
        return ((1 << self.fraction_bits) - 1) << self.ignored_low_bits

    @property
    def magnitude_mask(self) -> int:
        """Exponent and fraction in place."""
        return self.exponent_mask | self.fraction_mask

    @property
    def has_infinity(self) -> bool:
        """Whether a code stands for infinity."""
        return self.non_finite is NonFinite.IEEE

    @property
    def has_nan(self) -> bool:
        """Whether a code stands for NaN."""
        return self.non_finite is not NonFinite.NONE

    @property
    def has_zero(self) -> bool:
        """Whether a code stands for zero (ue8m0 has none)."""
        return self.is_integer or self.has_subnormals

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number and of the subnormals."""
        return (1 if self.has_subnormals else 0) - self.bias

    @property
    def max_finite_magnitude(self) -> int:
        """Code of the largest finite magnitude, without the sign."""
        low = self.ignored_low_bits
        top = self.magnitude_mask >> low
        if self.non_finite is NonFinite.IEEE:
            top = (self.exponent_mask >> low) - 1
        elif self.non_finite is NonFinite.NAN_ONLY:
            top -= 1
        return top << low

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite number."""
        return (self.max_finite_magnitude >> (self.fraction_bits + self.ignored_low_bits)) - self.bias

    @property
    def infinity(self) -> int | None:
        """Code of +infinity."""
        return self.exponent_mask if self.has_infinity else None

    @property
    def nan(self) -> int | None:
        """Code of the NaN with every magnitude bit set and no sign."""
        return self.magnitude_mask if self.has_nan else None

    @cached_property
    def max_finite(self) -> float:
        """The largest finite number."""
        if self.is_integer:
            return float((1 << self.fraction_bits) - 1)
        fraction = (self.max_finite_magnitude & self.fraction_mask) >> self.ignored_low_bits
        return float((1 << self.fraction_bits) + fraction) * 2.0 ** (self.max_exponent - self.fraction_bits)

    @cached_property
    def min_positive(self) -> float:
        """The smallest positive number."""
        if self.is_integer:
            return 1.0
        return 2.0 ** (self.min_exponent - (self.fraction_bits if self.has_subnormals else 0))

    def __repr__(self) -> str:
        return f"<format {self.name}>"


def _float(
    name: str,
    container: int,
    exponent: int,
    fraction: int,
    bias: int,
    non_finite: NonFinite,
    numpy_name: str,
    source: str,
    *also: str,
    ignored_low_bits: int = 0,
) -> FormatSpec:
    return FormatSpec(
        name=name, container_bits=container, sign_bits=1, exponent_bits=exponent, fraction_bits=fraction, bias=bias,
        non_finite=non_finite, ignored_low_bits=ignored_low_bits, numpy_name=numpy_name, also=also, source=source,
    )  # fmt: skip


def _integer(name: str, container: int, sign: int, magnitude: int, numpy_name: str) -> FormatSpec:
    return FormatSpec(
        name=name, container_bits=container, sign_bits=sign, exponent_bits=0, fraction_bits=magnitude, bias=0,
        non_finite=NonFinite.NONE, numpy_name=numpy_name, source="ptx",
    )  # fmt: skip


# fmt: off
_ROWS = (
    #      name   bits exp frac bias   not finite            array dtype          source       further names
    _float("f64",  64, 11, 52, 1023, NonFinite.IEEE,     "float64",         "ieee-754", "double", "fp64"),
    _float("f32",  32,  8, 23,  127, NonFinite.IEEE,     "float32",         "ieee-754", "fp32"),
    _float("tf32", 32,  8, 10,  127, NonFinite.IEEE,     "float32",         "ptx", ignored_low_bits=13),
    _float("f16",  16,  5, 10,   15, NonFinite.IEEE,     "float16",         "ieee-754", "half", "fp16"),
    _float("bf16", 16,  8,  7,  127, NonFinite.IEEE,     "bfloat16",        "ptx"),
    _float("e4m3",  8,  4,  3,    7, NonFinite.NAN_ONLY, "float8_e4m3fn",   "ocp-ofp8", "fp8e4nv"),
    _float("e5m2",  8,  5,  2,   15, NonFinite.IEEE,     "float8_e5m2",     "ocp-ofp8", "fp8e5"),
    _float("e3m2",  8,  3,  2,    3, NonFinite.NONE,     "float6_e3m2fn",   "ocp-mx"),
    _float("e2m3",  8,  2,  3,    1, NonFinite.NONE,     "float6_e2m3fn",   "ocp-mx"),
    _float("e2m1",  8,  2,  1,    1, NonFinite.NONE,     "float4_e2m1fn",   "ocp-mx", "float4_e2m1fn_x2"),
    FormatSpec(name="ue8m0", container_bits=8, sign_bits=0, exponent_bits=8, fraction_bits=0, bias=127, non_finite=NonFinite.NAN_ONLY,
               has_subnormals=False, scale_only=True, numpy_name="float8_e8m0fnu", source="ocp-mx"),
    FormatSpec(name="ue4m3", container_bits=8, sign_bits=0, ignored_sign=True, exponent_bits=4, fraction_bits=3, bias=7,
               non_finite=NonFinite.NAN_ONLY, scale_only=True, numpy_name="float8_e4m3fn", source="ptx"),
    _integer("s8",  8, 1,  7, "int8"),
    _integer("u8",  8, 0,  8, "uint8"),
    _integer("s4",  8, 1,  3, "int4"),
    _integer("u4",  8, 0,  4, "uint4"),
    _integer("s32", 32, 1, 31, "int32"),
)
# fmt: on

FORMATS: dict[str, FormatSpec] = {row.name: row for row in _ROWS}
"""Every format by its PTX name."""


_MODULE: Final = re.compile(r"^(torch|np|numpy|ml_dtypes|jnp|jax\.numpy|tl|triton\.language)\.")
_DTYPES: Final = {name: row for row in reversed(_ROWS) if not row.scale_only for name in (row.numpy_name, *row.also)}
_SCALE_DTYPES: Final = {row.numpy_name: row for row in _ROWS if row.scale_only}


def format_spec(name: Any, *, scale: bool = False) -> FormatSpec:
    """The row of a format.

    Args:
        name: PTX spelling (`"e4m3"`), the name of a dtype (`"float8_e4m3fn"`, `"torch.bfloat16"`), a dtype of NumPy, ml_dtypes,
            PyTorch, JAX or Triton, or a row, which is returned as it is. Of formats that share a dtype the plain one is meant:
            float32 is f32, not tf32.
        scale: a block scale's format is meant: float8_e4m3fn is ue4m3, not e4m3.

    Raises:
        UnknownFormat: no such format; the message names the nearest.
    """
    if isinstance(name, FormatSpec):
        return name
    if isinstance(name, str) and name in FORMATS:
        return FORMATS[name]
    text = name if isinstance(name, str) else str(getattr(name, "__name__", getattr(name, "name", name)))
    word = _MODULE.sub("", text)
    found = (_SCALE_DTYPES.get(word) if scale else None) or FORMATS.get(word) or _DTYPES.get(word) or _SCALE_DTYPES.get(word)
    if found is None:
        raise UnknownFormat(f"unknown format {name!r}{nearest(word, (*FORMATS, *_DTYPES))}; known: {', '.join(FORMATS)}, and dtypes")
    return found
