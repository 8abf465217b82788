"""The wheel and the sdist hold the package and nothing else."""

import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("commands", "conformance", "emulator", "isa", "kernels", "reports", "research")
CORE_DEPENDENCIES = {"jinja2", "ml_dtypes", "numba", "numpy", "rich", "safetensors", "typer"}
DATA_FILES = {"mmabits/py.typed", "mmabits/isa/sources.toml"}
DATA_KINDS = (*(f"{folder}/**/*.j2" for folder in FOLDERS), "conformance/probes/pack/*.safetensors", "isa/tables/*", "kernels/cuda/*.cu")
"""Data that are many files: page templates, the pack of vectors, and tables of numbers."""


def run_ok(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return its standard output; on failure, fail the test with all it printed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def contents_of(wheel: Path) -> dict[str, str]:
    """Each file of the wheel outside its metadata, with the SHA-256 of its bytes."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def version_of_project() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, links kept as links, so that building leaves nothing in the working tree."""
    pytest.importorskip("build", reason="needs the dev extra")
    target = tmp_path_factory.mktemp("source") / "mmabits"
    target.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)
    for name in ("src", "wheels", *FOLDERS):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return target


@pytest.fixture(scope="module")
def sdist(source_copy: Path) -> Path:
    return build(source_copy, "--sdist", "*.tar.gz")


@pytest.fixture(scope="module")
def wheel(source_copy: Path) -> Path:
    return build(source_copy, "--wheel", "*.whl")


def build(source: Path, kind: str, pattern: str, ship: str = "none") -> Path:
    """Build with the setuptools that is installed here, so that nothing is downloaded; without code that Numba makes, or with some."""
    out = source.parent / f"{source.name}-out-{ship}"
    env = {**os.environ, "MMABITS_SHIP": ship}
    run_ok(sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(out), str(source), cwd=source.parent, env=env)
    (built,) = out.glob(pattern)
    return built


def test_wheel_has_one_top_level_name(wheel: Path) -> None:
    assert {name.split("/")[0] for name in contents_of(wheel)} == {"mmabits"}


def test_wheel_holds_every_module_of_the_tree_and_the_listed_data(wheel: Path) -> None:
    package = ROOT / "src" / "mmabits"
    modules = {f"mmabits/{path.relative_to(package).as_posix()}" for path in package.glob("*.py")}
    for folder in FOLDERS:
        assert (ROOT / folder / "__init__.py").is_file(), f"{folder}/ is no package: it lacks __init__.py"
        modules |= {f"mmabits/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    data = {f"mmabits/{path.relative_to(ROOT).as_posix()}" for kind in DATA_KINDS for path in ROOT.glob(kind)}
    assert len(data) > 100
    assert set(contents_of(wheel)) == modules | data | DATA_FILES


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata_name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (entry_points_name,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        metadata = email.message_from_bytes(archive.read(metadata_name))
        entry_points = archive.read(entry_points_name).decode()
        licences = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert {re.split(r"[^A-Za-z0-9_.-]", text)[0].replace("-", "_") for text in required} == CORE_DEPENDENCIES
    assert metadata["Name"] == "mmabits"
    assert metadata["Version"] == version_of_project()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "mmabits = mmabits.commands.main:main" in entry_points
    assert len(licences) == 1


def test_sdist_holds_real_files_and_gives_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        links = [member.name for member in archive.getmembers() if not (member.isfile() or member.isdir())]
        archive.extractall(tmp_path, filter="data")
    assert links == []
    (unpacked,) = tmp_path.iterdir()
    assert not [folder for folder in FOLDERS if (unpacked / folder).exists()], "the sdist holds a folder twice"
    assert contents_of(build(unpacked, "--wheel", "*.whl")) == contents_of(wheel)


def test_wheel_imports_from_outside_the_tree_and_loads_no_framework(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = f"""
import importlib, sys
from pathlib import Path
import mmabits
for name in {FOLDERS}:
    importlib.import_module("mmabits." + name)
print(Path(mmabits.__file__).parent)
print(sorted({{"jax", "matplotlib", "tokenizers", "torch", "triton"}} & set(sys.modules)))
print(sorted(set({FOLDERS}) & set(sys.modules)))
"""
    output = run_ok(sys.executable, "-c", program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert output.splitlines() == [str(site / "mmabits"), "[]", "[]"]


FIRST_RESULT = """
import sys
import numpy as np
import mmabits
a = np.random.default_rng(0).integers(-128, 128, (40, 70), np.int8)
d = mmabits.gemm(a, a.T.copy(), instruction="mma.sync", arch="sm_80")
assert (d == a.astype(np.int32) @ a.T.astype(np.int32)).all()
print("numba" in sys.modules, mmabits.__file__)
"""
SHIPPED = "mmabits_integer_uint8_int32"


def test_an_installed_wheel_computes_without_numba_until_its_sources_change(source_copy: Path, tmp_path: Path) -> None:
    """With a cold cache; where the sources are others than those that were compiled, Numba comes in, and the bits are the same."""
    wheel = build(source_copy, "--wheel", "*.whl", SHIPPED)
    with zipfile.ZipFile(wheel) as archive:
        files = {name: info.file_size for name in archive.namelist() if "/engine/shipped/" in name and (info := archive.getinfo(name))}
    assert {Path(name).name for name in files} == {f"{SHIPPED}-{lanes}.bin" for lanes in (4, 8, 16)}
    assert all(5_000 < size < 20_000 for size in files.values()), files
    run_ok(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env"), cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    pip = ("-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-compile", "--disable-pip-version-check", str(wheel))
    run_ok(sys.executable, *pip, cwd=tmp_path)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    ours = {
        "NUMBA_CACHE_DIR": str(tmp_path / "cold"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("-packages")),
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "MMABITS_"))}

    def first_result(**more: str) -> list[str]:
        program = f"import sys; sys.path.insert(0, {str(site)!r})\n{FIRST_RESULT}"
        return run_ok(str(python), "-c", program, cwd=tmp_path, env={**env, **ours, **more}).split()

    assert first_result() == ["False", str(site / "mmabits" / "__init__.py")]
    assert first_result(MMABITS_LANES="4", MMABITS_BYTES="plain")[0] == "False"
    with (site / "mmabits" / "emulator" / "engine" / "integers.py").open("a") as module:
        module.write("\n# another source\n")
    assert first_result()[0] == "True"


def test_version_is_the_same_everywhere() -> None:
    cff_version = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changelog_versions = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert cff_version is not None
    assert cff_version[1] == version_of_project()
    assert changelog_versions[0] == version_of_project()


def test_ruff_is_pinned_alike_for_make_and_for_pre_commit() -> None:
    in_pyproject = re.search(r'"ruff==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    in_pre_commit = re.search(r"ruff-pre-commit\s+rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert in_pyproject is not None
    assert in_pre_commit is not None
    assert in_pyproject[1] == in_pre_commit[1]
