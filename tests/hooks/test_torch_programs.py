"""Parts of PyTorch that do more with operators than to call them, inside a block: graphs, shapes alone, sharded and nested tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmabits import gemm  # noqa: E402
from mmabits.emulator.hooks.session import NotEmulated, emulate  # noqa: E402

F = torch.nn.functional
BF16 = torch.bfloat16


def emulated(**options: Any) -> Any:
    return emulate("sm_90a", frameworks=["torch"], **options)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def counted(session: Any) -> int:
    return sum(line.count for line in session.report().emulated)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A process group of this process alone."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed, not in use")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_memory_can_be_resized_after_a_product() -> None:
    """FSDP frees and fills the storage of parameters all the time."""
    a = random(8, 16)
    with emulated():
        a @ a.T
    a.untyped_storage().resize_(0)
    assert a.untyped_storage().size() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_grouped_queries(causal: bool) -> None:
    """Fewer heads of keys and values than of queries: each serves several."""
    query, key, value = random(2, 6, 9, 32), random(2, 2, 9, 32, seed=1), random(2, 2, 9, 32, seed=2)
    sides = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    repeated = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    with emulated() as session:
        got = F.scaled_dot_product_attention(*sides, is_causal=causal, enable_gqa=True)
        got.backward(torch.ones_like(got))
        whole = [repeated[0], *(side.repeat_interleave(3, dim=1) for side in repeated[1:])]
        want = F.scaled_dot_product_attention(*whole, is_causal=causal)
        want.backward(torch.ones_like(want))
    assert torch.equal(got, want) and all(torch.equal(one.grad, other.grad) for one, other in zip(sides, repeated, strict=True))
    assert counted(session) > 0 and not session.report().skipped


@pytest.mark.parametrize("kind", ["plain", "heads_last", "cut"])
def test_attention_lies_in_memory_as_without_a_block(kind: str) -> None:
    def sides() -> list[Any]:
        plain = random(2, 4, 16, 32)
        shown = {"plain": plain, "heads_last": plain.transpose(1, 2).contiguous().transpose(1, 2), "cut": plain[..., :24]}[kind]
        return [shown.detach().requires_grad_() for _ in range(3)]

    def strides(inputs: list[Any]) -> list[Any]:
        output = F.scaled_dot_product_attention(*inputs)
        output.backward(torch.ones_like(output))
        return [output.stride(), *(side.grad.stride() for side in inputs)]

    want = strides(sides())
    with emulated():
        assert strides(sides()) == want


def test_training_through_compiled_attention() -> None:
    def layer(x: Any) -> Any:
        heads = x.view(2, 16, 4, 16).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(2, 16, 64)

    x, y = (random(2, 16, 64).requires_grad_() for _ in range(2))
    with emulated() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(layer)(x)
        compiled.sum().backward()
        eager = layer(y)
        eager.sum().backward()
    assert torch.equal(compiled, eager) and torch.allclose(x.grad, y.grad, atol=0.05)  # fused sums are rounded elsewhere
    assert "in backward" in " ".join(line.site for line in session.report().emulated)


def test_export_inside_a_block_makes_the_graph_of_the_operators() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)).to(BF16), random(4, 16)
    with emulated() as session:
        graph = torch.export.export(model, (x,)).module()
        assert counted(session) == 0
        assert torch.equal(graph(x), model(x))
        assert counted(session) == 4


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_make_fx_keeps_the_products_in_its_graph(tracing: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(a: Any) -> Any:
        return (a @ a.T).relu()

    a, b = random(8, 32), random(8, 32, seed=1)
    with emulated() as session:
        graph = make_fx(function, tracing_mode=tracing)(a)
        assert "mm" in graph.code and counted(session) == 0
        assert torch.equal(graph(b), function(b)) and counted(session) == 2


@pytest.mark.parametrize("inner", ["block", "shapes"])
def test_shapes_alone(inner: str) -> None:
    from contextlib import ExitStack

    from torch._subclasses import FakeTensorMode

    with ExitStack() as stack:
        session = stack.enter_context(emulated()) if inner == "shapes" else None
        stack.enter_context(FakeTensorMode())
        session = session or stack.enter_context(emulated())
        a = torch.empty(8, 16, dtype=BF16)
        assert (a @ a.T).shape == (8, 8) and F.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None]).shape == (
            1,
            1,
            8,
            16,
        )
        assert counted(session) == 0


def test_sharded_tensors(one_process: None) -> None:
    tensor = pytest.importorskip("torch.distributed.tensor")
    a, b = random(16, 32), random(32, 16, seed=1)
    mesh = tensor.init_device_mesh("cpu", (1,)) if hasattr(tensor, "init_device_mesh") else torch.distributed.init_device_mesh("cpu", (1,))
    with emulated() as session:
        got = tensor.distribute_tensor(a, mesh, [tensor.Shard(0)]) @ tensor.distribute_tensor(b, mesh, [tensor.Replicate()])
        assert isinstance(got, tensor.DTensor) and torch.equal(got.to_local(), a @ b)
    assert counted(session) == 2


def test_fully_sharded_training(one_process: None) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("needs FSDP2")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).to(BF16)
    import copy

    plain, x = copy.deepcopy(model), random(4, 32)
    for layer in model:
        fsdp.fully_shard(layer)
    fsdp.fully_shard(model)
    results = []
    with emulated() as session:
        for trained in (model, plain):
            optimizer = torch.optim.SGD(trained.parameters(), 0.1)
            for _ in range(2):
                trained(x).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            results.append(trained(x))
    assert torch.equal(*results)
    assert not [line for line in session.report().skipped if "thread" not in line.site]


def test_eager_flex_attention() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    query = random(1, 2, 32, 64)
    with emulated() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = flex.flex_attention(query, query, query, score_mod=lambda score, b, h, q, k: score + (q - k))
    assert got.shape == query.shape
    assert any("flex_attention" in line.site for line in session.report().emulated)


def test_conditions_are_looked_into() -> None:
    a, b = random(8, 16), random(16, 8, seed=1)
    with emulated() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.cond(torch.tensor(True), lambda x, y: x @ y, lambda x, y: (x + x) @ y, (a, b))
        assert torch.equal(got, a @ b)
    assert counted(session) == 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_products_of_their_parts() -> None:
    """Torch's kernels for them: a linear layer is one product over the rows of all parts, bmm one for each."""
    parts = [random(3, 16), random(5, 16, seed=1)]
    weight, nested = random(16, 16, seed=2).requires_grad_(), torch.nested.nested_tensor(parts, requires_grad=True)
    columns = torch.nested.nested_tensor([random(16, 5), random(16, 7)])
    with emulated() as session:
        got = F.linear(nested, weight)
        assert all(torch.equal(one, F.linear(part, weight)) for one, part in zip(got.unbind(), parts, strict=True))
        assert session.report().emulated[0].m == 8
        got.to_padded_tensor(0).sum().backward()
        each = torch.bmm(nested, columns)
        assert all(torch.equal(one, a @ b) for one, a, b in zip(each.unbind(), nested.unbind(), columns.unbind(), strict=True))
    ones = np.ones((8, 16), np.float32)
    want = gemm(
        ones.T.astype("bfloat16"),
        np.concatenate([part.float().numpy() for part in parts]).astype("bfloat16"),
        instruction="wgmma",
        arch="sm_90a",
    )
    assert np.array_equal(weight.grad.float().numpy(), want.astype("bfloat16").astype(np.float32))
    assert not session.report().skipped


def test_backward_after_the_block_is_said() -> None:
    weight, x = random(16, 16, seed=1).requires_grad_(), random(4, 16)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).to(BF16)
    with emulated() as session:
        inside = (x @ weight).sum()
        inside.backward()
        loss = model(x @ weight).sum()
    assert not session.report().skipped
    with pytest.warns(
        NotEmulated, match=r"2: addmm in backward at test_torch_programs.py:\d+: the block had ended.*call backward inside of it"
    ) as told:
        loss.backward()
    assert len(told) == 1
    lines = session.report().skipped
    assert [line.site.partition(" at ")[0] for line in lines] == ["2: addmm in backward", "0: addmm in backward", "mm in backward"]
    assert all("the block had ended" in line.reason for line in lines)
    with emulated():  # another block's tensor cores
        loss = (x @ weight).sum()
    with emulated() as other, warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.backward()
    assert counted(other) == 1


@pytest.fixture(scope="module")
def own_operators() -> Any:
    """Operators that a program defines: of PyTorch's, of NumPy's, and as kernels of a library."""
    library = torch.library.Library("mmabits_test", "DEF")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda a, b: a @ b, "CompositeExplicitAutograd")
    library.define("fused_gemv(Tensor a, Tensor b) -> Tensor")
    library.impl("fused_gemv", lambda a, b: torch.from_numpy(a.numpy() @ b.numpy()), "CPU")
    library.define("hidden(Tensor a, Tensor b) -> Tensor")
    library.impl("hidden", lambda a, b: torch.from_numpy(a.numpy() @ b.numpy()), "CPU")

    @torch.library.custom_op("mmabits_test::doubled", mutates_args=())
    def doubled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a + a) @ b

    yield torch.ops.mmabits_test
    library._destroy()


def test_operators_of_the_program(own_operators: Any) -> None:
    a, b = random(8, 16), random(16, 4, seed=1)
    with emulated() as session:
        assert torch.equal(own_operators.product(a, b), a @ b) and torch.equal(own_operators.doubled(a, b), (a + a) @ b)
        assert counted(session) == 4 and not session.report().skipped
        assert session.report().share == 1 and session.report().multiply_adds == 4 * 8 * 16 * 4
        own_operators.hidden(a.float(), b.float())
        own_operators.fused_gemv(a.float(), b.float())
    hidden, gemv = session.report().skipped
    assert hidden.operation == "mmabits_test::hidden" and "past PyTorch's operators is not seen" in hidden.reason
    assert gemv.operation == "mmabits_test::fused_gemv" and gemv.reason == "a matrix product that the emulator does not know"
    assert hidden.multiply_adds is None and "2 lines below of unknown size" in str(session.report())
    assert "mm of mmabits_test::product at test_torch_programs.py" in session.report().emulated[0].site


def test_multiply_adds_that_are_not_emulated_are_counted() -> None:
    a, b = random(8, 16), random(16, 4, seed=1)
    wanted = {
        "mm": (lambda: a.float() @ b.float(), 8 * 16 * 4),
        "mv": (lambda: torch.mv(a.float(), b[:, 0].float()), 8 * 16),
        "dot": (lambda: torch.dot(a[0], b[:, 0]), 16),
        "convolution": (lambda: F.conv1d(a.float()[None], torch.ones(5, 8, 3)), 5 * 8 * 3 * 14),
        "_scaled_dot_product_flash_attention_for_cpu": (
            lambda: F.scaled_dot_product_attention(*[torch.ones(2, 3, 10, 16)] * 3), 2 * 3 * 10 * 10 * 32,
        ),
    }  # fmt: skip
    for name, (compute, size) in wanted.items():
        with emulated() as session:
            compute()
            a @ b
        (line,) = session.report().skipped
        assert (line.operation, line.multiply_adds) == (name, size)
        assert session.report().share == 512 / (512 + size)
        assert f"{size:,}" in str(session.report()) and "512 multiply-adds emulated" in str(session.report())


class Block(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(16, 32, dtype=BF16), torch.nn.Linear(32, 16, dtype=BF16)

    def forward(self, x: Any) -> Any:
        return x + self.down(torch.relu(self.up(x))) @ x.T @ x


def test_sites_are_paths_of_modules() -> None:
    model, x = torch.nn.ModuleDict({"layers": torch.nn.Sequential(Block(), Block())})["layers"], random(4, 16)
    with emulated() as session:
        model(x).sum().backward()
    sites = [line.site.partition(" at ")[0] for line in session.report().emulated]
    wanted = [f"{layer}{part}" for layer in (0, 1) for part in (".up: addmm", ".down: addmm", ": mm", ": mm")]
    assert [site for site in sites if "backward" not in site] == wanted
    assert {site.partition(":")[0] for site in sites if "backward" in site} == {f"{n}{p}" for n in (0, 1) for p in (".up", ".down", "")}


def test_the_report_of_a_growing_cache_is_one_row_and_json() -> None:
    import json

    query = random(1, 16)
    with emulated() as session:
        for length in range(16, 64, 8):
            query @ random(16, length)
        query @ random(16, 8)
    text, data = str(session.report()), json.loads(session.report().json())
    assert "1 x 16..56 x 16" in text and text.count("wgmma") == 2
    assert "100% published" in text and data["share"] == 1 and data["evidence"] == {"published": 1.0}
    assert [line["n"] for line in data["emulated"]] == [*range(16, 64, 8), 8] and data["multiply_adds"] == 16 * (sum(range(16, 64, 8)) + 8)


def test_the_largest_rows_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.emulator.hooks import condensed

    with emulated() as session:
        for size in (8, 64, 16, 32):
            random(size, size) @ random(size, size)
    found = condensed.rows(session.report().emulated)
    kept, words = condensed.largest(found, 2)
    assert [row.shape for row in kept] == ["64 x 64 x 64", "32 x 32 x 32"] and words == "2 rows more with 1.5% of the multiply-adds"
    assert condensed.largest(found, 4) == (found, "")


class Unhashable(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A module that is compared by what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(16, 16, dtype=BF16)
        self.unlisted = [torch.nn.Linear(16, 16, dtype=BF16) for _ in range(2)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    __hash__ = None  # type: ignore[assignment]

    def forward(self, values: Any) -> Any:
        for layer in (self.up, *self.unlisted):
            values = layer(values)
        return values


def test_modules_that_are_not_hashable_and_modules_in_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths of a model are looked for once for every module that it does not list, not at every call of one."""
    from mmabits.emulator.hooks.torch import calls

    searched: list[Any] = []
    stock = calls._paths
    monkeypatch.setattr(calls, "_paths", lambda model: (searched.append(model), stock(model))[1])
    model = Unhashable()
    with emulated() as session:
        for _ in range(3):
            model(random(8, 16))
    assert {line.site.partition(":")[0] for line in session.report().emulated} == {"up", "Linear"} and len(searched) == 3
    del model, searched[:]
    assert all(held() is not None for held, _ in calls._PATHS.values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_sites_in_checkpoints(reentrant: bool) -> None:
    """What a checkpoint computes anew stands under the modules that compute it, not under the one whose gradient asked for it."""
    from torch.utils.checkpoint import checkpoint

    parts = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)).to(BF16) for _ in range(2))

    class Checkpointed(torch.nn.Module):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.parts = parts

        def forward(self, values: Any) -> Any:
            for part in self.parts:
                values = checkpoint(part, values, use_reentrant=reentrant)
            return values

    model = Checkpointed()
    with emulated() as session:
        model(random(8, 16).requires_grad_()).float().sum().backward()
    for line in session.report().emulated:
        up = line.site.partition(":")[0] in ("parts.0.0", "parts.1.0")
        assert line.site.startswith("parts.")
        if "addmm" in line.site:
            assert (line.n, line.k) == ((32, 16) if up else (16, 32)), line


def test_a_backward_pass_that_breaks_off_leaves_no_module_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.emulator.hooks.torch import products

    model, values, stock = torch.nn.Linear(16, 16, dtype=BF16), random(8, 16), products._matmul

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken off")

    with emulated() as session:
        result = model(values).sum()
        monkeypatch.setattr(products, "_matmul", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            result.backward()
        monkeypatch.setattr(products, "_matmul", stock)
        values @ values.T
    assert [line.site.partition(" at ")[0] for line in session.report().emulated] == ["Linear: addmm", "mm"]


def test_a_backward_pass_in_another_block_and_of_gradients_keeps_modules() -> None:
    model, values = torch.nn.Linear(16, 16, dtype=BF16), random(8, 16).requires_grad_()
    with emulate("sm_80", frameworks=["torch"]) as outer:
        with emulated() as inner:
            result = torch.tanh(model(values)).sum()
        (gradient,) = torch.autograd.grad(result, values, create_graph=True)
        gradient.pow(2).sum().backward()
    assert not outer.report().skipped and counted(inner) == 1
    assert {line.site.partition(" at ")[0] for line in outer.report().emulated} == {"Linear: mm in backward"}


class Squared(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """A function with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, values: Any) -> Any:
        ctx.save_for_backward(values)
        return values @ values

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (values,) = ctx.saved_tensors
        return gradient @ values.T + values.T @ gradient


@pytest.mark.parametrize("kind", ["function", "compiled"])
def test_backward_of_functions_after_the_block_is_said(kind: str) -> None:
    """The products of such functions, and of compiled code, are made without gradients."""
    function = Squared.apply if kind == "function" else torch.compile(lambda values: values @ values, backend="aot_eager")
    values = random(16, 16).requires_grad_()
    with emulated() as session:
        function(values).sum().backward()
        result = function(values)
    assert not [line for line in session.report().skipped if "Backward" in line.site]
    with pytest.warns(NotEmulated, match="call backward inside of it"):
        result.sum().backward()
    (line,) = [line for line in session.report().skipped if "Backward" in line.site]
    assert line.operation == "what it multiplies, if anything" and line.count == 1


def test_operators_of_the_program_on_sparse_and_listed_tensors() -> None:
    """The kernel for sparse tensors is another than that for the CPU; lists of tensors are operands too."""
    with torch.library._scoped_library("mmabits_odd", "DEF") as library:
        library.define("dense(Tensor values) -> Tensor")
        library.impl("dense", lambda values: values.to_dense() * 2, "SparseCPU")
        library.impl("dense", lambda values: values * 3, "CPU")
        library.define("listed(Tensor[] values) -> Tensor[]")
        library.impl("listed", lambda values: [each @ each for each in values], "CPU")
        library.impl("listed", lambda values: [torch.empty_like(each) for each in values], "Meta")
        values = random(16, 16)
        with emulated() as session:
            assert torch.equal(torch.ops.mmabits_odd.dense(values.to_sparse()), values * 2)
            torch.ops.mmabits_odd.listed([values, values])
            assert torch.ops.mmabits_odd.listed([values.to("meta")])[0].is_meta
    assert counted(session) == 2 and "sparse" in session.report().skipped[0].reason


class _SetUpApart(torch.autograd.Function):
    @staticmethod
    def forward(x, w):
        return (x @ w).relu()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w.T, x.T @ gradient


class _Inherited(_SetUpApart):
    pass


@pytest.mark.parametrize("function", [_SetUpApart, _Inherited])
def test_functions_with_a_set_up_of_their_own_say_that_their_backward_comes_late(function: Any) -> None:
    x, w = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    x, w = x.bfloat16(), w.bfloat16()
    held = dict(vars(function))
    with emulated() as session:
        y = function.apply(x, w)
        inside = function.apply(x, w)
        inside.sum().backward()
    assert dict(vars(function)) == held
    assert "backward" not in " ".join(line.operation for line in session.report().skipped)
    with pytest.warns(NotEmulated, match="the block had ended"):
        y.sum().backward()
    assert any("Backward" in line.site for line in session.report().skipped)


def test_what_vjp_returns_says_that_it_comes_late() -> None:
    x, w = torch.randn(8, 8).bfloat16(), torch.randn(8, 8).bfloat16()
    stock = torch._functorch.eager_transforms._vjp_with_argnums
    with emulated() as session:
        out, pull = torch.func.vjp(lambda x, w: x @ w, x, w)
        _, nothing, held = torch.func.vjp(lambda x: (x * 2, x), x, has_aux=True)
        pull(out)
        gradient = torch.func.grad(lambda x: (x @ w).float().sum())(x)
    assert counted(session) == 5 and not session.report().skipped and gradient.shape == held.shape
    assert torch._functorch.eager_transforms._vjp_with_argnums is stock
    with pytest.warns(NotEmulated, match="torch.func.vjp in backward"):
        pull(out)
    pull(out)  # one warning
    nothing(x)  # which has multiplied nothing
    assert [line.operation for line in session.report().skipped] == ["what it multiplies, if anything"] * 2
