"""What is known of the library's choice: recorded answers, rules, candidates."""

import json
import sys
import types
from dataclasses import replace

import pytest

import mmabits
from mmabits.emulator.schedules import Chains, Choice
from mmabits.emulator.schedules.choices import FILE_FORMAT, signature
from mmabits.isa import Evidence, OperandError, UnknownArchitecture

CONFIG = [66, 10, 3, 0, 0, 0, 35, 0, 0]


def written(path, answers, /, **changes):
    head = {"format": FILE_FORMAT, "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100 SXM", "workspace": 33554432}
    path.write_text(json.dumps({**head, "answers": answers, **changes}))
    return path


def answer(m, n, k, types="f16", config=None, **more):
    return {"m": m, "n": n, "k": k, "types": types, "config": config or CONFIG, **more}


def test_a_large_aligned_product_has_one_candidate_and_it_is_inferred():
    found = mmabits.choice(4096, 4096, 4096, "f16", arch="sm_90a")
    assert isinstance(found, Choice) and len(found.candidates) == 1
    assert found.evidence is Evidence.INFERRED and found.best.sums == Chains()
    assert "without a count" in found.words


def test_unaligned_products_take_cutlass_and_which_is_open():
    found = mmabits.choice(64, 64, 4097, "bf16", arch="sm_100a")
    assert [each.schedule.sums.lead_block for each in found.candidates] == [64, 32]  # 4097 mod 128, 64 and 32 are 1: k16 and k8 are left
    assert [each.schedule.sums.group for each in found.candidates] == [16, 8]


def test_vectors_and_few_rows_have_candidates_on_cuda_cores():
    vector = mmabits.choice(1, 4096, 4096, "f16", arch="sm_90a")
    assert vector.best.on_tensor_cores and sum(not each.schedule.on_tensor_cores for each in vector.candidates) > 10
    few = mmabits.choice(8, 4096, 40, "f16", arch="sm_90a")
    assert {each.schedule.planned.config[0] for each in few.candidates} == {66, 11, 16}
    assert {each.schedule.planned.config[0] for each in mmabits.choice(8, 4096, 512, "f16", arch="sm_90a").candidates} == {66, 11}
    assert {each.schedule.planned.config[0] for each in mmabits.choice(20, 4096, 512, "f16", arch="sm_90a").candidates} == {66}


def test_fp8_is_split_only_inside_bounds():
    ask = lambda *shape, **more: mmabits.choice(*shape, "e4m3", arch="sm_90a", **more)  # noqa: E731
    assert ask(16, 512, 5744).best.sums == Chains(promote_every=128)
    assert ask(16, 512, 5744, fast_accum=True).best.sums == Chains()
    assert mmabits.choice(16, 512, 5744, "e4m3", arch="sm_100a").best.sums == Chains()
    assert [each.schedule.slices for each in ask(16, 512, 5760).candidates] == [1, 2, 3, 4, 5, 6]
    assert len(ask(512, 512, 5760, workspace=1 << 20).candidates) == 1 and len(ask(16, 512, 5760, workspace=0).candidates) == 1


def test_what_was_not_measured_is_one_chain_and_says_so():
    for arch, form, every in (("sm_80", "f16", None), ("sm_89", "e4m3", 128), ("sm_90a", ("e4m3", "e5m2"), 128), ("sm_120a", "bf16", None)):
        found = mmabits.choice(64, 64, 9000, form, arch=arch)
        assert len(found.candidates) == 1 and found.best.sums == Chains(promote_every=every) and "was not measured" in found.rule


def test_a_recorded_answer_comes_first(tmp_path):
    path = written(tmp_path / "choices.json", [answer(64, 64, 4096), answer(1, 8, 64, config=[41, *CONFIG[1:]])])
    found = mmabits.choice(64, 64, 4096, "f16", arch="sm_90a", file=path)
    assert (found.evidence, found.best.slices, found.best.planned.config) == (Evidence.RECORDED, 3, tuple(CONFIG))
    assert "H100 SXM" in found.words
    assert mmabits.choice(64, 64, 4104, "f16", arch="sm_90a", file=path).evidence is Evidence.INFERRED
    unplanned = mmabits.choice(1, 8, 64, "f16", arch="sm_90a", file=path)
    assert unplanned.evidence is Evidence.INFERRED and "ALGO_ID 41" in unplanned.rule
    written(path, [answer(64, 64, 4096, config=[66, 0, 2, 0, 0, 0, 35, 0, 0])])
    assert mmabits.choice(64, 64, 4096, "f16", arch="sm_90a", file=path).best.slices in (2, 3)  # by the file's time


@pytest.mark.parametrize(
    ("content", "changes", "text"),
    [
        (None, {}, "cannot be read"),
        ("{", {}, "cannot be read"),
        ("[]", {}, "no file of choices"),
        ([], {"format": "x"}, "no file of choices"),
        ([], {"answers": 1}, "answers missing"),
        ([{"m": 1}], {}, "an answer is damaged"),
        ([], {"arch": "sm_100a"}, "recorded on sm_100a"),
        ([], {"library": "cublaslt-12.8"}, "recorded from cublaslt-12.8"),
    ],
)
def test_files_that_are_none(tmp_path, content, changes, text):
    path = tmp_path / "choices.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        written(path, content, **changes)
    with pytest.raises(OperandError, match=text):
        mmabits.choice(64, 64, 64, "f16", arch="sm_90a", file=path)


def test_the_table_of_mmaemu_is_used_where_it_is_installed(monkeypatch):
    seen = []

    def lookup(*shape, **more):
        seen.append((shape, more))
        return {"splitK": 2} if shape == (16, 1920, 8192) else None

    table = types.ModuleType("mmaemu.platform.splitk_table")
    table.lookup = lookup
    for name, module in (("mmaemu", types.ModuleType("mmaemu")), ("mmaemu.platform", types.ModuleType("p")), (table.__name__, table)):
        monkeypatch.setitem(sys.modules, name, module)
    given = {"arch": "sm_90a", "library": "cublaslt-12.8", "workspace": 1 << 20}
    found = mmabits.choice(16, 1920, 8192, ("e4m3", "e4m3", "bf16"), **given)
    assert (found.evidence, found.best.slice_k, found.best.planned.library) == (Evidence.RECORDED, 4096, "cublaslt-12.8")
    assert seen[0][1]["profile"] == "hopper" and seen[0][1]["out_dtype"] == "bfloat16"
    assert mmabits.choice(16, 1920, 8208, ("e4m3", "e4m3", "bf16"), **given).evidence is Evidence.INFERRED


def test_equal_sums_have_one_signature():
    plain = Chains()
    found = mmabits.choice(64, 64, 4096, "f16", arch="sm_90a").best
    for sums, same in (
        (Chains(group=16, lead_block=64), True), (Chains(group=8, lead_block=64), False), (Chains(promote_every=128), False),
        (Chains(instruction="mma.sync", group=16), True),
    ):  # fmt: skip
        other = replace(found, sums=sums, planned=None)
        assert (signature(other, 4096) == signature(replace(found, sums=plain), 4096)) is same
    assert signature(replace(found, sums=Chains(group=16, lead_block=64), planned=None), 4100) != signature(found, 4100)


def test_what_is_no_question_is_an_error():
    with pytest.raises(OperandError, match="unknown library"):
        mmabits.choice(1, 1, 1, "f16", arch="sm_90a", library="cublas-11")
    with pytest.raises(OperandError, match="k must be"):
        mmabits.choice(1, 1, 0, "f16", arch="sm_90a")
    with pytest.raises(UnknownArchitecture):
        mmabits.choice(1, 1, 1, "f16", arch="sm_1")
