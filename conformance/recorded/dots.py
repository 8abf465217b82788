"""Files of dot products, the format "dot-vectors/1": one safetensors file an instruction and GPU.

Row i is one dot product: `d[i]` is what the instruction computed of `c[i]` and the sum over k of `a[i, k] * b[i, k]`.

| tensor           | dtype                                                                   | shape         |
|------------------|-------------------------------------------------------------------------|---------------|
| a, b             | unsigned, as wide as the container of the type (sub-byte codes in a U8) | n, k          |
| c, d             | unsigned, as wide as the container of the type                          | n             |
| scale_a, scale_b | U8; only where the instruction is block-scaled                          | n, k / block  |

The metadata are strings: see `REQUIRED_KEYS`; `scale_type` and `block_size` where scaled; any others are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np

from mmabits.conformance.recorded.base import Codes, Places, Provenance, RecordedDots
from mmabits.conformance.recorded.files import SCALED_KEYS, TYPE_KEYS, check_codes, read_codes, type_metadata
from mmabits.emulator.api import dot_rows
from mmabits.isa import Instruction, complete, parse
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.isa.formats import FormatSpec
from mmabits.reports.failures import one_line
from mmabits.reports.stored import SUFFIX, TensorFile, whole_number
from mmabits.reports.written import tensor_bytes, written_whole

FORMAT: Final = "dot-vectors/1"
KINDS: Final = (Provenance.HARDWARE, Provenance.PEER, Provenance.COMPUTED)
REQUIRED_KEYS: Final = ("format", "kind", "gpu", "arch", "instruction", *TYPE_KEYS, "k", "note", "source", "license")
_BATCH: Final = 1 << 16
"""Rows that are computed at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DotVectors(RecordedDots):
    """n dot products of one instruction, as codes, and where they come from.

    Raises:
        OperandError: arrays, types and instruction that do not agree; the message says which.
        MmabitsError: of another kind: no such instruction, architecture or format.
    """

    FORMAT: ClassVar[str] = FORMAT
    KINDS: ClassVar[tuple[Provenance, ...]] = KINDS

    instruction: str
    """PTX, in full."""
    arch: str
    """That of a GPU, where its name is given."""
    a_type: FormatSpec
    b_type: FormatSpec
    c_type: FormatSpec
    d_type: FormatSpec
    k: int
    """Products in a row; those that the instruction has beyond it are zero."""
    a: Codes
    b: Codes
    c: Codes
    d: Codes
    scale_type: FormatSpec | None = None
    block: int | None = None
    """Elements that share a scale."""
    scale_a: Codes | None = None
    scale_b: Codes | None = None
    kind: str = "hardware"
    """Who computed `d`: `hardware` or `peer` (another emulator)."""
    gpu: str = ""
    note: str = ""
    source: str = ""
    license: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    """Metadata under further keys."""

    def __post_init__(self) -> None:
        self.hold(row=parse(self.instruction), tile=(1, 1), tiles=0, k_of_result=self.k)
        _check_against_instruction(self, self.row)
        for name, codes, spec, shape in self._layout():
            check_codes(name, codes, spec, shape, unit="row")
        object.__setattr__(self, "results", self.d[:, None])

    def _layout(self) -> Iterator[tuple[str, Codes | None, FormatSpec, tuple[int, ...]]]:
        """Each tensor with its format and the shape it must have."""
        rows = len(self.a) if self.a.ndim else 0
        yield "a", self.a, self.a_type, (rows, self.k)
        yield "b", self.b, self.b_type, (rows, self.k)
        yield "c", self.c, self.c_type, (rows,)
        yield "d", self.d, self.d_type, (rows,)
        if self.scale_type is not None and self.block is not None:
            yield "scale_a", self.scale_a, self.scale_type, (rows, self.k // self.block)
            yield "scale_b", self.scale_b, self.scale_type, (rows, self.k // self.block)
        elif self.scale_a is not None or self.scale_b is not None:
            raise OperandError(f"scales are there, but {self.instruction} has none")

    @property
    def rows(self) -> int:
        """How many dot products there are."""
        return len(self.a)

    def batches(self, arch: str) -> Iterator[Codes]:
        """As the base says."""
        for start in range(0, self.rows, _BATCH):
            one = self._rows(slice(start, start + _BATCH))
            yield dot_rows(self.row, arch, one["a"], one["b"], one["c"], scale_a=one["scale_a"], scale_b=one["scale_b"])[:, None]

    def gathered(self, places: Places) -> dict[str, Any]:
        """As the base says."""
        return self._rows(np.asarray(places, dtype=np.intp)[:, 0])

    def _rows(self, rows: Any) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("a", "b", "c", "d", "scale_a", "scale_b")}
        return {name: None if codes is None else codes[rows] for name, codes in arrays.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """What the file's metadata hold, in sorted order."""
        types = {name: getattr(self, name) for name in TYPE_KEYS}
        known = {
            "format": FORMAT, "kind": self.kind, "gpu": self.gpu, "arch": self.arch, "instruction": self.instruction,
            **type_metadata(types, self.scale_type, self.block), "k": str(self.k), "note": self.note, "source": self.source,
            "license": self.license,
        }  # fmt: skip
        return dict(sorted({**self.extra, **known}.items()))

    @property
    def tensors(self) -> dict[str, Codes]:
        """What the file's tensors hold, by name."""
        return {name: codes for name, codes, _, _ in self._layout() if codes is not None}

    @classmethod
    def of_file(cls, file: TensorFile, path: Path) -> Self:
        """As the base says."""
        metadata, formats, tensors = read_codes(file, FORMAT, REQUIRED_KEYS)
        scale, k = formats.pop("scale_type", None), whole_number(metadata, "k")
        block = None if scale is None else whole_number(metadata, "block_size")
        given: dict[str, Any] = formats
        instruction = complete(metadata["instruction"], arch=metadata["arch"], k=k, block=block, scale_type=scale, **given)
        return cls(
            instruction=instruction.ptx, k=k, scale_type=scale, block=block, **given, **tensors,
            **{key: metadata[key] for key in ("arch", "kind", "gpu", "note", "source", "license")},
            extra={key: text for key, text in metadata.items() if key not in (*REQUIRED_KEYS, *SCALED_KEYS)},
        )  # fmt: skip


def _check_against_instruction(vectors: DotVectors, instruction: Instruction) -> None:
    for name in ("a_type", "b_type", "c_type", "d_type", "scale_type", "block"):
        arrived, wanted = getattr(vectors, name), getattr(instruction, name)
        if arrived != wanted:
            raise OperandError(f"{name} is {_name(arrived)}, but {instruction} has {_name(wanted)}")
    if not 1 <= vectors.k <= instruction.k:
        raise OperandError(f"k is {vectors.k}; allowed with {instruction}: 1 to {instruction.k}")
    if vectors.block is not None and vectors.k % vectors.block:
        raise OperandError(f"k is {vectors.k}; allowed with block scales: multiples of {vectors.block}")


def _name(value: FormatSpec | int | None) -> str:
    if value is None:
        return "none"
    return value.name if isinstance(value, FormatSpec) else str(value)


def dots_of(recorded: RecordedDots, places: Places) -> DotVectors:
    """Some results, not of chains, as dot products."""
    row, kind = recorded.row, Provenance.PEER if recorded.kind == Provenance.EMULATOR else recorded.kind  # whatever emulates is a peer here
    types: dict[str, Any] = {name: getattr(row, name) for name in (*TYPE_KEYS, "scale_type", "block")}
    return DotVectors(
        instruction=row.ptx, arch=recorded.arch, **types, k=recorded.k_of_result, kind=kind, gpu=recorded.gpu, **recorded.gathered(places)
    )


read_vectors: Final = DotVectors.read


def write_vectors(path: str | os.PathLike[str], vectors: DotVectors) -> None:
    """Write one file, whole or not at all; the same vectors always give the same bytes.

    Raises:
        VectorFileError: the file cannot be written; what was at `path` before is still there.
    """
    try:
        with written_whole(Path(path)) as unfinished:
            unfinished.write_bytes(tensor_bytes(vectors.tensors, vectors.metadata))
    except OSError as error:
        raise VectorFileError(f"{os.fspath(path)}: cannot be written ({error.strerror or one_line(error)})") from error


__all__ = ["FORMAT", "KINDS", "REQUIRED_KEYS", "SCALED_KEYS", "SUFFIX", "DotVectors", "dots_of", "read_vectors", "write_vectors"]
