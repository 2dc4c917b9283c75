"""Programs that find no packages but those of a requirements file, as if nothing else were installed.

`run_with_only` starts them with this file as `sitecustomize`, which also their worker processes import.
"""

from __future__ import annotations

import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

VARIABLE = "ONLY_PACKAGES_OF"


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _block(requirements: Path) -> None:
    lines = requirements.read_text().splitlines()
    allowed = {_normalise(re.split("[=; ]", line)[0]) for line in lines if line and not line.startswith("#")}
    allowed.add("dashfusion")
    owners = {module: {_normalise(name) for name in names} for module, names in packages_distributions().items()}

    class OnlyAllowed(importlib.machinery.PathFinder):
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            if not owners.get(fullname.partition(".")[0], allowed) & allowed:
                return None
            return super().find_spec(fullname, path, target)

    sys.meta_path = [OnlyAllowed if f is importlib.machinery.PathFinder else f for f in sys.meta_path]


def run_with_only(requirements: Path, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, in which it leaves `sitecustomize`."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(__file__, site / "sitecustomize.py")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])]),
        VARIABLE: str(requirements),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


if VARIABLE in os.environ and __name__ == "sitecustomize":
    _block(Path(os.environ[VARIABLE]))
