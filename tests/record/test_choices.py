"""Asking cuBLASLt for algorithms, rehearsed with a stand-in of it in C: descriptors, sizes, layouts, the file."""

import ctypes
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmabits
from mmabits.commands import record as command
from mmabits.commands.main import main
from mmabits.conformance.record import choices as asking
from mmabits.conformance.record import driver
from mmabits.conformance.record.choices import CublasLtLibrary, RulesLibrary, ShapeQuestion, questions, record_choices
from mmabits.conformance.record.compared import DTYPES, HostMemory, operands
from mmabits.conformance.record.device import EmulatedDevice
from mmabits.emulator.schedules import Schedule
from mmabits.isa import DeviceUnavailable, Evidence, OperandError

SOURCE = Path(__file__).parent / "cublaslt_stand_in.c"
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler for the stand-in")
DEEP = ShapeQuestion(m=16, n=64, k=8192)


def compiled(folder, *options):
    path = folder / f"libcublasLt{len(options)}.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", *options, "-o", str(path), str(SOURCE)], check=True)
    return path


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("cublaslt"))


def live(library):
    return ctypes.c_int.in_dll(library._lib, "live").value


def test_answers_have_the_nine_attributes(stand_in):
    library = CublasLtLibrary(stand_in)
    assert (library.name, library.version_words) == ("cublaslt-13.1", "13.1.1")
    found = library.ask(DEEP)
    assert (found.config, found.workspace) == ((66, 101, 4, 0, 1, 0, 35, 7, 3), 4096)
    assert library.ask(DEEP, workspace=0).config[2] == 1
    assert library.ask(DEEP, layout="torch").config[1] == 100  # by columns
    fp8 = ShapeQuestion(m=16, n=64, k=8192, types=("e4m3", "e4m3", "bf16"), fast_accum=True)
    assert library.ask(fp8).config == (66, 100, 4, 0, 1, 1, 36, 7, 3)
    assert live(library) == 0


def test_no_algorithm_is_an_answer_and_a_refused_descriptor_an_error(stand_in, monkeypatch):
    library = CublasLtLibrary(stand_in)
    found = library.ask(ShapeQuestion(m=1, n=2, k=13))
    assert found.config is None and found.status == "CUBLAS_STATUS_NOT_SUPPORTED"
    with pytest.raises(OperandError, match="unknown layout 'rows'"):
        library.ask(DEEP, layout="rows")
    monkeypatch.setattr(asking, "_DESC_TRANSA", 99)
    with pytest.raises(DeviceUnavailable, match="cublasLtMatmulDescSetAttribute says CUBLAS_STATUS_INVALID_VALUE"):
        library.ask(ShapeQuestion(m=1, n=16, k=16, types=("e4m3", "e4m3", "f16")))
    assert live(library) == 0


def test_what_is_no_library(tmp_path, stand_in, monkeypatch):
    with pytest.raises(DeviceUnavailable, match="no cuBLASLt here"):
        CublasLtLibrary(tmp_path / "nothing.so")
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;")
    path = tmp_path / "empty.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(empty)], check=True)
    with pytest.raises(DeviceUnavailable, match="is no cuBLASLt"):
        CublasLtLibrary(path)
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(DeviceUnavailable, match="cublasLtCreate says CUBLAS_STATUS_NOT_INITIALIZED"):
        CublasLtLibrary(stand_in)


def test_shapes(tmp_path):
    file = tmp_path / "shapes.txt"
    file.write_text("# a model\n16x64x8192\n\n1x8x64:bf16  # a vector\n16x64x8192:f16\n")
    assert questions([str(file), "4x16x32:e4m3,e4m3,bf16:fast"]) == [
        DEEP, ShapeQuestion(m=1, n=8, k=64, types=("bf16",) * 3),
        ShapeQuestion(m=4, n=16, k=32, types=("e4m3", "e4m3", "bf16"), fast_accum=True),
    ]  # fmt: skip
    for text, why in (
        ("16x64", "a shape is MxNxK"), ("0x1x1", "a shape is MxNxK"), ("1x1x1:s8", "D must be one of"), ("1x1x1:f16:fast", "is for FP8"),
        ("1x1x1:e4m3,f16,f16", "FP8 by FP8"),
    ):  # fmt: skip
        with pytest.raises(OperandError, match=why):
            questions([text])
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    with pytest.raises(OperandError, match="no shapes"):
        questions([str(empty)])


def test_the_file_is_taken_by_choice(tmp_path, stand_in):
    out = tmp_path / "choices.json"
    info = EmulatedDevice("sm_90a").info
    answers = record_choices(CublasLtLibrary(stand_in), info, [DEEP, ShapeQuestion(m=1, n=2, k=13)], out, command="mmabits record")
    assert [answer.config is None for answer in answers] == [False, True]
    data = json.loads(out.read_text())
    assert (data["library"], data["version"], data["workspace"]) == ("cublaslt-13.1", "13.1.1", 33554432)
    assert data["answers"][1]["config"] is None and data["answers"][1]["status"] == "CUBLAS_STATUS_NOT_SUPPORTED"
    out.write_text(json.dumps({**data, "kind": "hardware", "gpu": "H100"}))
    found = mmabits.choice(16, 64, 8192, "f16", arch="sm_90a", file=out)
    assert (found.evidence, found.best.slices) == (Evidence.RECORDED, 4)
    assert mmabits.choice(1, 2, 13, "f16", arch="sm_90a", file=out).evidence is Evidence.INFERRED
    out.write_text(json.dumps({**data, "kind": "emulator"}))
    assert mmabits.choice(16, 64, 8192, "f16", arch="sm_90a", file=out).evidence is Evidence.INFERRED


def test_versions_without_plans_are_refused(tmp_path):
    library = CublasLtLibrary(compiled(tmp_path, "-DVERSION=120401"))
    with pytest.raises(OperandError, match=r"is cuBLASLt 12\.4\.1; plans are known of cublaslt-13\.1, cublaslt-12\.8"):
        record_choices(library, EmulatedDevice("sm_90a").info, [DEEP], tmp_path / "choices.json")
    assert not (tmp_path / "choices.json").exists()
    assert CublasLtLibrary(compiled(tmp_path, "-DVERSION=120805", "-O0")).name == "cublaslt-12.8"


PRODUCT = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 3, *[ctypes.c_int] * 5, *[ctypes.c_void_p] * 3)
FORMS = {0: "f32", 2: "f16", 14: "bf16", 28: "e4m3", 29: "e5m2"}


def multiplying(library, *, planted=lambda schedule: schedule):
    """Let a stand-in multiply by our own schedules, or by planted ones; what must not be collected."""

    def product(columns, rows, k, form, out, splits, by_rows, fast, first, second, d):
        m, n = (columns, rows) if by_rows else (rows, columns)  # by columns it is D's transpose that is asked for
        a_type, d_type = DTYPES[FORMS[form]], DTYPES[FORMS[out]]
        a_at, b_at = (first, second) if by_rows else (second, first)
        read = lambda at, size: np.frombuffer((ctypes.c_uint8 * (size * a_type.itemsize)).from_address(at), a_type)  # noqa: E731
        a, b = read(a_at, m * k).reshape(m, k), read(b_at, k * n)
        b = b.reshape(n, k).T if form >= 28 else b.reshape(k, n)
        config = {"ALGO_ID": 66, "SPLITK_NUM": splits, "STAGES_ID": 36 if form >= 28 else 35}
        schedule = Schedule.cublaslt(config, m, n, k, (FORMS[form], FORMS[form], FORMS[out]), arch="sm_90a")
        if fast:
            schedule = replace(schedule, sums=replace(schedule.sums, promote_every=None))
        result = mmabits.gemm(a, np.ascontiguousarray(b), arch="sm_90a", schedule=planted(schedule))
        ctypes.memmove(d, result.astype(d_type, copy=False).ctypes.data, m * n * d_type.itemsize)
        return 0

    held = PRODUCT(product)
    ctypes.c_void_p.in_dll(library._lib, "product").value = ctypes.cast(held, ctypes.c_void_p).value
    return held


PRODUCTS = [
    ShapeQuestion(m=5, n=24, k=8192), ShapeQuestion(m=5, n=24, k=200, types=("bf16", "bf16", "f32")),
    ShapeQuestion(m=20, n=16, k=8192, types=("e4m3", "e4m3", "bf16")),
    ShapeQuestion(m=20, n=16, k=512, types=("e4m3", "e4m3", "f16"), fast_accum=True),
]  # fmt: skip


@pytest.mark.parametrize("layout", ["source", "torch"])
def test_products_are_run_and_compared(tmp_path, stand_in, layout):
    library, info, out = CublasLtLibrary(stand_in), EmulatedDevice("sm_90a").info, tmp_path / "choices.json"
    held = multiplying(library)
    answers = record_choices(library, info, [*PRODUCTS, ShapeQuestion(m=1, n=2, k=13)], out, layout=layout, memory=HostMemory())
    assert held and [answer.compared and (answer.compared.differ, answer.compared.results) for answer in answers] == [
        (0, 120), (0, 120), (0, 256), (0, 256), None,
    ]  # fmt: skip
    assert live(library) == 0
    data = json.loads(out.read_text())
    assert data["answers"][0]["compared"] == {"results": 120, "differ": 0}
    out.write_text(json.dumps({**data, "kind": "hardware", "gpu": "H100"}))
    found = mmabits.choice(5, 24, 8192, "f16", arch="sm_90a", file=out)
    assert (found.evidence, found.best.evidence) == (Evidence.RECORDED, Evidence.RECORDED) and "120 results of its product" in found.rule
    out.write_text(json.dumps({**data, "kind": "emulator"}))
    assert mmabits.choice(5, 24, 8192, "f16", arch="sm_90a", file=out).best.evidence is Evidence.INFERRED


def test_a_planted_schedule_is_found(tmp_path, stand_in):
    """The library sums in slices where its answer says none, and the other way round."""
    library, info, out = CublasLtLibrary(stand_in), EmulatedDevice("sm_90a").info, tmp_path / "choices.json"
    asked = ShapeQuestion(m=8, n=64, k=8192, types=("bf16", "bf16", "f32"))
    held = multiplying(library, planted=lambda schedule: replace(schedule, slices=2, slice_k=4096))
    (answer,) = record_choices(library, info, [asked], out, memory=HostMemory())
    assert held and answer.compared.differ > 100 and answer.compared.fits == ("nvjet, SPLITK_NUM 2",)
    assert answer.compared.first.startswith("D[0, ") and "by the schedule 0x" in answer.compared.first
    data = json.loads(out.read_text())
    out.write_text(json.dumps({**data, "kind": "hardware", "gpu": "H100"}))
    found = mmabits.choice(8, 64, 8192, asked.types, arch="sm_90a", file=out)
    assert found.evidence is Evidence.INFERRED and found.best.slices == 2 and "differed from the answer's schedule" in found.rule
    held = multiplying(library, planted=lambda schedule: replace(schedule, sums=replace(schedule.sums, promote_every=64)))
    (answer,) = record_choices(library, info, [asked], out, memory=HostMemory())
    assert held and answer.compared.differ and answer.compared.fits == () and "no other candidate fits" in answer.compared.words


def test_a_product_that_the_library_refuses(tmp_path, stand_in):
    library = CublasLtLibrary(stand_in)
    ctypes.c_void_p.in_dll(library._lib, "product").value = None
    with pytest.raises(DeviceUnavailable, match="cublasLtMatmul says CUBLAS_STATUS_NOT_SUPPORTED"):
        record_choices(library, EmulatedDevice("sm_90a").info, [DEEP], tmp_path / "choices.json", memory=HostMemory())
    with pytest.raises(DeviceUnavailable, match="CUBLAS_STATUS_NOT_SUPPORTED"):
        asked = ShapeQuestion(m=1, n=2, k=13)
        library.multiply(asked, *operands(asked), HostMemory())
    assert live(library) == 0


def test_an_answer_without_a_plan_is_compared_with_candidates(tmp_path):
    class Other(RulesLibrary):
        def ask(self, asked, *, workspace=0, layout="source"):
            return replace(super().ask(asked), config=(41, 0, 1, 0, 0, 0, 0, 0, 0))

    (answer,) = record_choices(Other("sm_90a"), EmulatedDevice("sm_90a").info, [DEEP], tmp_path / "choices.json", memory=HostMemory())
    assert answer.compared.differ is None and answer.compared.fits[0] == "nvjet, not split"
    assert "no schedule is known for the answer; as nvjet, not split" in answer.compared.words


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(["record", *words])
    return left.value.code


def test_the_command(tmp_path, stand_in, monkeypatch, capsys):
    out = tmp_path / "choices.json"
    shapes = ("--choices", "64x64x64", "--choices", "16x512x8192:e4m3,e4m3,bf16")
    assert run("--out", str(out), *shapes, "--arch", "h100", "--emulated") == 0
    assert "2 of 2 shapes answered" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert (data["kind"], data["arch"]) == ("emulator", "sm_90a")
    assert mmabits.choice(64, 64, 64, "f16", arch="sm_90a", file=out).evidence is Evidence.INFERRED

    class Gpu(EmulatedDevice):
        def __init__(self, index):
            super().__init__("sm_90a")

    monkeypatch.setattr(driver, "CudaDevice", Gpu)
    assert run("--out", str(out), *shapes, "--choices", "1x2x13", "--library", str(stand_in)) == 2
    said = capsys.readouterr()
    assert "2 of 3 shapes answered" in said.out and "1x2x13 f16 x f16: CUBLAS_STATUS_NOT_SUPPORTED" in said.err
    assert json.loads(out.read_text())["answers"][1]["config"] == [66, 100, 4, 0, 1, 0, 36, 7, 3]
    assert run("--out", str(out), *shapes, "--arch", "h100", "--emulated", "--compare") == 0
    assert "2 products compared, 0 not as the schedule says" in capsys.readouterr().out
    assert run("--out", str(tmp_path), "--compare", "--emulated", "--arch", "h100") == 2
    assert run("--out", str(out), *shapes, "--arch", "b200", "--library", str(stand_in)) == 2
    assert run("--out", str(tmp_path / "choices"), *shapes, "--emulated", "--arch", "h100") == 2
    assert run("--out", str(out), *shapes, "--emulated") == 2
    assert command.AUTO == "auto"
