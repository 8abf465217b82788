"""The engine's fast paths made wrong in one place, again and again: each time the products of `engine_batches.py` come out differently.

Each change is a line of a module's source, changed in a process of its own, whose machine code is kept nowhere else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import engine_batches
import pytest

from mmabits.emulator.engine import native, width

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
name, old, new, *names = sys.argv[1:]
found = importlib.util.find_spec(f"mmabits.emulator.engine.{name}")
source = Path(found.origin).read_text()
assert source.count(old) == 1, (old, source.count(old))
module = importlib.util.module_from_spec(found)
sys.modules[found.name] = module
exec(compile(source.replace(old, new), found.origin, "exec"), module.__dict__)
import engine_batches
print(json.dumps(engine_batches.digests(names)))
"""
FLOORS = ("fp8", "bf16")
CHANGES = (
    # module, what stands there, what would be wrong, kinds of steps that notice
    ("floors", "ZERO_A, ZERO_B = ALL, ALL - 128", "ZERO_A, ZERO_B = 0, ALL - 128", FLOORS),
    ("floors", "ZERO_A, ZERO_B = ALL, ALL - 128", "ZERO_A, ZERO_B = ALL, -128", FLOORS),
    ("floors", ".maximum(0).minimum(ALL)", ".maximum(0).minimum(8)", FLOORS),
    ("floors", "(field | hidden).trailing_zeros()", "(field | hidden).trailing_zeros() + 1", FLOORS),
    ("plan", "lowest_place=form.min_exponent - form.fraction_bits,", "lowest_place=form.min_exponent,", ("fp8",)),
    ("integers", "OFFSET = 128", "OFFSET = 64", ("u8 s8", "s8")),
    ("integers", "flip = 0 if numbers.signed_b == 1 else OFFSET", "flip = 0", ("u8",)),
    ("integers", "panel = numbers.k_instruction if numbers.saturate == 1 else PANEL", "panel = PANEL", ("s8 u8",)),
    ("integers", "partial, at_edge = WIDTH + edge if edge < 0 else 0,", "partial, at_edge = 0,", ("s8",)),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("module", "old", "new", "names"), CHANGES, ids=[f"{module}: {new}" for module, _, new, _ in CHANGES])
def test_a_change_is_noticed(module: str, old: str, new: str, names: tuple[str, ...], tmp_path: Path) -> None:
    if native.SETTING in os.environ or width.SETTING in os.environ:
        pytest.skip("another path is forced")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), *sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, old, new, *names], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:  # else an assertion of the module's own has noticed
        assert json.loads(done.stdout) != engine_batches.digests(list(names))
    else:
        assert "AssertionError\n" in done.stderr and "source.count" not in done.stderr, done.stderr[-2000:]
