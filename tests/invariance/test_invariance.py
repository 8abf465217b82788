"""Which settings change bits: of linear layers by a library's choices, and of functions."""

import json
from dataclasses import replace

import numpy as np
import pytest

import mmabits
from mmabits.commands.main import main
from mmabits.commands.pages.invariance import invariance_page
from mmabits.emulator.schedules import Chains, Schedule
from mmabits.isa import OperandError, UnknownInstruction
from mmabits.research.invariance import InvarianceReport, LinearShape, invariance_of

LAYER = (LinearShape(name="up", n=512, k=1024),)
DEEP = (LinearShape(name="down", n=256, k=8192),)


def by_setting(report: InvarianceReport) -> dict:
    return {found.setting: found for found in report.findings}


def test_batches_of_one_schedule_are_the_same_and_vectors_are_open():
    found = by_setting(mmabits.invariance(LAYER, reference=2048, batches=(1, 32, 256, 4096), types="f16"))
    assert [found[f"{m} rows"].status for m in (32, 256, 4096)] == ["same"] * 3
    assert (found["1 rows"].status, found["1 rows"].cause, found["1 rows"].changed) == ("open", "instruction, schedule", 0)
    assert found["1 rows"].candidates > 10
    assert found["another row of the same batch"].status == "same"


def test_what_ranks_architectures_padding_and_versions_do():
    report = mmabits.invariance(
        LAYER, reference=2048, batches=(), chunks=(512, 1000), pads=(1000, 128), ranks=(1, 2), archs=("sm_80", "sm_100a"),
        libraries=("cublaslt-12.8",),
    )  # fmt: skip
    found = by_setting(report)
    assert (found["K over 2 ranks"].status, found["K over 2 ranks"].cause) == ("changes", "reduction")
    assert found["N over 2 ranks"].status == "same" and found["cublaslt-12.8"].status == "same" and found["sm_100a"].status == "same"
    assert found["sm_80"].cause == "instruction" and found["sm_80"].status in ("open", "changes")
    assert found["K filled to 2000"].status == "same" and "K filled to 1024" not in found
    assert {name for name in found if name.startswith("chunks")} == {
        "chunks of 512, one of 512 rows", "chunks of 1000, one of 1000 rows", "chunks of 1000, one of 48 rows",
    }  # fmt: skip
    assert not report.is_invariant and not report.is_settled and report.count("changes") >= 1


def test_deep_narrow_products_may_be_split():
    found = by_setting(mmabits.invariance(DEEP, reference=8192, batches=(16,), types="f16"))
    assert found["16 rows"].status == "open" and found["16 rows"].candidates > 5


def test_a_recorded_answer_settles_it(tmp_path):
    path = tmp_path / "choices.json"
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    answers = [
        {"m": m, "n": 256, "k": 8192, "types": "bf16", "config": [66, None, split, 0, None, 0, 35, None, None]}
        for m, split in ((8192, 1), (16, 1), (8, 4))
    ]
    path.write_text(json.dumps({**head, "answers": answers}))
    found = by_setting(mmabits.invariance(DEEP, reference=8192, batches=(16, 8), file=path))
    assert found["16 rows"].status == "same"
    assert found["8 rows"].cause == "schedule" and found["8 rows"].status in ("changes", "open")


@pytest.mark.parametrize("reduction", ["order", "ring", "tree"])
def test_reductions_round_every_sum(reduction):
    layer = (LinearShape(name="x", n=64, k=256),)
    found = by_setting(mmabits.invariance(layer, reference=64, batches=(), ranks=(4,), types="f16", reduction=reduction))["K over 4 ranks"]
    assert found.changed > 0


def test_the_order_of_ranks_is_what_is_said():
    from mmabits.research.invariance import _reduced

    parts = [np.full((1, 4), value, np.float16) for value in (2048, 1, 1, -2048)]  # 2048 + 1 is 2048 in f16
    assert _reduced(parts, "f16", "order").tolist() == [[0.0] * 4]
    assert _reduced(parts, "f16", "tree").tolist() == [[1.0] * 4]
    assert _reduced(parts, "f16", "ring").tolist() == [[2.0, 2.0, 2.0, 0.0]]


def test_kernels_of_ones_own():
    schedules = {
        "split by 4": Schedule(sums=Chains(), slices=4, slice_k=256, output="bf16"),
        "one chain": Schedule(sums=Chains(), output="bf16"),
    }
    found = by_setting(mmabits.invariance(LAYER, reference=2048, batches=(), schedules=schedules))
    assert found["split by 4"].cause == "schedule" and found["one chain"].status == "same"


def test_fp8_on_hopper_and_blackwell():
    found = by_setting(mmabits.invariance(LAYER, types=("e4m3", "e4m3", "bf16"), reference=2048, batches=(1, 64), archs=("sm_100a",)))
    assert found["1 rows"].status == "same" and found["sm_100a"].status == "changes"
    assert found["sm_100a"].cause == "instruction, schedule"


def test_tiles_of_16_rows_take_another_instruction():
    """mma.sync beside wgmma: bf16 alike, FP8 not: Hopper's mma.sync multiplies e4m3 as f16."""
    given = {"reference": 2048, "batches": (), "instructions": ("mma.sync",)}
    for types, status, cause in (("bf16", "same", ""), ("f16", "same", ""), (("e4m3", "e4m3", "bf16"), "changes", "instruction")):
        (found,) = (each for each in mmabits.invariance(LAYER, types=types, **given).findings if each.kind == "kernel")
        assert found.setting.startswith("tiles of 16 rows: mma.sync.aligned.m16n8") and (found.status, found.cause) == (status, cause)
        assert bool(found.changed) == (status == "changes")
    with pytest.raises(UnknownInstruction):
        mmabits.invariance(LAYER, instructions=("mma.sink",), batches=())


def test_few_rows_may_leave_the_tensor_cores():
    """gemmSN: 2 to 16 rows and a short K; at 17 rows nothing is open."""
    short = (LinearShape(name="q", n=384, k=384),)
    found = by_setting(mmabits.invariance(short, types=("bf16", "bf16", "f32"), reference=512, batches=(2, 16, 17)))
    assert [found[f"{m} rows"].status for m in (2, 16, 17)] == ["open", "open", "same"]
    assert found["16 rows"].cause == "instruction, schedule" and found["16 rows"].most > 0


def test_kernels_that_split_k():
    found = by_setting(mmabits.invariance(LAYER, types=("bf16", "bf16", "f32"), reference=2048, batches=(), splits=(4,)))["K in 4 slices"]
    assert (found.kind, found.cause) == ("kernel", "schedule") and found.most > 0


def test_what_has_no_effect_is_said():
    report = mmabits.invariance(
        LAYER, reference=64, batches=(64,), chunks=(64,), pads=(128,), ranks=(1, 3), archs=("h100",), libraries=("cublaslt-13.1",),
        splits=(1,),
    )  # fmt: skip
    assert [found.kind for found in report.findings] == ["position"]
    assert report.without_effect == (
        "chunks of 64: a prefill of 64 rows is one", "K filled to multiples of 128: K of up (512 x 1024) is one",
        "1 rank: it is the reference", "K over 3 ranks: they do not divide K of up (512 x 1024)",
        "N over 3 ranks: they do not divide N of up (512 x 1024)", "sm_90a: it is the reference's", "cublaslt-13.1: it is the reference's",
        "K in 1 slices: K of up (512 x 1024) stays one",
    )  # fmt: skip
    assert report.as_json["without_effect"] and "Not compared" in invariance_page(report)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"layers": "llama"}, "unknown model 'llama'"),
        ({"layers": ()}, "layers are"),
        ({"batches": (0,)}, "batches are"),
        ({"reduction": "star"}, "unknown reduction"),
        ({"types": "tf32"}, "D must be one of"),
    ],
)
def test_what_is_no_question(given, text):
    with pytest.raises(OperandError, match=text):
        mmabits.invariance(**{"layers": LAYER, **given})


# Functions ----------------------------------------------------------------------------------------------------------------


def test_functions_by_batch_and_position():
    weights = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float16)
    x = np.random.default_rng(1).standard_normal((40, 300)).astype(np.float16)
    one = Schedule(sums=Chains())
    split = replace(one, slices=3, slice_k=100)

    def invariant(rows):
        return mmabits.gemm(rows, weights, arch="sm_90a", schedule=one)

    def dependent(rows):
        return mmabits.gemm(rows, weights, arch="sm_90a", schedule=split if rows.shape[0] < 16 else one)

    report = invariance_of(invariant, x, batches=(1, 8, 39, 64))
    assert report.is_settled and [found.setting for found in report.findings] == [
        "1 rows", "8 rows", "39 rows", "rows moved by 1", "rows moved by 20",
    ]  # fmt: skip
    found = by_setting(
        invariance_of(dependent, x, batches=(1, 8, 39), changes={"split": lambda rows: dependent(rows[:8].repeat(5, axis=0))})
    )
    assert [found[name].status for name in ("1 rows", "8 rows", "39 rows")] == ["changes", "changes", "same"]
    assert found["8 rows"].cause == "function" and found["split"].kind == "kernel"
    with pytest.raises(OperandError, match="must give 40 rows"):
        invariance_of(lambda rows: rows[:3], x)


@pytest.mark.slow
def test_a_compiled_triton_kernel_of_fixed_tiles_is_invariant_and_split_k_by_batch_is_not():
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("triton")
    from mmabits.kernels.triton.persistent import persistent_matmul
    from mmabits.kernels.triton.split_k import split_k_matmul

    generator = torch.Generator().manual_seed(3)
    x, weights = (torch.randn(shape, generator=generator).half() for shape in ((40, 128), (128, 32)))
    with mmabits.emulate("sm_90a", frameworks=["triton"], triton="compiled"):
        fixed = invariance_of(lambda rows: persistent_matmul(rows, weights, programs=2, block=(32, 32, 32)), x, batches=(1, 17))
        by_batch = invariance_of(
            lambda rows: split_k_matmul(rows, weights, parts=1 if len(rows) > 20 else 4, block=(32, 32, 32)),
            x,
            batches=(17,),
            positions=False,
        )
    assert fixed.is_settled and len(fixed.findings) == 4
    assert by_batch.findings[0].status == "changes"


# The command --------------------------------------------------------------------------------------------------------------


def run(*words):
    with pytest.raises(SystemExit) as left:
        main(["invariance", *words])
    return left.value.code


def test_the_command(tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run("minilm", "--batch", "64", "--ranks", "2", "--reference", "2048", "--report", str(page)) == 1
    text = capsys.readouterr().out
    assert "K over 2 ranks" in text and "No GPU was asked" in text and "64 rows" not in text
    shown = page.read_text()
    assert "K over 2 ranks" in shown and "reduction" in shown and "No GPU was asked" in shown
    assert run("up=512x1024", "--batch", "64", "--reference", "2048", "--strict") == 0
    assert run("512x1024", "--batch", "1", "--reference", "2048", "--strict", "--json") == 1
    found = json.loads(capsys.readouterr().out.split("rules name.\n")[-1])
    assert found["invariant"] and not found["settled"] and found["findings"][0]["layer"] == "layer 1 (512 x 1024)"
    assert run("512x1024", "--batch", "1", "--reference", "2048") == 0
    assert run("512by1024") == 2
    assert "a layer is NxK" in capsys.readouterr().err


def test_a_page_of_a_function_has_no_library():
    x = np.ones((4, 8), np.float16)
    text = invariance_page(invariance_of(lambda rows: rows * 2, x, batches=(1,)))
    assert "No bit changes" in text and "No GPU was asked" not in text
