"""Architectures by target and by the names of GPUs; what a hint may point at."""

from __future__ import annotations

import re

import pytest

from mmabits.isa import (
    ARCHITECTURES,
    MmabitsError,
    OperandError,
    UnknownArchitecture,
    UnknownInstruction,
    architecture,
    instructions,
    library_instruction,
    lower,
    parse,
    resolve,
    what_if,
)

# As nvidia-smi prints them: the list of supported GPUs in the README of NVIDIA's open kernel modules 595.45.04, by the chip of the PCI
# device id; of older and embedded GPUs NVIDIA's pages of compute capabilities.
PRINTED = {
    "sm_70": ("Tesla V100-SXM2-16GB", "Tesla V100-PCIE-32GB", "NVIDIA TITAN V", "Quadro GV100"),
    "sm_75": (
        "Tesla T4", "NVIDIA GeForce RTX 2060", "NVIDIA GeForce RTX 2070 Super with Max-Q Design", "NVIDIA GeForce RTX 2080 SUPER",
        "NVIDIA GeForce RTX 2080 Ti", "NVIDIA TITAN RTX", "Quadro RTX 3000 with Max-Q Design", "Quadro RTX 6000", "Quadro RTX 8000",
    ),
    "sm_80": (
        "NVIDIA A100 80GB PCIe", "NVIDIA A100-PCIE-40GB", "NVIDIA A100-SXM-64GB", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A30", "NVIDIA A800 40GB Active", "NVIDIA A800 80GB PCIe LC", "NVIDIA AX800",
    ),
    "sm_86": (
        "NVIDIA A10", "NVIDIA A10G", "NVIDIA A16", "NVIDIA A2", "NVIDIA A40", "NVIDIA GeForce RTX 2050",
        "NVIDIA GeForce RTX 3050 6GB Laptop GPU",
        "NVIDIA GeForce RTX 3050Ti Laptop GPU", "NVIDIA GeForce RTX 3050 OEM", "NVIDIA GeForce RTX 3070 Ti Laptop GPU",
        "NVIDIA GeForce RTX 3090", "NVIDIA RTX A1000 6GB Laptop GPU", "NVIDIA RTX A2000 12GB", "NVIDIA RTX A4500 Embedded GPU",
        "NVIDIA RTX A500 Laptop GPU", "NVIDIA RTX A6000",
    ),
    "sm_89": (
        "NVIDIA L4", "NVIDIA L20", "NVIDIA L40", "NVIDIA L40S", "NVIDIA GeForce RTX 3050 A Laptop GPU",
        "NVIDIA GeForce RTX 4050 Laptop GPU",
        "NVIDIA GeForce RTX 4070 Ti SUPER", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX 1000 Ada Generation Laptop GPU", "NVIDIA RTX 2000E Ada Generation", "NVIDIA RTX 4000 SFF Ada Generation",
        "NVIDIA RTX 5880 Ada Generation", "NVIDIA RTX 6000 Ada Generation",
    ),
    "sm_90a": (
        "NVIDIA GH200 144G HBM3e", "NVIDIA GH200 480GB", "NVIDIA H100", "NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H100 PCIe",
        "NVIDIA H20", "NVIDIA H20 NVL16", "NVIDIA H20-3e", "NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA H800 PCIe",
    ),
    "sm_100a": ("NVIDIA B200", "NVIDIA GB200"),
    "sm_103a": ("NVIDIA B300 SXM6 AC", "NVIDIA GB300"),
    "sm_110a": ("NVIDIA Thor", "NVIDIA Jetson T5000", "Jetson T4000"),
    "sm_120a": (
        "NVIDIA GeForce RTX 5050 Laptop GPU", "NVIDIA GeForce RTX 5070 Ti", "NVIDIA GeForce RTX 5090", "NVIDIA GeForce RTX 5090 D v2",
        "NVIDIA RTX 6000D", "NVIDIA RTX PRO 500 Blackwell Embedded GPU", "NVIDIA RTX PRO 4000 Blackwell SFF Edition",
        "NVIDIA RTX PRO 5000 72GB Blackwell", "NVIDIA RTX PRO 5000 Blackwell Generation Laptop GPU",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    ),
    "sm_121a": ("NVIDIA GB10", "DGX Spark"),
}  # fmt: skip
SHORT = {
    "sm_70": ("v100",), "sm_75": ("t4", "rtx2080ti"), "sm_80": ("a100", "A100"), "sm_86": ("a10g", "rtx3090", "rtx-a6000"),
    "sm_89": ("l40s", "rtx 4090", "rtx6000ada"), "sm_90a": ("h100", "H200", "gh200", "h100_sxm5_80gb", "SM_90A", " sm_90a "),
    "sm_100a": ("b200", "gb200"), "sm_103a": ("b300",), "sm_110a": ("thor",), "sm_120a": ("rtx5090", "rtx pro 6000", "GeForce RTX 5090"),
    "sm_121a": ("gb10", "dgx spark"),
}  # fmt: skip


@pytest.mark.parametrize(("arch", "name"), [(arch, name) for names in (PRINTED, SHORT) for arch in names for name in names[arch]])
def test_a_gpu_names_its_architecture(arch: str, name: str) -> None:
    assert architecture(name) is ARCHITECTURES[arch]


def test_every_architecture_has_names() -> None:
    assert set(PRINTED) == set(SHORT) == set(ARCHITECTURES)


def test_the_gpus_of_a_row_name_it() -> None:
    models = [(model.casefold(), row.name) for row in ARCHITECTURES.values() for model in row.models]
    assert len({model for model, _ in models}) == len(models), "a model stands in two rows"
    for row in ARCHITECTURES.values():
        assert set(row.gpus) <= set(row.models)
        assert all(architecture(model) is row for model in row.models)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RTX 6000", ("sm_75 (Quadro RTX 6000)", "sm_89 (RTX 6000 Ada)", "sm_120a (RTX PRO 6000 Blackwell)")),
        ("NVIDIA RTX 4000", ("sm_75 (Quadro RTX 4000)", "sm_89 (RTX 4000 Ada)", "sm_120a (RTX PRO 4000)")),
        ("titan", ("sm_70 (Titan V)", "sm_75 (Titan RTX)")),
        ("Blackwell", ("sm_100a (B200)", "sm_103a (B300)", "sm_110a (Jetson Thor)", "sm_120a (RTX 5090)", "sm_121a (DGX Spark (GB10))")),
        ("ampere", ("sm_80 (A100)", "sm_86 (A2)")),
    ],
)
def test_a_name_of_several_is_refused_with_all_of_them(name: str, meant: tuple[str, ...]) -> None:
    with pytest.raises(UnknownArchitecture, match=rf"^architecture '{name}' may be {re.escape(' or '.join(meant))}; write which$"):
        architecture(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sm90a", "sm_90a"), ("compute_103a", "sm_103a"), ("90", "sm_90a"), ("5090", "sm_120a"), ("hopper", "sm_90a"), ("ada", "sm_89")],
)
def test_a_hint_points_at_the_generation_that_is_meant(name: str, hint: str) -> None:
    with pytest.raises(
        UnknownArchitecture, match=rf"^unknown architecture '{name}'; did you mean {hint}\?; known: sm_70, .*and GPUs by name$"
    ):
        architecture(name)


@pytest.mark.parametrize(
    "name",
    ["sm_91", "sm_92a", "sm_99", "sm_87", "sm_101a", "sm_130a", "b100", "h101", "GTX 1080", "GeForce GTX 1650", "9.0", "", "x", "sm_8O"],
)
def test_a_hint_never_points_at_another_generation(name: str) -> None:
    with pytest.raises(UnknownArchitecture, match=rf"^unknown architecture '{name}'; known: sm_70, .*sm_121a, and GPUs by name$"):
        architecture(name)


@pytest.mark.parametrize(
    "text", ["wmma", "wmma.mma.sync.aligned.m16n16k16.row.col.f32.f16.f16.f32", "tcgen04.mma", "hmma", "mma.sync.tcgen5"]
)
def test_a_hint_never_points_at_the_instructions_of_another_generation(text: str) -> None:
    with pytest.raises(UnknownInstruction) as caught:
        parse(text)
    assert not re.search(r"did you mean[^?]*(wgmma|mma_async|tcgen05)", str(caught.value)), str(caught.value)


def test_an_architecture_is_text() -> None:
    with pytest.raises(UnknownArchitecture, match="given as text such as 'sm_90a', not as int"):
        architecture(90)  # type: ignore[arg-type]


def test_gpus_are_taken_where_an_architecture_is() -> None:
    row = parse("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3")
    assert lower(row, "NVIDIA H100 PCIe") is lower(row, "sm_90a")
    assert instructions(arch="h100") == instructions(arch="sm_90a")
    assert resolve("wgmma", arch="h200", a_type="float8_e4m3fn", b_type="e5m2") is resolve(
        "wgmma", arch="sm_90a", a_type="e4m3", b_type="e5m2"
    )
    scaled = library_instruction("b200", "float4_e2m1fn", "float4_e2m1fn", scale_type="float8_e4m3fn")
    assert scaled == library_instruction("sm_100a", "e2m1", "e2m1", scale_type="ue4m3")
    with pytest.raises(MmabitsError, match="h100 has no tensor-core instruction for e2m1 x e2m1"):
        library_instruction("h100", "e2m1", "e2m1")


def test_a_what_if_departs_from_a_gpu_and_takes_no_gpus_name() -> None:
    made = what_if("of a gpu", base="H100", rows={"wgmma.f8.f32": {"fraction_bits": 20}})
    assert made.base == "sm_90a"
    for name in ("h100", "NVIDIA B200", "SM_90A"):
        with pytest.raises(OperandError, match="needs a name of its own"):
            what_if(name, base="sm_90a", rows={})
