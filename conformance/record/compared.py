"""Products that the library was asked about, run and compared: `mmabits record --choices ... --compare`.

The library multiplies on the GPU, a sample of rows and columns is computed here by the schedule of its answer, and the bits are compared.
Where they differ, the other candidates are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.conformance.record.driver import CudaDevice
from mmabits.emulator.api import by_schedule
from mmabits.emulator.schedules import Chains, NoSchedule, Schedule, choice
from mmabits.isa import OperandError

if TYPE_CHECKING:
    from mmabits.conformance.record.choices import ShapeQuestion

Array = npt.NDArray[Any]

DTYPES: Final = {
    "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn), "e5m2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
_SAMPLE: Final = (16, 64)
"""Rows and columns, at most."""
_VALUES: Final = 1_000_003
"""Values that are drawn; a larger operand repeats them, and no row of usual length begins with the same."""


class ProductMemory(Protocol):
    """Where the library's operands and results lie."""

    def put(self, data: Array) -> int:
        """The address of a copy."""

    def take(self, address: int, data: Array) -> None:
        """Read into an array, once everything is done."""

    def free(self, address: int) -> None:
        """Give it back."""


class GpuMemory:
    """Memory of a GPU."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device

    def put(self, data: Array) -> int:
        """The address of a copy."""
        held = np.ascontiguousarray(data)
        address = int(self._device.call("cuMemAlloc", max(1, held.nbytes)))
        if held.nbytes:
            self._device.call("cuMemcpyHtoD", address, held.ctypes.data, held.nbytes)
        return address

    def take(self, address: int, data: Array) -> None:
        """Read into an array, once everything is done."""
        self._device.call("cuCtxSynchronize")
        self._device.call("cuMemcpyDtoH", data.ctypes.data, address, data.nbytes)

    def free(self, address: int) -> None:
        """Give it back."""
        self._device.free(address)


class HostMemory:
    """Memory of this process, for rehearsals."""

    def __init__(self) -> None:
        self._held: dict[int, Array] = {}

    def put(self, data: Array) -> int:
        """The address of a copy."""
        held = np.array(data, order="C")
        self._held[held.ctypes.data] = held
        return int(held.ctypes.data)

    def take(self, address: int, data: Array) -> None:
        """Read into an array."""
        data[...] = self._held[address]

    def free(self, address: int) -> None:
        """Give it back."""
        del self._held[address]


@dataclass(frozen=True, kw_only=True)
class ComparedProduct:
    """A product of the library beside the schedule of its answer."""

    results: int
    """Of the sample."""
    differ: int | None
    """Those whose bits differ from the schedule's; None: there is no schedule for the answer."""
    first: str = ""
    """The first that differs."""
    fits: tuple[str, ...] = ()
    """Where some differ: candidates that have the library's bits."""

    @property
    def is_equal(self) -> bool:
        """Whether the schedule gives the library's bits."""
        return self.differ == 0

    @property
    def row(self) -> dict[str, Any]:
        """For the file."""
        more = {"first": self.first, "fits": list(self.fits)} if not self.is_equal else {}
        return {"results": self.results, "differ": self.differ, **more}

    @property
    def words(self) -> str:
        """In words."""
        if self.is_equal:
            return f"{self.results} results as the schedule says"
        found = f"{self.differ} of {self.results} results differ: {self.first}"
        if self.differ is None:
            found = "no schedule is known for the answer"
        return f"{found}; " + (f"as {' or '.join(self.fits)} would" if self.fits else "no other candidate fits")


def operands(asked: ShapeQuestion, seed: int = 0) -> tuple[Array, Array]:
    """A and B of normal values, (M, K) and (K, N)."""
    rng = np.random.default_rng([seed, asked.m, asked.n, asked.k])
    found = []
    for form, shape in ((asked.types[0], (asked.m, asked.k)), (asked.types[1], (asked.k, asked.n))):
        size = shape[0] * shape[1]
        values = rng.standard_normal(min(size, _VALUES)).astype(np.float32) * np.float32(8 if form[0] == "e" else 1)
        found.append(np.resize(values.astype(DTYPES[form]), size).reshape(shape))
    return found[0], found[1]


def compare_product(
    asked: ShapeQuestion, config: tuple[int, ...], multiply: Callable[[Array, Array], Array], *, arch: str, library: str, workspace: int
) -> ComparedProduct:
    """Compare a product of the library with the schedule of its answer, on a sample.

    Args:
        asked: the product.
        config: the answer, nine attributes.
        multiply: (M, K) by (K, N) by the library, D in its type.
        arch: of the GPU.
        library: `"cublaslt-13.1"`.
        workspace: bytes that the library had.

    Raises:
        OperandError: what multiplies gives a result of another shape or type.
    """
    a, b = operands(asked)
    d = multiply(a, b)
    if d.shape != (asked.m, asked.n) or d.dtype != DTYPES[asked.types[2]]:
        raise OperandError(f"D must have shape {(asked.m, asked.n)} of {asked.types[2]}, got {d.shape} of {d.dtype}")
    rows, columns = (
        np.unique(np.linspace(0, size - 1, min(size, most)).astype(int)) for size, most in ((asked.m, _SAMPLE[0]), (asked.n, _SAMPLE[1]))
    )
    left, right = np.ascontiguousarray(a[rows]), np.ascontiguousarray(b[:, columns])
    got = _bits(d[np.ix_(rows, columns)])

    def by(schedule: Schedule) -> Array:
        # A schedule that loses the tail of K is the library's with its bug.
        return _bits(by_schedule(left, right, replace(schedule, planned=None), arch=arch, bugs=True))

    try:
        found = by(planned(asked, config, arch))
    except NoSchedule:
        found = None
    else:
        where = np.argwhere(found != got)
        if not len(where):
            return ComparedProduct(results=got.size, differ=0)
    known = choice(
        asked.m, asked.n, asked.k, asked.types, arch=arch, library=library, workspace=workspace, fast_accum=asked.fast_accum
    )  # fmt: skip
    fits = tuple(each.why for each in known.candidates if np.array_equal(by(each.schedule), got))
    if found is None:
        return ComparedProduct(results=got.size, differ=None, fits=fits)
    i, j = where[0]
    wide = 2 * got.dtype.itemsize
    first = f"D[{rows[i]}, {columns[j]}] is 0x{got[i, j]:0{wide}X}, by the schedule 0x{found[i, j]:0{wide}X}"
    return ComparedProduct(results=got.size, differ=len(where), first=first, fits=fits)


def planned(asked: ShapeQuestion, config: tuple[int, ...], arch: str) -> Schedule:
    """The schedule of an answer.

    Raises:
        NoSchedule: it has none.
    """
    found = Schedule.cublaslt(config, asked.m, asked.n, asked.k, asked.types, arch=arch)
    if asked.fast_accum and isinstance(found.sums, Chains):  # nothing is promoted then
        found = replace(found, sums=replace(found.sums, promote_every=None))
    return found


def _bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize])
