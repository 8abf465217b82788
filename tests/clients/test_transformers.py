"""Models of transformers, unchanged, under `emulate`: forward, backward and generation, as on a CPU and as on the named GPU.

The weights are random, the models small. Skipped where transformers is missing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmabits
from mmabits.isa import OperandError

torch = pytest.importorskip("torch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _model(name: str, config: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        if not (hasattr(transformers, name) and hasattr(transformers, config)):
            pytest.skip(f"this transformers has no {name}")
        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return make


MODELS = {
    "llama": _model("LlamaForCausalLM", "LlamaConfig", **SIZES),
    "qwen3": _model("Qwen3ForCausalLM", "Qwen3Config", head_dim=16, **SIZES),
    "mixtral": _model("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, **SIZES),
    "gemma2": _model("Gemma2ForCausalLM", "Gemma2Config", head_dim=16, **SIZES),
    "gpt-oss": _model("GptOssForCausalLM", "GptOssConfig", head_dim=16, num_local_experts=4, num_experts_per_tok=2, **SIZES),
    "gpt2": _model(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ),
    "bert": _model(
        "BertForMaskedLM", "BertConfig", vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    ),
    "t5": _model(
        "T5ForConditionalGeneration", "T5Config", vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
EAGER_ONLY = ("gemma2", "gpt-oss")
CASES = [
    pytest.param(name, attention, id=f"{name}-{attention}")
    for name in MODELS
    for attention in ("sdpa", "eager")
    if attention == "eager" or name not in EAGER_ONLY
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _emulated(name: str, attention: str, work: Callable[[Any, Any], Any], *, cuda: bool) -> tuple[Any, Any]:
    """What a model gives, and the report."""
    with mmabits.emulate("sm_90a", cuda=cuda) as session:
        torch.manual_seed(0)
        device = "cuda" if cuda else "cpu"
        model = MODELS[name]().to(torch.bfloat16).to(device)
        model.set_attn_implementation(attention)
        model.eval()
        found = work(model, torch.arange(3, 27).reshape(2, 12).to(device))
    return found, session.report()


def _trained(model: Any, tokens: Any) -> Any:
    found = model(input_ids=tokens, labels=tokens)
    found.loss.backward()
    return found.logits.detach(), [each.grad for each in model.parameters() if each.grad is not None]


def _own_products(report: Any) -> list[str]:
    """Lines of what multiplied without emulation, other than f32 angles of rotary embeddings."""
    return [f"{line.site}: {line.reason}" for line in report.skipped if "thread" not in line.site and "rotary" not in line.site]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_forward_and_backward(name: str, attention: str) -> None:
    """The same bits on the CPU as it is and where a GPU is asked for, all of it emulated."""
    (logits, gradients), report = _emulated(name, attention, _trained, cuda=True)
    (again, others), _ = _emulated(name, attention, _trained, cuda=False)
    assert torch.isfinite(logits).all() and torch.equal(logits, again)
    assert len(gradients) == len(others) and all(torch.equal(one, other) for one, other in zip(gradients, others, strict=True))
    assert _own_products(report) == [] and report.multiply_adds > 1_000_000
    sites = " ".join(line.site for line in report.emulated)
    assert "in backward" in sites and (".0." in sites or ".layer" in sites)


@pytest.mark.parametrize(("name", "attention"), [each for each in CASES if "bert" not in str(each.id)])
def test_generation(name: str, attention: str) -> None:
    tokens, report = _emulated(
        name, attention, lambda model, ids: model.generate(input_ids=ids, max_new_tokens=4, do_sample=False), cuda=True
    )
    assert tokens.shape[1] >= 4 and report.multiply_adds > 1_000_000
    assert _own_products(report) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_compiled_forward_and_backward(name: str, attention: str) -> None:
    def work(model: Any, tokens: Any) -> Any:
        torch._dynamo.reset()
        return _trained(torch.compile(model), tokens)

    (logits, gradients), report = _emulated(name, attention, work, cuda=True)
    assert torch.isfinite(logits).all() and gradients
    assert _own_products(report) == [] and report.multiply_adds > 1_000_000


def test_evaluate_reads_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokens = [(7 * place) % 61 for place in range(40)]
    config = transformers.LlamaConfig(**SIZES)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    found = mmabits.evaluate(tmp_path, archs=["h100"], recipes=["none", "mxfp8"], tokens=tokens, progress=False)
    assert found.settings[0].share == 1 and found.settings[0].kinds == (("bf16 into f32", 1.0),)
    names = [layer.layer for layer in found.layers(found.ends[-1])]
    assert names[0] == "model.layers.0.self_attn.q_proj" and names[-1] == "lm_head" and len(names) == 15
    with pytest.raises(OperandError, match="reads 64 tokens at most"):
        mmabits.evaluate(tmp_path, archs=["h100"], tokens=tokens * 2)
