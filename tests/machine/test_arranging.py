"""The order of blocks: kernels as Triton writes them stay as they are, rare code that branches back goes where lanes meet."""

from __future__ import annotations

from mmabits.emulator.machine.arranging import arranged
from mmabits.emulator.machine.program import base_of
from mmabits.emulator.machine.ptx import Entry, Symbol, read_ptx

HEAD = ".version 8.4\n.target sm_80\n.visible .entry k(.param .u64 x)\n{\n.reg .b32 %r<9>; .reg .pred %p<9>;\n"


def entry(body: str) -> Entry:
    return read_ptx(f"{HEAD}{body}\n}}").entries["k"]


def shown(kernel: Entry) -> list[str]:
    """Labels and opcodes, in order."""
    names: dict[int, list[str]] = {}
    for name, place in kernel.labels.items():
        names.setdefault(place, []).append(name)
    found = []
    for place, each in enumerate(kernel.instructions):
        found += [f"{name}:" for name in sorted(names.get(place, []))]
        to = [operand.name for operand in each.operands if isinstance(operand, Symbol)]
        found.append(" ".join([base_of(each.opcode), *to]))
    return found


def test_loops_and_forward_branches_stay() -> None:
    kernel = entry("mov.u32 %r1, 0;\nloop: add.u32 %r1, %r1, 1;\n@%p1 bra past;\nadd.u32 %r1, %r1, 2;\npast: @%p2 bra loop;\nret;")
    assert arranged(kernel) is kernel


def test_rare_code_behind_the_kernel_goes_back() -> None:
    kernel = entry("@%p1 bra rare;\nmov.u32 %r1, 1;\nmeet: bar.sync 0;\nret;\nrare: mov.u32 %r1, 2;\nbra meet;")
    made = arranged(kernel)
    order = ["bra rare", "mov", "bra meet", "rare:", "mov", "bra meet", "meet:", "bar", "ret"]
    assert shown(made) == order
    assert arranged(made) is made


def test_inside_a_loop() -> None:
    """The rare block and the meeting place both belong to the loop; what follows it stays behind it."""
    text = "head: @%p1 bra rare;\nmov.u32 %r1, 1;\nmeet: bar.sync 0;\n@%p2 bra head;\nret;\nrare: mov.u32 %r1, 2;\nbra meet;"
    made = arranged(entry(text))
    assert shown(made) == ["head:", "bra rare", "mov", "bra meet", "rare:", "mov", "bra meet", "meet:", "bar", "bra head", "ret"]


def test_ways_into_a_loop_in_its_middle_are_left_alone() -> None:
    kernel = entry("@%p1 bra second;\nfirst: mov.u32 %r1, 1;\nsecond: mov.u32 %r1, 2;\n@%p2 bra first;\nret;")
    assert arranged(kernel) is kernel


def test_what_is_never_reached_stays_behind() -> None:
    kernel = entry("@%p1 bra rare;\nmeet: ret;\nlost: mov.u32 %r1, 3;\nbra meet;\nrare: bra meet;")
    assert shown(arranged(kernel))[-3:] == ["lost:", "mov", "bra meet"]
