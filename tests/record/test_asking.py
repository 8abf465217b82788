"""An instruction of a device as a function of dot products, recordings of tiles as dot products, and probes on tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.commands.main import main
from mmabits.conformance.identify import identify
from mmabits.conformance.identify.devices import emulator_device
from mmabits.conformance.probes.score import score_files, score_vectors
from mmabits.conformance.record import driver
from mmabits.conformance.record.asking import AskedInstruction
from mmabits.conformance.record.device import EmulatedDevice, Images
from mmabits.conformance.record.generators import random_bits
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.session import DEFAULT_PROBES, LayoutCheckFailed, make_jobs, record, usual_tiles
from mmabits.conformance.record.tiles import TileOperands, diagonal_tiles, diagonals, emulate_tiles
from mmabits.conformance.recorded.reading import read_dots
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import from_codes
from mmabits.isa import OperandError, UnsupportedInstruction, parse
from mmabits.isa.errors import VectorFileError

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"
INSTRUCTIONS = {
    WGMMA: "sm_90a",
    "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16": "sm_90a",
    "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32": "sm_80",
    "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64": "sm_80",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": "sm_80",
    "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3": "sm_120a",
    "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n16k32.f32.e2m3.e4m3.ue8m0": "sm_100a",
}


def dots_of(row: Any, arch: str, count: int) -> TileOperands:
    """Random codes, a dot product each."""
    drawn = random_bits(row, arch, count, 3)
    scales = {} if drawn.scale_a is None or drawn.scale_b is None else {"scale_a": drawn.scale_a[:, 0], "scale_b": drawn.scale_b[:, :, 0]}
    return TileOperands(a=drawn.a[:, 0], b=drawn.b[:, :, 0], c=drawn.c[:, 0, 0], **scales)


def asked_with(device: Any, row: Any, dots: TileOperands) -> Any:
    scales = [] if dots.scale_a is None else [from_codes(codes, row.scale_type) for codes in (dots.scale_a, dots.scale_b)]
    arrays = [from_codes(codes, form) for codes, form in ((dots.a, row.a_type), (dots.b, row.b_type), (dots.c, row.c_type))]
    return device(*arrays, *scales)


@pytest.mark.parametrize("count", [1, 21])
@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_a_kernel_answers_as_the_engine_does(text: str, count: int) -> None:
    row, arch = parse(text), INSTRUCTIONS[text]
    dots = dots_of(row, arch, count)
    wanted = dot_rows(row, arch, dots.a, dots.b, dots.c, scale_a=dots.scale_a, scale_b=dots.scale_b)
    found = asked_with(AskedInstruction(EmulatedDevice(arch), row), row, dots)
    assert found.tobytes() == from_codes(wanted, row.d_type).tobytes()
    assert asked_with(emulator_device(text, arch), row, dots).tobytes() == found.tobytes()


def test_dot_products_lie_on_the_diagonals_and_the_next_ones_beside_them() -> None:
    row = parse(WGMMA)
    dots = dots_of(row, "sm_90a", 11)
    tiles = diagonal_tiles(row, dots, 2)
    assert (tiles.a.shape, tiles.b.shape, tiles.c.shape) == ((2, 64, 32), (2, 32, 8), (2, 64, 8))
    for i in range(16):
        tile, place = divmod(i, 8)
        np.testing.assert_array_equal(tiles.a[tile, place], dots.a[i % 11])
        np.testing.assert_array_equal(tiles.b[tile, :, place], dots.b[i % 11])
        assert tiles.c[tile, place, place] == dots.c[i % 11]
    np.testing.assert_array_equal(tiles.a[0, 40], dots.a[40 % 11])
    d = emulate_tiles(row, "sm_90a", tiles)
    np.testing.assert_array_equal(diagonals(d)[:11], dot_rows(row, "sm_90a", dots.a, dots.b, dots.c))


def test_identify_asks_a_device_through_its_kernel() -> None:
    row = parse("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32")
    found = identify(AskedInstruction(EmulatedDevice("sm_80"), row), a_type="s8", b_type="s8", d_type="s32", k=16)
    assert found.survived and "sm_80.imma.int.s32" in found.names


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UnsupportedInstruction, match="sm_80"):
        AskedInstruction(EmulatedDevice("sm_80"), parse(WGMMA))

    class Turned(EmulatedDevice):
        """Returns a kernel's words in another order."""

        def run(self, kernel: InstructionKernel, images: Images) -> Any:
            return super().run(kernel, images)[:, ::-1]

    with pytest.raises(LayoutCheckFailed, match="exact small sums are wrong"):
        AskedInstruction(Turned("sm_90a"), parse(WGMMA))
    row = parse(WGMMA)
    asked, dots = AskedInstruction(EmulatedDevice("sm_90a"), row), dots_of(row, "sm_90a", 4)
    a, b, c = (from_codes(codes, form) for codes, form in ((dots.a, row.a_type), (dots.b, row.b_type), (dots.c, row.c_type)))
    with pytest.raises(OperandError, match=r"b must have shape \(4, 32\), got \(3, 32\)"):
        asked(a, b[:3], c)
    with pytest.raises(OperandError, match="takes no scales"):
        asked(a, b, c, c, c)
    with pytest.raises(OperandError, match="no dot products"):
        asked(a[:0], b[:0], c[:0])


# Recordings of tiles, read as dot products -----------------------------------------------------------------------------------


def recorded(folder: Path, text: str, arch: str, generator: str, **more: Any) -> Path:
    jobs = make_jobs([parse(text)], arch=arch, generators=[generator], seed=1, **more)
    (outcome,) = record(EmulatedDevice(arch), jobs, folder, command="mmabits record")
    assert outcome.state == "recorded", outcome.error
    return outcome.path


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_probes_on_tiles_kill_every_mutant_that_dot_products_can(text: str, tmp_path: Path) -> None:
    row = parse(text)
    assert usual_tiles(row, "probes") * min(row.m, row.n) == DEFAULT_PROBES
    path = recorded(tmp_path, text, INSTRUCTIONS[text], "probes", tiles=usual_tiles(row, "probes") // 8)
    found = score_vectors(read_dots(path), path=str(path))
    assert (found.differing, found.open) == (0, ())
    assert len(found.killed) >= 3
    assert found.rows == usual_tiles(row, "probes") // 8 * row.m * row.n


def test_a_recording_of_tiles_is_scored_and_identified(tmp_path: Path) -> None:
    text = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
    path = recorded(tmp_path, text, "sm_90a", "probes")
    (scored,) = score_files([path])
    assert scored.error is None and scored.differing == 0 and scored.killed
    found = mmabits.identify(path, a_type="f16", b_type="f16", d_type="f32", k=8)
    assert found.survived and "sm_90a.hmma.f16.f32" in found.names and "sm_80.hmma.f16.f32" not in found.names


def test_elements_become_rows_in_their_order(tmp_path: Path) -> None:
    path = recorded(tmp_path, WGMMA, "sm_90a", "random-bits", tiles=2)
    vectors = read_dots(path)
    assert (vectors.rows, vectors.kind, vectors.k) == (2 * 64 * 8, "peer", 32)
    np.testing.assert_array_equal(vectors.d, dot_rows(parse(WGMMA), "sm_90a", vectors.a, vectors.b, vectors.c))
    np.testing.assert_array_equal(vectors.a[8 * 5], vectors.a[8 * 5 + 7])
    np.testing.assert_array_equal(vectors.b[3], vectors.b[8 + 3])


def test_chains_are_no_dot_products(tmp_path: Path) -> None:
    path = recorded(tmp_path, WGMMA, "sm_90a", "normal", tiles=1, chain=2)
    with pytest.raises(VectorFileError, match="holds chains of 2 instructions"):
        read_dots(path)
    (scored,) = score_files([path])
    assert scored.error is not None and "holds chains of 2 instructions" in scored.error


def test_modified_instructions_have_the_probes_of_the_plain_one(tmp_path: Path) -> None:
    path = recorded(tmp_path, f"{WGMMA}.negA", "sm_90a", "probes")
    plain = recorded(tmp_path, WGMMA, "sm_90a", "probes")
    np.testing.assert_array_equal(read_dots(path).a, read_dots(plain).a)


def test_the_command_identifies_a_gpus_instruction(
    fake_driver: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], needs_nvrtc: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(driver, "_bindings", lambda: fake_driver((9, 0)))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "identify",
                "--instruction",
                "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8",
                "--gpu",
                "0",
                "--json",
                "--report",
                str(tmp_path / "page.html"),
            ]
        )
    assert ended.value.code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Fake GPU (sm_90a)" in text and "proves nothing about hardware" not in text
    assert "sm_90a.wgmma.int.s32" in json.loads(capsys.readouterr().out)["matches"]
    with pytest.raises(SystemExit) as ended:
        main(["identify", "--instruction", "tcgen05.mma.cta_group::1.kind::i8.m128n16k32.s32.s8.s8", "--gpu", "0"])
    assert ended.value.code == 2
    assert "sm_90a" in capsys.readouterr().err
