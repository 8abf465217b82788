"""What GPU kernels store of a result. Hooks convert with their framework's own operations, and mend what those do otherwise."""

from __future__ import annotations

from typing import Final

from mmabits.emulator.codecs import canonical_nan
from mmabits.isa import DATAPATHS, format_spec

SATURATING: Final = ("e4m3", "e5m2")
"""Types to which conversions saturate, infinities too, as `cvt.rn.satfinite`."""
STORED_NANS: Final = {
    **{name: canonical_nan(format_spec(name)) for name in ("f32", "f16", "bf16", *SATURATING)},
    "f64": DATAPATHS["sm_80.dmma.f64.f64"].result_nan,
}
"""Code of the NaN that is stored; frameworks on a CPU keep an operand's bits, or set them all."""
