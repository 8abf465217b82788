"""`mmabits diff`: files, exit statuses, the page; a what-if architecture stands in for the GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import typer

import mmabits
from mmabits.commands import main
from mmabits.commands.diff import diff
from mmabits.conformance.diff import Run, read_run, recompute, write_run
from mmabits.conformance.diff.cases import CASES, case_named, record_case
from mmabits.conformance.diff.schedules import assumed_schedule
from mmabits.isa import DeviceUnavailable, OperandError
from mmabits.isa.errors import VectorFileError

ARCH = "sm_90a"
WHAT_IF = "diff-f20"


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run `mmabits diff` as the command line would: (exit status, output, errors)."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(diff)
    monkeypatch.setattr(main, "app", app)

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main.main([str(word) for word in words])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def a_run(**changes):
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((70, 512)).astype(np.float16), rng.standard_normal((512, 80)).astype(np.float16)
    split = recompute(a, b, schedule=replace(assumed_schedule(a, b, arch=ARCH), **changes), arch=ARCH)
    return Run(
        case="planted", arch=ARCH, call="a test", kind="emulator", gpu="none", a=a, b=b, result=split, versions={"numpy": np.__version__}
    )


def test_a_run_survives_its_file(tmp_path):
    run = replace(a_run(), scale_a=np.ones((1, 1), np.float32), scale_b=np.ones((1, 1), np.float32), fast_accum=False, seed=9)
    path = tmp_path / "run.safetensors"
    write_run(path, run)
    found = read_run(path)
    assert found.manifest == run.manifest
    for name, array in run.arrays.items():
        assert found.arrays[name].dtype == array.dtype and found.arrays[name].tobytes() == array.tobytes()


def test_a_finished_file_never_changes(tmp_path):
    path = tmp_path / "run.safetensors"
    write_run(path, a_run())
    before = path.read_bytes()
    with pytest.raises(VectorFileError, match="is there already"):
        write_run(path, a_run(split_k=4))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change", ["tensor", "manifest", "cut", "empty"])
def test_damage_is_noticed(tmp_path, run_cli, change):
    path = tmp_path / "run.safetensors"
    write_run(path, a_run())
    data = bytearray(path.read_bytes())
    if change == "tensor":
        data[-5] ^= 1
    elif change == "manifest":
        data = data.replace(b"planted", b"PLANTED")
    else:
        data = data[: len(data) // 2] if change == "cut" else b""
    path.write_bytes(data)
    with pytest.raises(VectorFileError, match=r"run\.safetensors"):
        read_run(path)
    status, _, errors = run_cli("--against", path)
    assert status == 2 and errors.startswith("error:") and "run.safetensors" in errors and "differ" not in errors


def test_equal(tmp_path, run_cli):
    path, page = tmp_path / "run.safetensors", tmp_path / "page.html"
    write_run(path, a_run())
    status, out, _ = run_cli("--against", path, "--report", page)
    assert status == 0 and "5600 elements, 0 differ" in out and "proves nothing about hardware" in out
    assert "every bit equal" in page.read_text()


def test_a_split_is_named_and_explained(tmp_path, run_cli):
    path, page = tmp_path / "run.safetensors", tmp_path / "page.html"
    write_run(path, a_run(split_k=4))
    status, out, _ = run_cli("--against", path, "--report", page)
    assert status == 1 and "K split by 4 and added in order" in out.split("schedules, the best first:")[1].splitlines()[1]
    status, out, _ = run_cli("--against", path, "--json")
    found = json.loads(out)
    assert status == 1 and found["fits"][0]["differing"] == 0 and found["fits"][0]["split_k"] == 4
    assert found["along_k"]["fitting"] == "no promotion, K split by 4 and added in order"
    assert found["differing"] == sum(map(sum, found["tiles"])) == found["elements"] - found["classes"]["equal"] > 0
    text = page.read_text()
    assert f"{found['differing']:,} of 5,600 elements differ" in text and text.count("<svg") == 5 and "Along K" in text
    assert found["first"][0]["hardware"] in text and "http://" not in text.replace("http://www.w3.org", "")


def test_a_flipped_zero_sign_and_a_nan_payload(tmp_path, run_cli):
    run = a_run()
    a, result = run.a.copy(), run.result.copy()
    a[3] = 0
    a[5, 0] = np.nan
    clean = recompute(a, run.b, schedule=assumed_schedule(a, run.b, arch=ARCH), arch=ARCH)
    result = clean.copy()
    result[3, 7] = -0.0
    result.view(np.uint32)[5, 9] = 0x7FC00000
    assert clean[3, 7] == 0 and clean.view(np.uint32)[5, 9] == 0x7FFFFFFF
    path = tmp_path / "run.safetensors"
    write_run(path, replace(run, a=a, result=result))
    status, out, _ = run_cli("--against", path, "--json", "--report", tmp_path / "page.html")
    found = json.loads(out)
    assert status == 1 and found["differing"] == 2
    assert [(one["row"], one["column"], one["kind"]) for one in found["first"]] == [(3, 7, "zero sign"), (5, 9, "NaN payload")]


def test_dot_products_go_to_replay(tmp_path, run_cli):
    from safetensors.numpy import save_file

    path = tmp_path / "nothing.safetensors"
    save_file({"a": np.zeros(1, np.uint8)}, path, {"format": "dot-vectors/1"})
    status, _, errors = run_cli("--against", path)
    assert status == 2 and "nothing.safetensors" in errors


def test_arguments_are_checked(tmp_path, run_cli):
    for words, said in (
        ((), "Without a GPU, mmabits diff takes --against FILE"),
        (("--against", "x", "--case", "mm-f16-k256"), "--against takes what a file holds"),
        (("--record", tmp_path, "--arch", ARCH), "--record only records"),
        (("--record", tmp_path, "--case", "mm-f17-k256"), "did you mean"),
        (("--against", tmp_path / "missing.safetensors"), "missing.safetensors"),
    ):
        status, _, errors = run_cli(*words)
        assert status == 2 and said in errors


def test_recording_takes_a_gpu(tmp_path, monkeypatch, run_cli):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailable, match="CUDA"):
        record_case(CASES["mm-f16-k256"])
    status, _, errors = run_cli("--record", tmp_path / "new", "--case", "mm-f16-k256")
    assert status == 2 and "CUDA" in errors and not (tmp_path / "new").exists()


SMALL = {"m": 32, "n": 32}


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("k256")])
def test_cases_under_emulate_equal_the_recomputed_product(tmp_path, run_cli, name):
    pytest.importorskip("torch")
    run = record_case(replace(CASES[name], **SMALL), stand_in=ARCH)
    assert run.kind == "emulator" and run.result.dtype.itemsize in (2, 4) and np.isfinite(run.result.astype(np.float64)).all()
    write_run(tmp_path / "run.safetensors", run)
    assert run_cli("--against", tmp_path / "run.safetensors")[0] == 0


def test_accurate_products_promote_where_fast_ones_do_not():
    pytest.importorskip("torch")
    fast, accurate = (
        record_case(replace(CASES[f"scaled-mm-e4m3-tensor-{name}-k256"], **SMALL), stand_in=ARCH) for name in ("fast", "accurate")
    )
    assert (fast.a.tobytes(), fast.b.tobytes()) == (accurate.a.tobytes(), accurate.b.tobytes())
    assert (fast.result != accurate.result).any()


def test_another_gpu_is_told_from_the_architecture(tmp_path, run_cli):
    pytest.importorskip("torch")
    mmabits.what_if(WHAT_IF, base=ARCH, rows={"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 20}})
    run = record_case(replace(CASES["scaled-mm-e4m3-tensor-fast-k256"], **SMALL), stand_in=WHAT_IF)
    path = tmp_path / "run.safetensors"
    write_run(path, run)
    assert run_cli("--against", path)[0] == 0
    status, out, _ = run_cli("--against", path, "--arch", ARCH, "--json")
    found = json.loads(out)
    assert status == 1 and found["arch"] == ARCH and found["classes"]["value"] == found["differing"] > 0
    assert all(fit["differing"] for fit in found["fits"])  # no schedule of the real one makes up for it


def test_names_of_cases():
    assert case_named("mm-f16-k1024").k == 1024
    with pytest.raises(OperandError, match="mm-bf16-k256"):
        case_named("mm-bf16-k25")
    with pytest.raises(OperandError, match="kind"):
        replace(a_run(), kind="guess")


def test_pytorchs_setting_is_put_back():
    torch = pytest.importorskip("torch")
    before = torch.backends.cuda.matmul.fp32_precision
    record_case(replace(CASES["mm-tf32-k256"], **SMALL), stand_in=ARCH)
    assert torch.backends.cuda.matmul.fp32_precision == before
