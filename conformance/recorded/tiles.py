"""Files of tiles, the format "tile-vectors/1": one safetensors file, and its manifest as JSON inside it and beside it.

| tensor  | dtype                                                            | shape                                   |
|---------|------------------------------------------------------------------|-----------------------------------------|
| a, b    | unsigned, as wide as the container of the type                   | tiles, M, K and tiles, K, N             |
| c, d    | likewise                                                         | tiles, M, N                             |
| scale_a | U8; only where the instruction is block-scaled                   | tiles, M, K / block                     |
| scale_b | likewise                                                         | tiles, K / block, N                     |

K is `chain` times the instruction's. A finished file is never written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np

from mmabits.conformance.record.tiles import TileOperands, check_operands, emulate_tiles
from mmabits.conformance.recorded.base import Codes, Places, RecordedDots
from mmabits.conformance.recorded.files import (
    SCALED_KEYS,
    TYPE_KEYS,
    NotWritten,
    check_codes,
    data_sha256,
    read_codes,
    type_metadata,
    write_new,
)
from mmabits.isa import Instruction, complete
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.reports.failures import one_line
from mmabits.reports.stored import SUFFIX, TensorFile, read_json, read_json_file, whole_number
from mmabits.reports.written import tensor_bytes

FORMAT: Final = "tile-vectors/1"
REQUIRED_KEYS: Final = (
    "format", "kind", "gpu", "arch", "instruction", *TYPE_KEYS, "m", "n", "k", "chain", "tiles", "data_sha256", "manifest"
)  # fmt: skip
_BATCH_RESULTS: Final = 1 << 20
"""Results that are computed at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording(RecordedDots):
    """Tiles of one instruction, what came of them, and how.

    Raises:
        OperandError: operands, result and instruction that do not agree.
        MmabitsError: of another kind: no such instruction or architecture.
    """

    FORMAT: ClassVar[str] = FORMAT
    instruction: Instruction
    arch: str
    kind: str
    """Who computed `d`: `hardware` or `emulator` (a stand-in, proving nothing about hardware)."""
    gpu: str
    chain: int
    """Instructions along K, each taking the result of the one before as C."""
    operands: TileOperands
    d: Codes
    """(tiles, M, N) codes."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the run; JSON."""

    def __post_init__(self) -> None:
        row = self.instruction
        self.hold(row=row, tile=(row.m, row.n), tiles=self.operands.tiles, k_of_result=row.k * self.chain)
        check_operands(row, self.operands, chain=self.chain)
        check_codes("d", self.d, row.d_type, (self.tiles, row.m, row.n))
        object.__setattr__(self, "results", self.d.reshape(-1, row.n))

    def batches(self, arch: str) -> Iterator[Codes]:
        """As the base says."""
        batch = max(1, _BATCH_RESULTS // (self.row.m * self.row.n))
        for start in range(0, self.tiles, batch):
            part = self.operands.part(start, min(start + batch, self.tiles))
            yield emulate_tiles(self.row, arch, part).reshape(-1, self.row.n)

    def gathered(self, places: Places) -> dict[str, Any]:
        """As the base says."""
        below, column = np.asarray(places, dtype=np.intp).T
        tile, inside = np.divmod(below, self.row.m)
        found: dict[str, Any] = {"c": self.operands.c[tile, inside, column], "d": self.d[tile, inside, column]}
        for name in ("a", "scale_a", "b", "scale_b"):
            codes = getattr(self.operands, name)
            at = (tile, inside) if name.endswith("a") else (tile, slice(None), column)
            found[name] = None if codes is None else np.ascontiguousarray(codes[at])
        return found

    @property
    def tensors(self) -> dict[str, Codes]:
        """What the file's tensors hold, by name."""
        return {**{name: codes for name, codes in self.operands.named() if codes is not None}, "d": self.d}

    @property
    def data_sha256(self) -> str:
        """Of the tensors in the order of their names: the name, a zero byte, the little-endian codes row by row."""
        return data_sha256(self.tensors)

    @property
    def metadata(self) -> dict[str, str]:
        """What the file's metadata hold."""
        row = self.instruction
        return {
            "format": FORMAT, "kind": self.kind, "gpu": self.gpu, "arch": self.arch, "instruction": row.ptx,
            **type_metadata({name: getattr(row, name) for name in TYPE_KEYS}, row.scale_type, row.block),
            "m": str(row.m), "n": str(row.n), "k": str(row.k * self.chain), "chain": str(self.chain), "tiles": str(self.operands.tiles),
            "data_sha256": self.data_sha256, "manifest": json.dumps(self.manifest, sort_keys=True),
        }  # fmt: skip

    @classmethod
    def of_file(cls, file: TensorFile, path: Path) -> Self:
        """As the base says; also against the manifest beside the file."""
        metadata, formats, tensors = read_codes(file, FORMAT, REQUIRED_KEYS)
        d, chain = tensors.pop("d"), whole_number(metadata, "chain")
        manifest = read_json(metadata["manifest"], "metadata key 'manifest'")
        found = cls(
            instruction=_instruction(metadata, formats, chain), arch=metadata["arch"], kind=metadata["kind"], gpu=metadata["gpu"],
            chain=chain, operands=TileOperands(**tensors), d=d, manifest=manifest if isinstance(manifest, dict) else {},
        )  # fmt: skip
        wanted = found.metadata
        given = {**metadata, "arch": found.arch, **{name: spec.name for name, spec in formats.items()}}
        for key in (*REQUIRED_KEYS, *(SCALED_KEYS if found.row.scale_type is not None else ())):
            if key not in ("manifest", "instruction") and given.get(key) != wanted[key]:
                raise OperandError(f"metadata key {key!r} is {given.get(key, 'missing')!r}, but the data say {wanted[key]!r}")
        _check_against_manifest(path)
        return found


def manifest_path(path: Path) -> Path:
    """Where the manifest of a recording lies."""
    return path.with_name(f"{path.name}.json")


# Reading -------------------------------------------------------------------------------------------------------------

read_recording: Final = Recording.read


def _instruction(metadata: Mapping[str, str], formats: Mapping[str, Any], chain: int) -> Instruction:
    sizes = {key: whole_number(metadata, key) for key in ("m", "n", "k")}
    return complete(
        metadata["instruction"], arch=metadata["arch"], m=sizes["m"], n=sizes["n"], k=sizes["k"] // chain,
        block=whole_number(metadata, "block_size") if "block_size" in metadata else None, **formats,
    )  # fmt: skip


def _check_against_manifest(path: Path) -> None:
    beside = manifest_path(path)
    if not beside.exists():
        return
    manifest = read_json_file(beside, f"its manifest {beside.name}")
    wanted = manifest.get("file_sha256") if isinstance(manifest, dict) else None
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if wanted != found:
        raise OperandError(f"its sha256 is {found}, but its manifest {beside.name} says {wanted}")


# Writing -------------------------------------------------------------------------------------------------------------


def write_recording(path: str | os.PathLike[str], recording: Recording) -> None:
    """Write a recording and then its manifest, each whole or not at all; neither replaces anything.

    Raises:
        VectorFileError: a file of that name is there already.
        NotWritten: it cannot be written (a full disk); then nothing is left of it.
    """
    target = Path(path)
    data = tensor_bytes(recording.tensors, recording.metadata)
    write_new(target, data)
    write_manifest(target, recording, data)


def write_manifest(path: Path, recording: Recording, data: bytes | None = None) -> None:
    """Write the manifest of a finished recording beside it.

    Args:
        path: the recording.
        recording: what it holds.
        data: its bytes; read from the file if None.

    Raises:
        VectorFileError: there is a manifest already, or (`NotWritten`) it cannot be written.
    """
    try:
        written = path.read_bytes() if data is None else data
    except OSError as error:
        raise VectorFileError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    known = {key: text for key, text in recording.metadata.items() if key != "manifest"}
    manifest = {**known, **recording.manifest, "file": path.name, "file_sha256": hashlib.sha256(written).hexdigest()}
    write_new(manifest_path(path), json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")


__all__ = [
    "FORMAT", "REQUIRED_KEYS", "SUFFIX", "NotWritten", "Recording", "manifest_path", "read_recording",
    "write_manifest", "write_recording",
]  # fmt: skip
