"""What `import mmabits` brings, and what a second process need not do again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmabits

PUBLIC = [
    "gemm", "mma", "Schedule", "choice", "function", "emulate", "check_fusion", "evaluate", "explain", "explain_function", "identify",
    "invariance", "study", "tolerance", "compare", "compile_cuda", "load_ptx", "tensor_map", "describe_kernel", "explain_result",
    "compare_schedules", "what_if", "instruction", "instructions", "decode", "encode", "layouts", "MmabitsError", "__version__",
]  # fmt: skip
ON_DEMAND = {
    "Schedule", "check_fusion", "compare_schedules", "compile_cuda", "load_ptx", "tensor_map", "describe_kernel", "explain_result",
    "choice", "evaluate", "explain", "explain_function", "function",
    "compare", "identify", "invariance", "study", "tolerance",
}  # fmt: skip
NOT_IMPORTED = ("numba", "llvmlite", "torch", "jax", "triton", "matplotlib", "rich", "typer", "safetensors", "mmasim")


def in_a_process(program: str, **environment: str) -> Any:
    """Run a program in a new interpreter; what it prints, from JSON."""
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)


def test_public_names() -> None:
    """A change here is a change of what users rely on: see CHANGELOG.md."""
    assert mmabits.__all__ == PUBLIC
    assert all(hasattr(mmabits, name) for name in PUBLIC)
    modules = {"commands", "conformance", "emulator", "isa", "kernels", "layouts", "reports", "research"}
    others = {name for name, value in vars(mmabits).items() if not name.startswith(("_", "@")) and name not in modules}  # @: pytest's
    assert others - {"TYPE_CHECKING", "Any"} == set(PUBLIC) - {"layouts", "__version__", *ON_DEMAND}


def test_importing_brings_neither_compiler_nor_frameworks() -> None:
    loaded = in_a_process("import json, sys, mmabits; print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))")
    assert "mmabits" in loaded and "numpy" in loaded
    assert not set(loaded) & set(NOT_IMPORTED)


def test_nothing_on_the_path_but_the_package_is_imported() -> None:
    """The folders at the root are reached as mmabits.isa and so on, never as isa."""
    loaded = in_a_process("import json, sys, mmabits.conformance, mmabits.emulator.api; print(json.dumps(sorted(sys.modules)))")
    assert not set(loaded) & {"conformance", "emulator", "isa", "kernels", "commands", "reports", "research"}
    assert {"mmabits.conformance", "mmabits.emulator", "mmabits.isa"} <= set(loaded)


def test_errors_need_no_compiler() -> None:
    """A refused call is refused before the engine, and so Numba, is loaded."""
    program = """
import json, sys
import numpy as np
import mmabits
a = np.zeros((16, 16), np.float16)
try:
    mmabits.gemm(a, a[:4], instruction="mma.sync", arch="sm_80")
except ValueError as error:
    print(json.dumps([str(error), "numba" in sys.modules]))
"""
    message, compiler = in_a_process(program)
    assert "a has K = 16" in message
    assert not compiler


FIRST_RESULT = """
import json
import sys
import ml_dtypes
import numpy as np
import mmabits
a = (np.arange(16 * 32) % 7 - 3).reshape(16, 32)
b = (np.arange(32 * 8) % 5 - 2).reshape(32, 8)
fp8 = ml_dtypes.float8_e4m3fn
d = mmabits.mma("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", a.astype(fp8), b.astype(fp8), arch="sm_89")
print(json.dumps(["numba" in sys.modules, bool((d == a @ b).all())]))
"""


def kept(folder: Path) -> list[Path]:
    """The files of machine code in a cache."""
    return sorted(folder.rglob("*.mmabits"))


def test_a_second_process_needs_no_compiler(tmp_path: Path) -> None:
    """The first leaves its machine code in the cache; with it, the second never imports Numba. A damaged file is made anew."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "0"}
    assert in_a_process(FIRST_RESULT, **cache) == [True, True]
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    assert in_a_process(FIRST_RESULT, **cache) == [False, True]
    assert file.read_bytes() == whole

    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert in_a_process(FIRST_RESULT, **cache) == [True, True]
    assert kept(tmp_path) == [file]
    assert in_a_process(FIRST_RESULT, **cache) == [False, True]
