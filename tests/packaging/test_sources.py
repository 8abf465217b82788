"""Rules that the sources keep: one module owns the compiler, no fastmath, no stray imports, no machine paths; no modules that import
one another, no room that outgrows the others.
"""

import ast
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("commands", "conformance", "emulator", "isa", "kernels", "reports", "research")
COMPILERS = ("llvmlite", "numba")
DECORATOR_OWNERS = (Path("emulator/engine/jit.py"), Path("emulator/engine/cuda.py"))
"""Who may decorate functions for the compiler: one module for the CPU, one for the GPU."""
COMPILER_USERS = (
    *DECORATOR_OWNERS, Path("emulator/hooks/jax/handler.py"),
    Path("emulator/engine/lanes.py"), Path("emulator/machine/compiler.py"), Path("emulator/engine/machine_code.py"),
    Path("emulator/engine/steps.py"), Path("emulator/engine/floors.py"), Path("emulator/engine/integers.py"),
    Path("emulator/engine/width.py"), Path("emulator/engine/primitives.py"), Path("emulator/engine/objects.py"),
    Path("emulator/engine/shipped.py"), Path("emulator/engine/ship.py"),
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


def test_few_modules_know_the_compilers() -> None:
    assert all((ROOT / path).is_file() for path in COMPILER_USERS)
    assert violations(compiler_imports, [path for path in library_files() if path not in COMPILER_USERS]) == []


def test_one_module_prints() -> None:
    progress = (Path("reports/progress.py"), Path("research/study/sweeps.py"))  # a bar on standard error, of texts of our own
    folders = ("commands", "conformance", "reports", "research")
    files = [path for path in library_files() if path.parts[0] in folders and path not in (PRINTER, *progress)]
    assert violations(prints, files) == []


def test_one_module_for_each_target_decorates() -> None:
    files = [path for path in library_files() if path not in DECORATOR_OWNERS]
    assert violations(decorator_imports, files) == []


def engine_imports(tree: ast.AST) -> list[str]:
    """What computes products, imported."""
    doors = {("mmabits.emulator.api", name) for name in ("gemm", "mma", "dot_rows")}
    doors |= {("mmabits.emulator.engine.native", "native_product"), ("mmabits.emulator.engine.products", "run")}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return [alias.name for node in found for alias in node.names if (node.module, alias.name) in doors]


def test_one_module_of_the_hooks_has_the_door_to_the_engine() -> None:
    """Products get ready there: evidence, schedule and report are in it."""
    hooks = [path for path in library_files() if path.is_relative_to("emulator/hooks")]
    found = [path.as_posix() for path in hooks if engine_imports(ast.parse((ROOT / path).read_text(encoding="utf-8")))]
    assert found == ["emulator/hooks/session.py"]


def test_fastmath_is_set_nowhere() -> None:
    assert violations(fastmath_uses, library_files()) == []


# Circles and rooms -------------------------------------------------------------------------------------------------------

ROOMS = (
    "commands", "conformance", "research", "kernels", "reports", "isa", "emulator/hooks", "emulator/machine", "emulator/engine", "emulator",
)  # fmt: skip
"""Folders of the library; a file belongs to the first that holds it."""


def module_name(path: Path) -> str:
    parts = path.relative_to("src") if path.parts[0] == "src" else Path("mmabits") / path
    return ".".join(parts.parent.parts if parts.name == "__init__.py" else parts.with_suffix("").parts)


def imports_when_run(tree: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of each import, lazy ones too; name is empty for `import module`. What only a type checker reads is left out."""
    found: list[tuple[str, str]] = []
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            left += node.orelse
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [(node.module or "", alias.name) for alias in node.names]
        left += ast.iter_child_nodes(node)
    return found


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules each one imports. `from package import module` is an import of the module."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        named = {f"{base}.{name}" if f"{base}.{name}" in sources else base for base, name in imports_when_run(ast.parse(source))}
        graph[module] = (named & set(sources)) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import one another: one way round for each circle found, until none is left."""
    graph = {module: set(imported) for module, imported in graph.items()}
    found: list[list[str]] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            around: list[str] = error.args[1]
            found.append(around)
            graph[around[1]].discard(around[0])  # each imports the one before it
        else:
            return found


def library_sources() -> dict[str, str]:
    return {module_name(path): (ROOT / path).read_text(encoding="utf-8") for path in library_files()}


def test_circles_are_found() -> None:
    sources = {
        "p": "from p import a", "p.a": "import p.b", "p.b": "def f():\n    from p.c import x", "p.c": "from p import a, d",
        "p.d": "if TYPE_CHECKING:\n    from p.c import x\nimport os",
    }  # fmt: skip
    assert import_graph(sources) == {"p": {"p.a"}, "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p.d"}, "p.d": set()}
    assert [set(found) for found in circles(import_graph(sources))] == [{"p.a", "p.b", "p.c"}]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_modules_import_one_another() -> None:
    """Not even inside functions: the layers of pyproject.toml say which folder may import which, this which module."""
    assert [" -> ".join(reversed(around)) for around in circles(import_graph(library_sources()))] == []


def room_of(path: Path) -> str:
    return next((room for room in ROOMS if path.is_relative_to(room)), "src")


def test_no_room_outgrows_the_others() -> None:
    """The largest has less than a third of the library's lines."""
    assert all((ROOT / room).is_dir() for room in ROOMS)
    lines: Counter[str] = Counter()
    for path in library_files():
        lines[room_of(path)] += len((ROOT / path).read_text(encoding="utf-8").splitlines())
    room, most = lines.most_common(1)[0]
    assert 3 * most < lines.total(), f"{room} has {most} of {lines.total()} lines"


# Names -------------------------------------------------------------------------------------------------------------------


def classes(tree: ast.AST) -> list[str]:
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_each_class_name_stands_in_one_module() -> None:
    """Private ones too, and `_Name` counts as `Name`: who looks a name up finds one thing."""
    places: dict[str, set[str]] = {}
    for module, source in library_sources().items():
        for name in classes(ast.parse(source)):
            places.setdefault(name.lstrip("_"), set()).add(module)
    found = {name: sorted(modules) for name, modules in places.items() if len(modules) > 1}
    assert found == {}


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
