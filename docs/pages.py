"""What the site holds beside its Markdown: pages that mmabits wrote, and the changelog. MkDocs calls the functions named `on_...`.

`python docs/pages.py` writes the kept pages again; the explanation is written at each build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
KEPT: Final = ROOT / "docs" / "live"
"""Pages of runs that take too long for each build; tests/unit/test_site.py holds their looks against the templates."""


PICTURE: Final = ROOT / "docs" / "four-rows.svg"


def explanation() -> str:
    """The page of the first example."""
    import ml_dtypes
    import numpy as np

    import mmabits

    a = np.array([[448.0] + [1 / 64] * 31], ml_dtypes.float8_e4m3fn)
    b = np.ones((32, 1), ml_dtypes.float8_e4m3fn)
    return mmabits.explain(a, b, instruction="wgmma", arch="sm_90a", beside=["sm_100a"]).html()


FOUR: Final = (("wgmma", "sm_90a", "H100, wgmma"), ("mma.sync", "sm_90a", "H100, mma.sync"), ("mma.sync", "sm_89", "RTX 4090"),
               ("tcgen05.mma", "sm_100a", "B200"))  # fmt: skip
"""The rows of the picture: instruction, architecture, what stands beside."""


def four_rows() -> str:
    """The first page's picture: one dot product on four units; what each keeps of it, to scale."""
    import ml_dtypes
    import numpy as np

    import mmabits

    a = np.array([[448.0] + [1 / 64] * 31], ml_dtypes.float8_e4m3fn)
    b = np.ones((32, 1), ml_dtypes.float8_e4m3fn)
    left, cell, top, row = 132, 19, 50, 44
    columns = range(8, -7, -1)  # from 2^8, the first bit of 448, to 2^-6 = 1/64
    width, height = left + cell * len(columns) + 150, top + row * len(FOUR) + 6
    parts = [f'<text x="0" y="18" class="big">448 + 31 x 1/64, exactly {448 + 31 / 64!r}</text>']
    parts += [f'<text x="{left + cell * (8 - place) + cell / 2:g}" y="{top - 8}" class="soft mid">2^{place}</text>' for place in (8, 0, -6)]
    parts.append(f'<text x="{left + cell * len(columns) + 16}" y="{top - 8}" class="soft">result</text>')
    for number, (instruction, arch, name) in enumerate(FOUR):
        explanation = mmabits.explain(a, b, instruction=instruction, arch=arch)
        step, y = explanation.trace.steps[0], top + number * row
        parts.append(f'<text x="0" y="{y + 19}">{name}</text>')
        for place in columns:
            kept, one = place >= step.last_place, place >= 6 or place == -6
            kind = "cut" if not kept else "small" if place == -6 else "one" if one else "nil"
            box = f'x="{left + cell * (8 - place) + 1}" y="{y + 4}" width="{cell - 2}" height="{cell}" rx="3"'
            parts.append(f'<rect class="{kind}" {box}/>')
            if one:
                parts.append(
                    f'<text class="{"lost" if not kept else "bit"} mid" x="{left + cell * (8 - place) + cell / 2:g}" y="{y + 18}">1</text>'
                )
        result = float(mmabits.gemm(a, b, instruction=instruction, arch=arch)[0, 0])
        tone = "good" if result == 448 + 31 / 64 else "bad"
        parts.append(f'<text x="{left + cell * len(columns) + 16}" y="{y + 19}" class="{tone}">{result!r}</text>')
        parts.append(f'<text x="{left}" y="{y + 36}" class="soft">keeps {step.largest - step.last_place} bits below the largest</text>')
    style = (
        ".f { font: 13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1c1d21 } "
        ".f .big { font-size: 15px; font-weight: 600 } .f .soft { fill: #5d6069; font-size: 11px } .f .mid { text-anchor: middle } "
        ".f .one { fill: #2f5fd0 } .f .small { fill: #1f7a4d } .f .nil { fill: #eaf0fd } .f .cut { fill: none; stroke: #b9b6ad } "
        ".f .bit { fill: #fff; font-size: 11px } .f .lost { fill: #b3261e; font-size: 11px } "
        ".f .good { fill: #1f7a4d; font-weight: 600 } .f .bad { fill: #b3261e; font-weight: 600 }"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="f" viewBox="-14 -6 {width + 20} {height + 10}" width="{width + 20}" '
        f'height="{height + 10}" role="img" aria-label="one dot product on four units"><style>{style}</style>'
        f'<rect x="-14" y="-6" width="{width + 20}" height="{height + 10}" rx="10" fill="#fff"/>{"".join(parts)}</svg>'
    )


def changelog() -> str:
    """The repository's changelog, its links as from within docs/."""
    return re.sub(r"\]\(docs/", "](", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def on_files(files: Any, config: Any) -> Any:
    """Add the explanation to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "live/explain.html", content=explanation()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the changelog into its page."""
    return changelog() if page.file.src_uri == "changelog.md" else markdown


def write_kept() -> None:
    """Draw the picture, and run what the kept pages show: a study, and a Triton kernel as two GPUs compute it."""
    import subprocess
    import sys
    import tempfile

    command = (sys.executable, "-m", "mmabits.commands.main")
    KEPT.mkdir(exist_ok=True)
    PICTURE.write_text(four_rows(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:

        def run(*words: str, status: int = 0) -> None:
            ended = subprocess.run((*command, *words), check=False)
            if ended.returncode != status:
                raise SystemExit(f"mmabits {' '.join(words)}: status {ended.returncode}, not {status}")

        run("study", "accumulation", "--size", "quick", "--out", f"{folder}/study")
        (KEPT / "study.html").write_bytes(Path(folder, "study", "index.html").read_bytes())
        run("diff", "--emulated", "--arch", "sm_90a", "--case", "triton-matmul-e4m3", "--record", f"{folder}/run")
        (recorded,) = (path for path in Path(folder, "run").iterdir() if path.suffix == ".safetensors")
        run("diff", "--against", str(recorded), "--arch", "sm_100a", "--report", str(KEPT / "diff.html"), status=1)


if __name__ == "__main__":
    write_kept()
