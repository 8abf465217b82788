"""`record --functions` with the emulator in the GPU's place, and what `identify --function` finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmabits.commands.main import main
from mmabits.conformance.identify.functions import TableRows, _fit_row, identify_function, known_rows, unit
from mmabits.conformance.record.functions import (
    PLANS,
    CudaFunctions,
    EmulatedFunctions,
    FunctionPlan,
    plans_for,
    record_functions,
    source_of,
)
from mmabits.conformance.record.nvrtc import compile_source
from mmabits.conformance.recorded.functions import BLOCK, FunctionTable, block_sum, read_function, write_function
from mmabits.isa import OperandError, VectorFileError
from mmabits.isa.errors import DeviceUnavailable

NAMES = {"rcp": "rcp.approx.ftz.f32", "ex2": "ex2.approx.ftz.f32", "rsqrt": "rsqrt.approx.ftz.f32", "lg2": "lg2.approx.ftz.f32"}


def plan_of(opcode: str) -> FunctionPlan:
    return next(plan for plan in PLANS if plan.opcode == opcode)


def recorded(folder: Path, base: str, rows: TableRows | None, model: Any = None, blocks: int = 3) -> FunctionTable:
    """What is recorded of a function whose table is another one, or that is another function."""
    planted = model if model is not None else lambda opcode, codes: unit(base, codes, rows)
    plan = plan_of(NAMES[base])
    (outcome,) = record_functions(EmulatedFunctions("sm_90a", planted), [plan], folder, blocks=blocks)
    assert outcome.state == "recorded", outcome.error
    return read_function(outcome.path)


@pytest.mark.slow
@pytest.mark.parametrize("base", NAMES)
def test_the_emulator_is_found_again(base: str, tmp_path: Path) -> None:
    (outcome,) = record_functions(EmulatedFunctions("sm_90a"), [plan_of(NAMES[base])], tmp_path, blocks=3)
    found = identify_function(read_function(outcome.path))
    assert found.fits and found.rows is not None and not found.changed, str(found)
    assert f"{len(known_rows(base).k)} rows of 2^{known_rows(base).form.low} operands" in str(found) and "every sum is the same" in str(
        found
    )


def changed(base: str, **more: dict[int, int]) -> TableRows:
    rows = known_rows(base)
    lists = {name: list(getattr(rows, name)) for name in "kbc"}
    for name, steps in more.items():
        for place, step in steps.items():
            lists[name][place] += step
    return replace(rows, **{name: tuple(values) for name, values in lists.items()})


@pytest.mark.parametrize(("row", "more"), [(5, {"b": {5: 3}}), (64, {"c": {64: -1}}), (0, {"k": {0: 1 << 13}})])
def test_the_numbers_of_one_planted_row_are_found(row: int, more: dict[str, dict[int, int]]) -> None:
    rows = changed("rcp", **more)
    results = rows(np.arange(row << 16, row + 1 << 16, dtype=np.int64))
    found = _fit_row(rows.form, results, results, None)
    assert found is not None and found[1:] == (rows.b[row], rows.c[row]) and abs(found[0] - rows.k[row]) < 1 << 15
    results[77] += 1
    assert _fit_row(rows.form, results, results, None) is None


@pytest.mark.slow
@pytest.mark.parametrize(("base", "rows", "places"), [
    ("rcp", changed("rcp", b={5: 3}), (5,)),
    ("rcp", changed("rcp", k={0: 1 << 13, 127: -(1 << 13)}, c={64: -1}), (0, 64, 127)),
    ("ex2", changed("ex2", b={1: -2, 62: 2}), (1, 62)),
    ("rsqrt", changed("rsqrt", c={100: 2}), (100,)),
    ("lg2", changed("lg2", b={40: 5}), (40,)),
])  # fmt: skip
def test_planted_rows_are_found(base: str, rows: TableRows, places: tuple[int, ...], tmp_path: Path) -> None:
    found = identify_function(recorded(tmp_path, base, rows))
    assert found.fits and found.changed == places, str(found)


@pytest.mark.slow
def test_a_planted_constant_is_found_in_every_row(tmp_path: Path) -> None:
    rows = changed("rcp", k=dict.fromkeys(range(128), 0x2000))
    found = identify_function(recorded(tmp_path, "rcp", rows))
    assert found.fits and len(found.changed) == 128
    assert found.rows is not None and abs(found.rows.k[9] - rows.k[9]) < 1 << 13


def coarse() -> TableRows:
    """A table of reciprocals with rows twice as wide, fitted in real numbers and rounded."""
    known = known_rows("rcp")
    form = replace(known.form, low=17, s=0)
    r = np.arange(0, 1 << 17, 64)
    rows = []
    for place in range(64):
        x = 1 + (place * 2**17 + r) / 2**23
        basis = np.stack([np.ones(len(r)), r, r.astype(float) ** 2 / 2**18 / 2], axis=1)
        rows.append([round(each) for each in np.linalg.lstsq(basis, 2**24 / x * 2**15, rcond=None)[0]])
    k, b, c = zip(*rows, strict=True)
    return TableRows(form=form, k=k, b=b, c=c)


@pytest.mark.slow
def test_another_width_of_rows_is_found(tmp_path: Path) -> None:
    found = identify_function(recorded(tmp_path, "rcp", coarse()))
    assert "64 rows of 2^17 operands" in found.structure and found.fits, str(found)


def nearest_reciprocal(_opcode: str, codes: Any) -> Any:
    with np.errstate(all="ignore"):
        return (1 / codes.view(np.float32)).view(np.uint32)


def test_what_is_no_interpolation_is_said_to_be_none(tmp_path: Path) -> None:
    """Correctly rounded reciprocals: no row of integers gives them all."""
    found = identify_function(recorded(tmp_path, "rcp", None, nearest_reciprocal))
    assert not found.fits and found.rows is None
    assert "no interpolation of the known form" in str(found) and "the model does not fit" in str(found)
    assert found.differ == 374_723 + 733_799  # as docs/functions.md counts them


@pytest.mark.slow
def test_another_reduction_is_noticed(tmp_path: Path) -> None:
    """2^x of negative numbers by the negative fraction, not its complement: the rows fit, and the rest does not."""

    def negative(_opcode: str, codes: Any) -> Any:
        rows = known_rows("ex2")
        positive = unit("ex2", codes, rows)
        one_up = np.where(codes >> 31 == 1, codes - 1, codes).astype(np.uint32)
        return np.where(codes >> 31 == 1, unit("ex2", one_up, rows), positive).astype(np.uint32)

    found = identify_function(recorded(tmp_path, "ex2", None, negative))
    assert found.rows is not None and not found.changed and found.differ > 1_000_000 and not found.fits, str(found)


def test_all_functions_of_16_bits(tmp_path: Path) -> None:
    plans = [plan for plan in plans_for("sm_90a") if plan.bits == 16]
    for outcome in record_functions(EmulatedFunctions("sm_90a"), plans, tmp_path):
        found = identify_function(read_function(outcome.path))
        assert found.fits and found.compared == 1 << 16 and "a plain table of 65,536 results" in str(found)
    assert len(plans_for("sm_80")) == len(plans_for("sm_90a")) - 2


def test_a_run_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    device, plans = EmulatedFunctions("sm_90a"), [plan for plan in PLANS if plan.bits == 16]
    assert [each.state for each in record_functions(device, plans[:2], tmp_path)] == ["recorded"] * 2
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [each.state for each in record_functions(device, plans, tmp_path)] == ["kept"] * 2 + ["recorded"] * 2
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    (other, *_) = record_functions(EmulatedFunctions("sm_100a"), plans[:1], tmp_path)
    assert other.state == "failed" and "it is never replaced" in other.error


def small(**more: Any) -> FunctionTable:
    results = np.array([5, 3, 0xFFFF_FFFF, 0], np.uint32)
    fields: dict[str, Any] = {
        "opcode": "rcp.approx.f32", "arch": "sm_90a", "gpu": "none", "kind": "emulator", "ranges": ((7, 4),), "results": (results,),
        "blocks": np.array([3], np.int64), "sums": np.array([1 << 63], np.uint64),
    }  # fmt: skip
    return FunctionTable(**{**fields, **more})


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    write_function(path, small())
    found = read_function(path)
    assert (found.results[0] == small().results[0]).all() and found.sums == small().sums and found.ranges == ((7, 4),)
    assert found.at(8) == 3 and found.at(11) is None and not found.is_whole
    with pytest.raises(VectorFileError, match="is there already"):
        write_function(path, small())
    for name, wrong, message in (
        ("range", {"ranges": ((7, 5),)}, "holds 16 bytes of results; its manifest wants 20"),
        ("blocks", {"blocks": np.array([1 << 12], np.int64)}, "numbered from 0 to 4095"),
    ):
        write_function(tmp_path / name, small(**wrong))
        with pytest.raises(VectorFileError, match=message):
            read_function(tmp_path / name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(VectorFileError, match="sha256"):
        read_function(tmp_path / "damaged")


def test_sums_are_those_of_plain_integers() -> None:
    results, first, total = np.array([1, 2, 0xFFFF_FFFF], np.uint32), 0xFFFF_FF00, 0
    for place, result in enumerate(results):
        mixed = (int(result) + (first + place) * 0x9E3779B97F4A7C15) % 2**64
        mixed ^= mixed >> 29
        mixed = mixed * 0xBF58476D1CE4E5B9 % 2**64
        total += mixed ^ mixed >> 32
    assert block_sum(first, results) == total % 2**64


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_kernels_compile(arch: str) -> None:
    for plan in plans_for(arch)[:: 4 if arch == "sm_90a" else 8]:
        try:
            program = compile_source(source_of(plan), arch)
        except DeviceUnavailable as error:
            pytest.skip(str(error))
        assert plan.opcode.encode() in program.ptx


class Gpu:
    """As much of a CudaDevice as a recording of functions calls; its launches run the emulator."""

    def __init__(self, opcode: str) -> None:
        self.opcode, self.memory, self.freed = opcode, dict[int, np.ndarray[Any, Any]](), 0
        self.info = EmulatedFunctions("sm_90a").info

    def free(self, pointer: int) -> None:
        del self.memory[pointer]
        self.freed += 1

    def call(self, name: str, *arguments: Any) -> Any:
        import ctypes

        if name == "cuMemAlloc":
            self.memory[4096 + len(self.memory) + self.freed] = np.zeros(arguments[0], np.uint8)
            return max(self.memory)
        if name in ("cuMemcpyHtoD", "cuMemcpyDtoH"):
            to, source, size = arguments
            if name == "cuMemcpyHtoD":
                self.memory[to][:] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(source))
            else:
                ctypes.memmove(to, self.memory[source].ctypes.data, size)
        elif name == "cuLaunchKernel":
            assert arguments[0] == "function" and arguments[1:9] == (4096, 1, 1, 256, 1, 1, 0, 0)
            addresses = (ctypes.c_uint64 * 5).from_address(arguments[9])
            results, sums, numbers, first, count = (ctypes.c_uint64.from_address(each).value for each in addresses)
            device, plan = EmulatedFunctions("sm_90a"), plan_of(self.opcode)
            if results:
                self.memory[results].view(np.uint32)[:] = device.results(plan, first, count)
            else:
                self.memory[sums].view(np.uint64)[:] = device.sums(plan, [int(each) for each in self.memory[numbers].view(np.uint64)])
        return {"cuModuleGetFunction": "function"}.get(name)


def test_arguments_of_a_gpu() -> None:
    gpu, plan = Gpu("rcp.approx.ftz.f32"), plan_of("rcp.approx.ftz.f32")
    device: Any = CudaFunctions(gpu)  # type: ignore[arg-type]
    try:
        found = device.results(plan, 0x3F80_0000, 100)
    except DeviceUnavailable as error:
        pytest.skip(str(error))
    assert (found == EmulatedFunctions("sm_90a").results(plan, 0x3F80_0000, 100)).all()
    assert (device.sums(plan, [7, 9]) == EmulatedFunctions("sm_90a").sums(plan, [7, 9])).all()
    assert gpu.freed == 3 and not gpu.memory


def status(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code or 0


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["record", "--functions", "--emulated", "--arch", "h100", "--blocks", "2", "--only", "tanh", "--out", str(tmp_path)]
    assert status(arguments) == 0
    assert "3 recorded" in capsys.readouterr().out
    file = str(tmp_path / "tanh.approx.f16.safetensors")
    assert status(["identify", "--function", file]) == 0
    assert "the model fits" in capsys.readouterr().out
    assert status(["identify", "--function", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperandError, match=r"no function 'rcp\.approx\.ftz\.f16' is recorded"):
        plans_for("sm_90a", ["rcp.approx.ftz.f16"])
    with pytest.raises(OperandError, match="is no function that is known"):
        identify_function(small(opcode="other"))
    assert BLOCK == 1 << 20
