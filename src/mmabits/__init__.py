"""The numerics of GPU tensor cores, bit for bit, on any machine."""

from typing import TYPE_CHECKING, Any

from mmabits.emulator import layouts
from mmabits.emulator.api import gemm, mma
from mmabits.emulator.codecs import decode, encode
from mmabits.emulator.hooks.session import emulate
from mmabits.isa import MmabitsError, instructions, what_if
from mmabits.isa import parse as instruction

if TYPE_CHECKING:
    from mmabits.conformance.identify import identify
    from mmabits.conformance.ways import compare
    from mmabits.emulator.cuda.maps import tensor_map
    from mmabits.emulator.cuda.modules import compile_cuda, load_ptx
    from mmabits.emulator.machine.calls import function
    from mmabits.emulator.machine.sass import check_fusion
    from mmabits.emulator.schedules import Schedule, choice
    from mmabits.research.evaluation import evaluate
    from mmabits.research.explain import explain
    from mmabits.research.follow import explain_result
    from mmabits.research.functions import explain_function
    from mmabits.research.invariance import invariance
    from mmabits.research.kernels import describe_kernel
    from mmabits.research.orders import compare_schedules
    from mmabits.research.study import study
    from mmabits.research.tolerance import tolerance

__version__ = "0.1.0"

__all__ = [
    "gemm", "mma", "Schedule", "choice", "function", "emulate", "check_fusion", "evaluate", "explain", "explain_function", "identify",
    "invariance", "study", "tolerance", "compare", "compile_cuda", "load_ptx", "tensor_map", "describe_kernel", "explain_result",
    "compare_schedules", "what_if", "instruction", "instructions", "decode", "encode", "layouts", "MmabitsError", "__version__",
]  # fmt: skip

_ON_DEMAND = {
    "check_fusion": "mmabits.emulator.machine.sass", "compare_schedules": "mmabits.research.orders",
    "compile_cuda": "mmabits.emulator.cuda.modules", "load_ptx": "mmabits.emulator.cuda.modules",
    "tensor_map": "mmabits.emulator.cuda.maps",
    "describe_kernel": "mmabits.research.kernels", "explain_result": "mmabits.research.follow",
    "Schedule": "mmabits.emulator.schedules", "choice": "mmabits.emulator.schedules", "explain": "mmabits.research.explain",
    "evaluate": "mmabits.research.evaluation",
    "explain_function": "mmabits.research.functions", "function": "mmabits.emulator.machine.calls",
    "compare": "mmabits.conformance.ways", "identify": "mmabits.conformance.identify", "invariance": "mmabits.research.invariance",
    "study": "mmabits.research.study", "tolerance": "mmabits.research.tolerance",
}  # fmt: skip
"""Functions and types whose modules are imported at the first use, so that `import mmabits` stays quick."""


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module 'mmabits' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ON_DEMAND[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
