"""The command line: what is printed where, as JSON too, exit statuses, and one-line errors."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import mmabits
from mmabits.commands import main, tables
from mmabits.conformance.recorded.dots import DotVectors, write_vectors
from mmabits.isa import ARCHITECTURES, format_spec, instructions, parse

ROOT = Path(__file__).resolve().parents[2]
WGMMA = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
FULL_FP8 = "mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16"


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Call the command in this process."""

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as left:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(int(left.value.code or 0), captured.out, captured.err)

    return call


def check_error(result: Result, match: str) -> None:
    assert result.status == 2
    assert result.out == ""
    assert re.fullmatch(rf"error: .*{match}.*\n", result.err), result.err


@pytest.fixture
def vectors() -> DotVectors:
    """1 * 1 + 2 * 2 = 5, three times."""
    return DotVectors(
        instruction=WGMMA, arch="sm_90a", a_type=format_spec("e4m3"), b_type=format_spec("e4m3"), c_type=format_spec("f32"),
        d_type=format_spec("f32"), k=2, a=np.array([[0x38, 0x40]] * 3, dtype=np.uint8), b=np.array([[0x38, 0x40]] * 3, dtype=np.uint8),
        c=np.zeros(3, dtype=np.uint32), d=np.full(3, 0x40A00000, dtype=np.uint32), gpu="NVIDIA H100 [test]",
    )  # fmt: skip


@pytest.fixture
def wrong(vectors: DotVectors) -> DotVectors:
    return replace(vectors, d=np.array([0x40A00000, 0x40A00001, 0x40A00000], dtype=np.uint32))


# list ------------------------------------------------------------------------------------------------------------------


def test_list_has_a_line_for_each_form_and_counts_them(run) -> None:
    result = run("list", "--arch", "sm_90a")
    rows = instructions(arch="sm_90a")
    assert result.status == 0
    for row in rows:
        assert re.search(rf"^sm_90a +{re.escape(row.pattern)} ", result.out, re.MULTILINE), row.pattern
    assert result.out.splitlines()[-1] == f"{len(rows)} forms: {tables.counts_text(rows)}"


def test_list_json(run) -> None:
    result = run("list", "--json")
    rows = json.loads(result.out)
    assert len(rows) == len(instructions())
    assert {row["arch"] for row in rows} == set(ARCHITECTURES)
    for row in rows:
        assert (row["evidence"] in ("recorded", "published", "inferred")) == row["modelled"]
        if row["example"] is not None:
            parsed = parse(row["example"])
            assert (parsed.d_type.name, str(parsed.family)) == (row["accumulator"], row["family"])
    assert any(not row["modelled"] and "sp" in row["instruction"] for row in rows)


def test_list_filters(run) -> None:
    recorded = json.loads(run("list", "--arch", "sm_90a", "--evidence", "recorded", "--json").out)
    assert recorded
    assert {row["evidence"] for row in recorded} == {"recorded"}
    assert {row["arch"] for row in recorded} == {"sm_90a"}
    wgmma = json.loads(run("list", "--family", "wgmma", "--json").out)
    assert {row["family"] for row in wgmma} == {"wgmma.mma_async"}
    assert json.loads(run("list", "--arch", "sm_70", "--family", "wgmma", "--json").out) == []
    assert run("list", "--arch", "sm_70", "--family", "wgmma").out.splitlines()[-1] == "0 forms: none"


def test_list_errors(run) -> None:
    check_error(run("list", "--arch", "sm_99"), "unknown architecture 'sm_99'; known: sm_70")
    check_error(run("list", "--evidence", "recoded"), "unknown evidence level 'recoded'; did you mean recorded")
    check_error(run("list", "--family", "wmma"), "unknown instruction family 'wmma'; known: mma.sync")


def test_markdown_counts_every_form_once(run) -> None:
    lines = run("list", "--markdown").out.splitlines()
    assert lines[0] == "| Architecture | GPUs | `mma.sync` | `wgmma.mma_async` | `tcgen05.mma` |"
    body = [line for line in lines if line.startswith("| `sm_")]
    assert [line.split("`")[1] for line in body] == list(ARCHITECTURES)
    rows = instructions()
    for level in ("recorded", "published", "inferred", "not modelled"):
        counted = sum(int(number) for line in body for number in re.findall(rf"(\d+) {level}", line))
        wanted = sum(("not modelled" if row.evidence is None else str(row.evidence)) == level for row in rows)
        assert counted == wanted
        assert f"{wanted} {level}" in lines[-1]


def block_of(document: str, name: str) -> str:
    """What stands between <!-- name --> and its end."""
    path = ROOT / document
    if not path.is_file():
        pytest.skip(f"no {document}")
    block = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- end( {name})? -->", path.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, f"{document} lacks the markers <!-- {name} --> and <!-- end -->"
    return block[1].strip()


def test_documents_hold_the_generated_tables_of_support() -> None:
    assert block_of("docs/support.md", "support table") == tables.support_markdown(instructions()), "update it: mmabits list --markdown"
    assert block_of("README.md", "support") == tables.support_summary(instructions())


# show ------------------------------------------------------------------------------------------------------------------


def test_show_a_split_instruction(run) -> None:
    out = run("show", FULL_FP8, "--arch", "sm_90a").out
    assert out.startswith(f"{FULL_FP8} on sm_90a\n")
    for text in (
        "D 16 x 8 = A 16 x 32 * B 32 x 8 + C",
        "D f16, A e4m3, B e4m3, C f16",
        "HMMA.16816.F16 P, A, B, RZ; ",
        "0 1 4 5 8 9 12 13 16 17 20 21 24 25 28 29 2 3 6 7",
        "added after the steps by one IEEE addition",
        "sm_90a.hmma.f16.f16",
        "f16, 10 fraction bits, rn",
        "0x7FFF\n",
        "evidence: recorded\n",
        "- recording h100-mma-e4m3-f16, NVIDIA H100, mma.sync",
        "https://arxiv.org/abs/2511.10909",
    ):
        assert text in out, text
    assert re.search(r"\(F\) +25\n", out)
    assert re.search(r"\(L\) +16\n", out)
    assert re.search(r"\(e_zero\) +-21\n", out)


def test_show_short_spellings(run) -> None:
    short = run("show", "wgmma", "--arch", "sm_90a", "--a-type", "e4m3", "--b-type", "e5m2")
    assert short.out.startswith("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e5m2 on sm_90a\n")
    assert "arithmetic: recorded, finite operands, c = 0" in short.out
    assert "arithmetic: published, finite operands, c != 0" in short.out
    scaled = run("show", "tcgen05.mma.kind::mxf4nvf4.block_scale.block16", "--arch", "sm_100a", "--a-type", "e2m1", "--scale-type", "ue4m3")
    assert "ue4m3, one for 16 elements of K" in scaled.out
    assert re.search(r"elements summed exactly first +16\n", scaled.out)
    assert scaled.out.count("width of the alignment disputed") == 1


def test_show_integers_leave_out_what_does_not_apply(run) -> None:
    out = run("show", "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32", "--arch", "sm_80").out
    assert "D s32, A s8, B u8, C s32" in out
    assert "NaN " not in out
    assert "(F)" not in out


def test_show_json(run) -> None:
    found = json.loads(run("show", FULL_FP8, "--arch", "sm_90a", "--json").out)
    assert (found["instruction"], found["arch"], found["evidence"]) == (FULL_FP8, "sm_90a", "recorded")
    assert (found["m"], found["n"], found["k"]) == (16, 8, 32)
    assert found["separate_add"] is True
    assert sorted(found["k_order"]) == list(range(32))
    assert {key: found["datapath"][key] for key in ("fraction_bits", "step", "zero_exponent")} == {
        "fraction_bits": 25,
        "step": 16,
        "zero_exponent": -21,
    }
    assert found["proofs"]["arithmetic"][0]["sources"] == ["h100-mma-f16-f16", "h200-mma-f16-f16"]


def test_every_modelled_form_can_be_shown() -> None:
    for row in instructions():
        if row.modelled and row.example is not None:
            lines = tables.instruction_lines(row.example, row.arch)
            assert f"evidence: {row.evidence}" in lines
            assert not [line for line in lines if line.startswith("    - ") and " " not in line.removeprefix("    - ")], (
                "a source not written out"
            )
            json.dumps(tables.instruction_json(row.example, row.arch), allow_nan=False)


def test_show_errors(run) -> None:
    check_error(run("show", WGMMA, "--arch", "sm_100a"), r"sm_100a has no wgmma.*tcgen05\.mma")
    check_error(run("show", "wgmma", "--arch", "sm_90a"), r"\(a short spelling needs --a-type\)")
    check_error(run("show", "wgmma", "--arch", "sm_90a", "--b-type", "e4m3"), "go with --a-type, which is missing")
    check_error(run("show", "wgmma", "--arch", "sm_90a", "--a-type", "e4m4"), "unknown format 'e4m4'; did you mean e4m3")
    check_error(run("show", "wgma", "--arch", "sm_90a", "--a-type", "e4m3"), "wgma")


# replay ----------------------------------------------------------------------------------------------------------------


def test_replay_of_equal_rows(run, tmp_path: Path, vectors: DotVectors) -> None:
    write_vectors(tmp_path / "some-file.safetensors", vectors)
    result = run("replay", tmp_path)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "3 rows, 0 differ"
    assert re.search(rf"^some-file +NVIDIA H100 \[test\] +{re.escape(WGMMA)} +sm_90a +published +3 +0$", result.out, re.MULTILINE)


def test_replay_of_differing_rows(run, tmp_path: Path, vectors: DotVectors, wrong: DotVectors) -> None:
    write_vectors(tmp_path / "a.safetensors", vectors)
    write_vectors(tmp_path / "b.safetensors", wrong)
    result = run("replay", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (result.status, result.err) == (1, "")
    assert result.out.splitlines()[-1] == "6 rows, 1 differ"
    assert f"{tmp_path / 'b.safetensors'} row 1: {WGMMA} on sm_90a" in result.out
    assert "  recorded  0x40a00001  0|10000001|01000000000000000000001  5.000000476837158" in result.out
    assert "row 1:" not in run("replay", tmp_path, "--limit", 0).out


def test_replay_json(run, tmp_path: Path, wrong: DotVectors) -> None:
    write_vectors(tmp_path / "b.safetensors", wrong)
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    result = run("replay", tmp_path, "--json")
    assert result.status == 2
    found = json.loads(result.out)
    assert {key: found[key] for key in ("rows", "differing", "errors")} == {"rows": 3, "differing": 1, "errors": 1}
    assert [file["gpu"] for file in found["files"]] == ["NVIDIA H100 [test]", ""]
    assert found["files"][0]["differences"][0]["row"] == 1
    assert "broken.safetensors" in found["files"][1]["error"]
    assert re.fullmatch(r"error: .*broken\.safetensors: no readable safetensors file.*\n", result.err)


def test_replay_of_a_damaged_file_counts_the_others(run, tmp_path: Path, vectors: DotVectors) -> None:
    write_vectors(tmp_path / "a.safetensors", vectors)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    result = run("replay", tmp_path)
    assert result.status == 2
    assert result.out.splitlines()[-1] == "3 rows, 0 differ"
    assert re.fullmatch(r"error: .*b\.safetensors: no readable safetensors file.*\n", result.err)


def test_replay_of_an_instruction_that_the_architecture_lacks(run, tmp_path: Path, vectors: DotVectors) -> None:
    write_vectors(tmp_path / "a.safetensors", replace(vectors, arch="sm_120a"))
    result = run("replay", tmp_path)
    assert (result.status, result.out) == (2, "0 rows, 0 differ\n")
    assert re.fullmatch(r"error: .*a\.safetensors: sm_120a has no wgmma.*\n", result.err)


def test_replay_without_files(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_error(run("replay", tmp_path), "no file .*safetensors in this folder")
    check_error(run("replay", tmp_path / "none"), "none: no such file or folder")
    monkeypatch.setenv("MMABITS_RECORDINGS", str(tmp_path / "none"))
    check_error(run("replay"), "MMABITS_RECORDINGS is .*which is no folder")


def test_replay_takes_the_named_folder(run, tmp_path: Path, vectors: DotVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vectors(tmp_path / "a.safetensors", vectors)
    monkeypatch.setenv("MMABITS_RECORDINGS", str(tmp_path))
    assert run("replay").out.splitlines()[-1] == "3 rows, 0 differ"


# The whole -------------------------------------------------------------------------------------------------------------


def test_version(run) -> None:
    assert run("--version") == (0, f"mmabits {mmabits.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("lst",), "No such command 'lst'"),
        (("show", WGMMA), "Missing option '--arch'"),
        (("replay", "--limit", "-1"), "Invalid value for '--limit'"),
        (("list", "--nope"), "No such option"),
    ],
)
def test_usage_errors(run, arguments: tuple[str, ...], match: str) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert match in result.err


def test_help_lists_the_commands_and_loads_neither_engine_nor_pictures() -> None:
    program = """
import sys
from mmabits.commands.main import main
try:
    main(["--help"])
except SystemExit as left:
    assert left.code == 0
print(sorted({"llvmlite", "matplotlib", "numba", "safetensors", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    for command in ("list", "show", "replay", "demo"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "[]"


def test_demo_prints_replays_and_leaves_with_the_status_of_the_replay(
    run, tmp_path: Path, wrong: DotVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr("mmabits.commands.demo.run_demo", lambda **options: called.update(options))
    write_vectors(tmp_path / "a.safetensors", wrong)
    result = run("demo", "--out", tmp_path / "pictures", "--size", "small", "--recordings", tmp_path)
    assert (called["out"], called["size"]) == (tmp_path / "pictures", "small")
    assert result.status == 1
    assert result.out.splitlines()[-1] == "3 rows, 1 differ"
    monkeypatch.setattr("mmabits.conformance.recorded.reading.recordings_folder", lambda: None)
    result = run("demo", "--out", tmp_path)
    assert (result.status, called["size"]) == (0, "full")
    assert "No recordings here: the replay is left out" in result.out
