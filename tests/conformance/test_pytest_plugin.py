"""The pytest plugin on small projects of our own, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmabits

pytest.importorskip("torch")

PROJECT = """
import unittest

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

@pytest.fixture
def a():
    return torch.arange(32 * 64, dtype=torch.float16, device="cuda" if HAS_GPU else "cpu").reshape(32, 64) / 64

@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("n", [1, 2])
def test_gpu(a, n, mmabits_arch):
    assert a.device.type == "cuda"
    assert torch.cuda.get_device_capability() == {"sm_90a": (9, 0), "sm_100a": (10, 0), "sm_89": (8, 9)}[mmabits_arch]
    assert (a @ a.T).shape == (32, 32)

class Old(unittest.TestCase):
    def test_old(self):
        self.assertEqual(torch.cuda.is_available(), HAS_GPU)

@pytest.mark.mmabits(skip=True)
def test_plain(mmabits_arch):
    assert mmabits_arch is None and not torch.cuda.is_available()

@pytest.mark.mmabits(arch="sm_89")
def test_marked(a, mmabits_arch, mmabits_session):
    a @ a.T
    assert mmabits_arch == "sm_89" == mmabits_session.report().arch
    assert mmabits_session.report().emulated

@pytest.mark.mmabits(cuda=False)
def test_cpu(mmabits_session):
    assert not torch.cuda.is_available()
"""


def run(folder: Path, *arguments: str, configuration: str = "") -> tuple[int, str]:
    """pytest's exit status and output in a folder; the plugin is named, as checkouts that are not installed need it."""
    (folder / "pytest.ini").write_text(f"[pytest]\n{configuration}")
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    named = ("-p", "mmabits.conformance.pytest_plugin") if not _is_registered() else ()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named, *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _is_registered() -> bool:
    from importlib.metadata import entry_points

    return any(entry.value == "mmabits.conformance.pytest_plugin" for entry in entry_points(group="pytest11"))


def test_a_project_as_two_gpus(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text(PROJECT)
    (tmp_path / "conftest.py").write_text("import torch\nassert torch.cuda.get_device_capability() == (9, 0)\n")
    status, out = run(tmp_path, "--mmabits-arch", "h100,b200", "--mmabits-report", "report.json")
    assert status == 0, out
    # two tests of two architectures, one of one, one as two, an old one, a plain one
    assert "9 passed" in out
    assert "sm_90a: 4 tests; 131,072 multiply-adds (100 % of those counted)" in out
    figures = json.loads((tmp_path / "report.json").read_text())
    assert {figure["arch"] for figure in figures} == {"sm_90a", "sm_100a", "sm_89"}
    tests = [figure["test"].partition("::")[2] for figure in figures]
    assert tests[:4] == ["test_gpu[sm_90a-1]", "test_gpu[sm_90a-2]", "test_gpu[sm_100a-1]", "test_gpu[sm_100a-2]"]
    assert tests[4:] == ["Old::test_old", "test_marked[sm_89]", "test_cpu[sm_90a]", "test_cpu[sm_100a]"]
    assert sum(figure["multiply_adds"] for figure in figures) == 5 * 32 * 32 * 64


def test_a_worker_of_xdist_writes_no_report(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("def pytest_configure(config):\n    config.workerinput = {}\n")
    (tmp_path / "test_it.py").write_text("def test_it(mmabits_session):\n    pass\n")
    settled = ("--mmabits-arch", "sm_90a", "--mmabits-cuda", "no", "--mmabits-report", "report.json")
    status, out = run(tmp_path, *settled)
    assert (status, (tmp_path / "report.json").exists()) == (0, False), out
    (tmp_path / "conftest.py").unlink()
    status, out = run(tmp_path, *settled)
    assert (status, (tmp_path / "report.json").exists()) == (0, True), out


@pytest.mark.slow
def test_workers_of_xdist(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    (tmp_path / "test_project.py").write_text(PROJECT)
    status, out = run(tmp_path, "-n", "2", "--mmabits-arch", "h100,b200", "--mmabits-report", "report.json")
    assert (status, "9 passed" in out) == (0, True), out
    assert "sm_90a: 4 tests; 131,072 multiply-adds (100 % of those counted)" in out
    assert len(json.loads((tmp_path / "report.json").read_text())) == 8


def test_without_the_option_nothing_is_emulated(tmp_path: Path) -> None:
    more = "\nimport sys\ndef test_imports():\n    assert not {'numba', 'triton', 'jax'} & set(sys.modules)\n"
    (tmp_path / "test_project.py").write_text(PROJECT + more)
    status, out = run(tmp_path, "--deselect", "test_project.py::test_marked", "--deselect", "test_project.py::test_cpu")
    assert status == 0, out
    assert "3 passed, 2 skipped" in out


def test_the_configuration_names_architectures(tmp_path: Path) -> None:
    (tmp_path / "test_project.py").write_text("def test_it(mmabits_arch):\n    assert mmabits_arch == 'sm_80'\n")
    status, out = run(tmp_path, configuration="mmabits_arch = a100\nmmabits_cuda = no\n")
    assert (status, "1 passed" in out) == (0, True), out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mmabits-arch", "sm_1"), "sm_1"),
        (("--mmabits-arch", "sm_90a", "--mmabits-check", "race"), "no check 'race'"),
        (("--mmabits-arch", "sm_90a", "--mmabits-require", "known"), "known"),
        (("--mmabits-check", "races"), "goes with --mmabits-arch"),
        (("--mmabits-arch", "sm_90a", "--mmabits-report", "r.txt"), ".json"),
    ],
)
def test_wrong_options_are_one_error(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "test_project.py").write_text("def test_it():\n    pass\n")
    status, out = run(tmp_path, *arguments)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert re.search(rf"(?i)error: .*{re.escape(said)}", out), out
    assert "Traceback" not in out


def test_the_workflow_of_the_page_names_what_there_is() -> None:
    yaml = pytest.importorskip("yaml")
    root = Path(__file__).parents[2]
    page = (root / "docs" / "ci.md").read_text()
    workflow = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])  # type: ignore[index]
    steps = workflow["jobs"]["emulated"]["steps"]
    project = (root / "pyproject.toml").read_text()
    for extra in re.findall(r"mmabits\[(.*?)\]", page):
        assert all(re.search(rf"^{name} = ", project, re.MULTILINE) for name in extra.split(","))
    for arch in workflow["jobs"]["emulated"]["strategy"]["matrix"]["arch"]:
        assert mmabits.instructions(arch=arch)
    command = steps[-1]["run"].replace("${{ matrix.arch }}", "sm_90a").split()
    options = [word for word in command if word.startswith("--mmabits-")]
    source = (root / "conformance" / "pytest_plugin.py").read_text()
    assert options
    assert all(f'("{option.removeprefix("--mmabits-")}", ' in source for option in options)
