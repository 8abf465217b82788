"""`emulate(..., library=...)`: PyTorch's products by a library's schedule."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mmabits  # noqa: E402
from mmabits.emulator.hooks.library import differing  # noqa: E402
from mmabits.emulator.interop import torch_to_numpy  # noqa: E402
from mmabits.emulator.schedules import Chains, Merge, Schedule  # noqa: E402
from mmabits.isa import Evidence, InsufficientEvidence, OperandError  # noqa: E402

SPLIT = Schedule(sums=Chains(), slices=3, slice_k=128, merge=Merge.TOTAL, merge_type="f16", output="f16")


def tensors(m, n, k, dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((m, k), generator=generator).to(dtype), torch.randn((k, n), generator=generator).to(dtype)


def by(schedule, a, b, arch="sm_90a"):
    return mmabits.gemm(torch_to_numpy(a, "a"), torch_to_numpy(b, "b"), arch=arch, schedule=schedule)


def note(report):
    (line,) = report.emulated
    return line.note


def test_a_schedule_of_the_user_is_followed_by_every_operator():
    a, b = tensors(5, 8, 300)
    want = by(SPLIT, a, b)
    with mmabits.emulate("sm_90a", library=SPLIT) as session:
        got = [torch.mm(a, b), torch.bmm(a[None], b[None])[0], torch.nn.functional.linear(a, b.T), a @ b]
        plus = torch.addmm(torch.ones(8, dtype=torch.float16), a, b)
    for each in got:
        assert np.array_equal(each.numpy(), want)
    wide = mmabits.gemm(a.numpy(), b.numpy(), arch="sm_90a", schedule=replace(SPLIT, output=None))
    assert np.array_equal(plus.numpy(), (wide + np.float32(1)).astype(np.float16))
    assert "plan given: tensor cores, K upward; slices of 128 of K" in session.report().emulated[0].note
    with mmabits.emulate("sm_90a"):
        assert not np.array_equal(torch.mm(a, b).numpy(), want)


def test_the_default_is_the_best_known_choice():
    a, b = tensors(64, 64, 4097)
    with mmabits.emulate("sm_90a") as session:
        got = torch.mm(a, b)
    found = mmabits.choice(64, 64, 4097, "f16", arch="sm_90a")
    chain = by(Schedule(sums=Chains(), output="f16"), a, b)
    assert np.array_equal(got.numpy(), by(found.best, a, b)) and not np.array_equal(got.numpy(), chain)
    text = note(session.report())
    assert text.startswith("cublaslt-13.1: ") and "choice inferred" in text and "results of a sample" in text
    assert session.report().emulated[0].instruction.ptx.startswith("mma.sync.aligned.m16n8k16")  # CUTLASS 2
    with mmabits.emulate("sm_90a", library="chain") as session:
        got = torch.mm(a, b)
    assert np.array_equal(got.numpy(), chain) and "as library='chain' asks" in note(session.report())


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_120a"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [48, 72, 45])
def test_the_default_follows_choice_everywhere(arch, dtype, k):
    for m, n in ((1, 8), (3, 16), (17, 7)):
        a, b = tensors(m, n, k, dtype)
        with mmabits.emulate(arch) as session:
            got = torch.bmm(torch.stack([a, -a]), torch.stack([b, b]))
        form = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
        best = mmabits.choice(m, n, k, form, arch=arch).best
        want = by(best, a, b, arch)
        assert np.array_equal(torch_to_numpy(got[0], "d").view(np.uint16), want.view(np.uint16))
        assert np.array_equal(torch_to_numpy(-got[1], "d"), want)
        text = note(session.report())
        assert ("was not measured" in text) == (arch in ("sm_80", "sm_89", "sm_120a")) and "choice inferred" in text


def test_few_products_are_compared_for_the_report(monkeypatch):
    monkeypatch.setattr("mmabits.emulator.hooks.session.COMPARED", 2)
    with mmabits.emulate("sm_90a") as session:
        for k in (33, 34, 35):
            torch.mm(*tensors(4, 4, k))
    assert ["sample" in line.note for line in session.report().emulated] == [True, True, False]


def recorded(path, config, *, types="f16", shape=(64, 64, 4096), **more):
    m, n, k = shape
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    path.write_text(json.dumps({**head, "answers": [{"m": m, "n": n, "k": k, "types": types, "config": config, **more}]}))
    return path


def test_required_evidence_counts_the_order_of_sums(tmp_path):
    """What the library does is inferred unless it was asked; the arithmetic of wgmma is published."""
    a, b = tensors(64, 64, 4096)
    for given in ({}, {"library": "cublaslt-13.1"}, {"library": SPLIT}):
        with (
            mmabits.emulate("sm_90a", require="published", **given),
            pytest.raises(InsufficientEvidence, match=r"order in which .* inferred"),
        ):
            torch.mm(a, b)
    for given in ("chain", replace(SPLIT, evidence=Evidence.PUBLISHED)):
        with mmabits.emulate("sm_90a", require="published", library=given):
            torch.mm(a, b)
    with mmabits.emulate("sm_80", require="recorded"), pytest.raises(InsufficientEvidence, match=r"'chain' \(one chain"):
        torch.mm(a, b)
    with mmabits.emulate("sm_80", require="recorded", library="chain"):
        torch.mm(a, b)
    with mmabits.emulate("sm_80", require="published") as session:  # integer sums have no order
        torch._int_mm(torch.ones(32, 32, dtype=torch.int8), torch.ones(32, 32, dtype=torch.int8))
    assert "no order" in note(session.report())


def test_answers_of_the_library_are_for_products_that_it_gets(tmp_path):
    """_scaled_mm goes to cuBLASLt; torch.mm to cuBLAS, whose choice nobody has compared with an answer of the other."""
    path = recorded(tmp_path / "choices.json", [66, None, 3, 0, None, 0, 36, None, None], types=["e4m3", "e4m3", "f16"])
    a, b = tensors(64, 64, 4096, torch.float32)
    a, b, one = a.to(torch.float8_e4m3fn), b.T.contiguous().to(torch.float8_e4m3fn).T, torch.tensor(1.0)
    with mmabits.emulate("sm_90a", require="published", library=path) as session:
        torch._scaled_mm(a, b, one, one, out_dtype=torch.float16)
    assert "slices of" in note(session.report()) and "schedule published" in note(session.report())
    rows, columns = torch.ones(64, 1), torch.ones(1, 64)
    with mmabits.emulate("sm_90a", library=path) as session:
        torch._scaled_mm(a, b, rows, columns, out_dtype=torch.bfloat16)
    path = recorded(tmp_path / "choices.json", [66, None, 3, 0, None, 0, 35, None, None])
    a, b = tensors(64, 64, 4096)
    with mmabits.emulate("sm_90a", library=path) as session:
        torch.mm(a, b)
    assert "slices of" in note(session.report()) and "inferred here: PyTorch hands such products to cuBLAS" in note(session.report())
    with mmabits.emulate("sm_90a", library=path, require="published"), pytest.raises(InsufficientEvidence, match="inferred evidence"):
        torch.mm(a, b)


def test_grouped_products_say_that_no_schedule_is_known():
    a, b = tensors(32, 16, 64, torch.bfloat16)
    offsets = torch.tensor([16, 32], dtype=torch.int32)
    stacked = torch.stack([b, b]).transpose(1, 2).contiguous().transpose(1, 2)
    for given in (None, "cublaslt-13.1", "chain"):
        with mmabits.emulate("sm_90a", library=given) as session:
            torch._grouped_mm(a, stacked, offs=offsets)
        text = note(session.report())
        assert ("no schedule is known of such products" in text) == (given != "chain") and ("library= is not" in text) == (
            given == "cublaslt-13.1"
        )
    with mmabits.emulate("sm_90a", require="published"), pytest.raises(InsufficientEvidence, match="order"):
        torch._grouped_mm(a, stacked, offs=offsets)


def test_rules_name_plan_evidence_and_candidates():
    a, b = tensors(5, 8, 1001)
    with mmabits.emulate("sm_90a", library="cublaslt-13.1") as session:
        got = torch.mm(a, b)
    found = mmabits.choice(5, 8, 1001, "f16", arch="sm_90a")
    assert np.array_equal(got.numpy(), by(found.best, a, b))
    text = note(session.report())
    assert "K mod 64 first" in text and "choice inferred" in text and "schedule published" in text
    assert "other candidates give other bits, in up to" in text and "of 40 results of a sample" in text


def test_cuda_cores_are_said_to_be_no_instruction():
    a, b = tensors(1, 8, 100)
    schedule = Schedule.cublaslt([13, None, 1, 0, None, 36, 0, None, None], 1, 8, 100, "f16", arch="sm_90a")
    with mmabits.emulate("sm_90a", library=schedule) as session:
        got = torch.mm(a, b)
        with pytest.raises(OperandError, match="planned for M, N and K"):
            torch.mm(*tensors(1, 8, 101))
    assert np.array_equal(got.numpy(), by(schedule, a, b))
    assert note(session.report()).startswith("on CUDA cores, not by this instruction; plan given")


def test_a_file_of_choices(tmp_path):
    path = tmp_path / "choices.json"
    config = [66, None, 9, 0, None, 0, 35, None, None]
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    path.write_text(json.dumps({**head, "answers": [{"m": 1, "n": 8, "k": 11528, "types": ["f16", "f16", "f16"], "config": config}]}))
    a, b = torch.ones((1, 11528), dtype=torch.float16), torch.ones((11528, 8), dtype=torch.float16)
    with mmabits.emulate("sm_90a", library=path) as session:
        assert torch.mm(a, b).tolist() == [[11528.0] * 8]
    assert "asked on H100" in note(session.report()) and "summed here: bugs=True leaves it out" in note(session.report())
    with mmabits.emulate("sm_90a", library=str(path), bugs=True) as session:
        assert torch.mm(a, b).tolist() == [[11520.0] * 8]
    assert "left out here too" in note(session.report())


@pytest.mark.parametrize("fast", [False, True])
def test_scaled_mm(fast):
    a, b = tensors(16, 32, 6000 // 16 * 16, torch.float32)
    a, b = (a * 8).to(torch.float8_e4m3fn), (b * 8).T.contiguous().to(torch.float8_e4m3fn).T
    scales = torch.tensor(0.37), torch.tensor(1.9)
    with mmabits.emulate("sm_90a", library="cublaslt-12.8") as session:
        got = torch._scaled_mm(a, b, *scales, out_dtype=torch.bfloat16, use_fast_accum=fast)
    found = mmabits.choice(16, 32, 6000, ("e4m3", "e4m3", "bf16"), arch="sm_90a", library="cublaslt-12.8", fast_accum=fast)
    assert found.best.sums == Chains(promote_every=None if fast else 128)
    left, right = torch_to_numpy(a, "a"), torch_to_numpy(b, "b")
    want = mmabits.gemm(left, right, arch="sm_90a", schedule=found.best, scale_a=np.float32(0.37), scale_b=np.float32(1.9))
    assert np.array_equal(torch_to_numpy(got, "d").view(np.uint16), want.view(np.uint16)) and want.dtype == ml_dtypes.bfloat16
    assert "cublaslt-12.8" in note(session.report())


def test_products_that_no_library_was_measured_for_are_as_before():
    a, b = tensors(4, 4, 64, torch.float64)
    with mmabits.emulate("sm_90a", library="cublaslt-13.1") as session:
        torch.mm(a, b)
    assert "assumed" in note(session.report()) and "library= is not followed here" in note(session.report())


def test_merges_that_round():
    a, b = tensors(4, 4, 256, torch.bfloat16)
    schedule = Schedule(sums=Chains(), slices=2, slice_k=128, merge=Merge.PARTS, merge_type="bf16", output="bf16")
    with mmabits.emulate("sm_100a", library=schedule):
        got = torch.mm(a, b)
    assert np.array_equal(torch_to_numpy(got, "d"), by(schedule, a, b, "sm_100a"))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"library": "cublas"}, "library must be"),
        ({"library": "nowhere.json"}, "cannot be read"),
        ({"library": 13.1}, "library must be"),
        ({"bugs": True}, "name it in library="),
        ({"library": "chain", "bugs": True}, "name it in library="),
        ({"library": "cublaslt-13.1", "bugs": "yes"}, "bugs must be"),
    ],
)
def test_what_is_no_library(given, text):
    with pytest.raises(OperandError, match=text):
        mmabits.emulate("sm_90a", **given)


def test_candidates_that_agree_are_said_to():
    found = mmabits.choice(1, 8, 64, "f16", arch="sm_90a")
    ones = np.ones((1, 64), np.float16), np.ones((64, 8), np.float16)
    assert "candidates agree on a sample of 8 results" in differing(found, *ones).words


def test_a_kind_of_product_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.emulator.hooks import library

    asked, stock = [], library.choice
    monkeypatch.setattr(library, "choice", lambda *shape, **options: (asked.append(shape[:3]), stock(*shape, **options))[1])
    monkeypatch.setattr(library, "PLANS", 2)
    values = torch.ones(16, 32, dtype=torch.float16)
    with mmabits.emulate("sm_90a", frameworks=["torch"]):
        for rows in (16, 16, 8, 8, 4, 16):
            values[:rows] @ values.T
    assert asked == [(16, 16, 32), (8, 16, 32), (4, 16, 32), (16, 16, 32)]  # the third finds no room: all begin anew
