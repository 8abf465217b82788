"""GPU architectures as rows: the compilation targets that have tensor cores modelled here, and the GPUs that are of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mmabits.isa.errors import UnknownArchitecture


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """One compilation target."""

    name: str
    """The target as compilers spell it (`"sm_90a"`)."""
    family: str
    """Marketing name of the generation."""
    gpus: tuple[str, ...]
    """Some GPUs of it."""
    models: tuple[str, ...] = ()
    """Names that are taken for it: those of `gpus`, and of others with tensor cores, without what `_ASIDE` leaves out."""
    after: str = ""
    """The target whose instructions it has too, save those that PTX gives to that target alone."""
    like: str = ""
    """Where nobody has measured it: the neighbour whose floating-point datapaths it is taken to have, as inferred."""
    base: str = ""
    """For an architecture that `what_if` made: the one it departs from."""
    promote_every: int = 0
    """Likewise: elements of K after which gemm promotes where its caller does not say; 0: never."""
    source: str = ""
    """Of the models."""
    shared_memory: int = 0
    """KiB of shared memory that a CTA may have, by the table of compute capabilities in NVIDIA's CUDA programming guide."""

    @property
    def target(self) -> str:
        """The real architecture: whose instructions there are, and what compilers are asked for."""
        return self.base or self.name

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, major and minor, which is what a target is named by: (9, 0) of sm_90a."""
        digits = "".join(filter(str.isdigit, self.target))
        return int(digits[:-1]), int(digits[-1])

    @property
    def capability_number(self) -> int:
        """The same as compilers write it: 90."""
        major, minor = self.capability
        return 10 * major + minor

    def __str__(self) -> str:
        return self.name


def _row(
    name: str, family: str, shared_memory: int, gpus: tuple[str, ...], *models: str, after: str = "", like: str = ""
) -> ArchitectureSpec:  # fmt: skip
    return ArchitectureSpec(
        name=name, family=family, gpus=gpus, models=(*gpus, *models), source="gpu-names", shared_memory=shared_memory, after=after,
        like=like,
    )  # fmt: skip


def _series(brand: str, models: str) -> tuple[str, ...]:
    """`RTX 4090`, `RTX 4080 SUPER` of `4090, 4080 SUPER`."""
    return tuple(f"{brand} {model}" for model in models.split(", "))


# fmt: off
_ROWS = (
    _row("sm_70", "Volta", 96, ("V100", "Titan V"), "Quadro GV100"),
    _row("sm_75", "Turing", 64, ("T4", "RTX 2080 Ti"), "Titan RTX",
         *_series("RTX", "2080, 2080 SUPER, 2070, 2070 SUPER, 2060, 2060 SUPER"), *_series("Quadro RTX", "8000, 6000, 5000, 4000, 3000"),
         after="sm_70"),
    _row("sm_80", "Ampere", 163, ("A100", "A30"), "A800", "AX800", after="sm_75"),
    _row("sm_86", "Ampere", 99, ("A2", "A40", "RTX 3090"), "A10", "A10G", "A10M", "A16",
         *_series("RTX", "3090 Ti, 3080, 3080 Ti, 3070, 3070 Ti, 3060, 3060 Ti, 3050, 3050 Ti, 2050"),
         *_series("RTX", "A6000, A5500, A5000, A4500, A4000, A4000H, A3000, A2000, A1000, A500, A400"), after="sm_80"),
    _row("sm_89", "Ada Lovelace", 99, ("L4", "L40S", "RTX 4090"), "L2", "L20", "L40", "RTX 3050 A",
         *_series("RTX", "4080, 4080 SUPER, 4070, 4070 SUPER, 4070 Ti, 4070 Ti SUPER, 4060, 4060 Ti, 4050"),
         *_series("RTX", "6000 Ada, 5880 Ada, 5000 Ada, 4500 Ada, 4000 Ada, 3500 Ada, 3000 Ada, 2000 Ada, 2000E Ada, 1000 Ada, 500 Ada"),
         after="sm_86"),
    _row("sm_90a", "Hopper", 227, ("H100", "H200", "GH200"), "H20", "H800", after="sm_89"),
    _row("sm_100a", "Blackwell", 227, ("B200", "GB200"), after="sm_90a"),
    _row("sm_103a", "Blackwell", 227, ("B300", "GB300"), after="sm_100a", like="sm_100a"),
    _row("sm_110a", "Blackwell", 227, ("Jetson Thor",), "Jetson T5000", "Jetson T4000", after="sm_100a", like="sm_100a"),
    _row("sm_120a", "Blackwell", 99, ("RTX 5090", "RTX PRO 6000 Blackwell"), "RTX 6000D",
         *_series("RTX", "5080, 5070, 5070 Ti, 5060, 5060 Ti, 5050"),
         *_series("RTX PRO", "5000, 4500, 4000, 3000, 2000, 1000, 500"), after="sm_100a"),
    _row("sm_121a", "Blackwell", 99, ("DGX Spark (GB10)",), "DGX Spark", "GB10", after="sm_120a", like="sm_120a"),
)
# fmt: on

_ASIDE: Final = re.compile(
    r"nvidia|tesla|geforce|jetson|dgx|hgx|gpu|generation|blackwell"  # the maker, the brand, the generation
    r"|\d+gb?|hbm\d?e?|pcie|sxm\d*|nvl\d*|lc|ac|active|mig|\d+g\.\d+gb"  # memory, connector, cooling, a part of it
    r"|laptop|embedded|oem|sff|d|v2|max|q|with|design|workstation|server|edition|3e"  # its make
)
"""Words of a GPU's name that do not tell its architecture."""

ARCHITECTURES: dict[str, ArchitectureSpec] = {row.name: row for row in _ROWS}
"""Every architecture by its name, oldest first."""


def since(first: str) -> tuple[str, ...]:
    """A target and all that have its instructions too, as the rows say."""
    found: dict[str, bool] = {"": False}

    def has(name: str) -> bool:
        if name not in found:
            found[name] = name == first or has(ARCHITECTURES[name].after)
        return found[name]

    return tuple(name for name in ARCHITECTURES if has(name))


WHAT_IF_ARCHITECTURES: dict[str, ArchitectureSpec] = {}
"""Those that `what_if` made in this process."""


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_()-]+", name.casefold()) if word and not _ASIDE.fullmatch(word)]


def _model(name: str) -> str:
    """What is left of a GPU's name: `NVIDIA GeForce RTX 5090 Laptop GPU` is `rtx5090`."""
    return "".join(_words(name))


_MODELS: Final = {_model(name): row for row in _ROWS for name in row.models}


def target_of(major: int, minor: int) -> ArchitectureSpec | None:
    """The target of a compute capability; None where none is known."""
    return next((row for row in _ROWS if row.capability == (major, minor)), None)


def real_architecture(name: str) -> ArchitectureSpec | None:
    """The row of a target or of a GPU: as nvidia-smi prints its name, or short (`"h100"`, `"rtx5090"`). None where none is known."""
    return ARCHITECTURES.get(name.strip().casefold()) or _MODELS.get(_model(name))


def architecture(name: str | ArchitectureSpec) -> ArchitectureSpec:
    """The row of an architecture.

    Args:
        name: compilation target (`"sm_90a"`), a GPU of it (`"h100"`, `"NVIDIA H100 PCIe"`), a name that `what_if` was given, or a row,
            which is returned as it is.

    Raises:
        UnknownArchitecture: no such target or GPU, or a name that GPUs of several have; the message names the target that is meant
            where that is sure.
    """
    if isinstance(name, ArchitectureSpec):
        return name
    if not isinstance(name, str):
        raise UnknownArchitecture(f"an architecture is given as text such as 'sm_90a', not as {type(name).__name__}")
    found = WHAT_IF_ARCHITECTURES.get(name) or ARCHITECTURES.get(name) or real_architecture(name)
    if found is None:
        raise UnknownArchitecture(_why_unknown(name, name.strip().casefold()))
    return found


def _why_unknown(name: str, plain: str) -> str:
    specific = f"{plain.rstrip('f')}a"
    if specific in ARCHITECTURES:
        return f"architecture {name!r} leaves out the architecture-specific instructions; write {specific!r}"
    near = _meant(plain)
    if len({arch for _, arch in near}) > 1:
        return f"architecture {name!r} may be {' or '.join(f'{arch} ({gpu})' for gpu, arch in near)}; write which"
    hint = f"; did you mean {near[0][1]}?" if near else ""
    return f"unknown architecture {name!r}{hint}; known: {', '.join(ARCHITECTURES)}, and GPUs by name"


def _meant(plain: str) -> list[tuple[str, str]]:
    """GPU and target of what a name may stand for: a generation, a part of GPUs' names, or a target with the same number.

    Nothing else is like it: the number is the generation, so sm_91 is no slip of the pen for sm_90a.
    """
    generation = [(row.gpus[0], row.name) for row in _ROWS if plain in row.family.casefold().split()]
    words = set(_words(plain))
    part = [(model, row.name) for row in _ROWS for model in row.models if words and words < set(_words(model))]
    number = re.fullmatch(r"(?:sm|compute)?_?([0-9]+)[a-z]*", plain)
    same = [(row.gpus[0], row.name) for row in _ROWS if number and int(number[1]) == row.capability_number]
    return generation or part or same
