"""Ordinary products of PyTorch under `emulate`: the bits against `mmabits.gemm`, and what the report says."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmabits import gemm  # noqa: E402
from mmabits.emulator.hooks.session import NotEmulated, emulate  # noqa: E402
from mmabits.emulator.hooks.torch import VERSIONS, openmp  # noqa: E402
from mmabits.isa import EmulationError, InsufficientEvidence, OperandError  # noqa: E402

F = torch.nn.functional

FAMILY = {"sm_80": "mma.sync", "sm_90a": "wgmma", "sm_100a": "tcgen05.mma"}
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


def emulated(arch="sm_90a", **options):
    return emulate(arch, frameworks=["torch"], **options)


def array(tensor):
    """A tensor as NumPy, by way of float32 where NumPy lacks the type: exact for values, and independent of the hook."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def tensor(values, dtype=torch.float32):
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def random(*shape, dtype=torch.float16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(dtype)


def wide(*shape, dtype=torch.float16, seed=0):
    """Magnitudes of many exponents, so that truncation shows."""
    values = random(*shape, dtype=torch.float32, seed=seed)
    exponents = torch.randint(-6, 7, shape, generator=torch.Generator().manual_seed(seed + 1))
    return (values * 2.0**exponents).to(dtype)


def assert_same(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(got.detach().contiguous().view(BITS[got.dtype]), want.contiguous().view(BITS[want.dtype]))


def product(a, b, arch="sm_90a", **options):
    options.setdefault("instruction", FAMILY[arch])
    return tensor(gemm(array(a), array(b), arch=arch, **options))


@pytest.fixture(autouse=True)
def default_settings():
    matmul = torch.backends.cuda.matmul
    yield
    matmul.allow_fp16_accumulation = False
    torch.set_float32_matmul_precision("highest")


# Products


@pytest.mark.parametrize("arch", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mm_has_the_tensor_cores_bits(arch, dtype):
    a, b = wide(24, 96, dtype=dtype), wide(40, 96, dtype=dtype, seed=2).t()
    with emulated(arch) as session:
        got = a @ b
    assert_same(got, product(a, b, arch).to(dtype))
    assert got.is_contiguous()
    (line,) = session.report().emulated
    assert (line.m, line.n, line.k, line.count) == (24, 40, 96, 1)
    assert str(line.instruction.family).startswith(FAMILY[arch][:5])


def test_sums_are_truncated_unlike_stock():
    """1 + 1.5 * 2^-24: a tensor core cuts it to 1, IEEE arithmetic rounds it up."""
    a = torch.tensor([[1.0, 2.0**-12]], dtype=torch.float16)
    b = torch.tensor([[1.0], [1.5 * 2.0**-12]], dtype=torch.float16)
    with emulated("sm_80"):
        got = torch.mm(a, b, out_dtype=torch.float32)
    assert got.item() == 1.0 and (a.float() @ b.float()).item() == 1 + 2.0**-23


def test_f64_is_emulated():
    a, b = random(9, 20, dtype=torch.float64), random(20, 5, dtype=torch.float64, seed=1)
    with emulated() as session:
        got = a @ b
    assert_same(got, torch.from_numpy(gemm(array(a), array(b), instruction="mma.sync", arch="sm_90a")))
    assert session.report().emulated[0].instruction.d_type.name == "f64"


def test_int_mm():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-128, 128, shape).astype(np.int8)) for shape in ((32, 64), (64, 16)))
    with emulated("sm_80") as session:
        got = torch._int_mm(a, b)
        assert torch.equal(torch._int_mm(a[:16], b), got[:16])
        with pytest.raises(OperandError, match=r"_int_mm at test_torch.py:\d+: K and N must be multiples of 8 on a GPU, got 60 and 16"):
            torch._int_mm(a[:, :60], b[:60])
    assert torch.equal(got, a.int() @ b.int())
    assert session.report().emulated[0].instruction.a_type.name == "s8"
    assert ["refuses 16 rows" in line.note for line in session.report().emulated] == [False, True]


def test_operands_may_be_views():
    base = wide(64, 64, dtype=torch.bfloat16)
    a, b = base[1:25, ::2], base.t()[3:35, 10:30]
    with emulated():
        got = a @ b
    assert_same(got, product(a, b).bfloat16())


def test_bmm_expands_and_counts_the_batch():
    a, b = wide(3, 8, 48), wide(1, 48, 16, seed=1).expand(3, 48, 16)
    with emulated() as session:
        got = torch.bmm(a, b)
    assert_same(got, product(a, b).half())
    assert session.report().emulated[0].count == 3


@pytest.mark.parametrize("alpha, beta", [(1, 1), (0.37, 1), (1, 2.5), (-0.3, 0.7)])
def test_addmm_rounds_once_from_f32(alpha, beta):
    a, b, c = wide(16, 80), wide(80, 24, seed=1), wide(24, seed=2)
    with emulated():
        got = torch.addmm(c, a, b, alpha=alpha, beta=beta)
    f32 = np.float32
    want = array(product(a, b)) * f32(alpha) + array(c).astype(f32) * f32(beta)
    assert_same(got, tensor(want).half())


def test_beta_zero_does_not_read_c():
    c = torch.full((4, 8), float("nan"), dtype=torch.float16)
    with emulated():
        got = torch.addmm(c, random(4, 16), random(16, 8, seed=1), beta=0)
    assert_same(got, product(random(4, 16), random(16, 8, seed=1)).half())


def test_baddbmm_and_the_in_place_and_out_forms():
    a, b, c = wide(2, 8, 48), wide(2, 48, 16, seed=1), wide(2, 8, 16, seed=2)
    want = (product(a, b) + c.float()).half()
    place, out = c.clone(), torch.empty(0, dtype=torch.float16)
    with emulated() as session:
        assert_same(torch.baddbmm(c, a, b), want)
        assert place.baddbmm_(a, b) is place
        assert torch.baddbmm(c, a, b, out=out) is out
    assert_same(place, want)
    assert_same(out, want)
    assert sum(line.count for line in session.report().emulated) == 6


def test_addbmm_rounds_after_each_product_of_the_batch():
    a, b, c = wide(3, 8, 48), wide(3, 48, 16, seed=1), wide(8, 16, seed=2)
    total = c
    for left, right in zip(a, b, strict=True):
        total = (product(left, right) + total.float()).half()
    with emulated():
        assert_same(torch.addbmm(c, a, b), total)


def test_addmm_activation():
    a, b, c = wide(8, 32), wide(32, 16, seed=1), wide(16, seed=2)
    with emulated():
        got = torch.ops.aten._addmm_activation(c, a, b)
    assert_same(got, torch.relu(product(a, b) + c.float()).half())


def test_f16_accumulators_where_pytorch_allows_them():
    a, b = wide(16, 64), wide(64, 16, seed=1)
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    with emulated() as session:
        half, single = torch.mm(a, b), torch.mm(a, b, out_dtype=torch.float32)
        bf16 = a.bfloat16() @ b.bfloat16()
    assert_same(half, tensor(gemm(array(a), array(b), np.zeros((16, 16), np.float16), instruction="wgmma", arch="sm_90a"), torch.float16))
    assert_same(single, product(a, b))
    assert_same(bf16, product(a.bfloat16(), b.bfloat16()).bfloat16())
    assert {line.instruction.d_type.name for line in session.report().emulated} == {"f16", "f32"}
    assert not torch.equal(half, product(a, b).half())


def _by_precision():
    torch.set_float32_matmul_precision("high")


def _by_allow():
    torch.backends.cuda.matmul.allow_tf32 = True


def _by_setting():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("allow", [_by_precision, _by_allow, _by_setting])
def test_f32_is_tf32_where_pytorch_allows_it_and_skipped_otherwise(allow):
    a, b = wide(8, 32, dtype=torch.float32), wide(32, 8, dtype=torch.float32, seed=1)
    stock = a @ b
    with emulated() as session:
        assert_same(a @ b, stock)
        allow()
        assert_same(a @ b, product(a, b))
    report = session.report()
    assert [line.instruction.a_type.name for line in report.emulated] == ["tf32"]
    assert [(line.operation, line.count) for line in report.skipped] == [("mm", 1)]
    assert "CUDA cores" in report.skipped[0].reason


@pytest.mark.parametrize("shapes", [((0, 8), (8, 4)), ((4, 0), (0, 4))])
def test_empty_products(shapes):
    with emulated() as session:
        got = torch.zeros(shapes[0], dtype=torch.float16) @ torch.zeros(shapes[1], dtype=torch.float16)
    assert got.shape == (shapes[0][0], shapes[1][1]) and not got.any()
    assert session.report().emulated == ()


# Programs


def test_linear_matmul_and_einsum_arrive():
    x, w, bias = wide(2, 4, 32), wide(16, 32, seed=1), wide(16, seed=2)
    flat = x.reshape(8, 32)
    with emulated() as session:
        with_bias, without = F.linear(x, w, bias), F.linear(x, w)
        matmul, einsum = x @ w.t(), torch.einsum("bik,jk->bij", x, w)
        batched = torch.func.vmap(torch.mm)(x, torch.stack([w.t(), w.t()]))
    plain = product(flat, w.t()).half().reshape(2, 4, 16)
    assert_same(with_bias, (product(flat, w.t()) + bias.float()).half().reshape(2, 4, 16))
    for got in (without, matmul, einsum, batched):
        assert_same(got, plain)
    assert sum(line.count for line in session.report().emulated) == 6


def test_inference_mode_takes_composite_operators_apart():
    x, w, bias = wide(4, 32), wide(16, 32, seed=1), wide(16, seed=2)
    with emulated() as session, torch.inference_mode():
        linear, einsum = F.linear(x, w, bias), torch.einsum("ik,jk->ij", x, w)
        norm = F.layer_norm(x, (32,))
    assert_same(linear, (product(x, w.t()) + bias.float()).half())
    assert_same(einsum, product(x, w.t()).half())
    assert_same(norm, F.layer_norm(x, (32,)))
    assert len(session.report().emulated) == 2


def test_backward_inside_the_block_is_emulated():
    x, w1, w2 = (wide(*shape, dtype=torch.bfloat16, seed=seed).requires_grad_() for seed, shape in enumerate([(8, 32), (32, 16), (16, 24)]))
    upstream = wide(8, 24, dtype=torch.bfloat16, seed=9)
    with emulated() as session:
        hidden = torch.relu(x @ w1)
        (hidden @ w2).backward(upstream)
    h = torch.relu(product(x, w1).bfloat16())
    dh = product(upstream, w2.t()).bfloat16() * (h > 0)
    assert_same(w2.grad, product(h.t(), upstream).bfloat16())
    assert_same(w1.grad, product(x.t(), dh).bfloat16())
    assert_same(x.grad, product(dh, w1.t()).bfloat16())
    report = session.report()
    assert sum(line.count for line in report.emulated) == 6
    assert sum(line.count for line in report.emulated if "in backward" in line.site) == 4


def test_backward_outside_the_block_is_not():
    x, w = wide(8, 32).requires_grad_(), wide(32, 8, seed=1)
    with emulated() as session:
        y = x @ w
    with pytest.warns(UserWarning, match="the block had ended"):
        y.backward(torch.ones_like(y))
    assert_same(x.grad, torch.ones(8, 8, dtype=torch.float16) @ w.t())
    assert sum(line.count for line in session.report().emulated) == 1


def test_checkpoint_recomputes_emulated():
    from torch.utils.checkpoint import checkpoint

    x, w = wide(8, 32).requires_grad_(), wide(32, 8, seed=1)
    with emulated() as session:
        checkpoint(lambda x: torch.tanh(x @ w), x, use_reentrant=False).sum().backward()
    assert sum(line.count for line in session.report().emulated) == 3


def test_autocast():
    x, w = wide(4, 32, dtype=torch.float32), wide(32, 8, dtype=torch.float32, seed=1)
    with emulated(), torch.autocast("cpu", torch.bfloat16):
        got = x @ w
    assert_same(got, product(x.bfloat16(), w.bfloat16()).bfloat16())


@pytest.mark.parametrize("when", ["before", "inside"])
def test_compiled_functions_are_emulated(when):
    torch._dynamo.reset()
    x, w = wide(8, 32), wide(32, 8, seed=1)
    compiled = torch.compile(lambda x, w: torch.relu(x @ w), backend="aot_eager")
    if when == "before":
        compiled(x, w)
    with emulated() as session:
        got = compiled(x, w)
        again = compiled(x, w)
    want = torch.relu(product(x, w).half())
    assert_same(got, want)
    assert_same(again, want)
    assert sum(line.count for line in session.report().emulated) == 2
    assert_same(compiled(x, w), torch.relu(x @ w))


def test_tensor_subclasses_are_taken_apart():
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    a, b, w = wide(8, 32), wide(8, 32, seed=3), wide(32, 8, seed=1)
    with emulated() as session:
        got = two(a, b) @ w
    assert_same(got.a, product(a, w).half())
    assert_same(got.b, product(b, w).half())
    assert sum(line.count for line in session.report().emulated) == 2


def test_parameters_and_meta_tensors():
    w = torch.nn.Parameter(wide(32, 8))
    x = wide(4, 32, seed=1)
    with emulated() as session:
        assert_same(x @ w, product(x, w).half())
        assert (x.to("meta") @ w.to("meta")).shape == (4, 8)
    assert sum(line.count for line in session.report().emulated) == 1


# What is not emulated


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_matrix_times_a_vector_is_a_product_of_matrices(dtype):
    a, x, c = wide(24, 40, dtype=dtype), wide(40, dtype=dtype, seed=1), wide(24, dtype=dtype, seed=2)
    out = torch.empty(24, dtype=dtype)
    with emulated() as session:
        got, column, added = a @ x, (a @ x[:, None])[:, 0], torch.addmv(c, a, x, beta=0.5, alpha=2)
        as_matrix = torch.addmm(c[:, None], a, x[:, None], beta=0.5, alpha=2)[:, 0]
        torch.mv(a, x, out=out)
        in_place = c.clone().addmv_(a, x, beta=0.5, alpha=2)
        flat = torch.addmv(c[:1], a, x)
    assert_same(got, column)
    assert_same(out, got)
    assert_same(added, as_matrix)
    assert_same(in_place, added)
    assert flat.shape == (24,) and not session.report().skipped
    assert all(line.shape == "24 x 1 x 40" for line in session.report().emulated)
    for vector, addend in ((x[:-1], c), (x, c[:5])):
        with emulated(), pytest.raises(RuntimeError):
            torch.addmv(addend, a, vector)


def test_what_bypasses_is_reported():
    w, image = random(4, 4), random(1, 3, 8, 8, dtype=torch.float32)
    plain = w.float()
    calls = {
        "mv": lambda: plain @ plain[0],
        "addmv": lambda: torch.addmv(plain[0], plain, plain[0]),
        "dot": lambda: plain[0] @ plain[0],
        "convolution": lambda: F.conv2d(image, random(2, 3, 3, 3, dtype=torch.float32)),
        "mm": lambda: plain.to(torch.complex64) @ plain.to(torch.complex64),
        "mkldnn_rnn_layer": lambda: torch.nn.LSTM(4, 4)(plain),
        "_trilinear": lambda: F.bilinear(plain, plain, random(3, 4, 4, dtype=torch.float32)),
        "_sparse_addmm": lambda: torch.sparse.mm(plain.to_sparse(), plain),
    }
    for operation, call in calls.items():
        with emulated() as session:
            call()
        report = session.report()
        assert [line.operation for line in report.skipped] == [operation]
        assert report.emulated == () and "test_torch.py" in report.skipped[0].site


def test_convolution_backward_is_reported():
    image = random(1, 3, 8, 8, dtype=torch.float32).requires_grad_()
    with emulated() as session:
        F.conv2d(image, random(2, 3, 3, 3, dtype=torch.float32)).sum().backward()
    assert {line.operation for line in session.report().skipped} == {"convolution", "convolution_backward"}


def test_integer_products_do_not_exist_on_gpus():
    a = torch.ones(4, 4, dtype=torch.int32)
    with emulated() as session:
        assert (a @ a == 4).all()
    assert "torch.int32" in session.report().skipped[0].reason


def test_an_architecture_without_the_type_is_refused():
    x = random(16, 16, dtype=torch.bfloat16)
    with emulated("sm_75"), pytest.raises(EmulationError, match=r"mm at test_torch.py:\d+.*cannot be emulated for sm_75.*bf16"):
        x @ x


def test_too_weak_evidence_is_refused():
    with (
        emulated(require="recorded", library="chain"),
        pytest.raises(InsufficientEvidence, match="published evidence, but recorded is required"),
    ):
        random(4, 4) @ random(4, 4)


def test_pytorchs_own_errors_stay():
    with emulated(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        random(4, 4) @ random(5, 4)
    with emulated(), pytest.raises(RuntimeError, match="dtype"):
        random(4, 4) @ random(4, 4, dtype=torch.float32)


# The block


def test_sites_are_the_callers_lines():
    with emulated() as session:
        torch.nn.Linear(16, 16, dtype=torch.float16)(random(4, 16))
        for _ in range(3):
            random(4, 4) @ random(4, 4)
    sites = [line.site for line in session.report().emulated]
    assert sites[0].startswith("Linear: addmm at test_torch.py:") and sites[1].startswith("mm at test_torch.py:")
    first, second = (int(site.rpartition(":")[2]) for site in sites)
    assert second == first + 2
    assert session.report().emulated[1].count == 3
    assert "choice inferred: " in session.report().emulated[0].note


def test_other_threads_are_untouched():
    a, b = wide(8, 64), wide(64, 8, seed=1)
    stock, found = a @ b, []
    with emulated("sm_80") as session:
        thread = threading.Thread(target=lambda: found.append(a @ b))
        thread.start()
        thread.join()
    assert_same(found[0], stock)
    assert session.report().emulated == ()


def test_the_innermost_block_counts():
    a, b = wide(8, 64), wide(64, 8, seed=1)
    with emulated("sm_80") as outer:
        with emulated("sm_90a") as inner:
            assert_same(a @ b, product(a, b, "sm_90a").half())
            a.float() @ b.float()
        assert_same(a @ b, product(a, b, "sm_80").half())
    assert len(inner.report().emulated) == len(inner.report().skipped) == 1
    assert len(outer.report().emulated) == 1 and outer.report().skipped == ()


def test_everything_is_restored_after_an_error():
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    def state():
        cuda = torch.backends.cuda
        return (
            len(_get_current_dispatch_mode_stack()),
            cuda.fp16_bf16_reduction_math_sdp_allowed(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    before, a = state(), wide(8, 64)
    with pytest.raises(ZeroDivisionError), emulated(), emulated("sm_80"):
        assert state() != before
        raise ZeroDivisionError
    assert state() == before
    assert_same(a @ a.t(), torch.mm(a, a.t()))
    with emulated(), pytest.raises(RuntimeError, match="multiplied"):
        a @ a
    assert state() == before


def test_results_requiring_grad_and_versions():
    x = wide(4, 16).requires_grad_()
    with emulated():
        y = x @ wide(16, 4, seed=1)
    assert y.requires_grad and y.grad_fn is not None and y.device == x.device


def test_the_examples_of_the_document_run(capsys):
    document = Path(__file__).resolve().parents[2] / "docs" / "torch.md"
    if not document.is_file():
        pytest.skip("docs/torch.md is not here")
    examples = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    example = "\n".join(examples).replace('"sm_90a"', '"sm_90a", frameworks=["torch"]')
    exec(compile(example, "example.py", "exec"), {})
    printed = capsys.readouterr().out
    assert "mm at example.py:7" in printed and "_grouped_mm at example.py" in printed and "Undefined on a GPU" in printed


@pytest.mark.parametrize("version", ["2.8.0", "1.13.1", "3.0.0", "unknown"])
def test_versions_that_the_hook_is_not_made_for_are_refused(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(EmulationError, match=f"PyTorch {version} is not emulated; the versions are 2.9 to 2.13"), emulate("sm_90a"):
        pytest.fail("entered")


@pytest.mark.parametrize("version", ["2.9.0", "2.13.0+cu130"])
def test_versions_that_the_hook_is_made_for_are_taken(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with emulate("sm_90a") as session:
        assert session.report().skipped == ()


def test_a_newer_version_is_emulated_with_a_warning(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    a, b = torch.ones(16, 16, dtype=torch.float16), torch.ones(16, 8, dtype=torch.float16)
    with pytest.warns(NotEmulated, match=r"PyTorch 2\.14\.1 is newer than 2\.13, the last that emulate was made for"):  # noqa: SIM117
        with emulate("sm_90a", frameworks=["torch"]) as session:
            assert torch.equal(a @ b, torch.full((16, 8), 16.0, dtype=torch.float16))
    report = session.report()
    assert len(report.emulated) == 1
    assert [(each.operation, each.count) for each in report.skipped] == [("torch", 1)]


def test_what_a_changed_version_lacks_is_named(monkeypatch):
    """As where a private part has moved: `mode` is then imported anew, and fails."""
    monkeypatch.delitem(sys.modules, "mmabits.emulator.hooks.torch.mode")
    monkeypatch.setattr(torch.utils._python_dispatch, "TorchDispatchMode", None)
    monkeypatch.delattr(torch.utils._python_dispatch, "TorchDispatchMode")
    with pytest.raises(EmulationError, match=rf"PyTorch {re.escape(torch.__version__)} lacks .*TorchDispatchMode"), emulate("sm_90a"):
        pytest.fail("entered")


def test_the_extra_installs_the_first_version_that_the_hook_is_made_for():
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["torch"] == [f"torch>={VERSIONS[0][0]}.{VERSIONS[0][1]}"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_is_the_gpus_wherever_it_comes_from(dtype):
    a, b = torch.ones(4, 32, dtype=dtype), torch.ones(32, 8, dtype=dtype)
    a[1, 3], b[5, 2], b[6, 2] = float("nan"), float("inf"), float("-inf")
    bias = torch.zeros(8, dtype=dtype)
    bias[7] = float("nan")
    with emulated():
        got, added, huge = a @ b, torch.addmm(bias, a, b), torch.full((1, 16), 2.0**15, dtype=dtype) @ torch.eye(16, dtype=dtype)
    code = {torch.float16: 0x7FFF, torch.bfloat16: 0x7FFF}[dtype]
    nan = torch.zeros(4, 8, dtype=torch.bool)
    nan[1], nan[:, 2] = True, True
    assert torch.equal(got.view(torch.int16) == code, nan) and torch.equal(got.isnan(), nan)
    nan[:, 7] = True
    assert torch.equal(added.view(torch.int16) == code, nan)
    assert torch.equal(huge, torch.full((1, 16), 2.0**15, dtype=dtype))  # whose sum is no number of the type


def test_c_that_does_not_broadcast_is_pytorchs_own_error():
    a, b = random(4, 32), random(32, 8)
    for c in (random(4, 4), random(1, 4, 8), random(3, 8)):
        with emulated() as session, pytest.raises(RuntimeError):
            torch.addmm(c, a, b)
        assert not session.report().emulated


def test_pytorchs_threads_rest_while_the_engine_computes(monkeypatch):
    """Where it is GNU's OpenMP and the product is large; nothing happens for small ones, and without it."""
    asked = []
    monkeypatch.setattr(openmp, "_pause", lambda: asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    openmp.rest(100)
    assert asked == []
    openmp.rest(1 << 30)
    assert asked == [1]
    monkeypatch.setattr(openmp, "_pause", lambda: None)
    openmp.rest(1 << 30)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the library by /proc")
def test_openmp_ends_its_threads():
    code = (
        "import torch; from mmabits.emulator.hooks.torch import openmp; torch.set_num_threads(2); x = torch.ones(1 << 20)\n"
        "assert (x + 1).sum() == 1 << 21; openmp.rest(1 << 30); assert (x + 1).sum() == 1 << 21; print(openmp._pause() is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "False")
