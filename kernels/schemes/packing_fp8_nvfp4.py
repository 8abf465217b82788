"""FP8 and NVFP4 weights as checkpoints of compressed-tensors, ModelOpt and DeepSeek hold them: read, written, and made of one another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mmabits.emulator.layouts import pack_fp4, unpack_fp4
from mmabits.isa import OperandError, OperandTypeError, format_spec
from mmabits.kernels.quantize import Quantized
from mmabits.kernels.schemes.blocks import ColumnBlocks
from mmabits.kernels.schemes.checks import Array, check_finite, check_multiple, check_positive, check_shape, checked, row_named
from mmabits.kernels.schemes.fp8 import Fp8Matrix
from mmabits.kernels.schemes.packing_fp8_blocks import BLOCK_FLAVOURS, BlockFp8Tensors, CacheScales, cache_scales_of
from mmabits.kernels.schemes.w8a8 import Floats
from mmabits.reports.written import written_whole

BLOCK: Final = 16
_E4M3: Final = np.dtype(ml_dtypes.float8_e4m3fn)
_BF16: Final = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class CheckpointFlavour:
    """How a library calls and scales an NVFP4 weight's parts."""

    name: str
    codes: str
    """The name of the packed codes, beside `weight_scale`."""
    whole: str
    """The name of the scale of the tensor."""
    of_input: str
    """The name of the scale of the layer's input, if it is static."""
    is_divisor: bool
    """Whether values are divided by the tensor's scale; else multiplied."""
    config: dict[str, Any]
    """What tells loaders, in config.json or hf_quant_config.json."""
    source: str


FLAVOURS: Final[dict[str, CheckpointFlavour]] = {
    row.name: row
    for row in (
        CheckpointFlavour(
            name="compressed-tensors", codes="weight_packed", whole="weight_global_scale", of_input="input_global_scale", is_divisor=True,
            config={"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
            source="compressed-tensors, NVFP4PackedCompressor",
        ),
        CheckpointFlavour(
            name="modelopt", codes="weight", whole="weight_scale_2", of_input="input_scale", is_divisor=False,
            config={"quant_method": "modelopt", "quant_algo": "NVFP4"}, source="NVIDIA ModelOpt, NVFP4QTensor and its export",
        ),
    )
}  # fmt: skip
"""By library."""


def checkpoint_flavour(name: str) -> CheckpointFlavour:
    """A library's row.

    Raises:
        OperandError: no such row.
    """
    return row_named(FLAVOURS, name, "flavour of checkpoints")


@dataclass(frozen=True, kw_only=True, eq=False)
class Nvfp4Tensors:
    """The tensors of one NVFP4 layer of a checkpoint, as they are stored.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite, a scale of the tensor that is not positive.
    """

    packed: npt.NDArray[np.uint8]
    """(N, K / 2), the lower K in the low nibble."""
    scales: npt.NDArray[Any]
    """(N, K / 16) float8_e4m3fn."""
    whole: Floats
    """() or (1,) float32: what values are divided by (compressed-tensors) or multiplied by (ModelOpt)."""
    flavour: str
    """A name of `FLAVOURS`."""
    of_input: Floats | None = None
    """() or (1,) float32, of the layer's input, in the same sense; None: there is none."""

    def __post_init__(self) -> None:
        """Check."""
        checkpoint_flavour(self.flavour)
        n, half = checked(self.packed, "packed", (np.uint8,), 2).shape
        check_multiple(2 * half, BLOCK, "K", "the block size")
        check_shape(checked(self.scales, "scales", (_E4M3,), 2), "scales", (n, 2 * half // BLOCK))
        check_finite(self.scales.astype(np.float32), "scales")
        for array, name in ((self.whole, "whole"), (self.of_input, "of_input")):
            if array is not None:
                if checked(array, name, (np.float32,)).size != 1:
                    raise OperandError(f"{name} must be one number, got shape {array.shape}")
                check_positive(array.reshape(-1), name)

    @property
    def tensor_scale(self) -> np.float32:
        """What values are multiplied by: of compressed-tensors the reciprocal of what is stored, rounded once."""
        stored = self.whole.reshape(-1)[0]
        return np.float32(np.float32(1) / stored if FLAVOURS[self.flavour].is_divisor else stored)

    def dequantize(self) -> Floats:
        """(N, K) as the library does it, in float32: the block's scale by the tensor's, rounded, times the element, rounded."""
        stored, blocks = self.whole.reshape(-1)[0], self.scales.astype(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            steps = blocks / stored if FLAVOURS[self.flavour].is_divisor else blocks * stored
            return np.asarray(unpack_fp4(self.packed).astype(np.float32) * np.repeat(steps, BLOCK, axis=1))

    def operand(self) -> ColumnBlocks:
        """The right operand of `nvfp4_matmul`, (K, N), with `tensor_scale`."""
        return ColumnBlocks.of(
            Quantized(
                scheme="nvfp4", element=format_spec("e2m1"), elements=np.ascontiguousarray(unpack_fp4(self.packed).T),
                scale=format_spec("ue4m3"), scales=np.ascontiguousarray(self.scales.T), block=BLOCK, axis=0, tensor_scale=self.tensor_scale,
            )
        )  # fmt: skip

    @classmethod
    def of(cls, weights: ColumnBlocks, *, flavour: str) -> Nvfp4Tensors:
        """From a right operand (K, N).

        Args:
            weights: of `nvfp4.quantize_columns`.
            flavour: a name of `FLAVOURS`.

        Raises:
            OperandTypeError, OperandError: another operand or flavour.
        """
        if not isinstance(weights, ColumnBlocks) or (weights.element.name, weights.block) != ("e2m1", BLOCK):
            raise OperandTypeError("weights must be ColumnBlocks of NVFP4; nvfp4.quantize_columns makes them")
        stored = np.float32(weights.tensor_scale)
        return cls(
            packed=pack_fp4(np.ascontiguousarray(weights.elements.T)), scales=np.ascontiguousarray(weights.block_scales.T),
            whole=np.asarray([np.float32(1) / stored if checkpoint_flavour(flavour).is_divisor else stored], np.float32), flavour=flavour,
        )  # fmt: skip

    def converted(self, flavour: str) -> Nvfp4Tensors:
        """As the other library stores it. Codes and block scales are the same bits; the tensor's scale is a reciprocal, rounded once.

        Raises:
            OperandError: another flavour; a scale whose reciprocal is no float32.
        """
        if checkpoint_flavour(flavour).is_divisor == FLAVOURS[self.flavour].is_divisor:
            return Nvfp4Tensors(packed=self.packed, scales=self.scales, whole=self.whole, of_input=self.of_input, flavour=flavour)
        with np.errstate(over="ignore", under="ignore"):
            one = np.float32(1)
            inverted = [None if each is None else np.asarray(one / each, np.float32) for each in (self.whole, self.of_input)]
        whole = self.whole if inverted[0] is None else inverted[0]
        return Nvfp4Tensors(packed=self.packed, scales=self.scales, whole=whole, of_input=inverted[1], flavour=flavour)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fp8Tensors:
    """The tensors of one FP8 layer of a checkpoint: both libraries call them alike, and multiply by the scales.

    Raises:
        OperandTypeError, OperandError: dtypes and shapes, scales that are not finite.
    """

    weight: npt.NDArray[Any]
    """(N, K) float8_e4m3fn."""
    weight_scale: npt.NDArray[Any]
    """(), (1,), (1, 1) for the tensor or (N, 1) for output channels; float32 or bfloat16."""
    input_scale: Floats | None = None
    """() or (1,) float32 of the layer's input; None: it is quantized dynamically."""

    def __post_init__(self) -> None:
        """Check."""
        n, _ = checked(self.weight, "weight", (_E4M3,), 2).shape
        scale = checked(self.weight_scale, "weight_scale", (np.float32, _BF16))
        if scale.shape not in ((), (1,), (1, 1), (n, 1)):
            raise OperandError(f"weight_scale must have shape (), (1,), (1, 1) or ({n}, 1), got {scale.shape}")
        check_finite(scale.astype(np.float32).reshape(-1), "weight_scale")
        if self.input_scale is not None:
            if checked(self.input_scale, "input_scale", (np.float32,)).size != 1:
                raise OperandError(f"input_scale must be one number, got shape {self.input_scale.shape}")
            check_positive(self.input_scale.reshape(-1), "input_scale")

    def operand(self) -> Fp8Matrix:
        """The right operand of `fp8_matmul`, (K, N), scales in float32."""
        scales = self.weight_scale.astype(np.float32).reshape(1, -1)
        return Fp8Matrix(elements=np.ascontiguousarray(self.weight.T), scales=scales)

    @classmethod
    def of(cls, weights: Fp8Matrix) -> Fp8Tensors:
        """From a right operand (K, N) of e4m3, scales for columns or one for all.

        Raises:
            OperandTypeError, OperandError: another operand.
        """
        if not isinstance(weights, Fp8Matrix) or weights.elements.dtype != _E4M3 or weights.scales.shape[0] != 1:
            raise OperandTypeError("weights must be an Fp8Matrix of e4m3 with scales for columns or one for all")
        scales = weights.scales.T if weights.scales.size > 1 else weights.scales.reshape(1)
        return cls(weight=np.ascontiguousarray(weights.elements.T), weight_scale=np.ascontiguousarray(scales))


Layer = Nvfp4Tensors | Fp8Tensors | BlockFp8Tensors
_LAYERS: Final[tuple[type, ...]] = (Nvfp4Tensors, Fp8Tensors, BlockFp8Tensors)


def _names(layer: Layer) -> dict[str, Array]:
    if isinstance(layer, Fp8Tensors):
        found: dict[str, Array | None] = {
            "weight": layer.weight, "weight_scale": layer.weight_scale, "input_scale": layer.input_scale
        }  # fmt: skip
    elif isinstance(layer, BlockFp8Tensors):
        found = {"weight": layer.weight, BLOCK_FLAVOURS[layer.flavour].scales: layer.scales}
    else:
        row = FLAVOURS[layer.flavour]
        found = {row.codes: layer.packed, "weight_scale": layer.scales, row.whole: layer.whole, row.of_input: layer.of_input}
    return {name: array for name, array in found.items() if array is not None}


def write_fp_checkpoint(path: str | Path, layers: Mapping[str, Layer], *, caches: Mapping[str, CacheScales] | None = None) -> None:
    """A safetensors file with the libraries' names: `<layer>.weight_packed`, `<layer>.weight_scale`, ...

    What tells loaders the format stands in config.json (`FLAVOURS[...].config`, `BLOCK_FLAVOURS[...].config`).

    Args:
        path: of the file.
        layers: by name.
        caches: scales of KV caches, by the names of their attention modules.

    Raises:
        OperandTypeError: layers of another kind.
        OperandError: the file cannot be written; nothing half-written is left.
    """
    for what, given, kinds in (("layer", layers, _LAYERS), ("cache", caches or {}, (CacheScales,))):
        if not isinstance(given, Mapping):
            raise OperandTypeError(f"{what}s must be a mapping of names to {what}s, got {type(given).__name__}")
        for name, each in given.items():
            if not isinstance(each, kinds):
                raise OperandTypeError(f"{what} {name!r} must be {' or '.join(kind.__name__ for kind in kinds)}, got {type(each).__name__}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    end = 0
    names = {np.dtype(kind): name for name, kind in _DTYPES.items()}
    parted = [(name, _names(layer)) for name, layer in layers.items()] + [(name, each.tensors()) for name, each in (caches or {}).items()]
    for name, held in parted:
        for part, array in held.items():
            parts.append(np.ascontiguousarray(array).tobytes())
            start, end = end, end + len(parts[-1])
            header[f"{name}.{part}"] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    try:
        with written_whole(Path(path)) as partial:
            partial.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    except OSError as error:
        raise OperandError(f"{path} cannot be written ({error.strerror or error})") from error


_DTYPES: Final = {
    "U8": np.dtype(np.uint8),
    "F8_E4M3": _E4M3,
    "F32": np.dtype(np.float32),
    "BF16": _BF16,
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


def read_fp_checkpoint(path: str | Path) -> dict[str, Layer]:
    """The NVFP4 and FP8 layers of a safetensors file by name: told apart by the names, types and shapes of their tensors.

    Tensors of other layers are left alone, also where they have a `weight_scale`: INT8, INT4, MXFP4, MXFP8. So are scales of caches, which
    `read_cache_scales` reads.

    Raises:
        OperandError: no such file; a layer that lacks a tensor, or whose tensors do not fit each other.
        OperandTypeError: tensors of other types.
    """
    tensors, kinds = _tensors(path)
    layers: dict[str, Layer] = {}
    for key in sorted(kinds):
        name, _, part = key.rpartition(".")
        if part not in _SCALES or _is_of_another_kind(name, part, kinds):
            continue
        try:
            if key not in tensors:
                raise OperandTypeError(f"{part} must be float32 or bfloat16, got {kinds[key]}")
            layers[name] = _layer(name, part, tensors)
        except (OperandError, OperandTypeError) as error:
            raise type(error)(f"{path}: {name}: {error}") from None
    return layers


_SCALES: Final = {row.scales: row.name for row in BLOCK_FLAVOURS.values()}


def read_cache_scales(path: str | Path) -> dict[str, CacheScales]:
    """The static scales of the KV caches of a safetensors file, by the names of the attention modules.

    Scales of queries and of probabilities are left alone.

    Raises:
        OperandError: no such file; a scale of keys without that of values; zero points.
        OperandTypeError: tensors of other types.
    """
    tensors, _ = _tensors(path)
    try:
        return cache_scales_of(tensors)
    except (OperandError, OperandTypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def _is_of_another_kind(name: str, scales: str, kinds: Mapping[str, str]) -> bool:
    """Whether the types of a layer with scales are those of another kind than FP8 or NVFP4; a layer without codes is not."""
    scale = kinds[f"{name}.{scales}"]
    if any(f"{name}.{row.whole}" in kinds for row in FLAVOURS.values()):
        return scale != "F8_E4M3"  # ModelOpt's INT4 with scales of groups and of the tensor
    weight = kinds.get(f"{name}.weight")
    if weight is None:
        return f"{name}.weight_packed" in kinds  # MXFP4, INT4
    return weight != "F8_E4M3" or scale == "U8"  # INT8, INT4; MXFP8


def _layer(name: str, scales: str, tensors: Mapping[str, Array]) -> Layer:
    def part(what: str) -> Array:
        if f"{name}.{what}" not in tensors:
            raise OperandError(f"there is a {scales} without {what}")
        return tensors[f"{name}.{what}"]

    for row in FLAVOURS.values():
        if f"{name}.{row.whole}" in tensors:
            return Nvfp4Tensors(
                packed=part(row.codes), scales=part("weight_scale"), whole=part(row.whole), flavour=row.name,
                of_input=tensors.get(f"{name}.{row.of_input}"),
            )  # fmt: skip
    weight, scale, input_scale = part("weight"), tensors[f"{name}.{scales}"], tensors.get(f"{name}.input_scale")
    if scales != "weight_scale" or (scale.ndim == 2 and scale.shape not in ((1, 1), (len(weight), 1))):
        if input_scale is not None:
            raise OperandError("layers with a scale for each block have activations scaled dynamically, got an input_scale")
        return BlockFp8Tensors(weight=weight, scales=scale, flavour=_SCALES[scales])
    return Fp8Tensors(weight=weight, weight_scale=scale, input_scale=input_scale)


def _tensors(path: str | Path) -> tuple[dict[str, Array], dict[str, str]]:
    """What layers and caches consist of, and the types of all tensors."""
    from safetensors import SafetensorError, deserialize

    read: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = deserialize
    try:
        held = read(Path(path).read_bytes())
    except OSError as error:
        raise OperandError(f"{path} cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise OperandError(f"{path} is no safetensors file: {error}") from error
    known = {
        name: np.frombuffer(bytes(each["data"]), _DTYPES[each["dtype"]]).reshape(each["shape"])
        for name, each in held
        if each["dtype"] in _DTYPES
    }
    return known, {name: each["dtype"] for name, each in held}
