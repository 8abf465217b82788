"""The two calls people make: one instruction (`mma`) and a whole product (`gemm`). All checking happens here."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.engine.fma import canonical
from mmabits.emulator.engine.memory import require
from mmabits.emulator.interop import to_numpy
from mmabits.isa import (
    Evidence,
    FormatSpec,
    Instruction,
    InsufficientEvidence,
    Lowering,
    MmabitsError,
    OperandError,
    OperandTypeError,
    UnknownArchitecture,
    UnknownInstruction,
    architecture,
    evidence_level,
    library_instruction,
    lower,
    parse,
    resolve,
)

if TYPE_CHECKING:
    from mmabits.emulator.schedules import Schedule

Array = npt.NDArray[Any]

_OPERANDS: dict[np.dtype[Any], str] = {
    np.dtype(np.float64): "f64",
    np.dtype(np.float32): "tf32",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
    np.dtype(ml_dtypes.float8_e4m3fn): "e4m3",
    np.dtype(ml_dtypes.float8_e5m2): "e5m2",
    np.dtype(ml_dtypes.float6_e3m2fn): "e3m2",
    np.dtype(ml_dtypes.float6_e2m3fn): "e2m3",
    np.dtype(ml_dtypes.float4_e2m1fn): "e2m1",
    np.dtype(np.int8): "s8",
    np.dtype(np.uint8): "u8",
    np.dtype(ml_dtypes.int4): "s4",
    np.dtype(ml_dtypes.uint4): "u4",
}
_SCALES: dict[np.dtype[Any], str] = {np.dtype(ml_dtypes.float8_e8m0fnu): "ue8m0", np.dtype(ml_dtypes.float8_e4m3fn): "ue4m3"}
_ACCUMULATORS: dict[np.dtype[Any], str] = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(np.float64): "f64",
    np.dtype(np.int32): "s32",
}
_MANY = 1 << 22
"""Elements of operands and result up to which nobody asks for memory: not 64 MiB."""
_LARGE = 1 << 16
"""Elements of a matrix from which it is copied in strips."""
_STRIP = 64
"""Columns of a strip."""
_RESULTS = {name: dtype for dtype, name in _ACCUMULATORS.items()}
_CODES: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


def mma(
    instruction: str | Instruction,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    scale_a: Any = None,
    scale_b: Any = None,
    arch: str,
    require: str | Evidence = Evidence.INFERRED,
    nan_scales: str = "propagate",
    device: str = "cpu",
) -> Any:
    """One tensor-core instruction: D = A B + C with the bits that the architecture's hardware gives.

    Args:
        instruction: PTX spelling, or a short one where the operands decide the rest (`"wgmma"`).
        a: (..., M, K) with the instruction's M and K, in the dtype of its A type: float16, bfloat16, float32 (read as
            tf32), float64, int8, uint8, or an ml_dtypes type (float8_e4m3fn, float8_e5m2, float6_e3m2fn, float6_e2m3fn,
            float4_e2m1fn, int4, uint4). NumPy, torch (packed FP4, too: `float4_e2m1fn_x2`, along K) or JAX; leading dimensions
            are a batch, which may be empty.
        b: (..., K, N), likewise.
        c: (..., M, N) accumulator, float32, float16, float64 or int32 as the instruction's C type; zeros if None.
        scale_a: (..., M, K / block) block scales, float8_e8m0fnu (ue8m0) or float8_e4m3fn (ue4m3).
        scale_b: (..., K / block, N), of the same type.
        arch: `"sm_90a"` and so on; mmabits.instructions() lists what each has.
        require: refuse rows whose evidence is below `"recorded"` or `"published"`.
        nan_scales: `"propagate"`, as the hardware does, or `"refuse"`: an error where a block scale is a NaN code.
        device: what computes: `"cpu"`, or `"cuda"`, any NVIDIA GPU that Numba can use (`pip install 'mmabits[cuda]'`). The bits
            are the same. Operands are copied there and back.

    Returns:
        D, (..., M, N), in the instruction's D type, as the same kind of array as `a`.

    Raises:
        UnknownInstruction, UnknownArchitecture, UnsupportedInstruction, InsufficientEvidence: the instruction.
        OperandTypeError, OperandError: dtypes and shapes; arrays that hold no numbers (meta, traced) or not plainly (sparse, masked).
        NotEnoughMemory: the result, with the copies it takes, is larger than what is free.
        DeviceUnavailable: `device` is `"cuda"` and there is no GPU, or Numba lacks what it takes to use it.

    Source: the arithmetic of each row is in mmabits.isa; `mmabits show INSTRUCTION --arch ARCH` prints it.
    """
    _check_device(device)
    left, restore = to_numpy(a, "a")
    call = _CheckedCall(
        instruction, arch, require, left, _numpy(b, "b", packed_along=-2), _numpy(c, "c"),
        _numpy(scale_a, "scale_a"), _numpy(scale_b, "scale_b"), 0, chains=False,
    )  # fmt: skip
    call.check_tile()
    call.check_scale_codes(nan_scales)
    return restore(call.run(device))


def gemm(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    instruction: str | Instruction | None = None,
    arch: str,
    scale_a: Any = None,
    scale_b: Any = None,
    promote_every: int | None = None,
    schedule: Schedule | None = None,
    bugs: bool = False,
    require: str | Evidence = Evidence.INFERRED,
    nan_scales: str = "propagate",
    device: str = "cpu",
) -> Any:
    """A whole product: the instruction over any M, N and K, K walked upward, the accumulator handed on; or as a schedule says.

    Edges are padded with zeros, as kernels do. Without elements D is empty, and where only K has none it is C as it stands, or zeros.

    Args:
        a: (..., M, K), dtypes as for `mma`.
        b: (..., K, N).
        c: (..., M, N) accumulator of the first instruction; zeros if None.
        instruction: PTX spelling, or a short one: `"wgmma"`, `"mma.sync"`, `"tcgen05.mma.kind::f8f6f4"`, ... A spelling with
            `.scale_d::0` does not read `c`, and then chains like any other; `.scale_input_d::N` divides the accumulator
            by 2^N at every instruction. With a schedule it may be left out: then it is the schedule's, or the architecture's newest.
        arch: `"sm_90a"` and so on.
        scale_a: (..., M, ceil(K / block)) block scales.
        scale_b: (..., ceil(K / block), N).
        promote_every: elements of K, a multiple of the instruction's K, after which the result is added to an f32
            accumulator by an IEEE addition and the chain starts again from zero. `c` and D are then float32. None: never,
            unless the architecture is a what-if that promotes.
        schedule: the order of all sums, and what they and the result are rounded to (`mmabits.Schedule`). `c` is none then, and
            `scale_a` and `scale_b` are single float32 numbers, whose product multiplies the f32 sum before it is rounded.
        bugs: whether to leave out what the library of the schedule is known to leave out (`Schedule.lost_tail`). Without it a warning
            says where the library would.
        require: refuse rows whose evidence is below this level.
        nan_scales: as for `mma`.
        device: as for `mma`.

    Returns:
        D, (..., M, N), as the same kind of array as `a`; with a schedule in the type of its output.

    Raises:
        MmabitsError: as `mma`; OperandError: what a schedule was not planned for.
    """
    _check_device(device)
    left, restore = to_numpy(a, "a")
    if schedule is not None:
        if c is not None or promote_every is not None:
            raise OperandError(f"a schedule takes no {'c' if c is not None else 'promote_every'}: it says itself what is summed")
        planned = _ScheduledCall(schedule, instruction, arch, require, left, _numpy(b, "b", packed_along=-2), device)
        return restore(planned.run(_factor(scale_a, scale_b), bugs))
    if instruction is None:
        raise UnknownInstruction("an instruction is given as text or as an Instruction, not as NoneType, or there is a schedule")
    if bugs:
        raise OperandError("bugs are those of a library: without a schedule of it there are none")
    promote = _promotion(promote_every)
    call = _CheckedCall(
        instruction, arch, require, left, _numpy(b, "b", packed_along=-2), _numpy(c, "c"),
        _numpy(scale_a, "scale_a"), _numpy(scale_b, "scale_b"), promote,
    )  # fmt: skip
    call.check_scale_codes(nan_scales)
    return restore(call.run(device))


def prepare(
    a: Any, b: Any, c: Any = None, *, instruction: str | Instruction, arch: str, scale_a: Any = None, scale_b: Any = None,
    promote_every: int | None = None,
) -> _CheckedCall:  # fmt: skip
    """A call of `gemm`, checked and not run: for what reasons about products.

    Raises:
        MmabitsError: as `gemm`.
    """
    return _CheckedCall(
        instruction, arch, Evidence.INFERRED, to_numpy(a, "a")[0], _numpy(b, "b", packed_along=-2), _numpy(c, "c"),
        _numpy(scale_a, "scale_a"), _numpy(scale_b, "scale_b"), _promotion(promote_every),
    )  # fmt: skip


def by_schedule(a: Array, b: Array, schedule: Schedule, *, arch: str, bugs: bool = False) -> Array:
    """`gemm` by a schedule on NumPy arrays, without the warning of what the library leaves out: for callers that say so themselves.

    Raises:
        MmabitsError: as `gemm`.
    """
    return _ScheduledCall(schedule, None, arch, Evidence.INFERRED, a, b, "cpu").run(None, bugs, warns=False)


def dot_rows(
    instruction: str | Instruction, arch: str, a: Array, b: Array, c: Array, *, scale_a: Array | None = None, scale_b: Array | None = None
) -> Array:
    """Independent dot products of codes: d[i] = sum over k of a[i, k] * b[i, k], plus c[i].

    Args:
        instruction: full PTX spelling.
        arch: architecture.
        a: (n, k) operand codes, unsigned integers; zeros are added up to the instruction's K.
        b: (n, k), likewise.
        c: (n,) accumulator codes.
        scale_a: (n, blocks) scale codes.
        scale_b: (n, blocks) scale codes.

    Returns:
        (n,) result codes, unsigned, of the D type's width.
    """
    from mmabits.emulator.codecs import as_codes, from_codes

    row = instruction if isinstance(instruction, Instruction) else parse(instruction)
    left, right = from_codes(a, row.a_type)[:, None, :], from_codes(b, row.b_type)[:, :, None]
    scales: tuple[Array | None, Array | None] = (None, None)
    if row.scale_type is not None and scale_a is not None and scale_b is not None:
        scales = (from_codes(scale_a, row.scale_type)[:, None, :], from_codes(scale_b, row.scale_type)[:, :, None])
    call = _CheckedCall(row, arch, Evidence.INFERRED, left, right, from_codes(c, row.c_type)[:, None, None], *scales, 0)
    return as_codes(call.run(), row.d_type).reshape(-1)


def operand_type(array: Array, name: str) -> str:
    """The format (`"e4m3"`, `"tf32"`, ...) that an operand of this dtype is read as.

    Raises:
        OperandTypeError: no operand has that dtype.
    """
    return _type_name(array, _OPERANDS, name)


def scale_type(array: Array) -> str:
    """The format of block scales of this dtype: `"ue8m0"` or `"ue4m3"`.

    Raises:
        OperandTypeError: no block scales have that dtype.
    """
    return _type_name(array, _SCALES, "scale_a")


@lru_cache(maxsize=4096)
def resolved(
    instruction: str | Instruction, arch: str, a_type: str, b_type: str, c_type: str | None, scale_type: str | None
) -> Instruction:
    """`isa.resolve`, remembered."""
    return resolve(instruction, arch=arch, a_type=a_type, b_type=b_type, c_type=c_type, scale_type=scale_type)


def _numpy(operand: Any, name: str, *, packed_along: int = -1) -> Array | None:
    return None if operand is None else to_numpy(operand, name, packed_along=packed_along)[0]


def _check_device(device: str) -> None:
    if not (isinstance(device, str) and device in ("cpu", "cuda")):
        raise OperandError(f"device must be 'cpu' or 'cuda', got {device!r}")


def _engine(device: str) -> Callable[..., None]:
    """What computes: Numba is loaded at the first product, not at import, and its CUDA part only where asked for."""
    if device == "cuda":
        from mmabits.emulator.engine import cuda

        return cuda.run
    from mmabits.emulator.engine import products

    return products.run


def _promotion(promote_every: int | None) -> int:
    if promote_every is None:
        return 0
    try:
        elements = operator.index(promote_every)
    except TypeError:
        elements = 0
    if isinstance(promote_every, bool) or elements < 1:
        raise OperandError(f"promote_every must be a positive number of elements of K, got {promote_every!r}")
    return elements


def _type_name(array: Array, known: dict[np.dtype[Any], str], name: str) -> str:
    found = known.get(array.dtype)
    if found is None:
        allowed = ", ".join(sorted(str(dtype) for dtype in known))
        swapped = "" if array.dtype.isnative else f"; its bytes are swapped: pass {name}.astype({array.dtype.newbyteorder('=').str!r})"
        raise OperandTypeError(f"{name} has dtype {array.dtype}; allowed are {allowed}{swapped}")
    return found


def _find(
    instruction: str | Instruction,
    arch: str,
    a_type: str,
    b_type: str,
    c_type: str | None,
    scale_type: str | None,
    arrays: dict[str, Array | None],
) -> Instruction:
    """The instruction that is meant; where a whole spelling and an operand's dtype part, the dtype is at fault."""
    if not isinstance(instruction, (str, Instruction)):
        raise UnknownInstruction(f"an instruction is given as text or as an Instruction, not as {type(instruction).__name__}")
    if not isinstance(arch, str):
        raise UnknownArchitecture(f"an architecture is given as text such as 'sm_90a', not as {type(arch).__name__}")
    try:
        return resolved(instruction, arch, a_type, b_type, c_type, scale_type)
    except UnknownInstruction:
        try:
            row = instruction if isinstance(instruction, Instruction) else parse(instruction)
        except MmabitsError:
            row = None
        if row is not None:
            _check_dtypes(row, {"a": a_type, "b": b_type, "c": c_type, "scale_a": scale_type}, arrays)
        raise


def _check_dtypes(row: Instruction, given: dict[str, str | None], arrays: dict[str, Array | None]) -> None:
    wanted = {"a": row.a_type, "b": row.b_type, "c": row.c_type, "scale_a": row.scale_type}
    for name, found in given.items():
        form, array = wanted[name], arrays[name]
        if found is None or array is None:
            continue
        if form is None:
            raise OperandError(f"{row} takes no block scales, got scale_a and scale_b of dtype {array.dtype}")
        if form.name != found:
            what = "scale_a and scale_b" if name == "scale_a" else name
            raise OperandTypeError(f"{what} of {row} must be {form.numpy_name} ({form.name}), got {array.dtype}")


def _sizes(a: Array, b: Array) -> tuple[int, int, int, tuple[int, ...]]:
    """M, N, K and the leading dimensions of a product.

    Raises:
        OperandError: matrices that cannot be multiplied.
    """
    for array, name in ((a, "a"), (b, "b")):
        if array.ndim < 2:
            raise OperandError(f"{name} must have at least two dimensions, got shape {array.shape}")
    (m, k), (k_b, n) = a.shape[-2:], b.shape[-2:]
    if k != k_b:
        raise OperandError(f"a has K = {k} (shape {a.shape}) and b has K = {k_b} (shape {b.shape}); they must agree")
    batch: tuple[int, ...] = ()
    try:
        if a.ndim > 2 or b.ndim > 2:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise OperandError(f"the leading dimensions of a {a.shape} and b {b.shape} do not broadcast") from None
    return m, n, k, batch


class _CheckedTypes(NamedTuple):
    """What the types of a call come to."""

    instruction: Instruction
    lowering: Lowering
    c_type: str | None
    promote: int
    """Elements of K after which the architecture itself promotes: what-if architectures may."""


_RECIPES: dict[tuple[Any, ...], _CheckedTypes] = {}
"""Recipes by what was asked and the dtypes that arrived."""


class _CheckedCall:
    """One checked call."""

    def __init__(
        self,
        instruction: str | Instruction,
        arch: str,
        require: str | Evidence,
        a: Array,
        b: Array | None,
        c: Array | None,
        scale_a: Array | None,
        scale_b: Array | None,
        promote: int,
        *,
        chains: bool = True,
    ) -> None:
        if b is None:
            raise OperandTypeError("b must be an array, got None")
        self.a, self.b, self.c, self.scale_a, self.scale_b, self.promote = a, b, c, scale_a, scale_b, promote
        dtypes = tuple(None if array is None else array.dtype for array in (a, b, c, scale_a, scale_b))
        key = (instruction, arch, require, promote > 0, dtypes)
        try:
            recipe = _RECIPES.get(key)
        except TypeError:  # something that cannot be a key is nothing that can be asked for
            recipe = None
        if recipe is None:
            recipe = self._recipe(instruction, arch, require)
            _RECIPES[key] = recipe
        self.instruction, self.lowering, c_type, own_promotion = recipe
        self._check_shapes()
        if chains and not promote:
            self.promote = own_promotion
        if self.promote:
            self._check_promotion(c_type)

    def _recipe(self, instruction: str | Instruction, arch: str, require: str | Evidence) -> _CheckedTypes:
        types = _type_name(self.a, _OPERANDS, "a"), _type_name(self.b, _OPERANDS, "b")
        c_type = None if self.c is None else _type_name(self.c, _ACCUMULATORS, "c")
        scale_type = self._scale_type()
        arrays = {"a": self.a, "b": self.b, "c": self.c, "scale_a": self.scale_a}
        row = _find(instruction, arch, *types, None if self.promote else c_type, scale_type, arrays)
        lowering, level = lower(row, arch), evidence_level(require)
        if lowering.evidence < level:
            raise InsufficientEvidence(f"{row} on {lowering.arch} rests on {lowering.evidence} evidence, but {level} is required")
        return _CheckedTypes(row, lowering, c_type, lowering.own_promotion)

    def _scale_type(self) -> str | None:
        given = [(scale, name) for scale, name in ((self.scale_a, "scale_a"), (self.scale_b, "scale_b")) if scale is not None]
        if not given:
            return None
        if len(given) == 1:
            missing = "scale_b" if given[0][1] == "scale_a" else "scale_a"
            raise OperandError(f"{given[0][1]} is given without {missing}; a block-scaled instruction takes both")
        kinds = {_type_name(scale, _SCALES, name) for scale, name in given}
        if len(kinds) > 1:
            raise OperandTypeError(f"scale_a has dtype {given[0][0].dtype} and scale_b {given[1][0].dtype}; both must be the same")
        return kinds.pop()

    def _check_shapes(self) -> None:
        self.m, self.n, self.k, self.batch = _sizes(self.a, self.b)
        if self.c is not None:
            self._check_shape(self.c, "c", (self.m, self.n))
        block = self.instruction.block
        if block:
            blocks = -(-self.k // block)
            if self.scale_a is None or self.scale_b is None:
                shapes = f"scale_a (..., {self.m}, {blocks}) and scale_b (..., {blocks}, {self.n})"
                raise OperandError(f"{self.instruction} is block-scaled: it needs {shapes}, got none")
            self._check_shape(self.scale_a, "scale_a", (self.m, blocks))
            self._check_shape(self.scale_b, "scale_b", (blocks, self.n))

    def _check_shape(self, array: Array, name: str, matrix: tuple[int, int]) -> None:
        fits = array.ndim >= 2 and array.shape[-2:] == matrix
        if fits and array.ndim > 2:
            try:
                fits = np.broadcast_shapes(array.shape[:-2], self.batch) == self.batch
            except ValueError:
                fits = False
        if not fits:
            wanted = ", ".join(str(size) for size in (*self.batch, *matrix))
            of = f" (one scale for {self.instruction.block} elements of K)" if name.startswith("scale") else ""
            raise OperandError(f"{name} of {self.instruction} must have shape ({wanted}){of}, got {array.shape}")

    def _check_promotion(self, c_type: str | None) -> None:
        if not self.lowering.datapath.is_aligned:
            raise OperandError(f"promote_every is for f32 and f16 accumulators, {self.instruction} has {self.instruction.d_type.name}")
        if self.promote % self.instruction.k:
            raise OperandError(f"promote_every must be a multiple of the instruction's K = {self.instruction.k}, got {self.promote}")
        if c_type not in (None, "f32"):
            raise OperandTypeError(f"with promote_every c must be float32, got {self.c.dtype if self.c is not None else None}")

    def check_tile(self) -> None:
        """Shapes must be the instruction's own."""
        row = self.instruction
        for name, got, wanted in (("A", self.a.shape[-2:], (row.m, row.k)), ("B", self.b.shape[-2:], (row.k, row.n))):
            if tuple(got) != wanted:
                raise OperandError(f"operand {name} of {row} must have shape {wanted}, got {tuple(got)}; mmabits.gemm takes any shape")

    def check_scale_codes(self, nan_scales: str) -> None:
        """Refuse NaN among the block scales, if so asked."""
        if nan_scales == "propagate":
            return
        if nan_scales != "refuse":
            raise OperandError(f"nan_scales must be 'propagate' or 'refuse', got {nan_scales!r}")
        for array, name in ((self.scale_a, "scale_a"), (self.scale_b, "scale_b")):
            if array is None:
                continue
            nans = np.argwhere(np.isnan(array.astype(np.float32)))
            if len(nans):
                first = tuple(nans[0].tolist())
                raise OperandError(
                    f"{name} has the NaN code {array.view(np.uint8)[first]:#04x} at index {first}, and nan_scales is 'refuse'"
                )

    def run(self, device: str = "cpu") -> Array:
        """The product."""
        run = _engine(device)
        if self.is_nothing:
            return self.accumulators()
        row = self.instruction
        batch, lead = self._layout()
        if batch * (lead * (self.n + self.k) + self.k * self.n) > _MANY:
            require(self._size(), f"the product of {self.a.shape} and {self.b.shape}")
        one = batch == 1
        a = self._flat(_operand(self.a, row.a_type), (batch, lead, self.k))
        b = self._flat(_operand(self.b, row.b_type), (batch, self.k, self.n), shared=one)
        scale_a = scale_b = None
        if self.scale_a is not None and self.scale_b is not None:
            blocks = self.scale_b.shape[-2]
            scale_a = self._flat(self.scale_a.view(np.uint8), (batch, lead, blocks))
            scale_b = self._flat(self.scale_b.view(np.uint8), (batch, blocks, self.n), shared=one)
        d = np.zeros((batch, lead, self.n), self._result)
        if self.c is not None and row.scale_d:
            np.copyto(d.reshape(*self.batch, self.m, self.n), self.c, casting="safe")
        run(self.lowering, a, b, d, scale_a, scale_b, self.promote)
        return d.reshape(*self.batch, self.m, self.n)

    @property
    def _result(self) -> np.dtype[Any]:
        """The dtype of D."""
        return np.dtype(np.float32) if self.promote else _RESULTS[self.instruction.d_type.name]

    @property
    def is_nothing(self) -> bool:
        """Whether no instruction runs: D has no elements, or K has none and D is C."""
        return 0 in (*self.batch, self.m, self.n, self.k)

    def accumulators(self) -> Array:
        """What the product starts from, in the type of D: C as it is, or zeros."""
        d = np.zeros((*self.batch, self.m, self.n), self._result)
        if self.c is not None and self.instruction.scale_d:
            np.copyto(d, self.c, casting="same_kind")
        return d

    def _size(self) -> int:
        """Bytes of what `run` makes: D, and copies of operands that the engine cannot take as they are."""
        items, lead = self._layout()
        d = math.prod(self.batch) * self.m * self.n
        total: int = d * self._result.itemsize
        for array, form, elements in (
            (self.a, self.instruction.a_type, items * lead * self.k), (self.b, self.instruction.b_type, items * self.k * self.n),
        ):  # fmt: skip
            widened = form.is_integer and array.dtype not in (np.int8, np.uint8)
            if widened or array.size != elements or not array.flags.c_contiguous:
                total += elements * array.itemsize
        return total

    def _layout(self) -> tuple[int, int]:
        """(items of a batch, rows of each) for the engine: with one B for all, the batch is just more rows."""
        items = math.prod(self.batch)
        shared = self.b.ndim == 2 and (self.scale_b is None or self.scale_b.ndim == 2)
        return (1, items * self.m) if shared else (items, self.m)

    def _flat(self, array: Array, shape: tuple[int, int, int], *, shared: bool = False) -> Array:
        """An operand as the engine takes it: row by row, its elements aligned."""
        if not shared and array.shape[:-2] != self.batch:
            array = np.broadcast_to(array, (*self.batch, *array.shape[-2:]))
        if not array.flags.aligned:
            array = np.require(array, requirements=("C", "A"))
        return row_by_row(array).reshape(shape)


class _ScheduledCall:
    """One checked product by a schedule."""

    def __init__(
        self,
        schedule: Schedule,
        instruction: str | Instruction | None,
        arch: str,
        require: str | Evidence,
        a: Array,
        b: Array | None,
        device: str,
    ) -> None:
        from mmabits.emulator.schedules import Chains, Schedule

        if not isinstance(schedule, Schedule):
            raise OperandError(f"schedule must be a mmabits.Schedule, got {type(schedule).__name__}")
        if b is None:
            raise OperandTypeError("b must be an array, got None")
        self.schedule, self.arch, self.device, self.level = schedule, arch, device, evidence_level(require)
        self.a, self.b = a, b
        self.types = _type_name(a, _OPERANDS, "a"), _type_name(b, _OPERANDS, "b")
        self.row: Instruction | None = None
        if isinstance(schedule.sums, Chains):
            given = instruction or schedule.sums.instruction or library_instruction(arch, *self.types)
            whole = _CheckedCall(given, arch, self.level, a, b, None, None, None, 0, chains=False)
            self.row = whole.instruction
            if self.row.d_type.name != "f32" or self.row.block:
                raise OperandError(f"schedules are for f32 accumulators without block scales, got {self.row}")
            if (schedule.sums.group or self.row.k) > self.row.k:
                raise OperandError(f"the schedule gives an instruction {schedule.sums.group} of K, and {self.row} takes {self.row.k}")
        else:
            self._check_cores(instruction)
        self.m, self.n, self.k, self.batch = _sizes(a, b)
        self._check_planned()
        if schedule.evidence < self.level:
            raise InsufficientEvidence(f"the schedule rests on {schedule.evidence} evidence, but {self.level} is required")

    def _check_cores(self, instruction: str | Instruction | None) -> None:
        architecture(self.arch)
        if instruction is not None:
            raise OperandError(f"the schedule is one of CUDA cores ({self.schedule.sums.words}): it takes no instruction")
        if self.device != "cpu":
            raise OperandError("schedules of CUDA cores are computed on the CPU: leave device out")
        if not set(self.types) <= {"f16", "bf16"}:
            raise OperandTypeError(f"schedules of CUDA cores are for float16 and bfloat16, got {self.a.dtype} and {self.b.dtype}")

    def _check_planned(self) -> None:
        if self.schedule.planned is not None:
            self.schedule.planned.check((self.m, self.n, self.k), self.types, architecture(self.arch).target)

    def run(self, factor: np.float32 | None, bugs: bool, *, warns: bool = True) -> Array:
        """The product, scaled and rounded."""
        from mmabits.emulator.schedules import LibraryBug
        from mmabits.emulator.schedules.run import rounded, sums

        if not isinstance(bugs, bool):
            raise OperandError(f"bugs must be True or False, got {bugs!r}")
        if self.schedule.lost_tail and warns and not bugs:
            warnings.warn(f"{self.schedule.bug}; bugs=True leaves it out too", LibraryBug, stacklevel=3)
        if 0 in (*self.batch, self.m, self.n, self.k):
            total = np.zeros((*self.batch, self.m, self.n), np.float32)
        else:
            total = sums(self.schedule, self.a, self.b, self._part, bugs=bugs)
        if factor is not None:
            with np.errstate(all="ignore"):
                total = canonical(total * factor)
        return rounded(total, self.schedule.output)

    def _part(self, a: Array, b: Array) -> Array:
        """The sum of one slice of K, in f32."""
        from mmabits.emulator.schedules import Chains, cores
        from mmabits.emulator.schedules.run import packed

        sums = self.schedule.sums
        if self.row is not None and isinstance(sums, Chains):
            left, right = packed(sums, a, b, self.row.k)
            promote = _promotion(sums.promote_every)
            return _CheckedCall(self.row, self.arch, self.level, left, right, None, None, None, promote, chains=False).run(self.device)
        require(4 * (math.prod(self.batch) * self.m * self.n + a.size + b.size), f"the product of {a.shape} and {b.shape}")
        left, right = (np.broadcast_to(array, (*self.batch, *array.shape[-2:])) for array in (a, b))
        return cores.product(sums, left, right)  # type: ignore[arg-type]


def _factor(scale_a: Any, scale_b: Any) -> np.float32 | None:
    """What the f32 sum is multiplied by: the product of two f32 scales, rounded to f32."""
    if scale_a is None and scale_b is None:
        return None
    with np.errstate(all="ignore"):
        return np.float32(_one_scale(scale_a, "scale_a") * _one_scale(scale_b, "scale_b"))


def _one_scale(scale: Any, name: str) -> np.float32:
    if isinstance(scale, (np.float32, float)):
        return np.float32(scale)
    array = None if scale is None else to_numpy(scale, name)[0]
    if array is None or array.size != 1 or array.dtype != np.float32:
        found = "None" if array is None else f"shape {array.shape} of {array.dtype}"
        raise OperandError(f"with a schedule {name} is one float32 number, got {found}")
    return np.float32(array.reshape(())[()])


def row_by_row(array: Array) -> Array:
    """An array as it lies in memory row by row; a copy where it does not.

    NumPy walks along the rows of the copy, or of what is copied, whichever is shorter: a large matrix that lies column by column is
    fetched from memory many times. Strips of a few columns stay in the cache: 3 to 10 times as fast.
    """
    if array.flags.c_contiguous:
        return array
    if array.ndim < 2 or array.shape[-2] * array.shape[-1] < _LARGE or abs(array.strides[-2]) >= abs(array.strides[-1]):
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    for first in range(0, array.shape[-1], _STRIP):
        copy[..., first : first + _STRIP] = array[..., first : first + _STRIP]
    return copy


def _operand(array: Array, form: FormatSpec) -> Array:
    """An operand as the engine takes it: codes; integers as bytes, which those of 4 bits are widened to."""
    if form.is_integer and array.dtype not in (np.int8, np.uint8):
        array = array.astype(np.int8 if form.sign_bits else np.uint8, copy=False)
    if form.name == "f64":
        return array
    return row_by_row(array).view(_CODES[array.dtype.itemsize])
