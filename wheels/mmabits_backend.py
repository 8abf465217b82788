"""Builds the package by setuptools, and puts into wheels what Numba makes of the engine, so that who installs one need not wait for Numba.

The environment variable MMABITS_SHIP says what: `all`, which is the default and takes six minutes of processor time, in three
processes; `none`; or symbols, with spaces between them, as `python -m mmabits.emulator.engine.ship` takes them. Editable installs get
nothing: their sources change.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401 - the hooks that stay as they are
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.build_py import build_py

SETTING = "MMABITS_SHIP"


def get_requires_for_build_wheel(config_settings: dict[str, object] | None = None) -> list[str]:
    """What the package itself needs, since it compiles itself."""
    found: list[str] = build_meta.get_requires_for_build_wheel(config_settings)
    if _wanted() == "none":
        return found
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*found, *project["dependencies"]]


class BuildPy(build_py):
    """Copies the modules, and writes the shipped code beside them, made of the copies."""

    def run(self) -> None:
        """Do so."""
        super().run()
        folder = Path(self.build_lib).resolve() / "mmabits" / "emulator" / "engine" / "shipped"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        wanted = _wanted()
        if self.editable_mode or wanted == "none":
            return
        path = os.pathsep.join([str(Path(self.build_lib).resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
        names = [] if wanted == "all" else wanted.split()
        command = [sys.executable, "-P", "-m", "mmabits.emulator.engine.ship", str(folder), *names]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
        if done.returncode != 0:
            raise SystemExit(f"the engine could not be compiled for the wheel; {SETTING}=none builds one without that")


def _wanted() -> str:
    return os.environ.get(SETTING, "").strip() or "all"
