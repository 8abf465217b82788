"""Our own files, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt


@contextmanager
def written_whole(path: Path, *, replaces: bool = True) -> Iterator[Path]:
    """A name beside `path` for the block to write to; at its end the file is flushed to disk and gets its own name.

    Args:
        path: the file, in a folder that is there.
        replaces: whether it may be there already.

    Raises:
        FileExistsError: it is there already, and is not replaced.
        OSError: it cannot be written. Nothing half-written is left, and what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if replaces:
            os.replace(temporary, path)
        else:
            _name(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def remove_unfinished(path: Path) -> None:
    """Remove what runs that were killed have left of a file."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def tensor_bytes(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The same tensors and metadata always give the same bytes; the library leaves the order of metadata to chance."""
    # The layout wants the widest elements first, so that every tensor starts aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    data: list[bytes] = []
    start = 0
    for name, codes in ordered:
        data.append(codes.astype(codes.dtype.newbyteorder("<"), order="C").tobytes())
        header[name] = {"dtype": f"U{codes.dtype.itemsize * 8}", "shape": list(codes.shape), "data_offsets": [start, start + len(data[-1])]}
        start += len(data[-1])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


__all__ = ["remove_unfinished", "tensor_bytes", "written_whole"]
