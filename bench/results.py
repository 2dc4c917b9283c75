"""One JSON a benchmark in bench/results/, and RESULTS.md made from all of them: `python -m bench.results`."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from flows.report.provenance import cpu_model

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"


def write_result(bench: str, figures: Mapping[str, float], command: str = "") -> None:
    """Write `bench/results/<bench>.json` with the machine and date, and make RESULTS.md anew.

    Args:
        command: what follows `python -m bench.`, where that is not the bench's name alone.
    """
    import torch

    FOLDER.mkdir(exist_ok=True)
    result = {
        "bench": bench,
        "command": f"python -m bench.{command or bench}",
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    (FOLDER / f"{bench}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_page()


def write_page() -> None:
    """RESULTS.md from the JSON files, so that page and figures cannot differ."""
    parts = ["# Measured results\n\nMade from `bench/results/*.json` by the scripts that measure; do not edit.\n"]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        parts.append(
            f"\n## {result['bench']}\n\n`{result['command']}`, {result['date']}, {result['machine']}, "
            f"Python {result['python']}, torch {result['torch']}\n\n| figure | value |\n|---|---|\n"
        )
        parts.extend(f"| {name} | {value:g} |\n" for name, value in result["figures"].items())
    PAGE.write_text("".join(parts), encoding="utf-8")


def _machine() -> str:
    """Processor, cores and memory, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu_model()}, {memory:.0f} GiB"


if __name__ == "__main__":
    write_page()
