"""The documents: their examples run, their links and paths lead somewhere, what they name exists, their generated table is current.

`python tests/unit/test_docs.py` rewrites the table.
"""

import ast
import doctest
import itertools
import keyword
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from mmabits.commands.tables import datapath_markdown

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
NUMERICS = ROOT / "docs" / "numerics.md"
DOCUMENTS = sorted((ROOT / "docs").glob("*.md")) + ([README] if README.is_file() else [])
GUIDES = [*DOCUMENTS, *(ROOT / name for name in ("CONTRIBUTING.md", "RELEASING.md", "tests/README.md", "tests/mutation/README.md"))]
WITH_EXAMPLES = {"README.md", "how-the-engine-works.md", "numerics.md", "vector-format.md"}
TABLE = re.compile(r"(?<=<!-- datapaths -->\n).*?(?=<!-- end -->)", re.DOTALL)
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
LIBRARY = ("commands", "conformance", "emulator", "isa", "kernels", "reports", "research")
FOLDERS = (*LIBRARY, "benchmarks", "docs", "src", "tests", ".ci")
PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*|[A-Z]\w*\.(?:md|cff)|Makefile|pyproject\.toml)`")

SPAN = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*?\))?`(?!`)")
"""A name, a dotted name or a call in backticks."""
WORD = re.compile(r"[\w.:]*\w")
FOREIGN = {
    "DataLoader", "GradScaler", "HIGH", "_weight_int8pack_mm", "cdist", "cudaGridDependencySynchronize", "make_tma_atom_A_sm100",
    "wgmma_sm90", "wgmma_tma_sm90", "inductor", "in.NAME", "malloc", "setup_context", "vX.Y.Z", "dmma.f64.f64", "m64n64",
    "shuffle_matrix_sf_a", "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32",
}  # fmt: skip
"""Names of other programs, of files, and of instructions that the library makes from parts."""

OTHERS = ("jax", "kernel", "tl", "torch", "triton")
"""What names of other programs begin with; `kernel` is one of Triton's."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


def without_code(text: str) -> str:
    return CODE_BLOCK.sub("", text)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE)}


def broken_links(text: str, document: Path) -> list[str]:
    """Links inside the repository that lead nowhere, or to a heading that is not there."""
    broken = []
    for target in LINK.findall(without_code(text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = document.parent / path if path else document
        if not there.exists() or (anchor and anchor not in anchors(text if not path else there.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


def missing_paths(text: str) -> list[str]:
    """Repository paths in backticks of which there is no file or folder."""
    return [path for path in PATH.findall(without_code(text)) if not (ROOT / path).exists()]


def failed_examples(text: str, name: str) -> list[str]:
    """What the examples of a text that fail have to say; they share their names, as with `python -m doctest`."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, name, name, 0)
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return said


def table_in(text: str) -> str:
    found = TABLE.search(text)
    assert found is not None, "docs/numerics.md lacks the markers <!-- datapaths --> and <!-- end -->"
    return found[0]


@each_document
def test_examples(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert (">>> " in text) is (document.name in WITH_EXAMPLES)
    assert "".join(failed_examples(text, document.name)) == ""


def test_documents_with_examples_are_there() -> None:
    assert WITH_EXAMPLES - {"README.md"} <= {document.name for document in DOCUMENTS}


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document.read_text(encoding="utf-8"), document) == []


@each_document
def test_paths_exist(document: Path) -> None:
    assert missing_paths(document.read_text(encoding="utf-8")) == []


# Names -------------------------------------------------------------------------------------------------------------------


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the library, its tests and its benchmarks, but this one: it has names that are gone."""
    paths = [path for folder in (*LIBRARY, "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in (*paths, ROOT / "src" / "mmabits" / "__init__.py"):
        if path != Path(__file__).resolve():
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree: ast.Module) -> set[int]:
    """Those of modules, classes, functions and, below an assignment, of names: they say what is there, and may be wrong."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}


def defined(tree: ast.Module, *, is_package: bool) -> set[str]:
    """What a module defines, assigns and takes; a package also what it imports, to hand it on."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom) and is_package:
            found.update(alias.asname or alias.name for alias in node.names)
    return found


def used(tree: ast.Module) -> set[str]:
    """What a module uses, of other packages too."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | attributes | {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}


@lru_cache(maxsize=1)
def vocabulary() -> tuple[dict[str, set[str]], set[str], set[str]]:
    """What each module or folder defines, by its last name; all names; the words of texts that programs read: keys, spellings, options."""
    modules: dict[str, set[str]] = {"mmabits": set(LIBRARY)}
    names: set[str] = {*LIBRARY, "mmabits", *keyword.kwlist}
    words: set[str] = set()
    for path, tree in trees():
        is_package = path.stem == "__init__"
        here = defined(tree, is_package=is_package)
        module, folder = (path.parent.name, path.parent.parent.name) if is_package else (path.stem, path.parent.name)
        modules.setdefault(module, set()).update(here)
        modules.setdefault(folder, set()).add(module)
        names |= here | used(tree) | {module, folder}
        told = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
                words.update(WORD.findall(node.value))
                words.update(re.findall(r"\w+", node.value))
    return modules, names, words


def is_known(name: str) -> bool:
    """Whether a name is one of the sources, or a word that they read or write; `module.name` must be one of that module."""
    modules, names, words = vocabulary()
    parts = name.split(".")
    if name in words or name in FOREIGN or len(name) == 1:
        return True
    if not all(part in names or part in words for part in parts):
        return False
    if parts[0] in OTHERS or name in modules:
        return True
    return all(module not in modules or below in modules[module] or below in words for module, below in itertools.pairwise(parts))


def unknown_names(text: str, folder: Path = ROOT) -> list[str]:
    found = {name for name in SPAN.findall(without_code(text)) if not is_known(name)}
    return sorted(name for name in found if not (folder / name).exists() and not (ROOT / name).exists())


@pytest.mark.parametrize("document", GUIDES, ids=lambda document: str(document.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    """Names of functions, classes, fields, options; what is neither stands in FOREIGN."""
    text = document.read_text(encoding="utf-8")
    assert unknown_names(text, document.parent) == []
    assert missing_paths(text) == []


def test_names_that_are_gone_are_found() -> None:
    text = "`fused_step` `_work` `record.Call` `plan.fused_step` `mmabits.gemm(a, b)` `mmabits.emulator.hooks.session` `wide_step()`"
    assert unknown_names(text) == ["_work", "plan.fused_step", "wide_step"]


def test_the_table_of_datapaths_is_the_generated_one() -> None:
    assert table_in(NUMERICS.read_text(encoding="utf-8")) == f"{datapath_markdown()}\n", "update it: python tests/unit/test_docs.py"


def test_every_section_that_the_code_cites_is_there() -> None:
    """Sections are cited by number in docstrings of the library and in the exact model."""
    sections = set(re.findall(r"^## (\d)", NUMERICS.read_text(encoding="utf-8"), re.MULTILINE))
    assert sections == set("12345678")
    sources = [path for folder in LIBRARY for path in (ROOT / folder).rglob("*.py")]
    sources += [ROOT / "tests" / "slow_reference.py", ROOT / "isa" / "sources.toml"]
    cited = {number for path in sources for number in re.findall(r"(?:[Ss]ections? |NUMERICS )(\d)", path.read_text(encoding="utf-8"))}
    assert cited and cited <= sections


def test_the_checks_notice_what_is_wrong() -> None:
    assert failed_examples(">>> 1 + 1\n3\n", "wrong") != []
    assert failed_examples(">>> 1 + 1\n2\n", "right") == []
    text = "# A b, c\n[x](nowhere.md) [y](#a-b-c) [z](#nowhere) [n](numerics.md#1-terms) [m](numerics.md#terms) [w](https://w.example)"
    assert broken_links(text, NUMERICS) == ["nowhere.md", "#nowhere", "numerics.md#terms"]
    assert missing_paths("`emulator/engine/steps.py` `emulator/nothing.py` `tests/unit/isa/` `m/n` `CHANGELOG.md` `NOTHING.md`") == [
        "emulator/nothing.py",
        "NOTHING.md",
    ]
    assert table_in("a\n<!-- datapaths -->\nb\n<!-- end -->\n") == "b\n"


if __name__ == "__main__":
    NUMERICS.write_text(TABLE.sub(lambda _: f"{datapath_markdown()}\n", NUMERICS.read_text(encoding="utf-8"), count=1), encoding="utf-8")
