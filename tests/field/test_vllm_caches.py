"""vLLM's own quantizer of KV caches with a scale for each token and head, compiled, beside `schemes.kv_cache`: INT8 and FP8.

In a process of its own, since vLLM decides by the GPU while it is imported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENS, HEADS, WIDTH = 60, 2, 64


def found(arch: str) -> dict[str, list[float]]:
    """For each cache: scales that differ, by how many last bits at most, codes that differ, by how many steps at most."""
    import numpy as np
    import torch

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from benchmarks.field.loading import load

    import mmabits
    from mmabits.kernels.schemes.kv_cache import CACHES, quantize_tokens

    def block() -> Any:
        return mmabits.emulate(arch, frameworks=["torch", "triton"], triton="compiled", cuda=True)

    with block():
        module = load("vllm.v1.attention.ops.triton_reshape_and_cache_flash")
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((TOKENS, HEADS, WIDTH)) * 2.0 ** rng.integers(-3, 4, (TOKENS, HEADS, 1))).astype(np.float32)
    counts = {}
    for name, dtype, mode in (("int8", torch.int8, "INT8_PER_TOKEN_HEAD"), ("fp8", torch.float8_e4m3fn, "FP8_PER_TOKEN_HEAD")):
        caches = [torch.zeros(4, 16, HEADS, WIDTH, dtype=torch.uint8).view(dtype) for _ in range(2)]
        scales = [torch.zeros(4, 16, HEADS) for _ in range(2)]
        with block():
            module.triton_reshape_and_cache_flash_per_token_head_quant(
                torch.from_numpy(x), torch.from_numpy(x), *caches, *scales, torch.arange(TOKENS), getattr(module.KVQuantMode, mode)
            )
        ours = quantize_tokens(x, CACHES[name].keys)
        theirs = scales[0].reshape(64, HEADS)[:TOKENS].numpy().view(np.int32), caches[0].reshape(64, HEADS, WIDTH)[:TOKENS]
        apart = np.abs(theirs[0] - ours.scales[..., 0].view(np.int32))
        bits = [each.view(np.int8).astype(int) for each in (theirs[1].view(torch.uint8).numpy(), ours.codes().view(np.uint8))]
        if name == "fp8":  # sign and magnitude, so that neighbours are a step apart
            bits = [np.where(each < 0, -(each & 127), each) for each in bits]
        steps = np.abs(bits[0] - bits[1])
        counts[name] = [int((apart > 0).sum()), int(apart.max()), int((steps > 0).sum()), int(steps.max())]
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90a"])
def test_caches_are_nearly_those_of_vllm(arch: str) -> None:
    """It multiplies by reciprocals, of 127 or 448 and of the scale: last bits of scales, and here no codes."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: see CONTRIBUTING.md")
    ran = subprocess.run(
        [sys.executable, __file__, arch], capture_output=True, text=True, env=os.environ | {"TRITON_DEFAULT_FP_FUSION": "1"}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {"int8": [7, 1, 0, 0], "fp8": [56, 1, 0, 0]}


if __name__ == "__main__":
    print(json.dumps(found(sys.argv[1])))
