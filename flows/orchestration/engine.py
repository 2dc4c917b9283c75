"""Run flows with Prefect's engine if a server is available, and as plain functions otherwise.

Every stage writes its result to disk before it reports to Prefect, so a failure of the engine loses no work.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from inspect import signature
from threading import Event, Thread
from typing import Any, get_args, get_type_hints
from uuid import UUID, uuid4

import psutil

from flows.config.params import load_params
from flows.display.console import console
from flows.orchestration import prefect_server
from flows.orchestration.disk_space import full_disk_message
from flows.orchestration.stage_lock import stage_lock
from flows.orchestration.supervisor import end_process

logger = logging.getLogger(__name__)

PARENT_RUN = "DASHFUSION_PARENT_RUN"
"""Environment variable with the id of the `pipeline` flow run of which a stage's flow run becomes a child."""

TRACEBACK_HINT = "(DASHFUSION_TRACEBACK=1 shows where)"

MAX_TABLE_ROWS = 500
"""Rows of a table artifact: a published corpus can have thousands of problems."""

CANCELLED = "was cancelled"
"""Words of the line by which a stage whose run was cancelled on the server says so."""

CANCELLATION_POLL = 1.0
"""Seconds between two looks at the server whether a run was cancelled there."""

GPU_LIMIT = "gpu"
"""Name of Prefect's concurrency limit on trainings that use a GPU."""

GPU_LEASE = 120.0
"""Seconds for which a process that died keeps its slot of the limit."""


def engine_active() -> bool:
    """Return whether this code runs inside a Prefect flow run."""
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def run_flow(flow: Any, **parameters: Any) -> Any:
    """Run `flow` with the engine if a server is available, else as the plain function that it wraps."""
    address, message = prefect_server.find_or_start()
    parent = os.environ.get(PARENT_RUN)
    if message and not parent:
        console.print(message, style="dim", markup=False)
    if address is None:
        return flow.fn(**parameters)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    os.environ["PREFECT_API_URL"] = address  # for child processes; Prefect has read this process's when imported
    with temporary_settings({PREFECT_API_URL: address}):
        return _run_cancellably(flow, parameters, parent)


def _run_cancellably(flow: Any, parameters: Mapping[str, Any], parent_run: str | None) -> Any:
    """Run `flow` with the engine until it ends, or its run is cancelled on the server.

    Args:
        flow: Flow to run.
        parameters: Its parameters.
        parent_run: Another process's flow run, whose child the run becomes.

    Raises:
        KeyboardInterrupt: The run was cancelled.
    """
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow as run_with_engine

    with get_client(sync_client=True) as client:
        placeholder = _create_placeholder(client, flow, parameters, parent_run) if parent_run else None
        run = client.create_flow_run(
            flow, parameters=flow.serialize_parameters(parameters), parent_task_run_id=placeholder
        )
    with _watch(run, flow.name) as cancelled:
        try:
            return run_with_engine(flow, flow_run=run, parameters=dict(parameters))
        except KeyboardInterrupt:
            if cancelled.is_set():
                _set_cancelled(run, flow.name)  # the engine has set it to crashed
            raise


def _create_placeholder(client: Any, flow: Any, parameters: Mapping[str, Any], parent_run: str) -> UUID:
    """Create a task run of another process's flow run, by which its graph shows the run of `flow` as a child.

    It is created here and not by the parent: a stage that DVC skips leaves none behind.
    """
    from prefect import Task
    from prefect.states import Pending

    placeholder: UUID = client.create_task_run(
        task=Task(fn=flow.fn, name=flow.name),
        flow_run_id=UUID(parent_run),
        name=" ".join(filter(None, (flow.name, parameters.get("modality")))),
        dynamic_key=uuid4().hex,
        state=Pending(),
        task_inputs={},
    ).id
    return placeholder


def _set_cancelled(run: Any, name: str) -> None:
    """Set a flow run to cancelled, whatever its state is; a server that does not answer is no error."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        message = f"{name} {CANCELLED}: finished work is kept, and the next run resumes from there"
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)


@contextmanager
def _watch(run: Any, name: str) -> Iterator[Event]:
    """End this process, as Ctrl-C does, if the run is cancelled on the server; provide the event that it was.

    Prefect's workers enforce the cancellation of runs that they have started themselves, and of no others.
    """
    ended, cancelled = Event(), Event()

    def poll() -> None:
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.exceptions import ObjectNotFound

        with get_client(sync_client=True) as client:
            while not ended.wait(CANCELLATION_POLL):
                state = None
                with suppress(httpx.HTTPError, ObjectNotFound):  # a server or record that is lost stops no run
                    state = client.read_flow_run(run.id).state
                if state is not None and state.type.name in ("CANCELLING", "CANCELLED"):
                    cancelled.set()
                    _set_cancelled(run, name)  # also for a process that does not end and is killed
                    console.print(f"{name} {CANCELLED} on the Prefect server")
                    end_process(psutil.Process())
                    return

    context = copy_context()  # with the address of the server
    Thread(target=context.run, args=(poll,), daemon=True).start()
    try:
        yield cancelled
    finally:
        ended.set()


def main(flow: Any, *arguments: str, **parameters: Any) -> None:
    """Run a stage's flow as a script; see `plain_exit` for errors.

    A lock lets the stage run only once at a time in this folder with the same arguments.

    Args:
        flow: Flow of the stage.
        *arguments: Names of the flow's parameters that are read from the command line, in this order.
        **parameters: Values of the flow's other parameters.
    """
    given = parse_command_line(flow.fn, *arguments)
    _hide_main_module()
    with plain_exit(flow.name), stage_lock("-".join([flow.name, *given.values()]).replace(os.sep, "_")):
        run_flow(flow, **given, **parameters)


def _hide_main_module() -> None:
    """Keep spawned processes from importing the stage's module, and with it Prefect: they need only what they call."""
    main_module: Any = sys.modules["__main__"]
    main_module.__spec__ = None
    vars(main_module).pop("__file__", None)


def parse_command_line(stage: Callable[..., Any], *arguments: str) -> dict[str, str]:
    """Parse the values of these parameters of a stage from the command line; exit on `--help` and invalid values."""
    summary = (stage.__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m flows.{stage.__name__}", description=f"{summary} Settings: params.yaml in the current folder."
    )
    hints = get_type_hints(stage)
    for name in arguments:
        parser.add_argument(name, choices=get_args(hints[name]) or None)
    return vars(parser.parse_args())


@contextmanager
def plain_exit(stage: str) -> Iterator[None]:
    """Print errors that a user can correct as a line, and exit with code 1."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"{stage} interrupted: finished work is kept, and the next run resumes from there")
        sys.exit(130)
    except Exception as error:
        message = full_disk_message(error)
        expected = message or isinstance(error, (ValueError, OSError, ArithmeticError, RuntimeError))
        if os.environ.get("DASHFUSION_TRACEBACK") or not expected:
            raise
        console.print(f"{stage} stopped:", style="bold red", end=" ")
        console.print(message or f"{type(error).__name__}: {error}", markup=False)
        console.print(TRACEBACK_HINT, style="dim")
        sys.exit(1)


def run_name() -> str:
    """Return a name for the current flow run: its flow, modality or study, and corpus."""
    from prefect.runtime import flow_run

    given = flow_run.parameters
    corpus = load_params(given.get("params_file", "params.yaml")).prepare.corpus
    return " ".join(filter(None, (flow_run.flow_name, given.get("modality"), given.get("name"), corpus)))


def add_tags(flow: Any, flow_run: Any, state: Any) -> None:
    """Tag a flow run, as the flow's `on_running` hook, so that it is found however it was started.

    The tags are `corpus:<name>`, `stage:<name>` for a stage, and `dvc` if DVC runs it.
    """
    from prefect.client.orchestration import get_client

    corpus = load_params(flow_run.parameters.get("params_file", "params.yaml")).prepare.corpus
    tags = {f"corpus:{corpus}", *flow_run.tags}
    if flow.name != "pipeline":
        tags.add(f"stage:{flow.name}")
    if "DVC_STAGE" in os.environ:
        tags.add("dvc")
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=sorted(tags))


def call(task: Any, *arguments: Any, **parameters: Any) -> Any:
    """Call a task and return its result; without the engine, call the plain function that it wraps.

    A task called outside of a flow run would start an engine and a temporary server of its own.
    """
    from prefect.client.schemas.objects import State

    result = (task if engine_active() else task.fn)(*arguments, **parameters)
    return result.result() if isinstance(result, State) else result


def map_tasks(
    task: Any,
    items: Sequence[Any],
    *,
    workers: int,
    each: Callable[[Any], None] | None = None,
    runner: Any = None,
    **fixed: Any,
) -> list[Any]:
    """Call `task(item, **fixed)` for every item and return the results in the order of `items`.

    The first failure is raised once the running calls have ended. Without the engine the task's function is called
    instead, without retries.

    Args:
        task: Prefect task.
        items: Values of its first parameter.
        workers: Calls at a time.
        each: Callback that receives each result as soon as it is available.
        runner: Started Prefect task runner, in place of the flow's own.
        **fixed: Further arguments, the same for every call.
    """
    if not engine_active():
        with ThreadPoolExecutor(max_workers=workers) as pool:
            plain = [pool.submit(task.fn, item, **fixed) for item in items]
            return _collect(plain, as_completed(plain), each)
    from prefect.futures import as_completed as prefect_as_completed
    from prefect.utilities.annotations import unmapped

    constant = {name: unmapped(value) for name, value in fixed.items()}
    if runner is None:
        futures = task.map(items, **constant)
    else:
        first = next(iter(signature(task.fn).parameters))
        futures = runner.map(task, {first: items, **constant})
    return _collect(futures, prefect_as_completed(list(futures)), each)


def _collect(futures: Iterable[Any], completed: Iterable[Any], each: Callable[[Any], None] | None) -> list[Any]:
    """Return the futures' results in order, after passing each one to `each` in the order of completion."""
    for future in completed:
        result = future.result()
        if each:
            each(result)
    return [future.result() for future in futures]


def cached_state(result: Any, reason: str) -> Any:
    """Return what a task returns whose work was already done: with the engine its run ends in the state `Cached`."""
    if not engine_active():
        return result
    from prefect.states import Completed

    return Completed(name="Cached", message=reason, data=result)


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold a slot of the server's concurrency limit `gpu`, so that two trainings do not share a GPU.

    `prefect gcl create gpu --limit 1` creates the limit. Without the engine or the limit, or if the server is lost,
    the block runs unlimited. A holder that dies keeps its slot until its lease ends, two minutes at most.
    """
    if not engine_active():
        yield
        return
    import httpx
    from prefect.concurrency.sync import concurrency

    with ExitStack() as stack:
        stack.enter_context(concurrency(GPU_LIMIT, occupy=1, lease_duration=GPU_LEASE, strict=False))
        yield
        try:
            stack.close()
        except httpx.HTTPError as error:
            logger.warning("the GPU slot was not released, its lease will expire by itself: %r", error)


def log(line: str) -> None:
    """Print a line to the terminal and, with the engine, to the current run's log."""
    console.print(line, markup=False)
    if engine_active():
        from prefect import get_run_logger

        run_logger: Any = get_run_logger()
        run_logger.logger.setLevel(logging.INFO)  # the level that keeps Prefect's own lines off the terminal is higher
        run_logger.info(line)


def publish_progress(key: str, description: str) -> Callable[[float, str], None]:
    """Create a progress artifact of the current flow run and return the function that updates it.

    The function takes the percentage done and a description. It stops reporting once the server no longer answers,
    and does nothing without the engine.
    """
    if not engine_active():
        return lambda percent, description: None
    import httpx
    from prefect.artifacts import create_progress_artifact, update_progress_artifact

    artifact: Any = create_progress_artifact(progress=0.0, key=key, description=description)

    def update(percent: float, description: str) -> None:
        nonlocal artifact
        if artifact is None:
            return
        try:
            update_progress_artifact(artifact, progress=percent, description=description)
        except httpx.HTTPError as error:
            artifact = None
            logger.warning("progress is no longer reported to Prefect: %r", error)

    return update


def publish_table(key: str, rows: Iterable[Mapping[str, Any]], description: str) -> None:
    """Publish the first `MAX_TABLE_ROWS` rows as a table artifact of the current flow run, if the engine is active.

    The whole table is on disk as well.
    """
    if engine_active():
        from prefect.artifacts import create_table_artifact

        table = [dict(row) for row in rows]
        if len(table) > MAX_TABLE_ROWS:
            description += f" (the first {MAX_TABLE_ROWS:,} of {len(table):,})"
        create_table_artifact(key=key, table=table[:MAX_TABLE_ROWS], description=description)


def publish_markdown(key: str, markdown: str, description: str) -> None:
    """Publish a markdown artifact of the current flow run, if the engine is active."""
    if engine_active():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(key=key, markdown=markdown, description=description)


def publish_link(key: str, link: str, text: str, description: str) -> None:
    """Publish a link artifact of the current flow run, if the engine is active."""
    if engine_active():
        from prefect.artifacts import create_link_artifact

        create_link_artifact(key=key, link=link, link_text=text, description=description)
