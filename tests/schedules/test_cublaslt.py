"""The planner of cuBLASLt's schedules: our own cases always, the published ones where they lie beside the repository."""

import json
import tomllib
from dataclasses import replace

import pytest
from schedule_cases import ARCHS, FILES, ROOT, TYPES, fields, resolved

from mmabits.emulator.schedules import Chains, Merge, NoSchedule, Schedule
from mmabits.isa import Evidence, OperandError, UnknownArchitecture, UnknownFormat
from mmabits.isa.cublaslt import ATTRIBUTES, cublaslt


def config(algo, split=1, scheme=0, option=0, stages=0):
    return [algo, None, split, scheme, None, option, stages, None, None]


def nvjet(split=1, stages=35):
    return config(66, split, stages=stages)


# (configuration, (M, N, K), types, architecture, what section 3 of the description says); K = 3000 is 46 x 64 + 56.
OWN = [
    (nvjet(), (64, 64, 3000), "f16", "sm_90a", {"mode": "plain"}),
    (nvjet(2), (64, 64, 3000), "bf16", "sm_90a", {"mode": "split", "k_chunk": 1536}),
    (nvjet(8), (64, 64, 3000), "f16", "sm_100a", {"mode": "split", "k_chunk": 384}),
    (nvjet(2, 36), (64, 64, 3000), "e4m3", "sm_100a", {"mode": "split", "k_chunk": 1536}),
    (nvjet(1, 36), (64, 64, 3000), "e4m3", "sm_90a", {"mode": "split_blocks", "k_chunk": 3000, "block_k": 128}),
    (nvjet(3, 36), (64, 64, 3000), "e4m3", "sm_90a", {"mode": "split_blocks", "k_chunk": 1024, "block_k": 128}),
    (config(12), (64, 64, 3000), "f16", "sm_90a", {"mode": "k_per_dot", "k_per_dot": 8, "leading_group_k": 24}),
    (config(21, stages=13), (64, 64, 3000), "bf16", "sm_103a", {"mode": "k_per_dot", "k_per_dot": 16, "leading_group_k": 56}),
    (config(23, stages=25), (64, 64, 3000), "f16", "sm_90a", {"mode": "k_per_dot", "k_per_dot": 16, "leading_group_k": 24}),
    (
        config(24, 4, 4, stages=20), (64, 64, 3000), "f16", "sm_90a",
        {"mode": "splitk_groups", "k_chunk": 752, "block_k": 128, "k_per_dot": 16, "merge_scheme": 2},
    ),
    (
        config(12, 3, 2), (64, 64, 3072), "f16", "sm_90a",
        {"mode": "splitk_groups", "k_chunk": 1024, "block_k": 32, "k_per_dot": 8, "merge_scheme": 0},
    ),
    (
        config(12, 3, 1), (64, 64, 3072), "f16", "sm_90a",
        {"mode": "splitk_groups", "k_chunk": 1024, "block_k": 32, "k_per_dot": 8, "merge_scheme": 3},
    ),
    (config(11), (8, 64, 300), "f16", "sm_90a", {"mode": "gemmsn", "simt": [2, 256]}),
    (config(11, option=1), (8, 64, 300), "bf16", "sm_90a", {"mode": "gemmsn", "simt": [4, 128]}),
    (config(16), (8, 64, 30), "f16", "sm_90a", {"mode": "gemmsn", "simt": [1, 0]}),
    (config(13), (1, 64, 3000), "f16", "sm_90a", {"mode": "gemv13", "gemv": [[1, 1, 512, False], 1]}),
    (config(13), (1, 64, 3000), "f16", "sm_100a", {"mode": "gemv13", "gemv": [[1, 1, 0, False], 1]}),
    (config(13, option=8), (1, 64, 3000), "f16", "sm_100a", {"mode": "gemv13", "gemv": [[1, 1, 0, False], 1]}),
    (config(13, option=8), (1, 64, 3000), "f16", "sm_103a", {"mode": "gemv13", "gemv": [[1, 1, 256, False], 1]}),
    (config(13, 4, option=66), (64, 1, 1000), "f16", "sm_90a", {"mode": "gemv13", "gemv": [[32, 8, 0, True], 4]}),
    (config(13, option=36), (64, 1, 3000), "f16", "sm_90a", {"mode": "gemv13", "gemv": [[64, 32, 0, True], 1]}),
    (config(13, option=10), (1, 8448, 64), "f16", "sm_90a", {"mode": "gemv13", "gemv": [[4, 32, 0, True], 1]}),
    (config(13, option=110), (1, 64, 60), "f16", "sm_90a", {"mode": "gemv13", "gemv": [[15, 4, 0, True], 1]}),
    (config(13, option=5), (1, 64, 3000), "f16", "sm_90a", {"mode": "gemv_cslice", "gemv": [32, 16]}),
    (config(14, 6), (1, 64, 3000), "f16", "sm_90a", {"mode": "gemv14", "gemv": [6, 1]}),
    (config(14), (64, 1, 3000), "bf16", "sm_90a", {"mode": "gemv14", "gemv": [1, 2]}),
]  # fmt: skip

# (configuration, (M, N, K), types, architecture, part of the reason)
REFUSED = [
    (nvjet(stages=34), (64, 64, 3000), "f16", "sm_90a", "STAGES_ID 34 of nvjet is not known"),
    (nvjet(2, 36), (64, 64, 100), "e4m3", "sm_100a", "slices of 128 of K = 100"),
    (nvjet(2), (64, 64, 64), "f16", "sm_90a", "slices of 64 of K = 64"),
    (config(12), (64, 64, 3000), "e4m3", "sm_90a", "no CUTLASS kernel with FP8"),
    (config(12, stages=6), (64, 64, 3000), "f16", "sm_90a", "STAGES_ID 6 of CUTLASS"),
    (config(12, 2, 3), (64, 64, 3072), "f16", "sm_90a", "REDUCTION_SCHEME 3"),
    (config(11), (8, 64, 300), "e4m3", "sm_90a", "CUDA cores with FP8"),
    (config(11, 2), (8, 64, 300), "f16", "sm_90a", "SPLITK_NUM 2"),
    (config(16, option=1), (8, 64, 30), "f16", "sm_90a", "CUSTOM_OPTION 1 is not known"),
    (config(13), (8, 64, 30), "f16", "sm_90a", "M = 1 or N = 1"),
    (config(14), (8, 64, 30), "f16", "sm_90a", "M = 1 or N = 1"),
    (config(13, option=10), (1, 8449, 64), "f16", "sm_90a", "up to 8,448 elements"),
    (config(13, option=5), (64, 1, 64), "f16", "sm_90a", "for M = 1"),
    (config(13, 2, option=5), (1, 64, 64), "f16", "sm_90a", "unsplit"),
    (config(13, option=111), (1, 64, 64), "f16", "sm_100a", "CUSTOM_OPTION 111 is not known"),
    (config(41), (64, 64, 64), "f16", "sm_90a", "no plan is known"),
    (config(74), (64, 64, 64), "e4m3", "sm_103a", "no plan is known"),
    (config(66, -2, stages=36), (64, 64, 64), "e4m3", "sm_103a", "SPLITK_NUM -2 is not modelled"),
    (nvjet(), (64, 64, 64), "e5m2", "sm_90a", "not measured for e5m2 x e5m2"),
    (nvjet(), (64, 64, 64), ("f16", "bf16"), "sm_90a", "not measured for f16 x bf16"),
    (nvjet(), (64, 64, 64), "f16", "sm_80", "not measured on sm_80"),
    (None, (64, 64, 64), "f16", "sm_90a", "no algorithm"),
]


@pytest.mark.parametrize(("given", "shape", "types", "arch", "want"), OWN)
def test_own_cases(given, shape, types, arch, want):
    found = Schedule.cublaslt(given, *shape, types, arch=arch)
    assert fields(found) == {"algo_id": given[0], **want}
    assert found.evidence is Evidence.PUBLISHED
    assert found == Schedule.cublaslt(dict(zip(ATTRIBUTES, given, strict=True)), *shape, types, arch=arch)


@pytest.mark.parametrize(("given", "shape", "types", "arch", "reason"), REFUSED)
def test_refusals_say_why(given, shape, types, arch, reason):
    with pytest.raises(NoSchedule, match=reason):
        Schedule.cublaslt(given, *shape, types, arch=arch)


def test_versions_that_were_not_measured_are_refused():
    assert Schedule.cublaslt(nvjet(), 8, 8, 64, "f16", arch="sm_100a", version="12.8").planned.library == "cublaslt-12.8"
    with pytest.raises(NoSchedule, match=r"cuBLASLt 12\.8 was not measured on sm_90a; 13\.1 was"):
        Schedule.cublaslt(nvjet(), 8, 8, 64, "f16", arch="sm_90a", version="12.8")


@pytest.mark.parametrize(
    ("given", "types", "error", "text"),
    [
        ([66], "f16", OperandError, "9 attributes, got 1"),
        ([*nvjet()[:2], None, *nvjet()[3:]], "f16", OperandError, "needs SPLITK_NUM"),
        ({"ALGO": 66}, "f16", OperandError, "unknown attribute 'ALGO'"),
        ("66", "f16", OperandError, "sequence of nine attributes"),
        (["66", *nvjet()[1:]], "f16", OperandError, "ALGO_ID must be a whole number"),
        (nvjet(), "f17", UnknownFormat, "f17"),
        (nvjet(), ("f16", "f16", "e4m3"), OperandError, "D must be one of"),
        (nvjet(), (), OperandError, "types are one name"),
    ],
)
def test_what_is_no_question_is_an_error(given, types, error, text):
    with pytest.raises(error, match=text):
        Schedule.cublaslt(given, 8, 8, 64, types, arch="sm_90a")


def test_an_unknown_architecture_and_an_empty_product_are_errors():
    with pytest.raises(UnknownArchitecture):
        Schedule.cublaslt(nvjet(), 8, 8, 64, "f16", arch="sm_1")
    with pytest.raises(OperandError, match="k must be 1 or more"):
        Schedule.cublaslt(nvjet(), 8, 8, 0, "f16", arch="sm_90a")


def test_results_of_other_types_are_inferred_and_f32_is_not_rounded():
    assert Schedule.cublaslt(nvjet(), 8, 8, 64, ("e4m3", "e4m3", "bf16"), arch="sm_90a").evidence is Evidence.INFERRED
    wide = Schedule.cublaslt(config(12, 2), 8, 8, 3072, ("f16", "f16", "f32"), arch="sm_90a")
    assert (wide.output, wide.merge, wide.evidence) == (None, Merge.F32, Evidence.INFERRED)


def test_the_lost_tail_is_named():
    found = Schedule.cublaslt(nvjet(9), 1, 8, 11528, "f16", arch="sm_90a")
    assert found.lost_tail == 8 and "does not sum the last 8 of K" in found.words
    assert [part.stop for part in found.panels(11528, bugs=True)] == list(range(1280, 11521, 1280))
    assert found.panels(11528)[-1].stop == 11528 and found.slice_k == 1344
    for arch in ("sm_100a", "sm_103a"):
        assert Schedule.cublaslt(nvjet(9), 1, 8, 8648, "f16", arch=arch).lost_tail == 8
    for split, k, types in ((8, 11528, "f16"), (9, 11530, "f16"), (9, 11520, "f16"), (9, 11528, "bf16")):
        assert not Schedule.cublaslt(nvjet(split), 1, 8, k, types, arch="sm_90a").lost_tail


@pytest.mark.skipif(not FILES, reason="the published cases (../shared/cublaslt) are not beside this repository")
def test_the_published_cases():
    count = 0
    for file in FILES:
        data = json.loads(file.read_text())
        arch, version = ARCHS[tuple(data["capability"])], ".".join(map(str, data["cublaslt"]))
        for case in data["cases"]:
            try:
                shape = (case["M"], case["N"], case["K"])
                got = fields(Schedule.cublaslt(case["config"], *shape, TYPES[case["kind"]], arch=arch, version=version))
            except NoSchedule:
                got = None
            assert got == resolved(case["plan"], case["K"]), (file.name, case)
            count += 1
    assert count == 6000


def test_rows_cite_what_sources_toml_has():
    cited = tomllib.loads((ROOT / "isa" / "sources.toml").read_text())["sources"]
    rows = cublaslt()
    assert rows.source in cited
    assert (ROOT / "isa" / "tables" / "LICENSE-cublas-match.txt").read_text()
    assert tuple(tomllib.loads((ROOT / "isa" / "tables" / "cublaslt.toml").read_text())["attributes"]) == ATTRIBUTES


def test_gemv_rows_do_not_overlap():
    rows = cublaslt()
    for arch in (row.arch for row in rows.platforms):
        options = [option for row in rows.gemv if not row.archs or arch in row.archs for option in row.options]
        assert len(options) == len(set(options)) and rows.ranges_option not in options


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sums": "chains"}, "sums must be"),
        ({"slices": 0}, "slices must be"),
        ({"slices": 2}, "need slice_k"),
        ({"slice_k": 0}, "slice_k must be"),
        ({"merge": Merge.PARTS}, "merge_type"),
        ({"merge_type": "f16"}, "merge_type"),
        ({"merge": "f16"}, "merge must be"),
        ({"output": "f32"}, "output must be"),
        ({"lost_tail": True}, "lost_tail must be"),
    ],
)
def test_what_is_no_schedule_is_an_error(changes, text):
    with pytest.raises(OperandError, match=text):
        replace(Schedule(sums=Chains()), **changes)
