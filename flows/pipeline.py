"""All stages through DVC, one Prefect task a stage: DVC knows what is up to date, Prefect runs and shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from prefect import flow, task
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled
from pydantic import Field

from flows.config.params import load_params
from flows.evaluate import publish_metrics
from flows.orchestration import engine
from flows.orchestration.dvc import (
    POLL,
    UNCHANGED,
    StageFailedError,
    StageResult,
    dvc_repro,
    matches,
    stage_order,
    up_to_date,
)
from flows.orchestration.workspace import workspace

Stage = Literal[
    "check",
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
"""Targets of `pipeline`; `extract` is all three modalities."""


@task(task_run_name="{stage}")
def run_stage_through_dvc(
    stage: str, force: bool = False, time_limit: float = 0.0, wait: bool = True, known_cached: bool = False
) -> Any:
    """Run `dvc repro` for one stage and log its output line by line.

    Args:
        stage: Stage of dvc.yaml.
        force: Run it even if nothing has changed.
        time_limit: Minutes that it may take; 0: no limit.
        wait: If a DVC command that a user started uses the same files, wait for its end; otherwise fail.
        known_cached: DVC is known to skip the stage, and is not started.

    Returns:
        The `StageResult`; with the engine, the state `Cached` that contains it if the stage was skipped, and the state
        `Cancelled` if the stage's own flow run was cancelled.

    Raises:
        StageFailedError: The command failed, or took longer than `time_limit`.
    """
    if known_cached:
        engine.log(f"{stage}: up to date")
        return engine.cached_state(StageResult(stage, "cached", 0.0), UNCHANGED)
    start = time.monotonic()
    output = dvc_repro(stage, force, time_limit)
    while output.code and (blocker := output.blocker):
        if not wait:
            raise StageFailedError(f"stage {stage} failed: {blocker} works on its files; try again when that has ended")
        engine.log(f"{stage}: {blocker} works on its files, waiting until it has ended")
        while output.code and output.blocker == blocker:
            time.sleep(POLL)
            output = dvc_repro(stage, force, time_limit)
    if output.code and output.timed_out:
        raise StageFailedError(
            f"stage {stage} was ended at its time limit of {time_limit:g} minutes. Give it more (--time-limit, in "
            "Prefect the parameter time_limit; 0: no limit), or run it again: finished work is kept"
        )
    if output.code and output.cancelled:
        message = f"stage {stage} {engine.CANCELLED}: finished work is kept, and the next run resumes from there"
        return Cancelled(message=message)
    if output.code:
        lines = "\n".join(output.tail)
        raise StageFailedError(f"stage {stage} failed: {output.reason}\n\nIts last lines:\n{lines}")
    result = StageResult(stage, "cached" if output.skipped else "run", time.monotonic() - start)
    return engine.cached_state(result, UNCHANGED) if output.skipped else result


@flow(name="pipeline", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def pipeline(
    targets: Sequence[Stage] = (),
    force: bool = False,
    time_limit: Annotated[float, Field(ge=0)] = 0.0,
    wait: bool = True,
) -> Any:
    """Bring stages up to date: raw videos to features, dataset, model, metrics and report.

    Args:
        targets: Last stages; everything that they depend on is brought up to date as well. None: all stages.
        force: Run the targets even if nothing has changed, and reuse nothing of an earlier extraction or training.
        time_limit: Minutes that one stage may take before it is stopped; 0: no limit. Finished work is kept.
        wait: If another run works in the same folder, wait for its end; otherwise fail at once.

    Returns:
        The stages' `StageResult`s; the state `Cancelled`, which names the stage, if a stage's own run was cancelled.
    """
    with workspace(wait):
        try:
            results = run_stages(targets, force, time_limit, wait)
        except CancelledRun as error:
            return Cancelled(message=str(error))
        if results and results[-1].stage == "evaluate" and engine.engine_active():
            _publish_metrics()
    return results


def run_stages(
    targets: Sequence[str], force: bool = False, time_limit: float = 0.0, wait: bool = True
) -> list[StageResult]:
    """Bring stages up to date, in order, in a workspace that the caller holds; the arguments are those of `pipeline`.

    Raises:
        StageFailedError, CancelledRun: See `run_stage_through_dvc`.
    """
    results: list[StageResult] = []
    order = stage_order(targets)
    forced = {stage for stage in order if force and (not targets or matches(stage, targets))}
    cached = up_to_date(forced)
    for stage in order:
        start = time.monotonic()
        arguments = stage, stage in forced, time_limit, wait, stage in cached
        try:
            results.append(engine.call(run_stage_through_dvc, *arguments))
        except (StageFailedError, CancelledRun) as error:
            state = "cancelled" if isinstance(error, CancelledRun) else "failed"
            _publish([*results, StageResult(stage, state, time.monotonic() - start)])
            raise
    _publish(results)
    return results


def _publish(results: Sequence[StageResult]) -> None:
    rows = [{"stage": r.stage, "state": r.state, "seconds": round(r.seconds, 1)} for r in results]
    engine.publish_table("pipeline-stages", rows, "Stages of this run: run, cached or failed, with their wall time")


def _publish_metrics() -> None:
    """Publish the metrics on the page of the pipeline's run, too, not only on that of `evaluate`'s."""
    params = load_params()
    path = params.paths.metrics / f"{params.evaluate.split}.json"
    publish_metrics(params, json.loads(path.read_text(encoding="utf-8")), "pipeline-")
