"""PTX of other compilers that need no GPU: Numba's and CuTe DSL's, where they are installed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import mmabits
from mmabits.emulator.cuda.modules import arch_of
from mmabits.emulator.cuda.names import short_names
from mmabits.isa import UnknownArchitecture


def test_numba(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    from numba import cuda, types

    def axpy(y, x, a):  # type: ignore[no-untyped-def]
        i = cuda.grid(1)
        if i < x.size:
            y[i] += a * x[i]

    array = types.float32[::1]
    try:
        ptx, _ = cuda.compile(axpy, (array, array, types.float32), cc=(9, 0), device=False, abi="numba")
    except Exception as error:  # without NVVM
        pytest.skip(f"Numba compiles nothing here: {error!s:.80}")
    kernel = mmabits.load_ptx(ptx)["axpy"]
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    given = [(None, None, each.size, each.itemsize, each, *each.shape, *each.strides) for each in (y, x)]
    kernel(4, 32, *given[0], *given[1], 2.0)
    assert np.array_equal(y, 2 * x + 1)


def test_cute_dsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTE_DSL_ARCH", "sm_90a")
    monkeypatch.setenv("CUTE_DSL_KEEP_PTX", "1")
    monkeypatch.setenv("CUTE_DSL_DUMP_DIR", str(tmp_path))
    cutlass = pytest.importorskip("cutlass")
    if not hasattr(cutlass, "cute"):
        pytest.skip("this cutlass is not the one of nvidia-cutlass-dsl")
    from cute_kernel import compiled_axpy

    compiled_axpy()
    (path,) = [each for each in os.listdir(tmp_path) if each.endswith(".ptx")]
    module = mmabits.load_ptx(tmp_path / path)
    x, y = np.arange(100, dtype=np.float32), np.ones(100, np.float32)
    module[next(iter(module))](4, 32, x, y, 100, 2.0)
    assert np.array_equal(y, 2 * x + 1)


def test_pallas_on_triton(tmp_path: Path) -> None:
    """JAX lowers a Pallas kernel for CUDA without a GPU, to a Triton module; Triton's compiler makes PTX of it."""
    jax = pytest.importorskip("jax")
    triton = pytest.importorskip("triton")
    from jax.experimental import pallas
    from jax.experimental.pallas import triton as pallas_triton
    from jaxlib.mlir import ir
    from jaxlib.triton import dialect
    from triton.backends.compiler import GPUTarget

    def sums(x, y, out):  # type: ignore[no-untyped-def]
        out[...] = x[...] * 2 + y[...]

    blocks = pallas.BlockSpec((128,), lambda i: i)
    call = pallas.pallas_call(
        sums, out_shape=jax.ShapeDtypeStruct((256,), np.float32), grid=(2,), in_specs=[blocks] * 2, out_specs=blocks,
        compiler_params=pallas_triton.CompilerParams(num_warps=4),
    )  # fmt: skip
    example = jax.ShapeDtypeStruct((256,), np.float32)
    lowered = jax.jit(call).trace(example, example).lower(lowering_platforms=("cuda",)).compiler_ir()
    calls = []

    def visit(operation):  # type: ignore[no-untyped-def]
        if operation.name == "stablehlo.custom_call" and "xla.gpu.triton" in str(operation.attributes["call_target_name"]):
            calls.append(ir.StringAttr(ir.DictAttr(operation.attributes["mhlo.backend_config"])["ir"]).value_bytes)
        return ir.WalkResult.ADVANCE

    lowered.operation.walk(visit)
    with ir.Context() as context:
        dialect.register_dialect(context)
        text = str(ir.Module.parse(calls[0]))
    file = tmp_path / "sums.ttir"
    file.write_text(text)
    made = triton.compile(str(file), target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "enable_fp_fusion": False})
    kernel = mmabits.load_ptx(made.asm["ptx"])["sums"]
    x, y, out = np.arange(256, dtype=np.float32), np.ones(256, np.float32), np.zeros(256, np.float32)
    kernel(2, 128, x, y, out, *[None] * (len(kernel.parameters) - 3), shared=made.metadata.shared)
    assert np.array_equal(out, 2 * x + 1)


def test_names_and_targets_of_other_compilers() -> None:
    assert short_names("__main__::axpy[abi:v1][abi:cw5](Array<float, 1, C>, float)") == ("__main__::axpy", "axpy")
    assert (arch_of("sm_90"), arch_of("sm_80"), arch_of("sm_100a")) == ("sm_90a", "sm_80", "sm_100a")
    with pytest.raises(UnknownArchitecture):
        arch_of("sm_35")
