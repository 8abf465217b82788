"""What ptxas, which comes with Triton, tells of a kernel: it alone knows which registers are kept in memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

from mmabits.isa import architecture

_SPILLS: Final = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS: Final = re.compile(r"Used (\d+) registers")
_TIMEOUT_S: Final = 600


@lru_cache(maxsize=256)
def spills(text: str, arch: str, *, contracts: bool) -> str:
    """Registers that ptxas keeps in memory, in words, or why it did not say."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text, encoding="utf-8")
        tool = get_ptxas(architecture(arch).capability_number).path
        options = ["-v", *([] if contracts else ["--fmad=false"]), f"--gpu-name={arch}", str(source), "-o", str(result)]
        try:
            done = subprocess.run([tool, *options], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"ptxas did not say: {error}"
    found, used = _SPILLS.search(done.stderr), _REGISTERS.search(done.stderr)
    if done.returncode or found is None or used is None:
        return f"ptxas did not say: {' '.join(done.stderr.split())[:200]}"
    _, stored, loaded = map(int, found.groups())
    words = f"{stored} bytes stored, {loaded} loaded" if stored or loaded else "none"
    return f"{words}; {used[1]} registers"


__all__ = ["spills"]
