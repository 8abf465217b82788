"""Two settings of one model, as a trainer and a generator have them: where their bits part, by how much, and by which cause.

The model runs in a block of `emulate` for each setting, its linear layers in the setting's format; what is no product is PyTorch's own on
the CPU and the same in both. A layer is compared twice: as it comes in the two runs, and by itself, with the first run's inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from mmabits.emulator.hooks.library import CHAIN
from mmabits.emulator.hooks.session import Session, emulate
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
    """As for `emulate`; None: the best known choice."""
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
                raise OperandError(
                    f"a setting is ARCH:FORMAT, then library={'|'.join((*LIBRARIES, CHAIN))} and rows=N, got {word!r} in {text!r}"
                )
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
    """The largest difference, in units of the last place of the larger of the two results."""
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
    """Log-probabilities of the tokens, or outputs, that change in any bit."""
    mean: float
    """Their mean absolute difference."""
    first: bool
    """Whether it alone changes results of the first layer that differs."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """What two settings make of one model."""

    a: ModelSetting
    b: ModelSetting
    layers: tuple[LayerMismatch, ...]
    measure: str
    """What is compared at the end: `log-probability`, of each token, natural logarithms, where the model gives logits; else `output`."""
    tokens: int
    """How many of them."""
    changed: int
    """Those that differ in any bit."""
    mean: float
    largest: float
    """Absolute differences."""
    kl: float | None
    """Mean Kullback-Leibler divergence of B's distribution from A's; None: there are no distributions."""
    ratios: tuple[float, float] | None
    """The least and largest importance ratio, exp(log-probability of A - that of B)."""
    to_f32: tuple[float, float]
    """Mean absolute difference of A's and B's from those in f32."""
    causes: tuple[CauseShare, ...]
    not_emulated: tuple[str, ...] = ()
    """Operations that ran as PyTorch computes them on the CPU though they multiply matrices."""

    @property
    def is_same(self) -> bool:
        """No bit of any layer, log-probability or output differs."""
        return not self.changed and all(not layer.changed for layer in self.layers)

    @property
    def first(self) -> LayerMismatch | None:
        """The first layer that differs by itself."""
        return next((layer for layer in self.layers if layer.own_changed), None)

    @property
    def first_cause(self) -> str:
        """In words: `blocks.0.qkv: format, instruction`; empty where nothing differs."""
        if self.first is None:
            after = next((layer.name for layer in self.layers if layer.changed), "the last linear layer" if self.changed else "")
            return f"products before {after} that are of no linear layer" if after else ""
        causes = [share.cause for share in self.causes if share.first] or ["their interplay"]
        return f"{self.first.name}: {', '.join(causes)}"

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "a": vars(self.a), "b": vars(self.b), "same": self.is_same, "first_cause": self.first_cause, "measure": self.measure,
            "tokens": self.tokens, "changed": self.changed, "mean": self.mean, "largest": self.largest, "kl": self.kl,
            "ratios": None if self.ratios is None else list(self.ratios), "to_f32": list(self.to_f32),
            "not_emulated": list(self.not_emulated), "layers": [vars(layer) for layer in self.layers],
            "causes": [vars(share) for share in self.causes],
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
    """A causal model of bytes, in the manner of Llama: RMSNorm, SwiGLU, no biases. Its weights are random until it learns."""

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

    def learn(self, steps: int, *, seed: int = 0) -> float:
        """Learn the sentence by heart, in f32 on one thread of the CPU; the loss at the end.

        Args:
            steps: of Adam, each over 8 pieces of 48 bytes.
            seed: of the pieces.
        """
        text = torch.tensor(list(SENTENCE.encode()))
        generator = torch.Generator().manual_seed(seed)
        weights = list(self.parameters())
        means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
        loss, threads = torch.zeros(()), torch.get_num_threads()
        torch.set_num_threads(1)  # so small operations wait for each other longer than they take
        try:
            for step in range(1, steps + 1):
                loss = self._step(step, text, generator, weights, means, squares)
        finally:
            torch.set_num_threads(threads)
        return float(loss)

    def _step(
        self, step: int, text: torch.Tensor, generator: torch.Generator, weights: list[nn.Parameter], means: list[torch.Tensor],
        squares: list[torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """One step of Adam, whose optimizer takes seconds to import; the loss before it."""
        starts = torch.randint(0, len(text) - 48, (8,), generator=generator)
        pieces = torch.stack([text[start : start + 48] for start in starts.tolist()])
        logits = self(pieces)
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, 256), pieces[:, 1:].reshape(-1))
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient, mean, square in zip(weights, gradients, means, squares, strict=True):
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient * gradient, 0.01)
                size = (square / (1 - 0.99**step)).sqrt_().add_(1e-8)
                weight.sub_(mean / size, alpha=2e-3 / (1 - 0.9**step))
        return loss.detach()


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
def _in(setting: ModelSetting) -> Iterator[Session]:
    with torch.no_grad(), emulate(setting.arch, frameworks=["torch"], library=setting.library) as session:
        yield session


@dataclass(frozen=True, kw_only=True, eq=False)
class _ModelRun:
    setting: ModelSetting
    layers: dict[str, _EmulatedLinear]
    given: torch.Tensor
    """Logits or outputs, in the setting's type."""
    not_emulated: tuple[str, ...]


def _run(model: nn.Module, tokens: torch.Tensor, setting: ModelSetting) -> _ModelRun:
    made, layers = _prepared(model, setting)
    order: dict[str, _EmulatedLinear] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(_noting(order, name))
    with _in(setting) as session:
        given = _output(made(tokens))
    missed = tuple(dict.fromkeys(line.operation for line in session.report().skipped))
    return _ModelRun(setting=setting, layers=order, given=given, not_emulated=missed)


def _noting(order: dict[str, _EmulatedLinear], name: str) -> Any:
    def note(module: _EmulatedLinear, given: Any, got: Any) -> None:
        order.setdefault(name, module)

    return note


def _output(result: Any) -> torch.Tensor:
    """What a model gives, of a tensor or of an object in the manner of transformers."""
    for name in ("logits", "last_hidden_state"):
        result = getattr(result, name, result)
    if not isinstance(result, torch.Tensor):
        raise OperandError(f"a model gives a tensor, or an object with logits or last_hidden_state, got {type(result).__name__}")
    return result.detach()


def _are_logits(given: torch.Tensor, tokens: torch.Tensor) -> bool:
    """Whether there is a number for every token that may come next."""
    return given.dim() == 3 and given.shape[:2] == tokens.shape and tokens.shape[1] > 1 and given.shape[2] > int(tokens.max())


def mismatch(
    a: ModelSetting | str, b: ModelSetting | str, *, model: nn.Module | None = None, tokens: torch.Tensor | None = None, seed: int = 0
) -> Mismatch:  # fmt: skip
    """Run a causal model in two settings and compare layers, log-probabilities and causes.

    Args:
        a: the first, a ModelSetting or `"h100:bf16"`; log-probabilities are taken relative to it.
        b: the second.
        model: with torch.nn.Linear layers, weights in f32; (batch, length) tokens in; logits of (batch, length, vocabulary), other
            outputs, or an object with `logits` or `last_hidden_state` out. None: SmallModel.
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
        exact = _output(copy.deepcopy(model).eval().float()(tokens))
    has_logits = _are_logits(ours.given, tokens)
    final = partial(_of_tokens, tokens=tokens) if has_logits else torch.Tensor.double
    x, y, wide = final(ours.given), final(theirs.given), final(exact)
    difference = y - x
    kl, ratios = None, None
    if has_logits:
        p, q = (run.given.double().log_softmax(-1) for run in (ours, theirs))
        kl, ratios = float((p.exp() * (p - q)).sum(-1).mean()), (float((-difference).exp().min()), float((-difference).exp().max()))
    return Mismatch(
        a=first, b=second, layers=layers, measure="log-probability" if has_logits else "output", tokens=difference.numel(),
        changed=int((difference != 0).sum()), mean=float(difference.abs().mean()), largest=float(difference.abs().max()), kl=kl,
        ratios=ratios, to_f32=(float((x - wide).abs().mean()), float((y - wide).abs().mean())),
        causes=tuple(_causes(model, tokens, ours, second, first_name, final)),
        not_emulated=tuple(dict.fromkeys(ours.not_emulated + theirs.not_emulated)),
    )  # fmt: skip


def _of_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probability of every token but the first of a sequence, given those before it."""
    return logits.double().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


def _alone(run: _ModelRun, source: _ModelRun, name: str) -> torch.Tensor:
    """A layer of one run with the inputs of another."""
    layer = run.layers[name]
    with _in(run.setting):
        return layer.multiplied(source.layers[name].given.to(layer.dtype))


def _causes(
    model: nn.Module, tokens: torch.Tensor, ours: _ModelRun, other: ModelSetting, first: str | None,
    final: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[CauseShare]:  # fmt: skip
    for name, cause in CAUSES.items():
        if getattr(ours.setting, name) == getattr(other, name):
            continue
        setting = replace(ours.setting, **{name: getattr(other, name)})
        found = _run(model, tokens, setting)
        difference = final(found.given) - final(ours.given)
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
    """Distances in units of the last place of the larger one, or of the finite one, in x's type; from an infinity to a number infinite."""
    info = torch.finfo(x.dtype)
    sizes = [torch.where(each.isfinite(), each.double().abs(), 0.0) for each in (x, y)]
    exponent = torch.maximum(*sizes).clamp(min=info.smallest_normal).log2().floor()
    return (x.double() - y.double()).abs() / (exponent.exp2() * info.eps)


# Functions ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OutputMismatch:
    """One tensor that a function gives."""

    results: int
    changed: int
    ulps: float
    """The largest difference, in units of the last place of the larger result; 0 for integers."""
    mean_ulps: float


@dataclass(frozen=True, kw_only=True)
class FunctionMismatch:
    """What two settings make of a function."""

    a: ModelSetting
    b: ModelSetting
    outputs: tuple[OutputMismatch, ...]
    causes: tuple[tuple[str, int], ...]
    """Each field of the setting that differs, and how many results it changes alone."""

    @property
    def is_same(self) -> bool:
        """No bit differs."""
        return not any(each.changed for each in self.outputs)


def mismatch_of(
    function: Callable[..., Any], a: ModelSetting | str, b: ModelSetting | str, *inputs: Any, frameworks: Sequence[str] = ("torch",)
) -> FunctionMismatch:  # fmt: skip
    """Run a function on two architectures or with two libraries, and compare what it gives: a layer, a kernel, a step of training.

    Args:
        function: of the inputs; gives a tensor or a sequence of them. Its formats are its own.
        a: the first setting; format and rows are not looked at.
        b: the second.
        inputs: cloned for each run where they are tensors.
        frameworks: as for `emulate`.

    Raises:
        OperandError: a result that is no tensor, other shapes in one of the settings, or random numbers drawn without a seed of its own.
    """
    first, second = (ModelSetting.of(each) if isinstance(each, str) else each for each in (a, b))

    def run(setting: ModelSetting) -> list[torch.Tensor]:
        copies = [each.clone() if isinstance(each, torch.Tensor) else each for each in inputs]
        with emulate(setting.arch, frameworks=frameworks, library=setting.library):
            given = function(*copies)
        found = [given] if isinstance(given, torch.Tensor) else list(given) if isinstance(given, (list, tuple)) else []
        if not found or not all(isinstance(each, torch.Tensor) for each in found):
            raise OperandError(f"the function must give a tensor or a sequence of tensors, got {type(given).__name__}")
        return [each.detach() for each in found]

    ours = run(first)
    if any(count for count, _ in _differences(ours, run(first))):
        raise OperandError("the function gives other results the second time in one setting: give it a seed of its own")
    counts = _differences(ours, run(second))
    causes = []
    for name in ("arch", "library"):
        if getattr(first, name) != getattr(second, name):
            alone = run(replace(first, **{name: getattr(second, name)}))
            causes.append((CAUSES[name], sum(count for count, _ in _differences(ours, alone))))
    outputs = tuple(
        OutputMismatch(results=x.numel(), changed=count, ulps=float(ulps.max()), mean_ulps=float(ulps.mean()))
        for x, (count, ulps) in zip(ours, counts, strict=True)
    )
    return FunctionMismatch(a=first, b=second, outputs=outputs, causes=tuple(causes))


def _differences(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[tuple[int, torch.Tensor]]:
    """Results that differ in a bit, and their distances."""
    if [(x.shape, x.dtype) for x in ours] != [(y.shape, y.dtype) for y in theirs]:
        raise OperandError("the function gives tensors of other shapes or types in the second setting")
    found = []
    for x, y in zip(ours, theirs, strict=True):
        changed = x.contiguous().reshape(-1).view(torch.uint8) != y.contiguous().reshape(-1).view(torch.uint8)
        count = int(changed.reshape(x.numel(), -1).any(1).sum()) if x.numel() else 0
        is_float = x.is_floating_point() and x.element_size() >= 2 and x.numel() > 0
        found.append((count, _ulps(x, y).nan_to_num() if is_float else torch.zeros(1)))
    return found
