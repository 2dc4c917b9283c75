"""Running a stage's flow with Prefect's engine where a server answers, and without it where none does.

Every stage's result is safe on disk before Prefect hears of it, so the engine adds a record and never a risk.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from flows.display.console import console
from flows.orchestration import prefect_server, settings

logger = logging.getLogger(__name__)

# Before `prefect` and `torch` are imported: they read these then. A user's own environment wins. OpenMP's threads spin
# while they wait for each other; on a machine with other work that takes the cores from those that have some to do (an
# epoch took twice as long beside two busy processes), and a short spin costs nothing on an idle one.
for _name, _value in (settings.QUIET | {"GOMP_SPINCOUNT": "1000"}).items():
    os.environ.setdefault(_name, _value)

PARENT_RUN = "DASHFUSION_PARENT_RUN"  # flow run of `pipeline`; a stage started by it shows itself as its child
TRACEBACK_HINT = "(DASHFUSION_TRACEBACK=1 shows where)"
SHOWN_ROWS = 500  # of a table artifact: a published corpus can have thousands of problems
GPU_LEASE = 120.0  # seconds; see `gpu_slot`


def engine_active() -> bool:
    """Whether this code runs inside a Prefect flow run."""
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def run_stage(flow: Any, **parameters: Any) -> Any:
    """Run `flow` with the engine if a server can be had, else as the plain function that it wraps."""
    address, said = prefect_server.find_or_start()
    parent = os.environ.get(PARENT_RUN)
    if not parent:
        console.print(f"[dim]{said}[/dim]")
    if address is None:
        return flow.fn(**parameters)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    os.environ["PREFECT_API_URL"] = address  # for the processes that we start; Prefect read ours at its import
    with temporary_settings({PREFECT_API_URL: address}):
        return _run_as_child(flow, parameters, parent) if parent else flow(**parameters)


def _run_as_child(flow: Any, parameters: Mapping[str, Any], parent_run: str) -> Any:
    """Run `flow` as a child of another process's flow run, so that the run's graph shows it.

    The placeholder task run is made here, not by the parent: a stage that DVC skips leaves none behind.
    """
    from uuid import UUID, uuid4

    from prefect import Task
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Pending

    with get_client(sync_client=True) as client:
        placeholder = client.create_task_run(
            task=Task(fn=flow.fn, name=flow.name),
            flow_run_id=UUID(parent_run),
            name=" ".join(filter(None, (flow.name, parameters.get("modality")))),
            dynamic_key=uuid4().hex,
            state=Pending(),
            task_inputs={},
        )
        run = client.create_flow_run(flow, parameters=dict(parameters), parent_task_run_id=placeholder.id)
    return run_flow(flow, flow_run=run, parameters=dict(parameters))


def run_name() -> str:
    """Name of the current flow run: its flow, modality or study, and corpus."""
    from prefect.runtime import flow_run

    from flows.config.params import load_params

    given = flow_run.parameters
    corpus = load_params(given.get("params_file", "params.yaml")).prepare.corpus
    return " ".join(filter(None, (flow_run.flow_name, given.get("modality"), given.get("name"), corpus)))


def add_tags(flow: Any, run: Any, state: Any) -> None:
    """A flow's `on_running` hook: tags by which its runs are found, however they were started.

    `corpus:<name>`, `stage:<name>` of a stage, `dvc` where DVC runs it.
    """
    from prefect.client.orchestration import get_client

    from flows.config.params import load_params

    corpus = load_params(run.parameters.get("params_file", "params.yaml")).prepare.corpus
    tags = {f"corpus:{corpus}", *run.tags}
    if flow.name != "pipeline":
        tags.add(f"stage:{flow.name}")
    if "DVC_STAGE" in os.environ:
        tags.add("dvc")
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags=sorted(tags))


def call(task: Any, *arguments: Any, **parameters: Any) -> Any:
    """A task's result; without the engine, that of the plain function which it wraps.

    A task that is called outside of a flow run would bring up an engine and a temporary server of its own.
    """
    from prefect.states import State

    result = (task if engine_active() else task.fn)(*arguments, **parameters)
    return result.result() if isinstance(result, State) else result


def as_cached(result: Any, why: str) -> Any:
    """What a task returns whose work was done before: with the engine its run ends in the state `Cached`."""
    if not engine_active():
        return result
    from prefect.states import Completed

    return Completed(name="Cached", message=why, data=result)


def say(line: str) -> None:
    """A line for the terminal and, with the engine, for the current run's log."""
    console.print(line, markup=False)
    if engine_active():
        from prefect import get_run_logger

        log = get_run_logger()
        log.logger.setLevel(logging.INFO)  # above it Prefect keeps its own lines off the terminal
        log.info(line)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold the server's concurrency limit `gpu`, so that two trainings that report to it do not share a card.

    `prefect gcl create gpu --limit 1` makes the limit. Without the engine, without the limit, and where the server
    is lost, the work goes on. A holder that dies keeps its slot until its lease ends, two minutes at most.
    """
    if not engine_active():
        yield
        return
    import httpx
    from prefect.concurrency.sync import concurrency

    with ExitStack() as stack:
        stack.enter_context(concurrency("gpu", occupy=1, lease_duration=GPU_LEASE, strict=False))
        yield
        try:
            stack.close()
        except httpx.HTTPError as error:
            logger.warning("the GPU's slot could not be given back, its lease will end by itself: %r", error)


def map_tasks(
    task: Any,
    items: Sequence[Any],
    *,
    workers: int,
    each: Callable[[Any], None] | None = None,
    runner: Any = None,
    **fixed: Any,
) -> list[Any]:
    """`task(item, **fixed)` for every item, `workers` at a time; results in the order of `items`.

    `each` is called with a result as soon as it is there. The first failure is raised once the others that run
    have ended. `runner` is a started task runner of Prefect's, to take the place of the flow's own. Without the
    engine the task's function is called in the same way, without retries.
    """
    from concurrent.futures import as_completed

    if engine_active():
        from prefect.futures import as_completed as prefect_as_completed
        from prefect.utilities.annotations import unmapped

        constant = {name: unmapped(value) for name, value in fixed.items()}
        if runner is None:
            futures = task.map(items, **constant)
        else:
            first = next(iter(signature(task.fn).parameters))
            futures = runner.map(task, {first: items, **constant})
        for future in prefect_as_completed(list(futures)):
            result = future.result()
            if each:
                each(result)
        return [future.result() for future in futures]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        plain = [pool.submit(task.fn, item, **fixed) for item in items]
        for future in as_completed(plain):
            result = future.result()
            if each:
                each(result)
        return [future.result() for future in plain]


def publish_progress(key: str, description: str) -> Callable[[float, str], None]:
    """A progress artifact of the current flow run, and the function that updates it: percent done, and in words.

    Where the server no longer answers the function gives up, once and for all. Without the engine it does nothing.
    """
    if not engine_active():
        return lambda percent, words: None
    import httpx
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    artifact = create_progress_artifact(progress=0.0, key=key, description=description)

    def update(percent: float, words: str) -> None:
        nonlocal artifact
        if artifact is None:
            return
        try:
            update_progress_artifact(artifact, progress=percent, description=words)
        except httpx.HTTPError as error:
            artifact = None
            logger.warning("progress is no longer reported to Prefect: %r", error)

    return update


def publish_table(key: str, rows: Iterable[Mapping[str, Any]], description: str) -> None:
    """A table artifact of the current flow run, its first `SHOWN_ROWS`; nothing without the engine.

    The whole table is on disk as well.
    """
    if engine_active():
        from prefect.artifacts import create_table_artifact

        table = [dict(row) for row in rows]
        if len(table) > SHOWN_ROWS:
            description += f" (the first {SHOWN_ROWS:,} of {len(table):,})"
        create_table_artifact(key=key, table=table[:SHOWN_ROWS], description=description)


def publish_markdown(key: str, markdown: str, description: str) -> None:
    """A markdown artifact of the current flow run; nothing without the engine."""
    if engine_active():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(key=key, markdown=markdown, description=description)


def publish_link(key: str, link: str, text: str, description: str) -> None:
    """A link artifact of the current flow run; nothing without the engine."""
    if engine_active():
        from prefect.artifacts import create_link_artifact

        create_link_artifact(key=key, link=link, link_text=text, description=description)


def main(flow: Any, **parameters: Any) -> None:
    """The body of a stage's `if __name__ == "__main__"`: run it, or print what a user can mend and exit with 1."""
    try:
        run_stage(flow, **parameters)
    except KeyboardInterrupt:
        console.print(f"{flow.name} interrupted: what was finished is kept, and the next run goes on from there")
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("DASHFUSION_TRACEBACK"):
            raise
        console.print(f"{flow.name} stopped:", style="bold red", end=" ")
        console.print(f"{type(error).__name__}: {error}", markup=False)
        console.print(TRACEBACK_HINT, style="dim")
        sys.exit(1)
