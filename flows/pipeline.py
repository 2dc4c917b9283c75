"""All stages through DVC, one Prefect task a stage: DVC says what is up to date, Prefect runs and shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Timer
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field

from corpora.files import atomic_path
from flows import keeper, runtime, server

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)

Stage = Literal[
    "prepare",
    "transcribe",
    "extract",
    "extract@text",
    "extract@audio",
    "extract@vision",
    "align",
    "train",
    "evaluate",
]
"""What `pipeline` can be asked for; `extract` is all three modalities."""

# DVC's words for a stage that is up to date, and for one whose outputs it has from an earlier run with the same inputs
SKIPPED = "didn't change, skipping", "is cached - skipping run"
BLOCKED = "is busy, it is being blocked by", "  (PID "  # and for one whose files another DVC command works on
UNCHANGED = "DVC has its outputs: nothing that it depends on has changed since they were made"
TAIL = 30  # lines of a failed stage that its error carries
LOOK_AGAIN = 3.0  # seconds between two looks whether another DVC command has ended
SAYS_WITHIN = 5.0  # seconds in which the run that has the folder will have said so

LOCK = server.STATE / "pipeline.lock"
HOLDER = server.STATE / "pipeline.json"


class StageFailed(RuntimeError):
    """A stage's command ended with an error; the message carries the stage's own words, then its last lines."""


class WorkspaceBusy(RuntimeError):
    """Another run works in this folder, and this one was told not to wait."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """How one stage went: `state` is run, cached or failed, `seconds` the wall time of DVC's command."""

    stage: str
    state: str
    seconds: float


@dataclass(slots=True)
class Output:
    """What one call of DVC said."""

    code: int = 0
    skipped: bool = False
    out_of_time: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))


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


def up_to_date() -> set[str]:
    """Stages that DVC would skip: not changed, and after none that has. None where DVC cannot say.

    Asked once for all of them: a call of DVC's for each costs a second a stage.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        try:
            changed = set(repo.status())
        except DvcException:  # another command works here, or dvc.lock is broken: DVC says so when it runs the stages
            return set()
        graph = repo.index.graph
        stale = [stage for stage in graph if stage.addressing in changed]
        reached = set(stale).union(*(nx.ancestors(graph, stage) for stage in stale))
        return {stage.addressing for stage in graph if stage not in reached}


@contextmanager
def workspace(wait: bool = True) -> Iterator[None]:
    """Have this folder to oneself among pipeline runs, of terminals and of Prefect's workers alike.

    The lock is the kernel's, on a file of `.dashfusion/`: it ends with the process that holds it.

    Raises:
        WorkspaceBusy: another run has it, and `wait` is false.
    """
    from filelock import FileLock, Timeout

    LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise WorkspaceBusy(
                f"{_holder()} works in this folder: try again when it has ended, or let this one wait for it "
                "(without --no-wait; in Prefect the parameter wait)"
            ) from None
        runtime.say(f"{_holder()} works in this folder: waiting until it has ended")
        lock.acquire(poll_interval=0.5)
    try:
        with atomic_path(HOLDER) as temporary:
            temporary.write_text(json.dumps({"pid": os.getpid(), "since": time.time()}), encoding="utf-8")
        yield
    finally:
        HOLDER.unlink(missing_ok=True)
        lock.release()


def _holder() -> str:
    """Who has the lock. It writes that down a moment after it got it; what a killed run wrote does not count."""
    deadline = time.monotonic() + SAYS_WITHIN
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            holder = json.loads(HOLDER.read_text(encoding="utf-8"))
            if psutil.pid_exists(holder["pid"]):
                since = datetime.fromtimestamp(holder["since"]).strftime("%H:%M:%S on %d %B")
                return f"another pipeline run (PID {holder['pid']}, since {since})"
        time.sleep(0.05)
    return "another pipeline run"


@task(task_run_name="{stage}")
def run_stage_through_dvc(
    stage: str, force: bool = False, time_limit: float = 0.0, wait: bool = True, known_cached: bool = False
) -> Any:
    """`dvc repro` of one stage, its output passed on line by line; a `StageResult`, or the state `Cached` with it.

    Of a stage that DVC is known to skip, only the latter.

    Where a DVC command that a user gave works on the same files, this one waits for its end, or with `wait` false
    fails with its name.

    Raises:
        StageFailed: the command failed, or took longer than `time_limit` minutes.
    """
    if known_cached:
        runtime.say(f"{stage}: up to date")
        return runtime.as_cached(StageResult(stage, "cached", 0.0), UNCHANGED)
    began = time.monotonic()
    output = dvc_repro(stage, force, time_limit)
    while output.code and (other := _blocker(output.tail)):
        if not wait:
            raise StageFailed(f"stage {stage} failed: {other} works on its files; try again when that has ended")
        runtime.say(f"{stage}: {other} works on its files, waiting until it has ended")
        while output.code and _blocker(output.tail) == other:
            time.sleep(LOOK_AGAIN)
            output = dvc_repro(stage, force, time_limit)
    if output.code and output.out_of_time:
        raise StageFailed(
            f"stage {stage} was ended at its time limit of {time_limit:g} minutes. Give it more (--time-limit, in "
            "Prefect the parameter time_limit; 0: no limit), or run it again: what was finished is kept"
        )
    if output.code:
        lines = "\n".join(output.tail)
        raise StageFailed(f"stage {stage} failed: {_reason(output)}\n\nIts last lines:\n{lines}")
    result = StageResult(stage, "cached" if output.skipped else "run", time.monotonic() - began)
    return runtime.as_cached(result, UNCHANGED) if output.skipped else result


def dvc_repro(stage: str, force: bool, time_limit: float) -> Output:
    """One call of `dvc repro`, under a keeper that ends it with all that it started once this process is gone."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    if force:
        command.append("--force")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(keeper.__file__)), *command],
        stdin=subprocess.PIPE,  # its end is the keeper's sign
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | _link_to_parent() | {"PATH": server.path_of_this_python()},
        start_new_session=True,  # Ctrl-C reaches us, and through us the stage
    )
    assert process.stdin is not None and process.stdout is not None
    output = Output()

    def take(lines: Iterable[str]) -> None:
        for line in lines:
            output.skipped = output.skipped or any(words in line for words in SKIPPED)
            if _of_the_stage(line):
                output.tail.append(line.rstrip())
            if _worth_showing(line):
                runtime.say(line.rstrip())

    def end() -> None:
        output.out_of_time = True
        _close(process)

    timer = Timer(60 * time_limit, end)
    with process:
        if time_limit:
            timer.start()
        try:
            take(process.stdout)
        except BaseException:  # Ctrl-C, or cancelled by Prefect
            _close(process)
            take(process.stdout)  # its last words
            raise
        finally:
            timer.cancel()
        output.code = process.wait()
    return output


def _close(process: subprocess.Popen[str]) -> None:
    """Let the keeper end the stage."""
    assert process.stdin is not None
    process.stdin.close()


def _worth_showing(line: str) -> bool:
    """Not DVC's advice after every stage, which is for its own command line, nor what is said better elsewhere."""
    noise = (
        "To track the changes",
        "git add",
        "To enable auto staging",
        "dvc config core.autostage",
        "Use `dvc push`",
        "Data and pipelines are up to date",
        "Updating lock file",
        "Generating lock file",
        *BLOCKED,
        "If there are no processes with such PIDs",
    )
    command_failed = r"ERROR: failed to reproduce '.*': failed to run: .*, exited with -?\d+$"
    return bool(line.strip()) and not any(words in line for words in noise) and not re.match(command_failed, line)


def _of_the_stage(line: str) -> bool:
    """Whether a line can say why a stage failed: not that, and how, DVC starts it."""
    return any(words in line for words in BLOCKED) or (
        _worth_showing(line) and not re.match(r"Running stage '.*':$|> ", line)
    )


def _blocker(tail: Sequence[str]) -> str | None:
    """The DVC command that works on a stage's files, as DVC names it; None where it failed for another reason."""
    if not any(BLOCKED[0] in line for line in tail):
        return None
    found = re.search(r"\(PID (\d+)\): (.+)", "\n".join(tail))
    return f"`{found[2]}` (PID {found[1]})" if found else "another DVC command"


def _reason(output: Output) -> str:
    """The stage's own error out of its last lines: as `runtime.main` prints it, else the very last line."""
    lines = list(output.tail)
    starts = [i for i, line in enumerate(lines) if re.match(r"\w+ stopped: ", line)]
    if starts:
        first = lines[starts[-1]].partition(" stopped: ")[2]
        rest = (line for line in lines[starts[-1] + 1 :] if not line.startswith(runtime.TRACEBACK_HINT))
        return "\n".join([first, *rest])
    return lines[-1] if lines else f"exit code {output.code}, without a word"


def _link_to_parent() -> dict[str, str]:
    """The flow run that the stage's own flow run shows itself under, if the engine runs us."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return {runtime.PARENT_RUN: str(context.flow_run.id)} if context and context.flow_run else {}


@flow(name="pipeline", flow_run_name=runtime.run_name, on_running=[runtime.add_tags])
def pipeline(
    targets: Sequence[Stage] = (),
    force: bool = False,
    time_limit: Annotated[float, Field(ge=0)] = 0.0,
    wait: bool = True,
) -> list[StageResult]:
    """Bring stages up to date: raw videos to features, dataset, model, metrics and report.

    Args:
        targets: Stages to end with; what they need is brought up to date as well. None: all stages.
        force: Run them although nothing has changed.
        time_limit: Minutes that one stage may take before it is ended; 0: no limit. What was finished is kept.
        wait: Where another run works in the same folder, wait for its end; otherwise fail at once.
    """
    with workspace(wait):
        results = run_stages(targets, force, time_limit, wait)
        if results and results[-1].stage == "evaluate":
            _publish_metrics()
    return results


def run_stages(
    targets: Sequence[str], force: bool = False, time_limit: float = 0.0, wait: bool = True
) -> list[StageResult]:
    """Bring stages up to date, in order, in a workspace that the caller has; arguments as of `pipeline`.

    Raises:
        StageFailed: see `run_stage_through_dvc`.
    """
    results: list[StageResult] = []
    order = stage_order(targets)
    cached = set() if force else up_to_date()
    for stage in order:
        began = time.monotonic()
        try:
            results.append(
                runtime.call(run_stage_through_dvc, stage, force, time_limit, wait, known_cached=stage in cached)
            )
        except StageFailed:
            _publish([*results, StageResult(stage, "failed", time.monotonic() - began)])
            raise
    _publish(results)
    return results


def _publish(results: Sequence[StageResult]) -> None:
    rows = [{"stage": r.stage, "state": r.state, "seconds": round(r.seconds, 1)} for r in results]
    runtime.publish_table("pipeline-stages", rows, "Stages of this run: run, cached or failed, with their wall time")


def _publish_metrics() -> None:
    """On the run's own page too: who opens it asks for them first."""
    if runtime.engine_active():
        from flows.evaluate import publish_metrics
        from flows.params import load_params

        params = load_params()
        path = params.paths.metrics / f"{params.evaluate.split}.json"
        publish_metrics(params, json.loads(path.read_text(encoding="utf-8")), "pipeline-")
