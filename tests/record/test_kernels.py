"""Every kernel compiles for its exact target, without a GPU, to the machine instructions that its row names."""

import importlib
import re
from pathlib import Path

import pytest

from mmabits.conformance.record.disassembly import Disassembled, disassembler, expected_opcodes, unexpected
from mmabits.conformance.record.kernels import InstructionKernel
from mmabits.conformance.record.listing import kernel_row, kernel_rows, kernels_markdown
from mmabits.conformance.record.nvrtc import CompilerRefused, compile_source, compiler_version
from mmabits.conformance.record.session import TARGETS, recordable, representatives
from mmabits.isa import parse
from mmabits.isa.errors import DeviceUnavailable, OperandError, UnsupportedInstruction
from mmabits.isa.instructions import INSTRUCTION_SPECS, Instruction
from mmabits.isa.lowering import is_modelled

needs_disassembler = pytest.mark.skipif(disassembler() is None, reason="no nvdisasm: it comes with the CUDA toolkit and with Triton")


def one_of_each_unit() -> list[tuple[str, Instruction]]:
    """A kernel for each machine instruction, modifiers aside, and for each that stands for several: the first target that has it."""
    seen: dict[object, tuple[str, Instruction]] = {}
    for arch in TARGETS:
        for instruction in representatives(arch):
            opcodes = expected_opcodes(InstructionKernel(instruction=instruction, arch=arch))
            unit = frozenset((name.split(".")[0], count > 1, ".4X" in name or "BLOCK16" in name) for name, count in opcodes.items())
            seen.setdefault(unit, (arch, instruction))
    return list(seen.values())


def test_representatives_and_recordable_cover_every_modelled_row() -> None:
    for arch in TARGETS:
        wanted = {spec.name for spec in INSTRUCTION_SPECS if is_modelled(spec, arch)}
        for instructions in (representatives(arch), recordable(arch)):
            assert {spec.name for row in instructions if (spec := row.on(arch))} == wanted
        every = recordable(arch)
        for spec in INSTRUCTION_SPECS:
            if is_modelled(spec, arch):
                mine = [row for row in every if row.on(arch) is spec]
                assert {(row.a_type.name, row.b_type.name) for row in mine} == set(spec.pairs)
                assert {row.d_type.name for row in mine} == set(spec.accumulators)
                assert {(row.m, row.k, row.cta_group) for row in mine} == {(m, t.k, t.cta_group) for t in spec.tiles for m in t.m}


def test_every_n_can_be_asked_for() -> None:
    assert {row.n for row in recordable("sm_90a", only="wgmma", every_n=True)} == set(range(8, 257, 8))
    assert {row.n for row in recordable("sm_90a", only="wgmma")} == {8, 64, 256}


def test_what_is_recordable_is_narrowed_by_spelling() -> None:
    assert all("kind::mxf4nvf4" in row.ptx for row in recordable("sm_100a", only="kind::mxf4nvf4"))
    with pytest.raises(OperandError, match=r"no instruction of sm_80 has 'wgmma' in its spelling; families there: mma\.sync"):
        recordable("sm_80", only="wgmma")


def test_an_architecture_that_lacks_the_instruction_is_refused() -> None:
    with pytest.raises(UnsupportedInstruction, match="sm_80 has no wgmma"):
        InstructionKernel(instruction=parse("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"), arch="sm_80")
    with pytest.raises(OperandError, match="chain must be at least 1, got 0"):
        InstructionKernel(instruction=parse("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"), arch="sm_80", chain=0)


def test_operands_follow_one_another_in_inline_ptx() -> None:
    source = InstructionKernel(instruction=parse("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"), arch="sm_80").source
    text = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    assert text in source
    assert re.findall(r"\((?:\((?:const )?unsigned ?\*\))?(?:\()?(?:\(const unsigned\*\))?([ab])\)\[", source) == list("aaaabb")


@pytest.mark.parametrize(("modified", "text"), [
    ("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3.negA", "p, -1, 1;"),
    ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.negB", "p, 1, -1, 0, 0;"),
    ("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16.scale_d::0", '"r"((unsigned)(step > 0))'),
    ("wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.u8.satfinite", "m64n8k32.s32.s8.u8.satfinite {"),
    ("tcgen05.mma.cta_group::1.kind::f16.m128n8k16.f32.f16.f16.scale_input_d::3", "%3, p, 3;"),
    ("tcgen05.mma.cta_group::2.kind::f16.m256n16k16.f32.f16.f16.scale_d::0", '"r"((unsigned)(step > 0))'),
])  # fmt: skip
def test_modifiers_reach_the_ptx(modified: str, text: str, needs_nvrtc: None) -> None:
    arch = "sm_90a" if modified.startswith("wgmma") else "sm_100a"
    kernel = InstructionKernel(instruction=parse(modified), arch=arch, chain=2)
    assert text in kernel.source
    assert len(compile_source(kernel.source, arch).cubin) > 1000


def refused_by_old_compilers(instruction: Instruction) -> bool:
    """Forms that PTX has from ISA 9.1 on, which NVRTC before 13.1 rightly refuses."""
    spec = instruction.on("sm_120a")
    old = tuple(int(part) for part in compiler_version().split(".")) < (13, 1)
    return old and spec is not None and spec.lowerings["sm_120a"] == "omma.sf.ptx91"


@pytest.mark.parametrize("arch", TARGETS)
def test_every_row_compiles(arch: str, needs_nvrtc: None) -> None:
    rows = kernel_rows(representatives, [arch], disassemble=False)
    assert [row.problems for row in rows if row.problems and not refused_by_old_compilers(row.instruction)] == []
    assert all(row.cubin_bytes is None or row.cubin_bytes > 1000 for row in rows)
    assert sum(row.cubin_bytes is None for row in rows) <= 1


@needs_disassembler
def test_machine_instructions_of_each_unit(needs_nvrtc: None) -> None:
    """The slow test does the rest."""
    checked = [kernel_row(instruction, arch, disassemble=True) for arch, instruction in one_of_each_unit()]
    assert [(row.instruction.ptx, row.problems) for row in checked if row.problems] == []
    assert all(row.opcodes for row in checked)
    units = {"HMMA", "QMMA", "OMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "UTCOMMA", "UTCIMMA"}
    assert {row.opcodes.split(".")[0].split(" ")[0] for row in checked} == units


@needs_disassembler
def test_fp8_is_two_f16_instructions_where_there_is_no_8_bit_unit(needs_nvrtc: None) -> None:
    fp8 = parse("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32")
    assert kernel_row(fp8, "sm_89", disassemble=True).opcodes == "QMMA.16832.F32.E4M3.E4M3"
    assert kernel_row(fp8, "sm_90a", disassemble=True).opcodes == "HMMA.16816.F32 x2"


@pytest.mark.slow
@needs_disassembler
@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_compiles_to_what_its_row_says(arch: str, needs_nvrtc: None) -> None:
    rows = kernel_rows(recordable, [arch], disassemble=True)
    assert [(row.instruction.ptx, row.problems) for row in rows if row.problems] == []


def test_unexpected_machine_instructions_are_told() -> None:
    kernel = InstructionKernel(instruction=parse("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"), arch="sm_89")
    name = "QMMA.16832.F32.E4M3.E4M3"
    assert expected_opcodes(kernel) == {name: 1}
    assert unexpected(kernel, Disassembled({name: 1})) == ()
    assert unexpected(kernel, Disassembled({"HMMA.16816.F32": 2})) == (f"{name} is missing", "HMMA.16816.F32 is not expected")
    assert unexpected(kernel, Disassembled({name: 2})) == (f"{name} occurs 2 times, not 1",)
    assert unexpected(InstructionKernel(instruction=kernel.instruction, arch="sm_89", chain=3), Disassembled({name: 2})) == ()
    # sm_120 has the unit as well, sm_90 has not.
    expanded = InstructionKernel(instruction=kernel.instruction, arch="sm_90a")
    assert expected_opcodes(expanded) == {"HMMA.16816.F32": 2}
    assert "QMMA.16832.F32.E4M3.E4M3 is not expected" in unexpected(expanded, Disassembled({name: 1}))


def test_integers_of_eight_rows_take_an_instruction_of_sixteen_from_sm_100a_on() -> None:
    byte, nibble = (parse(f"mma.sync.aligned.m8n8k{k}.row.col.s32.{kind}.{kind}.s32") for k, kind in ((16, "u8"), (32, "u4")))
    assert expected_opcodes(InstructionKernel(instruction=byte, arch="sm_90a")) == {"IMMA.8816.U8.U8": 1}
    assert expected_opcodes(InstructionKernel(instruction=byte, arch="sm_100a")) == {"IMMA.16816.U8.U8": 1}
    assert expected_opcodes(InstructionKernel(instruction=nibble, arch="sm_90a")) == {"IMMA.8816.U8.U8": 2}
    assert expected_opcodes(InstructionKernel(instruction=nibble, arch="sm_120a")) == {"IMMA.16816.U8.U8": 2}


def test_a_target_that_leaves_out_the_instruction_is_refused_by_the_compiler(needs_nvrtc: None) -> None:
    kernel = InstructionKernel(instruction=parse("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16"), arch="sm_90a")
    with pytest.raises(CompilerRefused, match=r"NVRTC \d+\.\d+ does not compile it for sm_90: .*wgmma"):
        compile_source(kernel.source, "sm_90")
    with pytest.raises(CompilerRefused, match=r"does not compile it for sm_12: .*gpu-architecture"):
        compile_source(kernel.source, "sm_12")


def test_the_same_text_gives_the_same_machine_code(needs_nvrtc: None) -> None:
    kernel = InstructionKernel(instruction=parse("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"), arch="sm_80")
    first = compile_source(kernel.source, "sm_80")
    compile_source.cache_clear()
    again = compile_source(kernel.source, "sm_80")
    assert again is not first
    assert (again.cubin_sha256, again.ptx_sha256) == (first.cubin_sha256, first.ptx_sha256)
    assert b".target sm_80" in first.ptx and b"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in first.ptx


def test_without_nvrtc_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmabits.conformance.record import nvrtc

    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    nvrtc.compiler_version.cache_clear()
    with pytest.raises(DeviceUnavailable, match=r"NVRTC, which is not installed .*: pip install 'mmabits\[nvrtc\]'"):
        nvrtc.compile_source("// nothing", "sm_80")


def test_the_documents_table_has_every_form() -> None:
    """`mmabits record --list-kernels` makes it; sizes are the compiler's, and only it can check them."""
    text = Path(__file__).resolve().parents[2].joinpath("docs", "record-kernels.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (sm_\w+) \| `([^`]+)` \| (\d+) \| ([^|]+) \|$", text, re.MULTILINE)
    assert [(arch, ptx) for arch, ptx, _, _ in rows] == [(arch, row.ptx) for arch in TARGETS for row in representatives(arch)]
    for arch, ptx, _, opcodes in rows:
        found = Disassembled()
        for word in re.sub(r" \(.*\)", "", opcodes).split(", "):
            name, _, count = word.partition(" x")
            found[name] += int(count or 1)
        assert unexpected(InstructionKernel(instruction=parse(ptx), arch=arch), found) == (), (arch, ptx)


@pytest.mark.slow
@needs_disassembler
def test_the_documents_table_is_current(needs_nvrtc: None) -> None:
    text = Path(__file__).resolve().parents[2].joinpath("docs", "record-kernels.md").read_text(encoding="utf-8")
    if f"NVRTC {compiler_version()}." not in text:
        pytest.skip(f"the table was made with another compiler than NVRTC {compiler_version()}")
    assert kernels_markdown(kernel_rows(representatives, disassemble=True)) in text


def test_the_table_names_what_is_wrong(needs_nvrtc: None) -> None:
    row = kernel_row(parse("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"), "sm_80", disassemble=False)
    text = kernels_markdown([row])
    assert f"| sm_80 | `mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32` | {row.cubin_bytes} |  |" in text
    assert text.startswith("NVRTC ")
