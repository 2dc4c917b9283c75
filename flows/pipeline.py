"""All stages through DVC, one Prefect task a stage: DVC says what is up to date, Prefect runs and shows it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from flows.orchestration import engine

from prefect import flow, task  # isort: skip  (flows.orchestration.engine sets Prefect's switches before it is imported)
from flows.orchestration.dvc import (
    LOOK_AGAIN,
    UNCHANGED,
    StageFailed,
    StageResult,
    _blocker,
    _reason,
    dvc_repro,
    stage_order,
    up_to_date,
)
from flows.orchestration.workspace import workspace

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
        engine.say(f"{stage}: up to date")
        return engine.as_cached(StageResult(stage, "cached", 0.0), UNCHANGED)
    began = time.monotonic()
    output = dvc_repro(stage, force, time_limit)
    while output.code and (other := _blocker(output.tail)):
        if not wait:
            raise StageFailed(f"stage {stage} failed: {other} works on its files; try again when that has ended")
        engine.say(f"{stage}: {other} works on its files, waiting until it has ended")
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
    return engine.as_cached(result, UNCHANGED) if output.skipped else result


@flow(name="pipeline", flow_run_name=engine.run_name, on_running=[engine.add_tags])
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
                engine.call(run_stage_through_dvc, stage, force, time_limit, wait, known_cached=stage in cached)
            )
        except StageFailed:
            _publish([*results, StageResult(stage, "failed", time.monotonic() - began)])
            raise
    _publish(results)
    return results


def _publish(results: Sequence[StageResult]) -> None:
    rows = [{"stage": r.stage, "state": r.state, "seconds": round(r.seconds, 1)} for r in results]
    engine.publish_table("pipeline-stages", rows, "Stages of this run: run, cached or failed, with their wall time")


def _publish_metrics() -> None:
    """On the run's own page too: who opens it asks for them first."""
    if engine.engine_active():
        from flows.config.params import load_params
        from flows.evaluate import publish_metrics

        params = load_params()
        path = params.paths.metrics / f"{params.evaluate.split}.json"
        publish_metrics(params, json.loads(path.read_text(encoding="utf-8")), "pipeline-")
