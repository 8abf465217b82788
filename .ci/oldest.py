"""The oldest versions that pyproject.toml admits, as pip's constraints: `python .ci/oldest.py [EXTRA ...] > constraints.txt`."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[\w,-]+\])?(>=|==)(?P<version>[\w.]+)(,<[\w.]+)?")


def oldest(requirement: str) -> str:
    """`name==version` of the lower bound; a requirement without one is refused, since its oldest version nobody tried."""
    found = REQUIREMENT.fullmatch(requirement)
    if found is None:
        raise SystemExit(f"{requirement}: no lower bound that this can read")
    return f"{found['name']}=={found['version']}"


def constraints(*extras: str) -> list[str]:
    """Those of the package itself and of the named extras."""
    optional = PROJECT["optional-dependencies"]
    return sorted({oldest(each) for each in [*PROJECT["dependencies"], *(each for extra in extras for each in optional[extra])]})


if __name__ == "__main__":
    print("\n".join(constraints(*sys.argv[1:])))
