"""Own matrices in several ways: against gemm, the exact model's fractions, and the command line."""

from __future__ import annotations

import csv
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import mmabits
from mmabits.commands.main import app
from mmabits.conformance.ways import compare, exact_product, quantized
from mmabits.isa import OperandError
from mmabits.isa.errors import InsufficientEvidence, UnsupportedInstruction, VectorFileError
from mmabits.reports.matrices import MatrixSource, read_matrix
from mmabits.research.study.recipes import RECIPES

RNG = np.random.default_rng(21)
A = RNG.standard_normal((12, 160)).astype(np.float32)
B = RNG.standard_normal((160, 20)).astype(np.float32)


def ask(*arguments: str, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_ways_are_those_of_gemm() -> None:
    found = compare(A, B, arch=("sm_90a", "sm_100a", "sm_89"), format="e4m3")
    stored = A.astype(ml_dtypes.float8_e4m3fn), B.astype(ml_dtypes.float8_e4m3fn)
    expected = [
        mmabits.gemm(*stored, instruction=name, arch=arch)
        for name, arch in (("wgmma", "sm_90a"), ("tcgen05.mma", "sm_100a"), ("mma.sync", "sm_89"))
    ]
    for way, result in zip(found.ways, expected, strict=True):
        assert np.array_equal(way.result.view(np.uint32), result.view(np.uint32))
        if way is not found.base:
            assert way.difference is not None
            assert way.difference.differing == int((result.view(np.uint32) != expected[0].view(np.uint32)).sum()) > 0
    assert not found.is_equal


def test_the_worst_elements_lie_farthest_apart() -> None:
    found = compare(A, B, arch=("sm_90a", "sm_100a"), format="fp8", worst=3)
    base, other = (way.result.view(np.int32).astype(np.int64) for way in found.ways)
    base, other = (np.where(codes < 0, -(codes & 0x7FFFFFFF), codes) for codes in (base, other))
    apart = np.abs(base - other)
    assert [one.ulp for one in found.worst] == np.sort(apart, axis=None)[::-1][:3].tolist()
    for one in found.worst:
        assert apart[one.row, one.column] == one.ulp
        explained = found.explain(one)
        for way, explanation in zip(found.ways, explained, strict=True):
            unscaled = np.float32(float(str(explanation.trace.result)))
            assert np.isclose(unscaled * np.float32(found.operands.factor), way.result[one.row, one.column], rtol=1e-6)


def fraction_result(a: Any, b: Any) -> np.float32:
    """The sum rounded once to float32, to nearest even, without NumPy's rounding of sums."""
    whole = sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)), Fraction(0))
    near = np.float32(float(whole))
    candidates = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return min(candidates, key=lambda one: (abs(Fraction(float(one)) - whole), int(np.float32(one).view(np.uint32)) & 1))


@pytest.mark.parametrize("form", ["bf16", "e5m2", "mxfp8"])
def test_the_exact_reference_is_rounded_once(form: str) -> None:
    a = A * np.float32(2.0) ** RNG.integers(-12, 12, A.shape).astype(np.float32)
    a[0, 0], a[0, 1] = 2.0**11, 2.0**-13  # ties of float32 and their neighbours
    b = B.copy()
    b[:, 0] = 0
    b[0, 0], b[1, 0] = 1.0, 1.0
    pair = quantized(a.astype(np.float32), b, form)
    scale_a = np.repeat(pair.scale_a.astype(np.float64), 32, axis=1) if pair.scale_a is not None else 1.0
    scale_b = np.repeat(pair.scale_b.astype(np.float64), 32, axis=0) if pair.scale_b is not None else 1.0
    left, right = pair.a.astype(np.float64) * scale_a, pair.b.astype(np.float64) * scale_b
    found = exact_product(pair, "f32")
    for row in range(4):
        for column in range(6):
            assert found[row, column] == fraction_result(left[row], right[:, column])


def test_undecided_sums_are_settled_by_fractions() -> None:
    a = np.array([[1.0, 2.0**-24, 2.0**-60], [1.0, 2.0**-24, 0.0], [1.0 + 2.0**-23, 2.0**-24, -(2.0**-70)]], np.float32)
    pair = quantized(a.astype(ml_dtypes.bfloat16), np.ones((3, 1), ml_dtypes.bfloat16), None)
    wide = exact_product(pair, "f32")[:, 0]
    assert wide[0] == np.float32(1 + 2.0**-23)
    assert wide[1] == 1.0


def test_references_and_instructions() -> None:
    exact = compare(A, B, arch="sm_100a", format="e4m3", reference="exact")
    assert [way.name for way in exact.ways] == ["exact", "sm_100a"]
    plain = compare(A, B, arch="sm_90a", instruction=("wgmma", "mma.sync"), format="e4m3", reference="float32")
    assert [way.name.split()[0] for way in plain.ways] == ["float32", "sm_90a", "sm_90a"]
    assert len({way.name for way in plain.ways}) == 3
    own = compare(A, B, arch="sm_90a", format="fp8", reference=plain.ways[0].result)
    assert own.base.name == "given"
    same = compare(A, B, arch="sm_90a", format="fp8", reference=own.ways[1].result)
    assert same.is_equal
    scaled = compare(A, B, arch=("sm_100a", "sm_120a"), format="mxfp8")
    assert scaled.is_equal
    whole = compare(np.int8([[1, 2]]), np.int8([[3], [4]]), arch=("sm_80", "sm_90a"), reference="exact")
    assert whole.is_equal
    assert whole.base.result.tolist() == [[11]]


def test_special_values_come_first_among_the_worst() -> None:
    a, b = A.copy(), B.copy()
    given = compare(a, b, arch="sm_90a", format="bf16", reference="exact").ways[1].result.copy()
    given[3, 4] = np.nan
    found = compare(a, b, arch="sm_90a", format="bf16", reference=given)
    assert (found.worst[0].row, found.worst[0].column, found.worst[0].ulp) == (3, 4, None)
    assert len(found.worst) == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"arch": "sm_90a"}, "one way alone"),
        ({"arch": ()}, "one way alone"),
        ({"format": "e4m4"}, "unknown format or recipe 'e4m4'"),
        ({"format": "mxfp8", "format_b": "e4m3"}, "do not go together"),
        ({"reference": "precise"}, "unknown reference"),
        ({"reference": np.zeros((2, 2), np.float32)}, "the reference must be"),
        ({"worst": -1}, "worst must be"),
        ({"b": B[:-1]}, "K = 160"),
        ({"a": A[:0]}, "matrix with elements"),
    ],
)
def test_bad_input_is_one_error(changed: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"a": A, "b": B, "arch": ("sm_90a", "sm_100a"), "format": "e4m3"} | changed
    with pytest.raises(OperandError, match=said):
        compare(given.pop("a"), given.pop("b"), **given)


def test_what_an_architecture_lacks_is_named() -> None:
    with pytest.raises(UnsupportedInstruction):
        compare(A, B, arch=("sm_80", "sm_90a"), format="e4m3")
    with pytest.raises(UnsupportedInstruction):
        compare(A, B, arch=("sm_89", "sm_90a"), format="e4m3", instruction="wgmma")
    with pytest.raises(InsufficientEvidence):
        compare(A, B, arch=("sm_90a", "sm_100a"), format="e4m3", require="recorded")


def test_recipes_of_more_than_one_factor_are_refused() -> None:
    a, b = A[:, :128], np.ascontiguousarray(B[:128])
    for name, row in RECIPES.items():
        left, right = row.quantize(a, -1), row.quantize(b, 0)
        parts = (left.parts, right.parts, left.zeros, right.zeros)
        assert row.whole == (np.ndim(left.factor) == np.ndim(right.factor) == 0 and all(part is None for part in parts)), name
        if row.whole:
            assert isinstance(quantized(a, b, name).factor, float)
        else:
            with pytest.raises(OperandError, match=re.escape(f"{name} scales rows, columns or partial sums")):
                quantized(a, b, name)
            with pytest.raises(OperandError, match=name):
                quantized(a, b, "bf16", name)


def test_what_is_no_number_is_json(tmp_path: Path) -> None:
    bad = A.copy()
    bad[0, 0] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "b.npy", B)
    found = ask("compare", f"{tmp_path}/nan.npy", f"{tmp_path}/b.npy", "-f", "fp8", "--arch", "h100", "--arch", "b200", "--json")
    assert found.exit_code == 1, found.output
    assert json.loads(found.stdout)["ways"][0]["error"] == "nan"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "h100", "--arch", "b200", "-o", "d.npy"), "one GPU's: name one --arch"),
        (("--arch", "h100", "-o", "nowhere/d.npy"), "there is no folder"),
        (("--arch", "h100", "-o", "d.npy", "-f", "int8"), "int8 scales rows"),
    ],
)
def test_what_gemm_refuses(arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", A)
    np.save("b.npy", B)
    found = ask("gemm", "a.npy", "b.npy", *arguments)
    assert isinstance(found.exception, OperandError) and said in str(found.exception)
    np.save("a.npy", A[:0])
    empty = ask("gemm", "a.npy", "b.npy", "--arch", "h100", "-o", "d.npy")
    assert "a must be a matrix with elements" in str(empty.exception)
    wrong = ask("compare", "b.npy", "b.npy", "--arch", "h100", "--reference", "exct")
    assert "did you mean exact" in str(wrong.exception)


def test_a_reference_on_standard_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B)
    matrices = (f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "-f", "e4m3", "--arch", "h100")
    product = ask("gemm", *matrices, "-o", "-").stdout_bytes
    assert ask("compare", *matrices, "--reference", "-", stdin=product).exit_code == 0
    other = np.load(io.BytesIO(product))
    other.view(np.uint32)[0, 0] ^= 1
    held = io.BytesIO()
    np.save(held, other)
    assert ask("compare", *matrices, "--reference", "-", stdin=held.getvalue()).exit_code == 1


def test_files_of_all_kinds(tmp_path: Path) -> None:
    half = B.astype(ml_dtypes.bfloat16)
    codes = B.astype(ml_dtypes.float8_e4m3fn)
    np.save(tmp_path / "b.npy", B)
    np.save(tmp_path / "raw.npy", codes)
    np.savez(tmp_path / "two.npz", first=B, second=A)
    save_file({"layer.weight": half, "layer.codes": codes, "ids": np.arange(3)}, tmp_path / "m.safetensors")
    assert np.array_equal(read_matrix(str(tmp_path / "b.npy")), B)
    assert np.array_equal(read_matrix(f"{tmp_path}/two.npz:second"), A)
    assert np.array_equal(read_matrix(f"{tmp_path}/m.safetensors:layer.weight"), half)
    assert read_matrix(f"{tmp_path}/m.safetensors:layer.codes").dtype == ml_dtypes.float8_e4m3fn
    assert np.array_equal(read_matrix(str(tmp_path / "raw.npy"), stored="e4m3"), codes)
    assert MatrixSource.of("a:b.npz:c.d") == MatrixSource(path="a:b.npz", tensor="c.d")
    for source, said in (
        ("raw.npy", "name it"), ("two.npz", "holds 2 tensors"), ("two.npz:third", "no such tensor"), ("m.safetensors:ids", "is I64"),
        ("missing.npy", "cannot be read"), ("b.npy:x", "no name"), ("x.txt", "matrices are read from"),
    ):  # fmt: skip
        with pytest.raises(VectorFileError, match=said):
            read_matrix(f"{tmp_path}/{source}")
    with pytest.raises(OperandError, match="not raw codes"):
        read_matrix(str(tmp_path / "b.npy"), stored="e4m3")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("bad.npz", "bad.npy", "objects.npy"):
        with pytest.raises(VectorFileError, match=name):
            read_matrix(str(tmp_path / name))


def test_torch_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"model": {"q": torch.ones(2, 3, dtype=torch.bfloat16)}, "step": 3}, tmp_path / "m.pt")
    assert read_matrix(f"{tmp_path}/m.pt:model.q").shape == (2, 3)
    assert read_matrix(f"{tmp_path}/m.pt").shape == (2, 3)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(VectorFileError, match="junk"):
        read_matrix(f"{tmp_path}/junk.pt")
    torch.save(CliRunner(), tmp_path / "code.pt")
    with pytest.raises(VectorFileError, match="more than weights"):
        read_matrix(f"{tmp_path}/code.pt")


def test_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    save_file({"w": np.ascontiguousarray(B.T)}, tmp_path / "w.safetensors")
    matrices = (str(tmp_path / "a.npy"), f"{tmp_path}/w.safetensors:w", "--transpose-b", "-f", "fp8")
    found = ask("compare", *matrices, "--arch", "h100", "--arch", "b200", "--report", str(tmp_path / "p.html"), "--explain")
    assert found.exit_code == 1, found.output
    assert "the elements that differ most" in found.output
    assert "D[" in found.output
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") >= 4
    assert "One product, several ways" in page
    table = ask("compare", *matrices, "--arch", "h100", "--reference", "exact", "--csv").output.splitlines()
    assert len(table) == 3
    assert table[0].startswith("way,arch,instruction,evidence")
    plain = json.loads(ask("compare", *matrices, "--arch", "h100", "--arch", "b200", "--json").output)
    assert [way["way"] for way in plain["ways"]] == ["sm_90a", "sm_100a"]


def test_the_gemm_command_and_pipes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", B)
    files = (str(tmp_path / "a.npy"), str(tmp_path / "b.npy"))
    assert ask("gemm", *files, "-o", str(tmp_path / "d.npy"), "--arch", "sm_90a", "-f", "e4m3").exit_code == 0
    stored = A.astype(ml_dtypes.float8_e4m3fn), B.astype(ml_dtypes.float8_e4m3fn)
    expected = mmabits.gemm(*stored, instruction="wgmma", arch="sm_90a")
    assert np.array_equal(np.load(tmp_path / "d.npy"), expected)
    piped = ask("gemm", *files, "-o", "-", "--arch", "sm_90a", "-f", "e4m3")
    assert np.array_equal(np.load(io.BytesIO(piped.stdout_bytes)), expected)
    same = ask("compare", *files, "-f", "e4m3", "--arch", "sm_90a", "--reference", str(tmp_path / "d.npy"))
    assert same.exit_code == 0
    for arguments in (("-o", "d.txt"), ("-o", str(tmp_path / "none" / "d.npy"))):
        assert isinstance(ask("gemm", *files, *arguments, "--arch", "sm_90a", "-f", "e4m3").exception, mmabits.MmabitsError)
    assert isinstance(ask("gemm", "-", "-", "-o", "-", "--arch", "sm_90a").exception, OperandError)


def test_tables_as_csv(tmp_path: Path) -> None:
    def rows(*arguments: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(ask(*arguments).stdout)))

    listed = rows("list", "--arch", "sm_90a", "--csv")
    assert len(listed) == len(mmabits.instructions(arch="sm_90a"))
    assert {row["family"] for row in listed} >= {"wgmma.mma_async", "mma.sync"}
    pack = Path(mmabits.__file__).parent / "conformance" / "probes" / "pack" / "sm_90a-wgmma-e4m3-e4m3-f32-k32.safetensors"
    (replayed,) = rows("replay", str(pack), "--csv")
    assert (replayed["differing"], replayed["kind"]) == ("0", "computed")
    found = rows("identify", str(pack), "--csv")
    assert {"L", "e_zero"} <= {row["what"] for row in found}
    cases = rows("diff", "--list", "--csv")
    assert {"torch", "jax", "triton"} <= {row["framework"] for row in cases}
