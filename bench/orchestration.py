"""What orchestration costs: a small demo by `dvc repro` without a server, with its own, and by `dashfusion pipeline`.

Run:  python -m bench.orchestration  [--clips 12] [--epochs 1] [--rounds 2]      (about five minutes on two cores)

Every run is the first of a fresh copy of the project, so that all of them do the same work, and is followed by one with
nothing to do. The doors take turns, and the median over the rounds is kept. What orchestration costs does not depend on
the corpus; its share of the time does: `--clips 320 --epochs 16 --rounds 1` is the demo itself (some ten minutes).
Prefect's database is made before the first run, and its time is a figure of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import yaml

from bench.pipeline import REPRO, timed_run
from bench.results import write_result

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
DOORS = {
    "without_server": (REPRO, {"DASHFUSION_SERVER": "off"}),
    "repro": (REPRO, {}),
    "pipeline": (("-m", "flows.cli", "pipeline"), {}),
}
PATIENCE = 60.0  # seconds for a run's server to end


def copy_project(folder: Path, clips: int, epochs: int) -> Path:
    """The files under version control, in a new Git repository, with a corpus and a training of this size."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["prepare"]["demo"] |= {"clips": clips, "speakers": max(3, clips // 8)}
    params["train"] |= {"epochs": epochs, "warmup_epochs": min(params["train"]["warmup_epochs"], epochs - 1)}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def environment(home: Path) -> dict[str, str]:
    """Ours, with Prefect's database of our own, the interpreter as `python`, and no server but a run's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DASHFUSION_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return kept | {"PATH": path, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def wait_for_servers(home: Path) -> None:
    """Until the last run's server has ended: it stays a few seconds to store what it was told."""
    deadline = time.monotonic() + PATIENCE
    while any(_belongs(process, home) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise SystemExit(f"a Prefect server of a run did not end within {PATIENCE:.0f} s")
        time.sleep(0.5)


def _belongs(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("PREFECT_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended, or is somebody else's
        return False


def measure(clips: int, epochs: int, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """By door, seconds of each stage, of all (`total`) and of a run with nothing to do (`idle`); of a new database."""
    found: dict[str, list[dict[str, float]]] = {door: [] for door in DOORS}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "prefect"
        surroundings = environment(home)
        began = time.monotonic()
        upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(upgrade, cwd=temporary, env=surroundings, stdout=subprocess.DEVNULL, check=True)
        new_database = time.monotonic() - began
        for number in range(rounds):
            for door, (arguments, switches) in DOORS.items():
                folder = copy_project(Path(temporary) / f"{door}-{number}", clips, epochs)
                wait_for_servers(home)
                seconds = timed_run(arguments, folder, surroundings | switches)
                wait_for_servers(home)
                idle = timed_run(arguments, folder, surroundings | switches)
                if len(idle) > 1:
                    raise SystemExit(f"{door}: the second run was not idle: {idle}")
                found[door].append(seconds | {"idle": idle["total"]})
                print(f"round {number + 1}, {door}: {seconds['total']:.1f} s, idle {idle['total']:.1f} s", flush=True)
        wait_for_servers(home)
    return {door: _median(runs) for door, runs in found.items()}, new_database


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def figures_of(seconds: Mapping[str, Mapping[str, float]], new_database: float) -> dict[str, float]:
    """The figures to keep; what a door costs is its time beyond that of the first one."""
    plain = seconds["without_server"]
    stages = [name for name in plain if name not in ("total", "idle")]
    figures = {"stages": float(len(stages)), "new_database_seconds": new_database}
    for door, own in seconds.items():
        figures |= {f"{door}_seconds": own["total"], f"{door}_idle_seconds": own["idle"]}
        if own is not plain:
            cost = own["total"] - plain["total"]
            figures |= {f"{door}_cost_seconds_a_stage": cost / len(stages), f"{door}_cost_share": cost / plain["total"]}
    return figures


def main() -> None:
    """Measure, print a table of stages by doors, write bench/results/orchestration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    seconds, new_database = measure(options.clips, options.epochs, options.rounds)
    print(f"\n{'seconds':<16}" + "".join(f"{door:>16}" for door in seconds))
    for name in seconds["without_server"]:
        print(f"{name:<16}" + "".join(f"{own.get(name, float('nan')):16.1f}" for own in seconds.values()))
    figures = {"clips": float(options.clips)} | figures_of(seconds, new_database)
    for name, value in figures.items():
        print(f"{name:<36} {value:8.2f}")
    changed = [f"--{name} {value}" for name, value in vars(options).items() if value != parser.get_default(name)]
    write_result("orchestration", figures, " ".join(["orchestration", *changed]))


if __name__ == "__main__":
    main()
