"""Files of kernel runs, the format "ptx-run/1": PTX, arguments, grid, and the memory before and after. Nobody needs Triton to run them.

A parameter is its bytes, a place in one of the buffers, or a tensor map of one. What a GPU or the emulator left in the buffers is kept
whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mmabits.conformance.recorded.files import read_arrays, write_arrays
from mmabits.emulator.machine.tensormaps import TensorMap
from mmabits.isa import OperandError
from mmabits.reports.stored import open_tensors

FORMAT: Final = "ptx-run/1"
_TEXTS: Final = ("kernel", "arch", "gpu", "kind", "recorded", "driver")
_ADDRESS: Final = TensorMap._fields.index("address")
_MOST_BUFFERS: Final = 64
_MOST_CTAS: Final = 1 << 31

Bytes = npt.NDArray[np.uint8]


class RunTensor(NamedTuple):
    """An argument that is a tensor: where its elements lie in a buffer."""

    name: str
    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    size: int
    """Bytes of an element."""
    form: str
    """`f16`; empty where the format has no PTX name."""


class Parameter(NamedTuple):
    """One parameter of the kernel."""

    data: str
    """Its bytes, as hexadecimal digits; of a map those of the record with the offset in the buffer for an address."""
    buffer: int = -1
    """The buffer that it points into; -1 of none."""
    offset: int = 0
    is_map: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PtxRun:
    """A launch of a kernel."""

    ptx: str
    kernel: str
    """Its name in the PTX."""
    arch: str
    grid: tuple[int, int, int]
    """CTAs."""
    block: tuple[int, int, int]
    """Threads of a CTA."""
    cluster: tuple[int, int, int]
    shared: int
    """Bytes of dynamic shared memory."""
    contracts: bool
    """Whether ptxas fuses products and sums."""
    parameters: tuple[Parameter, ...]
    before: tuple[Bytes, ...]
    """The buffers before the launch,"""
    after: tuple[Bytes, ...]
    """and after it."""
    tensors: tuple[RunTensor, ...] = ()
    gpu: str = ""
    kind: str = "emulator"
    """What left `after`: `hardware` or `emulator`."""
    recorded: str = ""
    driver: str = ""
    source: str = field(default="", compare=False)

    @property
    def hash(self) -> str:
        """Of the PTX."""
        return hashlib.sha256(self.ptx.encode()).hexdigest()

    def arguments(self, addresses: Sequence[int]) -> list[bytes]:
        """The parameters, with the buffers at these addresses."""
        found = []
        for each in self.parameters:
            data = bytes.fromhex(each.data)
            if each.is_map:
                record = np.frombuffer(data, np.int64).copy()
                record[_ADDRESS] += addresses[each.buffer]
                data = record.tobytes()
            elif each.buffer != -1:
                data = (addresses[each.buffer] + each.offset).to_bytes(8, "little")
            found.append(data)
        return found

    @property
    def name(self) -> str:
        """For messages: kernel, architecture, and the beginning of the hash."""
        return f"{self.kernel} on {self.arch} ({self.hash[:12]})"


def write_run(path: Path, run: PtxRun) -> None:
    """Write a file, whole or not at all; nothing is replaced.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    arrays: dict[str, Any] = {"ptx": np.frombuffer(run.ptx.encode(), np.uint8)}
    for place, (before, after) in enumerate(zip(run.before, run.after, strict=True)):
        arrays[f"before{place}"] = before
        if not np.array_equal(before, after):
            arrays[f"after{place}"] = after
    launch = {
        "grid": run.grid, "block": run.block, "cluster": run.cluster, "shared": run.shared, "contracts": run.contracts, "ptx": run.hash,
        "parameters": run.parameters, "tensors": run.tensors, "buffers": len(run.before),
    }  # fmt: skip
    arrays["launch"] = np.frombuffer(json.dumps(launch).encode(), np.uint8)
    write_arrays(path, FORMAT, {name: getattr(run, name) for name in _TEXTS}, arrays)


def read_run(path: Path) -> PtxRun:
    """Read a file.

    Raises:
        VectorFileError: it is missing, damaged, or contradicts itself.
    """
    with open_tensors(path) as file:
        texts, arrays = read_arrays(file, FORMAT, _TEXTS, ())
        if "launch" not in arrays or arrays["launch"].dtype != np.uint8:
            raise OperandError("there is no launch in it")
        launch = _launch(arrays["launch"].tobytes())
        count = launch.pop("buffers")
        wanted = {"launch", "ptx", *(f"before{place}" for place in range(count))}
        more = {f"after{place}" for place in range(count)}
        if not wanted <= set(arrays) <= wanted | more or any(each.dtype != np.uint8 or each.ndim != 1 for each in arrays.values()):
            raise OperandError(f"tensors are {', '.join(sorted(arrays))}; wanted are rows of bytes: {', '.join(sorted(wanted))}")
        before = tuple(arrays[f"before{place}"] for place in range(count))
        after = tuple(arrays.get(f"after{place}", before[place]) for place in range(count))
        if any(len(one) != len(other) for one, other in zip(before, after, strict=True)):
            raise OperandError("a buffer has another size after the launch than before it")
        try:
            ptx = arrays["ptx"].tobytes().decode()
        except UnicodeDecodeError as error:
            raise OperandError("the PTX is no text") from error
        digest = launch.pop("ptx")
        found = PtxRun(**texts, **launch, ptx=ptx, before=before, after=after, source=str(path))
        if digest != found.hash:
            raise OperandError("the PTX is not the one whose hash the manifest has")
        _check(found)
        return found


def _launch(text: bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
        found = {
            "grid": _three(said["grid"]), "block": _three(said["block"]), "cluster": _three(said["cluster"]),
            "shared": _number(said["shared"], 1 << 20), "contracts": bool(said["contracts"]), "ptx": str(said["ptx"]),
            "buffers": _number(said["buffers"], _MOST_BUFFERS),
            "parameters": tuple(Parameter(str(a), int(b), int(c), bool(d)) for a, b, c, d in said["parameters"]),
            "tensors": tuple(
                RunTensor(str(name), int(buffer), int(offset), _numbers(shape), _numbers(strides), _number(size, 16), str(form))
                for name, buffer, offset, shape, strides, size, form in said["tensors"]
            ),
        }  # fmt: skip
        for data, *_ in said["parameters"]:
            bytes.fromhex(data)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise OperandError(f"the launch is not understood ({error!r:.60})") from error
    return found


def _number(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{value!r:.40} is no number up to {most}")
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(_number(each, 1 << 48) for each in values)


def _three(values: Any) -> tuple[int, int, int]:
    x, y, z = (_number(each, _MOST_CTAS) for each in values)
    return x, y, z


def _check(run: PtxRun) -> None:
    sizes = [len(each) for each in run.before]
    places: Sequence[tuple[int, int]] = [(each.buffer, each.offset) for each in run.parameters if each.buffer != -1]
    places = [*places, *((each.buffer, each.offset) for each in run.tensors)]
    if any(not 0 <= buffer < len(sizes) or not 0 <= offset <= sizes[buffer] for buffer, offset in places):
        raise OperandError("a parameter or tensor lies outside the buffers")
    if 0 in run.block or 0 in run.cluster:
        raise OperandError("a launch without threads")


__all__ = ["FORMAT", "PtxRun", "Parameter", "RunTensor", "read_run", "write_run"]
