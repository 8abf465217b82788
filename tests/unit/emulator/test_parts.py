"""What the engine takes from Numba while it compiles leaves Numba as it was for everybody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys
import numba, numpy as np
from numba import types
from mmabits.emulator.engine import jit, machine_code

@numba.njit
def before(x):
    return np.floor_divide(max(x, np.sign(x)), 2.0)

@jit.jit
def inner(x):
    return min(max(x, np.sign(x)), round(x, 1)) + x

def entry(pointer):
    cells = jit.array_at(jit.address_of(pointer), 2, np.float64)
    cells[1] = inner(cells[0])

before(1.5)
code, expected = jit.compiled_object(entry, "mmabits_part_test")
loader = machine_code.loaded(code)
cells = np.array([2.26, 0.0])
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(loader.get_function_address("mmabits_part_test"))(cells.ctypes.data)
assert abs(cells[1] - 2 * 2.26) < 0.1, cells

@numba.njit
def later(x):  # the same functions of Numba's own, made before as parts
    if x > 100:
        raise ValueError("too large", x)
    return round(x, 1) + np.sign(x) + max(x, np.sign(x))

assert later(2.26) == 2.3 + 1 + 2.26, later(2.26)
try:
    later(101.0)
except ValueError as error:
    assert error.args == ("too large", 101.0)
else:
    raise SystemExit("nothing was raised")
assert jit.compiled_object(entry, "mmabits_part_test")[0]
assert inner.overloads and before(5.0) == 2.0
from numba.core.registry import cpu_target
context = cpu_target.target_context
assert "get_executable" not in vars(context) and "_library_class" not in vars(context.codegen())
"""


def test_numba_goes_on(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
