"""FP8 with float32 scales for a tensor, a row (token) or a column (output channel): dynamic, static and delayed scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.codecs import encode, from_codes
from mmabits.isa import FormatSpec, OperandError, format_spec, nearest
from mmabits.kernels.quantize import FP8_FORMATS
from mmabits.kernels.schemes.checks import check_finite, check_positive, checked, positive
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.scaling import Floats, dynamic, finite_amax, scale_recipe, static

FORWARD: Final = "e4m3"
"""Format of activations and weights."""
BACKWARD: Final = "e5m2"
"""Format of gradients."""
GRANULARITIES: Final[dict[str, tuple[int, ...]]] = {"tensor": (0, 1), "row": (1,), "column": (0,)}
"""What has one scale, and the axes over which its largest magnitude is taken."""
_ONE: Final = np.float32(1)
_DTYPES: Final = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
_LEAST_MULTIPLIER: Final = np.finfo(np.float32).smallest_normal
"""Of delayed scaling: its reciprocal, the scale, is finite."""


def fp8_format(name: str | FormatSpec) -> FormatSpec:
    """`e4m3` or `e5m2`.

    Raises:
        OperandError: another format.
    """
    spec = format_spec(name)
    if spec.name not in FP8_FORMATS:
        raise OperandError(f"FP8 has no elements of {spec.name}; it has {', '.join(FP8_FORMATS)}")
    return spec


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Matrix:
    """An FP8 matrix; value = element * scale of its tensor, row or column.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    elements: npt.NDArray[Any]
    """(R, C), float8_e4m3fn or float8_e5m2."""
    scales: Floats
    """(1, 1), (R, 1) or (1, C), finite."""

    def __post_init__(self) -> None:
        """Check."""
        checked(self.elements, "elements", _DTYPES, 2)
        checked(self.scales, "scales", (np.float32,), 2)
        rows, columns = self.elements.shape
        if self.scales.shape not in ((1, 1), (rows, 1), (1, columns)):
            raise OperandError(f"scales must have shape (1, 1), ({rows}, 1) or (1, {columns}), got {self.scales.shape}")
        check_finite(self.scales, "scales")

    @property
    def T(self) -> Fp8Matrix:  # noqa: N802 - as NumPy calls it
        """The transpose; its bits are those of the matrix."""
        return Fp8Matrix(elements=np.ascontiguousarray(self.elements.T), scales=np.ascontiguousarray(self.scales.T))

    def dequantize(self) -> Floats:
        """The values, (R, C), each rounded once to float32."""
        with np.errstate(over="ignore", under="ignore"):
            return self.elements.astype(np.float32) * self.scales


def quantize(
    values: npt.NDArray[Any],
    *,
    format: str | FormatSpec = FORWARD,
    per: str = "tensor",
    recipe: str = "divide",
    scale: npt.NDArray[np.float32] | np.float32 | None = None,
    least_amax: float = 0.0,
) -> Fp8Matrix:
    """A matrix in FP8.

    Rounding of elements is to nearest even with saturation (`cvt.rn.satfinite`); NaN stays NaN, and infinities saturate. Scales
    come from finite values alone. Where all are zero, the scale is 1.

    Args:
        values: (R, C) float32.
        format: `"e4m3"` (activations, weights) or `"e5m2"` (gradients).
        per: `"tensor"`, `"row"` (activations per token) or `"column"` (weights per output channel).
        recipe: one of `scaling.RECIPES`, which say what becomes of magnitudes below the smallest normal float32.
        scale: the dequantizing scale of static scaling, float32 of shape (), (R,) for `per="row"` or (C,) for `per="column"`, positive
            and finite, subnormal if need be; None: dynamic, from `values`.
        least_amax: amax is taken to be at least this: finite, 0 or more.

    Raises:
        OperandTypeError: another dtype.
        OperandError: another shape, format, recipe or granularity; a scale that is no positive finite number, such a `least_amax`.
    """
    given = checked(values, "values", (np.float32,), 2)
    spec, how = fp8_format(format), scale_recipe(recipe)
    if not isinstance(per, str) or per not in GRANULARITIES:
        raise OperandError(f"unknown granularity {per!r}{nearest(str(per), GRANULARITIES)}; known: {', '.join(GRANULARITIES)}")
    if scale is not None:
        scales = _static_scales(scale, per, given.shape)
        return Fp8Matrix(elements=static(given, scales, spec, how), scales=scales)
    amax = np.maximum(finite_amax(given, GRANULARITIES[per]), checked_least_amax(least_amax))
    elements, scales = dynamic(given, amax, spec, how)
    return Fp8Matrix(elements=elements, scales=scales)


def checked_least_amax(least_amax: float) -> np.float32:
    """A floor under largest magnitudes as float32: 0, or positive and finite there.

    Raises:
        OperandError: something else.
    """
    return np.float32(0) if isinstance(least_amax, (int, float, np.floating)) and least_amax == 0 else positive(least_amax, "least_amax")


def _static_scales(scale: npt.NDArray[np.float32] | np.float32, per: str, shape: tuple[int, ...]) -> Floats:
    scales = checked(np.asarray(scale), "scale", (np.float32,))
    wanted = {"tensor": (1, 1), "row": (shape[0], 1), "column": (1, shape[1])}[per]
    if scales.ndim > 1 or scales.size not in (1, wanted[0] * wanted[1]):
        raise OperandError(f"scale for each {per} must have shape () or ({wanted[0] * wanted[1]},), got {scales.shape}")
    check_positive(scales, "scales")
    return np.ascontiguousarray(np.broadcast_to(scales.reshape(wanted if scales.size > 1 else (1, 1)), wanted))


@dataclass(frozen=True, kw_only=True)
class DelayedScaling:
    """Delayed scaling: a tensor is scaled by what its predecessors were like. One state for each tensor of a network.

    A step quantizes with `multiplier`, `element = round(x * multiplier)`, `scale = 1 / multiplier`, and then records the tensor's
    largest finite magnitude and sets, with amax from the history, `multiplier = (max / amax) / 2^margin`, kept within 2^-126 and the
    largest float32. It stays as it is while amax is 0.

    Source: NVIDIA Transformer Engine, recipe DelayedScaling and its kernel delayed_scaling.cu. There an infinity or NaN enters the
    history and holds the scale; here it is left out.
    """

    format: str = FORWARD
    length: int = 1024
    """Tensors that the history covers (`amax_history_len`)."""
    margin: int = 0
    algorithm: str = "max"
    """`"max"` of the history, or `"most_recent"` (`amax_compute_algo`)."""
    multiplier: np.float32 = _ONE
    history: tuple[np.float32, ...] = ()
    """Largest magnitudes, the newest first."""

    def __post_init__(self) -> None:
        """Check."""
        fp8_format(self.format)
        if self.length < 1:
            raise OperandError(f"length must be at least 1, got {self.length}")
        if self.algorithm not in ("max", "most_recent"):
            raise OperandError(f"algorithm must be 'max' or 'most_recent', got {self.algorithm!r}")
        if positive(self.multiplier, "multiplier") < _LEAST_MULTIPLIER:
            raise OperandError(f"multiplier must be at least 2^-126, whose reciprocal is finite, got {self.multiplier}")
        if any(not (np.isfinite(amax) and amax >= 0) for amax in self.history):
            raise OperandError(f"the history must be finite magnitudes, got {self.history}")

    def step(self, values: npt.NDArray[Any]) -> tuple[Fp8Matrix, DelayedScaling]:
        """A tensor quantized, and the state for the next.

        Args:
            values: (R, C) float32.

        Raises:
            OperandTypeError, OperandError: another dtype or shape.
        """
        given, spec = checked(values, "values", (np.float32,), 2), fp8_format(self.format)
        with np.errstate(all="ignore"):
            scale = np.full((1, 1), np.float32(1) / self.multiplier, np.float32)
            codes = encode(given * self.multiplier, spec, satfinite=True)
        return Fp8Matrix(elements=from_codes(codes, spec), scales=scale), self.record(finite_amax(given, None).reshape(-1)[0])

    def record(self, amax: np.float32) -> DelayedScaling:
        """The state after a tensor of that largest magnitude.

        Raises:
            OperandError: it is negative or not finite.
        """
        history = (np.float32(amax), *self.history)[: self.length]
        largest = max(history) if self.algorithm == "max" else history[0]
        multiplier = self.multiplier
        if largest > 0:
            with np.errstate(over="ignore", under="ignore"):
                exact = np.float32(fp8_format(self.format).max_finite) / np.float32(largest)
                wanted = np.ldexp(np.minimum(exact, np.finfo(np.float32).max), -self.margin)
                multiplier = np.float32(np.clip(wanted, _LEAST_MULTIPLIER, np.finfo(np.float32).max))
        return replace(self, multiplier=multiplier, history=history)


def fp8_matmul(a: Fp8Matrix, b: Fp8Matrix, *, arch: str | Dots) -> Floats:
    """A B: `(f32 sum * scale of A) * scale of B`, one chain of FP8 instructions over K.

    cuBLAS without fast accumulation, on Hopper, promotes every 128 elements of K: `arch=Dots(arch="sm_90a", promote_every=128)`.

    Args:
        a: (M, K), scaled per tensor or per row.
        b: (K, N), scaled per tensor or per column.
        arch: architecture, or its FP8 dots.

    Returns:
        (M, N) float32.

    Raises:
        OperandTypeError, OperandError: operands that do not fit, scales along K.
        MmabitsError: as `mmabits.gemm`.
    """
    for operand, name in ((a, "a"), (b, "b")):
        if not isinstance(operand, Fp8Matrix):
            raise OperandError(f"{name} must be an Fp8Matrix, got {type(operand).__name__}; fp8.quantize makes one")
    (m, k), (k_b, n) = a.elements.shape, b.elements.shape
    if k != k_b:
        raise OperandError(f"a has K = {k} and b has K = {k_b}; they must agree")
    if a.scales.shape not in ((1, 1), (m, 1)) or b.scales.shape not in ((1, 1), (1, n)):
        raise OperandError(
            f"scales along K cannot be taken out of the sum: a has scales {a.scales.shape} for {a.elements.shape}, "
            f"b {b.scales.shape} for {b.elements.shape}"
        )
    sums = as_dots(arch)(a.elements, b.elements)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result: Floats = (sums * a.scales) * b.scales
    return result


def linear_gradients(grad: Fp8Matrix, x: Fp8Matrix, w: Fp8Matrix, *, arch: str | Dots) -> tuple[Floats, Floats]:
    """The gradients of x and w from that of y = x w. All three are scaled per tensor, so their transposes are free.

    Args:
        grad: (M, N), e5m2 as a rule.
        x: (M, K).
        w: (K, N).
        arch: architecture, or its FP8 dots.

    Returns:
        (M, K) and (K, N) float32.

    Raises:
        MmabitsError: as `fp8_matmul`.
    """
    return fp8_matmul(grad, w.T, arch=arch), fp8_matmul(x.T, grad, arch=arch)
