"""GPU architectures as rows: the compilation targets that have tensor cores modelled here."""

from __future__ import annotations

from dataclasses import dataclass

from mmabits.isa.errors import UnknownArchitecture, nearest


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """One compilation target."""

    name: str
    """The target as compilers spell it (`"sm_90a"`)."""
    family: str
    """Marketing name of the generation."""
    gpus: tuple[str, ...]
    """Some GPUs of it."""
    base: str = ""
    """For an architecture that `what_if` made: the one it departs from."""
    promote_every: int = 0
    """Likewise: elements of K after which gemm promotes where its caller does not say; 0: never."""

    @property
    def target(self) -> str:
        """The real architecture: whose instructions there are, and what compilers are asked for."""
        return self.base or self.name

    def __str__(self) -> str:
        return self.name


def _row(name: str, family: str, *gpus: str) -> ArchitectureSpec:
    return ArchitectureSpec(name=name, family=family, gpus=gpus)


_ROWS = (
    _row("sm_70", "Volta", "V100", "Titan V"),
    _row("sm_75", "Turing", "T4", "RTX 2080 Ti"),
    _row("sm_80", "Ampere", "A100", "A30"),
    _row("sm_86", "Ampere", "A2", "A40", "RTX 3090"),
    _row("sm_89", "Ada Lovelace", "L4", "L40S", "RTX 4090"),
    _row("sm_90a", "Hopper", "H100", "H200", "GH200"),
    _row("sm_100a", "Blackwell", "B200", "GB200"),
    _row("sm_103a", "Blackwell", "B300", "GB300"),
    _row("sm_110a", "Blackwell", "Jetson Thor"),
    _row("sm_120a", "Blackwell", "RTX 5090", "RTX PRO 6000 Blackwell"),
    _row("sm_121a", "Blackwell", "DGX Spark (GB10)"),
)

ARCHITECTURES: dict[str, ArchitectureSpec] = {row.name: row for row in _ROWS}
"""Every architecture by its name, oldest first."""


WHAT_IF_ARCHITECTURES: dict[str, ArchitectureSpec] = {}
"""Those that `what_if` made in this process."""


def architecture(name: str | ArchitectureSpec) -> ArchitectureSpec:
    """The row of an architecture.

    Args:
        name: compilation target (`"sm_90a"`), a name that `what_if` was given, or a row, which is returned as it is.

    Raises:
        UnknownArchitecture: no such target; the message names the nearest, or the `a` target that is meant.
    """
    if isinstance(name, ArchitectureSpec):
        return name
    for known in (ARCHITECTURES, WHAT_IF_ARCHITECTURES):
        if name in known:
            return known[name]
    specific = f"{str(name).rstrip('f')}a"
    if specific in ARCHITECTURES:
        raise UnknownArchitecture(f"architecture {name!r} leaves out the architecture-specific instructions; write {specific!r}")
    raise UnknownArchitecture(f"unknown architecture {name!r}{nearest(str(name), ARCHITECTURES)}; known: {', '.join(ARCHITECTURES)}")
