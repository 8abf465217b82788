"""Kernels of packages that nobody here wrote, unmodified and compiled, against float64; on small integers, bit for bit.

They need the packages of the extra `field` (CONTRIBUTING.md); each architecture has a process of its own, since packages decide by the
GPU while they are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.field.cases import ARCHITECTURES, FieldCase, field_cases, version  # noqa: E402
from benchmarks.field.worker import Worker  # noqa: E402

QUICK = ("liger-rms-norm", "liger-relu-squared")
"""On sm_90a, in the ordinary run."""


class Workers:
    """A process for each architecture that is asked for, one at a time."""

    def __init__(self) -> None:
        self._arch, self._worker = "", None

    def ask(self, arch: str, case: FieldCase, *, exact: bool = False) -> dict[str, Any]:
        if version(case.package) is None:
            pytest.skip(f"{case.package} is not installed: see CONTRIBUTING.md")
        if arch != self._arch:
            self.close()
            self._arch, self._worker = arch, Worker(arch)
        assert self._worker is not None
        found = self._worker.ask(case.name, exact=exact)
        if "error" in found:
            pytest.fail(f"{found['error']}\n{found['traceback']}")
        return found

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._arch, self._worker = "", None


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def calls(*, exact: bool = False) -> list[Any]:
    """Every case on each of its architectures."""
    found = []
    for arch in ARCHITECTURES:
        for case in field_cases().values():
            if arch in case.architectures and (case.is_exact or not exact):
                quick = arch == "sm_90a" and case.name in QUICK
                found.append(pytest.param(arch, case, marks=() if quick else pytest.mark.slow, id=f"{arch}-{case.name}"))
    return found


@pytest.mark.parametrize(("arch", "case"), calls())
def test_near_float64(workers: Workers, arch: str, case: FieldCase) -> None:
    found = workers.ask(arch, case)["differences"]
    assert all(each <= case.bound for each in found.values()), (found, case.bound, case.why)


@pytest.mark.parametrize(("arch", "case"), calls(exact=True))
def test_small_integers_are_exact(workers: Workers, arch: str, case: FieldCase) -> None:
    """Every order of sums gives one result: what differs is movement, masks or layouts."""
    assert workers.ask(arch, case, exact=True)["equal"]


@pytest.mark.slow
@pytest.mark.parametrize("case", field_cases().values(), ids=lambda case: case.name)
def test_the_check_sees_other_data(case: FieldCase) -> None:
    """Rolled by one, a reference is far from itself: the bounds are not so wide that anything passes."""
    import torch
    from benchmarks.field.cases import Numbers, compared

    want = case.wanted(case.draw(Numbers(exact=False)))
    moved = {name: value.roll(1, 0) if value.ndim else value * (1 + 4 * case.bound) for name, value in want.items()}
    if all(torch.equal(moved[name], want[name]) for name in want):
        moved = {name: value.roll(1, -1) for name, value in want.items()}
    assert max(compared(moved, want).values()) > case.bound
