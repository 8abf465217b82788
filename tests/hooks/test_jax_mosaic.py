"""Mosaic GPU kernels that JAX interprets: wgmma with the bits of the instruction. tcgen05 needs a newer JAX than 0.10 to be interpreted."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.hooks.session import NotEmulated
from mmabits.isa import EmulationError

jax = pytest.importorskip("jax", reason="needs the jax extra")
pytest.importorskip("absl", reason="Mosaic GPU needs absl-py")
if not hasattr(jax, "make_user_context"):
    pytest.skip("needs jax 0.10", allow_module_level=True)

from jax import numpy as jnp  # noqa: E402
from jax.experimental import pallas as pl  # noqa: E402

from mmabits.emulator.hooks.jax import mosaic  # noqa: E402

try:
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError as error:
    pytest.skip(f"this jax interprets no Mosaic GPU kernels: {error}", allow_module_level=True)

Array = np.ndarray[Any, Any]
M, N, K = 64, 64, 128
_NAMES = inspect.signature(plgpu.kernel).parameters
OUT, SCRATCH = ("out_type", "scratch_types") if "out_type" in _NAMES else ("out_shape", "scratch_shapes")


@pytest.fixture(autouse=True)
def fresh_memory() -> Any:
    """A kernel that fails leaves its barriers allocated in the interpreter."""
    yield
    gpu_callbacks.reset_gpu_interpret_mode_state()


def built(dtype: Any, products: int) -> Any:
    """A kernel of one warpgroup that adds products to one accumulator."""
    width = 128 // np.dtype(dtype).itemsize
    row = (plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(128))
    column = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(64 * np.dtype(dtype).itemsize))
    scratch = {
        "a_memory": plgpu.SMEM((M, K), dtype, transforms=row), "b_memory": plgpu.SMEM((K, N), dtype, transforms=column),
        "out_memory": plgpu.SMEM((M, N), jnp.float32), "barrier": plgpu.Barrier(num_arrivals=2),
    }  # fmt: skip

    @functools.partial(plgpu.kernel, interpret=InterpretGPUParams(), **{OUT: jax.ShapeDtypeStruct((M, N), jnp.float32), SCRATCH: scratch})
    def kernel(a: Any, b: Any, out: Any, a_memory: Any, b_memory: Any, out_memory: Any, barrier: Any) -> None:
        plgpu.copy_gmem_to_smem(a, a_memory, barrier)
        plgpu.copy_gmem_to_smem(b, b_memory, barrier)
        plgpu.barrier_wait(barrier)

        def accumulate(total: Any) -> Any:
            for _ in range(products):
                plgpu.wgmma(total, a_memory, b_memory)
                plgpu.wgmma_wait(0)
            return total[...]

        out_memory[...] = pl.run_scoped(accumulate, plgpu.ACC((M, N), jnp.float32))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_memory, out)
        plgpu.wait_smem_to_gmem(0)

    return kernel


@pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes arguments:DeprecationWarning")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.float8_e4m3fn])
def test_wgmma(dtype: Any) -> None:
    """Each product adds to the accumulator inside the instruction. The same kernel outside, inside and outside again."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32).astype(dtype) for shape in ((M, K), (K, N)))
    kernel, numpy = built(dtype, 2), gpu_callbacks.np
    stock = np.asarray(kernel(a, b))
    want = np.zeros((M, N), np.float32)
    for _ in range(2):
        want = mmabits.gemm(a, b, want, instruction="wgmma", arch="sm_90a")
    with mmabits.emulate("sm_90a", frameworks=["jax"]) as session:
        got = np.asarray(kernel(a, b))
        (line,) = session.report().emulated
    assert got.tobytes() == want.tobytes() and got.tobytes() != stock.tobytes()
    assert (line.shape, line.count) == ("64 x 64 x 128", 2) and line.instruction.ptx.startswith("wgmma.mma_async")
    assert np.asarray(kernel(a, b)).tobytes() == stock.tobytes() and gpu_callbacks.np is numpy


@pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes arguments:DeprecationWarning")
def test_wgmma_elsewhere_is_refused() -> None:
    a, b = np.ones((M, K), np.float16), np.ones((K, N), np.float16)
    kernel = built(np.float16, 1)
    refusal = pytest.raises(Exception, match="wgmma of an interpreted Mosaic GPU kernel: f16 x f16 cannot be emulated for sm_100a")
    with refusal, mmabits.emulate("sm_100a", frameworks=["jax"]):
        jax.block_until_ready(kernel(a, b))


@pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes arguments:DeprecationWarning")
def test_a_kernel_goes_by_the_block_it_was_traced_in() -> None:
    """Compiled ahead of time, outside and inside; two blocks, the first left first."""
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((M, K), (K, N)))
    kernel, names = jax.jit(built(np.float16, 1)), (gpu_callbacks.np, gpu_callbacks.callback)
    outside = kernel.lower(a, b).compile()
    stock, want = np.asarray(outside(a, b)).tobytes(), mmabits.gemm(a, b, instruction="wgmma", arch="sm_90a").tobytes()
    first, second = (mmabits.emulate("sm_90a", frameworks=["jax"]) for _ in range(2))
    first.__enter__()
    session = second.__enter__()
    first.__exit__(None, None, None)
    inside = kernel.lower(a, b).compile()
    assert np.asarray(inside(a, b)).tobytes() == want != stock
    with pytest.warns(NotEmulated, match="compiled ahead of time outside the block"):
        assert np.asarray(outside(a, b)).tobytes() == stock
    assert [line.count for line in session.report().emulated] == [1]
    second.__exit__(None, None, None)
    assert (gpu_callbacks.np, gpu_callbacks.callback) == names
    assert np.asarray(kernel(a, b)).tobytes() == stock
    with pytest.raises(Exception, match="a program compiled inside an emulate block is called after the block"):
        jax.block_until_ready(inside(a, b))


def test_a_kernel_that_outlives_its_block_is_stopped() -> None:
    with pytest.raises(EmulationError, match="an interpreted kernel of an emulate block for sm_90a still ran when an exception ended"):
        mosaic._called(("sm_90a", "inferred", "zero", 0), lambda: None)
