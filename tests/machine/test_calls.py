"""`mmabits.function`: arrays in, arrays out, every row with one result."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import operands
import pytest

import mmabits
from mmabits.emulator.machine.calls import FLOATS
from mmabits.isa import (
    InsufficientEvidence,
    OperandError,
    OperandTypeError,
    UnknownArchitecture,
    UnknownInstruction,
    UnsupportedInstruction,
)
from mmabits.isa.opcodes import Opcode, opcode_table, width

ROWS = [row for row in opcode_table().values() if len(row.results) == 1]
FIRST = list({row.base: row for row in ROWS}.values())
"""One of each base opcode."""


def drawn(kind: str, count: int, rng: np.random.Generator) -> Any:
    """Random codes of a type, as an array."""
    if kind == "pred":
        return rng.integers(0, 2, count).astype(np.bool_)
    held = max(8, width(kind))
    return (rng.integers(0, 1 << 63, count, dtype=np.uint64) * 2 + 1 >> np.uint64(64 - width(kind))).astype(f"u{held // 8}")


def disagreements(row: Opcode, count: int) -> list[str]:
    rng = np.random.default_rng([operands.SEED, *row.name.encode()])
    assert row.reference is not None
    given = [0xE8 if place in row.constants else drawn(kind, count, rng) for place, kind in enumerate(row.sources)]
    name, _, _ = row.name.partition("#")
    found = mmabits.function(name, *given, arch="sm_120a")
    codes = found if row.results[0] == "pred" else found.view(f"u{found.itemsize}")
    numbers = [[each] * count if isinstance(each, int) else each.tolist() for each in given]
    wanted = [row.reference(*(int(each) for each in lane)) for lane in zip(*numbers, strict=True)]
    got = codes.tolist()
    return [f"{row.name}, lane {lane}: {got[lane]:#x}, not {wanted[lane]:#x}" for lane in range(count) if got[lane] != wanted[lane]]


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.name)
def test_one_row_of_each_opcode(row: Opcode) -> None:
    assert disagreements(row, 70) == []


@pytest.mark.slow
def test_every_row_with_one_result() -> None:
    assert [each for row in ROWS for each in disagreements(row, 70)] == []


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_any_number_of_elements(count: int) -> None:
    x = np.linspace(-3, 3, count, dtype=np.float32)
    found = mmabits.function("ex2.approx.ftz.f32", x, arch="sm_90a")
    assert found.dtype == np.float32 and found.shape == (count,)
    assert np.allclose(found, np.exp2(x), rtol=2**-22)


def test_many_elements_on_threads() -> None:
    x = np.arange(1 << 20, dtype=np.uint32) * 4096 + 7
    found = mmabits.function("rcp.approx.f32", x, arch="sm_90a")
    assert all(
        np.array_equal(found[at : at + 999], mmabits.function("rcp.approx.f32", x[at : at + 999], arch="h100")) for at in (0, 7, 1 << 19)
    )


def test_shapes_broadcast() -> None:
    a, b = np.arange(1, 13, dtype=np.float32).reshape(3, 4), np.array([[2], [4], [8]], np.float32)
    assert np.array_equal(mmabits.function("div.full.f32", a, b, arch="a100"), a / b)
    assert np.array_equal(mmabits.function("div.full.f32", a.T, 2.0, arch="a100"), a.T / 2)
    assert mmabits.function("div.full.f32", np.empty((3, 0), np.float32), 1.0, arch="a100").shape == (3, 0)
    assert mmabits.function("ex2.approx.ftz.f32", 3, arch="a100") == 8
    assert mmabits.function("fma.rn.f32", a, 2.0, np.float32(1), arch="a100").tolist() == (2 * a + 1).tolist()


def test_dtypes() -> None:
    assert mmabits.function("tanh.approx.bf16", np.array([0.5], ml_dtypes.bfloat16), arch="h100").dtype == ml_dtypes.bfloat16
    assert mmabits.function("tanh.approx.bf16", np.array([0x3F00], np.int16), arch="h100").dtype == np.int16
    assert mmabits.function("cvt.rn.f16.f32", np.array([0.5], np.float32), arch="h100").dtype == np.float16
    assert mmabits.function("cvt.rn.f16.f32", np.array([0x3F000000], np.uint32), arch="h100").tolist() == [0x3800]
    assert mmabits.function("cvt.rn.f32.s32", np.array([-3], np.int32), arch="h100").tolist() == [-3.0]
    assert mmabits.function("add.f16x2", np.array([0x3C003C00], np.int32), 0x3C003C00, arch="h100").tolist() == [0x40004000]
    assert mmabits.function("testp.finite.f32", np.array([1, np.inf], np.float32), arch="h100").tolist() == [True, False]
    assert mmabits.function("lop3.b32", np.array([12], np.uint32), 10, 0, 0xC0, arch="h100").tolist() == [8]
    assert mmabits.function("max.f32", 1.0, 2.0, np.array([3], np.float32), arch="sm_100a").tolist() == [3.0]
    assert mmabits.function("cvt.rn.satfinite.e4m3x2.f32", np.array([1], np.float32), 2.0, arch="h100").tolist() == [0x3840]
    assert set(FLOATS) >= {"f32", "f16", "bf16", "f64"}


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([[0.5, -1.0]])
    found = mmabits.function("ex2.approx.ftz.f32", x.requires_grad_(), arch="h100")
    assert isinstance(found, torch.Tensor) and found.shape == (1, 2)
    half = mmabits.function("tanh.approx.bf16", x.detach().bfloat16(), arch="h100")
    assert half.dtype == torch.bfloat16 and half.tolist() == [[0.462890625, -0.76171875]]
    codes = mmabits.function("rcp.approx.ftz.f32", x.detach().view(torch.int32), arch="h100")
    assert codes.dtype == torch.int32 and codes.view(torch.float32).tolist() == [[2.0, -1.0]]


def test_jax_arrays() -> None:
    jax = pytest.importorskip("jax")
    found = mmabits.function("div.full.f32", jax.numpy.ones(3), 4.0, arch="h100")
    assert isinstance(found, jax.Array) and found.tolist() == [0.25] * 3


ONE = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mmabits.function("ex2.aprox.f32", ONE, arch="h100"), UnknownInstruction, "did you mean ex2.approx.f32"),
        (lambda: mmabits.function("nothing", ONE, arch="h100"), UnknownInstruction, "unknown opcode 'nothing'"),
        (lambda: mmabits.function(7, ONE, arch="h100"), UnknownInstruction, "given as text"),  # type: ignore[arg-type]
        (lambda: mmabits.function("ex2.approx.f32", ONE, arch="sm_1"), UnknownArchitecture, "sm_1"),
        (lambda: mmabits.function("tanh.approx.bf16", 1.0, arch="a100"), UnsupportedInstruction, "needs sm_90 or newer"),
        (lambda: mmabits.function("setp.lt.f32", 1.0, 1.0, arch="h100"), UnsupportedInstruction, "has 2 results"),
        (lambda: mmabits.function("div.full.f32", ONE, arch="h100"), OperandError, r"takes 2 operands \(f32, f32\), got 1"),
        (lambda: mmabits.function("div.full.f32", ONE, ONE[:2], arch="h100"), OperandError, r"do not broadcast: \(3,\), \(2,\)"),
        (lambda: mmabits.function("ex2.approx.f32", ONE.astype(">f4"), arch="h100"), OperandTypeError, "must be float32 or its codes"),
        (lambda: mmabits.function("ex2.approx.f32", ONE.astype(np.float64), arch="h100"), OperandTypeError, "got float64"),
        (lambda: mmabits.function("add.s32", 1.5, 1, arch="h100"), OperandTypeError, "must be an integer"),
        (lambda: mmabits.function("add.s32", 1 << 32, 1, arch="h100"), OperandError, "must fit in 32 bits"),
        (lambda: mmabits.function("lop3.b32", 1, 1, 1, ONE, arch="h100"), OperandTypeError, "constant of the instruction"),
        (lambda: mmabits.function("lop3.b32", 1, 1, 1, 999, arch="h100"), OperandError, "must be in 0"),
        (lambda: mmabits.function("selp.f32", 1.0, 1.0, ONE, arch="h100"), OperandTypeError, "must be bool"),
        (lambda: mmabits.function("ex2.approx.f32", ONE, arch="h100", require="published"), InsufficientEvidence, "inferred evidence"),
        (lambda: mmabits.explain_function("ex2.approx.f32", ONE, arch="h100"), OperandError, "one element at a time"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---------------------------------------------------------------------------------------------------------------- explanations


def test_an_explanation_says_how_a_result_comes_about() -> None:
    found = mmabits.explain_function("ex2.approx.ftz.f32", 0.3, arch="h100")
    text = str(found)
    for line in (
        "interval +0.296875 to 0.3125", "row 19, r = 26214 of 2\\^17: A = 41220967, B = 27902, C = 609", "= 338414412563, square 1309",
        ">> 15 = 10327588", r"1\.23114443 \(0x3f9d9624\)", r"exact +1\.2311444235178", r"\+0\.0397 ulp, correctly rounded", "2 ulp",
    ):  # fmt: skip
        assert re.search(line, text), line
    assert found.result == found.nearest == 0x3F9D9624


def test_the_error_of_an_explanation() -> None:
    found = mmabits.explain_function("rsqrt.approx.ftz.f32", np.uint32(0x3F820399), arch="a100")
    assert found.error == pytest.approx(-1.5145, abs=1e-4)
    assert "2 from the correctly rounded" in str(found)
    assert len(mmabits.explain_function("tanh.approx.f32", 0.3, arch="a100").interpolations) == 2
    assert mmabits.explain_function("rcp.approx.f32", 0.0, arch="a100").error is None
    assert mmabits.explain_function("add.f32", 1.0, 2.0, arch="a100").value == 3


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.bounds and not row.name.endswith("x2")])
def test_explanations_agree_with_calls_and_with_binary64(name: str) -> None:
    row = opcode_table()[name]
    rng = np.random.default_rng([operands.SEED, *name.encode()])
    exact = {"ex2": np.exp2, "rcp": np.reciprocal, "rsqrt": lambda x: 1 / np.sqrt(x), "lg2": np.log2, "sqrt": np.sqrt, "sin": np.sin,
             "cos": np.cos, "tanh": np.tanh, "div": np.divide}[row.base]  # fmt: skip
    for _ in range(20):
        values = [np.asarray(abs(rng.normal()) + 0.01, FLOATS[row.sources[0]]) for _ in row.sources]
        found = mmabits.explain_function(name, *values, arch="sm_120a")
        assert found.value == float(mmabits.function(name, *values, arch="sm_120a"))
        assert found.exact is not None
        assert float(found.exact) == pytest.approx(float(exact(*(float(each) for each in values))), rel=1e-14, abs=1e-15)
        wanted = np.asarray(float(found.exact), np.float64).astype(FLOATS[row.sources[0]])
        assert found.nearest == int(wanted.view(f"u{wanted.itemsize}"))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from mmabits.commands.main import main

    with pytest.raises(SystemExit) as left:
        main(["function", "div.full.f32", "3163.328613", "0x4545b542", "--arch", "rtx3090"])
    assert left.value.code == 0
    assert "1 from the correctly rounded 1 (0x3f800000)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["function", "div.full.f32", "one", "2", "--arch", "rtx3090"])
    assert left.value.code == 2
    assert "'one' is no number" in capsys.readouterr().err
