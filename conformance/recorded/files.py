"""What the formats share: metadata and codes that must agree with an instruction, and arrays of any type with a manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import FormatSpec, format_spec
from mmabits.isa.errors import OperandError, VectorFileError
from mmabits.reports.failures import one_line
from mmabits.reports.stored import TensorFile, read_json
from mmabits.reports.written import remove_unfinished, tensor_bytes, written_whole

Array = npt.NDArray[Any]

TYPE_KEYS: Final = ("a_type", "b_type", "c_type", "d_type")
SCALED_KEYS: Final = ("scale_type", "block_size")
"""Metadata of block-scaled instructions, both or none."""
_TENSORS: Final = ("a", "b", "c", "d")
_SCALES: Final = ("scale_a", "scale_b")


LONGEST_TEXT: Final = 1000
"""Characters of a text that commands show in a line: a GPU's name, a call."""


class NotWritten(VectorFileError):
    """A file could not be written: a full disk, a folder without permission. The next one would fare no better."""


def write_new(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, under a name that must be free.

    Raises:
        VectorFileError: a file of that name is there already.
        NotWritten: it cannot be written; then nothing is left of it.
    """
    try:
        remove_unfinished(path)
        with written_whole(path, replaces=False) as unfinished:
            unfinished.write_bytes(data)
    except FileExistsError as error:
        raise VectorFileError(f"{path}: is there already; a finished recording never changes") from error
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written ({error.strerror or one_line(error)})") from error


# Codes of an instruction ---------------------------------------------------------------------------------------------------


def read_codes(file: TensorFile, form: str, required: Sequence[str]) -> tuple[dict[str, Any], dict[str, FormatSpec], dict[str, Any]]:
    """Metadata, formats by key, and tensors of a file of codes.

    Args:
        file: open.
        form: the format it must be of.
        required: keys of metadata that it must have.

    Raises:
        OperandError: another format, or a key or tensor that is missing or too many.
    """
    given = file.metadata
    check_format(given, form)
    wanted = (*required, *(SCALED_KEYS if any(key in given for key in SCALED_KEYS) else ()))
    missing = [key for key in wanted if key not in given]
    if missing:
        raise OperandError(f"metadata key {', '.join(map(repr, missing))} missing; {form} needs {', '.join(wanted)}")
    tensors = _TENSORS + (_SCALES if "scale_type" in given else ())
    if set(file.names) != set(tensors):
        raise OperandError(f"tensors are {', '.join(sorted(file.names)) or 'none'}; allowed: exactly {', '.join(tensors)}")
    check_lengths({key: given[key] for key in ("gpu", "kind", "arch") if key in given})
    formats: dict[str, FormatSpec] = {}
    for name in (*TYPE_KEYS, "scale_type"):
        if name in given:
            formats[name] = format_spec(given[name], scale=name == "scale_type")
    return given, formats, {name: file.tensor(name) for name in tensors}


def check_lengths(texts: Mapping[str, str]) -> None:
    """Refuse texts that no line can show: who computed something, and how it is called.

    Raises:
        OperandError: one is too long.
    """
    for name, text in texts.items():
        if len(text) > LONGEST_TEXT:
            raise OperandError(f"{name!r} has {len(text)} characters; allowed: {LONGEST_TEXT}")


def check_format(metadata: Mapping[str, str], form: str) -> None:
    """Refuse a file of another format.

    Raises:
        OperandError: it is.
    """
    if metadata.get("format") != form:
        raise OperandError(f"metadata key 'format' is {repr(metadata['format']) if 'format' in metadata else 'missing'}; allowed: {form!r}")


def type_metadata(types: Mapping[str, FormatSpec], scale_type: FormatSpec | None, block: int | None) -> dict[str, str]:
    """What metadata say of the types of operands and results."""
    scaled = {} if scale_type is None else {"scale_type": scale_type.name, "block_size": str(block)}
    return {**{name: spec.name for name, spec in types.items()}, **scaled}


def check_codes(name: str, codes: Array | None, spec: FormatSpec, shape: tuple[int, ...], *, unit: str = "tile") -> None:
    """Whether an array holds codes of a format in a shape.

    Args:
        name: of the tensor.
        codes: the array.
        spec: the format.
        shape: with at least one `unit`.
        unit: what stands along the first axis.

    Raises:
        OperandError: it does not; the message names the array.
    """
    if codes is None:
        raise OperandError(f"tensor {name!r} is missing")
    if codes.dtype.kind != "u" or codes.dtype.itemsize * 8 != spec.container_bits:
        raise OperandError(f"tensor {name!r} is {codes.dtype}; {spec.name} needs uint{spec.container_bits}")
    if codes.shape != shape or not codes.size:
        raise OperandError(f"tensor {name!r} has shape {codes.shape}; allowed is {shape}, with at least one {unit}")
    if int(codes.max()) >= spec.codes:
        raise OperandError(f"tensor {name!r} holds {int(codes.max()):#x}; {spec.name} has codes up to {spec.codes - 1:#x}")


def data_sha256(tensors: Mapping[str, Array]) -> str:
    """Of tensors in the order of their names: the name, a zero byte, the little-endian codes row by row."""
    digest = hashlib.sha256()
    for name, codes in sorted(tensors.items()):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(codes, dtype=codes.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


# Arrays of any type, and a manifest ----------------------------------------------------------------------------------------

DTYPES: Final = {
    str(np.dtype(dtype)): np.dtype(dtype)
    for dtype in (
        np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2, ml_dtypes.float6_e3m2fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu,
    )
}  # fmt: skip
"""What such a file can hold, by name."""


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """Refuse arrays that such a file cannot hold.

    Raises:
        OperandError: one of another dtype.
    """
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise OperandError(f"{name} is {array.dtype}; a run holds {', '.join(DTYPES)}")


def write_arrays(path: Path, form: str, manifest: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a file, whole or not at all; nothing is replaced.

    Args:
        path: where to.
        form: the format it says it has.
        manifest: plain values; `dtypes` is added.
        arrays: by name.

    Raises:
        VectorFileError: a file of that name is there, or it cannot be written.
    """
    codes = {name: np.asarray(array, order="C").view(f"uint{8 * array.dtype.itemsize}") for name, array in arrays.items()}
    text = json.dumps({**manifest, "dtypes": {name: str(array.dtype) for name, array in arrays.items()}}, sort_keys=True)
    write_new(path, tensor_bytes(codes, {"format": form, "manifest": text, "sha256": _sha256(codes, text)}))


def read_arrays(file: TensorFile, form: str, texts: Sequence[str], optional: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file's manifest says under some names, and its arrays.

    Args:
        file: open.
        form: the format it must be of.
        texts: what its manifest must say in words.
        optional: what it may say.

    Raises:
        OperandError: the file is damaged, of another format or contradicts itself.
    """
    check_format(file.metadata, form)
    manifest, arrays = _from_parts(file.metadata, {name: file.tensor(name) for name in file.names})
    absent = [name for name in texts if not isinstance(manifest.get(name), str)]
    if absent:
        raise OperandError(f"the manifest has no text {absent[0]!r}")
    check_lengths({name: manifest[name] for name in texts})
    for name, (is_right, what) in _KINDS.items():
        if name in manifest and not is_right(manifest[name]):
            raise OperandError(f"the manifest's {name!r} is {manifest[name]!r:.40}; allowed: {what}")
    return {name: manifest[name] for name in (*texts, *optional) if name in manifest}, arrays


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


_KINDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "seed": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "an integer from 0 on"),
    "versions": (_are_texts, "texts by name"),
    "instruction": (lambda value: value is None or isinstance(value, str), "a text or null"),
    "fast_accum": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
}
"""What else a manifest may hold, where it does."""


def _sha256(codes: Mapping[str, Array], manifest: str) -> str:
    return hashlib.sha256(f"{data_sha256(codes)}\n{manifest}".encode()).hexdigest()


def _from_parts(metadata: Mapping[str, str], codes: dict[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
    missing = [key for key in ("manifest", "sha256") if key not in metadata]
    if missing:
        raise OperandError(f"metadata key {missing[0]!r} is missing")
    if _sha256(codes, metadata["manifest"]) != metadata["sha256"]:
        raise OperandError("its sha256 is not that of its contents; it was damaged or changed")
    manifest = read_json(metadata["manifest"], "metadata key 'manifest'")
    if not isinstance(manifest, dict) or not isinstance(dtypes := manifest.pop("dtypes", None), dict):
        raise OperandError("metadata key 'manifest' names no dtypes")
    if set(dtypes) != set(codes):
        raise OperandError(
            f"tensors are {', '.join(sorted(codes)) or 'none'}, but the manifest names {', '.join(sorted(dtypes)) or 'none'}"
        )
    arrays: dict[str, Array] = {}
    for name, array in codes.items():
        dtype = DTYPES.get(str(dtypes[name]))
        if dtype is None or array.dtype != np.dtype(f"uint{8 * dtype.itemsize}"):
            raise OperandError(f"tensor {name!r} is {array.dtype} and stands for {dtypes[name]!r}, which does not go together")
        arrays[name] = array.view(dtype)
    return manifest, arrays


__all__ = [
    "DTYPES", "SCALED_KEYS", "TYPE_KEYS", "NotWritten", "check_codes", "check_dtypes", "data_sha256", "read_arrays", "read_codes",
    "type_metadata", "write_arrays", "write_new",
]  # fmt: skip
