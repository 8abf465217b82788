"""Quantization by torchao, unchanged, under `emulate(..., cuda=True)`. Skipped where torchao is missing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import mmabits

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantization = pytest.importorskip("torchao.quantization")

INSTRUCTIONS = {
    "Float8DynamicActivationFloat8WeightConfig": ("e4m3", "e4m3"), "Float8WeightOnlyConfig": ("bf16", "bf16"),
    "Int8DynamicActivationInt8WeightConfig": ("s8", "s8"), "Int8DynamicActivationIntxWeightConfig": ("bf16", "bf16"),
    "Int8WeightOnlyConfig": ("bf16", "bf16"), "IntxWeightOnlyConfig": ("bf16", "bf16"),
}  # fmt: skip
BLOCK_SCALED = {"MXDynamicActivationMXWeightConfig": ("e4m3", "e4m3"), "NVFP4WeightOnlyConfig": ("bf16", "bf16")}
"""Of torchao.prototype.mx_formats."""


def _run(config: Any, arch: str) -> tuple[float, Any]:
    """The distance from f32, relative, and the report."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight, x = torch.randn(256, 256).to(torch.bfloat16) / 16, torch.randn(32, 256).to(torch.bfloat16)
        want = x.float() @ weight.float().T
        with mmabits.emulate(arch, frameworks=["torch", "triton"], cuda=True) as session:
            model = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False)).to(torch.bfloat16)
            model[0].weight.data.copy_(weight)
            model.to("cuda")
            quantization.quantize_(model, config)
            found = model(x.cuda()).float()
    return float((found.cpu() - want).norm() / want.norm()), session.report()


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_quantized_layers_are_emulated(name: str, arch: str) -> None:
    config = getattr(quantization, name, None)
    if config is None:
        pytest.skip(f"this torchao has no {name}")
    error, report = _run(config(), arch)
    (line,) = report.emulated
    assert (line.instruction.a_type.name, line.instruction.b_type.name) == INSTRUCTIONS[name] and error < 0.05
    assert report.share == 1 and not report.skipped


@pytest.mark.parametrize("name", BLOCK_SCALED)
def test_block_scaled_layers_are_emulated(name: str) -> None:
    formats = pytest.importorskip("torchao.prototype.mx_formats")
    config = getattr(formats, name, None)
    if config is None:
        pytest.skip(f"this torchao has no {name}")
    error, report = _run(config(), "sm_100a")
    (line,) = report.emulated
    assert (line.instruction.a_type.name, line.instruction.b_type.name) == BLOCK_SCALED[name] and error < 0.15
    assert report.share == 1 and not report.skipped
