"""CUDA C++ and PTX as modules: names, arguments, variables, what the host does for a kernel, and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mmabits
from mmabits.emulator.cuda.modules import PtxModule
from mmabits.emulator.cuda.names import demangled, short_names
from mmabits.emulator.cuda.nvrtc import CompilerRefused
from mmabits.emulator.machine.hostcalls import KernelError
from mmabits.emulator.machine.kernel import KernelCheckError
from mmabits.emulator.machine.ptx import PtxError
from mmabits.isa import EmulationError, MmabitsError, OperandError, OperandTypeError

PTX = """
.version 8.4
.target sm_90a
.address_size 64
.global .align 4 .f32 gain = 0f40400000;
.const .align 4 .b8 table[8] = {1, 0, 0, 0, 2};
.global .align 8 .u64 place = generic(table)+4;

.visible .entry scale(.param .u64 y, .param .u64 x, .param .f32 factor, .param .u32 n, .param .align 4 .b8 pair[8])
{
	.reg .b32 %r<8>; .reg .f32 %f<6>; .reg .b64 %rd<8>; .reg .pred %p<2>;
	ld.param.u64 %rd1, [y]; ld.param.u64 %rd2, [x]; ld.param.f32 %f1, [factor]; ld.param.u32 %r1, [n];
	mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ntid.x; mad.lo.u32 %r2, %r3, %r4, %r2;
	setp.ge.u32 %p1, %r2, %r1;
	@%p1 ret;
	mul.wide.u32 %rd3, %r2, 4; add.u64 %rd1, %rd1, %rd3; add.u64 %rd2, %rd2, %rd3;
	ld.global.f32 %f2, [%rd2]; ld.global.f32 %f3, [gain];
	mul.rn.f32 %f2, %f2, %f1; mul.rn.f32 %f2, %f2, %f3;
	ld.param.f32 %f4, [pair+4]; add.rn.f32 %f2, %f2, %f4;
	ld.global.u64 %rd4, [place]; ld.u32 %r5, [%rd4]; cvt.rn.f32.u32 %f5, %r5; add.rn.f32 %f2, %f2, %f5;
	st.global.f32 [%rd1], %f2;
	ret;
}
.visible .entry double_gain()
{
	.reg .f32 %f<3>;
	ld.global.f32 %f1, [gain]; add.rn.f32 %f1, %f1, %f1; st.global.f32 [gain], %f1;
	ret;
}
.visible .entry nothing(.param .f64 d, .param .u8 byte, .param .align 2 .b8 half[2], .param .s64 wide) .reqntid 64, 1, 1
{
	ret;
}
"""


@pytest.fixture
def module() -> PtxModule:
    return mmabits.load_ptx(PTX)


def pair(low: int, high: float) -> bytes:
    return np.int32(low).tobytes() + np.float32(high).tobytes()


def test_a_kernel_of_ptx_with_numpy(module: PtxModule) -> None:
    x, y = np.arange(70, dtype=np.float32), np.zeros(70, np.float32)
    assert list(module) == ["scale", "double_gain", "nothing"] and module.arch == "sm_90a"
    module["scale"](3, 32, y, x, 0.5, 70, pair(0, 0.25))
    assert np.array_equal(y, x * np.float32(1.5) + np.float32(2.25))
    assert [each.kind for each in module["scale"].parameters] == ["u64", "u64", "f32", "u32", "b8[8]"]


def test_kernels_of_a_module_share_its_variables(module: PtxModule) -> None:
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    assert list(module.globals) == ["gain", "table", "place"]
    module["double_gain"](1, 1)
    assert module.globals["gain"] == 6
    module.globals["gain"] = 10
    module.globals["table"] = np.array([1, 7], np.int32)
    module["scale"](1, 32, y, x, 1, 32, pair(0, 0))
    assert (y == 17).all()
    assert mmabits.load_ptx(PTX).globals["gain"] == 3
    module.globals["table"].view(np.int32)[1] = 8
    module["scale"](1, 32, y, x, 1, 32, pair(0, 0))
    assert (y == 18).all()
    with pytest.raises(OperandError, match="no variable is called 'gian'; did you mean gain"):
        module.globals["gian"]
    with pytest.raises(OperandError, match="table has 8 bytes, got 4"):
        module.globals["table"] = b"1234"


def test_torch_and_what_the_kernel_may_touch(module: PtxModule) -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.arange(64.0), torch.zeros(64)
    module["scale"](2, 32, y[32:], x, 1.0, 32, pair(0, 0))
    assert torch.equal(y[32:], x[:32] * 3 + 2) and not y[:32].any()
    with pytest.raises(KernelError, match="outside the memory that the kernel was given"):
        module["scale"](2, 32, y[:32], x, 1.0, 64, pair(0, 0))
    with pytest.raises(OperandTypeError, match="argument 1 of scale, u64, must be a plain array, got a tensor on the meta device"):
        module["scale"](2, 32, y.to("meta"), x, 1.0, 64, pair(0, 0))


def test_jax_arrays_are_read_and_never_written(module: PtxModule) -> None:
    jnp = pytest.importorskip("jax.numpy")
    x, y = jnp.arange(32, dtype=jnp.float32), np.zeros(32, np.float32)
    module["scale"](1, 32, y, x, 1.0, 32, pair(0, 0))
    assert np.array_equal(y, 3 * np.arange(32, dtype=np.float32) + 2)
    target = jnp.zeros(32)
    with pytest.raises(OperandError, match=r"scale wrote to argument 1, a JAX array, which cannot change"):
        module["scale"](1, 32, target, x, 1.0, 32, pair(0, 0))
    assert not np.asarray(target).any()


def test_read_only_arrays_likewise(module: PtxModule) -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    x.flags.writeable = False
    module["scale"](1, 32, y, x, 1.0, 32, pair(0, 0))
    assert y[31] == 95
    y.flags.writeable = False
    with pytest.raises(OperandError, match="a read-only array"):
        module["scale"](1, 32, y, x, 2.0, 32, pair(0, 0))
    assert y[31] == 95


def test_an_address_and_memory_beside_the_arguments(module: PtxModule) -> None:
    x, y = np.ones(32, np.float32), np.zeros(32, np.float32)
    with pytest.raises(KernelError, match="outside the memory"):
        module["scale"](1, 32, y, x.ctypes.data, 1.0, 32, pair(0, 0))
    module["scale"](1, 32, y, x.ctypes.data, 1.0, 32, pair(0, 0), memory=[x])
    assert (y == 5).all()


VOID = np.zeros((), np.dtype([("a", "i4"), ("b", "f4")]))[()]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((1,), "takes 5 arguments (u64, u64, f32, u32, b8[8]), got 1"),
        ((None, None, 1.0, 1.5, VOID), "argument 4 of scale, u32, is an integer, got the float 1.5"),
        ((None, None, 1.0, 1 << 32, VOID), "argument 4 of scale, u32, must fit in 32 bits, got 4294967296"),
        ((None, None, 1.0, 1, b"123"), "argument 5 of scale, b8[8], has 8 bytes, got 3"),
        ((None, None, 1.0, 1, 7), "argument 5 of scale, b8[8], got the int 7: give bytes, or a numpy.void"),
        ((None, None, np.zeros(2), 1, VOID), "argument 3 of scale, f32, is no pointer, got an array"),
        ((None, None, 1.0, np.zeros(2), VOID), "argument 4 of scale, u32, is no pointer, got an array"),
        (("text", None, 1.0, 1, VOID), "argument 1 of scale, u64, must be an array, a number, bytes or a numpy.void, got str"),
        ((np.array([None]), None, 1.0, 1, VOID), "must be an array of numbers, got dtype object"),
        ((None, None, None, 1, VOID), "argument 3 of scale, f32, got None, which is a null pointer, of 8 bytes"),
        ((None, None, 10**400, 1, VOID), "argument 3 of scale, f32, must fit in f32, got an integer of 1,329 bits"),
        ((None, None, np.complex64(1j), 1, VOID), "argument 3 of scale, f32, is a real number, got complex64"),
    ],
)
def test_arguments_that_do_not_fit(arguments: tuple[Any, ...], error: str, module: PtxModule) -> None:
    with pytest.raises(MmabitsError, match=re.escape(error)):
        module["scale"](1, 32, *arguments)


def test_numbers_of_every_kind(module: PtxModule) -> None:
    kernel = module["nothing"]
    for half in (np.float16(1), ml_dtypes.bfloat16(1), b"12"):
        kernel(1, 64, np.float32(1), True, half, -(1 << 63))
    with pytest.raises(OperandTypeError, match=r"give numpy.float16\(x\) or ml_dtypes.bfloat16\(x\), or bytes"):
        kernel(1, 64, 1.0, 1, 1.0, 1)
    with pytest.raises(OperandTypeError, match="argument 4 of nothing, s64, is an integer"):
        kernel(1, 64, 1.0, 1, b"12", np.float64(1))


@pytest.mark.parametrize(
    ("grid", "block", "error"),
    [
        (0, 64, "grid is (0, 1, 1)"), (1, 2048, "block is (2048, 1, 1)"), ((1, 1, 1, 1), 64, "grid must be an integer or up to three"),
        (1, 32, "is compiled for blocks of (64, 1, 1) threads, got (32, 1, 1)"), (1.5, 64, "grid must be an integer"),
        (1, (8, 8, 128), "block is (8, 8, 128); there are up to (1024, 1024, 64)"),
    ],
)  # fmt: skip
def test_sizes_that_no_gpu_takes(grid: Any, block: Any, error: str, module: PtxModule) -> None:
    with pytest.raises(MmabitsError, match=re.escape(error)):
        module["nothing"](grid, block, 1.0, 1, b"12", 1)


def test_a_launch_in_a_file_runs_again(module: PtxModule, tmp_path: Path) -> None:
    """`mmabits diff --run` takes such files, and a GPU's results; variables begin as the text has them."""
    from mmabits.conformance.diff.runs import Keeper, compare_run, emulated
    from mmabits.conformance.recorded.runs import read_run

    x, y = np.arange(64, dtype=np.float32), np.zeros(32, np.float32)
    module.keeper = Keeper(tmp_path)
    module["scale"](1, 32, y, x[32:], 0.5, 32, pair(0, 0.25))
    (path,) = module.keeper.paths
    run = read_run(path)
    assert run.kernel == "scale" and run.grid == (1, 1, 1) and len(run.before) == 2
    after = emulated(run)
    assert any(np.array_equal(each.view(np.float32), y) for each in after if each.size == y.nbytes)
    assert not compare_run(path).differences


@pytest.mark.parametrize("memory", [5, np.zeros((2, 2)), "ab", [5]])
def test_memory_is_a_list_of_arrays(memory: Any, module: PtxModule) -> None:
    with pytest.raises(OperandTypeError, match=r"memory must be a list of arrays|memory\[0\] must be an array"):
        module["double_gain"](1, 1, memory=memory)


def test_dynamic_shared_memory_is_an_integer(module: PtxModule) -> None:
    module["double_gain"](1, 1, shared=np.int64(16))
    with pytest.raises(OperandError, match="True bytes of dynamic shared memory"):
        module["double_gain"](1, 1, shared=True)


def test_clusters_that_no_gpu_makes() -> None:
    text = ".version 8.4\n.target {}\n.address_size 64\n.visible .entry k() {} {{ ret; }}\n"
    with pytest.raises(OperandError, match=r"k: clusters of \(2, 1, 1\) CTAs; sm_80 has none"):
        mmabits.load_ptx(text.format("sm_80", ""))["k"](2, 1, cluster=2)
    mmabits.load_ptx(text.format("sm_80", ""))["k"](2, 1, cluster=1)
    told = mmabits.load_ptx(text.format("sm_90a", ".explicitcluster .reqnctapercluster 2, 1, 1"))["k"]
    told(4, 1, cluster=2)
    with pytest.raises(OperandError, match=r"k is compiled for clusters of \(2, 1, 1\) CTAs, got \(4, 1, 1\)"):
        told(4, 1, cluster=4)


VARIABLES = """
.version 8.4
.target sm_90a
.address_size 64
.global .align 4 .u32 whole;
.global .align 2 .u16 little;
.global .align 8 .f64 wide;
.global .attribute(.managed) .align 4 .u32 managed = 7;
.global .attribute(.unified(19, 95)) .align 4 .f32 unified;
.global .align 4 .b8 pair[8];
"""


def test_variables_take_what_they_hold() -> None:
    held = mmabits.load_ptx(VARIABLES).globals
    assert held["managed"][0] == 7 and "unified" in held
    held["whole"], held["little"], held["wide"], held["pair"] = -1, -2, np.float32(0.5), VOID
    assert (
        held["whole"][0] == 2**32 - 1 and held["little"][0] == 65534 and held["wide"][0] == 0.5 and held["pair"].tobytes() == VOID.tobytes()
    )
    held["pair"] = list(range(8))
    assert list(held["pair"]) == list(range(8))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("whole", 1.5, "variable whole, u32, is an integer, got the float 1.5"),
        ("whole", np.float32(1.5), "variable whole, u32, is an integer, got float32"),
        ("whole", np.array(1 << 40), "variable whole, u32, must fit in 32 bits, got 1099511627776"),
        ("whole", np.int64(1 << 40), "variable whole, u32, must fit in 32 bits, got 1099511627776"),
        ("little", 1 << 16, "variable little, u16, must fit in 16 bits, got 65536"),
        ("wide", None, "variable wide, f64, got None"), ("wide", "1", "variable wide, f64, must be an array, a number"),
        ("pair", [1.5] * 8, "variable pair, b8, is an integer, got the float 1.5"), ("pair", [1, 2], "pair has 8 bytes, got 2"),
    ],
)  # fmt: skip
def test_what_a_variable_cannot_hold(name: str, value: Any, error: str) -> None:
    with pytest.raises(MmabitsError, match=re.escape(error)):
        mmabits.load_ptx(VARIABLES).globals[name] = value


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"box": (8.5, 8)}, "box must be integers"), ({"box": 8}, "box must be integers"), ({"box": "88"}, "box must be integers"),
        ({"swizzle": [1]}, "a tensor map with swizzle [1]"), ({"element": 5}, "element must be text, got 5"),
        ({"element_strides": 5}, "element_strides must be integers"), ({"element_strides": (1, 2)}, "with strides of elements (2, 1)"),
        ({"interleave": 16}, "interleaves slices of 16 bytes is not emulated: neither the PTX manual"),
        ({"interleave": 8}, "interleave must be 0"),
        ({"fill": "nan"}, "a tensor map of s32 cannot fill with NaN"),
        ({"array": np.zeros((64, 64), np.int32)[::-1]}, "with strides (-256, 4): none may be negative"),
    ],
)  # fmt: skip
def test_tensor_maps_that_there_are_not(change: dict[str, Any], error: str) -> None:
    arguments = {"array": np.zeros((64, 64), np.int32), "box": (8, 8), **change}
    with pytest.raises(MmabitsError, match=re.escape(error)):
        mmabits.tensor_map(arguments.pop("array"), **arguments)


def test_names_that_are_not_there(module: PtxModule) -> None:
    with pytest.raises(KeyError, match="no kernel is called 'scalee'; did you mean scale"):
        module["scalee"]
    assert "scalee" not in module and "scale" in module and len(module) == 3
    with pytest.raises(OperandError, match=r"nothing.ptx cannot be read"):
        mmabits.load_ptx("nothing.ptx")
    with pytest.raises(OperandError, match="no check is called 'memorie'; did you mean memory"):
        module["double_gain"](1, 1, check=["memorie"])
    with pytest.raises(OperandError, match="report returns what checks find"):
        module["double_gain"](1, 1, report=True)


RACE = """
extern "C" __global__ void turned(float *x) {
    __shared__ float room[256];
    room[threadIdx.x] = x[threadIdx.x];
    %s
    x[threadIdx.x] = room[255 - threadIdx.x];
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_checks_and_other_orders_of_a_kernel(arch: str) -> None:
    """A barrier that is missing is named, with both lines; its twin has none."""
    wrong, right = (mmabits.compile_cuda(RACE % text, arch=arch)["turned"] for text in ("", "__syncthreads();"))
    x = np.arange(256, dtype=np.float32)
    (found,) = wrong(1, 256, x, check=("memory", "init", "races", "sync"), report=True)[:1] or (None,)
    assert found is not None and found.check in ("races", "init") and "shared memory" in str(found)
    every = wrong(1, 256, x, check="races", report=True)
    assert every and all(each.check == "races" and "source.cu:" in str(each) for each in every)
    with pytest.raises(KernelCheckError, match="finding"):
        wrong(1, 256, x, check=("races", "init"))
    for schedule in (None, "latest", "earliest", 3):
        x = np.arange(256, dtype=np.float32)
        assert right(1, 256, x, check=("memory", "init", "races", "sync"), report=True, schedule=schedule) == ()
        assert np.array_equal(x, np.arange(256)[::-1])


def test_ptx_without_a_target() -> None:
    with pytest.raises(PtxError, match=r"the PTX has no .target; arch= says what it runs as"):
        mmabits.load_ptx("")


@pytest.mark.parametrize(
    ("target", "runs", "refused"),
    [
        ("sm_80", ("sm_80", "sm_86", "h100", "sm_120a"), ("sm_75",)),
        ("sm_90a", ("sm_90a",), ("sm_80", "sm_100a")),
        ("sm_90", ("sm_90a", "sm_100a"), ("sm_89",)),
        ("sm_100f", ("sm_100a", "sm_103a"), ("sm_90a", "sm_120a", "sm_110a")),
    ],
)
def test_an_architecture_runs_the_targets_that_the_manual_says(target: str, runs: tuple[str, ...], refused: tuple[str, ...]) -> None:
    text = f".version 8.8\n.target {target}\n.address_size 64\n.visible .entry k() {{ ret; }}\n"
    assert mmabits.load_ptx(text).arch == runs[0]
    for arch in runs:
        mmabits.load_ptx(text, arch=arch)
    for arch in refused:
        with pytest.raises(OperandError, match=f"has .target {target}, and {arch} does not run it: sm_80 runs on"):
            mmabits.load_ptx(text, arch=arch)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fma.rn.f16x2 %r1, %r2, 0x3C003C00, %r3;", "no constant as an operand of type f16x2"),
        ("add.f16 %h1, %h2, 0x3C00;", "no constant as an operand of type f16"),
        ("add.f32 %f1, %f2, 1;", "no integer, only constants of floating point, as an operand of type f32"),
        ("add.u32 %r1, %r2, 1.0;", "no constant of floating point as an operand of type u32"),
    ],
)
def test_constants_that_ptxas_refuses(line: str, told: str) -> None:
    registers = ".reg .b16 %h<4>; .reg .b32 %r<4>; .reg .f32 %f<4>;"
    text = f".version 8.8\n.target sm_90a\n.address_size 64\n.visible .entry k() {{ {registers}\n{line}\nret; }}\n"
    with pytest.raises(PtxError, match=f"k: .*: ptxas takes {told}"):
        mmabits.load_ptx(text)["k"](1, 32)


def test_ptx_that_begins_with_the_address_of_nothing() -> None:
    with pytest.raises(PtxError, match="place begins with the address of other, which is no variable of the module"):
        mmabits.load_ptx(PTX.replace("generic(table)+4", "generic(other)"))


def test_cplusplus_names() -> None:
    full = demangled("_ZN2ns5scaleILi7EEEvPfPKf")
    if full.startswith("_Z"):
        pytest.skip("no demangler")
    assert full == "void ns::scale<7>(float*, float const*)"
    assert short_names(full) == ("ns::scale<7>", "ns::scale", "scale<7>", "scale")
    assert demangled("plain") == "plain" and demangled("_Znonsense?") == "_Znonsense?"


# -------------------------------------------------------------------------------------------------------------- the compiler

SOURCE = r"""
struct Pair { float a; int b; };
__device__ float gain = 3.0f;
__constant__ int table[4] = {1, 2, 3, 4};
namespace ns { __device__ int calls; }
__device__ __noinline__ float shifted(float x, int n) { return n > 3 ? x * gain : x + n; }

template <int N> __global__ void scale(float *y, const float *x, float factor, int n, unsigned char c, double d, Pair p, bool q) {
    extern __shared__ float held[];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    held[threadIdx.x + 20000] = x[i];
    __syncthreads();
    if (i < n) y[i] = shifted(held[threadIdx.x + 20000] * factor, c) + (float)d + p.a + p.b + N + table[i & 3] + q;
    if (i == 0) atomicAdd(&ns::calls, 1);
}
template __global__ void scale<7>(float *, const float *, float, int, unsigned char, double, Pair, bool);

extern "C" __global__ void clocks(long long *t) {
    t[0] = clock64();
    __nanosleep(100);
    t[1] = clock64();
    t[2] = clock();
}
extern "C" __global__ void stops(int at) { if (threadIdx.x == at) __trap(); }
"""


def test_cuda_cplusplus(nvrtc: None) -> None:
    made = mmabits.compile_cuda(SOURCE, arch="h100")
    assert made.arch == "sm_90a" and len(made) == 3
    kernel = made["scale<7>"]
    assert kernel is made["scale"] and kernel.name.startswith("void scale<7>(float*")
    x, y = np.arange(70, dtype=np.float32), np.zeros(70, np.float32)
    p = np.zeros((), np.dtype([("a", "f4"), ("b", "i4")]))
    p["a"], p["b"] = 0.5, 2
    x = np.concatenate([x, np.zeros(26, np.float32)])
    kernel(3, 32, y, x, 0.5, 70, 5, 2.25, p[()], True, shared=80128)
    want = x[:70] * np.float32(1.5) + np.float32(2.25 + 0.5 + 2 + 7 + 1) + (np.arange(70) % 4 + 1)
    assert np.array_equal(y, want.astype(np.float32))
    assert made.globals["ns::calls"] == 1 and made.globals["table"].view(np.int32).tolist() == [1, 2, 3, 4]
    with pytest.raises(OperandError, match=r"bytes of shared memory; a CTA of sm_90a has 232,448"):
        kernel(3, 32, y, x, 0.5, 70, 5, 2.25, p[()], True, shared=1 << 18)


@pytest.mark.parametrize(
    ("source", "change", "error"),
    [
        ("", {"options": "-DX=1"}, "options must be a list, got '-DX=1'"), ("", {"options": [5]}, "options must be a list of text, got 5"),
        ("", {"include": "/usr/include"}, "include must be a list, got '/usr/include'"), ("", {"names": None}, "names must be a list"),
        ("int a;\0 int b;", {}, "the source has a character that NVRTC would not see whole"),
        ("// \ud800", {}, "the source has a character"), ("", {"options": ["-DX=1\0"]}, "an option has a character"),
        ("a\0.cu", {}, "cannot be the path of a file"), ("", {"options": ["-dlto"]}, "NVRTC makes no PTX with the options -dlto"),
    ],
)  # fmt: skip
def test_what_is_not_compiled(source: str, change: dict[str, Any], error: str, nvrtc: None) -> None:
    with pytest.raises(MmabitsError, match=re.escape(error)):
        mmabits.compile_cuda(source, arch="sm_90a", **change)


def test_printf_without_standard_output(nvrtc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = mmabits.compile_cuda('extern "C" __global__ void k() { printf("said"); }', arch="sm_90a")
    monkeypatch.setattr("sys.stdout", None)
    made["k"](1, 1)


def test_clocks_go_on(nvrtc: None) -> None:
    times = np.zeros(3, np.int64)
    mmabits.compile_cuda(SOURCE, arch="sm_80")["clocks"](2, 1, times)
    assert times.tolist() == [64, 128, 192]


def test_a_trap(nvrtc: None) -> None:
    kernel = mmabits.compile_cuda(SOURCE, arch="sm_100a")["stops"]
    kernel(1, 64, 64)
    with pytest.raises(KernelError, match=r"stops: a trap, in program \(0, 0, 0\), warp 1, lane 8"):
        kernel(1, 64, 40)


PRINTS = r"""
extern "C" __global__ void prints(const char *text) {
    if (threadIdx.x % 8 == 0)
        printf("%d|%5u|%-4d|%04d|%x|%#o|%lld|%5.2f|%e|%g|%a|%c|%s|%.2s|%%|%p\n", (int)threadIdx.x - 8, blockIdx.x, 7, -3, 255, 8,
               -(1ll << 40), 3.14159, 1e10, 0.0001, 1.5, 'z', "word", text, (void *)0);
    if (threadIdx.x == 1) { int count = printf("%*d %f %F\n", 6, 42, 1.0 / 0.0 * blockIdx.x, 0.0); printf("%d\n", count); }
}
extern "C" __global__ void asserts(int n) { assert(threadIdx.x < n && "too many"); }
"""


def test_printf_in_the_order_of_the_program(nvrtc: None, capsys: pytest.CaptureFixture[str]) -> None:
    text = np.frombuffer(b"abc\0", np.uint8).copy()
    mmabits.compile_cuda(PRINTS, arch="sm_90a")["prints"](2, 16, text)
    lines = capsys.readouterr().out.splitlines()
    line = "{}|    {}|7   |-003|ff|010|-1099511627776| 3.14|1.000000e+10|0.0001|0x1.8p+0|z|word|ab|%|(nil)"
    want = []
    for block, number in ((0, "nan"), (1, "inf")):
        want += [line.format(-8, block), line.format(0, block), f"    42 {number} 0.000000", "4"]
    assert [each.replace("-nan", "nan") for each in lines] == want


def test_a_failed_assertion_says_what_and_where(nvrtc: None) -> None:
    kernel = mmabits.compile_cuda(PRINTS, arch="sm_90a")["asserts"]
    kernel(2, (8, 8), 8)
    told = r"asserts: a trap, the assertion `threadIdx.x < n .* failed \(source.cu:8, .*\), in program \(0, 0, 0\), thread \(6, 0, 0\)"
    with pytest.raises(KernelError, match=told):
        kernel(2, (8, 8), 6)


def test_the_compiler_writes_into_nothing_of_pythons(nvrtc: None) -> None:
    """Its log is one byte, a zero, where it says nothing; Python has one object for all single spaces."""
    mmabits.compile_cuda("__global__ void k() {}", arch="sm_90a")
    assert bytes([32])[0] == 32 and (b" " * 1).hex() == "20" and b"\n"[0] == 10


def test_what_nvrtc_says(nvrtc: None, tmp_path: Path) -> None:
    (tmp_path / "own.cuh").write_text("#define VALUE 7\n")
    file = tmp_path / "kernel.cu"
    file.write_text('#include "own.cuh"\nextern "C" __global__ void k(int *x) { *x = VALUE + MORE; }\n')
    found = np.zeros(1, np.int32)
    mmabits.compile_cuda(file, arch="sm_90a", options=["-DMORE=3"])["k"](1, 1, found)
    assert found[0] == 10
    with pytest.raises(
        CompilerRefused, match=r"does not compile it for compute_90a: .*kernel.cu\(2\): error: identifier \"MORE\""
    ) as caught:
        mmabits.compile_cuda(str(file), arch="sm_90a")
    assert "1 error detected" in caught.value.log
    with pytest.raises(CompilerRefused, match="unrecognized option"):
        mmabits.compile_cuda(SOURCE, arch="sm_90a", options=["--nonsense"])


def test_templates_by_name_and_fusing(nvrtc: None) -> None:
    source = """template <int N> __global__ void fused(float *x) { x[1] = x[0] * x[0] - N; }"""
    x = np.array([1 + 2**-12, 0], np.float32)
    for options, exact in (([], True), (["--fmad=false"], False)):
        made = mmabits.compile_cuda(source, arch="sm_80", names=["fused<1>"], options=options)
        made["fused<1>"](1, 1, x)
        product = np.float64(x[0]) * np.float64(x[0])
        assert x[1] == np.float32((product if exact else np.float64(np.float32(product))) - 1)


def test_recursion_is_refused(nvrtc: None) -> None:
    source = """__device__ __noinline__ int f(int n) { return n < 2 ? 1 : n * f(n - 1) + f(n - 2); }
    extern "C" __global__ void k(int *x) { *x = f(*x); }"""
    with pytest.raises(PtxError, match="recursion is not emulated"):
        mmabits.compile_cuda(source, arch="sm_80")["k"](1, 1, np.array([5], np.int32))


def test_lanes_meet_where_the_compiler_put_rare_code_behind(nvrtc: None) -> None:
    """A barrier after a lock that one thread gives back: the branch to it goes back in the text."""
    source = """
extern "C" __global__ void k(int *lock, int *out, int n, int rare) {
    for (int i = 0; i < n; i++) {
        if (threadIdx.x == 0) {
            if (i == rare) {
                int state;
                do asm volatile("ld.global.acquire.gpu.b32 %0, [%1];" : "=r"(state) : "l"(lock)); while (state != 0);
                lock[1] = i;
            } else asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" :: "l"(lock + 2), "r"(1) : "memory");
        }
        __syncthreads();
        out[threadIdx.x] += lock[2];
        __syncthreads();
    }
}"""
    lock, out = np.zeros(3, np.int32), np.zeros(64, np.int32)
    mmabits.compile_cuda(source, arch="sm_80")["k"](1, 64, lock, out, 6, 3)
    assert lock.tolist() == [0, 3, 5] and (out == 1 + 2 + 3 + 3 + 4 + 5).all()


def test_lanes_wait_in_front_of_wgmma_for_one_that_waits_for_an_mbarrier(nvrtc: None) -> None:
    """As in CuTe's kernels without a warp of its own for copies: lane 0 waits for all threads while the others go round the loop."""
    source = """
__device__ void wait(unsigned place, int parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }"
                 :: "r"(place), "r"(parity) : "memory");
}
__device__ void arrive(unsigned place) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(place) : "memory"); }

extern "C" __global__ void k(int *out, int n) {
    __shared__ __align__(8) unsigned long long full[2], empty[2];
    const unsigned fulls = (unsigned)__cvta_generic_to_shared(full), empties = (unsigned)__cvta_generic_to_shared(empty);
    if (threadIdx.x == 0)
        for (int stage = 0; stage < 2; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(fulls + 8 * stage) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 128;" :: "r"(empties + 8 * stage) : "memory");
            arrive(fulls + 8 * stage);
        }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < n; i++) {
        const int stage = i % 2, parity = i / 2 & 1;
        wait(fulls + 8 * stage, parity);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        arrive(empties + 8 * stage);
        if (threadIdx.x == 0) {
            wait(empties + 8 * stage, parity);
            arrive(fulls + 8 * stage);
            out[0] += 1;
        }
    }
}"""
    out = np.zeros(1, np.int32)
    mmabits.compile_cuda(source, arch="sm_90a")["k"](1, 128, out, 9)
    assert out[0] == 9


def test_copies_of_a_pair_are_counted_in_its_first_cta(nvrtc: None) -> None:
    """CUTLASS clears the bit of the barrier's address that has the rank, in copies of .cta_group::2."""
    source = """
struct alignas(64) Map { unsigned long long words[16]; };
extern "C" __global__ void k(const __grid_constant__ Map map, int *out) {
    __shared__ __align__(128) int held[32];
    __shared__ __align__(8) unsigned long long barrier;
    const unsigned place = (unsigned)__cvta_generic_to_shared(&barrier), to = (unsigned)__cvta_generic_to_shared(held);
    if (threadIdx.x == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(place) : "memory");
    asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
    if (threadIdx.x == 0) {
        if (blockIdx.x % 2 == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 256;" :: "r"(place) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                     :: "r"(to), "l"(&map), "r"(0), "r"(blockIdx.x), "r"(place & MASK) : "memory");
        if (blockIdx.x % 2 == 0)
            asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0; @!done bra again; }"
                         :: "r"(place) : "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
    out[blockIdx.x * 32 + threadIdx.x] = held[threadIdx.x];
}"""
    given, found = np.arange(128, dtype=np.int32).reshape(4, 32), np.zeros((4, 32), np.int32)
    for mask in ("0xfeffffff", "0xffffffff"):
        made = mmabits.compile_cuda(source, arch="sm_100a", options=[f"-DMASK={mask}"])["k"]
        launch = (4, 32, mmabits.tensor_map(given, box=(1, 32)), found)
        if mask == "0xfeffffff":
            made(*launch, cluster=2)
            assert np.array_equal(found, given)
        else:
            with pytest.raises(KernelError, match="a deadlock"):
                made(*launch, cluster=2)


def test_cuda_headers(headers: None) -> None:
    source = """
#include <cuda_fp16.h>
#include <cstdint>
#include <type_traits>
#include <cooperative_groups.h>
extern "C" __global__ void k(half *x, std::uint32_t n) {
    auto block = cooperative_groups::this_thread_block();
    static_assert(std::is_same_v<uint32_t, unsigned>);
    x[block.thread_rank()] = __hmul(x[threadIdx.x], __int2half_rn(n));
}"""
    x = np.arange(32, dtype=np.float16)
    mmabits.compile_cuda(source, arch="sm_90a")["k"](1, 32, x, 3)
    assert np.array_equal(x, 3 * np.arange(32, dtype=np.float16))


PRODUCT = """
extern "C" __global__ void product(const unsigned *a, const unsigned *b, float *d, float factor) {
    const unsigned *p = a + 4 * threadIdx.x, *q = b + 2 * threadIdx.x;
    float c[4] = {0, 0, 0, 0};
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "r"(q[0]), "r"(q[1]));
    for (int i = 0; i < 4; ++i) d[4 * threadIdx.x + i] = c[i] * factor + 1.0f;
}
"""


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_result_is_followed_back_to_its_product_and_elements(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size).astype(np.float16).view(np.int32) for size in (256, 128))
    d = np.zeros(128, np.float32)
    given = (a, b, d) if kind == "numpy" else tuple(map(torch.from_numpy, (a, b, d)))
    kernel = mmabits.compile_cuda(PRODUCT, arch="sm_80")["product"]
    found = mmabits.explain_result(lambda: kernel(1, 32, *given, 2.0), given[2], 5, arch="sm_80")
    assert found.element == "argument 3[5]" and found.value.code == int(d[5:6].view(np.uint32)[0])
    (product,) = found.products
    assert product.computed == product.code and len(product.a) == len(product.b) == 16
    assert "source.cu:7" in str(found) and str(found).count("argument 1[") == 2
    page = found.html()
    assert page.count('<tr id="step-') == len({id(each.origin) for each in found.steps()}) == 7
    assert 'href="#product-2"' in page and 'id="product-2"' in page and "the same bits" in page and "<svg" in page
    assert "source.cu:7" in page and "st.global" in page and "moved by 1 instruction" in page
    assert all(f'href="#step-{number}"' in page and f'id="step-{number}"' in page for number in range(2, 8))
    assert found.save(tmp_path / "why.html").read_text() == page and found.save(tmp_path / "why.txt").read_text() == f"{found}\n"
    with pytest.raises(OperandError, match=r"a page is written as .html or .txt"):
        found.save(tmp_path / "why.pdf")
    with pytest.raises(OperandError, match="product is compiled for sm_80, and looked at for sm_90a"):
        mmabits.explain_result(lambda: kernel(1, 32, *given, 2.0), given[2], 5, arch="sm_90a")
    with pytest.raises(OperandError, match="product: a launch that is followed back runs without checks"):
        mmabits.explain_result(lambda: kernel(1, 32, *given, 2.0, check="races"), given[2], 5, arch="sm_80")
    with pytest.raises(EmulationError, match="no compiled kernel wrote element"):
        mmabits.explain_result(lambda: None, given[2], 5, arch="sm_80")


def test_text_has_no_folder() -> None:
    """The same text is the same PTX, wherever it is compiled."""
    assert '"source.cu"' in mmabits.compile_cuda(PRODUCT, arch="sm_80").ptx


LAST = 'extern "C" __global__ void last(int *x) { x[threadIdx.x] = blockIdx.x; }'
EACH = 'extern "C" __global__ void each(int *x) { x[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x; }'


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_results_that_hang_on_the_order_of_work(kind: str) -> None:
    torch = pytest.importorskip("torch")
    last, each = (mmabits.compile_cuda(text, arch="sm_90a") for text in (LAST, EACH))
    x = np.full(128, 7, np.int32)
    given = x if kind == "numpy" else torch.from_numpy(x)
    assert mmabits.compare_schedules(lambda: each["each"](4, 32, given), given, arch="sm_90a").same
    found = mmabits.compare_schedules(lambda: last["last"](4, 32, given), [given], arch="sm_90a", schedules=("latest", 1))
    assert not found.same and found.differences[0].elements == 32 and (found.differences[0].usual, found.differences[0].found) == (3, 0)
    assert x[:32].tolist() == [3] * 32  # the usual order
    last["last"](4, 32, given)  # by threads of the processor at once: any CTA may be the last one
    assert set(x[:32].tolist()) <= {0, 1, 2, 3}
    with pytest.raises(OperandError, match="contiguous"):
        mmabits.compare_schedules(lambda: None, x[::2], arch="sm_90a")
