"""Wall time of `dvc repro` by stage in an empty workspace, and of a second run with nothing to do.

Run in a fresh clone:  python -m bench.pipeline
It refuses to run if data/ exists, since it must run every stage.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import write_result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REPRO = ("-m", "dvc", "repro")


def timed_run(
    arguments: Sequence[str] = REPRO, folder: Path = Path(), environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run Python with these arguments, and return the seconds of each stage by name, and of all as `total`."""
    began = time.monotonic()
    starts: list[tuple[str, float]] = []
    lines: list[str] = []
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if stage := re.match(r"Running stage '(.+)'", line):
            starts.append((stage[1], time.monotonic() - began))
    if process.wait():
        raise SystemExit(f"{' '.join(arguments)} failed:\n{''.join(lines[-20:])}")
    total = time.monotonic() - began
    ends = [*(start for _, start in starts), total][1:]
    return {name: end - start for (name, start), end in zip(starts, ends, strict=True)} | {"total": total}


def main() -> None:
    """Run the benchmark, and write bench/results/pipeline.json."""
    if Path("data").exists():
        raise SystemExit("data/ exists: run this in a fresh clone")
    figures = {f"{stage}_seconds": seconds for stage, seconds in timed_run().items()}
    again = timed_run()
    if len(again) > 1:
        raise SystemExit(f"the second run was not idle: {again}")
    figures["second_run_seconds"] = again["total"]
    for name, value in figures.items():
        print(f"{name:<28} {value:7.1f}")
    write_result("pipeline", figures)


if __name__ == "__main__":
    main()
