"""Two settings of one model: layers, log-probabilities and the cause."""

import json
import sys
import types
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import mmabits  # noqa: E402
from mmabits.commands.main import main  # noqa: E402
from mmabits.commands.pages.mismatch import mismatch_page  # noqa: E402
from mmabits.emulator.interop import torch_to_numpy  # noqa: E402
from mmabits.isa import OperandError, UnknownArchitecture  # noqa: E402
from mmabits.research.mismatch import LayerMismatch, ModelSetting, SmallModel, _ulps, mismatch, mismatch_of  # noqa: E402
from mmabits.research.models import find_model  # noqa: E402

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


def test_ulps_are_those_of_the_larger():
    one = torch.tensor([1.0, 1.0, 3.0, 0.0], dtype=torch.bfloat16)
    other = torch.tensor([1.0 + 2**-7, 0.5, 3.0 + 2**-5, 2.0**-133], dtype=torch.bfloat16)
    assert _ulps(one, other).tolist() == [1.0, 64.0, 2.0, 1.0]


def test_ulps_of_zeros_and_infinities():
    inf = float("inf")
    one, other = torch.tensor([0.0, 1.0, inf, inf, 0.0]), torch.tensor([1.0, inf, 1.0, -inf, 0.0])
    assert _ulps(one, other).tolist() == _ulps(other, one).tolist() == [2.0**23, inf, inf, inf, 0.0]


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
    assert run("h100:bf16", "b200:fp8", "--model", "nowhere") == 2
    assert run("h100:bf16", "b200:fp8", "--model", "json:loads") == 2
    assert run("h100:bf16", "b200:fp8", "--model", "minilm", "--train", "3") == 2
    assert run("h100:bf16", "h100:fp8", "--train", "3") == 1
    assert "learned one sentence in 3 steps" in capsys.readouterr().out


def test_a_model_learns():
    model = SmallModel(layers=1, width=64, heads=2, inner=96, seed=5)
    with torch.no_grad():
        before = model(TOKENS).clone()
    assert model.learn(40) < 3.2 < model.learn(1, seed=1) + 3 and not torch.equal(model(TOKENS), before)


class Encoder(torch.nn.Module):
    """Outputs instead of logits, and a product that is of no linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.layer = torch.nn.Embedding(64, 32), torch.nn.Linear(32, 32)

    def forward(self, tokens):
        x = self.words(tokens)
        return self.layer(torch.tanh(x @ x.transpose(1, 2) @ x))


def test_outputs_that_are_no_logits_and_products_of_no_layer(tmp_path, capsys):
    tokens = torch.arange(24).reshape(2, 12) * 5 % 64
    found = mismatch("a100:f16", "h100:f16", model=Encoder(), tokens=tokens)
    assert (found.measure, found.tokens, found.kl, found.ratios) == ("output", 768, None, None) and not found.not_emulated
    assert mismatch("h100:f16", "b200:f16", model=Encoder(), tokens=tokens).is_same
    text = mismatch_page(found, model="an encoder")
    assert "outputs" in text and "log-probabilities" not in text and found.as_json["ratios"] is None


def test_a_difference_before_the_first_layer_is_said_to_be():
    layer = LayerMismatch(name="x", results=1, changed=1, ulps=1.0, mean_ulps=1.0, own_changed=0, own_ulps=0.0, own_mean_ulps=0.0)
    same = mismatch("h100:bf16", "h100:bf16", model=small(), tokens=TOKENS)
    found = replace(same, layers=(layer,), changed=1)
    assert not found.is_same and found.first_cause == "products before x that are of no linear layer"


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_weights_on_disk(tmp_path, capsys, has_tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    if has_tokenizer:
        tokenizers = pytest.importorskip("tokenizers")
        words = tokenizers.models.WordLevel({"[UNK]": 0, "The": 1, "it": 2}, unk_token="[UNK]")
        made = tokenizers.Tokenizer(words)
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
    loaded = find_model(str(tmp_path), layers=1, width=16, steps=0, seed=0, text="The it it x")
    assert loaded.tokens.tolist() == ([[1, 2, 2, 0]] if has_tokenizer else [list(b"The it it x")])
    found = mismatch("h100:bf16", "b200:fp8", model=loaded.model, tokens=loaded.tokens)
    assert found.measure == "log-probability" and found.first_cause == "model.layers.0.self_attn.q_proj: format"
    assert len(found.layers) == 8 and not found.not_emulated
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(OperandError, match=r"config\.json is missing"):
        find_model(str(empty), layers=1, width=16, steps=0, seed=0)
    (empty / "config.json").write_text("{}")
    with pytest.raises(OperandError, match="no model that transformers reads"):
        find_model(str(empty), layers=1, width=16, steps=0, seed=0)


def test_a_function_that_makes_a_model(monkeypatch):
    home = types.ModuleType("made_of_functions")
    home.both, home.one, home.none = (lambda: (Encoder(), TOKENS % 64)), Encoder, lambda: 3
    monkeypatch.setitem(sys.modules, "made_of_functions", home)
    given = {"layers": 1, "width": 16, "steps": 0, "seed": 0}
    assert find_model("made_of_functions:both", **given).tokens is not None and find_model("made_of_functions:one", **given).tokens is None
    for name, why in (("none", "must return a torch.nn.Module"), ("missing", "AttributeError")):
        with pytest.raises(OperandError, match=why):
            find_model(f"made_of_functions:{name}", **given)


def test_functions_in_two_settings():
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(16, 256, generator=generator).half(), torch.randn(256, 32, generator=generator).half()

    def step(x, w):
        """A layer and its gradient."""
        w = w.requires_grad_()
        y = torch.mm(x, w)
        y.backward(torch.ones_like(y))
        return y, w.grad, torch.arange(3)

    found = mismatch_of(step, "a100", "h100", x, w)
    assert [each.results for each in found.outputs] == [512, 8192, 3] and found.outputs[0].ulps >= 0 and found.causes[0][0] == "instruction"
    assert mismatch_of(step, "h100", "b200", x, w).is_same
    wide = mismatch_of(lambda x, w: torch.mm(x, w, out_dtype=torch.float32), "a100", "h100:bf16:library=chain", x, w)
    assert wide.outputs[0].changed > 100 and [name for name, _ in wide.causes] == ["instruction", "schedule"]
    with pytest.raises(OperandError, match="must give a tensor"):
        mismatch_of(lambda x: 3, "h100", "b200", x)
    with pytest.raises(OperandError, match="second time"):
        mismatch_of(lambda x: torch.rand(3), "h100", "b200", x)
