"""`mmabits diff` on tiles and dot products: classes, places, steps along K, another architecture, the page."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import mmabits
from mmabits.commands.pages.diff import differences_page
from mmabits.conformance.diff.against import compare_file
from mmabits.conformance.diff.dots import AlongSteps, InFile
from mmabits.conformance.record.generators import normal_values
from mmabits.conformance.record.tiles import emulate_tiles, join_chain
from mmabits.conformance.recorded.dots import dots_of, write_vectors
from mmabits.conformance.recorded.reading import recordings_folder
from mmabits.conformance.recorded.tiles import Recording, write_recording
from mmabits.emulator.api import dot_rows
from mmabits.isa import format_spec, parse
from mmabits.isa.errors import UnsupportedInstruction, VectorFileError
from mmabits.research.trace import read

ARCH = "sm_80"
PTX = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
SCALED = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"


def tiles(chain=1, count=5, ptx=PTX, arch=ARCH, kind="hardware"):
    row = parse(ptx)
    operands = join_chain(normal_values(row, arch, count * chain, 3), chain)
    return Recording(
        instruction=row, arch=arch, kind=kind, gpu="G", chain=chain, operands=operands, d=emulate_tiles(row, arch, operands)
    )  # fmt: skip


def dots(count=64):
    recording = tiles()
    return dots_of(recording, np.argwhere(recording.results == recording.results)[:count])


@pytest.fixture
def kept(tmp_path):
    """Write a recording or dot products: their path."""

    def write(what, name="one.safetensors"):
        (write_recording if isinstance(what, Recording) else write_vectors)(tmp_path / name, what)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("ptx", "arch", "chain"), [(PTX, ARCH, 1), (PTX, ARCH, 3), (SCALED, "sm_120a", 2)])
def test_equal_tiles(kept, ptx, arch, chain):
    recording = tiles(chain, ptx=ptx, arch=arch)
    found = compare_file(kept(recording))
    assert found.is_equal and found.elements == recording.d.size and found.verdict == "every bit equal" and found.explanation is None
    assert [found.told.plain[name] for name in ("k", "chain", "tiles")] == [recording.instruction.k * chain, chain, 5]
    assert found.detail(AlongSteps).followed == 0
    page = differences_page([found])
    assert "every bit equal" in page and "Along K" not in page and "<svg" not in page


def test_planted_bits_are_classed_and_placed(kept):
    recording = tiles()
    d = recording.d.copy()
    d[1, 3, 2] ^= 1
    d[1, 3, 5] ^= 0x100
    d[4, 15, 7] = 0x7F800000
    found = compare_file(kept(replace(recording, d=d)))
    assert found.differing == 3 and {kind.value: count for kind, count in found.found.counts.items() if count} == {
        "equal": d.size - 3, "value": 2, "infinity against finite": 1,
    }  # fmt: skip
    where, along = found.detail(InFile), found.detail(AlongSteps)
    assert where.by_tile == (0, 2, 0, 0, 1) and where.cell == (1, 1)
    assert [(i, j) for i, row in enumerate(where.by_cell) for j, count in enumerate(row) if count] == [(3, 2), (3, 5), (15, 7)]
    assert [found.told.place(one) for one in found.found.first] == ["tile 1 [3, 2]", "tile 1 [3, 5]", "tile 4 [15, 7]"]
    assert [part.count for part in found.found.ulps] == [1, 0, 0, 1] and along.latest[0] == len(along.steps) - 1 and along.latest[2] is None
    text = "\n".join(found.lines())
    assert "640 results, 3 differ" in text and "in 2 of 5 tiles" in text and "in 3 of 128 elements of the tile" in text
    assert "tile 4 [15, 7] 0x7f800000" in text


def test_the_first_difference_is_traced_from_its_operands(kept):
    recording = tiles(2)
    d = recording.d.copy()
    d[2, 7, 6] ^= 4
    found = compare_file(kept(replace(recording, d=d)))
    chain = found.explanation.trace
    assert (found.explanation.row, found.explanation.column) == (7, 6)
    assert [number.code for number in chain.a] == recording.operands.a[2, 7].tolist()
    assert [number.code for number in chain.b] == recording.operands.b[2, :, 6].tolist()
    assert chain.c.code == recording.operands.c[2, 7, 6] and chain.result.code == recording.d[2, 7, 6]
    assert "Every result is a chain of 2 instructions. The file holds its end alone" in found.detail(AlongSteps).words[0]


def test_a_large_tile_is_counted_in_cells(kept):
    recording = tiles(count=1, ptx="wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", arch="sm_90a")
    d = recording.d.copy()
    d[0, 10:12, 200] ^= 1
    found = compare_file(kept(replace(recording, d=d)))
    where = found.detail(InFile)
    assert where.cell == (2, 8) and where.by_cell[5][25] == 2 == sum(map(sum, where.by_cell))
    assert "parts of 2 x 8 of the tile" in "\n".join(found.lines())


def test_another_architecture_is_emulated_and_its_step_is_known(kept):
    """sm_80 takes 8 elements in a step; a what-if with fewer bits parts where the emulation of each prefix first differs."""
    mmabits.what_if("replayed-f20", base=ARCH, rows={"hmma.f16.f32": {"fraction_bits": 20, "result_fraction_bits": 20}})
    recording = tiles(3)
    path = kept(recording)
    assert compare_file(path).is_equal
    found = compare_file(path, arch="replayed-f20")
    other = emulate_tiles(recording.instruction, "replayed-f20", recording.operands)
    assert found.differing == int((other != recording.d).sum()) > 300 and found.arch == "replayed-f20" and found.recorded.arch == ARCH
    along = found.detail(AlongSteps)
    assert len(along.partings) == along.followed == 32 and len(along.steps) == 6
    places = np.argwhere((other != recording.d).reshape(-1, 8))[np.linspace(0, found.differing - 1, 32).astype(int)]
    operands = recording.operands
    for at, (row, column) in zip(along.partings, places.tolist(), strict=True):
        tile, inside = divmod(row, 16)
        states = {}
        for arch in (ARCH, "replayed-f20"):
            c = operands.c[tile, inside, column : column + 1]
            states[arch] = []
            for start in range(0, 48, 8):  # one step at a time: the other half of the instruction is zero
                left, right = operands.a[tile, inside, start : start + 8], operands.b[tile, start : start + 8, column]
                c = dot_rows(recording.instruction, arch, left[None], right[None], c)
                states[arch].append(read(int(c[0]), format_spec("f32")).value)
        first = next(step for step in range(6) if states[ARCH][step] != states["replayed-f20"][step])
        assert (at.step, at.k[1], at.first, at.second) == (first, 8 * first + 8, states["replayed-f20"][first], states[ARCH][first])
    assert sum(count for _, count in along.by_step) == 32
    assert any("gives every recorded bit" in text for text in along.words)


def test_dot_products(kept):
    vectors = dots()
    d = vectors.d.copy()
    d[17] ^= 2
    found = compare_file(kept(replace(vectors, d=d)))
    where = found.detail(InFile)
    assert (found.recorded.FORMAT, found.differing, found.elements) == ("dot-vectors/1", 1, 64)
    assert found.detail(AlongSteps).in_chain == ()
    assert found.told.place(found.found.first[0]) == "row 17" and found.explanation.trace.result.code == vectors.d[17]
    assert sum(where.by_tile) == 1 and where.by_tile[17] == 1 and where.by_cell == ()


def test_rows_that_feed_each_other_show_which_instruction_differs(kept):
    """Chains of four, one after another: the third instruction of each gives a bit more, and what follows takes it as its C."""
    vectors = dots(64)
    c, d = vectors.c.copy(), vectors.d.copy()
    for row in range(64):
        if row % 4:
            c[row] = d[row - 1]
        one = slice(row, row + 1)
        d[row] = dot_rows(vectors.instruction, ARCH, vectors.a[one], vectors.b[one], c[one])[0]
        if row % 4 == 2:
            d[row] ^= 1
    found = compare_file(kept(replace(vectors, c=c, d=d)))
    assert [(one.place, one.rows, one.differing) for one in found.detail(AlongSteps).in_chain] == [
        (0, 16, 0),
        (1, 16, 0),
        (2, 16, 16),
        (3, 16, 0),
    ]
    assert "Most differ at place 2 of the chain: 16 of 16." in found.detail(AlongSteps).words
    assert "place 2: 16 of 16" in "\n".join(found.lines()) and "differing rows by place in the chain" in differences_page([found])


def test_a_what_if_with_a_promotion_of_its_own_is_not_explained(kept):
    """Its gemm promotes; single instructions, which were compared, do not."""
    mmabits.what_if("replayed-p8", base=ARCH, rows={"hmma.f16.f32": {"fraction_bits": 18, "result_fraction_bits": 18}}, promote_every=16)
    found = compare_file(kept(tiles()), arch="replayed-p8")
    along = found.detail(AlongSteps)
    assert found.differing > 100 and along.latest == (None,) * 32 and along.partings == () and found.explanation is None
    assert along.words == ("Not followed along K: the trace of this architecture (a promotion of its own) is not what was compared.",)
    chained = compare_file(kept(tiles(3), "chain.safetensors"), arch="replayed-p8")
    assert (
        chained.explanation.trace.result.code == int(chained.found.first[0].emulated, 16) and len(chained.detail(AlongSteps).partings) == 32
    )


def test_everything_is_plain_json(kept):
    recording = tiles(2)
    d = recording.d.copy()
    d[0, 0, 0] ^= 1
    found = compare_file(kept(replace(recording, d=d)))
    plain = json.loads(json.dumps(found.as_json, allow_nan=False))
    assert (plain["differing"], plain["differing_tiles"], plain["chain"], plain["instruction"]) == (1, 1, 2, PTX)
    assert plain["latest_step"] == [3] and plain["parts_in_step"] == [] and plain["steps"][0] == list(range(8))


def test_the_page_says_where_and_why(kept):
    recording = tiles(kind="emulator")
    d = recording.d.copy()
    d[3, 2, 1] ^= 1
    page = differences_page([compare_file(kept(replace(recording, d=d)))])
    for said in (
        "1 of 640 results differ", "proves nothing about hardware", "differing results along the file", "by place in the tile",
        "Tile 3 [2, 1], as emulated", f"0x{int(d[3, 2, 1]):08x}", "where alignment cut off most", PTX,
    ):  # fmt: skip
        assert said in page, said
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_what_cannot_be_compared(kept, tmp_path):
    row = parse("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
    given = {"operands": normal_values(row, "sm_89", 1, 3), "d": np.zeros((1, 16, 8), np.uint32)}
    path = kept(Recording(instruction=row, arch="sm_89", kind="emulator", gpu="G", chain=1, **given))
    with pytest.raises(UnsupportedInstruction, match="sm_80"):
        compare_file(path, arch="sm_80")
    with pytest.raises(VectorFileError, match=r"missing\.safetensors"):
        compare_file(tmp_path / "missing.safetensors")


def test_recorded_hopper_against_ampere():
    folder = recordings_folder()
    path = None if folder is None else Path(folder) / "h100-mma-f16-f32.safetensors"
    if path is None or not path.is_file():
        pytest.skip("no recordings of an H100 beside the checkout (../shared/hardware)")
    assert compare_file(path).is_equal
    found = compare_file(path, arch="sm_80")
    along = found.detail(AlongSteps)
    assert found.recorded.is_hardware and found.differing > 0 and len(along.partings) == along.followed == 32
    for at in along.partings:  # 16 elements at once against 8 and 8: both have taken the same ones at the end alone
        assert at is not None and at.k == (0, 16) and isinstance(at.first, Fraction) and at.first != at.second
