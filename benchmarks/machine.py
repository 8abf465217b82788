"""The machine, the versions and the commit that a measurement belongs to."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import PEERS, version
from benchmarks.report import Machine
from benchmarks.worker import ROOT
from mmabits.emulator.engine.width import byte_products, lanes

_PACKAGES = ("numpy", "numba", "llvmlite", "ml_dtypes")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(arguments: Sequence[str]) -> Machine:
    """The machine as it is now.

    Args:
        arguments: of the command line.
    """
    return Machine(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), cpu=_cpu(),
        vectors=f"{lanes()} lanes, {byte_products()}", cores=cores(),
        system=f"{platform.system()} {platform.machine()}", versions=_versions(), commit=_commit(),
        command=" ".join(("python -m benchmarks", shlex.join(arguments))).strip(),
    )  # fmt: skip


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    import mmabits

    found = {"mmabits": mmabits.__version__, "Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return found | {name: text for peer, name in PEERS.items() if (text := version(peer))} | _blas()


def _blas() -> dict[str, str]:
    """The library behind NumPy's matmul."""
    import numpy as np

    config = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {}) if isinstance(config, dict) else {}
    return {str(blas["name"]): f"{blas.get('version', '')} {_blas_kernels()}".strip()} if blas.get("name") else {}


def _blas_kernels() -> str:
    """The processor that OpenBLAS takes this one for, whose vectors it uses; nothing where it does not say."""
    import numpy as np

    for file in sorted(Path(np.__file__).parents[1].glob("numpy.libs/*openblas*")):
        library = ctypes.CDLL(str(file))
        for name in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_", "openblas_get_corename"):
            function = getattr(library, name, None)
            if function is not None:
                function.restype = ctypes.c_char_p
                return f"({function().decode()})"
    return ""


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
