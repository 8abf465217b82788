"""Pallas kernels that are not interpreted: compiled for the GPU by way of Triton, and run by the machine.

JAX lowers such a kernel to Triton's IR for CUDA without a GPU, and leaves what becomes of it to XLA, which has a Triton of its own. Here
Triton's own compiler takes it to PTX, as for any kernel of Triton's.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax
import numpy as np
import numpy.typing as npt
from jax._src.interpreters import mlir

from mmabits.emulator.cuda.modules import PtxModule
from mmabits.emulator.hooks.jax import account, handler
from mmabits.emulator.hooks.session import Session, poison
from mmabits.emulator.machine.compiler import why_unusable
from mmabits.isa import EmulationError, architecture

if TYPE_CHECKING:
    from mmabits.emulator.hooks.jax.rules import _Equation

Array = npt.NDArray[Any]

MODULE: Final = "jax._src.pallas.pallas_call"
TRITON: Final = "__gpu$xla.gpu.triton"
"""What XLA calls for kernels of Triton's IR."""
INTERPRET: Final = "pallas_call(..., interpret=True) runs it in JAX's interpreter, whose products are emulated"
NO_TRITON: Final = f"Triton is not installed, by whose compiler it would run: pip install 'mmabits[triton]'; {INTERPRET}"
WAYS: Final = f"compiler_params=jax.experimental.pallas.triton.CompilerParams() has it compiled by way of Triton; {INTERPRET}"
NOT_TRITON: Final = f"JAX lowers it to {{}}, not to Triton's IR; {WAYS}"
ROUNDED: Final = f"XLA rounds f32 operands to TF32 before such a product, which Triton's own compiler does not; {INTERPRET}"
_TF32: Final = re.compile(r"tt\.dot .*inputPrecision = tf32(?!x).* : tensor<\w+xf32> \* ")
ARRANGED: Final = f"JAX hands it operands that it has arranged otherwise; {INTERPRET}"


@dataclass(frozen=True, kw_only=True)
class PallasKernel:
    """A kernel as JAX hands it to XLA."""

    name: str
    ir: str
    """Triton's IR, as text."""
    grid: tuple[int, int, int]
    warps: int
    stages: int
    aliases: tuple[tuple[int, int], ...]
    """Operands, and the results that have their memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CompiledPallas:
    """The PTX of a kernel, and what a launch needs beside."""

    module: PtxModule
    shared: int
    scratch: int
    """Bytes of global memory that each CTA has to itself."""


def lower(site: _Equation) -> Any:
    """A `pallas_call` without `interpret`, as a call of the compiled kernel.

    Raises:
        EmulationError: it cannot be compiled by way of Triton.
    """
    if importlib.util.find_spec("triton") is None:
        site.refuse(NO_TRITON)
    if why := why_unusable():
        site.refuse(f"{why}; {INTERPRET}")
    kernel = _kernel(site)
    if isinstance(kernel, str):
        site.refuse(kernel)
    if _TF32.search(kernel.ir):
        site.refuse(ROUNDED)
    try:
        compiled = _compiled(kernel, site.session.arch)
    except (RuntimeError, ValueError, TypeError) as error:  # Triton's compiler, which says what it does not take
        site.refuse(f"Triton's compiler does not take it ({_line(error)}); {INTERPRET}")
    handler.count(account.mark(site.key))  # a program compiled ahead of time is known by it, and refused after the block
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in site.context.avals_out]
    run = partial(_run, site.key, kernel, compiled, shapes)
    return mlir.lower_fun(lambda *operands: jax.pure_callback(run, shapes, *operands), multiple_results=True)(site.context, *site.operands)


def _line(error: Exception) -> str:
    """An error of a compiler in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". To use Pallas")[0]


def _kernel(site: _Equation) -> PallasKernel | str:
    """What JAX makes of the kernel for CUDA; why that cannot run here."""
    primitive = site.context.primitive
    like = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in site.avals]
    traced = jax.jit(lambda *operands: primitive.bind(*operands, **site.parameters)).trace(*like)
    try:
        module = traced.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        return f"JAX does not lower it for CUDA ({_line(error)}); {WAYS}"
    calls = [operation for operation in _operations(module.operation) if operation.name == "stablehlo.custom_call"]
    targets = [str(call.attributes["call_target_name"]).strip('"') for call in calls]
    if targets != [TRITON]:
        return NOT_TRITON.format(" and ".join(targets) or "no kernel")
    (call,) = calls
    arguments = list(call.parent.regions[0].blocks[0].arguments)
    if [str(each.get_name()) for each in call.operands] != [str(each.get_name()) for each in arguments] or len(arguments) != len(like):
        return ARRANGED
    given = call.attributes["mhlo.backend_config"]
    number = {name: int(str(given[name]).split(" ")[0]) for name in ("grid_x", "grid_y", "grid_z", "num_warps", "num_stages")}
    return PallasKernel(
        name=str(given["name"]).strip('"'), ir=_text(given["ir"]), grid=(number["grid_x"], number["grid_y"], number["grid_z"]),
        warps=number["num_warps"], stages=number["num_stages"], aliases=tuple(map(tuple, site.parameters.get("input_output_aliases", ()))),
    )  # fmt: skip


def _operations(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region.blocks:
            for each in block.operations:
                yield each.operation
                yield from _operations(each.operation)


def _text(attribute: Any) -> str:
    """The text of a module that is given as MLIR's bytecode."""
    from jaxlib.mlir import ir
    from jaxlib.triton import dialect

    context = ir.Context()
    dialect.register_dialect(context)
    context.allow_unregistered_dialects = True
    with context:
        return str(ir.Module.parse(ir.StringAttr(attribute).value_bytes))


@lru_cache(maxsize=64)
def _compiled(kernel: PallasKernel, arch: str) -> CompiledPallas:
    """The kernel as Triton's compiler makes it."""
    import triton
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    major, minor = architecture(architecture(arch).target).capability
    capability, settings = 10 * major + minor, {"num_warps": kernel.warps, "num_stages": kernel.stages}
    target = GPUTarget("cuda", capability, 32)
    backend: Any = make_backend(target)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults that will change
        path = Path(folder) / "kernel.ttir"
        path.write_text(kernel.ir)
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        module = ir.parse_mlir_module(str(path), context)
        module.context = context
        module = backend.make_ttir(
            module, {}, backend.parse_options(settings), capability
        )  # which `compile` takes a text to have behind it
        path.write_text(str(module))
        compile_: Callable[..., Any] = triton.compile
        made = compile_(str(path), target=target, options=settings)
    return CompiledPallas(
        module=PtxModule(made.asm["ptx"], arch),
        shared=int(made.metadata.shared),
        scratch=int(getattr(made.metadata, "global_scratch_size", 0)),
    )


def _run(key: account.Key, kernel: PallasKernel, compiled: CompiledPallas, shapes: list[Any], *operands: Any) -> list[Array]:
    """Launch the kernel on copies of its operands.

    Raises:
        EmulationError: the block has ended.
    """
    session: Session | None = account.open_session(key)
    if session is None:
        raise EmulationError(f"a Pallas kernel compiled inside an emulate block for {key[0]} is called after the block")
    arrays = [np.array(operand) for operand in operands]
    results = [np.full(each.shape, poison(np.dtype(each.dtype)) if session.poisons else 0, each.dtype) for each in shapes]
    for operand, result in kernel.aliases:
        results[result] = arrays[operand]
    module = PtxModule(compiled.module.ptx, session.arch, module=compiled.module.module)
    module.session = session
    launched = module[kernel.name]
    given: list[Any] = [*arrays, *results]
    scratch = np.zeros(max(1, compiled.scratch) * int(np.prod(kernel.grid)), np.uint8)
    given += [scratch if place == 0 and compiled.scratch else 0 for place in range(len(launched.parameters) - len(given))]
    launched(kernel.grid, 32 * kernel.warps, *given, shared=compiled.shared)
    return results
