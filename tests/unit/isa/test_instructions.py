"""The instruction rows: that they hang together, and what they allow and refuse."""

from __future__ import annotations

import ast
import copy
import itertools
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmabits.isa import (
    ARCHITECTURES,
    FORMATS,
    INSTRUCTION_SPECS,
    KNOWN_FORMS,
    LOWERINGS,
    Family,
    Instruction,
    InstructionSpec,
    UnknownArchitecture,
    UnknownInstruction,
    architecture,
    parse,
)

ISA = Path(__file__).resolve().parents[3] / "isa"


def made_from(spec: InstructionSpec) -> Iterator[Instruction]:
    """Every operand pair, accumulator, scale mode and rounding of a row, at the corners of its shapes."""
    for tile, (a, b), d, scale, rounding in itertools.product(
        spec.tiles, spec.pairs, spec.accumulators, spec.scales or (None,), spec.roundings or (None,)
    ):
        for m, n in {(tile.m[0], tile.n[0]), (tile.m[-1], tile.n[-1])}:
            yield Instruction(
                family=spec.family, m=m, n=n, k=tile.k, kind=spec.kind, cta_group=tile.cta_group, rounding=rounding,
                a_type=FORMATS[a], b_type=FORMATS[b], d_type=FORMATS[d], c_type=FORMATS[spec.c_type or d],
                scale_type=FORMATS[scale.scale_type] if scale else None, block=scale.block if scale else None,
            )  # fmt: skip


def wgmma(**changes: object) -> Instruction:
    e4m3, f32 = FORMATS["e4m3"], FORMATS["f32"]
    fields = {"family": Family.WGMMA, "m": 64, "n": 256, "k": 32, "d_type": f32, "a_type": e4m3, "b_type": e4m3, "c_type": f32}
    return Instruction(**{**fields, **changes})


def test_names_are_unique_and_say_the_family():
    names = [spec.name for spec in INSTRUCTION_SPECS]
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{spec.family}.") for name, spec in zip(names, INSTRUCTION_SPECS, strict=True))


@pytest.mark.parametrize("spec", INSTRUCTION_SPECS, ids=lambda spec: spec.name)
def test_every_reference_of_a_row_resolves(spec):
    assert spec.lowerings and set(spec.lowerings) <= set(ARCHITECTURES)
    assert set(spec.lowerings.values()) <= set(LOWERINGS)
    assert set(spec.scale_input_d) <= set(spec.lowerings)
    named = {*spec.types, *spec.accumulators, *(mode.scale_type for mode in spec.scales), *([spec.c_type] if spec.c_type else [])}
    assert named <= set(FORMATS)
    assert all(FORMATS[mode.scale_type].scale_only for mode in spec.scales)
    assert not any(FORMATS[name].scale_only for name in (*spec.types, *spec.accumulators))
    assert (spec.kind or "").startswith("mx") == bool(spec.scales)


@pytest.mark.parametrize("spec", INSTRUCTION_SPECS, ids=lambda spec: spec.name)
def test_shapes_and_blocks_fit(spec):
    for tile in spec.tiles:
        assert (tile.cta_group is not None) == (spec.family is Family.TCGEN05)
        assert all(m % 8 == 0 for m in tile.m) and all(n % 8 == 0 for n in tile.n) and tile.k % 4 == 0
        assert list(tile.n) == sorted(set(tile.n)) and tile.n[-1] <= 256
        for mode in spec.scales:
            assert tile.k % mode.block == 0
            assert mode.vector in ("", f"{tile.k // mode.block}X")


def test_no_architecture_has_an_instruction_from_two_rows():
    seen: dict[tuple[Instruction, str], str] = {}
    for spec in INSTRUCTION_SPECS:
        for instruction, arch in itertools.product(made_from(spec), spec.lowerings):
            assert (instruction, arch) not in seen, (instruction, arch, seen[instruction, arch], spec.name)
            seen[instruction, arch] = spec.name
            assert instruction.on(arch) is spec
    assert len(seen) > 1000


def test_the_architectures_of_each_family():
    has = {family: {arch for spec in INSTRUCTION_SPECS if spec.family is family for arch in spec.lowerings} for family in Family}
    assert has[Family.MMA_SYNC] == set(ARCHITECTURES)
    assert has[Family.WGMMA] == {"sm_90a"}
    assert has[Family.TCGEN05] == {"sm_100a", "sm_103a", "sm_110a"}
    by_kind = {kind: {arch for spec in INSTRUCTION_SPECS if spec.kind == kind for arch in spec.lowerings} for kind in ("i8", "mxf8f6f4")}
    assert by_kind == {"i8": {"sm_100a", "sm_110a"}, "mxf8f6f4": {"sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"}}


def test_instructions_are_values():
    assert wgmma() == wgmma() and len({wgmma(), wgmma(), wgmma(n=8)}) == 2
    assert wgmma() != wgmma(negate_a=True)
    with pytest.raises(AttributeError):
        wgmma().m = 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 128}, r"has no shape m128n256k32; allowed: m64n\{8\.\.256\}k32$"),
        ({"n": 12}, r"no shape m64n12k32"),
        ({"n": 264}, r"no shape m64n264k32"),
        ({"k": 16}, r"no shape m64n256k16"),
        ({"cta_group": 1}, r"no shape m64n256k32 cta_group::1; allowed: m64n\{8\.\.256\}k32$"),
        ({"kind": "f8f6f4"}, r"wgmma\.mma_async has no kind::f8f6f4; allowed: no kind$"),
        ({"a_type": FORMATS["f16"]}, r"no operands f16 x e4m3; allowed: f16, bf16, tf32, \{e4m3,e5m2\}, \{s8,u8\}$"),
        ({"c_type": FORMATS["f16"]}, r"no D f32 and C f16; allowed: D f32 with C f32 or D f16 with C f16$"),
        ({"d_type": FORMATS["f64"], "c_type": FORMATS["f64"]}, r"no D f64 and C f64"),
        ({"scale_type": FORMATS["ue8m0"], "block": 32}, r"no block scales ue8m0 block32; allowed: no block scales$"),
        ({"scale_type": FORMATS["ue8m0"]}, r"need a type and a block size"),
        ({"block": 32}, r"need a type and a block size"),
        ({"rounding": "rn"}, r"no rn; allowed: negA, negB, scale_d::0$"),
        ({"satfinite": True}, r"no satfinite; allowed: negA, negB, scale_d::0$"),
        ({"scale_input_d": 3}, r"no scale_input_d::3; allowed: negA"),
    ],
)
def test_what_no_row_allows_is_refused(changes, message):
    with pytest.raises(UnknownInstruction, match=message):
        wgmma(**changes)


def test_tcgen05_needs_its_cta_group_and_f64_its_rounding():
    f64, f32, f16 = FORMATS["f64"], FORMATS["f32"], FORMATS["f16"]
    tcgen05 = {
        "family": Family.TCGEN05,
        "kind": "f16",
        "m": 128,
        "n": 64,
        "k": 16,
        "d_type": f32,
        "c_type": f32,
        "a_type": f16,
        "b_type": f16,
    }
    with pytest.raises(UnknownInstruction, match=r"no shape m128n64k16; allowed: .*cta_group::1, .*cta_group::2$"):
        Instruction(**tcgen05)
    assert Instruction(**tcgen05, cta_group=2).cta_group == 2
    with pytest.raises(UnknownInstruction, match=r"no scale_input_d::16"):
        Instruction(**tcgen05, cta_group=1, scale_input_d=16)
    with pytest.raises(UnknownInstruction, match=r"no rounding; it takes rn, rz, rm, rp$"):
        Instruction(family=Family.MMA_SYNC, m=8, n=8, k=4, d_type=f64, a_type=f64, b_type=f64, c_type=f64)


def test_messages_are_one_line_and_name_no_long_lists():
    with pytest.raises(UnknownInstruction) as caught:
        Instruction(**{**{"family": Family.MMA_SYNC, "m": 16, "n": 8, "k": 8}, **dict.fromkeys(("d_type", "c_type"), FORMATS["f32"]),
                       **dict.fromkeys(("a_type", "b_type"), FORMATS["s32"])})  # fmt: skip
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_known_forms_are_on_known_architectures():
    assert all(form.archs and set(form.archs) <= set(ARCHITECTURES) for form in KNOWN_FORMS)
    assert len({(form.family, form.word) for form in KNOWN_FORMS}) == len(KNOWN_FORMS)


def test_architectures():
    assert list(ARCHITECTURES) == [
        "sm_70",
        "sm_75",
        "sm_80",
        "sm_86",
        "sm_89",
        "sm_90a",
        "sm_100a",
        "sm_103a",
        "sm_110a",
        "sm_120a",
        "sm_121a",
    ]
    assert architecture("sm_90a").family == "Hopper" and "H100" in architecture("sm_90a").gpus
    assert architecture(ARCHITECTURES["sm_70"]) is ARCHITECTURES["sm_70"]


@pytest.mark.parametrize("name", ["sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121", "sm_100f", "sm_120f"])
def test_a_target_without_a_names_the_one_with_it(name):
    with pytest.raises(UnknownArchitecture, match=f"write '{name.rstrip('f')}a'$"):
        architecture(name)


@pytest.mark.parametrize("path", sorted(ISA.glob("*.py")), ids=lambda path: path.name)
def test_isa_imports_the_standard_library_and_itself(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            arrays = path.name == "fragments.py" and name.split(".")[0] == "numpy"  # tables of where elements lie
            assert name.startswith("mmabits.isa") or arrays or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_equal_instructions_have_one_place_in_tables():
    own = parse("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16")
    again = replace(own)
    assert again is not own and hash(again) == hash(own) and {own: 1}[again] == 1
    assert hash(replace(own, n=16)) != hash(own)


@pytest.mark.parametrize("spec", INSTRUCTION_SPECS, ids=lambda spec: spec.name)
def test_instructions_travel_to_other_processes(spec: InstructionSpec) -> None:
    for found in made_from(spec):
        for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
            assert other == found and hash(other) == hash(found) and other.ptx == found.ptx and other.a_type is found.a_type
