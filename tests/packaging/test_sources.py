"""Rules that the sources keep: one module owns the compiler, no fastmath, no stray imports, no machine paths."""

import ast
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("commands", "conformance", "emulator", "isa", "kernels", "reports", "research")
COMPILERS = ("llvmlite", "numba")
DECORATOR_OWNERS = (Path("emulator/engine/jit.py"), Path("emulator/engine/cuda.py"))
"""Who may decorate functions for the compiler: one module for the CPU, one for the GPU."""
COMPILER_USERS = (
    *DECORATOR_OWNERS, Path("emulator/hooks/jax/handler.py"),
    Path("emulator/engine/lanes.py"), Path("emulator/machine/kernel.py"), Path("emulator/engine/machine_code.py"),
    Path("emulator/engine/steps.py"),
)  # fmt: skip
"""Who may write instructions for it, or load what it made."""
DECORATORS = ("njit", "jit", "vectorize", "guvectorize", "cfunc", "stencil", "prange", "cuda")
MACHINE_PATHS = tuple("/" + rest for rest in ("work/", "tmp/dev", "root/", "home/", "Users/"))

Finder = Callable[[ast.AST], list[str]]


def library_files() -> list[Path]:
    """Every module of the library, relative to the root, in order."""
    found = list((ROOT / "src" / "mmabits").glob("*.py"))
    for folder in FOLDERS:
        found += (ROOT / folder).rglob("*.py")
    return sorted(path.relative_to(ROOT) for path in found)


def all_python_files() -> list[Path]:
    """The library, its tests and its benchmarks, relative to the root."""
    others = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    return library_files() + sorted(path.relative_to(ROOT) for path in others)


def imported_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and dotted name of each absolute import."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
    return found


def compiler_imports(tree: ast.AST) -> list[str]:
    return [f"line {line}: imports {name}" for line, name in imported_names(tree) if name.split(".")[0] in COMPILERS]


def decorator_imports(tree: ast.AST) -> list[str]:
    """Numba's decorators by name, or Numba itself, from which they could be had."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "numba":
            found += [f"line {node.lineno}: imports {alias.name}" for alias in node.names if alias.name in (*DECORATORS, "intrinsic")]
        elif isinstance(node, ast.Import):
            found += [f"line {node.lineno}: imports {alias.name}" for alias in node.names if alias.name == "numba"]
    return found


def stray_imports(tree: ast.AST) -> list[str]:
    """Imports of the root folders by their bare names."""
    return [f"line {line}: imports {name}" for line, name in imported_names(tree) if name.split(".")[0] in (*FOLDERS, "tests")]


def fastmath_uses(tree: ast.AST) -> list[str]:
    """A keyword, or the key of a dict of options, named fastmath."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "fastmath":
            found.append(f"line {node.value.lineno}: sets fastmath")
        elif isinstance(node, ast.Dict):
            found += [f"line {key.lineno}: sets fastmath" for key in node.keys if isinstance(key, ast.Constant) and key.value == "fastmath"]
    return found


PRINTER = Path("reports/output.py")
"""Through it alone the commands print: it spells out what a file could steer a terminal with."""


def prints(tree: ast.AST) -> list[str]:
    """Calls of print, writes to the standard streams, and consoles of rich for them."""
    found: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg for keyword in node.keywords}
        if name in ("print", "sys.stdout.write", "sys.stderr.write", "typer.echo") or (name == "Console" and "file" not in options):
            found.append(f"line {node.lineno}: calls {name}")
    return found


def violations(finder: Finder, files: list[Path]) -> list[str]:
    found: list[str] = []
    for path in files:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))
        found += [f"{path}: {text}" for text in finder(tree)]
    return found


@pytest.mark.parametrize(
    ("finder", "source", "count"),
    [
        pytest.param(compiler_imports, "from numba import njit", 1, id="compiler-from"),
        pytest.param(compiler_imports, "def f():\n    import numba as nb", 1, id="compiler-lazy"),
        pytest.param(compiler_imports, "import numbers\nfrom mmabits.emulator.engine.jit import njit", 0, id="compiler-none"),
        pytest.param(decorator_imports, "from numba import njit, types\nimport numba", 2, id="decorator"),
        pytest.param(decorator_imports, "from numba import cuda", 1, id="decorator-cuda"),
        pytest.param(decorator_imports, "from numba import types\nfrom numba.core import cgutils", 0, id="decorator-none"),
        pytest.param(stray_imports, "import kernels\nfrom isa.formats import E4M3", 2, id="stray"),
        pytest.param(stray_imports, "from mmabits import isa\nfrom . import kernels\nimport mmabits.emulator", 0, id="stray-none"),
        pytest.param(fastmath_uses, "jit(fastmath=True)\noptions = {'fastmath': False}", 2, id="fastmath"),
        pytest.param(fastmath_uses, "'''never fastmath='''\njit(cache=True)", 0, id="fastmath-none"),
        pytest.param(prints, "print(1)\nConsole()\nConsole(stderr=True).print(2)\nsys.stderr.write('')", 4, id="print"),
        pytest.param(prints, "say(1)\nConsole(file=text)\nconsole.print(2)", 0, id="print-none"),
    ],
)
def test_finder_finds_what_it_should(finder: Finder, source: str, count: int) -> None:
    assert len(finder(ast.parse(source))) == count


def test_seven_modules_know_the_compilers() -> None:
    assert all((ROOT / path).is_file() for path in COMPILER_USERS)
    assert violations(compiler_imports, [path for path in library_files() if path not in COMPILER_USERS]) == []


def test_one_module_prints() -> None:
    progress = (Path("reports/progress.py"), Path("research/study/sweeps.py"))  # a bar on standard error, of texts of our own
    files = [path for path in library_files() if path.parts[0] == "conformance" and path not in (PRINTER, *progress)]
    assert violations(prints, files) == []


def test_one_module_for_each_target_decorates() -> None:
    files = [path for path in library_files() if path not in DECORATOR_OWNERS]
    assert violations(decorator_imports, files) == []


def test_fastmath_is_set_nowhere() -> None:
    assert violations(fastmath_uses, library_files()) == []


def test_root_folders_are_imported_through_the_package() -> None:
    assert violations(stray_imports, all_python_files()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_folder_is_a_relative_link_to_the_root(folder: str) -> None:
    link = ROOT / "src" / "mmabits" / folder
    assert link.is_symlink(), f"{link} must be a symbolic link; clone with git's core.symlinks=true"
    assert os.readlink(link) == f"../../{folder}"
    assert link.resolve() == ROOT / folder


def files_known_to_git() -> list[Path]:
    """Tracked files, and new ones that .gitignore does not exclude; the test skips outside a git checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine() -> None:
    found: list[str] = []
    for path in files_known_to_git():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # recorded bits
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {fragment}" for fragment in MACHINE_PATHS if fragment in line]
    assert found == []
