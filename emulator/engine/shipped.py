"""What Numba made of the engine when the package was built: with it the first call of a kind needs LLVM alone, and waits a second.

One file for a function and a number of lanes, in FOLDER of an installed wheel; a checkout has none. It counts only for the very sources
that it was made of, and for an LLVM that is not older than the one that wrote it.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, Final

from llvmlite import binding as llvm

from mmabits.emulator.engine.width import lanes

FOLDER: Final = Path(__file__).with_name("shipped")
_ANY_LANES: Final = ("mmabits_machine", "mmabits_checks")
_MAGIC: Final = b"mmabits intermediate code 1\n"


def lanes_of(symbol: str) -> int:
    """For how many lanes a function is laid out in this process; 0 where they do not matter."""
    return 0 if symbol.startswith(_ANY_LANES) else lanes()


def file_name(symbol: str) -> str:
    """Of a function, for the lanes of this process."""
    return f"{symbol}-{lanes_of(symbol)}.bin"


def packed(symbol: str, sources: str, bitcode: bytes) -> bytes:
    """A file's content."""
    line = json.dumps({**_made_of(symbol, sources), "llvm": llvm.llvm_version_info[0]}, sort_keys=True)
    return _MAGIC + line.encode() + b"\n" + zlib.compress(bitcode, 9)


def bitcode(symbol: str, sources: str, folder: Path = FOLDER) -> bytes | None:
    """LLVM bitcode of a function; None where there is none that fits."""
    try:
        content = (folder / file_name(symbol)).read_bytes()
        line, _, code = content.removeprefix(_MAGIC).partition(b"\n")
        header = json.loads(line)
        written_by = int(header.pop("llvm"))
        fits = content.startswith(_MAGIC) and header == _made_of(symbol, sources) and written_by <= llvm.llvm_version_info[0]
        return zlib.decompress(code) if fits else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return None


def _made_of(symbol: str, sources: str) -> dict[str, Any]:
    return {"symbol": symbol, "lanes": lanes_of(symbol), "sources": sources}
