"""Two settings of one model: layers, log-probabilities and the cause."""

import json

import pytest

torch = pytest.importorskip("torch")

import mmabits  # noqa: E402
from mmabits.commands.main import main  # noqa: E402
from mmabits.emulator.interop import torch_to_numpy  # noqa: E402
from mmabits.isa import OperandError, UnknownArchitecture  # noqa: E402
from mmabits.research.mismatch import ModelSetting, SmallModel, _ulps, mismatch  # noqa: E402

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 256


def small():
    return SmallModel(layers=1, width=64, heads=2, inner=96, seed=5)


def test_equal_settings_have_equal_bits_and_so_have_hopper_and_blackwell_in_bf16():
    for other in ("h100:bf16", "b200:bf16"):
        found = mismatch("h100:bf16", other, model=small(), tokens=TOKENS)
        assert found.is_same and found.first is None and found.first_cause == "" and found.ratios == (1.0, 1.0)
        assert (found.tokens, len(found.layers)) == (22, 6)
        assert found.to_f32[0] == found.to_f32[1] > 0


def test_formats_and_architectures_are_causes_each_alone():
    found = mismatch("h100:bf16", "b200:fp8", model=small(), tokens=TOKENS)
    causes = {share.cause: share for share in found.causes}
    assert set(causes) == {"format", "instruction"}
    assert causes["format"].first and causes["format"].changed > 0
    assert not causes["instruction"].first and causes["instruction"].changed == 0
    assert found.first_cause == "blocks.0.qkv: format" and found.layers[0].own_changed == found.layers[0].changed
    assert found.to_f32[1] > found.to_f32[0] and found.kl > 0 and found.ratios[0] < 1 < found.ratios[1]


def test_fp8_differs_by_instruction():
    found = mismatch("h100:fp8", "b200:fp8", model=small(), tokens=TOKENS)
    assert found.first is not None and found.first_cause.endswith(": instruction")


def test_a_layer_by_itself_is_its_product():
    found = mismatch("a100:f16", "h100:f16", model=small(), tokens=TOKENS)
    model = small()
    weight = model.blocks[0].qkv.weight.detach().half()
    x = model.half()
    rows = x.blocks[0].norm_attention(x.embedding(TOKENS) + x.positions(torch.arange(12))).detach().reshape(-1, 64)
    a, b = torch_to_numpy(rows, "a"), torch_to_numpy(weight.T.contiguous(), "b")
    first, second = (mmabits.gemm(a, b, instruction=row, arch=arch) for row, arch in (("mma.sync", "sm_80"), ("wgmma", "sm_90a")))
    assert found.layers[0].own_changed == (first.astype("float16") != second.astype("float16")).sum()


def test_rows_at_a_time_take_the_librarys_choice_for_so_many(tmp_path):
    path = tmp_path / "choices.json"
    head = {"format": "mmabits-choices-1", "arch": "sm_90a", "library": "cublaslt-13.1", "gpu": "H100", "workspace": 33554432}
    answers = [{"m": 1, "n": 288, "k": 96, "types": "bf16", "config": [21, None, 2, 0, None, 0, 13, None, None]}]
    path.write_text(json.dumps({**head, "answers": answers}))
    a, b = ModelSetting(arch="sm_90a", library=str(path)), ModelSetting(arch="sm_90a", library=str(path), rows=1)
    found = mismatch(a, b, model=SmallModel(layers=1, width=96, heads=2, inner=96), tokens=TOKENS)
    assert [share.cause for share in found.causes] == ["batch"]
    assert found.first_cause == "blocks.0.qkv: batch" and found.layers[0].own_changed > 100  # the total is rounded after each slice


def test_ulps_are_those_of_the_first():
    one = torch.tensor([1.0, 1.0, 3.0, 0.0], dtype=torch.bfloat16)
    other = torch.tensor([1.0 + 2**-7, 0.5, 3.0 + 2**-5, 2.0**-133], dtype=torch.bfloat16)
    assert _ulps(one, other).tolist() == [1.0, 64.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("text", "error", "why"),
    [
        ("h100:int8", OperandError, "unknown format 'int8'"),
        ("h100:bf16:rows=0", OperandError, "rows must be"),
        ("h100:bf16:batch=3", OperandError, "a setting is ARCH:FORMAT"),
        ("g80:bf16", UnknownArchitecture, "g80"),
    ],
)
def test_what_is_no_setting(text, error, why):
    with pytest.raises(error, match=why):
        ModelSetting.of(text)


def test_settings_are_read():
    assert ModelSetting.of("h100") == ModelSetting(arch="sm_90a")
    assert ModelSetting.of("b200:fp8:library=cublaslt-13.1:rows=2") == ModelSetting(
        arch="sm_100a", format="fp8", library="cublaslt-13.1", rows=2
    )
    with pytest.raises(OperandError, match=r"no torch\.nn\.Linear"):
        mismatch("h100", "h100", model=torch.nn.Embedding(4, 4), tokens=TOKENS % 4)


def test_the_command(tmp_path, capsys):
    page = tmp_path / "page.html"

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["mismatch", *words, "--layers", "1", "--width", "32"])
        return left.value.code

    assert run("h100:bf16", "b200:fp8", "--report", str(page)) == 1
    said = capsys.readouterr().out
    assert "first blocks.0.qkv: format" in said and "format alone" in said
    assert "learned nothing" in page.read_text() and "blocks.0.down" in page.read_text()
    assert run("h100:bf16", "b200:bf16", "--json") == 0
    assert json.loads(capsys.readouterr().out)["same"]
    assert run("h100:bf16", "b200:f4") == 2
