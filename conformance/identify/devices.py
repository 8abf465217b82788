"""What can be asked: a callable, or a recording, which answers only what it holds."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmabits.conformance.probes.score import operands_of
from mmabits.conformance.recorded.dots import DotVectors
from mmabits.conformance.recorded.reading import read_dots
from mmabits.emulator.api import dot_rows
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.interop import as_array
from mmabits.isa import FormatSpec, format_spec, parse
from mmabits.isa.errors import OperandError, OperandTypeError
from mmabits.research.exact import Operands, evaluate, join
from mmabits.research.model import Model
from mmabits.research.probes.generators import row_bytes

Codes = npt.NDArray[Any]

_D_TYPES = ("f32", "f16", "f64", "s32")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Types and sizes of the dot products that a device computes."""

    a_type: FormatSpec
    b_type: FormatSpec
    d_type: FormatSpec
    k: int
    scale_type: FormatSpec | None = None
    block: int | None = None

    def fields(self) -> dict[str, Any]:
        """As fields of a Model."""
        return {"a_type": self.a_type, "b_type": self.b_type, "d_type": self.d_type, "k": self.k,
                "scale_type": self.scale_type, "block": self.block}  # fmt: skip


def shape_of(a_type: str, b_type: str, d_type: str, k: int, scale_type: str | None, block_size: int | None) -> Shape:
    """A checked shape.

    Raises:
        UnknownFormat: no such format.
        OperandError: types that do not go together, a K or block size that no dot product has.
    """
    a, b, d = format_spec(a_type), format_spec(b_type), format_spec(d_type)
    if d.name not in _D_TYPES or d.is_integer != a.is_integer or a.is_integer != b.is_integer:
        raise OperandError(f"d_type {d.name} does not go with {a.name} and {b.name}; allowed: f32, f16 or f64, and s32 for integers")
    for form, name in ((a, "a_type"), (b, "b_type")):
        if form.scale_only or form.name == "s32" or (form.name == "f32"):
            raise OperandError(f"{name} is {form.name}, which is no operand format")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 1024:
        raise OperandError(f"k must be 1 to 1024, got {k!r}")
    if (scale_type is None) != (block_size is None):
        raise OperandError(f"scale_type and block_size go together; got {scale_type!r} and {block_size!r}")
    scale = None if scale_type is None else format_spec(scale_type, scale=True)
    if scale is not None and not scale.scale_only:
        raise OperandError(f"scale_type is {scale.name}; allowed: ue8m0, ue4m3")
    if block_size is not None and (block_size < 1 or k % block_size):
        raise OperandError(f"block_size must divide k = {k}, got {block_size}")
    return Shape(a_type=a, b_type=b, d_type=d, k=k, scale_type=scale, block=block_size)


class Oracle:
    """Asks a device, each dot product once, and keeps every answer."""

    def __init__(self, shape: Shape, ask: Callable[[Operands], Codes] | None, known: tuple[Operands, Codes] | None = None) -> None:
        self.shape = shape
        self._ask = ask
        self._answers: dict[bytes, int] = {}
        self._asked: list[Operands] = []
        if known is not None:
            self._remember(*known)

    @property
    def is_recording(self) -> bool:
        """Whether nothing new can be asked."""
        return self._ask is None

    @property
    def count(self) -> int:
        """Dot products asked."""
        return len(self._answers)

    def _remember(self, operands: Operands, codes: Codes) -> None:
        new = [i for i in range(len(codes)) if row_bytes(operands, i) not in self._answers]
        for i in new:
            self._answers[row_bytes(operands, i)] = int(codes[i])
        if new:
            self._asked.append(operands.take(np.array(new)))

    def ask(self, operands: Operands) -> Codes:
        """Result codes; only what was never asked goes to the device."""
        keys = [row_bytes(operands, i) for i in range(len(operands.c))]
        new = list({key: i for i, key in reversed(list(enumerate(keys))) if key not in self._answers}.values())
        if new and self._ask is not None:
            part = operands.take(np.array(sorted(new)))
            self._remember(part, self._ask(part))
        return np.array([self._answers[key] for key in keys], dtype=f"u{self.shape.d_type.container_bits // 8}")

    def evidence(self) -> tuple[Operands, Codes]:
        """All that was asked, and the answers."""
        operands = join(self._asked)
        return operands, self.ask(operands)

    def contradictions(self, model: Model) -> int:
        """How many answers a model does not give."""
        operands, codes = self.evidence()
        return int((evaluate(model, operands) != codes).sum())


Device = Callable[..., Any] | DotVectors | str | os.PathLike[str]


def _by_keyword(device: Callable[..., Any]) -> bool:
    try:
        names = inspect.signature(device).parameters
    except (TypeError, ValueError):
        return False
    return "scale_a" in names and "scale_b" in names


def _checked(codes: Any, rows: int, shape: Shape) -> Codes:
    given = as_array(codes, "what the device returns")
    given = given.reshape(-1) if given.ndim else given
    if given.shape != (rows,):
        raise OperandError(f"the device must return {rows} results, one for each dot product, got shape {given.shape}")
    try:
        return np.array(as_codes(given, shape.d_type))
    except OperandTypeError as error:
        raise OperandTypeError(f"the device must return {shape.d_type.numpy_name}: {error}") from error


def _asker(device: Callable[..., Any], shape: Shape) -> Callable[[Operands], Codes]:
    named = _by_keyword(device)

    def ask(x: Operands) -> Codes:
        arrays = [from_codes(codes, form) for codes, form in zip(x[:3], (shape.a_type, shape.b_type, shape.d_type), strict=True)]
        if shape.scale_type is None or x.scale_a is None or x.scale_b is None:
            return _checked(device(*arrays), len(x.c), shape)
        scales = [from_codes(codes, shape.scale_type) for codes in (x.scale_a, x.scale_b)]
        result = device(*arrays, scale_a=scales[0], scale_b=scales[1]) if named else device(*arrays, *scales)
        return _checked(result, len(x.c), shape)

    return ask


def oracle_of(device: Device, shape: Shape) -> Oracle:
    """What answers for a device.

    Raises:
        VectorFileError: a recording that cannot be read.
        OperandError: a recording of other types than the shape's.
        OperandTypeError: neither a callable nor a recording.
    """
    if callable(device):
        return Oracle(shape, _asker(device, shape))
    if isinstance(device, (str, os.PathLike)):
        device = read_dots(Path(device))
    if not isinstance(device, DotVectors):
        raise OperandTypeError(f"a device is a callable, DotVectors, or the path of a vector file, got {type(device).__name__}")
    k = parse(device.instruction).k
    found = Shape(a_type=device.a_type, b_type=device.b_type, d_type=device.d_type, k=k, scale_type=device.scale_type, block=device.block)
    if found != shape:
        raise OperandError(f"the recording holds {_text(found)}, but {_text(shape)} was asked for")
    return Oracle(shape, None, (operands_of(device, k), device.d))


def _text(shape: Shape) -> str:
    scales = f" with {shape.scale_type.name} scales for {shape.block}" if shape.scale_type else ""
    return f"{shape.a_type.name} x {shape.b_type.name} to {shape.d_type.name}, k = {shape.k}{scales}"


def emulator_device(instruction: str, arch: str) -> Any:
    """The emulator's instruction as a device for `identify`.

    Args:
        instruction: PTX in full.
        arch: architecture.

    Returns:
        A callable f(a, b, c, scale_a=None, scale_b=None) over arrays of the formats' NumPy types.
    """
    row = parse(instruction)

    def device(a: Any, b: Any, c: Any, scale_a: Any = None, scale_b: Any = None) -> Any:
        scales = {}
        if row.scale_type is not None:
            scales = {"scale_a": as_codes(scale_a, row.scale_type), "scale_b": as_codes(scale_b, row.scale_type)}
        operands = as_codes(a, row.a_type), as_codes(b, row.b_type), as_codes(c, row.c_type)
        return from_codes(dot_rows(row, arch, *operands, **scales), row.d_type)

    return device
