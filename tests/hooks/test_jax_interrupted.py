"""Programs of JAX that are interrupted: they run on in memory of JAX's own, and nobody waits for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmabits

pytest.importorskip("jax")

PREAMBLE = """
import atexit, os, signal, sys, time
import jax, jax.numpy as jnp, ml_dtypes, numpy as np, mmabits

def use():
    try:
        d.block_until_ready()
        print("finished")
    except jax.errors.JaxRuntimeError as error:
        print([each for each in ("left unfinished", "called after the block") if each in str(error)])

def begin():
    from mmabits.emulator.hooks.jax import account, handler
    d = product(a, b)
    while not any(entry.calls.words[handler._CALLS] for entries in account._ENTRIES.values() for entry in entries):
        time.sleep(0.01)
    return d

atexit.register(use)
a, b = np.ones((2048, 1 << 16), ml_dtypes.float8_e4m3fn), np.ones((1 << 16, 2048), ml_dtypes.float8_e4m3fn)
product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))

class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
"""
SECONDS = 20
"""Of processor time: more than a process needs that does not compute the product, less than the product."""


def in_a_process(program: str) -> str:
    """What a program prints in a new interpreter that ends well, and without the product."""
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    running = subprocess.Popen([sys.executable, "-c", PREAMBLE + program], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE)
    assert running.stdout is not None
    printed = running.stdout.read().decode()
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    running.stdout.close()
    assert running.returncode == 0, printed
    assert used.ru_utime < SECONDS, printed
    return printed


def test_a_block_left_by_an_exception_waits_for_no_program_and_nor_does_the_interpreter() -> None:
    program = """
try:
    with mmabits.emulate("sm_100a", frameworks=["jax"]):
        d = begin()
        raise KeyError
except KeyError:
    print(d.is_ready())
"""
    assert in_a_process(program) == "False\n['left unfinished']\n"


@pytest.mark.parametrize("waits", ["d.block_until_ready()", "pass"])
def test_an_exception_out_of_a_handler_ends_the_wait_for_a_product_and_for_a_block(waits: str) -> None:
    program = f"""
try:
    with mmabits.emulate("sm_100a", frameworks=["jax"]):
        d = begin()
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        {waits}
except Late:
    print(d.is_ready())
"""
    assert in_a_process(program) == "False\n['left unfinished']\n"
