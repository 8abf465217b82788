"""Vector files broken on purpose: valid ones of each format, and strategies that break them where their structure is.

A file is kept as the JSON of its header, its data, and what lies beside it, so that one thing can be wrong and the rest right: lengths,
checksums and offsets are made to fit again where a mutation does not say otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ESCAPES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "\x1bc", "a\r\nerror: none", "\x00", "\u202eevil\u202c", "\u2066x\u2069",
    "\x7f\x08", "\u2028", "\u200f", "\ufeff",
)  # fmt: skip
"""What must never reach an output as it is."""
NUMBERS = ("0", "-1", "9" * 5000, "1e3", " 8", "٣", "0x10", "1.5", "", "NaN", "1" * 9, "1" * 10)
NAMES = (
    "sm_91",
    "sm_90",
    "RTX 6000",
    "f99",
    "e4m3",
    "f32",
    "wgmma",
    "mma.sp",
    "tcgen05.mma.cta_group::1.kind::f8f6f4",
    "." * 2000,
    "m" + "9" * 5000,
)


class Raw(str):
    """JSON as it shall stand in the file."""


class Pairs(list):  # of (key, value)
    """A JSON object whose keys may repeat."""

    def without(self, key: str) -> Pairs:
        return Pairs((name, value) for name, value in self if name != key)

    def having(self, key: str, value: Any) -> Pairs:
        if key not in dict(self):
            return Pairs([*self, (key, value)])
        return Pairs((name, value if name == key else old) for name, old in self)


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{dumped(each)}" for name, each in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dumped, value)) + "]"
    return json.dumps(value)


@dataclass(frozen=True, repr=False)
class File:
    """A file to be."""

    header: Pairs
    data: bytes
    manifest: bytes | None = None
    """What lies beside it, FILE.json."""
    length: int | None = None
    """What its first eight bytes say, where that is not the truth."""
    damage: Callable[[bytes], bytes] = bytes
    """Done to the whole at the end."""
    place: str = "file"
    """What stands at its path instead."""
    story: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"<{dict(self.metadata).get('format')!a} in the place of a {self.place}, done to it: {', '.join(self.story)}>"

    @property
    def metadata(self) -> Pairs:
        found = dict(self.header).get("__metadata__")
        return found if isinstance(found, Pairs) else Pairs()

    @property
    def tensors(self) -> list[str]:
        return [name for name, value in self.header if name != "__metadata__" and isinstance(value, Pairs)]

    def said(self, key: str, value: Any) -> File:
        return replace(self, header=self.header.having("__metadata__", self.metadata.having(key, value)))

    def of_tensor(self, name: str, key: str, value: Any) -> File:
        return replace(self, header=self.header.having(name, dict(self.header)[name].having(key, value)))

    @property
    def contents(self) -> bytes:
        text = dumped(self.header).encode("utf-8", "surrogatepass")
        return self.damage((len(text) if self.length is None else self.length).to_bytes(8, "little") + text + self.data)

    def put(self, path: Path) -> None:
        """Let it be at a path."""
        match self.place:
            case "file":
                path.write_bytes(self.contents)
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "broken link":
                path.symlink_to(path.with_name("nowhere"))
            case "loop":
                path.symlink_to(path)
            case "device":
                path.symlink_to("/dev/zero")
        if self.manifest is not None:
            path.with_name(f"{path.name}.json").write_bytes(self.manifest)


def taken_apart(path: Path) -> File:
    """A valid file, to be broken; without its manifest, whose checksum is that of the same JSON written otherwise."""
    contents = path.read_bytes()
    length = int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8 : 8 + length], object_pairs_hook=Pairs)
    return File(header=header, data=contents[8 + length :])


# What can be wrong -------------------------------------------------------------------------------------------------------------

Mutation = Callable[[st.DrawFn, File], File]


def _text(draw: st.DrawFn) -> str:
    return draw(st.sampled_from([*ESCAPES, *NUMBERS, *NAMES, "x" * 100_000]) | st.text(max_size=20))


def _junk(draw: st.DrawFn) -> Any:
    """A value of another kind than a header has there."""
    return draw(st.sampled_from([
        None, True, 3, -1, 2**60, 1.5, [], [[1]], ["x"], Pairs(), Pairs([("a", 1)]), Raw("9" * 5000), Raw("[" * 100_000), Raw("NaN"),
        Raw("-Infinity"), Raw("1e999"), Raw('"\\ud800"'), Raw('{"a":' * 5000 + "1" + "}" * 5000), Raw("'x'"), Raw(""), "\x1b[2J",
    ]))  # fmt: skip


def drop_metadata(draw: st.DrawFn, file: File) -> File:
    key = draw(st.sampled_from([name for name, _ in file.metadata]))
    return replace(file, header=file.header.having("__metadata__", file.metadata.without(key)))


def junk_in_metadata(draw: st.DrawFn, file: File) -> File:
    return file.said(draw(st.sampled_from([name for name, _ in file.metadata])), _junk(draw))


def text_in_metadata(draw: st.DrawFn, file: File) -> File:
    return file.said(draw(st.sampled_from([name for name, _ in file.metadata])), _text(draw))


def escapes_everywhere(draw: st.DrawFn, file: File) -> File:
    """In every free text, and one more thing wrong, so that there is something to say."""
    for key in ("gpu", "note", "source", "license", "arch", "kind"):
        if key in dict(file.metadata) and draw(st.booleans()):
            file = file.said(key, draw(st.sampled_from(ESCAPES)))
    return file.said("k\x1b[1m", "\x1b[5m")


def number_in_metadata(draw: st.DrawFn, file: File) -> File:
    keys = [name for name, value in file.metadata if str(value).isdecimal()]
    return file.said(draw(st.sampled_from(keys)), draw(st.sampled_from(NUMBERS) | st.integers(-(2**70), 2**70).map(str))) if keys else file


def contradiction(draw: st.DrawFn, file: File) -> File:
    choices = {
        "a_type": ("e5m2", "f16", "s8", "ue8m0", "float8_e4m3fnuz"), "d_type": ("f16", "s32"), "arch": ("sm_70", "sm_120a", "a100"),
        "kind": ("rumour", ""), "format": ("dot-vectors/2", "tile-vectors/1", "dot-vectors/1", "gemm-run/1", "kernel-run/1", ""),
        "block_size": ("8", "64"), "scale_type": ("ue4m3", "e4m3"), "chain": ("2", "7"), "tiles": ("3",), "m": ("8",),
        "instruction": (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "none",
        ),
    }  # fmt: skip
    key = draw(st.sampled_from(sorted(choices)))
    return file.said(key, draw(st.sampled_from(choices[key])))


def drop_tensor(draw: st.DrawFn, file: File) -> File:
    return replace(file, header=file.header.without(draw(st.sampled_from(file.tensors)))) if file.tensors else file


def another_tensor(draw: st.DrawFn, file: File) -> File:
    name = draw(st.sampled_from(["e", "scale_a", "", "\x1b[31m", "A", "__metadata__"]))
    size = len(file.data)
    tensor = Pairs([("dtype", "U8"), ("shape", [4]), ("data_offsets", [size, size + 4])])
    return replace(file, header=Pairs([*file.header, (name, tensor)]), data=file.data + b"\0" * 4)


def other_dtype(draw: st.DrawFn, file: File) -> File:
    kinds = (
        "U8",
        "U16",
        "U32",
        "U64",
        "I8",
        "I64",
        "F16",
        "BF16",
        "F32",
        "F64",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "F4",
        "F6_E2M3",
        "C64",
        "X",
        "",
    )
    return file.of_tensor(
        draw(st.sampled_from(file.tensors)), "dtype", draw(st.sampled_from(kinds)) if draw(st.booleans()) else _junk(draw)
    )


def other_shape(draw: st.DrawFn, file: File) -> File:
    shapes = (
        [],
        [0],
        [0, 2**60],
        [2**60],
        [2**32, 2**32],
        [2**63, 2],
        [2**64],
        [-1],
        [1.5],
        [1] * 100,
        [[1]],
        ["3"],
        [None],
        [0] * 70,
        [3, 3],
    )
    name = draw(st.sampled_from(file.tensors))
    shape = draw(st.sampled_from(shapes)) if draw(st.booleans()) else _junk(draw)
    if shape and shape[0] == 0 and draw(st.booleans()):  # a tensor of nothing
        file = file.of_tensor(name, "data_offsets", [0, 0])
    return file.of_tensor(name, "shape", shape)


def other_offsets(draw: st.DrawFn, file: File) -> File:
    size = len(file.data)
    offsets = (
        [0, 0],
        [size, size],
        [0, size],
        [8, 0],
        [0, 2**60],
        [2**60, 2**61],
        [-8, 0],
        [0, 2**64],
        [1, 1 + size],
        [0],
        [],
        [0, 1, 2],
        [0.5, 1],
    )
    value = draw(st.sampled_from(offsets)) if draw(st.booleans()) else _junk(draw)
    return file.of_tensor(draw(st.sampled_from(file.tensors)), "data_offsets", value)


def nothing_in_it(draw: st.DrawFn, file: File) -> File:
    """Zero rows."""
    for name in file.tensors:
        shape = dict(dict(file.header)[name])["shape"]
        file = file.of_tensor(name, "shape", [0, *shape[1:]]).of_tensor(name, "data_offsets", [0, 0])
    return replace(file, data=b"")


def repeated_key(draw: st.DrawFn, file: File) -> File:
    name, value = draw(st.sampled_from(list(file.header)))
    return replace(file, header=Pairs([*file.header, (name, value)]))


def repeated_metadata(draw: st.DrawFn, file: File) -> File:
    name, _ = draw(st.sampled_from(list(file.metadata)))
    return replace(file, header=file.header.having("__metadata__", Pairs([*file.metadata, (name, _text(draw))])))


def junk_for_header(draw: st.DrawFn, file: File) -> File:
    key = draw(st.sampled_from(["__metadata__", *file.tensors]))
    return replace(file, header=file.header.having(key, _junk(draw)))


def other_header(draw: st.DrawFn, file: File) -> File:
    value = _junk(draw)
    return replace(file, damage=lambda _: len(text := dumped(value).encode("utf-8", "surrogatepass")).to_bytes(8, "little") + text)


def other_length(draw: st.DrawFn, file: File) -> File:
    return replace(file, length=draw(st.sampled_from([0, 1, 7, 2**20, 2**31, 2**60, 2**64 - 1])))


def truncated(draw: st.DrawFn, file: File) -> File:
    share = draw(st.floats(0, 0.999))
    return replace(file, damage=lambda contents: contents[: int(share * len(contents))])


def longer(draw: st.DrawFn, file: File) -> File:
    more = draw(st.binary(min_size=1, max_size=64))
    return replace(file, damage=lambda contents: contents + more)


def flipped(draw: st.DrawFn, file: File) -> File:
    """A byte of the header, so also bytes that are no UTF-8."""
    place, value = draw(st.floats(0, 1)), draw(st.integers(0, 255))

    def damage(contents: bytes) -> bytes:
        end = 8 + min(int.from_bytes(contents[:8], "little"), len(contents) - 9)
        at = int(place * end)
        return contents[:at] + bytes([value]) + contents[at + 1 :]

    return replace(file, damage=damage)


def other_data(draw: st.DrawFn, file: File) -> File:
    return replace(file, data=draw(st.sampled_from([b"\xff", b"\x80", b"\x7f"])) * len(file.data))


def no_file(draw: st.DrawFn, file: File) -> File:
    return replace(file, place=draw(st.sampled_from(["folder", "pipe", "broken link", "loop", "device"])))


def other_contents(draw: st.DrawFn, file: File) -> File:
    contents = draw(
        st.sampled_from([b"", b"\0" * 8, b"\0" * 4096, b"\x1b[2J", b"PK\x03\x04", b"\x02\0\0\0\0\0\0\0{}"]) | st.binary(max_size=64)
    )
    return replace(file, damage=lambda _: contents)


_BAD_JSON = (
    b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b'{"seed": NaN}', b'{"seed": 1e999}', b"\xff\xfe", b"", b"{",
    b'{"a": 1, "a": 2}', b"\x1b[2J", b'"\\ud800',
)  # fmt: skip


def manifest_inside(draw: st.DrawFn, file: File) -> File:
    return file.said("manifest", draw(st.sampled_from(_BAD_JSON)).decode("utf-8", "replace"))


def manifest_beside(draw: st.DrawFn, file: File) -> File:
    return replace(file, manifest=draw(st.sampled_from([*_BAD_JSON, b"{}", b"[]", b"3", b'{"file_sha256": "\\u001b[2J"}'])))


FILE_MUTATIONS: tuple[Mutation, ...] = (
    drop_metadata, junk_in_metadata, text_in_metadata, escapes_everywhere, number_in_metadata, contradiction, drop_tensor, another_tensor,
    other_dtype, other_shape, other_offsets, nothing_in_it, repeated_key, repeated_metadata, junk_for_header, other_header, other_length,
    truncated, longer, flipped, other_data, no_file, other_contents, manifest_beside,
)  # fmt: skip


def _run_manifest(file: File) -> Pairs:
    return json.loads(dict(file.metadata)["manifest"], object_pairs_hook=Pairs)


def signed(file: File) -> File:
    """A run whose checksum is that of its contents again, as far as they have one."""
    data, header = file.data, dict(file.header)
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        begin, end = dict(header[name])["data_offsets"]
        digest.update(name.encode() + b"\0" + data[begin:end])
    text = dict(file.metadata)["manifest"]
    return file.said("sha256", hashlib.sha256(f"{digest.hexdigest()}\n{text}".encode("utf-8", "surrogatepass")).hexdigest())


def run_manifest(draw: st.DrawFn, file: File) -> File:
    """Something else in the manifest of a run."""
    manifest = _run_manifest(file)
    key = draw(st.sampled_from([*(name for name, _ in manifest), "more"]))
    value = _text(draw) if draw(st.booleans()) else _junk(draw)
    manifest = manifest.without(key) if draw(st.integers(0, 3)) == 0 else manifest.having(key, value)
    return signed(file.said("manifest", dumped(manifest)))


def run_dtypes(draw: st.DrawFn, file: File) -> File:
    manifest = _run_manifest(file)
    dtypes = dict(manifest)["dtypes"]
    name = draw(st.sampled_from([name for name, _ in dtypes]))
    value = draw(st.sampled_from(["int8", "float8_e4m3fn", "float8_e5m2", "int64", "object", "\x1b[2J", "uint8", "float8_e8m0fnu"]))
    return signed(file.said("manifest", dumped(manifest.having("dtypes", dtypes.having(name, value)))))


def run_json(draw: st.DrawFn, file: File) -> File:
    return signed(manifest_inside(draw, file))


def run_nothing(draw: st.DrawFn, file: File) -> File:
    return signed(nothing_in_it(draw, file))


def run_data(draw: st.DrawFn, file: File) -> File:
    return signed(other_data(draw, file))


RUN_MUTATIONS: tuple[Mutation, ...] = (run_manifest, run_dtypes, run_json, run_nothing, run_data)


def mutations_of(file: File) -> tuple[Mutation, ...]:
    """What breaks a file of its format; the manifest inside is only in two of them."""
    form = dict(file.metadata)["format"]
    own = {"tile-vectors/1": (manifest_inside,), "gemm-run/1": RUN_MUTATIONS * 4}
    return (*FILE_MUTATIONS, *own.get(form, ()))


@st.composite
def hostile(draw: st.DrawFn, valid: tuple[File, ...]) -> File:
    """A file with one to three things wrong; the last may undo the first."""
    file = draw(st.sampled_from(valid))
    choices = mutations_of(file)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        mutation = draw(st.sampled_from(choices))
        try:
            file = replace(mutation(draw, file), story=(*file.story, mutation.__name__))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):  # what an earlier one broke
            continue
    return file
