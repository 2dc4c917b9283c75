"""Overhead of orchestration: a small demo by `dvc repro` without and with a Prefect server, and `dashfusion pipeline`.

Run:  python -m bench.orchestration  [--clips 12] [--epochs 1] [--rounds 2]      (about five minutes on two cores)

Every run starts in a fresh copy of the project, so that all do the same work, and is followed by a run with nothing to
do. The commands take turns; figures are medians over the rounds. The overhead does not depend on the corpus, but its
share of the time does: `--clips 320 --epochs 16 --rounds 1` is the full demo (about ten minutes). Prefect's database is
created before the first run, and its time is measured separately.
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
COMMANDS = {
    "without_server": (REPRO, {"DASHFUSION_SERVER": "off"}),
    "repro": (REPRO, {}),
    "pipeline": (("-m", "flows.cli", "pipeline"), {}),
}
SERVER_TIMEOUT = 60.0  # seconds for a run's server to end


def copy_project(folder: Path, clips: int, epochs: int) -> Path:
    """Copy the project's files to a new Git repository, and set the sizes of corpus and training."""
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
    """Return this process's environment with a separate Prefect home, this interpreter as `python`, and no server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DASHFUSION_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return inherited | {"PATH": path, "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


def wait_for_servers(home: Path) -> None:
    """Wait until the last run's server has ended, which first stores its pending events."""
    deadline = time.monotonic() + SERVER_TIMEOUT
    while any(_belongs(process, home) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise SystemExit(f"a Prefect server of a run did not end within {SERVER_TIMEOUT:.0f} s")
        time.sleep(0.5)


def _belongs(process: psutil.Process, home: Path) -> bool:
    try:
        return process.environ().get("PREFECT_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended, or belongs to another user
        return False


def measure(clips: int, epochs: int, rounds: int) -> tuple[dict[str, dict[str, float]], float]:
    """Time each command.

    Returns:
        By command, the seconds of each stage, of all (`total`) and of a run with nothing to do (`idle`); and the
        seconds that creating Prefect's database takes.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "prefect"
        variables = environment(home)
        began = time.monotonic()
        upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(upgrade, cwd=temporary, env=variables, stdout=subprocess.DEVNULL, check=True)
        new_database = time.monotonic() - began
        for number in range(rounds):
            for name, (arguments, overrides) in COMMANDS.items():
                folder = copy_project(Path(temporary) / f"{name}-{number}", clips, epochs)
                wait_for_servers(home)
                seconds = timed_run(arguments, folder, variables | overrides)
                wait_for_servers(home)
                idle = timed_run(arguments, folder, variables | overrides)
                if len(idle) > 1:
                    raise SystemExit(f"{name}: the second run was not idle: {idle}")
                runs[name].append(seconds | {"idle": idle["total"]})
                print(f"round {number + 1}, {name}: {seconds['total']:.1f} s, idle {idle['total']:.1f} s", flush=True)
        wait_for_servers(home)
    return {name: _median(seconds) for name, seconds in runs.items()}, new_database


def _median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def figures_of(seconds: Mapping[str, Mapping[str, float]], new_database: float) -> dict[str, float]:
    """Return the figures to store. A command's overhead is its time beyond that of the run without a server."""
    baseline = seconds["without_server"]
    stages = [name for name in baseline if name not in ("total", "idle")]
    figures = {"stages": float(len(stages)), "new_database_seconds": new_database}
    for name, own in seconds.items():
        figures |= {f"{name}_seconds": own["total"], f"{name}_idle_seconds": own["idle"]}
        if own is not baseline:
            cost = own["total"] - baseline["total"]
            figures[f"{name}_cost_seconds_a_stage"] = cost / len(stages)
            figures[f"{name}_cost_share"] = cost / baseline["total"]
    return figures


def main() -> None:
    """Run the benchmark, print stages by command, and write bench/results/orchestration.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    seconds, new_database = measure(options.clips, options.epochs, options.rounds)
    print(f"\n{'seconds':<16}" + "".join(f"{command:>16}" for command in seconds))
    for name in seconds["without_server"]:
        print(f"{name:<16}" + "".join(f"{own.get(name, float('nan')):16.1f}" for own in seconds.values()))
    figures = {"clips": float(options.clips)} | figures_of(seconds, new_database)
    for name, value in figures.items():
        print(f"{name:<36} {value:8.2f}")
    changed = [f"--{name} {value}" for name, value in vars(options).items() if value != parser.get_default(name)]
    write_result("orchestration", figures, " ".join(["orchestration", *changed]))


if __name__ == "__main__":
    main()
