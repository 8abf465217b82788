"""`mmabits kernel` and `mmabits.describe_kernel`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mmabits
from mmabits.commands.main import main
from mmabits.emulator.machine.ptx import read_ptx
from mmabits.isa import Evidence, OperandError

TEXT = """.version 8.7
.target sm_80
.address_size 64
.visible .entry small(.param .u64 p, .param .f32 f) .reqntid 64 {
 .reg .b64 %rd<2>; .reg .f32 %f<5>; .reg .b32 %r<2>;
 .shared .align 16 .b8 room[256];
 .file 1 "SOURCE"
 .loc 1 2 0
 ld.param.u64 %rd1, [p];
 ld.param.f32 %f0, [f];
 .loc 1 3 0
 ld.global.f32 %f1, [%rd1];
 mul.f32 %f2, %f0, %f1;
 add.f32 %f3, %f2, %f1;
 ex2.approx.ftz.f32 %f4, %f3;
 st.global.f32 [%rd1], %f4;
 ret;
}
.visible .entry other() { ret; }"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    source, text = tmp_path / "k.py", tmp_path / "k.ptx"
    source.write_text("first\nsecond\nthird\n")
    text.write_text(TEXT.replace("SOURCE", str(source)))
    return text


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["kernel", *arguments])
    return int(ended.value.code or 0)


def test_a_description_counts_what_the_text_says(file: Path) -> None:
    found = mmabits.describe_kernel(file.read_text(), "small", arch="sm_80", shared=1024)
    assert (found.threads, found.parameters, found.local, found.tensor_memory, found.cluster) == (64, 2, 0, 0, 1)
    assert found.shared == 256 + 1024 and found.opcodes.total() == 8 and found.fused == 1 and found.tensor == ()
    assert found.families == {"parameters": 2, "global memory": 2, "f32 arithmetic": 2, "divisions and functions": 1, "branches": 1}
    assert [(each.line, each.text, each.count) for each in found.lines] == [(2, "second", 2), (3, "third", 6)]
    assert {each.what: each.evidence for each in found.weak} == {
        "ex2.approx.ftz.f32": Evidence.INFERRED, "fused multiply-adds": Evidence.INFERRED,
    }  # fmt: skip
    assert mmabits.describe_kernel(file.read_text(), "small", arch="sm_80", contracts=False).fused is None


def test_products_are_named_with_their_evidence() -> None:
    text = """.version 8.7
.target sm_80
.address_size 64
.visible .entry p() { .reg .b32 %r<9>; .reg .f32 %f<5>;
 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};
 mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};
 ret; }"""
    ((row, level, count),) = mmabits.describe_kernel(text, arch="a100").tensor
    assert row.ptx == "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" and (level, count) == (Evidence.RECORDED, 2)


def test_the_command_on_ptx(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{file}:small", "--arch", "sm_80", "--arch", "h100") == 0
    told = capsys.readouterr().out
    assert "small on sm_80: 8 PTX instructions, 64 threads" in told and "small on sm_90a" in told and "third" in told
    assert run(str(file), "--arch", "sm_80", "--json") == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["small", "other"]
    assert run(str(file), "--arch", "sm_80", "--only", "oth", "--no-source") == 0
    assert capsys.readouterr().out.startswith("other on sm_80")


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere.ptx", "--arch", "sm_80"], "no file is called nowhere.ptx"), ([__file__], "which architecture"),
    (["PTX:none", "--arch", "sm_80"], "no kernel is called 'none'"),
    (["PTX", "--arch", "sm_80", "--only", "x"], "no kernel whose name holds"),
    (["PTX", "--arch", "sm_1"], "sm_1"),
])  # fmt: skip
def test_what_cannot_be_shown_is_an_error(arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*(each.replace("PTX", str(file)) for each in arguments)) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1


HOSTILE = {
    "the text ends inside k": (".visible .entry k() { ret;", ".visible .entry k() {" + "{" * 9999),
    "the text ends inside parameters": (".visible .entry k(", ".visible .entry k" + "(" * 9999),
    "k has no body": (".visible .entry k()",),
    "k is defined twice": (".visible .entry k() { ret; } .visible .entry k() { ret; }",),
    "the text ends inside a section": (".visible .entry k() { ret; } .section .debug_str {",),
    "the label A stands twice in k": (".visible .entry k() { A: bra A; A: ret; }",),
    "a string that does not end": ('.visible .entry k() { .pragma "nounroll; ret; }',),
    "a number of 5000 digits": (f".visible .entry k() {{ .reg .b32 %r1; mov.b32 %r1, {'9' * 5000}; ret; }}",),
    "a number that is not understood: 08": (".visible .entry k() { .reg .b32 %r1; mov.b32 %r1, 08; ret; }",),
    "a line of the source that is not understood": (".visible .entry k() {\n.loc x y z\nret; }",),
    "an alignment that is no power of two": tuple(f".shared .align {n} .b8 s[4];" for n in (0, 3)),
    "a size that is no number": tuple(f".shared .b8 s[{n}];" for n in ("-4", "1.5", "a")),
    "a variable of more bytes than there are": (".global .b8 s[9999999999][9999999999];", ".shared .b8 s[99999999999999];"),
    "4 initial values for 2 of t[2]": (".global .b32 t[2] = {1, 2, 3, 4};",),
    "no PTX type is called q9": (".visible .entry k() { .reg .q9 %z; ret; }",),
    "registers that are not understood": (".visible .entry k() { .reg ; ret; }",),
    "%r1 is no predicate": (".visible .entry k() { .reg .b32 %r1; @%r1 ret; }", ".visible .entry k() { .reg .b32 %r1; @!%r1 ret; }"),
    "no table of targets in `brx.idx %r1, T`": (
        ".visible .entry k() { .reg .b32 %r1; brx.idx %r1, T; ret; }",
        ".visible .entry k() { .reg .b32 %r1; T: .branchtargets ; brx.idx %r1, T; ret; }",
    ),
    "no place to branch to": (".visible .entry k() { bra; }", ".visible .entry k() { bra X; }"),
    "a product, sum or function with other operands than it takes": (".visible .entry k() { .reg .f32 %f<3>; add.f32 %f1; ret; }",),
    "add.u32 without operands": (".visible .entry k() { add.u32; ret; }",),
    "operands that do not fit, in `bar.sync`": (".visible .entry k() { bar.sync; ret; }",),
    "an address that is not understood": (".visible .entry k() { .reg .b32 %r1; ld.global.b32 %r1, []; ret; }",),
    "nested too deeply": (".visible .entry k() { mov.b64 x, " + "{" * 9999 + "}" * 9999 + "; ret; }",),
    "no kernel (.entry)": ("", "\n", ".version 8.7"),
}


@pytest.mark.parametrize(("message", "text"), [(message, text) for message, texts in HOSTILE.items() for text in texts])
def test_broken_ptx_is_one_line(message: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "k.ptx"
    file.write_text(".version 8.7\n.target sm_80\n.address_size 64\n" * bool(text.strip()) + text)
    assert run(str(file), "--arch", "sm_80") == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1 and len(told) < 600


def test_an_array_has_as_many_elements_as_it_says_or_is_given() -> None:
    module = read_ptx(".global .align 4 .u32 t[] = {1, 2, 3}; .const .b8 u[0x10]; .extern .shared .b8 s[];")
    assert {name: each.size for name, each in module.variables.items()} == {"t": 12, "u": 16, "s": 0}


@pytest.mark.parametrize("text", [None, 3, b"abc"])
def test_ptx_is_text(text: object) -> None:
    for function in (mmabits.describe_kernel, mmabits.check_fusion):
        with pytest.raises(OperandError, match="PTX is given as text, not as"):
            function(text, arch="sm_80")  # type: ignore[operator]


SCRIPT = """
import sys
import torch, triton, triton.language as tl
import beside


@triton.jit
def double(x, N: tl.constexpr):
    "At PLACE: what Triton keeps of a kernel names its file."
    i = tl.arange(0, N)
    tl.store(x + i, tl.load(x + i) * 2)


def launch():
    double[(1,)](torch.ones(beside.SIZE, device="cuda"), N=beside.SIZE)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--much"]
    launch()
"""


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_the_command_on_scripts_functions_and_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    script = tmp_path / "written.py"
    script.write_text(SCRIPT.replace("PLACE", str(tmp_path)))
    (tmp_path / "beside.py").write_text("SIZE = 128\n")
    assert run(str(script), "--arch", "sm_90a", "--", "--much") == 0
    as_script = capsys.readouterr().out
    assert "double on sm_90a" in as_script and "tl.store(x + i, tl.load(x + i) * 2)" in as_script
    assert run(f"{script}:launch", "--arch", "sm_80", "--no-source") == 0
    assert capsys.readouterr().out.startswith("double on sm_80")
    assert run(f"{script}:double", "--arch", "sm_80", "--signature", "*fp32", "--constexpr", "N=64", "--no-source") == 0
    assert capsys.readouterr().out.startswith("double on sm_80")
    for options, message in [
        ([], "--signature gives 0 types; there are 2 arguments: x, N"), (["--constexpr", "M=1"], "no argument called M"),
        (["--constexpr", "M"], "NAME=VALUE"),
    ]:  # fmt: skip
        assert run(f"{script}:double", "--arch", "sm_80", *options) == 2
        assert message in capsys.readouterr().err
    assert run(f"{script}:absent", "--arch", "sm_80") == 2
    assert "no function called absent" in capsys.readouterr().err


def test_unknown_kernels_are_errors_of_the_call() -> None:
    with pytest.raises(OperandError, match="2 kernels: small, other"):
        mmabits.describe_kernel(TEXT, arch="sm_80")
