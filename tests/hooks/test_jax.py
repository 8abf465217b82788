"""JAX programs inside `emulate`: every way in which a product arises, JAX's caches, the report, and everything as before afterwards."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.hooks.session import NotEmulated
from mmabits.isa import EmulationError, InsufficientEvidence

jax = pytest.importorskip("jax", reason="needs the jax extra")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax.experimental import pallas as pl  # noqa: E402

from mmabits.emulator.hooks.jax import account, flag, handler, rules  # noqa: E402

Array = np.ndarray[Any, Any]
F8 = ml_dtypes.float8_e4m3fn
HOPPER = "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3"


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    """After each test JAX's rules are the very objects that they were, and no block is open."""
    before = (dict(mlir._platform_specific_lowerings["cpu"]), set(mlir._uncacheable_primitives))
    yield
    assert (dict(mlir._platform_specific_lowerings["cpu"]), set(mlir._uncacheable_primitives)) == before
    assert not account.is_open() and flag._VALUE.value is None


def emulate(arch: str = "sm_90a", **options: Any) -> Any:
    return mmabits.emulate(arch, frameworks=["jax"], **options)


def draw(*shape: int, seed: int = 0, dtype: Any = F8) -> Array:
    """Normal numbers in a type, with a few large ones, so that every kind of rounding shows."""
    rng = np.random.default_rng([seed, *shape])
    values = rng.standard_normal(shape) * np.where(rng.random(shape) < 0.05, 40.0, 1.0)
    return values.astype(np.float32).astype(dtype)


def gemm(a: Any, b: Any, arch: str = "sm_90a", instruction: str = "wgmma", **options: Any) -> Array:
    found: Array = mmabits.gemm(np.asarray(a), np.asarray(b), instruction=instruction, arch=arch, **options)
    return found


def same(got: Any, want: Any) -> bool:
    left, right = np.ascontiguousarray(got), np.ascontiguousarray(want)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def dot(a: Any, b: Any) -> Any:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


A, B = draw(20, 70), draw(70, 12, seed=1)
EMULATED = gemm(A, B)
STOCK = np.asarray(dot(A, B))


def test_stock_and_emulated_results_differ() -> None:
    """Else no test below could tell them apart."""
    assert not same(EMULATED, STOCK) and not same(EMULATED, gemm(A, B, "sm_100a", "tcgen05.mma"))


# ------------------------------------------------------------------------------------------------ how products arise


def in_while(a: Any, b: Any) -> Any:
    return lax.while_loop(lambda state: state[0] < 1, lambda state: (state[0] + 1, dot(a, b)), (0, jnp.zeros((20, 12))))[1]


def in_scan(a: Any, b: Any) -> Any:
    return lax.scan(lambda carry, x: (carry, dot(x, b)), 0, a.reshape(2, 10, 70))[1].reshape(20, 12)


def through_custom_vjp(a: Any, b: Any) -> Any:
    product = jax.custom_vjp(dot)
    product.defvjp(lambda a, b: (dot(a, b), None), lambda _, g: (g, g))
    return product(a, b)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "eager": dot,
    "jit": jax.jit(dot),
    "jit in jit": jax.jit(lambda a, b: jax.jit(dot)(a, b)),
    "jnp.matmul": partial(jnp.matmul, preferred_element_type=jnp.float32),
    "einsum": partial(jnp.einsum, "mk,kn->mn", preferred_element_type=jnp.float32),
    "einsum, B transposed": lambda a, b: jnp.einsum("mk,nk->mn", a, b.T, preferred_element_type=jnp.float32),
    "tensordot": partial(jnp.tensordot, axes=1, preferred_element_type=jnp.float32),
    "vmap over rows": jax.vmap(lambda row, b: dot(row[None], b)[0], in_axes=(0, None)),
    "vmap over columns": jax.vmap(lambda a, column: dot(a, column[:, None])[:, 0], in_axes=(None, 1), out_axes=1),
    "scan": jax.jit(in_scan),
    "while": jax.jit(in_while),
    "cond": jax.jit(lambda a, b: lax.cond(a.shape[0] > 0, dot, lambda a, b: jnp.zeros((20, 12)), a, b)),
    "switch": jax.jit(lambda a, b: lax.switch(jnp.argmax(b[0]) * 0 + 1, [lambda a, b: jnp.zeros((20, 12)), dot], a, b)),
    "map": jax.jit(lambda a, b: lax.map(lambda row: dot(row[None], b)[0], a)),
    "fori": jax.jit(lambda a, b: lax.fori_loop(0, 2, lambda _, d: dot(a, b) + 0 * d, jnp.zeros((20, 12)))),
    "custom_vjp": jax.jit(through_custom_vjp),
    "checkpoint": jax.jit(jax.checkpoint(dot)),
    "linearize": lambda a, b: jax.linearize(lambda scale: dot(a, b) * scale, 1.0)[0],
    "disable_jit": lambda a, b: jax.disable_jit()(dot)(a, b),
}


@pytest.mark.parametrize("way", WAYS)
def test_products_however_they_arise(way: str) -> None:
    """Outside, inside, outside again: the very same function object, which JAX caches each time."""
    function = WAYS[way]
    a, b = jnp.asarray(A), jnp.asarray(B)
    stock = np.asarray(function(a, b))
    with emulate():
        inside, again = np.asarray(function(a, b)), np.asarray(function(a, b))
    assert same(inside, EMULATED) and same(again, EMULATED)
    assert same(function(a, b), stock) and not same(stock, EMULATED)


def test_gradients() -> None:
    """Autodiff stays JAX's own; the products that it makes are emulated like any other."""
    x, w, g = draw(9, 40, dtype=np.float16), draw(40, 7, seed=1, dtype=np.float16), draw(9, 7, seed=2, dtype=np.float32)
    loss = jax.jit(jax.grad(lambda w, x: (dot(x, w) * g).sum()))
    stock = np.asarray(loss(w, x))
    with emulate("sm_80"):
        got = loss(w, x)
        hessian_free = jax.jvp(lambda w: dot(x, w), (jnp.asarray(w),), (jnp.asarray(w),))[1]
    # d loss / dw = g^T x, transposed: JAX keeps the result in f16, and multiplies f32 by f16 as f32, on NVIDIA GPUs as tf32
    want = gemm(g.T, x.astype(np.float32), "sm_80", "mma.sync").astype(np.float16).T
    assert same(got, want) and not same(got, stock)
    assert same(hessian_free, gemm(x, w, "sm_80", "mma.sync"))


def test_rows_of_a_batch_and_dimensions_in_any_order() -> None:
    a, b = draw(3, 8, 2, 16), draw(16, 5, 3, 2, seed=1)
    numbers = (((3, 2), (0, 3)), ((0,), (2,)))
    flat_a, flat_b = a.transpose(0, 1, 3, 2).reshape(3, 8, 32), b.transpose(2, 0, 3, 1).reshape(3, 32, 5)
    with emulate() as session:
        got = lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)
        (line,) = session.report().emulated
    assert same(got, gemm(flat_a, flat_b))
    assert (line.m, line.n, line.k, line.count) == (8, 5, 32, 3)


def test_ragged_dot() -> None:
    """By JAX's own expansion: K becomes pairs of an element and a group, zeros where a row is of another group."""
    a, b = draw(10, 16, dtype=ml_dtypes.bfloat16), draw(2, 16, 6, seed=1, dtype=ml_dtypes.bfloat16)
    with emulate() as session:
        got = lax.ragged_dot(a, b, np.array([4, 6], np.int32), preferred_element_type=jnp.float32)
        (line,) = session.report().emulated
    wide = np.zeros((10, 16, 2), ml_dtypes.bfloat16)
    wide[:4, :, 0], wide[4:, :, 1] = a[:4], a[4:]
    assert same(got, gemm(wide.reshape(10, 32), b.transpose(1, 0, 2).reshape(32, 6))) and line.shape == "10 x 6 x 32"


# ---------------------------------------------------------------------------------------------------------- JAX's caches


def test_blocks_nest_and_the_innermost_counts() -> None:
    function = jax.jit(dot)
    blackwell = gemm(A, B, "sm_100a", "tcgen05.mma")
    with emulate() as outer:
        assert same(function(A, B), EMULATED)
        with emulate("sm_100a") as inner:
            assert same(function(A, B), blackwell) and same(function(A, B), blackwell)
        assert same(function(A, B), EMULATED)
        with emulate() as alike:
            assert same(function(A, B), EMULATED)
        assert [line.count for line in outer.report().emulated] == [2]
    assert [line.count for line in inner.report().emulated] == [2]
    assert [line.count for line in alike.report().emulated] == [1]
    assert [line.count for line in outer.report().emulated] == [2]
    assert same(function(A, B), STOCK)


def test_a_later_block_runs_what_an_earlier_one_compiled_and_counts_it() -> None:
    function = jax.jit(dot)
    with emulate():
        function(A, B).block_until_ready()  # else it may run, and count, in a later block
    sites = len(handler._SITES)
    for _ in range(2):
        with emulate() as session:
            assert same(function(A, B), EMULATED)
        assert [line.count for line in session.report().emulated] == [1]
    assert len(handler._SITES) == sites


def test_a_block_inside_one_of_its_kind_runs_the_same_programs() -> None:
    function = jax.jit(dot)
    with emulate() as outer:
        function(A, B).block_until_ready()  # else it may run, and count, inside the next block
        sites = len(handler._SITES)
        with emulate("sm_100a"), emulate() as inner:
            assert same(function(A, B), EMULATED)
        assert same(function(A, B), EMULATED)
    assert len(handler._SITES) == sites
    assert [[line.count for line in session.report().emulated] for session in (outer, inner)] == [[2], [1]]


def test_programs_compiled_ahead_of_time_are_emulated_in_their_block_only() -> None:
    with emulate():
        lowered = jax.jit(dot).lower(A, B)
    compiled, stock = lowered.compile(), jax.jit(dot).lower(A, B).compile()
    with pytest.raises(Exception, match="mmabits: a program compiled inside an emulate block is called after the block"):
        jax.block_until_ready(compiled(A, B))
    with emulate() as session:
        assert same(compiled(A, B), EMULATED)
        with emulate("sm_100a"), pytest.raises(EmulationError, match="in an emulate block for sm_90a is called by another for sm_100a"):
            compiled(A, B)
        with pytest.warns(NotEmulated, match=r"test_jax.py:\d+\): a program's products, if any: compiled ahead of time outside the block"):
            assert same(stock(A, B), STOCK)
        assert same(stock(A, B), STOCK)
        assert [(line.operation, line.count) for line in session.report().skipped] == [("a program's products, if any", 1)] * 2  # two lines
        assert [line.count for line in session.report().emulated] == [1]
    assert same(stock(A, B), STOCK)
    with emulate() as session:
        pass
    assert session.report().emulated == ()


def test_a_program_lowered_outside_and_compiled_inside_is_not_emulated() -> None:
    lowered = jax.jit(dot).lower(A, B)
    with emulate(), pytest.warns(NotEmulated, match="compiled ahead of time outside the block"):
        assert same(lowered.compile()(A, B), STOCK)


def test_no_python_runs_in_a_compiled_program() -> None:
    """The handler is machine code: nothing that calls back, and nothing that could call JAX from inside one of its programs."""
    with emulate():
        text = jax.jit(dot).lower(A, B).compile().as_text()
    assert 'custom_call_target="mmabits"' in text and "python" not in text and " dot(" not in text


def test_other_threads_compute_as_ever() -> None:
    """A block is its thread's: JAX's context is, and so are the keys of its caches."""
    function, found = jax.jit(dot), []
    with emulate():
        thread = threading.Thread(target=lambda: found.append(np.asarray(function(A, B))))
        thread.start()
        thread.join()
        assert same(function(A, B), EMULATED)
    assert same(found[0], STOCK)


def test_programs_run_at_the_same_time() -> None:
    """The handler is called by several threads at once, and a call offers its tasks to XLA's threads."""
    a, b = draw(300, 128), draw(128, 256, seed=1)
    want = gemm(a, b)
    results: list[bool] = []

    def work() -> None:
        flag.begin()  # a thread of its own has no block otherwise
        results.extend(same(compiled(a, b), want) for _ in range(5))

    with emulate():
        compiled = jax.jit(dot).lower(a, b).compile()
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 20


def test_large_products_are_shared_among_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "SERIAL_PRODUCTS", 0)
    monkeypatch.setattr(handler, "threads_wanted", lambda: 4)
    a, b = draw(260, 64, seed=5), draw(64, 300, seed=6)
    with emulate():
        got = [np.asarray(jax.jit(dot)(a, b)) for _ in range(3)]
    assert handler._SITES[-1].words[handler._HELPERS] == 3
    assert all(same(each, gemm(a, b)) for each in got)


# -------------------------------------------------------------------------------------------------------------- Pallas


def tile(a: Any, b: Any, out: Any, total: Any) -> None:
    """A step of K of one tile: begins, adds, and writes after the last step."""

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        total[...] = jnp.zeros_like(total)

    total[...] += dot(a[...], b[...])

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = total[...]


def tiled(a: Any, b: Any) -> Any:
    from jax.experimental.pallas import tpu as memory

    m, k, n = *a.shape, b.shape[1]
    return pl.pallas_call(
        tile, grid=(m // 16, k // 32), interpret=True, out_shape=jax.ShapeDtypeStruct((m, n), jnp.float32),
        in_specs=[pl.BlockSpec((16, 32), lambda i, j: (i, j)), pl.BlockSpec((32, n), lambda i, j: (j, 0))],
        out_specs=pl.BlockSpec((16, n), lambda i, j: (i, 0)), scratch_shapes=[memory.VMEM((16, n), jnp.float32)],
    )(a, b)  # fmt: skip


def test_interpreted_pallas_kernels() -> None:
    """With conditions and scratch memory, jitted outside: per step of K a product, and an addition of JAX's own."""
    a, b = draw(32, 96), draw(96, 24, seed=1)
    function = jax.jit(tiled)
    stock = np.asarray(function(a, b))
    with emulate() as session:
        got = np.asarray(function(a, b))
        (line,) = session.report().emulated
    want = np.zeros((32, 24), np.float32)
    for k in range(0, 96, 32):
        want += gemm(a[:, k : k + 32], b[k : k + 32])
    assert same(got, want) and not same(got, stock)
    assert (line.m, line.n, line.k, line.count) == (16, 24, 32, 6) and line.site.startswith("dot (test_jax.py:")
    assert same(function(a, b), stock)


# ---------------------------------------------------------------------------------------------------------- the report


def test_the_report_names_instruction_place_shape_and_count() -> None:
    def layer(x: Any) -> Any:
        return lax.scan(lambda x, w: (dot(x, w).astype(F8), None), x, jnp.asarray(draw(5, 16, 16)))[0]

    with emulate() as session:
        held = [jax.jit(layer)(draw(8, 16))]  # the report waits for programs whose results somebody holds
        held.append(jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))(draw(4, 3, 32), draw(4, 32, 6)))
    first, second = session.report().emulated
    assert (first.instruction.ptx, first.shape, first.count) == (HOPPER, "8 x 16 x 16", 5)
    assert (second.shape, second.count) == ("3 x 6 x 32", 4)
    assert first.site.startswith("dot (test_jax.py:") and second.site.startswith("<lambda> (test_jax.py:")
    assert "fast accumulation" in first.note and first.evidence.name == "PUBLISHED"
    assert "8 x 16 x 16" in str(session.report())


def test_what_is_not_emulated_is_counted_and_gives_what_jax_gives() -> None:
    """Small integers: XLA's f32 products on the CPU round in an order that depends on the program around them."""
    x = np.random.default_rng(3).integers(-3, 4, (4, 4)).astype(np.float32)
    image, filters = draw(1, 8, 8, 2, dtype=np.float32), draw(3, 3, 2, 4, dtype=np.float32)

    def convolve(image: Any) -> Any:
        return lax.conv_general_dilated(image, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    exact = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, y: jnp.dot(y, y, precision="highest"), x))
    vectors = jax.jit(jnp.dot)
    want = [np.asarray(exact(x)), np.asarray(vectors(x[0], x[1])), np.asarray(jax.jit(convolve)(image))]
    with emulate() as session:
        got = [exact(x), vectors(x[0], x[1]), jax.jit(convolve)(image)]
        skipped = session.report().skipped
    assert all(same(left, right) for left, right in zip(got, want, strict=True))
    assert [(line.count, line.operation.split()[0]) for line in skipped] == [
        (3, "dot_general"),
        (1, "dot_general"),
        (1, "conv_general_dilated"),
    ]
    assert [next(word for word in ("HIGHEST", "vectors", "cuDNN") if word in line.reason) for line in skipped] == [
        "HIGHEST",
        "vectors",
        "cuDNN",
    ]
    assert not session.report().emulated


def test_required_evidence() -> None:
    function = jax.jit(dot)
    with emulate(require="published", library="chain"):
        assert same(function(A, B), EMULATED)
    with emulate(require="published"), pytest.raises(InsufficientEvidence, match="order in which the library sums K rests on inferred"):
        function(A, B)
    with emulate(require="recorded"):
        with pytest.raises(InsufficientEvidence, match=r"wgmma.* on sm_90a rests on published evidence, but recorded is required"):
            function(A, B)
        assert not mmabits.emulator.hooks.session.current_session().report().emulated
    with emulate("sm_89", require="recorded", library="chain"):
        assert same(function(A, B), gemm(A, B, "sm_89", "mma.sync"))


# ------------------------------------------------------------------------------------------------------------- errors


def test_everything_is_restored_after_errors() -> None:
    function = jax.jit(dot)
    with pytest.raises(ZeroDivisionError), emulate():
        function(A, B)
        with emulate("sm_100a"):
            raise ZeroDivisionError
    assert same(function(A, B), STOCK)
    with pytest.raises(ZeroDivisionError), emulate():
        jax.jit(lambda a: dot(a, B) / (1 // 0))(A)
    assert same(function(A, B), STOCK)


def test_everything_is_restored_after_an_interruption_while_programs_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    function, block = jax.jit(dot), emulate()
    before = dict(mlir._platform_specific_lowerings["cpu"])
    for place in ("enter", "collect"):  # on the way in, and on the way out
        monkeypatch.setattr(account, place, interrupted)
        with pytest.raises(KeyboardInterrupt), block:
            assert same(function(A, B), EMULATED)
        monkeypatch.undo()
        assert same(function(A, B), STOCK) and not account.is_open()
        assert dict(mlir._platform_specific_lowerings["cpu"]) == before


def test_a_refusal_stops_the_program_and_leaves_the_block_usable() -> None:
    four = np.zeros((4, 8), ml_dtypes.float4_e2m1fn)
    with emulate():
        with pytest.raises(
            EmulationError, match=r"dot_general of .* cannot be emulated for sm_90a: float4_e2m1fn is multiplied with block scales only"
        ):
            jax.jit(lambda a: dot(a, a.T))(four)
        assert same(dot(A, B), EMULATED)


def test_programs_of_another_process_are_refused() -> None:
    """Compiled programs can be kept on disk; addresses in them mean nothing elsewhere."""
    site = handler.counting_site()
    handler.load()

    def stale() -> Any:
        target = jax.ffi.ffi_call(handler.TARGET, jax.ShapeDtypeStruct((), np.uint8), has_side_effect=True)
        return target(process=np.int64(handler.STAMP + 1), site=np.int64(site.address))

    with pytest.raises(Exception, match="belongs to the process that compiled it"):
        jax.jit(stale)().block_until_ready()
    assert site.new_calls() == 0


def test_versions_of_the_interface(tmp_path: Any) -> None:
    assert handler.header_version(jax.ffi.include_dir()) >= handler.API
    for version in ((0, 3), (0, 4)):
        handler.check_version(version)
    for version in ((1, 0), (0, 2)):
        with pytest.raises(
            EmulationError, match=rf"has version {version[0]}\.{version[1]} of XLA's foreign function interface; emulate speaks 0\.3"
        ):
            handler.check_version(version)
    with pytest.raises(EmulationError, match="header of XLA's foreign function interface is missing"):
        handler.header_version(str(tmp_path))
    folder = tmp_path / "xla" / "ffi" / "api"
    folder.mkdir(parents=True)
    (folder / "c_api.h").write_text("#define XLA_FFI_API_MAJOR 2\n#define XLA_FFI_API_MINOR 17\n", encoding="utf-8")
    assert handler.header_version(str(tmp_path)) == (2, 17)
    (folder / "c_api.h").write_text("nothing\n", encoding="utf-8")
    with pytest.raises(EmulationError, match="states no version"):
        handler.header_version(str(tmp_path))


def test_an_older_jax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(jax, "make_user_context")
    with pytest.raises(EmulationError, match=r"emulate needs jax 0\.10 or newer, got jax"), emulate():
        pass


def test_other_devices_are_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs for a GPU run there as they are, and the block says so; told to use the CPU, JAX is emulated."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    told = pytest.warns(NotEmulated, match=r"not emulated: JAX's default device is a gpu: open the block inside jax\.default_device")
    with told, emulate() as session:
        assert [line.operation for line in session.report().skipped] == ["jax"]
    with jax.default_device(jax.devices("cpu")[0]), emulate() as session:
        assert same(jax.jit(dot)(A, B), EMULATED) and not session.report().skipped


def test_arrays_on_several_devices() -> None:
    """XLA gathers the operands of the handler, and computes the whole product on each device."""
    program = (
        "import jax, mmabits, numpy as np, ml_dtypes\n"
        "from jax.sharding import Mesh, NamedSharding, PartitionSpec\n"
        "rng = np.random.default_rng(0)\n"
        "a, b = (rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for shape in ((16, 32), (32, 8)))\n"
        "rows = NamedSharding(Mesh(np.array(jax.devices()), ('x',)), PartitionSpec('x', None))\n"
        "with mmabits.emulate('sm_90a') as session:\n"
        "    got = jax.jit(lambda a, b: jax.numpy.matmul(a, b, preferred_element_type='float32'))(jax.device_put(a, rows), b)\n"
        "print(len(jax.devices()), np.array_equal(got, mmabits.gemm(a, b, instruction='wgmma', arch='sm_90a')))\n"
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert found.stdout.split() == ["2", "True"], found.stderr


def test_a_jax_that_keeps_its_rules_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "mlir", object())
    with pytest.raises(EmulationError, match="keeps its lowering rules where emulate does not find them"), emulate():
        pass


@pytest.mark.slow
def test_forked_processes_and_fresh_ones() -> None:
    """A process that imports mmabits first, and JAX inside the block by name."""
    program = (
        "import mmabits, numpy as np\n"
        "with mmabits.emulate('sm_80', frameworks=['jax']) as session:\n"
        "    import jax.numpy as jnp\n"
        "    x = np.ones((4, 16), np.float16)\n"
        "    print(float(jnp.dot(x, x.T)[0, 0]), len(session.report().emulated))\n"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["16.0", "1"], found.stderr


def test_export_inside_a_block_is_refused_with_a_reason():
    from jax import export

    a = jnp.ones((16, 16), jnp.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["jax"]):
        with pytest.raises(EmulationError, match=r"jax.export makes programs for other processes.*export outside of the block"):
            export.export(jax.jit(lambda a: a @ a.T))(a)
        assert jax.jit(lambda a: a @ a.T)(a).shape == (16, 16)


def test_multiply_adds_that_are_not_emulated_are_counted():
    a, b = jnp.ones((8, 16), jnp.float32), jnp.ones((16, 4), jnp.float32)
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        jax.jit(lambda a, b: jnp.dot(a, b, precision=lax.Precision.HIGHEST))(a, b).block_until_ready()
        jax.jit(lambda a, b: jnp.dot(a, b))(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).block_until_ready()
    (line,) = session.report().skipped
    assert line.multiply_adds == 8 * 16 * 4 and session.report().share == 0.5


def test_scopes_are_sites():
    def layers(x):
        for name in ("first", "second"):
            with jax.named_scope(name):
                x = jnp.tanh(x @ x)
        return jax.lax.scan(scanned, x, None, length=2)[0]

    def scanned(x, _):
        with jax.named_scope("inner"):
            return x @ x, None

    x = jnp.eye(16, dtype=jnp.bfloat16)
    with emulate() as session:
        jax.jit(jax.grad(lambda x: layers(x).astype(jnp.float32).sum()))(x).block_until_ready()
        jax.jit(jax.vmap(layers))(x[None]).block_until_ready()  # nobody holds it: the end of the block would not wait
    found = {}
    for line in session.report().emulated:
        place = line.site.partition(": ")[0]
        found[place] = found.get(place, 0) + line.count
    assert found == {"first": 3 + 1, "second": 3 + 1, "inner": 6 + 2}
