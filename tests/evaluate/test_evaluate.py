"""Whole models in many settings: figures held against plain runs, interrupted and resumed, refused settings, the command."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mmabits  # noqa: E402
from mmabits.commands.main import main  # noqa: E402
from mmabits.commands.pages.evaluate import evaluation_page  # noqa: E402
from mmabits.isa import EmulationError, OperandError, UnknownArchitecture  # noqa: E402
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4  # noqa: E402
from mmabits.kernels.schemes import asymmetric, fp8_blockwise, w4a4, w4a8, w4a8_fp8, w4a16, w8a8, w8a16  # noqa: E402
from mmabits.kernels.schemes import fp8 as fp8_scheme  # noqa: E402
from mmabits.kernels.schemes.blocks import ColumnBlocks, RowBlocks, block_scaled_matmul  # noqa: E402
from mmabits.kernels.schemes.dots import Dots  # noqa: E402
from mmabits.research.evaluation import points, whole  # noqa: E402
from mmabits.research.evaluation.compositions import COMPOSITIONS  # noqa: E402
from mmabits.research.evaluation.recipes import LEFT_OUT, OTHER_NAMES, RECIPES, model_recipe  # noqa: E402
from mmabits.research.models import find_model  # noqa: E402
from mmabits.research.study import JournalMismatch  # noqa: E402

TOKENS = [(7 * place) % 61 for place in range(40)]


class Tiny(torch.nn.Module):
    """Two linear layers, and logits of 64 tokens."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.words, self.inner, self.head = torch.nn.Embedding(64, 64), torch.nn.Linear(64, 32), torch.nn.Linear(32, 64, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator))
        self.to(torch.bfloat16)

    def forward(self, tokens: Any) -> Any:
        return self.head(torch.tanh(self.inner(self.words(tokens))))


def doubled(tokens: Any) -> Any:
    """A plain function of tokens."""
    made = Tiny()
    return made(tokens) * 2


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("evaluated_models")
    module.tiny, module.doubled, module.drawn = Tiny, doubled, lambda: Tiny(int(time.monotonic_ns()) % 2**31)  # type: ignore[attr-defined]
    module.read = lambda: (Tiny(), lambda text: [ord(letter) % 64 for letter in text])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evaluated_models", module)


def evaluated(model: Any = "evaluated_models:tiny", **options: Any) -> Any:
    given = {"archs": ["a100", "h100"], "recipes": ["none"], "tokens": TOKENS, "length": 20, "keep": ("head",), "progress": False}
    return mmabits.evaluate(model, **{**given, **options})


def test_figures_are_those_of_plain_runs(home: None) -> None:
    found = evaluated(recipes=["none", "int8"])
    assert (found.measure, found.pieces, len(found.settings), found.is_whole) == ("logits", 2, 4, True)
    model, parts = Tiny(), [torch.tensor([TOKENS[:20]]), torch.tensor([TOKENS[20:]])]
    runs = {}
    for arch in ("sm_80", "sm_90a"):
        with torch.no_grad(), mmabits.emulate(arch, frameworks=["torch"]):
            runs[arch] = [model(part) for part in parts]
    with torch.no_grad():
        exact = [Tiny().float()(part) for part in parts]
    end = next(each for each in found.ends if (each.arch, each.recipe, each.against) == ("sm_90a", "none", "arch"))
    assert end.other == "sm_80, none" and end.results == 40 * 64
    pairs = list(zip(runs["sm_80"], runs["sm_90a"], strict=True))
    assert end.changed == sum(int((x != y).sum()) for x, y in pairs)
    wide = [(x.double(), y.double()) for x, y in zip(exact, runs["sm_90a"], strict=True)]
    of_f32 = next(each for each in found.ends if (each.arch, each.recipe, each.against) == ("sm_90a", "none", "f32"))
    assert of_f32.largest == max(float((x - y).abs().max()) for x, y in wide)
    assert of_f32.agreement == sum(int((x.argmax(-1) == y.argmax(-1)).sum()) for x, y in wide) / 40
    kl = sum(float((x.softmax(-1) * (x.log_softmax(-1) - y.log_softmax(-1))).sum()) for x, y in wide) / 40
    assert of_f32.kl == pytest.approx(kl, rel=1e-9) and kl > 0
    squares = sum(float(((x - y) ** 2).sum()) for x, y in wide) / sum(float((x**2).sum()) for x, _ in wide)
    assert of_f32.error == pytest.approx(math.sqrt(squares), rel=1e-12)
    surprise = [
        -torch.nn.functional.cross_entropy(y[0, :-1], part[0, 1:], reduction="sum") for (_, y), part in zip(wide, parts, strict=True)
    ]
    setting = next(each for each in found.settings if (each.arch, each.recipe) == ("sm_90a", "none"))
    assert setting.perplexity == pytest.approx(math.exp(-float(sum(surprise)) / 38), rel=1e-9)
    assert setting.share == 1 and setting.kinds == (("bf16 into f32", 1.0),) and setting.tokens == 40
    layers = found.layers(of_f32)
    assert [layer.layer for layer in layers] == ["inner", "head"] and layers[0].results == 40 * 32
    int8 = next(each for each in found.settings if each.recipe == "int8")
    assert dict(int8.kinds) == {"s8 into s32": 0.5, "bf16 into f32": 0.5}
    between = next(each for each in found.ends if (each.arch, each.recipe, each.against) == ("sm_90a", "int8", "arch"))
    assert found.layers(between)[0].changed == 0  # integers have no roundings


def fp8(values: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    import ml_dtypes

    amax = np.abs(values).max() if axis is None else np.abs(values).max(axis, keepdims=True)
    scale = (amax / np.float32(448)).astype(np.float32)
    return np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn), scale


@pytest.mark.parametrize("name", ["fp8", "fp8-row", "fp8-tiles", "mxfp8-rceil", "mxfp4", "nvfp4", "int8"])
def test_a_layer_is_its_composition(name: str) -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((24, 128)).astype(np.float32), rng.standard_normal((128, 32)).astype(np.float32)
    recipe = model_recipe(name)
    layer = recipe.layer(torch.from_numpy(w.T.copy()), None)
    with torch.no_grad(), mmabits.emulate("sm_100a", frameworks=["torch"], library="chain") as session:
        got = layer(torch.from_numpy(x)).numpy()
    assert session.report().share == 1 and all(line.k == 128 for line in session.report().emulated)
    if name.startswith("fp8-t"):
        operands = fp8_blockwise.quantize_activations(x), fp8_blockwise.quantize_weights(w)
        wanted = fp8_blockwise.fp8_blockwise_matmul(*operands, arch="sm_100a")
    elif name.startswith("fp8"):
        (a, left), (b, right) = (fp8(x, 1 if "row" in name else None), fp8(w, 0 if "row" in name else None))
        product = Dots(arch="sm_100a")(a, b)
        wanted = product * left * right if "row" in name else product * (left * right)
    elif name == "int8":
        scales = [(np.abs(each).max(axis, keepdims=True) / np.float32(127)) for each, axis in ((x, 1), (w, 0))]
        a, b = (np.rint(each / scale) for each, scale in zip((x, w), scales, strict=True))
        wanted = (a @ b).astype(np.float32) * scales[0] * scales[1]
    else:
        split = {"mxfp8-rceil": ("e4m3", "rceil"), "mxfp4": ("e2m1", "floor")}.get(name)
        a, b = (
            quantize_nvfp4(each, axis=axis) if split is None else quantize_mx(each, format=split[0], recipe=split[1], axis=axis)
            for each, axis in ((x, 1), (w, 0))
        )
        wanted = block_scaled_matmul(RowBlocks.of(a), ColumnBlocks.of(b), arch="sm_100a") * np.float32(a.tensor_scale * b.tensor_scale)
    assert np.array_equal(got, wanted)


def by_itself(name: str, x: np.ndarray, w: np.ndarray, arch: str) -> np.ndarray:
    """A layer's product, quantizers and composition called one by one."""
    if name == "fp8-e5m2":
        a, b = (fp8_scheme.quantize(each, format="e5m2") for each in (x, w))
        return fp8_scheme.fp8_matmul(a, b, arch=arch)
    if name == "fp8-tiles-power-of-two":
        a, b = fp8_blockwise.quantize_activations(x, recipe="power-of-two"), fp8_blockwise.quantize_weights(w, recipe="power-of-two")
        return fp8_blockwise.fp8_blockwise_matmul(a, b, arch=arch)
    if name == "mxfp8-mxfp4":
        a, b = quantize_mx(x, format="e4m3", recipe="floor", axis=1), quantize_mx(w, format="e2m1", recipe="floor", axis=0)
        return block_scaled_matmul(RowBlocks.of(a), ColumnBlocks.of(b), arch=arch)
    if name.startswith("int8"):
        right = asymmetric.quantize_affine(w, axis=1, dtype=np.int8) if name == "int8-asymmetric" else w8a8.quantize_int8(w, axis=1)
        return asymmetric.asymmetric_matmul(asymmetric.quantize_affine(x, axis=0), right, arch=arch)
    if name == "w4a8":
        return w4a8.w4a8_matmul(w8a8.quantize_int8(x, axis=0), w4a8.quantize_w4a8(w), arch=arch)
    if name == "w4a8-fp8":
        return w4a8_fp8.w4a8_fp8_matmul(fp8_scheme.quantize(x, per="row"), w4a8_fp8.quantize_w4a8_fp8(w), arch=arch)
    if name == "w4a4":
        a, b = (w4a4.quantize_int4_symmetric(each, axis=axis) for axis, each in enumerate((x, w)))
        return w4a4.w4a4_matmul(a, b, arch=arch)
    half = x.astype(ml_dtypes.bfloat16)
    if name == "w4a16-symmetric":
        return w4a16.w4a16_matmul(half, w4a16.quantize_int4(w, symmetric=True), arch=arch)
    kind, group = name.split("-")[1], 128 if name.endswith("groups") else 0
    return w8a16.w8a16_matmul(half, w8a16.quantize_w8(w, kind=kind, group=group), arch=arch)


@pytest.mark.parametrize("name", [row.name for row in COMPOSITIONS])
def test_a_composed_layer_is_its_scheme(name: str) -> None:
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((6, 256)).astype(np.float32), rng.standard_normal((256, 32)).astype(np.float32)
    layer = model_recipe(name).layer(torch.from_numpy(w.T.copy()), torch.full((32,), 0.5))
    for arch in ("sm_89", "sm_100a"):
        with torch.no_grad(), mmabits.emulate(arch, frameworks=["torch"], library="chain") as session:
            got = layer(torch.from_numpy(x)).numpy()
        assert session.report().share == 1
        assert np.array_equal(got, by_itself(name, x, w, arch) + np.float32(0.5))


def test_each_recipe_of_study_is_taken_or_left_out_with_a_reason() -> None:
    from mmabits.research.study.recipes import RECIPES as OF_STUDY

    for name in OF_STUDY:
        if name in LEFT_OUT:
            with pytest.raises(OperandError, match=f"recipe '{name}' is of study alone: weights are dequantized"):
                model_recipe(name)
        else:
            assert model_recipe(name).name == OTHER_NAMES.get(name, name)


def test_what_has_no_codes_is_a_refusal() -> None:
    x = torch.zeros(4, 128)
    x[1, 3] = float("inf")
    with torch.no_grad(), mmabits.emulate("sm_90a", frameworks=["torch"]):
        for name in ("int8-asymmetric", "w4a8", "w4a4"):
            with pytest.raises(EmulationError, match=f"are not finite: recipe {name} has no codes"):
                model_recipe(name).layer(torch.ones(16, 128), None)(x)
        assert bool(torch.isfinite(model_recipe("fp8-e5m2").layer(torch.ones(16, 128), None)(x)).all())  # it saturates
    wide = torch.nn.Sequential(torch.nn.Linear(40_000, 8, bias=False))
    with pytest.raises(OperandError, match=r"takes K up to 33025.*K = 40000"):
        whole._check_layers(wide, ["int8-asymmetric"], ())


def test_weights_of_four_bits_and_biases() -> None:
    linear = torch.nn.Linear(128, 16).to(torch.bfloat16)
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.no_grad(), mmabits.emulate("sm_90a", frameworks=["torch"]):
        for name, most in (("w4a16", 0.15), ("fp8", 0.06), ("mxfp8", 0.06), ("nvfp4", 0.2)):  # relative errors
            got, wanted = RECIPES[name].layer(linear.weight, linear.bias)(x), linear(x)
            assert got.dtype == torch.bfloat16 and got.shape == (8, 16)
            assert 0 < float((got - wanted).float().norm() / wanted.float().norm()) < most
    with pytest.raises(EmulationError, match="in an emulate block only"):
        RECIPES["mxfp8"].layer(linear.weight, None)(x)


def test_interrupted_and_taken_up_again(home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = evaluated()
    calls = []

    def failing(loaded: Any, tokens: Any, setting: Any, keep: Any) -> Any:
        calls.append(setting)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return emulated(loaded, tokens, setting, keep)

    emulated = points._emulated
    monkeypatch.setattr(points, "_emulated", failing)
    for held in (points._RUNS, points._PREPARED, points._LOADED):
        held.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluated(out=tmp_path)
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 3
    assert evaluated(out=tmp_path) == wanted and len(calls) == 5
    assert evaluated(out=tmp_path) == wanted and len(calls) == 5
    with pytest.raises(JournalMismatch, match="choose another folder"):
        evaluated(out=tmp_path, recipes=["none", "fp8-row"], archs=["h100"])


def test_what_an_architecture_lacks_is_a_line(home: None) -> None:
    found = evaluated(recipes=["none", "fp8"])
    refused = next(each for each in found.settings if each.refusal)
    assert (refused.arch, refused.recipe, found.is_whole) == ("sm_80", "fp8", False) and "8.9" in refused.refusal
    assert [end.against for end in found.ends if (end.arch, end.recipe) == ("sm_90a", "fp8")] == ["f32", "recipe"]
    assert "cannot be run" in evaluation_page(found)


def test_functions_and_modules_and_accumulators(home: None) -> None:
    found = evaluated("evaluated_models:doubled", archs=["h100"])
    assert found.model == "a function of evaluated_models:doubled" and found.ends[0].other == "PyTorch on the CPU"
    given = evaluated(Tiny(), archs=["h100"])
    assert given.settings == evaluated(archs=["h100"]).settings
    fast = evaluated(archs=["h100"], recipes=["none", "fp8"], accumulators=["default", "fast"])
    assert fast.without_effect == ("accumulator fast with recipe none",)
    assert [each.words for each in fast.settings] == ["sm_90a, none", "sm_90a, fp8", "sm_90a, fp8, accumulator fast"]
    halves = evaluated(archs=["h100"], recipes=["f16"], accumulators=["default", "f16"])
    assert halves.settings[1].kinds == (("f16 into f16", 1.0),)
    assert next(end for end in halves.ends if end.against == "accumulator").changed
    read = evaluated("evaluated_models:read", archs=["h100"], tokens=None, text="Of text it makes numbers")
    assert read.settings[0].tokens == 20 + 4
    tf32 = evaluated(archs=["h100"], recipes=["tf32"])
    assert tf32.settings[0].kinds == (("tf32 into f32", 1.0),) and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"archs": ["g80"]}, UnknownArchitecture, "g80"),
        ({"archs": "h100"}, OperandError, "archs must be a sequence"),
        ({"recipes": ["fp9"]}, OperandError, "unknown recipe 'fp9'"),
        ({"accumulators": ["slow"]}, OperandError, "unknown accumulator 'slow'"),
        ({"accumulators": ["fast"]}, OperandError, "nothing to run"),
        ({"libraries": ["cublaslt-1"]}, OperandError, "cublaslt-1"),
        ({"recipes": ["w4a16"]}, OperandError, "inner has K = 64"),
        ({"recipes": ["fp8"], "keep": ("*",)}, OperandError, "has none to be quantized"),
        ({"recipes": ["fp8"], "keep": ("hed",)}, OperandError, "no linear layer fits 'hed' of keep; did you mean head"),
        ({"keep": ("blocks.*",)}, OperandError, "no linear layer fits 'blocks[.][*]' of keep"),
        ({"keep": "head"}, OperandError, "keep must be a sequence of patterns"),
        ({"tokens": [3]}, OperandError, "fewer than two tokens"),
        ({"tokens": [3, 99]}, OperandError, "the model has 64 tokens"),
        ({"text": "two"}, OperandError, "text or tokens"),
        ({"length": 1}, OperandError, "length must be"),
        ({"dtype": "f8"}, OperandError, "unknown type 'f8'"),
        ({"model": "evaluated_models:doubled", "recipes": ["bf16"]}, OperandError, "this is a function"),
        ({"model": Tiny(), "client": object()}, OperandError, "find a model by its name"),
    ],
)
def test_what_cannot_be_evaluated(home: None, options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        evaluated(**options)


def test_weights_drawn_anew_are_told_of(home: None) -> None:
    points._LOADED.clear()
    with pytest.raises(OperandError, match="sets a seed"):
        evaluated("evaluated_models:drawn")
    with mmabits.emulate("sm_90a", frameworks=["torch"]), pytest.raises(EmulationError, match="outside of emulate"):
        evaluated()


def test_threads_of_a_worker_take_turns(home: None) -> None:
    """As on a worker of dask.distributed with several threads, of which one at a time may be inside of emulate."""
    found, digest = find_model("evaluated_models:tiny"), points.digest_of(Tiny())
    setting = asdict(points.EvaluationSetting(arch="sm_90a"))
    options = {
        "model": "evaluated_models:tiny",
        "dtype": "own",
        "digest": digest,
        "version": "",
        "setting": setting,
        "against": [["f32", None]],
    }
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        results[number] = points.evaluate_point(**options, piece=number, tokens=TOKENS[number:20], keep=[], causal=True)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number][0]["tokens"] for number in range(4)] == [20, 19, 18, 17] and found.vocabulary is None


def test_the_command(home: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, table, text = tmp_path / "page.html", tmp_path / "table.csv", tmp_path / "text.txt"
    text.write_text("A text of some words, of which a model reads the letters.")

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(["evaluate", *words])
        return int(str(left.value.code))

    given = ("evaluated_models:tiny", "--arch", "h100", "--arch", "b200", "--quantize", "none", "--quantize", "nvfp4", "--keep", "head")
    given = (*given, "--text", str(text), "--length", "32", "--pieces", "1", "--out", str(tmp_path / "out"))
    assert run("evaluated_models:read", *given[1:], "--report", str(page), "--csv", str(table)) == 0
    said = capsys.readouterr()
    assert "sm_100a, nvfp4" in said.out and "1 x 32 tokens" in said.out and said.err == ""
    assert "A model in many settings" in page.read_text() and "inner" in page.read_text()
    with table.open() as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert (kinds.count("setting"), kinds.count("end"), kinds.count("layer")) == (4, 8, 16)
    assert run("evaluated_models:read", *given[1:], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["settings"]) == 4 and found["differences"][0]["against"] == "f32"
    assert run("evaluated_models:read", "--arch", "a100", "--quantize", "fp8", "--keep", "head") == 1
    assert "not run: " in capsys.readouterr().out
    assert run(*given, "--report", str(tmp_path / "page.txt")) == 2
    assert run(*given, "--text", str(tmp_path / "none.txt")) == 2


# Processes ----------------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path.insert(0, {here!r})
from mmabits.commands.main import main
main(["evaluate", "evaluated_by_name:tiny", "--arch", "h100", "--arch", "b200", "--quantize", "none", "--quantize", "fp8", "--quantize",
      "nvfp4", "--keep", "head", "--length", "16", "--text", {text!r}, *sys.argv[1:]])
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """A command line for evaluations in processes of their own, and their environment."""
    (tmp_path / "text.txt").write_text("".join(chr(token) for token in TOKENS))
    source = Path(__file__).read_text().partition("class Tiny")[2].partition("\n\n\ndef doubled")[0]
    tail = "def tiny():\n    return Tiny(), lambda text: [ord(each) % 64 for each in text]\n"
    (tmp_path / "evaluated_by_name.py").write_text(f"import torch\nfrom typing import Any\n\nclass Tiny{source}\n\n{tail}")
    here = PROGRAM.format(here=str(tmp_path), text=str(tmp_path / "text.txt"))
    path = os.pathsep.join([str(tmp_path), str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [sys.executable, "-c", here], {**os.environ, "PYTHONPATH": path}


def finished(program: tuple[list[str], dict[str, str]], *words: str) -> None:
    done = subprocess.run([*program[0], *words], env=program[1], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_killed_and_resumed_the_table_is_the_same(program: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    finished(program, "--csv", str(tmp_path / "whole.csv"))
    journal = tmp_path / "out" / "points.jsonl"
    command = [*program[0], "--out", str(tmp_path / "out"), "--csv", str(tmp_path / "resumed.csv")]
    process = subprocess.Popen(command, env=program[1], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_text().count("\n") >= 4):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_text().count("\n") - 1
    assert 3 <= done < 18 and not (tmp_path / "resumed.csv").exists()
    finished(program, "--out", str(tmp_path / "out"), "--csv", str(tmp_path / "resumed.csv"))
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
def test_two_worker_processes_give_the_same_table(program: tuple[list[str], dict[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    finished(program, "--csv", str(tmp_path / "whole.csv"))
    scheduler_file = tmp_path / "scheduler.json"
    words = ([sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"],)
    started = [
        subprocess.Popen([*words[0], "--no-dashboard", "--scheduler-file", str(scheduler_file)], env=program[1], stderr=subprocess.DEVNULL)
    ]
    try:
        for number, threads in enumerate(("2", "1")):
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(scheduler_file), "--nthreads", threads]
            worker += ["--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path / f"worker{number}")]
            started.append(subprocess.Popen(worker, env=program[1], stderr=subprocess.DEVNULL, cwd=tmp_path))
        deadline = time.monotonic() + 120
        while not scheduler_file.exists() or not scheduler_file.read_text().endswith("}"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads(scheduler_file.read_text())["address"]
        finished(program, "--dask", address, "--csv", str(tmp_path / "spread.csv"))
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert (tmp_path / "spread.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_no_scheduler(home: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.commands import evaluate as command

    pytest.importorskip("distributed")
    monkeypatch.setattr(command, "_SECONDS", 0.2)
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "evaluated_models:tiny", "--arch", "h100", "--dask", "tcp://127.0.0.1:9"])
    assert left.value.code == 2 and "no scheduler of dask.distributed answers" in capsys.readouterr().err
    assert whole.KEPT == ("lm_head",)
