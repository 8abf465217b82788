"""vLLM's own kernel of experts, compiled, against the compositions of schemes.moe_experts: INT8, W8A16 and FP8 tiles.

In a process of its own for each architecture, since vLLM decides by the GPU while it is imported.
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
TOKENS, K, N, EXPERTS, TOP_K = 24, 512, 128, 4, 2


def found(arch: str) -> dict[str, int]:
    """How many of the elements differ, by what is compared."""
    import ml_dtypes
    import numpy as np
    import torch

    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from arrays import tensor
    from benchmarks.field.loading import load

    import mmabits
    from mmabits.kernels.schemes import moe, moe_experts

    def block() -> Any:
        return mmabits.emulate(arch, frameworks=["torch", "triton"], triton="compiled", cuda=True)

    with block():
        module = load("vllm.model_executor.layers.fused_moe.fused_moe")
    import triton.language as tl

    rng = np.random.default_rng(0)
    values, weights = rng.standard_normal((TOKENS, K)).astype(np.float32), (rng.standard_normal((EXPERTS, K, N)) / 16).astype(np.float32)
    routing = moe.route(rng.standard_normal((TOKENS, EXPERTS)).astype(np.float32), top_k=TOP_K)
    aligned = moe.align(routing)
    tiles = {"BLOCK_SIZE_M": 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}
    flags = dict.fromkeys(("use_fp8_w8a8", "use_int8_w8a8", "use_int8_w8a16", "use_int4_w4a16", "per_channel_quant"), False)

    counts = {}
    for name, flag, dtype in (("w8a8", "use_int8_w8a8", "float32"), ("w8a16-int8", "use_int8_w8a16", "bfloat16"),
                              ("fp8-tiles", "use_fp8_w8a8", "float32")):  # fmt: skip
        scheme = moe_experts.EXPERTS[name]
        x, experts = scheme.activations(values), moe_experts.quantize_experts(weights, scheme)
        stored, packed = scheme.stored(x), experts.pack()
        if name == "w8a16-int8":
            w = tensor(np.stack([each.codes.T for each in experts.matrices]))
            scales = None, tensor(packed["scales"][:, 0]).float()
        else:
            w, scales = tensor(packed["w"]), (tensor(stored["x_scales"]), tensor(packed["w_scales"]))
        if name == "w8a8":
            scales = scales[0].reshape(TOKENS, 1), scales[1].reshape(EXPERTS, N, 1)
        out = torch.zeros(TOKENS, TOP_K, N, dtype=getattr(torch, dtype))
        with block():
            module.invoke_fused_moe_triton_kernel(
                tensor(stored["x"]), w, out, *scales, tensor(routing.weights), tensor(aligned.choices), tensor(aligned.experts),
                torch.tensor([aligned.choices.size], dtype=torch.int32), True, TOP_K, dict(tiles), getattr(tl, dtype),
                **{**flags, flag: True, "per_channel_quant": name == "w8a8"}, block_shape=[128, 128] if name == "fp8-tiles" else None,
            )  # fmt: skip
        wanted = moe_experts.weighted_rows(moe_experts.moe_rows(x, experts, routing, arch=arch), routing)
        if dtype == "bfloat16":
            wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
        counts[name] = int((out.float().numpy() != wanted).sum())
        if name == "fp8-tiles":
            same = moe_experts.Experts(scheme=moe_experts.EXPERTS["fp8-tiles-in-turn"], matrices=experts.matrices)
            rows = moe_experts.weighted_rows(moe_experts.moe_rows(x, same, routing, arch=arch), routing)
            counts["fp8-tiles-in-turn"] = int((out.numpy() != rows).sum())
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_experts_have_the_bits_of_vllm(arch: str) -> None:
    """FP8 tiles differ, and by nothing else than the order of the scales."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: see CONTRIBUTING.md")
    ran = subprocess.run(
        [sys.executable, __file__, arch], capture_output=True, text=True, env=os.environ | {"TRITON_DEFAULT_FP_FUSION": "1"}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    counts = json.loads(ran.stdout.splitlines()[-1])
    assert counts.pop("fp8-tiles") > 1000
    assert counts == {"w8a8": 0, "w8a16-int8": 0, "fp8-tiles-in-turn": 0}


if __name__ == "__main__":
    print(json.dumps(found(sys.argv[1])))
