"""The generated tables of docs/identify-rows.md: what every row of isa/, and twenty datapaths in no row, took.

python -m mmabits.conformance.identify.tables docs/identify-rows.md     rewrites them (minutes)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmabits.conformance.identify.devices import emulator_device
from mmabits.conformance.identify.identification import Identification, identify
from mmabits.conformance.probes.tables import rewritten
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa import Instruction, instructions, lower, parse
from mmabits.research.exact import Operands, evaluate
from mmabits.research.model import Model, model_of
from mmabits.research.probes.random_models import random_models


def _asked(device: Any, shape: Model | Instruction) -> Identification:
    return identify(
        device, a_type=shape.a_type.name, b_type=shape.b_type.name, d_type=shape.d_type.name, k=shape.k,
        scale_type=shape.scale_type.name if shape.scale_type else None, block_size=shape.block,
    )  # fmt: skip


def model_device(model: Model) -> Any:
    """The exact model as a device for `identify`."""

    def device(a: Any, b: Any, c: Any, scale_a: Any = None, scale_b: Any = None) -> Any:
        scales: tuple[Any, ...] = ()
        if model.scale_type is not None:
            scales = (as_codes(scale_a, model.scale_type), as_codes(scale_b, model.scale_type))
        x = Operands(as_codes(a, model.a_type), as_codes(b, model.b_type), as_codes(c, model.d_type), *scales)
        return from_codes(evaluate(model, x), model.d_type)

    return device


def examples() -> dict[Model, tuple[Instruction, str, dict[str, None]]]:
    """For each different arithmetic of the rows' examples: an instruction, its architecture, and the rows."""
    found: dict[Model, tuple[Instruction, str, dict[str, None]]] = {}
    seen: set[str] = set()
    split = [
        ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_90a"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.e4m3.e5m2.f16", "sm_90a"),
    ]
    pairs = [(line.example, line.arch, line.datapath) for line in instructions()]
    for row, arch, name in [*pairs, *((parse(text), arch, None) for text, arch in split)]:
        if row is None or (name is None and str(row) not in dict(split)) or name in seen:
            continue
        model = model_of(lower(row, arch))
        seen |= {name} if name else set()
        found.setdefault(model, (row, arch, {}))[2][model.name] = None
    return found


def row_lines() -> Iterator[str]:
    """A line for each different arithmetic, asked through the emulator."""
    yield "| instruction | found | known datapaths that agree | dot products | undecided |"
    yield "|---|---|---|---:|---|"
    for row, arch, names in examples().values():
        found = _asked(emulator_device(str(row), arch), row)
        right = found.survived and set(names) <= set(found.names)
        open_ = ", ".join(dict.fromkeys(each.what for each in found.undecided)) or "nothing"
        yield f"| `{row}` | {'yes' if right else 'NO'}: {_numbers(found.model)} | {', '.join(found.names)} | {found.probes} | {open_} |"


def _numbers(model: Model) -> str:
    if not model.arithmetic.is_aligned:
        return model.arithmetic.value
    group = f", groups of {model.group}" if model.group > 1 else ""
    bits = f"{model.rounding.value} to {model.result_fraction_bits} bits"
    return f"F {model.fraction_bits}, steps of {model.step}{group}, e_zero {model.zero_exponent}, {bits}"


def random_lines() -> Iterator[str]:
    """A line for each datapath in no row, asked through the exact model."""
    yield "| datapath | found | fields that differ without a difference in results | dot products |"
    yield "|---|---|---|---:|"
    for model in random_models():
        found = _asked(model_device(model), model)
        fields = ("fraction_bits", "zero_exponent", "result_fraction_bits", "rounding", "alignment", "c_added", "group", "flushes_operands",
                  "flushes_results", "normalised_products", "nan")  # fmt: skip
        same = [frozenset(step) for step in found.model.steps] == [frozenset(step) for step in model.steps]
        other = ", ".join(name for name in fields if getattr(found.model, name) != getattr(model, name)) or "none"
        text = (f"{model.a_type.name} to {model.d_type.name}, K {model.k} in steps of {model.step}, F {model.fraction_bits}, "
                f"{model.rounding.value} to {model.result_fraction_bits} bits, alignment {model.alignment.value}, "
                f"e_zero {model.zero_exponent}"
                + (", c added" if model.c_added else "") + (f", groups of {model.group}" if model.group > 1 else ""))  # fmt: skip
        yield f"| {text} | {'yes' if found.survived and same else 'NO'} | {other} | {found.probes} |"


def main(path: Path) -> None:
    """Rewrite the page."""
    text = path.read_text(encoding="utf-8")
    path.write_text(rewritten(text, {"rows": row_lines, "random": random_lines}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
