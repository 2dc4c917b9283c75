"""All stages through DVC, one Prefect task a stage: DVC says what is up to date, Prefect runs and shows it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from flows import runtime
from flows.runtime import console

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)

SKIPPED = "didn't change, skipping"  # DVC's words for a stage that is up to date
TAIL = 30  # lines of a failed stage that its error carries


class StageFailed(RuntimeError):
    """A stage's command ended with an error; the message carries its last lines."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """How one stage went: `state` is run or cached, `seconds` the wall time of DVC's command."""

    stage: str
    state: str
    seconds: float


def stage_order(targets: Sequence[str] = ()) -> list[str]:
    """Stage names (`extract@audio` of a group) so that each comes after what it depends on.

    With `targets` only these and what they need; a group's plain name stands for all of its stages.

    Raises:
        ValueError: an unknown target; the message lists the stages there are.
    """
    import networkx as nx
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph
        names = {stage: stage.addressing for stage in graph}
        wanted = [s for s in graph if not targets or names[s] in targets or names[s].split("@")[0] in targets]
        known = {name.split("@")[0] for name in names.values()} | set(names.values())
        unknown = [target for target in targets if target not in known]
        if unknown:
            raise ValueError(f"no stage is called {', '.join(unknown)}; dvc.yaml has {', '.join(sorted(known))}")
        needed = set(wanted).union(*(nx.descendants(graph, stage) for stage in wanted))  # edges: stage -> needs
        return [names[s] for s in nx.dfs_postorder_nodes(graph) if s in needed]


@task(task_run_name="{stage}")
def run_stage_through_dvc(stage: str, force: bool = False) -> StageResult:
    """`dvc repro` of one stage in its own process group, its output passed on line by line.

    Raises:
        StageFailed: the command failed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    if force:
        command.append("--force")
    began = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL)
    skipped = False
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | _link_to_parent(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            skipped = skipped or SKIPPED in line
            tail.append(line.rstrip())
            if _worth_showing(line):
                console.print(line.rstrip(), markup=False)
        code = process.wait()
    finally:
        _stop_group(process)
    if code != 0:
        raise StageFailed(f"stage {stage} failed (exit code {code}). Its last lines:\n" + "\n".join(tail))
    return StageResult(stage, "cached" if skipped else "run", time.monotonic() - began)


def _worth_showing(line: str) -> bool:
    """DVC's advice after every stage (`git add`, `dvc push`) is for its own command line, not for a pipeline's."""
    noise = (
        "To track the changes",
        "git add",
        "To enable auto staging",
        "dvc config core.autostage",
        "Use `dvc push`",
        "Data and pipelines are up to date",
    )
    return bool(line.strip()) and not any(words in line for words in noise)


def _link_to_parent() -> dict[str, str]:
    """The flow run that the stage's own flow run shows itself under, if the engine runs us."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return {runtime.PARENT_RUN: str(context.flow_run.id)} if context and context.flow_run else {}


def _stop_group(process: subprocess.Popen[str]) -> None:
    """End a stage that is still running, with everything that it started: DVC alone would leave its command behind."""
    if process.poll() is not None:
        return
    for sign, patience in ((signal.SIGINT, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=patience)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@flow(name="pipeline", flow_run_name=runtime.run_name)
def pipeline(targets: Sequence[str] = (), force: bool = False) -> list[StageResult]:
    """Bring stages up to date: raw videos to features, dataset, model, metrics and report.

    Args:
        targets: stages to end with, such as `train` or `extract@audio`; none means all.
        force: run them although nothing has changed.
    """
    results = [runtime.call(run_stage_through_dvc, stage, force) for stage in stage_order(targets)]
    rows = [{"stage": r.stage, "state": r.state, "seconds": round(r.seconds, 1)} for r in results]
    runtime.publish_table("pipeline-stages", rows, "Stages of this run: run or cached, with their wall time")
    return results
