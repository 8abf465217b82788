"""`identify` finds every row of isa/ from the emulator alone, and datapaths that are in no row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.conformance.identify import Identification, identify
from mmabits.conformance.identify.devices import emulator_device
from mmabits.conformance.probes.pack import FOLDER
from mmabits.conformance.recorded.reading import recordings_folder
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.isa import (
    DATAPATHS,
    Instruction,
    OperandError,
    OperandTypeError,
    UnknownFormat,
    instructions,
    lower,
    parse,
)
from mmabits.research.exact import Operands, evaluate
from mmabits.research.model import Model, model_of
from mmabits.research.probes.generators import all_operands, probes_for
from mmabits.research.probes.random_models import random_models


def device_of(model: Model) -> Callable[..., Any]:
    """The exact model as a device."""

    def device(a: Any, b: Any, c: Any, scale_a: Any = None, scale_b: Any = None) -> Any:
        scales: tuple[Any, ...] = ()
        if model.scale_type is not None:
            scales = (as_codes(scale_a, model.scale_type), as_codes(scale_b, model.scale_type))
        x = Operands(as_codes(a, model.a_type), as_codes(b, model.b_type), as_codes(c, model.d_type), *scales)
        return from_codes(evaluate(model, x), model.d_type)

    return device


def asked(device: Any, shape: Model | Instruction) -> Identification:
    return identify(
        device, a_type=shape.a_type.name, b_type=shape.b_type.name, d_type=shape.d_type.name, k=shape.k,
        scale_type=shape.scale_type.name if shape.scale_type else None, block_size=shape.block,
    )  # fmt: skip


def examples() -> dict[str, tuple[Instruction, str]]:
    """An instruction for each row of isa/."""
    found: dict[str, tuple[Instruction, str]] = {}
    for line in instructions():
        if line.example is not None and line.datapath is not None:
            found.setdefault(line.datapath, (line.example, line.arch))
    return found


EXAMPLES = examples()
SPLIT = ("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "sm_90a")


def test_every_row_has_an_example() -> None:
    assert set(EXAMPLES) == set(DATAPATHS)


def check_row(name: str, row: Instruction, arch: str) -> Identification:
    found = asked(emulator_device(str(row), arch), row)
    assert found.survived and name in found.names, str(found)
    assert found.probes < 4000
    true = model_of(lower(row, arch))
    pool = all_operands(probes_for(true, seed=77, random=30))
    assert np.array_equal(evaluate(found.model, pool), evaluate(true, pool))
    return found


def test_a_row_of_integers_is_found() -> None:
    check_row("sm_75.imma.int.s32", *EXAMPLES["sm_75.imma.int.s32"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATAPATHS))
def test_every_row_is_found(name: str) -> None:
    check_row(name, *EXAMPLES[name])


def test_two_machine_instructions_and_an_addition_are_found() -> None:
    """fp8 mma.sync on sm_90a: low pairs first, c added afterwards, e4m3 subnormals normal in f16."""
    row, arch = parse(SPLIT[0]), SPLIT[1]
    found = check_row("sm_90a.hmma.f16.f32", row, arch)
    assert "k_order=KOrder.LOW_PAIRS_FIRST, separate_add=True" in found.row
    assert [set(step) for step in found.model.steps] == [{k for k in range(32) if k % 4 < 2}, {k for k in range(32) if k % 4 > 1}]


RANDOM = random_models()


def check_random(true: Model) -> Identification:
    """Found is what gives the same results, on operands made for either; only what no such operands show may differ."""
    found = asked(device_of(true), true)
    assert found.survived, str(found)
    assert found.matches == ()
    for model in (true, found.model):
        pool = all_operands(probes_for(model, seed=99, random=40))
        assert np.array_equal(evaluate(found.model, pool), evaluate(true, pool)), str(found)
    assert [frozenset(step) for step in found.model.steps] == [frozenset(step) for step in true.steps]
    return found


def test_a_random_datapath_is_found() -> None:
    check_random(RANDOM[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RANDOM)))
def test_random_datapaths_are_found(number: int) -> None:
    check_random(RANDOM[number])


def test_a_device_that_is_no_datapath_is_said_to_be_none() -> None:
    """A sum in float64, rounded at random: no model fits, and the result says so."""
    rng = np.random.default_rng(3)

    def noise(a: Any, b: Any, c: Any) -> Any:
        with np.errstate(all="ignore"):
            total = (a.astype(np.float64) * b.astype(np.float64)).sum(axis=1) + c
            return (total * (1 + 1e-3 * rng.random(len(c)))).astype(np.float32)

    found = identify(noise, a_type="f16", b_type="f16", d_type="f32", k=4)
    assert not found.survived and found.contradictions > 0 and "contradict the row" in str(found)


def test_a_recording_is_a_device() -> None:
    found = identify(FOLDER / "sm_90a-wgmma-e4m3-e4m3-f32-k32.safetensors", a_type="e4m3", b_type="e4m3", d_type="f32", k=32)
    assert found.survived and "sm_90a.wgmma.f8.f32" in found.names and found.model.fraction_bits == 13
    assert found.row == '_fused("device.e4m3.f32", 13, 32, -133, _recorded(...), result_fraction_bits=13),'
    assert found.datapath is not None and found.datapath.fraction_bits == 13
    assert found.what_if.startswith('mmabits.what_if("device", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 13, "step": 32, ')


def test_the_what_if_call_can_be_pasted_and_computes_the_same() -> None:
    """A datapath that no architecture has, asked, pasted, and asked on operands beside the first."""
    mmabits.what_if("secret", base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 17, "result_fraction_bits": 19}})
    ptx = "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3"
    found = identify(emulator_device(ptx, "secret"), a_type="e4m3", b_type="e4m3", d_type="f32", k=32)
    assert found.survived
    made = eval(found.what_if.splitlines()[0].replace('"device"', '"pasted"'), {"mmabits": mmabits})
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn) for shape in ((64, 96), (96, 64)))
    pasted, secret, real = (mmabits.gemm(a, b, instruction=ptx, arch=arch) for arch in (made.name, "secret", "sm_90a"))
    assert np.array_equal(pasted, secret)
    assert (secret != real).any()


def test_a_recording_of_a_gpu_names_what_it_leaves_open() -> None:
    folder = recordings_folder()
    if folder is None:
        pytest.skip("no recordings here")
    found = identify(folder / "a100-mma-bf16-f32.safetensors", a_type="bf16", b_type="bf16", d_type="f32", k=16)
    assert found.survived and "sm_80.hmma.bf16.f32" in found.names
    assert "NaN" in {each.what for each in found.undecided}


def test_scales_go_by_keyword_or_by_place() -> None:
    row = parse("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n8k64.f32.e2m1.e2m1.ue4m3")
    model = model_of(lower(row, "sm_100a"))
    by_name = device_of(model)
    calls: list[int] = []

    def by_place(*arrays: Any) -> Any:
        calls.append(len(arrays))
        return by_name(*arrays)

    from mmabits.conformance.identify.devices import oracle_of, shape_of

    shape = shape_of("e2m1", "e2m1", "f32", 64, "ue4m3", 16)
    pool = all_operands(probes_for(model, random=5)).take(slice(0, 20))
    for device in (by_name, by_place):
        assert np.array_equal(oracle_of(device, shape).ask(pool), evaluate(model, pool))
    assert calls == [5]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a_type": "e9m9"}, UnknownFormat, "unknown format 'e9m9'"),
        ({"d_type": "s32"}, OperandError, "d_type s32 does not go with f16"),
        ({"k": 0}, OperandError, "k must be 1 to 1024, got 0"),
        ({"block_size": 16}, OperandError, "scale_type and block_size go together"),
        ({"a_type": "ue8m0"}, OperandError, "no operand format"),
        ({"scale_type": "ue8m0", "block_size": 3}, OperandError, "block_size must divide k = 4, got 3"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        identify(lambda a, b, c: c, **{"a_type": "f16", "b_type": "f16", "d_type": "f32", "k": 4, **change})


def test_a_device_that_answers_in_another_form_is_refused() -> None:
    with pytest.raises(OperandTypeError, match="the device must return float32"):
        identify(lambda a, b, c: c.astype(np.float64), a_type="f16", b_type="f16", d_type="f32", k=4)
    with pytest.raises(OperandError, match="must return 23 results"):
        identify(lambda a, b, c: c[:1], a_type="f16", b_type="f16", d_type="f32", k=4)
    with pytest.raises(OperandTypeError, match="a device is a callable"):
        identify(3, a_type="f16", b_type="f16", d_type="f32", k=4)  # type: ignore[arg-type]


def test_fields_of_a_model_are_checked() -> None:
    with pytest.raises(OperandError, match="does not divide into groups"):
        dataclasses.replace(RANDOM[3], group=5)
