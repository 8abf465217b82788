"""Explanations: every number on the three pages that the documentation shows is computed again by the slow reference."""

from __future__ import annotations

import html
import re
from fractions import Fraction
from io import StringIO

import ml_dtypes
import numpy as np
import pytest
import slow_reference
from rich.console import Console

import mmabits
from mmabits.isa import OperandError
from mmabits.research.explain import explain
from mmabits.research.explain.words import exact

_FP8, _FP4, _E8M0 = ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu


def _operands(kind):
    """(arguments of explain, those of the slow reference)"""
    rng = np.random.default_rng(11)
    if kind == "nvfp4":
        a, b = ((rng.standard_normal(128) * 3).astype(_FP4) for _ in range(2))
        scales = [rng.integers(20, 100, 8).astype(np.uint8) for _ in range(2)]
        given = {"instruction": "tcgen05.mma", "arch": "sm_100a", "scale_a": scales[0].view(_FP8), "scale_b": scales[1].view(_FP8)}
        return (a, b), given, ("tcgen05", "e2m1", 64, "ue4m3", 16, scales)
    a, b = ((rng.standard_normal(128) * 2.0 ** rng.integers(-5, 3, 128)).astype(_FP8) for _ in range(2))
    if kind == "mxfp8":
        scales = [rng.integers(118, 134, 4).astype(np.uint8) for _ in range(2)]
        given = {"instruction": "tcgen05.mma", "arch": "sm_100a", "scale_a": scales[0].view(_E8M0), "scale_b": scales[1].view(_E8M0)}
        return (a, b), given, ("tcgen05", "e4m3", 32, "ue8m0", 32, scales)
    return (a, b, np.float32(0.3)), {"instruction": "wgmma", "arch": "sm_90a"}, ("wgmma", "e4m3", 32, None, None, None)


def _reference(operands, given, facts, k):
    """The accumulator's code after `k` elements, by the slow reference."""
    family, form, k_instruction, scale_type, block, scales = facts
    a, b = (np.asarray(part).view(np.uint8)[:k].tolist() for part in operands[:2])
    c = int(operands[2].view(np.uint32)) if len(operands) > 2 else 0
    more = (
        {} if scales is None else {"scale_a": scales[0].tolist(), "scale_b": scales[1].tolist(), "scale_type": scale_type, "block": block}
    )
    return slow_reference.dot(given["arch"], family, form, form, "f32", a, b, c, k_instruction=k_instruction, **more)


def _value(code):
    number = slow_reference.decode("f32", code)
    return number.sign * number.significand * Fraction(2) ** number.lsb


def _exact(operands, facts):
    _, form, _, scale_type, block, scales = facts
    total = _value(int(operands[2].view(np.uint32))) if len(operands) > 2 else Fraction(0)
    for k, pair in enumerate(zip(*(np.asarray(part).view(np.uint8).tolist() for part in operands[:2]), strict=True)):
        numbers = [slow_reference.decode(form, code) for code in pair]
        if scales is not None:
            numbers += [slow_reference.decode(scale_type, int(scale[k // block])) for scale in scales]
        product = Fraction(1)
        for number in numbers:
            product *= number.sign * number.significand * Fraction(2) ** number.lsb
        total += product
    return total


def _rows(page):
    """The cells of the account's rows, tags taken out."""
    rows = re.findall(r"<tr data-step=.*?</tr>", page, re.S)
    return [[html.unescape(re.sub(r"<.*?>", "", cell)).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in rows]


def _near(text, value):
    """Whether a printed number is the value, or begins it where it ends in dots."""
    printed = Fraction(text.removesuffix("..."))
    return printed == value if not text.endswith("...") else abs(printed - value) <= abs(value) * Fraction(1, 10**8)


@pytest.mark.parametrize("kind", ["hopper", "mxfp8", "nvfp4"])
def test_every_number_on_the_page_is_what_the_slow_reference_computes(kind):
    operands, given, facts = _operands(kind)
    found = explain(*operands, **given)
    page = found.html()
    exact = _exact(operands, facts)
    assert found.trace.exact == exact
    last = _reference(operands, given, facts, 128)
    assert f"{last:#010x}" in page
    assert hex(found.trace.result.code) == hex(last)
    rows, step = _rows(page), found.trace.lowering.step
    assert len(rows) == 128 // step
    before = _value(int(operands[2].view(np.uint32))) if len(operands) > 2 else Fraction(0)
    lost = Fraction(0)
    for number, cells in enumerate(rows):
        after = _value(_reference(operands, given, facts, (number + 1) * step))
        assert cells[0] == str(number)
        assert cells[1] == f"k = {number * step}..{number * step + step - 1}"
        assert cells[3] == f"2^{int(cells[2]) - found.trace.datapath.fraction_bits}"
        assert Fraction(cells[6]) == Fraction(f"{float(after):.9g}")
        one = found.trace.steps[number]
        sum_here = sum((term.value for term in one.terms), Fraction(0))
        assert sum_here - after == one.lost_by_alignment + one.lost_by_rounding
        assert _near(cells[4], one.lost_by_alignment) and _near(cells[5], one.lost_by_rounding)
        before, lost = after, lost + sum_here - after
    assert exact - before == lost
    assert _near(re.search(rf"{last:#010x}</td><td class=\"n\">(.*?)</td>", page)[1], before - exact)


@pytest.mark.parametrize("kind", ["hopper", "mxfp8", "nvfp4"])
def test_the_bits_of_the_picture_are_the_bits_of_the_terms(kind):
    operands, given, _ = _operands(kind)
    found = explain(*operands, **given)
    for number, step in enumerate(found.trace.steps):
        picture = found.svg(number)
        cells = re.findall(r"<title>([01]) x 2\^(-?\d+)(, cut off)?</title>", picture)
        kept = sum(int(bit) * Fraction(2) ** int(exponent) for bit, exponent, cut in cells if not cut)
        cut = sum(int(bit) * Fraction(2) ** int(exponent) for bit, exponent, cut in cells if cut)
        place = Fraction(2) ** step.last_place
        result = step.result
        assert kept == sum(abs(term.kept) for term in step.terms) * place + abs(step.total) * place + abs(result.value)
        shown = sum(abs(term.lost) for term in step.terms)
        assert cut <= shown < cut + len(step.terms) * place * Fraction(1, 2**13)
        assert 'class="lost"' in picture or cut == 0


def test_architectures_stand_side_by_side():
    operands, given, _ = _operands("hopper")
    found = explain(*operands, **given, beside=["sm_100a", "sm_89"])
    assert [one.arch for one in found.traces] == ["sm_90a", "sm_100a", "sm_89"]
    page = found.html()
    for one in found.traces:
        assert f"{one.result.code:#010x}" in page
        assert one.instruction.ptx in page
    assert len({one.result.code for one in found.traces}) == 3
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", page), "a page must not need the network"


def test_on_the_terminal_the_account_is_a_table():
    operands, given, _ = _operands("hopper")
    out = StringIO()
    Console(file=out, width=200).print(explain(*operands, **given))
    text = out.getvalue()
    assert "sm_90a.wgmma.f8.f32: F = 13, steps of 32, rz (published)" in text
    assert "k = 96..127" in text
    assert f"{_reference(operands, given, _operands('hopper')[2], 128):#010x}" in text


def test_an_element_of_a_matrix_is_the_one_gemm_gives(tmp_path):
    rng = np.random.default_rng(12)
    a, b = rng.standard_normal((5, 64)).astype(_FP8), rng.standard_normal((64, 6)).astype(_FP8)
    c = rng.standard_normal((5, 6)).astype(np.float32)
    given = {"instruction": "wgmma", "arch": "sm_90a", "promote_every": 32}
    d = mmabits.gemm(a, b, c, **given)
    found = explain(a, b, c, **given, row=3, column=-2)
    assert found.trace.result.code == int(d.view(np.uint32)[3, 4])
    assert found.save(tmp_path / "deep" / "why.html").read_text().startswith("<!doctype html>")
    assert found.save(tmp_path / "why.svg").read_text().startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "why.svg"]


def test_wrong_use_is_refused(tmp_path):
    operands, given, _ = _operands("hopper")
    with pytest.raises(OperandError, match="column 3 of a product of 1 x 1"):
        explain(*operands, **given, column=3)
    with pytest.raises(OperandError, match="a must be a vector or a matrix"):
        explain(np.zeros((2, 2, 32), _FP8), operands[1], **given)
    for c in (1e60, -1e39, "x"):
        with pytest.raises(OperandError, match="c must be a matrix or a number that fits float32, got"):
            explain(*operands[:2], c, **given)
    found = explain(*operands, **given)
    with pytest.raises(OperandError, match="step 9 of a chain of 4"):
        found.svg(9)
    with pytest.raises(OperandError, match="sm_80 is not explained here; there are sm_90a"):
        found.svg(arch="sm_80")
    with pytest.raises(OperandError, match=r"saved as \.html or \.svg"):
        found.save(tmp_path / "why.pdf")


def test_the_command_explains_and_writes(tmp_path, capsys):
    from mmabits.commands.main import main

    page = tmp_path / "why.html"
    values = ["--a", "1,0.001953125", "--b", "1,0.03125"]
    with pytest.raises(SystemExit) as ended:
        main(["explain", "wgmma", "--arch", "sm_90a", *values, "--beside", "sm_100a", "--save", str(page)])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "0.001953125 x 0.03125" in text and "|1" in text
    assert f"wrote {page}" in text
    assert "sm_100a" in page.read_text()
    with pytest.raises(SystemExit) as ended:
        main(["explain", "wgmma", "--arch", "sm_90a", "--a", "1,2", "--b", "one"])
    assert ended.value.code == 2
    assert "error: --b takes numbers separated by commas, got 'one'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["wgmma", "--arch", "h100", "--a", "1e9,1", "--b", "1,1.03"],
         ["a to e4m3: 1 of 2 rounded, the first 1000000000 to nan, 1 beyond its largest number, 448",
          "b to e4m3: 1 of 2 rounded, the first 1.03 to 1"]),
        (["wgmma", "--arch", "h100", "--a", "nan,-0.0", "--b", "1,1", "--c", "0.1"],
         ["c to f32: 1 of 1 rounded, the first 0.1 to 0.10000000149011612"]),
        (["wgmma", "--arch", "h100"], []),
    ],
)  # fmt: skip
def test_the_command_tells_what_it_rounded(words, notes, capsys):
    from mmabits.commands.main import main

    with pytest.raises(SystemExit) as ended:
        main(["explain", *words])
    assert ended.value.code == 0
    assert capsys.readouterr().err.splitlines() == notes


def test_block_scales_beside_given_values_are_one(capsys):
    from mmabits.commands.main import main

    shown = []
    for scales in ([], ["--scale-a", "1", "--scale-b", "1"], ["--scale-a", "2"]):
        with pytest.raises(SystemExit) as ended:
            main(["explain", "tcgen05.mma", "--arch", "b200", "--scale-type", "ue8m0", "--a", "1,2", "--b", "1,2", *scales])
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize("values", [[1.5, 2.0], [1e150, 1e-300], [1e300, 1e-300], [1e-300, 0.0], [np.nan, np.inf]], ids=str)
def test_double_precision_fits_a_page_whatever_it_spans(values):
    """Sums of f64 span thousands of places, and exact values lie beyond what float64 holds."""
    found = explain(np.array(values), np.array(values), instruction="mma.sync", arch="sm_90a")
    width = int(re.search(r'viewBox="0 0 (\d+) ', found.svg())[1])
    assert width < 3500
    text = StringIO()
    Console(file=text, width=400).print(found)
    assert max(map(len, text.getvalue().splitlines())) < 300
    assert len(found.html()) < 1_000_000


def test_values_beyond_float64_are_written_in_full():
    assert exact(Fraction(10) ** 600 / 3) == "3.33333333e+599..."
    assert exact(Fraction(2) ** -3000) == "8.12854863e-904..."
    assert [exact(value) for value in (Fraction(0), Fraction(-1, 2), Fraction(1, 3), None)] == ["0", "-0.5", "0.333333333...", "not finite"]


def test_a_number_as_c_has_the_accumulator_type_of_the_operands():
    for dtype, value in ((np.int8, 5), (np.float64, 0.1), (_FP8, 0.5)):
        ones = np.ones(64, dtype)
        found = explain(ones, ones, value, instruction="mma.sync", arch="sm_90a")
        assert float(found.trace.c.value) == value


@pytest.mark.parametrize(("wrong", "message"), [({"row": "x"}, "row must be an integer, got 'x'"), ({"column": 1.0}, "column must be")])
def test_rows_and_columns_are_integers(wrong, message):
    ones = np.ones((2, 32), _FP8)
    with pytest.raises(OperandError, match=message):
        explain(ones, ones.T.copy(), instruction="wgmma", arch="sm_90a", **wrong)


def test_names_are_shown_as_they_are():
    """Names of what-if architectures are the user's: no markup of a page or a terminal."""
    ones = np.ones(64, _FP8)
    for name in ("<script>alert(1)</script>", "[/red]"):
        mmabits.what_if(name, base="sm_90a", rows={"wgmma.f8.f32": {"fraction_bits": 20}})
        found = explain(ones, ones, instruction="wgmma", arch=name)
        assert html.escape(name) in found.html()
        assert "<script>alert" not in found.html() + found.svg()
        text = StringIO()
        Console(file=text, width=200).print(found)
        assert name in text.getvalue()


def test_a_telephone_sees_the_bits_and_the_page_says_why_it_opens_where_it_does() -> None:
    a = np.ones((1, 64), ml_dtypes.float8_e4m3fn)
    a[0, 32] = 448
    a[0, 33:] = 1 / 64
    b = np.ones((64, 1), ml_dtypes.float8_e4m3fn)
    page = mmabits.explain(a, b, instruction="wgmma", arch="sm_90a", beside=["sm_100a"]).html()
    assert "Opened at step 1: the only step that cuts anything off." in page
    assert "the result is exact" in page, "on sm_100a"
    narrow = re.findall(r'<div class="narrow"><svg.*?viewBox="0 0 ([\d.]+) ', page)
    assert len(narrow) == 4 and all(float(width) <= 320 for width in narrow)
    names = re.findall(r'<pattern id="([^"]+)"', page)
    assert len(names) == len(set(names)) == 8
