"""Calls of functions that stand in the same PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.ptx import PtxError

SQUARE = """
.func (.param .b32 square_retval) square(.param .b32 square_param_0)
{
	.reg .b32 %r<4>;
	ld.param.b32 %r1, [square_param_0];
	mul.lo.u32 %r2, %r1, %r1;
	st.param.b32 [square_retval], %r2;
	ret;
}"""
"""Registers of the same names as the caller's."""


def launched(functions: str, body: str, *, threads: int = 32, words: int = 32) -> npt.NDArray[np.uint32]:
    text = f"""
.version 8.8
.target sm_80
{functions}
.visible .entry k(.param .u64 k_0) .reqntid {threads} {{
	.reg .pred %p<10>; .reg .b32 %r<40>; .reg .b64 %rd<10>;
	ld.param.b64 %rd1, [k_0];
	mov.u32 %r1, %tid.x;
	mad.wide.u32 %rd2, %r1, 4, %rd1;
{body}
}}"""
    found = np.zeros(words, np.uint32)
    Kernel(text, arch="sm_80").launch((1,), [found.ctypes.data], [(found.ctypes.data, found.ctypes.data + found.nbytes)])
    return found


def call(name: str, target: str, source: str, guard: str = "") -> str:
    """As NVCC and LLVM write it."""
    return f"""
	{{
	.param .b32 param0;
	st.param.b32 [param0], {source};
	.param .b32 retval0;
	{guard} call.uni (retval0), {name}, (param0);
	ld.param.b32 {target}, [retval0];
	}}"""


def test_a_function_of_a_parameter() -> None:
    found = launched(
        SQUARE, f"{call('square', '%r3', '%r1')}{call('square', '%r4', '%r3')}\nadd.u32 %r3, %r3, %r4; st.global.b32 [%rd2], %r3; ret;"
    )
    assert found.tolist() == [n**2 + n**4 for n in range(32)]


def test_functions_that_call_others_with_loops_labels_and_early_returns() -> None:
    """Steps of Collatz by a function that calls another, which returns in two places."""
    functions = SQUARE + f"""
.func (.param .b32 next_retval) next(.param .b32 next_param_0)
{{
	.reg .pred %p<4>; .reg .b32 %r<9>;
	ld.param.b32 %r1, [next_param_0];
	and.b32 %r2, %r1, 1;
	setp.eq.u32 %p1, %r2, 0;
	@%p1 bra $L_even;
	mad.lo.u32 %r1, %r1, 3, 1;
	st.param.b32 [next_retval], %r1;
	ret;
$L_even:
	shr.u32 %r1, %r1, 1;
	st.param.b32 [next_retval], %r1;
	ret;
}}
.func (.param .b32 steps_retval) steps(.param .b32 steps_param_0)
{{
	.reg .pred %p<4>; .reg .b32 %r<9>;
	ld.param.b32 %r1, [steps_param_0];
	mov.b32 %r5, 0;
$L_even:
	setp.eq.u32 %p1, %r1, 1;
	@%p1 bra $L_done;
	{call("next", "%r1", "%r1")}
	add.u32 %r5, %r5, 1;
	bra $L_even;
$L_done:
	st.param.b32 [steps_retval], %r5;
	ret;
}}"""  # fmt: skip
    found = launched(
        functions, f"add.u32 %r2, %r1, 1; {call('steps', '%r3', '%r2')}{call('square', '%r3', '%r3')} st.global.b32 [%rd2], %r3; ret;"
    )

    def steps(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    assert found.tolist() == [steps(n + 1) ** 2 for n in range(32)]


def test_a_call_under_a_guard_and_a_function_without_a_result() -> None:
    functions = """
.func store(.param .b64 store_param_0, .param .align 8 .b8 store_param_1[8])
{
	.reg .b32 %r<4>; .reg .b64 %rd<4>;
	ld.param.b64 %rd1, [store_param_0];
	ld.param.v2.b32 {%r1, %r2}, [store_param_1];
	add.u32 %r1, %r1, %r2;
	st.global.b32 [%rd1], %r1;
	ret;
}"""
    found = launched(functions, """
	setp.lt.u32 %p1, %r1, 7;
	{
	.param .b64 param0;
	.param .align 8 .b8 param1[8];
	st.param.b64 [param0], %rd2;
	st.param.b32 [param1], %r1;
	st.param.b32 [param1+4], 100;
	@!%p1 call.uni store, (param0, param1);
	}
	ret;""")  # fmt: skip
    assert found.tolist() == [0] * 7 + [n + 100 for n in range(7, 32)]


def test_a_functions_own_memory() -> None:
    """Local memory is a lane's, and shared memory is one for all calls."""
    functions = """
.func (.param .b32 count_retval) count(.param .b32 count_param_0)
{
	.shared .align 4 .b32 cell;
	.local .align 16 .b8 stack[16];
	.reg .b32 %r<4>;
	ld.param.b32 %r1, [count_param_0];
	st.local.b32 [stack+4], %r1;
	atom.shared.add.u32 %r2, [cell], 1;
	ld.local.b32 %r3, [stack+4];
	mad.lo.u32 %r3, %r3, 1000, %r2;
	st.param.b32 [count_retval], %r3;
	ret;
}"""
    body = f"{call('count', '%r3', '%r1')}{call('count', '%r4', '%r1')}\nadd.u32 %r3, %r3, %r4; st.global.b32 [%rd2], %r3; ret;"
    assert launched(functions, body).tolist() == [2000 * n + n + n + 32 for n in range(32)]


ASSERT = """
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e) .noreturn;
"""


def test_an_assertion() -> None:
    body = """
	setp.lt.u32 %p1, %r1, {limit};
	@%p1 bra $L_fine;
	{{
	.param .b64 param0; .param .b64 param1; .param .b32 param2; .param .b64 param3; .param .b64 param4;
	st.param.b64 [param0], 0; st.param.b64 [param1], 0; st.param.b32 [param2], 3; st.param.b64 [param3], 0; st.param.b64 [param4], 1;
	call.uni __assertfail, (param0, param1, param2, param3, param4);
	}}
	trap;
$L_fine:
	st.global.b32 [%rd2], %r1;
	ret;"""
    assert launched(ASSERT, body.format(limit=32)).tolist() == list(range(32))
    with pytest.raises(KernelError, match=r"a trap, .* at `call.uni __assertfail"):
        launched(ASSERT, body.format(limit=31))


LOOP = SQUARE.replace("mul.lo.u32 %r2, %r1, %r1;", call("square", "%r2", "%r1"))


@pytest.mark.parametrize(("functions", "body", "why"), [
    (LOOP, call("square", "%r3", "%r1"), "recursion is not emulated: k calls square calls square"),
    ("", call("square", "%r3", "%r1"), "the function square is not in the PTX"),
    (SQUARE, "{ .param .b32 a; call.uni square, (a); }", "other parameters than square has"),
    (SQUARE, "call.uni (%r3), square, (%r1);", "no variable of .param"),
    (SQUARE, "mov.u64 %rd3, square; { .param .b32 a; .param .b32 b; call (a), %rd3, (b), proto; }", "a call by an address"),
    ("", "st.param.b64 [k_0], %rd1;", "a store to a parameter is not emulated"),
    ("", "{ .param .b32 a; { .param .b64 a; } }", "a is declared again inside its scope"),
])  # fmt: skip
def test_what_is_refused(functions: str, body: str, why: str) -> None:
    with pytest.raises(PtxError, match=why):
        launched(functions, f"{body} ret;")


def test_parameters_of_calls_one_after_another_may_share_a_name() -> None:
    functions = SQUARE + """
.func (.param .b64 wide_retval) wide(.param .b64 wide_param_0)
{
	.reg .b64 %rd<4>;
	ld.param.b64 %rd1, [wide_param_0];
	shl.b64 %rd1, %rd1, 4;
	st.param.b64 [wide_retval], %rd1;
	ret;
}"""  # fmt: skip
    wide: Any = call("wide", "%rd3", "%rd4").replace("b32", "b64")
    found = launched(
        functions, f"{call('square', '%r3', '%r1')} cvt.u64.u32 %rd4, %r3; {wide} cvt.u32.u64 %r4, %rd3; st.global.b32 [%rd2], %r4; ret;"
    )
    assert found.tolist() == [16 * n * n for n in range(32)]
