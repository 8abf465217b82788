"""How one module of a big package is imported without the rest, and how results are compared."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import torch  # noqa: E402
from benchmarks.field import cases, loading  # noqa: E402

FILES = {
    "fieldbig/__init__.py": "raise RuntimeError('the whole package')",
    "fieldbig/run/__init__.py": "VALUE = 7",
    "fieldbig/ops/__init__.py": "raise RuntimeError('the whole package')",
    "fieldbig/ops/kernel.py": """
import fieldbig_needs.this as needed
from fieldbig._C import native
from fieldbig.run import VALUE
from fieldbig_needs import decorator

@decorator
def launch():
    return VALUE

def decides():
    return bool(needed.available())
""",
    "fieldbig/_C.abi3.so": "no machine code",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(loading, "BARE", ("fieldbig",))
    monkeypatch.setattr(loading, "RUN", ("fieldbig.run",))
    yield
    for name in [each for each in sys.modules if each.startswith("fieldbig")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_one_module_is_imported_without_the_rest(package: None) -> None:
    before = list(sys.meta_path)
    module = loading.load("fieldbig.ops.kernel")
    assert module.launch() == 7 and sys.meta_path == before
    with pytest.raises(ImportError):
        importlib.import_module("fieldbig_needs")


def test_what_is_not_installed_decides_nothing(package: None) -> None:
    with pytest.raises(RuntimeError, match="asked for a decision"):
        loading.load("fieldbig.ops.kernel").decides()


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BARE", ("fieldbig",))
    with pytest.raises(ImportError, match="fieldbig is not installed"):
        loading.load("fieldbig.ops.kernel")


def test_differences() -> None:
    want = torch.tensor([1.0, -4.0, torch.inf], dtype=torch.float64)
    assert cases.difference(torch.tensor([1.0, -4.5, torch.inf]), want) == 0.125
    assert cases.difference(torch.tensor([1.0, torch.nan, torch.inf]), want) == float("inf")
    assert cases.difference(torch.zeros(2), torch.zeros(2)) == 0
    with pytest.raises(ValueError, match="shapes"):
        cases.difference(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="results"):
        cases.compared({"out": want}, {"out": want, "more": want})
