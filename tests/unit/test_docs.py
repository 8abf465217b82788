"""The documents: their examples run, their links and paths lead somewhere, their generated table is current.

`python tests/unit/test_docs.py` rewrites the table.
"""

import doctest
import re
from pathlib import Path

import pytest

from mmabits.commands.tables import datapath_markdown

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
NUMERICS = ROOT / "docs" / "numerics.md"
DOCUMENTS = sorted((ROOT / "docs").glob("*.md")) + ([README] if README.is_file() else [])
WITH_EXAMPLES = {"README.md", "how-the-engine-works.md", "numerics.md", "vector-format.md"}
TABLE = re.compile(r"(?<=<!-- datapaths -->\n).*?(?=<!-- end -->)", re.DOTALL)
CODE_BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
FOLDERS = ("benchmarks", "conformance", "docs", "emulator", "isa", "kernels", "src", "tests", ".ci")
PATH = re.compile(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*|[A-Z]\w*\.(?:md|cff)|Makefile|pyproject\.toml)`")

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


def test_the_table_of_datapaths_is_the_generated_one() -> None:
    assert table_in(NUMERICS.read_text(encoding="utf-8")) == f"{datapath_markdown()}\n", "update it: python tests/unit/test_docs.py"


def test_every_section_that_the_code_cites_is_there() -> None:
    """Sections are cited by number in docstrings of the library and in the exact model."""
    sections = set(re.findall(r"^## (\d)", NUMERICS.read_text(encoding="utf-8"), re.MULTILINE))
    assert sections == set("12345678")
    sources = [path for folder in ("conformance", "emulator", "isa", "research") for path in (ROOT / folder).rglob("*.py")]
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
