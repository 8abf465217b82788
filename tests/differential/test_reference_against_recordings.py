"""The slow reference replays recorded outputs of real GPUs bit for bit.

The recordings are optional data outside the repository: the folder `MMABITS_RECORDINGS` names, or `shared/hardware` beside the
checkout. Each file holds n dot products of one instruction on one GPU ("dot-vectors/1").
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import slow_reference

FOLDER = Path(os.environ.get("MMABITS_RECORDINGS") or Path(__file__).resolve().parents[3] / "shared" / "hardware")
FILES = sorted(FOLDER.glob("*.safetensors"))
SAMPLE = 200
DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64}
NO_DATA = f"no recordings: {FOLDER} holds no .safetensors file (set MMABITS_RECORDINGS)"


class Recording(NamedTuple):
    """A file of recorded dot products: its metadata and its code arrays."""

    meta: dict[str, str]
    arrays: dict[str, np.ndarray[Any, Any]]


def read(path: Path) -> Recording:
    """Read a safetensors file: an 8-byte header size, a JSON header, raw little-endian arrays."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    meta = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        arrays[name] = np.frombuffer(raw[8 + size + start : 8 + size + stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return Recording(meta, arrays)


def replay(recording: Recording, rows: range) -> list[str]:
    """The rows where the reference differs from the recording, each as one line with its operands."""
    meta, arrays = recording
    instruction = re.fullmatch(r"(mma|wgmma)\..*\.m\d+n\d+k(\d+)\..*", meta["instruction"])
    assert instruction, meta["instruction"]
    codes = {name: array.tolist() for name, array in arrays.items()}
    types = meta["a_type"], meta["b_type"], meta["d_type"]
    differences = []
    for i in rows:
        a, b, c, want = (codes[name][i] for name in "abcd")
        got = slow_reference.dot(meta["arch"], instruction[1], *types, a, b, c, k_instruction=int(instruction[2]))
        if got != want:
            differences.append(f"row {i}: got {got:#x}, recorded {want:#x}; a {a} b {b} c {c:#x}")
    return differences


@pytest.mark.skipif(not FILES, reason=NO_DATA)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sample_of_every_recording_is_replayed_bit_for_bit(path: Path) -> None:
    """A difference in one bit of one row is a wrong model."""
    recording = read(path)
    count = len(recording.arrays["d"])
    differences = replay(recording, range(0, count, max(1, count // SAMPLE)))
    assert differences == []


@pytest.mark.slow
@pytest.mark.skipif(not FILES, reason=NO_DATA)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_recorded_row_is_replayed_bit_for_bit(path: Path) -> None:
    """All rows of the file."""
    recording = read(path)
    assert replay(recording, range(len(recording.arrays["d"]))) == []


@pytest.mark.skipif(not FILES, reason=NO_DATA)
@pytest.mark.parametrize("name", ["F", "out"])
def test_a_changed_constant_is_noticed_by_a_recording(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay can fail: one fraction bit less, or f32 results of 22 bits' worth, shows in an sm_90 file."""
    key = ("sm_90a", "mma", "f16", "f32")
    unit = slow_reference.UNITS[key]
    wrong = {"F": {"F": unit.F - 1}, "out": {"out": "f32 rz 13"}}[name]
    fields = {field: getattr(unit, field) for field in ("F", "L", "e_zero", "out", "form")}
    monkeypatch.setitem(slow_reference.UNITS, key, slow_reference.Unit(**{**fields, **wrong}))
    recordings = [read(path) for path in FILES]
    matching = [r for r in recordings if (r.meta["arch"], r.meta["a_type"], r.meta["d_type"]) == ("sm_90a", "f16", "f32")]
    assert matching
    assert any(replay(recording, range(len(recording.arrays["d"]))) for recording in matching)
