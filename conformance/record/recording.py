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
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from mmabits.conformance.record.device import EMULATOR, HARDWARE
from mmabits.conformance.record.tiles import TileOperands, check_codes, check_operands
from mmabits.isa import Instruction, architecture, complete, format_spec
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.reports.failures import one_line
from mmabits.reports.stored import format_of, open_tensors, read_json, read_json_file, whole_number

Codes = npt.NDArray[Any]

FORMAT: Final = "tile-vectors/1"
SUFFIX: Final = ".safetensors"
KINDS: Final = (HARDWARE, EMULATOR)
REQUIRED_KEYS: Final = (
    "format", "kind", "gpu", "arch", "instruction", "a_type", "b_type", "c_type", "d_type", "m", "n", "k", "chain", "tiles", "data_sha256",
    "manifest",
)  # fmt: skip
SCALED_KEYS: Final = ("scale_type", "block_size")
_TENSORS: Final = ("a", "b", "c", "d")
_SCALES: Final = ("scale_a", "scale_b")
_TYPES: Final = ("a_type", "b_type", "c_type", "d_type")


class NotWritten(VectorFileError):
    """A file could not be written: a full disk, a folder without permission. The next one would fare no better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recording:
    """Tiles of one instruction, what came of them, and how.

    Raises:
        OperandError: operands, result and instruction that do not agree.
        MmabitsError: of another kind: no such instruction or architecture.
    """

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
        object.__setattr__(self, "arch", architecture(self.arch).name)
        if self.kind not in KINDS:
            raise OperandError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        check_operands(self.instruction, self.operands, chain=self.chain)
        check_codes("d", self.d, self.instruction.d_type, (self.operands.tiles, self.instruction.m, self.instruction.n))

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
        known = {
            "format": FORMAT, "kind": self.kind, "gpu": self.gpu, "arch": self.arch, "instruction": row.ptx,
            "a_type": row.a_type.name, "b_type": row.b_type.name, "c_type": row.c_type.name, "d_type": row.d_type.name,
            "m": str(row.m), "n": str(row.n), "k": str(row.k * self.chain), "chain": str(self.chain), "tiles": str(self.operands.tiles),
            "data_sha256": self.data_sha256, "manifest": json.dumps(self.manifest, sort_keys=True),
        }  # fmt: skip
        if row.scale_type is not None:
            known |= {"scale_type": row.scale_type.name, "block_size": str(row.block)}
        return known


def data_sha256(tensors: Mapping[str, Codes]) -> str:
    """See `Recording.data_sha256`."""
    digest = hashlib.sha256()
    for name, codes in sorted(tensors.items()):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(codes, dtype=codes.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def manifest_path(path: Path) -> Path:
    """Where the manifest of a recording lies."""
    return path.with_name(f"{path.name}.json")


def is_recording(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is of this format. A file that cannot be read is not."""
    return format_of(path) == FORMAT


# Reading -------------------------------------------------------------------------------------------------------------


def read_recording(path: str | os.PathLike[str]) -> Recording:
    """Read and check one file, against its own checksum and, where it lies beside it, its manifest.

    A spelling without types and shape, as PTX's own of tcgen05.mma, is completed by the rest of the metadata.

    Raises:
        VectorFileError: the file is missing, damaged, incomplete or contradicts itself or its manifest; one line that names it.
    """
    with open_tensors(path) as file:
        metadata = _checked_metadata(file.metadata)
        tensors = {name: file.tensor(name) for name in _tensor_names(file.names, metadata)}
        recording = _from_parts(metadata, tensors)
        _check_against_manifest(Path(path))
        return recording


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


def _tensor_names(found: list[str], metadata: Mapping[str, str]) -> tuple[str, ...]:
    wanted = _TENSORS + (_SCALES if "scale_type" in metadata else ())
    if set(found) != set(wanted):
        raise OperandError(f"tensors are {', '.join(sorted(found)) or 'none'}; allowed: exactly {', '.join(wanted)}")
    return wanted


def _instruction(metadata: Mapping[str, str], formats: Mapping[str, Any], chain: int) -> Instruction:
    sizes = {key: whole_number(metadata, key) for key in ("m", "n", "k")}
    return complete(
        metadata["instruction"], arch=metadata["arch"], m=sizes["m"], n=sizes["n"], k=sizes["k"] // chain,
        block=whole_number(metadata, "block_size") if "block_size" in metadata else None, **formats,
    )  # fmt: skip


def _from_parts(metadata: Mapping[str, str], tensors: dict[str, Codes]) -> Recording:
    d, chain = tensors.pop("d"), whole_number(metadata, "chain")
    manifest = read_json(metadata["manifest"], "metadata key 'manifest'")
    formats = {name: format_spec(metadata[name], scale=name == "scale_type") for name in (*_TYPES, "scale_type") if name in metadata}
    recording = Recording(
        instruction=_instruction(metadata, formats, chain), arch=metadata["arch"], kind=metadata["kind"], gpu=metadata["gpu"], chain=chain,
        operands=TileOperands(**tensors), d=d, manifest=manifest if isinstance(manifest, dict) else {},
    )  # fmt: skip
    wanted = recording.metadata
    given = {**metadata, "arch": recording.arch, **{name: spec.name for name, spec in formats.items()}}
    for key in (*REQUIRED_KEYS, *(SCALED_KEYS if recording.instruction.scale_type is not None else ())):
        if key not in ("manifest", "instruction") and given.get(key) != wanted[key]:
            raise OperandError(f"metadata key {key!r} is {given.get(key, 'missing')!r}, but the data say {wanted[key]!r}")
    return recording


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
    # The library writes the memory of an array as it lies, strides or not.
    data = save({name: np.ascontiguousarray(codes) for name, codes in recording.tensors.items()}, recording.metadata)
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


def _name(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def write_new(path: Path, data: bytes) -> None:
    """Write beside the target, flush to disk, and give it the name, which must be free."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a run that was killed
            left.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _name(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise VectorFileError(f"{path}: is there already; a finished recording never changes") from error
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written ({error.strerror or one_line(error)})") from error
