"""Run pipeline stages through DVC and interpret its output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Timer

from flows.display.console import console
from flows.display.progress import RECORDS, BarReader
from flows.orchestration import engine, settings, supervisor

# Phrases of DVC's output: a stage that is up to date, one whose outputs are in the cache from an earlier run with the
# same inputs, and one whose files another DVC command is using
SKIPPED = "didn't change, skipping", "is cached - skipping run"
BLOCKED = "is busy, it is being blocked by", "  (PID "

UNCHANGED = "DVC has its outputs: nothing that it depends on has changed since they were made"
"""Message of a cached stage's state."""

TAIL = 30
"""Last lines of a failed stage that its error contains."""

POLL = 3.0
"""Seconds between two attempts to run a stage while another DVC command uses its files."""

# DVC's advice after every stage, which concerns its own command line, and messages that are reported in other words
NOISE = (
    "To track the changes",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Data and pipelines are up to date",
    "Updating lock file",
    "Generating lock file",
    "> python -m flows.",  # the command of the stage that the line before names
    *BLOCKED,
    "If there are no processes with such PIDs",
)
COMMAND_FAILED = r"ERROR: failed to reproduce '.*': failed to run: .*, exited with -?\d+$"


class StageFailedError(RuntimeError):
    """A stage's command failed; the message starts with the stage's own error and ends with its last lines."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """Outcome of one stage: `state` is run, cached, failed or cancelled, `seconds` the wall time of DVC's command."""

    stage: str
    state: str
    seconds: float


@dataclass(slots=True)
class Output:
    """Exit code and output of one call of DVC."""

    code: int = 0
    skipped: bool = False
    cancelled: bool = False
    timed_out: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))

    @property
    def blocker(self) -> str | None:
        """DVC command that uses the stage's files; None if the stage failed for another reason."""
        if not any(BLOCKED[0] in line for line in self.tail):
            return None
        match = re.search(r"\(PID (\d+)\): (.+)", "\n".join(self.tail))
        return f"`{match[2]}` (PID {match[1]})" if match else "another DVC command"

    @property
    def reason(self) -> str:
        """The stage's own error as `engine.main` prints it, else the last line."""
        lines = list(self.tail)
        starts = [i for i, line in enumerate(lines) if re.match(r"\w+ stopped: ", line)]
        if starts:
            first = lines[starts[-1]].partition(" stopped: ")[2]
            rest = (line for line in lines[starts[-1] + 1 :] if not line.startswith(engine.TRACEBACK_HINT))
            return "\n".join([first, *rest])
        return lines[-1] if lines else f"exit code {self.code}, without any output"


def matches(stage: str, targets: Sequence[str]) -> bool:
    """Return whether `targets` contain the stage, by its own name or by its group's (`extract` for `extract@audio`)."""
    return stage in targets or stage.split("@")[0] in targets


def stage_order(targets: Sequence[str] = ()) -> list[str]:
    """Return stage names (`extract@audio` in a group) in an order in which each follows its dependencies.

    Args:
        targets: Stages or groups, returned with everything that they depend on; by default all stages.

    Raises:
        ValueError: Unknown target; the message lists the stages of dvc.yaml. Or the folder is no Git repository.
    """
    import networkx as nx
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        opened = Repo()
    except SCMError as error:
        raise ValueError(
            f"{error}, as when the project was downloaded as a ZIP file: clone it with git, or let DVC work without "
            "Git and without experiments (`dvc config --local core.no_scm true`)"
        ) from error
    with opened as repo:
        graph = repo.index.graph  # edges: stage -> its dependency
        names = {stage: stage.addressing for stage in graph}
        chosen = [stage for stage in graph if not targets or matches(names[stage], targets)]
        known = {name.split("@")[0] for name in names.values()} | set(names.values())
        unknown = [target for target in targets if target not in known]
        if unknown:
            raise ValueError(f"no stage is called {', '.join(unknown)}; dvc.yaml has {', '.join(sorted(known))}")
        needed = set(chosen).union(*(nx.descendants(graph, stage) for stage in chosen))
        return [names[stage] for stage in nx.dfs_postorder_nodes(graph) if stage in needed]


def up_to_date(forced: Collection[str] = ()) -> set[str]:
    """Return the stages that DVC would skip: unchanged, and not downstream of a changed or forced stage.

    The set is empty if DVC cannot tell. One query covers all stages, where a call of DVC takes a second for each.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo() as repo:
        try:
            changed = set(repo.status())
        except DvcException:  # another command is running, or dvc.lock is broken: DVC reports it when it runs a stage
            return set()
        graph = repo.index.graph
        stale = [stage for stage in graph if stage.addressing in changed or stage.addressing in forced]
        downstream = set(stale).union(*(nx.ancestors(graph, stage) for stage in stale))
        return {stage.addressing for stage in graph if stage not in downstream}


def dvc_repro(stage: str, force: bool, time_limit: float) -> Output:
    """Run `dvc repro` for one stage under a supervisor, which stops it with all of its processes if this one dies.

    Args:
        stage: Stage to run; its dependencies are not.
        force: Run it even if nothing has changed, and tell it to reuse nothing of an earlier run (`settings.forced`).
        time_limit: Minutes after which the stage is stopped; 0: no limit.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    if force:
        command.append("--force")
    process = subprocess.Popen(
        supervisor.command_line(command),
        stdin=subprocess.PIPE,  # the supervisor stops the stage when this closes
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=stage_environment(force),
        start_new_session=True,  # Ctrl-C reaches this process, which then stops the stage
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    output = Output()

    def time_out() -> None:
        output.timed_out = True
        stdin.close()

    timer = Timer(60 * time_limit, time_out)
    with process:
        if time_limit:
            timer.start()
        try:
            _read(stdout, output)
        except BaseException:  # Ctrl-C, or cancelled by Prefect
            stdin.close()
            _read(stdout, output)
            raise
        finally:
            timer.cancel()
        output.code = process.wait()
    return output


def stage_environment(force: bool) -> dict[str, str]:
    """Return the environment of a stage whose output `_read` reads."""
    own = {
        "PATH": settings.python_path(),
        settings.FORCE: "1" if force else "0",
        RECORDS: "1" if console.is_terminal else "0",
    }
    return os.environ | own | _link_to_parent()


def _read(lines: Iterable[str], output: Output) -> None:
    """Pass lines of DVC and the stage on to the log, draw its bars, and keep lines that can explain a failure."""
    with BarReader() as bars:
        for line in lines:
            if bars.take(line):
                continue
            output.skipped = output.skipped or any(phrase in line for phrase in SKIPPED)
            output.cancelled = output.cancelled or bool(re.match(rf"\w+ {engine.CANCELLED} ", line))
            relevant = _is_relevant(line)
            blocked = any(phrase in line for phrase in BLOCKED)
            if blocked or (relevant and not re.match(r"Running stage '.*':$", line)):
                output.tail.append(line.rstrip())
            if relevant:
                engine.log(line.rstrip())


def _is_relevant(line: str) -> bool:
    return bool(line.strip()) and not any(phrase in line for phrase in NOISE) and not re.match(COMMAND_FAILED, line)


def _link_to_parent() -> dict[str, str]:
    """Return the environment by which the stage's flow run becomes a child of the current one, if there is one."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return {engine.PARENT_RUN: str(context.flow_run.id)} if context and context.flow_run else {}
