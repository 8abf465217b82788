"""One piece of text through a model in one setting, and beside other settings: what a sweep computes, here or on a cluster's workers.

Imports torch when it is imported.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import nn

from mmabits.emulator.engine.memory import available
from mmabits.emulator.hooks.session import SessionReport, emulate
from mmabits.isa import EmulationError, OperandError, UnsupportedInstruction
from mmabits.research.evaluation.recipes import ModelRecipe, QuantizedLayer, model_recipe
from mmabits.research.models import FunctionModel, find_model

Row = dict[str, Any]

DTYPES: Final = {"own": None, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""What a model is cast to before anything else."""
ACCUMULATORS: Final = {
    "default": "as the library accumulates unless it is told: FP8 promoted where the architecture can",
    "fast": "FP8 accumulated fast",
    "f16": "f16 accumulators, for f16",
}
EXACT: Final = "f32"
"""What a setting is held against besides others: the model in f32, as PyTorch computes it on the CPU; a plain function as it is."""
_ROWS: Final = 64
"""Rows of logits that are looked at at a time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSetting:
    """How a model runs."""

    arch: str
    recipe: str = "none"
    library: str = ""
    """As for `emulate`; empty: the best known choice."""
    accumulator: str = "default"

    @property
    def words(self) -> str:
        """In words."""
        more = [self.library and f"library {self.library}", "" if self.accumulator == "default" else f"accumulator {self.accumulator}"]
        return ", ".join([self.arch, self.recipe, *filter(None, more)])


@dataclass(frozen=True, kw_only=True, eq=False)
class _LoadedModel:
    name: str
    dtype: str
    model: nn.Module
    digest: str


GIVEN: Final[dict[str, nn.Module]] = {}
"""Models that a program has handed over itself, by their digest."""
_ONE_AT_A_TIME: Final = threading.RLock()
"""A worker of a cluster may have many threads, and one of them may be inside a block of `emulate`."""
_LOADED: Final[list[_LoadedModel]] = []


class _LastMade:
    """The last things that were made, as many as there is room for."""

    def __init__(self) -> None:
        self._things: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """None where it is gone."""
        if key not in self._things:
            return None
        self._things.move_to_end(key)
        return self._things[key][0]

    def put(self, key: Any, thing: Any, size: int) -> None:
        """Keep something of so many bytes; what was not asked for longest goes."""
        self._things[key] = thing, size
        room = (available() or 1 << 32) // 4
        while len(self._things) > 1 and sum(size for _, size in self._things.values()) > room + size:
            self._things.popitem(last=False)

    def clear(self) -> None:
        """Forget."""
        self._things.clear()


_RUNS: Final = _LastMade()
_PREPARED: Final = _LastMade()


def digest_of(model: nn.Module) -> str:
    """What tells a model from another: names, shapes, types and bits of its weights."""
    told = hashlib.blake2b(digest_size=16)
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            continue
        told.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        told.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """A model in one of DTYPES, ready to be run."""
    kind = DTYPES[dtype]
    return (model if kind is None else _weights_to(model, kind)).eval()


def _weights_to(model: nn.Module, kind: torch.dtype) -> nn.Module:
    """What a model keeps on disk in another type. Frequencies of rotary embeddings stay f32, as where weights are loaded so."""
    kept = {id(value) for value in model.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)}
    for value in (*model.parameters(), *model.buffers()):
        if id(value) in kept and value.is_floating_point():
            value.data = value.data.to(kind)
    return model


def _model(name: str, dtype: str, digest: str) -> _LoadedModel:
    """A model by its name, as it was when the sweep began.

    Raises:
        OperandError: it is another here.
    """
    if _LOADED and (_LOADED[0].name, _LOADED[0].dtype, _LOADED[0].digest) == (name, dtype, digest):
        return _LOADED[0]
    for held in (_RUNS, _PREPARED, _LOADED):
        held.clear()
    model = GIVEN[digest] if digest in GIVEN else cast(find_model(name, dtype=None).model, dtype)
    found = digest_of(model)
    if found != digest:
        raise OperandError(
            f"the model {name} has other weights here than where the evaluation began (digest {found}, not {digest}): "
            "a function that draws weights sets a seed"
        )
    _LOADED.append(_LoadedModel(name=name, dtype=dtype, model=model, digest=digest))
    return _LOADED[0]


# Layers -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearLayer:
    """A linear layer of a model."""

    name: str
    module: nn.Module
    weight: torch.Tensor
    """(N, K)."""
    bias: torch.Tensor | None


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """Those of a model by their names: torch.nn.Linear, and Conv1D of transformers (GPT-2)."""
    found = {}
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, nn.Linear):
            found[name] = LinearLayer(name=name, module=module, weight=weight, bias=module.bias)
        elif type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
            bias: Any = module.bias
            found[name] = LinearLayer(name=name, module=module, weight=weight.t(), bias=bias)
    return found


def is_kept(name: str, keep: Sequence[str]) -> bool:
    """Whether a layer stays as it is: its path, or the last part of it, fits a pattern."""
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in keep for each in (name, name.rpartition(".")[2]))


def _prepared(loaded: _LoadedModel, recipe: ModelRecipe, keep: Sequence[str]) -> nn.Module:
    """The model in a recipe; what the recipe leaves as it is, is shared with the model itself."""
    if recipe.layer is None and recipe.dtype is None:
        return loaded.model
    key = (recipe.name, tuple(keep))
    made: nn.Module | None = _PREPARED.get(key)
    if made is None:
        if recipe.dtype is not None:
            made = _weights_to(copy.deepcopy(loaded.model), recipe.dtype)
        else:
            shared = {id(value): value for value in (*loaded.model.parameters(), *loaded.model.buffers())}
            made = copy.deepcopy(loaded.model, shared)
            layers = linear_layers(made)
            for name, layer in layers.items():
                if recipe.layer is not None and not is_kept(name, keep):
                    parent, _, last = name.rpartition(".")
                    setattr(made.get_submodule(parent), last, recipe.layer(layer.weight, layer.bias))
        _PREPARED.put(key, made, sum(value.numel() * value.element_size() for value in made.state_dict().values()))
    return made


# A run --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _SettingRun:
    """What a model gave in a setting."""

    end: torch.Tensor
    """Logits or outputs."""
    layers: Mapping[str, torch.Tensor]
    """What each linear layer gave, in the order in which they ran."""
    account: Row = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(each.numel() * each.element_size() for each in (self.end, *self.layers.values()))


def _run(loaded: _LoadedModel, tokens: Sequence[int], setting: EvaluationSetting | None, keep: Sequence[str]) -> _SettingRun | str:
    """The model in a setting, None: in f32 without emulation; or why that is not possible."""
    key = (tuple(tokens), setting, tuple(keep))
    found: _SettingRun | str | None = _RUNS.get(key)
    if found is None:
        found = _exact(loaded, tokens) if setting is None else _emulated(loaded, tokens, setting, keep)
        _RUNS.put(key, found, 0 if isinstance(found, str) else found.size)
    return found


def _exact(loaded: _LoadedModel, tokens: Sequence[int]) -> _SettingRun:
    model: nn.Module | None = loaded.model if isinstance(loaded.model, FunctionModel) else _PREPARED.get(EXACT)
    if model is None:
        model = _weights_to(copy.deepcopy(loaded.model), torch.float32)
        _PREPARED.put(EXACT, model, sum(4 * value.numel() for value in model.state_dict().values()))
    return _called(model, tokens, ())


def _emulated(loaded: _LoadedModel, tokens: Sequence[int], setting: EvaluationSetting, keep: Sequence[str]) -> _SettingRun | str:
    recipe = model_recipe(setting.recipe)
    model = _prepared(loaded, recipe, keep)
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    for layer in quantized:
        layer.fast = setting.accumulator == "fast"
    names = [name for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)]
    try:
        with _set(recipe, setting), emulate(setting.arch, frameworks=["torch"], library=setting.library or None) as session:
            found = _called(model, tokens, names)
    except (EmulationError, UnsupportedInstruction) as error:
        return " ".join(str(error).split())
    return _SettingRun(end=found.end, layers=found.layers, account=_account(session.report()))


@contextmanager
def _set(recipe: ModelRecipe, setting: EvaluationSetting) -> Iterator[None]:
    """PyTorch's switches that a setting asks for."""
    switches: Any = torch.backends.cuda.matmul
    with ExitStack() as undo:
        if setting.accumulator == "f16":
            undo.callback(setattr, switches, "allow_fp16_accumulation", switches.allow_fp16_accumulation)
            switches.allow_fp16_accumulation = True
        if recipe.tf32:
            undo.callback(setattr, switches, "allow_tf32", switches.allow_tf32)
            switches.allow_tf32 = True
        yield


def _called(model: nn.Module, tokens: Sequence[int], quantized: Sequence[str]) -> _SettingRun:
    """Run a model on one thread, whose sums do not hang on how many there are, and keep what its linear layers give."""
    kept: dict[str, list[torch.Tensor]] = {}
    names = [*linear_layers(model), *quantized]
    hooks = [model.get_submodule(name).register_forward_hook(_keeping(kept, name)) for name in names]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            end = _output(model(torch.tensor([list(tokens)])))
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()
    return _SettingRun(end=end, layers={name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in kept.items()})


def _keeping(kept: dict[str, list[torch.Tensor]], name: str) -> Any:
    def keep(module: nn.Module, given: Any, got: torch.Tensor) -> None:
        kept.setdefault(name, []).append(got.detach().reshape(-1, got.shape[-1]).clone())

    return keep


def _output(result: Any) -> torch.Tensor:
    """What a model gives, of a tensor or of an object in the manner of transformers."""
    for name in ("logits", "last_hidden_state"):
        result = getattr(result, name, result)
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        raise OperandError(f"a model gives a tensor of numbers, or an object with logits or last_hidden_state, got {type(result).__name__}")
    return result.detach().clone()


def _account(report: SessionReport) -> Row:
    """What of a run's arithmetic was emulated, and how."""
    kinds: dict[str, int] = {}
    for line in report.emulated:
        a, b, d = (each.name for each in (line.instruction.a_type, line.instruction.b_type, line.instruction.d_type))
        kind = f"{a if a == b else f'{a} x {b}'} into {d}"
        kinds[kind] = kinds.get(kind, 0) + line.multiply_adds
    skipped: dict[str, int] = {}
    for missed in report.skipped:
        told = f"{missed.operation}: {missed.reason}"
        skipped[told] = skipped.get(told, 0) + (missed.multiply_adds or 0)
    evidence: dict[str, int] = {}
    for line in report.emulated:
        evidence[str(line.evidence)] = evidence.get(str(line.evidence), 0) + line.multiply_adds
    return {"emulated": report.multiply_adds, "kinds": kinds, "evidence": evidence, "skipped": skipped}


# Comparing ----------------------------------------------------------------------------------------------------------------


def _difference(x: torch.Tensor, y: torch.Tensor) -> Row:
    """How y differs from x; `results` alone where they have other shapes."""
    if x.shape != y.shape:
        return {"results": max(x.numel(), y.numel()), "changed": None, "largest": None, "squares": None, "reference": None}
    changed, largest, squares, reference = 0, 0.0, [], []
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    for start in range(0, x.shape[0], _ROWS):
        ours, theirs = x[start : start + _ROWS], y[start : start + _ROWS]
        a, b = ours.double(), theirs.double()
        differs = _bits_differ(ours, theirs) if ours.dtype == theirs.dtype else (a != b) & ~(a.isnan() & b.isnan())
        distance = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
        changed += int(differs.sum())
        largest = max(largest, float(distance.max())) if distance.numel() else largest
        squares.append(float((distance * distance).sum()))
        reference.append(float((a * a).sum()))
    return {
        "results": x.numel(), "changed": changed, "largest": largest, "squares": math.fsum(squares), "reference": math.fsum(reference),
    }  # fmt: skip


def _bits_differ(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(kind) != y.contiguous().view(kind)


def are_logits(end: torch.Tensor, tokens: Sequence[int]) -> bool:
    """Whether there is a number for every token that may come next."""
    return end.dim() == 3 and end.shape[:2] == (1, len(tokens)) and end.shape[2] > max(tokens)


def _distributions(x: torch.Tensor, y: torch.Tensor) -> Row:
    """Of logits (1, positions, tokens): where the most likely token is the same, and the divergence of y's distributions from x's."""
    if x.shape != y.shape:
        return {"positions": None, "agree": None, "kl": None}
    agree, divergences = 0, []
    for start in range(0, x.shape[1], _ROWS):
        p, q = (each[0, start : start + _ROWS].double().log_softmax(-1) for each in (x, y))
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
        divergences += terms.sum(-1).tolist()
    return {"positions": x.shape[1], "agree": agree, "kl": math.fsum(divergences)}


def _surprise(end: torch.Tensor, tokens: Sequence[int]) -> Row:
    """Minus the log-probability of every token but the first, given those before it, summed."""
    wanted = torch.tensor(list(tokens[1:]))
    found = []
    for start in range(0, len(tokens) - 1, _ROWS):
        rows = end[0, start : min(start + _ROWS, len(tokens) - 1)].double().log_softmax(-1)
        found += rows.gather(-1, wanted[start : start + _ROWS, None])[:, 0].tolist()
    return {"nll": -math.fsum(found), "predicted": len(tokens) - 1}


# A point ------------------------------------------------------------------------------------------------------------------


def evaluate_point(
    *, model: str, dtype: str, digest: str, version: str, piece: int, tokens: Sequence[int], setting: Mapping[str, str],
    against: Sequence[Sequence[Any]], keep: Sequence[str], causal: bool,
) -> list[Row]:  # fmt: skip
    """One piece of text in one setting; a row for the run, then one for each layer and for the end, against each other setting.

    Args:
        model: its name, as for `find_model`.
        dtype: one of DTYPES.
        digest: of the model where the evaluation began.
        version: of mmabits, so that results of another are not taken for this one's.
        piece: number of the piece.
        tokens: of the piece.
        setting: an EvaluationSetting's fields.
        against: names, and the fields of what the run is held against; None for f32.
        keep: patterns of layers that stay in the model's own type.
        causal: whether logits tell of the next token.
    """
    with _ONE_AT_A_TIME:
        loaded = _model(model, dtype, digest)
        mine = EvaluationSetting(**setting)
        told = {"piece": piece, **asdict(mine)}
        ours = _run(loaded, tokens, mine, keep)
        if isinstance(ours, str):
            return [{**told, "kind": "refused", "why": ours}]
        has_logits = are_logits(ours.end, tokens)
        surprise: Row = {"nll": None, "predicted": 0, "exact_nll": None}
        exact = _run(loaded, tokens, None, keep)
        if has_logits and causal and not isinstance(exact, str):
            surprise = {**_surprise(ours.end, tokens), "exact_nll": _surprise(exact.end, tokens)["nll"]}
        rows: list[Row] = [{**told, "kind": "run", "tokens": len(tokens), "logits": has_logits, **surprise, **ours.account}]
        for name, fields in against:
            other = _run(loaded, tokens, None if fields is None else EvaluationSetting(**fields), keep)
            if isinstance(other, str):
                continue  # its own point says why
            where = {**told, "kind": "difference", "against": name}
            ends = _distributions(other.end, ours.end) if has_logits else {"positions": None, "agree": None, "kl": None}
            rows.append({**where, "layer": "", **_difference(other.end, ours.end), **ends})
            empty = torch.empty(0, 1)
            rows += [
                {**where, "layer": layer, **_difference(other.layers.get(layer, empty), given)} for layer, given in ours.layers.items()
            ]
        return rows
