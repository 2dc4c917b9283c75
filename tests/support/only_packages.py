"""Processes that find some of the installed packages only, as if nothing else were installed."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Set

ABSENT = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in {names} else find(name, *more)
"""


@functools.cache
def _owners() -> dict[str, set[str]]:
    return {module: set(map(canonicalize_name, names)) for module, names in packages_distributions().items()}


def hide_others(folder: Path, packages: Set[str]) -> set[str]:
    """Write a `sitecustomize` that hides the modules of all but these packages, and return the modules.

    Python imports it at its start where `folder` is in PYTHONPATH, also in the processes that a process starts.
    """
    absent = {module for module, owners in _owners().items() if not owners & packages}
    (folder / "sitecustomize.py").write_text(ABSENT.format(names=absent), encoding="utf-8")
    return absent


def run_with_only(requirements: Path, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder` that finds only the packages of a requirements file."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    packages = {canonicalize_name(re.split("[=; ]", line)[0]) for line in lines if line and not line.startswith("#")}
    site = folder / "site"
    site.mkdir(exist_ok=True)
    hide_others(site, packages | {"dashfusion"})
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])]),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
