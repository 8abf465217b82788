"""Training through quantization: which operands of a linear layer's three products are quantized how, as rows.

The products are `y = x w` (fprop), `grad w^T` (dgrad) and `x^T grad` (wgrad). A row says for each which quantizer makes the left and the
right operand and what multiplies them; `linear` and `linear_gradients` are the composition, in NumPy. With torch's and JAX's gradients:
`mmabits.kernels.training.in_torch`, `mmabits.kernels.training.in_jax`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.isa import OperandError, OperandTypeError, architecture, nearest
from mmabits.kernels.schemes import fp8, fp8_blockwise, mxfp8, nvfp4
from mmabits.kernels.schemes.checks import checked, row_named
from mmabits.kernels.schemes.dots import Dots, as_dots
from mmabits.kernels.schemes.scaling import finite_amax

Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint32]

TENSORS: Final = ("x", "w", "grad")
"""What is quantized: the input (M, K), the weights (K, N) and the gradient of the output (M, N)."""
DTYPES: Final = {"bf16": ml_dtypes.bfloat16, "f32": np.float32}
"""What tensors are before they are quantized, and what products are rounded to."""


@dataclass(frozen=True, kw_only=True)
class TrainingOperand:
    """How one operand of one product is made."""

    quantizer: str
    """A name of `QUANTIZERS`."""
    hadamard: bool = False
    """Along K of the product, the random Hadamard transform of `nvfp4.hadamard` comes first; both operands then have it."""
    stochastic: bool = False
    """Elements are rounded stochastically."""


@dataclass(frozen=True, kw_only=True)
class TrainingProduct:
    """One of the three products."""

    left: TrainingOperand
    right: TrainingOperand
    multiply: str
    """A name of `MULTIPLY`."""
    output: str = "bf16"
    """What the f32 result is rounded to."""
    promote: tuple[tuple[str, int], ...] = ()
    """Targets on which partial sums are promoted to f32 every so many elements of K; a what-if architecture is as its base there."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """One way to train a linear layer."""

    name: str
    what: str
    fprop: TrainingProduct
    dgrad: TrainingProduct
    wgrad: TrainingProduct
    multiple: int
    """K and N are multiples of it, and M where there are gradients."""
    before: str = "bf16"
    """What x, w and grad are rounded to before they are quantized."""
    signs_seed: int = 0
    """Of the signs of the Hadamard transform, which are the same for all layers and steps."""
    history: int = 0
    """Steps that delayed scaling looks back on; 0: scales are those of the tensor itself."""
    keep: tuple[str, ...] = ()
    """Layers of a network that stay in bf16, in the recipe's words."""
    source: str

    def products(self) -> dict[str, TrainingProduct]:
        """fprop, dgrad and wgrad."""
        return {"fprop": self.fprop, "dgrad": self.dgrad, "wgrad": self.wgrad}

    @property
    def is_stochastic(self) -> bool:
        """Whether random bits are drawn."""
        return any(each.left.stochastic or each.right.stochastic for each in self.products().values())


# State ----------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class LayerState:
    """What a linear layer keeps from step to step: the seed of its random bits, how many steps there were, its histories of amax.

    It changes: `linear` records x and w, `linear_gradients` records grad and counts the step. A layer's is its own.

    Raises:
        OperandError: a seed or step that is no integer from 0 on.
    """

    seed: int = 0
    """Give each layer of a network another: with the same they draw the same bits."""
    step: int = 0
    """Gradients computed so far; random bits depend on it."""
    scalings: dict[str, fp8.DelayedScaling] = field(default_factory=dict)
    """Of delayed scaling, by the names of `TENSORS`; made with the first step."""

    def __post_init__(self) -> None:
        """Check."""
        for name, value in (("seed", self.seed), ("step", self.step)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 1 << 64:
                raise OperandError(f"{name} must be an integer from 0 to 2^64 - 1, got {value!r}")

    def copy(self) -> LayerState:
        """A state that changes on its own."""
        return LayerState(seed=self.seed, step=self.step, scalings=dict(self.scalings))

    def as_numbers(self) -> dict[str, Any]:
        """The same as numbers and texts, for files: `of_numbers` makes a state of it."""
        told = {
            name: {
                "format": one.format, "length": one.length, "margin": one.margin, "algorithm": one.algorithm,
                "multiplier": float(one.multiplier), "history": [float(amax) for amax in one.history],
            }
            for name, one in self.scalings.items()
        }  # fmt: skip
        return {"seed": int(self.seed), "step": int(self.step), "scalings": told}

    @classmethod
    def of_numbers(cls, told: Any) -> LayerState:
        """A state as `as_numbers` told it.

        Raises:
            OperandTypeError: something else.
            OperandError: histories that no scaling has.
        """
        try:
            scalings = {
                str(name): fp8.DelayedScaling(
                    format=one["format"], length=int(one["length"]), margin=int(one["margin"]), algorithm=one["algorithm"],
                    multiplier=np.float32(one["multiplier"]), history=tuple(map(np.float32, one["history"])),
                )
                for name, one in told["scalings"].items()
            }  # fmt: skip
            return cls(seed=int(told["seed"]), step=int(told["step"]), scalings=scalings)
        except (KeyError, TypeError, AttributeError) as error:
            raise OperandTypeError(f"no state of a layer: {error!r}; it has seed, step and scalings") from error

    def random_bits(self, product: str, shape: tuple[int, ...]) -> Bits:
        """Random bits of this step for one product's operand: Philox of the seed, the step and the product."""
        key = int(self.seed) | PRODUCTS.index(product) << 64
        words = np.random.Philox(key=key, counter=int(self.step) << 128).random_raw(int(np.prod(shape)))
        return (np.asarray(words, np.uint64) >> np.uint64(32)).astype(np.uint32).reshape(shape)


PRODUCTS: Final = ("fprop", "dgrad", "wgrad")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingInput:
    """What a quantizer gets."""

    values: Floats
    """The operand as it stands in the product: (M, K) on the left, (K, N) on the right; rounded to `before`, transformed."""
    random_bits: Bits | None
    """Of the shape of `values`; None: to nearest."""
    scaling: fp8.DelayedScaling | None
    """The tensor's history."""

    @property
    def rounding(self) -> dict[str, Any]:
        """As arguments of a quantizer that knows both roundings."""
        return {"rounding": "rn"} if self.random_bits is None else {"rounding": "rs", "random_bits": self.random_bits}


def _current(format: str) -> Callable[[TrainingInput], fp8.Fp8Matrix]:
    return lambda given: fp8.quantize(given.values, format=format, recipe="multiply")


def _delayed(given: TrainingInput) -> fp8.Fp8Matrix:
    if given.scaling is None:
        raise OperandError("delayed scaling needs a recipe with a history, got history=0")
    return given.scaling.step(given.values)[0]


def _tiles(tile: tuple[int, int]) -> Callable[[TrainingInput], fp8_blockwise.TiledFp8]:
    return lambda given: fp8_blockwise.quantize(given.values, tile=tile, recipe="reciprocal", least_amax=0.0)


QUANTIZERS: Final[dict[str, Callable[[TrainingInput], Any]]] = {
    "bf16": lambda given: given.values.astype(ml_dtypes.bfloat16),
    "fp8-current-e4m3": _current("e4m3"),
    "fp8-current-e5m2": _current("e5m2"),
    "fp8-delayed": _delayed,
    "fp8-1x128": _tiles((1, fp8_blockwise.BLOCK)),
    "fp8-128x1": _tiles((fp8_blockwise.BLOCK, 1)),
    "fp8-128x128": _tiles((fp8_blockwise.BLOCK, fp8_blockwise.BLOCK)),
    "fp8-rows": lambda given: fp8.quantize(given.values, per="row", recipe="multiply"),
    "fp8-columns": lambda given: fp8.quantize(given.values, per="column", recipe="multiply"),
    "mxfp8-rows": lambda given: mxfp8.quantize_rows(given.values, recipe="rceil"),
    "mxfp8-columns": lambda given: mxfp8.quantize_columns(given.values, recipe="rceil"),
    "nvfp4-rows": lambda given: nvfp4.quantize_rows(given.values, **given.rounding),
    "nvfp4-columns": lambda given: nvfp4.quantize_columns(given.values, **given.rounding),
    "nvfp4-columns-square": lambda given: nvfp4.quantize_columns(given.values, square=True),
}
"""What makes operands. Those of delayed scaling take the format of the tensor's history."""
STOCHASTIC: Final = ("nvfp4-rows", "nvfp4-columns")
"""Those that know stochastic rounding."""

Multiply = Callable[[Any, Any, Dots], Floats]

MULTIPLY: Final[dict[str, Multiply]] = {
    "bf16": lambda a, b, dots: np.asarray(dots(a, b)),
    "fp8": lambda a, b, dots: fp8.fp8_matmul(a, b, arch=dots),
    "fp8-tiles": lambda a, b, dots: fp8_blockwise.fp8_blockwise_matmul(a, b, arch=dots),
    "mxfp8": lambda a, b, dots: mxfp8.mxfp8_matmul(a, b, arch=dots),
    "nvfp4": lambda a, b, dots: nvfp4.nvfp4_matmul(a, b, arch=dots),
}
"""What multiplies two operands: the compositions of the schemes."""


# Recipes --------------------------------------------------------------------------------------------------------------


def _product(left: str, right: str, multiply: str, **more: Any) -> TrainingProduct:
    return TrainingProduct(left=TrainingOperand(quantizer=left), right=TrainingOperand(quantizer=right), multiply=multiply, **more)


def _rows() -> Iterator[TrainingRecipe]:
    plain = _product("bf16", "bf16", "bf16")
    weights = _product("bf16", "bf16", "bf16", output="f32")
    yield TrainingRecipe(
        name="bf16", what="bf16 operands, f32 accumulators", fprop=plain, dgrad=plain, wgrad=weights, multiple=1,
        source="mixed precision as frameworks have it",
    )  # fmt: skip
    split = (("sm_90a", 128),)
    for name, what, history, forward, backward, source in (
        ("fp8-current", "e4m3 forward, e5m2 gradients, one scale a tensor, its own", 0, "fp8-current-e4m3", "fp8-current-e5m2",
         "Transformer Engine, Float8CurrentScaling, HYBRID"),
        ("fp8-delayed", "e4m3 forward, e5m2 gradients, one scale a tensor from earlier steps", 16, "fp8-delayed", "fp8-delayed",
         "Transformer Engine, DelayedScaling, HYBRID; arXiv 2209.05433"),
    ):  # fmt: skip
        yield TrainingRecipe(
            name=name, what=what, fprop=_product(forward, forward, "fp8"), dgrad=_product(backward, forward, "fp8", promote=split),
            wgrad=_product(forward, backward, "fp8", output="f32", promote=split), multiple=1, history=history, source=source,
        )  # fmt: skip
    yield TrainingRecipe(
        name="fp8-rowwise", what="e4m3, a scale for each row and column, backward one for the weights; weight gradients in bf16",
        fprop=_product("fp8-rows", "fp8-columns", "fp8"), dgrad=_product("fp8-rows", "fp8-current-e4m3", "fp8"), wgrad=weights, multiple=1,
        source="torchao, rowwise_with_gw_hp",
    )  # fmt: skip
    tiles = _product("fp8-1x128", "fp8-128x128", "fp8-tiles")
    yield TrainingRecipe(
        name="fp8-tiles", what="e4m3, float32 scales for 1 x 128 of activations and gradients and 128 x 128 of weights",
        fprop=tiles, dgrad=tiles, wgrad=_product("fp8-1x128", "fp8-128x1", "fp8-tiles", output="f32"), multiple=fp8_blockwise.BLOCK,
        source="DeepSeek-V3 (arXiv 2412.19437), section 3.3; DeepGEMM",
    )  # fmt: skip
    mx = _product("mxfp8-rows", "mxfp8-columns", "mxfp8")
    yield TrainingRecipe(
        name="mxfp8", what="e4m3 in blocks of 32 along K of each product, so two copies of each tensor from one source; rceil", fprop=mx,
        dgrad=mx, wgrad=_product("mxfp8-rows", "mxfp8-columns", "mxfp8", output="f32"), multiple=32,
        source="arXiv 2506.08027; Transformer Engine, MXFP8BlockScaling",
    )  # fmt: skip
    drawn = TrainingOperand(quantizer="nvfp4-rows", stochastic=True)
    square = TrainingOperand(quantizer="nvfp4-columns-square")
    yield TrainingRecipe(
        name="nvfp4", what="e2m1 in blocks of 16, weights 16 x 16; stochastic gradients; weight gradients of Hadamard transforms",
        fprop=TrainingProduct(left=TrainingOperand(quantizer="nvfp4-rows"), right=square, multiply="nvfp4"),
        dgrad=TrainingProduct(left=drawn, right=square, multiply="nvfp4"),
        wgrad=TrainingProduct(
            left=TrainingOperand(quantizer="nvfp4-rows", hadamard=True),
            right=TrainingOperand(quantizer="nvfp4-columns", hadamard=True, stochastic=True), multiply="nvfp4", output="f32",
        ),
        multiple=16, keep=("the last blocks", "embeddings", "the output layer", "attention"),
        source="arXiv 2509.25149; Transformer Engine, NVFP4BlockScaling",
    )  # fmt: skip
    plain4 = _product("nvfp4-rows", "nvfp4-columns", "nvfp4")
    yield TrainingRecipe(
        name="nvfp4-plain", what="NVFP4 with nothing of the recipe: blocks of 16 everywhere, to nearest, no transforms", fprop=plain4,
        dgrad=plain4, wgrad=_product("nvfp4-rows", "nvfp4-columns", "nvfp4", output="f32"), multiple=16,
        source="the other end of the ablations in arXiv 2509.25149",
    )  # fmt: skip


TRAINING_RECIPES: Final = {row.name: row for row in _rows()}
"""Every recipe by its name."""


def training_recipe(name: str | TrainingRecipe) -> TrainingRecipe:
    """The recipe of that name; a row of one's own is looked through.

    Raises:
        OperandError: there is none; a row that names what there is not.
    """
    if not isinstance(name, TrainingRecipe):
        return row_named(TRAINING_RECIPES, name, "training recipe")
    _check(name)
    return name


@lru_cache(maxsize=64)
def _check(recipe: TrainingRecipe) -> None:
    """Refuse a row that cannot be computed.

    Raises:
        OperandError: it names what there is not, or asks a quantizer for what it does not know.
    """
    if recipe.before not in DTYPES:
        raise OperandError(f"{recipe.name}: tensors are {' or '.join(DTYPES)} before they are quantized, got {recipe.before!r}")
    for which, product in recipe.products().items():
        at = f"{recipe.name}, {which}"
        if product.multiply not in MULTIPLY:
            raise OperandError(f"{at}: unknown product {product.multiply!r}; known: {', '.join(MULTIPLY)}")
        if product.output not in DTYPES:
            raise OperandError(f"{at}: results are {' or '.join(DTYPES)}, got {product.output!r}")
        if product.left.hadamard != product.right.hadamard:
            raise OperandError(f"{at}: both operands are transformed, or none")
        for operand in (product.left, product.right):
            if operand.quantizer not in QUANTIZERS:
                raise OperandError(f"{at}: unknown quantizer {operand.quantizer!r}{nearest(operand.quantizer, QUANTIZERS)}")
            if operand.stochastic and operand.quantizer not in STOCHASTIC:
                raise OperandError(f"{at}: {operand.quantizer} does not round stochastically; {', '.join(STOCHASTIC)} do")
            if operand.quantizer == "fp8-delayed" and recipe.history < 1:
                raise OperandError(f"{at}: delayed scaling needs a history of at least 1, got {recipe.history}")
        if sum(operand.stochastic for operand in (product.left, product.right)) > 1:
            raise OperandError(f"{at}: one operand of a product is rounded stochastically at most")


def training_table() -> str:
    """The recipes as a Markdown table."""
    lines = ["| Recipe | | fprop: x, w | dgrad: grad, w | wgrad: x, grad | Source |", "|---|---|---|---|---|---|"]
    for row in TRAINING_RECIPES.values():
        cells = [f"`{row.name}`", row.what]
        for product in row.products().values():
            cells.append(" x ".join(_told(operand) for operand in (product.left, product.right)))
        lines.append(f"| {' | '.join((*cells, row.source))} |")
    return "\n".join(lines) + "\n"


def _told(operand: TrainingOperand) -> str:
    more = [name for name, has in (("Hadamard", operand.hadamard), ("stochastic", operand.stochastic)) if has]
    return operand.quantizer + (f" ({', '.join(more)})" if more else "")


# The layer ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedLinear:
    """What the backward pass needs of the forward one: operands that are quantized already."""

    recipe: TrainingRecipe
    arch: str | Dots
    state: LayerState
    shape: tuple[int, int, int]
    """M, N, K."""
    weights: Any
    """Right operand of dgrad: w^T, (N, K)."""
    inputs: Any
    """Left operand of wgrad: x^T, (K, M)."""


def linear(
    x: npt.NDArray[Any], w: npt.NDArray[Any], *, recipe: str | TrainingRecipe, arch: str | Dots, state: LayerState | None = None
) -> tuple[Floats, SavedLinear]:
    """The forward product y = x w by a recipe.

    Args:
        x: (M, K) float32.
        w: (K, N) float32.
        recipe: a name of `TRAINING_RECIPES`, or a row.
        arch: architecture, or its dots, which then are those of all three products.
        state: the layer's; it records x and w. None: a new one.

    Returns:
        y, (M, N) float32 rounded as the recipe says, and what `linear_gradients` needs.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit, sizes that are no multiples of the recipe's blocks.
        MmabitsError: as `mmabits.gemm`.
    """
    row, kept = training_recipe(recipe), _state(state)
    left, right = _operands(row, arch, x, w, gradients=True)
    y = _forward(row, arch, left, right, kept)
    saved = SavedLinear(
        recipe=row, arch=arch, state=kept, shape=(left.shape[0], right.shape[1], left.shape[1]),
        weights=_made(row, "dgrad", 1, "w", right.T, kept), inputs=_made(row, "wgrad", 0, "x", left.T, kept),
    )  # fmt: skip
    _record(row, kept, {"x": left, "w": right})
    return y, saved


def linear_forward(
    x: npt.NDArray[Any], w: npt.NDArray[Any], *, recipe: str | TrainingRecipe, arch: str | Dots, state: LayerState | None = None
) -> Floats:
    """The y of `linear` where no gradients are wanted: nothing is summed over M, so M may be any, one token too.

    Args:
        x: (M, K) float32.
        w: (K, N) float32.
        recipe: as for `linear`.
        arch: as for `linear`.
        state: the layer's; it records x and w. None: a new one.

    Returns:
        (M, N) float32 rounded as the recipe says.

    Raises:
        OperandTypeError, OperandError: arrays that do not fit; K or N that are no multiples of the recipe's blocks.
        MmabitsError: as `mmabits.gemm`.
    """
    row, kept = training_recipe(recipe), _state(state)
    left, right = _operands(row, arch, x, w, gradients=False)
    y = _forward(row, arch, left, right, kept)
    _record(row, kept, {"x": left, "w": right})
    return y


def check_layer(recipe: TrainingRecipe, arch: str | Dots, *, m: int | None = None, n: int, k: int) -> None:
    """Refuse sizes that are no multiples of the recipe's blocks, and an architecture that there is not.

    Args:
        recipe: a row.
        arch: architecture, or its dots.
        m: None where no gradients are computed: then it may be any.
        n: columns of w.
        k: rows of w.

    Raises:
        OperandError: such a size.
        UnknownArchitecture: such an architecture.
    """
    architecture(as_dots(arch).arch)
    for name, size in (("M", m), ("N", n), ("K", k)):
        if size is not None and size % recipe.multiple:
            told = f"{name} must be a multiple of {recipe.multiple} for {recipe.name}, whose products sum over M, N and K; got {size}"
            raise OperandError(f"{told} (without gradients M may be any)" if name == "M" else told)


def linear_gradients(grad: npt.NDArray[Any], saved: SavedLinear) -> tuple[Floats, Floats]:
    """The gradients of x and w from that of y. The layer's state records grad and counts the step.

    Args:
        grad: (M, N) float32.
        saved: from `linear`.

    Returns:
        (M, K) and (K, N) float32, rounded as the recipe says.

    Raises:
        OperandTypeError, OperandError: a gradient that does not fit.
        MmabitsError: as `mmabits.gemm`.
    """
    row, state = saved.recipe, saved.state
    given = checked(grad, "grad", (np.float32,), 2)
    m, n, _ = saved.shape
    if given.shape != (m, n):
        raise OperandError(f"grad must have the shape ({m}, {n}) of the result, got {given.shape}")
    given = _rounded(given, row.before)
    d_x = _multiplied(row, "dgrad", saved.arch, _made(row, "dgrad", 0, "grad", given, state), saved.weights)
    d_w = _multiplied(row, "wgrad", saved.arch, saved.inputs, _made(row, "wgrad", 1, "grad", given, state))
    _record(row, state, {"grad": given})
    state.step += 1
    return d_x, d_w


def _state(state: LayerState | None) -> LayerState:
    if state is None:
        return LayerState()
    if not isinstance(state, LayerState):
        raise OperandTypeError(f"state must be a LayerState, got {type(state).__name__}")
    return state


def _operands(
    row: TrainingRecipe, arch: str | Dots, x: npt.NDArray[Any], w: npt.NDArray[Any], *, gradients: bool
) -> tuple[Floats, Floats]:  # fmt: skip
    left, right = checked(x, "x", (np.float32,), 2), checked(w, "w", (np.float32,), 2)
    if left.shape[1] != right.shape[0]:
        raise OperandError(f"x has K = {left.shape[1]} and w has K = {right.shape[0]}; they must agree")
    check_layer(row, arch, m=left.shape[0] if gradients else None, n=right.shape[1], k=left.shape[1])
    return _rounded(left, row.before), _rounded(right, row.before)


def _forward(row: TrainingRecipe, arch: str | Dots, x: Floats, w: Floats, state: LayerState) -> Floats:
    return _multiplied(row, "fprop", arch, _made(row, "fprop", 0, "x", x, state), _made(row, "fprop", 1, "w", w, state))


def _rounded(values: Floats, dtype: str) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(DTYPES[dtype]).astype(np.float32))


@lru_cache(maxsize=64)
def _signs(seed: int) -> Floats:
    return nvfp4.random_signs(seed)


def _made(row: TrainingRecipe, which: str, side: int, tensor: str, values: Floats, state: LayerState) -> Any:
    """An operand of a product, on the left (0) or on the right (1), from the tensor as it stands there."""
    product = row.products()[which]
    operand = (product.left, product.right)[side]
    if operand.hadamard:
        values = nvfp4.hadamard(np.ascontiguousarray(values), _signs(row.signs_seed), axis=1 - side)
    bits = state.random_bits(which, values.shape) if operand.stochastic else None
    scaling = _scaling(row, state, tensor) if row.history else None
    return QUANTIZERS[operand.quantizer](TrainingInput(values=np.ascontiguousarray(values), random_bits=bits, scaling=scaling))


def _scaling(row: TrainingRecipe, state: LayerState, tensor: str) -> fp8.DelayedScaling:
    format = fp8.BACKWARD if tensor == "grad" else fp8.FORWARD
    return state.scalings.setdefault(tensor, fp8.DelayedScaling(format=format, length=row.history))


def _record(row: TrainingRecipe, state: LayerState, tensors: Mapping[str, Floats]) -> None:
    if row.history:
        for name, values in tensors.items():
            state.scalings[name] = _scaling(row, state, name).record(finite_amax(values, None).reshape(-1)[0])


def _multiplied(row: TrainingRecipe, which: str, arch: str | Dots, a: Any, b: Any) -> Floats:
    product = row.products()[which]
    return _rounded(MULTIPLY[product.multiply](a, b, _dots(product, arch)), product.output)


def _dots(product: TrainingProduct, arch: str | Dots) -> Dots:
    """Dots as they are; of an architecture, by whatever name, with the recipe's promotion. A what-if's own comes first."""
    if isinstance(arch, Dots):
        return arch
    target = architecture(arch)
    return Dots(arch=arch, promote_every=target.promote_every or dict(product.promote).get(target.base or target.name))
