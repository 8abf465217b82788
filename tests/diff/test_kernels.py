"""Recorded calls of kernels: files, differences, and the products behind the first element that differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmabits
from mmabits.commands.main import main
from mmabits.conformance.diff import frameworks, recorder
from mmabits.conformance.diff.kernel_cases import KERNEL_CASES
from mmabits.conformance.diff.kernels import Attribution, Composed, compare_kernel, record_kernel
from mmabits.conformance.diff.recorder import ALL_CASES, is_possible, keep, record_into
from mmabits.conformance.recorded.calls import KERNEL_FORMAT, KernelRun, write_run
from mmabits.conformance.recorded.reading import read_recorded
from mmabits.isa import DeviceUnavailable, OperandError, UnknownArchitecture
from mmabits.isa.errors import VectorFileError

pytest.importorskip("torch")
pytest.importorskip("triton")

WIDER = "diff-kernels-f20"


def wider() -> str:
    """Hopper with more bits in its FP8 sums, and nothing else changed."""
    return mmabits.what_if(WIDER, base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20, "result_fraction_bits": 23}}).name


def recorded(name: str, arch: str = "sm_90a") -> KernelRun:
    return record_kernel(KERNEL_CASES[name], stand_in=arch)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, output, errors)."""
    status: Any = 0
    try:
        main(["diff", *arguments])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr()
    return int(status or 0), told.out, told.err


# Differences -------------------------------------------------------------------------------------------------------------


def test_another_datapath_shows_and_its_product_is_explained() -> None:
    theirs = recorded("triton-fp8", wider())
    found = compare_kernel(theirs, arch="sm_90a")
    ours = recorded("triton-fp8")
    count = int((theirs.outputs["out"].view(np.uint32) != ours.outputs["out"].view(np.uint32)).sum())
    assert 0 < count == found.differing == found.outputs["out"].differing
    assert found.verdict == f"{count:,} of 2,880 elements differ; emulated kernel and composition agree"
    place = found.detail(Attribution)
    assert place.products == 1 and place.explanation is not None
    first = np.argwhere(theirs.outputs["out"].view(np.uint32) != ours.outputs["out"].view(np.uint32))[0]
    assert (place.row, place.column) == tuple(first)
    # Scales are powers of two times others: the accumulator times both is the result.
    scales = theirs.inputs["x_scales"][place.row], theirs.inputs["w_scales"][place.column]
    assert np.float32(np.float32(place.values[0]) * scales[0]) * scales[1] == ours.outputs["out"][place.row, place.column]
    assert float(place.explanation.trace.result.value or 0) == place.values[0]
    text = "\n".join(found.lines())
    assert "proves nothing about hardware" in text and f"out: {count} of 2880 differ" in text and "comes from one product" in text


def test_products_that_add_up_to_an_element_are_all_named() -> None:
    found = compare_kernel(recorded("triton-fp8-tiles-divide", wider()), arch="sm_90a")
    place = found.detail(Attribution)
    assert not found.is_equal and place.products == len(place.values) == 2  # K = 256 in blocks of 128
    explained = found.explanation
    assert explained is not None and float(explained.trace.result.value or 0) in place.values


def test_products_of_other_shapes_are_not_blamed() -> None:
    found = compare_kernel(recorded("triton-fp8-attention", wider()), arch="sm_90a")
    assert not found.is_equal and found.explanation is None and found.detail(Attribution).products > 2
    assert "of other shapes" in "\n".join(found.lines())


def test_what_does_not_touch_the_changed_row_stays_equal() -> None:
    for name in ("triton-matmul-f16", "triton-w8a8", "triton-quantize-fp8"):
        assert compare_kernel(recorded(name, wider()), arch="sm_90a").is_equal


def test_a_composition_is_asked_only_about_its_own_operands() -> None:
    original = recorded("triton-fp8")
    other = replace(original, seed=1)  # the operands are still those of seed 0
    found = compare_kernel(other)
    assert found.is_equal and found.detail(Composed).found is None and found.verdict == "every bit equal; no composition to ask"


def test_outputs_of_any_shape_and_type_are_compared() -> None:
    original = recorded("triton-quantize-fp8")
    codes = original.outputs["elements"].view(np.uint8).copy()
    codes[0, 0] ^= 1
    codes[3, 5] ^= 0x80  # a NaN
    found = compare_kernel(replace(original, outputs={**original.outputs, "elements": codes.view(original.outputs["elements"].dtype)}))
    counts = {kind.value: count for kind, count in found.outputs["elements"].counts.items() if count}
    assert counts["value"] == 1 and counts["NaN payload"] == 1 and found.outputs["scales"].is_equal and found.differing == 2
    assert found.outputs["elements"].largest_ulp == 1
    cache = recorded("triton-fp8-attention")
    assert cache.outputs["out"].ndim == 4 and compare_kernel(cache).elements == cache.outputs["out"].size


# Files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["triton-fp8", "triton-quantize-mxfp4-rows", "triton-w4a16-awq-bf16", "triton-fp8-attention"])
def test_a_file_holds_every_bit(name: str, tmp_path: Path) -> None:
    original, path = recorded(name), tmp_path / "run.safetensors"
    write_run(path, original)
    found = read_recorded(path)
    assert isinstance(found, KernelRun) and found.manifest == original.manifest
    for name_, array in original.arrays.items():
        assert found.arrays[name_].dtype == array.dtype and found.arrays[name_].shape == array.shape
        assert found.arrays[name_].tobytes() == array.tobytes()
    with pytest.raises(VectorFileError, match="is there already"):
        write_run(path, original)


def test_a_damaged_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.safetensors"
    write_run(path, recorded("triton-fp8"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(VectorFileError, match=r"run\.safetensors: its sha256 is not that of its contents"):
        read_recorded(path)
    status, out, err = run(capsys, "--against", str(path))
    assert (status, out) == (2, "") and err.count("\n") == 1 and "sha256" in err
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VectorFileError, match="may be truncated"):
        read_recorded(path)


def test_what_contradicts_itself_is_refused() -> None:
    original = recorded("triton-fp8")
    with pytest.raises(OperandError, match="unknown case 'triton-fp9'"):
        replace(original, case="triton-fp9")
    with pytest.raises(OperandError, match="outputs are elements; triton-fp8 has out"):
        replace(original, outputs={"elements": original.outputs["out"]})
    with pytest.raises(OperandError, match="kind is 'rumour'"):
        replace(original, kind="rumour")
    with pytest.raises(OperandError, match=r"in\.x is complex64"):
        replace(original, inputs={"x": np.zeros(3, np.complex64)})


def test_operands_that_no_such_kernel_takes_are_refused() -> None:
    original = recorded("triton-fp8")
    x = original.inputs["x"]
    with pytest.raises(OperandError, match=r"triton-fp8 takes .*x \(.*, 2 axes\).*; the run has y \(float32, 1 axes\)"):
        compare_kernel(replace(original, inputs={"y": np.zeros(3, np.float32)}))
    for other in (x[..., None], x.view(np.uint8)):
        with pytest.raises(OperandError, match="triton-fp8 takes "):
            compare_kernel(replace(original, inputs={**original.inputs, "x": other}))


def test_what_a_kernel_says_of_foreign_operands_is_an_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those of the run's seed it would be a mistake of ours, and stays what it is."""
    original = recorded("triton-fp8")

    def broken(*_: object) -> None:
        raise IndexError("out of\nbounds")

    monkeypatch.setattr("mmabits.conformance.diff.kernels.emulated", broken)
    with pytest.raises(IndexError):
        compare_kernel(original)
    x = original.inputs["x"].copy()
    x.view(np.uint8)[0, 0] ^= 1
    with pytest.raises(OperandError, match=r"triton-fp8 does not take the run's operands \(IndexError: out of bounds\)"):
        compare_kernel(replace(original, inputs={**original.inputs, "x": x}))


def test_the_same_run_is_kept_and_another_is_not_replaced(tmp_path: Path) -> None:
    original = recorded("triton-fp8")
    first = keep(original, tmp_path)
    bits = first.path.read_bytes()
    assert first.state == "wrote" and keep(original, tmp_path).state == "kept"
    with pytest.raises(VectorFileError, match="is there already, with gpu 'emulator of sm_90a' \\(now: 'H200'\\)"):
        keep(replace(original, gpu="H200"), tmp_path)
    assert first.path.read_bytes() == bits


def test_a_finished_case_does_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = KERNEL_CASES["triton-fp8"]
    first = record_into(case, tmp_path, seed=0, stand_in="sm_90a")

    def never(*_: object, **__: object) -> None:
        raise RuntimeError("it runs again")

    monkeypatch.setattr(recorder, "record_any", never)
    again = record_into(case, tmp_path, seed=0, stand_in="sm_90a")
    assert (first.state, again.state, again.path) == ("wrote", "kept", first.path)
    with pytest.raises(VectorFileError, match="is there already, with arch 'sm_90a' \\(now: 'sm_100a'\\)"):
        record_into(case, tmp_path, seed=0, stand_in="sm_100a")
    with pytest.raises(RuntimeError, match="it runs again"):
        record_into(case, tmp_path, seed=1, stand_in="sm_90a")
    first.path.write_bytes(b"12345")
    with pytest.raises(VectorFileError, match="is there already, and is no run"):
        record_into(case, tmp_path, seed=0, stand_in="sm_90a")


# Frameworks and GPUs that are not there ------------------------------------------------------------------------------------


def test_a_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(frameworks, "import_module", missing)
    with pytest.raises(DeviceUnavailable, match=r"triton-fp8 needs torch, which is not installed .*pip install 'mmabits\[triton\]'"):
        recorded("triton-fp8")
    status, _, err = run(capsys, "--emulated", "--arch", "sm_90a", "--case", "triton-fp8")
    assert status == 2 and "pip install 'mmabits[triton]'" in err


def test_without_a_gpu_there_is_one_clear_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(capsys, "--case", "triton-fp8", "--case", "mm-f16-k256")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert "PyTorch" in err and "Without a GPU, mmabits diff takes --against FILE, or --emulated --arch ARCH" in err


def test_a_framework_without_a_gpu_leaves_the_others_theirs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that PyTorch finds and JAX does not; the calls themselves run on the CPU inside `emulate`."""

    def there() -> frameworks.Gpu:
        return frameworks.Gpu("sm_90a", "H200", None)

    def not_there() -> frameworks.Gpu:
        raise DeviceUnavailable("JAX finds no GPU here")

    rows = {**frameworks.FRAMEWORKS, "jax": replace(frameworks.FRAMEWORKS["jax"], gpu=not_there)}
    rows["torch"] = replace(rows["torch"], gpu=there, around=lambda: mmabits.emulate("sm_90a", frameworks=["torch"]))
    monkeypatch.setattr(frameworks, "FRAMEWORKS", rows)
    status, out, err = run(capsys, "--case", "mm-f16-k256", "--case", "jax-fp8")
    assert status == 2 and err == "error: jax: JAX finds no GPU here\n"
    assert "mm-f16-k256: torch.mm (f16), H200" in out and "65536 elements, 0 differ" in out and "proves nothing" not in out


def test_an_unknown_gpu_is_named() -> None:
    assert frameworks.arch_of_capability("90", "H200") == "sm_90a" and frameworks.arch_of_capability("80", "A100") == "sm_80"
    with pytest.raises(UnknownArchitecture, match="R100 is sm_130; known"):
        frameworks.arch_of_capability("130", "R100")


# The command -------------------------------------------------------------------------------------------------------------


def test_cases_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0 and set(rows) == set(ALL_CASES)
    every = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"]
    assert rows["triton-mxfp4"]["architectures"] == every
    assert rows["dot-general-e4m3-k256"]["framework"] == "jax" and "sm_80" not in rows["dot-general-e4m3-k256"]["architectures"]
    assert not is_possible(ALL_CASES["triton-fp8"], "sm_80") and is_possible(ALL_CASES["mm-f16-k256"], "sm_70")


def test_kernels_and_products_in_one_call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases = [word for name in ("triton-fp8", "mm-f16-k256", "triton-quantize-fp8") for word in ("--case", name)]
    status, out, err = run(capsys, "--emulated", "--arch", "sm_90a", *cases)
    assert (status, err) == (0, "") and "3 cases: 3 equal, 0 different" in out
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "--emulated", "--arch", "sm_90a", *cases, "--json", "--report", str(page))
    assert status == 0 and [one["differing"] for one in json.loads(out)["runs"]] == [0, 0, 0] and "3 cases: 3 equal" in page.read_text()


def test_a_recorded_run_is_compared_later(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "--record", str(tmp_path), "--emulated", "--arch", wider(), "--case", "triton-fp8", "--seed", "2")
    path = tmp_path / "triton-fp8-seed2.safetensors"
    assert status == 0 and out == f"wrote {path}\n"
    assert (
        run(capsys, "--record", str(tmp_path), "--emulated", "--arch", wider(), "--case", "triton-fp8", "--seed", "2")[1]
        == f"kept {path}\n"
    )
    assert run(capsys, "--against", str(path))[0] == 0
    page = tmp_path / "page.html"
    status, out, _ = run(capsys, "--against", str(path), "--arch", "sm_90a", "--report", str(page))
    assert status == 1 and "triton-fp8: mmabits.kernels.triton.fp8.fp8_matmul(), emulator of diff-kernels-f20" in out
    assert "D[" in out and out.endswith(f"wrote {page}\n")
    text = page.read_text(encoding="utf-8")
    assert "proves nothing about hardware" in text and "comes from one product" in text and text.count("<svg") >= 3
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    status, out, _ = run(capsys, "--against", str(path), "--arch", "sm_90a", "--json")
    found = json.loads(out)
    assert status == 1 and found["differing"] == found["outputs"]["out"]["differing"] > 0 and found["run"]["seed"] == 2
    assert found["composition"] == {"out": {"elements": 2880, "differing": 0}}


def test_one_case_that_fails_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--emulated", "--arch", "sm_80", "--case", "triton-fp8", "--case", "mm-f16-k256")
    assert status == 2 and "error: triton-fp8:" in err and "mm-f16-k256" in out and "0 differ" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--emulated",), "--emulated has no GPU to ask for its architecture"),
        (("--against", "x", "--case", "triton-fp8"), "--against takes what a file holds"),
        (("--record", "x", "--json"), "--record only records"),
        (("--case", "triton-fp9"), "unknown case 'triton-fp9'; did you mean triton-fp8"),
        (("--emulated", "--arch", "sm_90a", "--report", "page.pdf"), "a page is written as .html, got 'page.pdf'"),
    ],
)
def test_wrong_use_is_refused(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and message in err


def test_the_format_is_named() -> None:
    assert KERNEL_FORMAT == KernelRun.FORMAT == "kernel-run/1"
