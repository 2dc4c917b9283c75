"""Packages and size of installations: `python -m bench.install_size NAME=PYTHON[:REQUIREMENTS] ...`.

Counts the installed files of an environment's packages, or of those alone that a file of pinned requirements names,
without pip and setuptools.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from bench.results import write_result

COUNT = """
import importlib.metadata, json, pathlib, sys
sizes = {}
for package in importlib.metadata.distributions():
    paths = [pathlib.Path(str(file.locate())) for file in package.files or ()]
    sizes[package.metadata["Name"]] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(sizes))
"""


def normalise(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def measure(python: str, requirements: str) -> tuple[int, float]:
    """Return the number of packages and their size in MiB."""
    ran = subprocess.run([python, "-c", COUNT], capture_output=True, text=True, check=True)
    sizes = {normalise(name): size for name, size in json.loads(ran.stdout).items()}
    chosen = set(sizes) - {"pip", "setuptools"}
    if requirements:
        lines = Path(requirements).read_text(encoding="utf-8").splitlines()
        chosen &= {normalise(re.split("[=; ]", line)[0]) for line in lines if line and line[0] not in "#-"}
    return len(chosen), sum(sizes[name] for name in chosen) / 2**20


def main(arguments: list[str]) -> None:
    """Measure the environments and write the result."""
    figures = {}
    for argument in arguments:
        name, _, place = argument.partition("=")
        count, megabytes = measure(*place.partition(":")[::2])
        figures |= {f"{name}_packages": float(count), f"{name}_megabytes": megabytes}
    write_result("install_size", figures)


if __name__ == "__main__":
    main(sys.argv[1:])
