"""An example or two of every command, as `--help` and docs/commands.md show them."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "mmabits": (
        "mmabits explain wgmma --arch h100 --a 448,0.015625 --b 1,1 --beside b200",
        "mmabits --install-completion",
    ),
    "mmabits list": ("mmabits list --arch h100 --evidence published",),
    "mmabits show": (
        "mmabits show wgmma --arch h100 --a-type e4m3",
        "mmabits show tcgen05.mma.kind::mxf4nvf4.block_scale --arch b200 \\\n    --a-type e2m1 --scale-type ue4m3",
    ),
    "mmabits replay": ("mmabits replay recordings --report replay.html",),
    "mmabits demo": ("mmabits demo --size small --out demo-output",),
    "mmabits campaign": (
        "mmabits campaign --budget 8m --out h100",
        "mmabits campaign --plan --arch h100",
    ),
    "mmabits compare": (
        "mmabits compare a.npy b.npy -f e4m3 --arch sm_90a --arch sm_100a",
        "mmabits compare x.npy w.safetensors:q.weight --transpose-b -f fp8 \\\n    --arch sm_90a --reference exact --report compare.html",
    ),
    "mmabits gemm": ("mmabits gemm a.npy b.npy -o d.npy --arch sm_90a -f e4m3",),
    "mmabits explain": (
        "mmabits explain wgmma --arch h100 --a 448,0.015625 --b 1,1 --beside b200",
        "mmabits explain mma.sync --arch a100 --a-type f16 --k 32 --save page.html",
    ),
    "mmabits function": ("mmabits function ex2.approx.ftz.f32 0.3 --arch h100",),
    "mmabits diff": (
        "mmabits diff --list",
        "mmabits diff --case mm-bf16-k256 --report diff.html",
        "mmabits diff --emulated --arch h100 --case triton-fp8",
    ),
    "mmabits identify": (
        "mmabits identify recording.safetensors --report identify.html",
        "mmabits identify --arch h100 \\\n    --instruction mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    ),
    "mmabits kernel": (
        "mmabits kernel train.py --arch h100 --only attention -- --steps 1",
        "mmabits kernel kernels.py:matmul --arch h100 \\\n    --signature '*fp16,*fp16,*fp32,i32' --constexpr BLOCK=64",
    ),
    "mmabits invariance": (
        "mmabits invariance llama-8b --arch h100 --batch 1 --batch 256",
        "mmabits invariance up=14336x4096 --ranks 8 --report invariance.html",
    ),
    "mmabits learn": ("mmabits learn h100 --patch rows.patch",),
    "mmabits evaluate": ("mmabits evaluate small --arch h100 --arch b200 --quantize fp8",),
    "mmabits minilm": ("mmabits minilm --arch h100 --scheme fp8-row --sentence 'A short one.'",),
    "mmabits mismatch": ("mmabits mismatch h100:bf16 b200:bf16 --report mismatch.html",),
    "mmabits record": (
        "mmabits record --out recordings --only wgmma",
        "mmabits record --choices 4096x4096x4096:bf16 --out choices.json",
    ),
    "mmabits study": (
        "mmabits study",
        "mmabits study accumulation --size quick --out accumulation",
    ),
    "mmabits vectors": ("mmabits vectors score",),
    "mmabits vectors score": ("mmabits vectors score recordings --report score.html",),
    "mmabits vectors pack": ("mmabits vectors pack --out vectors",),
    "mmabits vectors convert": ("mmabits vectors convert run.toml -o run.safetensors",),
    "mmabits cache": ("mmabits cache warm wgmma --arch h100",),
    "mmabits cache warm": ("mmabits cache warm wgmma mma.sync --arch h100",),
    "mmabits cache clear": ("mmabits cache clear",),
}
"""By the whole name. A line is at most 74 characters, so that it stays whole in eighty columns; `\\` goes on in the next."""


def epilog(name: str) -> str:
    """What stands below a command's options."""
    lines = EXAMPLES[name]  # click leaves lines after a backspace as they are
    return "\b\n" + "\n".join(("Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))
