"""Run pipeline stages through DVC and interpret its output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Timer

from flows.orchestration import engine, prefect_server, supervisor

# DVC's words for a stage that is up to date, and for one whose outputs it has from an earlier run with the same inputs
SKIPPED = "didn't change, skipping", "is cached - skipping run"
BLOCKED = "is busy, it is being blocked by", "  (PID "  # and for one whose files another DVC command works on
UNCHANGED = "DVC has its outputs: nothing that it depends on has changed since they were made"
TAIL = 30  # lines of a failed stage that its error carries
LOOK_AGAIN = 3.0  # seconds between two looks whether another DVC command has ended


class StageFailed(RuntimeError):
    """A stage's command ended with an error; the message carries the stage's own words, then its last lines."""


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


def dvc_repro(stage: str, force: bool, time_limit: float) -> Output:
    """One call of `dvc repro`, under a supervisor that ends it with all that it started once this process is gone."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    if force:
        command.append("--force")
    process = subprocess.Popen(
        supervisor.command_line(command),
        stdin=subprocess.PIPE,  # its end is the supervisor's sign
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | _link_to_parent() | {"PATH": prefect_server.path_of_this_python()},
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
                engine.say(line.rstrip())

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
    """Let the supervisor end the stage."""
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
        rest = (line for line in lines[starts[-1] + 1 :] if not line.startswith(engine.TRACEBACK_HINT))
        return "\n".join([first, *rest])
    return lines[-1] if lines else f"exit code {output.code}, without a word"


def _link_to_parent() -> dict[str, str]:
    """The flow run that the stage's own flow run shows itself under, if the engine runs us."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return {engine.PARENT_RUN: str(context.flow_run.id)} if context and context.flow_run else {}
