"""Store benchmark results as JSON, and generate RESULTS.md from them (`python -m bench.results`)."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flows.report.provenance import cpu_model

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "RESULTS.md"
HEAD = """# Benchmarks

This page lists the measurements of the scripts in `bench/`: a section for each, with its command, date, machine and
versions. It is generated from `bench/results/*.json` by `python -m bench.results`; do not edit it.
"""


def write_result(bench: str, figures: Mapping[str, float], command: str = "") -> None:
    """Write `bench/results/<bench>.json` with machine and date, and regenerate RESULTS.md.

    Args:
        bench: Name of the benchmark.
        figures: Measured values by name.
        command: What follows `python -m bench.`; the benchmark's name by default.
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
    """Generate RESULTS.md from the JSON files."""
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        parts.append(
            f"\n## {result['bench']}\n\n`{result['command']}`, {result['date']}, {result['machine']}, "
            f"Python {result['python']}, torch {result['torch']}\n\n| figure | value |\n|---|---|\n"
        )
        parts.extend(f"| {name} | {value:g} |\n" for name, value in result["figures"].items())
    PAGE.write_text("".join(parts), encoding="utf-8")


def own_peak_megabytes() -> float:
    """Return this process's peak resident memory. Unlike getrusage, it excludes that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _machine() -> str:
    """Describe the processor, cores and memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {cpu_model()}, {memory:.0f} GiB"


if __name__ == "__main__":
    write_page()
