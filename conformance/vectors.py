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

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from mmabits.isa import Instruction, architecture, complete, format_spec, parse
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.isa.formats import FormatSpec
from mmabits.reports.failures import one_line
from mmabits.reports.stored import open_tensors, whole_number

Codes = npt.NDArray[Any]

FORMAT: Final = "dot-vectors/1"
SUFFIX: Final = ".safetensors"
KINDS: Final = ("hardware", "peer", "computed")
REQUIRED_KEYS: Final = (
    "format", "kind", "gpu", "arch", "instruction", "a_type", "b_type", "c_type", "d_type", "k", "note", "source", "license"
)  # fmt: skip
SCALED_KEYS: Final = ("scale_type", "block_size")
_TENSORS: Final = ("a", "b", "c", "d")
_SCALES: Final = ("scale_a", "scale_b")


@dataclass(frozen=True, kw_only=True, eq=False)
class DotVectors:
    """n dot products of one instruction, as codes, and where they come from.

    Raises:
        OperandError: arrays, types and instruction that do not agree; the message says which.
        MmabitsError: of another kind: no such instruction, architecture or format.
    """

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
        object.__setattr__(self, "arch", architecture(self.arch).name)
        if self.kind not in KINDS:
            raise OperandError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        _check_against_instruction(self, parse(self.instruction))
        for name, codes, spec, shape in self._layout():
            _check_codes(name, codes, spec, shape)

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

    @property
    def metadata(self) -> dict[str, str]:
        """What the file's metadata hold, in sorted order."""
        known = {
            "format": FORMAT, "kind": self.kind, "gpu": self.gpu, "arch": self.arch, "instruction": self.instruction,
            "a_type": self.a_type.name, "b_type": self.b_type.name, "c_type": self.c_type.name, "d_type": self.d_type.name,
            "k": str(self.k), "note": self.note, "source": self.source, "license": self.license,
        }  # fmt: skip
        if self.scale_type is not None:
            known |= {"scale_type": self.scale_type.name, "block_size": str(self.block)}
        return dict(sorted({**self.extra, **known}.items()))

    @property
    def tensors(self) -> dict[str, Codes]:
        """What the file's tensors hold, by name."""
        return {name: codes for name, codes, _, _ in self._layout() if codes is not None}


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


def _check_codes(name: str, codes: Codes | None, spec: FormatSpec, shape: tuple[int, ...]) -> None:
    if codes is None:
        raise OperandError(f"tensor {name!r} is missing")
    if codes.dtype.kind != "u" or codes.dtype.itemsize * 8 != spec.container_bits:
        raise OperandError(f"tensor {name!r} is {codes.dtype}; {spec.name} needs uint{spec.container_bits}")
    if codes.shape != shape or not codes.size:
        raise OperandError(f"tensor {name!r} has shape {codes.shape}; allowed is {shape}, with at least one row")
    if int(codes.max()) >= spec.codes:
        raise OperandError(f"tensor {name!r} holds {int(codes.max()):#x}; {spec.name} has codes up to {spec.codes - 1:#x}")


# Reading -------------------------------------------------------------------------------------------------------------


def read_vectors(path: str | os.PathLike[str]) -> DotVectors:
    """Read and check one file.

    A spelling without types and shape, as PTX's own of tcgen05.mma, is completed by the rest of the metadata.

    Raises:
        VectorFileError: the file is missing, damaged, incomplete or contradicts itself; one line that names the file.
    """
    with open_tensors(path) as file:
        metadata = _checked_metadata(file.metadata)
        return _from_parts(metadata, {name: file.tensor(name) for name in _tensor_names(file.names, metadata)})


def _checked_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    given = metadata or {}
    if given.get("format") != FORMAT:
        arrived = repr(given["format"]) if "format" in given else "missing"
        raise OperandError(f"metadata key 'format' is {arrived}; allowed: {FORMAT!r}")
    scaled = SCALED_KEYS if any(key in given for key in SCALED_KEYS) else ()
    missing = [key for key in (*REQUIRED_KEYS, *scaled) if key not in given]
    if missing:
        raise OperandError(f"metadata key {', '.join(map(repr, missing))} missing; {FORMAT} needs {', '.join((*REQUIRED_KEYS, *scaled))}")
    return given


def _tensor_names(found: list[str], metadata: dict[str, str]) -> tuple[str, ...]:
    wanted = _TENSORS + (_SCALES if "scale_type" in metadata else ())
    if set(found) != set(wanted):
        raise OperandError(f"tensors are {', '.join(sorted(found)) or 'none'}; allowed: exactly {', '.join(wanted)}")
    return wanted


def _from_parts(metadata: dict[str, str], tensors: dict[str, Any]) -> DotVectors:
    scaled = "scale_type" in metadata
    types: dict[str, Any] = {name: format_spec(metadata[name]) for name in ("a_type", "b_type", "c_type", "d_type")}
    scale = format_spec(metadata["scale_type"], scale=True) if scaled else None
    k, block = whole_number(metadata, "k"), whole_number(metadata, "block_size") if scaled else None
    instruction = complete(metadata["instruction"], arch=metadata["arch"], k=k, block=block, scale_type=scale, **types)
    return DotVectors(
        instruction=instruction.ptx,
        arch=metadata["arch"],
        **types,
        k=k,
        scale_type=scale,
        block=block,
        kind=metadata["kind"],
        gpu=metadata["gpu"],
        note=metadata["note"],
        source=metadata["source"],
        license=metadata["license"],
        extra={key: text for key, text in metadata.items() if key not in (*REQUIRED_KEYS, *SCALED_KEYS)},
        **tensors,
    )


# Writing -------------------------------------------------------------------------------------------------------------


def write_vectors(path: str | os.PathLike[str], vectors: DotVectors) -> None:
    """Write one file, whole or not at all; the same vectors always give the same bytes.

    Raises:
        VectorFileError: the file cannot be written; what was at `path` before is still there.
    """
    try:
        _replace(Path(path), _serialize(vectors))
    except OSError as error:
        raise VectorFileError(f"{os.fspath(path)}: cannot be written ({error.strerror or one_line(error)})") from error


def _serialize(vectors: DotVectors) -> list[bytes]:
    """Header and data of a safetensors file. The library's own writer leaves the order of metadata to chance."""
    # The layout wants the widest elements first, so that every tensor starts aligned.
    ordered = sorted(vectors.tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": vectors.metadata}
    data: list[bytes] = []
    start = 0
    for name, codes in ordered:
        data.append(codes.astype(codes.dtype.newbyteorder("<"), order="C").tobytes())
        header[name] = {"dtype": f"U{codes.dtype.itemsize * 8}", "shape": list(codes.shape), "data_offsets": [start, start + len(data[-1])]}
        start += len(data[-1])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *data]


def _replace(path: Path, parts: list[bytes]) -> None:
    """Write beside the target, flush to disk, rename over it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
