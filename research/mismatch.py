"""Two settings of one model, as a trainer and a generator have them: where their bits part, by how much, and by which cause.

The model's linear layers multiply in a block of `emulate` for each setting; everything else is PyTorch's own on the CPU and the same in
both. A layer is compared twice: as it comes in the two runs, and by itself, with the first run's inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mmabits.emulator.hooks.session import emulate
from mmabits.emulator.schedules.choices import LIBRARIES
from mmabits.isa import OperandError, architecture
from mmabits.isa.errors import nearest
from mmabits.research.sentence import SENTENCE

FORMATS: Final = {"bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.bfloat16}
"""What the linear layers multiply, and the type of the activations between them. fp8: e4m3, a scale for each operand, without fast
accumulation."""
E4M3: Final = torch.float8_e4m3fn
_LARGEST: Final = 448.0


@dataclass(frozen=True, kw_only=True)
class ModelSetting:
    """How one side runs the model."""

    arch: str
    format: str = "bf16"
    library: str | None = None
    """As for `emulate`; None: one chain, K upward."""
    rows: int | None = None
    """Rows that a linear layer gets at a time, as a generator that decodes has one for each sequence; None: all."""

    def __post_init__(self) -> None:
        architecture(self.arch)
        if self.format not in FORMATS:
            raise OperandError(f"unknown format {self.format!r}{nearest(str(self.format), FORMATS)}; known: {', '.join(FORMATS)}")
        if self.rows is not None and (not isinstance(self.rows, int) or self.rows < 1):
            raise OperandError(f"rows must be a whole number from 1 on, got {self.rows!r}")

    @classmethod
    def of(cls, text: str) -> ModelSetting:
        """`h100:bf16`, `b200:fp8:library=cublaslt-13.1:rows=1`.

        Raises:
            OperandError: other than that. UnknownArchitecture: no such architecture.
        """
        arch, *words = text.split(":")
        given: dict[str, Any] = {"arch": architecture(arch).name}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals:
                given["format"] = name
            elif name == "rows" and value.isdigit():
                given["rows"] = int(value)
            elif name == "library":
                given["library"] = value
            else:
                raise OperandError(f"a setting is ARCH:FORMAT, then library={'|'.join(LIBRARIES)} and rows=N, got {word!r} in {text!r}")
        return cls(**given)

    @property
    def words(self) -> str:
        """In words."""
        more = [f"library {self.library}" if self.library else "", f"{self.rows} rows at a time" if self.rows else ""]
        return ", ".join([self.arch, self.format, *filter(None, more)])


CAUSES: Final = {"format": "format", "arch": "instruction", "library": "schedule", "rows": "batch"}
"""What a field of a setting that differs is as a cause."""


@dataclass(frozen=True, kw_only=True)
class LayerMismatch:
    """One linear layer, in the order in which they run."""

    name: str
    results: int
    changed: int
    """Of the two runs."""
    ulps: float
    """The largest difference, in units of the last place of the first's results."""
    mean_ulps: float
    own_changed: int
    """By itself: with the first run's inputs in both settings."""
    own_ulps: float
    own_mean_ulps: float


@dataclass(frozen=True, kw_only=True)
class CauseShare:
    """The first setting with one field of the second's."""

    cause: str
    setting: str
    changed: int
    """Log-probabilities of the tokens that change in any bit."""
    mean: float
    """Mean absolute difference of the tokens' log-probabilities."""
    first: bool
    """Whether it alone changes results of the first layer that differs."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """What two settings make of one model."""

    a: ModelSetting
    b: ModelSetting
    layers: tuple[LayerMismatch, ...]
    tokens: int
    changed: int
    """Tokens whose log-probability differs."""
    mean: float
    largest: float
    """Differences of the tokens' log-probabilities, natural logarithms."""
    kl: float
    """Mean Kullback-Leibler divergence of B's distribution from A's."""
    ratios: tuple[float, float]
    """The least and largest importance ratio, exp(log-probability of A - that of B)."""
    to_f32: tuple[float, float]
    """Mean absolute difference of A's and B's log-probabilities from those in f32."""
    causes: tuple[CauseShare, ...]

    @property
    def is_same(self) -> bool:
        """No bit of any layer or log-probability differs."""
        return not self.changed and all(not layer.changed for layer in self.layers)

    @property
    def first(self) -> LayerMismatch | None:
        """The first layer that differs by itself."""
        return next((layer for layer in self.layers if layer.own_changed), None)

    @property
    def first_cause(self) -> str:
        """In words: `q_proj of layer 0: format, instruction`; empty where nothing differs."""
        if self.first is None:
            return ""
        causes = [share.cause for share in self.causes if share.first] or ["their interplay"]
        return f"{self.first.name}: {', '.join(causes)}"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": vars(self.a), "b": vars(self.b), "same": self.is_same, "first_cause": self.first_cause, "tokens": self.tokens,
            "changed": self.changed, "mean": self.mean, "largest": self.largest, "kl": self.kl, "ratios": list(self.ratios),
            "to_f32": list(self.to_f32), "layers": [vars(layer) for layer in self.layers], "causes": [vars(share) for share in self.causes],
        }  # fmt: skip


# The model ----------------------------------------------------------------------------------------------------------------


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_inner = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # In f32 and by hand: the attention is the same in every setting, and no product of the architecture.
        scores = (q.float() @ k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        attended = (scores.softmax(-1) @ v.float()).to(x.dtype).transpose(1, 2).reshape(batch, length, width)
        x = x + self.o(attended)
        y = self.norm_inner(x)
        result: torch.Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return result


class SmallModel(nn.Module):
    """A causal model of bytes with random weights, in the manner of Llama: RMSNorm, SwiGLU, no biases; it has learned nothing."""

    def __init__(self, *, layers: int = 2, width: int = 128, heads: int = 4, inner: int = 352, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding, self.positions = nn.Embedding(256, width), nn.Embedding(512, width)
        self.blocks = nn.ModuleList(_DecoderLayer(width, heads, inner) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, 256, bias=False)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if "norm" not in name:
                    scale = 0.5 if "embedding" in name or "positions" in name else 1.5 / math.sqrt(weight.shape[-1])
                    weight.copy_(torch.randn(weight.shape, generator=generator) * scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of (batch, length) tokens."""
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(self.norm(x))
        return result


class _EmulatedLinear(nn.Module):
    """A linear layer as a setting multiplies it; it keeps what went in and came out."""

    def __init__(self, linear: nn.Linear, setting: ModelSetting) -> None:
        super().__init__()
        self.setting, self.dtype = setting, FORMATS[setting.format]
        self.weight, self.bias = linear.weight.detach().to(self.dtype), None if linear.bias is None else linear.bias.detach().to(self.dtype)
        self.given: torch.Tensor = torch.empty(0)
        self.got: torch.Tensor = torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.detach().to(self.dtype).reshape(-1, x.shape[-1])
        self.given, self.got = rows, self.multiplied(rows)
        return self.got.reshape(*x.shape[:-1], -1)

    def multiplied(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows by the weights, so many at a time."""
        size = self.setting.rows or rows.shape[0]
        return torch.cat([self._product(rows[at : at + size]) for at in range(0, rows.shape[0], size)])

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        if self.setting.format != "fp8":
            return F.linear(rows, self.weight, self.bias)
        (left, scale), (right, weight_scale) = _fp8(rows), _fp8(self.weight)
        scaled: torch.Tensor = torch._scaled_mm(
            left, right.T, scale, weight_scale, self.bias, out_dtype=self.dtype, use_fast_accum=False
        )  # fmt: skip
        return scaled


def _fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 with one scale, the largest magnitude onto the largest number."""
    scale = (values.float().abs().max() / _LARGEST).clamp(min=2.0**-100)
    return (values.float() / scale).clamp(-_LARGEST, _LARGEST).to(E4M3), scale


def _prepared(model: nn.Module, setting: ModelSetting) -> tuple[nn.Module, dict[str, _EmulatedLinear]]:
    """A copy of the model in a setting, and its linear layers by name."""
    made = copy.deepcopy(model).eval().to(FORMATS[setting.format])
    layers = {}
    sources = dict(model.named_modules())
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            layers[name] = _EmulatedLinear(sources[name], setting)
            parent, _, last = name.rpartition(".")
            setattr(made.get_submodule(parent), last, layers[name])
    if not layers:
        raise OperandError("the model has no torch.nn.Linear")
    return made, layers


@contextmanager
def _in(setting: ModelSetting) -> Iterator[None]:
    with torch.no_grad(), emulate(setting.arch, frameworks=["torch"], library=setting.library):
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class _ModelRun:
    setting: ModelSetting
    layers: dict[str, _EmulatedLinear]
    logits: torch.Tensor
    """In the setting's type."""

    def log_probabilities(self) -> torch.Tensor:
        return self.logits.double().log_softmax(-1)


def _run(model: nn.Module, tokens: torch.Tensor, setting: ModelSetting) -> _ModelRun:
    made, layers = _prepared(model, setting)
    order: dict[str, _EmulatedLinear] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(_noting(order, name))
    with _in(setting):
        logits = _logits(made(tokens))
    return _ModelRun(setting=setting, layers=order, logits=logits)


def _noting(order: dict[str, _EmulatedLinear], name: str) -> Any:
    def note(module: _EmulatedLinear, given: Any, got: Any) -> None:
        order.setdefault(name, module)

    return note


def _logits(result: Any) -> torch.Tensor:
    logits: torch.Tensor = result if isinstance(result, torch.Tensor) else result.logits
    return logits.detach()


def mismatch(
    a: ModelSetting | str, b: ModelSetting | str, *, model: nn.Module | None = None, tokens: torch.Tensor | None = None, seed: int = 0
) -> Mismatch:  # fmt: skip
    """Run a causal model in two settings and compare layers, log-probabilities and causes.

    Args:
        a: the first, a ModelSetting or `"h100:bf16"`; log-probabilities are taken relative to it.
        b: the second.
        model: with torch.nn.Linear layers, weights in f32; (batch, length) tokens in, logits or an object with `logits` out. None:
            SmallModel.
        tokens: (batch, length); None: two sequences of 48 bytes.
        seed: of SmallModel.

    Raises:
        OperandError: no such setting, a model without linear layers, layers that run in one setting only.
    """
    first, second = (ModelSetting.of(each) if isinstance(each, str) else each for each in (a, b))
    model = SmallModel(seed=seed) if model is None else model
    if tokens is None:
        tokens = torch.tensor(list(SENTENCE.encode()[:96])).reshape(2, 48)
    ours, theirs = _run(model, tokens, first), _run(model, tokens, second)
    if list(ours.layers) != list(theirs.layers):
        raise OperandError("the two settings run other layers: the model's path depends on its numbers")
    alone = {name: _alone(theirs, ours, name) for name in ours.layers}
    layers = tuple(_layer(name, ours.layers[name].got, theirs.layers[name].got, alone[name]) for name in ours.layers)
    first_name = next((layer.name for layer in layers if layer.own_changed), None)
    with torch.no_grad():
        exact = _logits(copy.deepcopy(model).eval().float()(tokens)).double().log_softmax(-1)
    p, q = ours.log_probabilities(), theirs.log_probabilities()
    difference = _of_tokens(q, tokens) - _of_tokens(p, tokens)
    return Mismatch(
        a=first, b=second, layers=layers, tokens=difference.numel(), changed=int((difference != 0).sum()),
        mean=float(difference.abs().mean()), largest=float(difference.abs().max()),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        ratios=(float((-difference).exp().min()), float((-difference).exp().max())),
        to_f32=tuple(float((_of_tokens(x, tokens) - _of_tokens(exact, tokens)).abs().mean()) for x in (p, q)),  # type: ignore[arg-type]
        causes=tuple(_causes(model, tokens, ours, second, first_name)),
    )  # fmt: skip


def _of_tokens(log_probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probability of every token but the first of a sequence, given those before it."""
    return log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def _alone(run: _ModelRun, source: _ModelRun, name: str) -> torch.Tensor:
    """A layer of one run with the inputs of another."""
    layer = run.layers[name]
    with _in(run.setting):
        return layer.multiplied(source.layers[name].given.to(layer.dtype))


def _causes(model: nn.Module, tokens: torch.Tensor, ours: _ModelRun, other: ModelSetting, first: str | None) -> Iterator[CauseShare]:
    for name, cause in CAUSES.items():
        if getattr(ours.setting, name) == getattr(other, name):
            continue
        setting = replace(ours.setting, **{name: getattr(other, name)})
        found = _run(model, tokens, setting)
        difference = _of_tokens(found.log_probabilities(), tokens) - _of_tokens(ours.log_probabilities(), tokens)
        is_first = first is not None and not torch.equal(_alone(found, ours, first).float(), ours.layers[first].got.float())
        yield CauseShare(
            cause=cause, setting=setting.words, changed=int((difference != 0).sum()), mean=float(difference.abs().mean()), first=is_first
        )


def _layer(name: str, ours: torch.Tensor, theirs: torch.Tensor, alone: torch.Tensor) -> LayerMismatch:
    run, own = _ulps(ours, theirs), _ulps(ours, alone)
    return LayerMismatch(
        name=name, results=ours.numel(), changed=int((run > 0).sum()), ulps=float(run.max()), mean_ulps=float(run.mean()),
        own_changed=int((own > 0).sum()), own_ulps=float(own.max()), own_mean_ulps=float(own.mean()),
    )  # fmt: skip


def _ulps(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances in units of the last place of x, in x's type."""
    info = torch.finfo(x.dtype)
    exponent = x.double().abs().clamp(min=info.smallest_normal).log2().floor()
    return (x.double() - y.double()).abs() / (exponent.exp2() * info.eps)
