"""Kernel runs: files, running them again, and the first instruction that differs."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import llvmlite
import numpy as np
import operands
import pytest

from mmabits.commands.main import main
from mmabits.conformance.diff.runs import compare_run, differences, emulated, instrumented
from mmabits.conformance.record.runs import RunDevice
from mmabits.conformance.recorded.runs import Parameter, PtxRun, RunTensor, read_run, write_run
from mmabits.emulator.machine.kernel import Kernel
from mmabits.emulator.machine.sass import assembler
from mmabits.isa import EmulationError, MmabitsError
from mmabits.isa.errors import VectorFileError

pytestmark = pytest.mark.skipif(not getattr(llvmlite, "opaque_pointers_enabled", True), reason="compiled kernels need llvmlite 0.45")

TEXT = """.version 8.7
.target sm_80
.address_size 64
.visible .entry small(.param .u64 p, .param .f32 f) .reqntid 64
{
 .reg .b64 %rd<4>; .reg .f32 %f<8>; .reg .b32 %r<9>; .reg .pred %p<2>;
 .shared .align 4 .b8 room[256];
 ld.param.u64 %rd1, [p];
 ld.param.f32 %f0, [f];
 mov.u32 %r1, %tid.x;
 mov.u32 %r2, %ctaid.x;
 mad.lo.u32 %r3, %r2, 64, %r1;
 mul.wide.u32 %rd2, %r3, 4;
 add.s64 %rd3, %rd1, %rd2;
 ld.global.f32 %f1, [%rd3];
 setp.lt.u32 %p1, %r1, 32;
 mul.f32 %f2, %f0, %f1;
 add.f32 %f3, %f2, %f1;
 @%p1 mul.f32 %f3, %f3, 0f40400000;
 mov.u32 %r4, room;
 shl.b32 %r5, %r1, 2;
 add.u32 %r6, %r4, %r5;
 st.shared.f32 [%r6], %f3;
 bar.sync 0;
 xor.b32 %r7, %r5, 252;
 add.u32 %r8, %r4, %r7;
 ld.shared.f32 %f4, [%r8];
 ex2.approx.ftz.f32 %f5, %f4;
 add.rn.f32 %f6, %f5, %f1;
 st.global.f32 [%rd3], %f6;
 ret;
}"""


def small(text: str = TEXT) -> PtxRun:
    x = operands.generator("runs").uniform(-1, 1, 128).astype(np.float32)
    held = np.concatenate([np.zeros(4, np.float32), x]).view(np.uint8)
    run = PtxRun(
        ptx=text, kernel="small", arch="sm_80", grid=(2, 1, 1), block=(64, 1, 1), cluster=(1, 1, 1), shared=0, contracts=True,
        parameters=(Parameter("", 0, 16), Parameter(np.float32(0.3).tobytes().hex())), before=(held,), after=(held,),
        tensors=(RunTensor("x", 0, 16, (2, 64), (64, 1), 4, "f32"),), gpu="made up",
    )  # fmt: skip
    return replace(run, after=tuple(emulated(run)))


def changed(run: PtxRun, before: str, after: str) -> list[Any]:
    """A GPU that differs: an opcode does something else."""
    assert before in run.ptx
    return emulated(replace(run, ptx=run.ptx.replace(before, after)))


def test_a_file_holds_a_run(tmp_path: Path) -> None:
    run = small()
    write_run(tmp_path / "a.safetensors", run)
    read = read_run(tmp_path / "a.safetensors")
    for name in (
        "ptx",
        "kernel",
        "arch",
        "grid",
        "block",
        "cluster",
        "shared",
        "contracts",
        "parameters",
        "tensors",
        "gpu",
        "kind",
        "hash",
    ):
        assert getattr(read, name) == getattr(run, name), name
    assert all(np.array_equal(one, two) for one, two in zip((*read.before, *read.after), (*run.before, *run.after), strict=True))
    assert compare_run(tmp_path / "a.safetensors").lines() == [
        f"{run.name}, emulated as sm_80, beside made up: 128 elements of 1 tensors, 0 differ"
    ]
    with pytest.raises(VectorFileError, match="there"):
        write_run(tmp_path / "a.safetensors", run)


@pytest.mark.parametrize(("change", "message"), [
    ({"parameters": (Parameter("", 1, 0), Parameter("00000000"))}, "outside the buffers"),
    ({"parameters": (Parameter("", 0, 1 << 20), Parameter("00000000"))}, "outside the buffers"),
    ({"parameters": (Parameter("xy", -1, 0),)}, "not understood"), ({"grid": (1, 2)}, "not understood"),
    ({"grid": (1, 2, -3)}, "not understood"),
    ({"block": (0, 1, 1)}, "without threads"), ({"shared": 1 << 40}, "not understood"), ({"shared": "much"}, "not understood"),
])  # fmt: skip
def test_files_that_contradict_themselves_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a.safetensors", replace(small(), **change))
    with pytest.raises(VectorFileError, match=message):
        read_run(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("before", "after", "instruction", "register", "threads"), [
    ("ex2.approx.ftz.f32 %f5, %f4", "lg2.approx.ftz.f32 %f5, %f4", "ex2.approx.ftz.f32", "%f5", 1),
    ("add.rn.f32 %f6", "add.rz.f32 %f6", "add.rn.f32", "%f6", 1),
    ("ld.param.f32 %f0, [f];", "mov.f32 %f0, 0f3E99999B;", "ld.param.f32", "%f0", 2),  # in the thread that stored what this one loads
    ("@%p1 mul.f32 %f3, %f3, 0f40400000", "@%p1 mul.f32 %f3, %f3, 0f40400001", "mul.f32", "%f3", 2),
])  # fmt: skip
def test_the_first_instruction_is_found(before: str, after: str, instruction: str, register: str, threads: int) -> None:
    run = small()
    found = compare_run(run, other=lambda each: changed(each, before, after))
    assert found.differences and found.parting is not None, found.untold
    assert found.parting.instruction.opcode == instruction and found.parting.register == register
    assert found.parting.threads <= threads and found.parting.found != found.parting.wanted
    assert "the first instruction that differs" in "\n".join(found.lines()) and found.to_dict()["first_instruction"] is not None


def test_what_is_noted_leaves_products_fused() -> None:
    run = small()
    noted = instrumented(run, (1, 0, 0), (5, 0, 0))
    assert [each.opcode for each, _ in noted.noted].count("mul.f32") == 1  # the guarded one: the other is fused
    assert not differences(run, emulated(noted)[:-1], run.after)
    words = emulated(noted)[-1].view(np.uint64).reshape(-1, 2)
    numbers = [int(each) for each in words[:, 0] if each]
    assert numbers == sorted(numbers) and len(numbers) == len(noted.noted)
    assert not {name for _, name in noted.noted} & {"%rd1", "%rd3", "%r4", "%r6", "%r8"}  # addresses


def test_results_that_agree_have_no_first_instruction() -> None:
    run = small()
    found = compare_run(run, other=lambda each: emulated(each))
    assert (
        not found.differences and found.parting is None and found.lines()[0].endswith("beside the GPU: 128 elements of 1 tensors, 0 differ")
    )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = small(), tmp_path / "a.safetensors"
    other = run.after[0].copy()
    other[16 + 4 * 70] ^= 1
    write_run(path, run)
    write_run(tmp_path / "b.safetensors", replace(run, after=(other,), kind="hardware", gpu="NVIDIA H100"))

    def status(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["diff", *arguments])
        return int(ended.value.code or 0)

    assert status("--run", str(path)) == 0
    assert "0 differ" in capsys.readouterr().out
    assert status("--run", str(path), "--run", str(tmp_path / "b.safetensors")) == 1
    told = capsys.readouterr().out
    assert "beside a recording of NVIDIA H100" in told and "1 elements differ, first x[1, 6]" in told
    assert status("--run", str(tmp_path / "b.safetensors"), "--json") == 1
    assert json.loads(capsys.readouterr().out)[0]["differences"][0]["what"] == "x[1, 6]"
    assert status("--run", str(path), "--emulated") == 2 and status("--on-gpu") == 2
    assert status("--run", str(tmp_path / "none.safetensors")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


SCRIPT = """
import torch, triton, triton.language as tl


@triton.jit
def product(a, b, c, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(a + i[:, None] * N + i[None, :]), tl.load(b + i[:, None] * N + i[None, :])
    tl.store(c + i[:, None] * N + i[None, :], tl.exp(tl.dot(x, y)))


def run():
    a, b = (torch.linspace(-1, 1, 1024, device="cuda").reshape(32, 32).half() for _ in range(2))
    product[(1,)](a, b, torch.empty(32, 32, device="cuda"), N=32)
"""


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_launches_of_triton_are_kept_and_run_again_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    (tmp_path / "script.py").write_text(SCRIPT)
    with pytest.raises(SystemExit) as ended:
        main(["kernel", f"{tmp_path / 'script.py'}:run", "--arch", "sm_90a", "--keep", str(tmp_path / "runs")])
    assert not ended.value.code and "wrote 1 launches" in capsys.readouterr().err
    (path,) = (tmp_path / "runs").iterdir()
    run = read_run(path)
    assert [each.name for each in run.tensors] == ["a", "b", "c"] and run.arch == "sm_90a"
    assert not compare_run(run).differences
    found = compare_run(
        run,
        other=lambda each: changed(each, "ex2.approx.ftz.f32" if "ex2.approx.ftz" in run.ptx else "ex2.approx.f32", "lg2.approx.ftz.f32"),
    )
    assert found.parting is not None and found.parting.instruction.opcode.startswith("ex2.approx"), found.untold
    assert "script.py:9" in str(found.parting)


MAPPED = """
import torch, triton, triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def copied(a, b, c, N: tl.constexpr):
    c.store([0, 0], tl.dot(a.load([0, 0]), b.load([0, 0]).T).to(tl.float16))


def run():
    a, b = (torch.linspace(-1, 1, 4096, device="cuda").reshape(64, 64).half() for _ in range(2))
    c = torch.empty(64, 64, device="cuda").half()
    copied[(1,)](*(TensorDescriptor(each, each.shape, each.stride(), [64, 64]) for each in (a, b, c)), N=64)
"""


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_tensor_maps_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    (tmp_path / "mapped.py").write_text(MAPPED)
    with pytest.raises(SystemExit) as ended:
        main(["kernel", f"{tmp_path / 'mapped.py'}:run", "--arch", "sm_90a", "--keep", str(tmp_path / "runs"), "--no-source"])
    assert not ended.value.code
    (path,) = (tmp_path / "runs").iterdir()
    run = read_run(path)
    assert sum(each.is_map for each in run.parameters) == 3 and not compare_run(run).differences
    result = run.after[run.tensors[2].buffer]
    assert result.any() and not np.array_equal(result, run.before[run.tensors[2].buffer])


class HostedGpu:
    """The driver's calls, with memory of this process for the GPU's and the emulator for its processors."""

    def __init__(self, text: str) -> None:
        self.text, self.memory, self.freed = text, dict[int, Any](), 0

    def call(self, name: str, *arguments: Any) -> Any:
        if name == "cuMemAlloc":
            held = np.zeros(arguments[0], np.uint8)
            self.memory[held.ctypes.data] = held
            return held.ctypes.data
        if name in ("cuMemcpyHtoD", "cuMemcpyDtoH"):
            ctypes.memmove(*arguments)
        if name == "cuModuleLoadData":
            assert arguments[0][:4] == b"\x7fELF"
        if name == "cuLaunchKernel":
            _, *sizes, shared, _, addresses, _ = arguments
            assert sizes[3:] == [64, 1, 1] and shared == 0
            places = np.frombuffer(ctypes.string_at(addresses, 16), np.uint64)
            values = [int.from_bytes(ctypes.string_at(int(each), size), "little") for each, size in zip(places, (8, 4), strict=True)]
            ranges = [(start, start + held.size) for start, held in self.memory.items()]
            Kernel(self.text, arch="sm_80").launch(sizes[:3], values, ranges)
        return "function"

    def free(self, pointer: int) -> None:
        del self.memory[pointer]
        self.freed += 1


def test_a_gpu_is_asked_through_its_driver() -> None:
    try:
        assembler("sm_80")
    except MmabitsError as error:
        pytest.skip(str(error))
    run, gpu = small(), HostedGpu(TEXT)
    assert not compare_run(run, other=RunDevice(gpu)).differences  # type: ignore[arg-type]
    assert gpu.freed == 1 and not gpu.memory
    with pytest.raises(EmulationError, match="tensor maps"):
        RunDevice(gpu)(replace(run, parameters=(Parameter("00" * 128, 0, 0, True),)))  # type: ignore[arg-type]


def test_another_architecture_gives_other_bits() -> None:
    assert compare_run(small(), arch="sm_90a").arch == "sm_90a"
    with pytest.raises(MmabitsError):
        compare_run(small(), arch="sm_1")
