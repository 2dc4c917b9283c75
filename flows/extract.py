"""Stage `extract`: media or transcripts -> one modality's features, in worker processes, resumable."""

from __future__ import annotations

import math
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task

from corpora.manifest import Clip, Manifest, read_manifest
from corpora.problems import check_failures, write_problems
from extractors.execution.cache import TRACEBACKS, scratch_path
from extractors.execution.units import UnitReport, adopt_results, assemble, describe, work_units
from extractors.execution.workers import Stage, WorkerLostError, WorkerPool, close_own_pools, own_pool
from extractors.imported import copy_imported, imported_folder
from extractors.transcripts.table import read_transcripts, with_transcripts
from flows.config.params import IMPORTED_LAYOUTS, ExtractorParams, ExtractParams, Params, load_params
from flows.display import console
from flows.orchestration import engine, settings, task_runners
from flows.orchestration.extraction_progress import Meter, summarise, table

MIN_UNIT_CLIPS, MAX_UNIT_CLIPS = 16, 64
"""Clips of a work unit, which is one Prefect task."""

_pools: dict[str, WorkerPool] = {}  # by modality: a pool cannot be passed as a task's parameter


def is_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Return whether a task failed with an error that a retry may not meet again, of a worker process or the disk."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WorkerLostError | OSError)


@task(task_run_name="{modality} unit", retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=is_transient)
def extract_clips(
    clips: Sequence[Clip],
    *,
    modality: str,
    root: Path,
    extractor: ExtractorParams,
    scratch: Path,
    stage: Stage | None = None,
) -> UnitReport:
    """Extract the clips of one work unit that are not in scratch yet.

    The unit runs in a process of the stage's own pool; in a worker of a cluster, which gets `stage`, in one of that
    worker's.
    """
    pool = _pools[modality] if stage is None else own_pool(stage)
    return pool.run(clips, root, extractor.extractor, extractor.options, scratch)


def unit_size(clips: int, workers: int) -> int:
    """Return the number of clips of a work unit: about two units a worker, within the limits."""
    return max(MIN_UNIT_CLIPS, min(MAX_UNIT_CLIPS, math.ceil(clips / (2 * workers))))


def run_units(
    clips: Sequence[Clip], params: ExtractParams, each: Callable[[UnitReport], None], **fixed: Any
) -> list[UnitReport]:
    """Split the clips into work units, run these with the configured runner, and return their reports.

    Args:
        clips: Clips of the corpus.
        params: Runner, workers and time limit.
        each: Callback for reports as soon as they are available: of batches of clips from the local pool, of whole
            units from a cluster.
        **fixed: Further arguments of `extract_clips`.
    """
    workers = params.workers or os.cpu_count() or 1
    units = work_units(clips, unit_size(len(clips), workers))
    if params.runner == "processes":
        modality, count = fixed["modality"], min(workers, len(units))
        engine.log(f"runner: processes, {count} of this machine")
        with WorkerPool(count, params.clip_timeout, each=each) as _pools[modality]:
            try:
                return engine.map_tasks(extract_clips, units, workers=workers, **fixed)
            finally:
                del _pools[modality]
    with (
        task_runners.task_runner(params.runner, params.address, workers, close_own_pools) as runner,
        _run_marker(fixed["scratch"]) as mark,
    ):
        stage = Stage(platform.node(), Path.cwd(), Path(mark.name), params.clip_timeout)
        return engine.map_tasks(extract_clips, units, workers=workers, each=each, runner=runner, stage=stage, **fixed)


def _run_marker(scratch: Path) -> Any:
    """Create a temporary file in scratch by which a cluster's machines check that they share the folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=scratch, prefix=".run-")


def take_imported(imported: Path, modality: str, manifest: Manifest, params: Params) -> dict[str, int]:
    """Copy the features that came with the corpus, in place of an extractor's."""
    folder = params.paths.features / modality
    meta, summary = copy_imported(imported, modality, [clip.clip_id for clip in manifest.clips], folder)
    write_problems([], params.paths.problems / f"extract-{modality}.parquet")
    figures = summarise(len(meta.feature_names), [], summary, 0.0)
    engine.publish_table(f"extract-{modality}", [figures], f"{modality} as it came with the corpus")
    chosen: ExtractorParams = getattr(params.extract, modality)
    console.console.print(f"{modality}: as it came with the corpus, not by {chosen.extractor} -> {folder}")
    console.console.print(table({name: figures[name] for name in ("clips", "missing", "steps", "features")}))
    return asdict(summary)


@flow(name="extract", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def extract(modality: Literal["text", "audio", "vision"], params_file: Path = Path("params.yaml")) -> dict[str, int]:
    """Extract one modality's features of every clip in the manifest.

    Results of earlier runs are reused, unless the stage is forced.

    Args:
        modality: Modality, whose extractor and options are in the parameters.
        params_file: Parameters of all stages.
    """
    params = load_params(params_file)
    chosen: ExtractorParams = getattr(params.extract, modality)
    manifest = read_manifest(params.paths.manifest)
    if params.prepare.layout in IMPORTED_LAYOUTS and (imported := imported_folder(Path(manifest.root), modality)):
        return take_imported(imported, modality, manifest, params)
    meta = describe(chosen.extractor, chosen.options)  # raises on a wrong name or option before any worker starts
    if modality == "text":  # of the corpus or a recogniser
        manifest = with_transcripts(manifest, read_transcripts(params.paths.transcripts))
    root, scratch = Path(manifest.root), settings.scratch_folder()
    adopt_results(chosen.extractor, chosen.options, scratch)
    if settings.forced():
        for clip in manifest.clips:
            scratch_path(scratch, meta, clip, root).unlink(missing_ok=True)
    with Meter(modality, len(manifest.clips)) as meter:
        fixed = {"modality": modality, "root": root, "extractor": chosen, "scratch": scratch}
        reports = run_units(manifest.clips, params.extract, meter.add, **fixed)
    problems = [problem for report in reports for problem in report.problems]
    problem_table = params.paths.problems / f"extract-{modality}.parquet"
    write_problems(problems, problem_table)
    engine.publish_table(f"extract-{modality}-problems", map(asdict, problems), f"Clips whose {modality} failed")
    limit, tracebacks = params.extract.max_failed_fraction, scratch / TRACEBACKS
    check_failures(problems, len(manifest.clips), limit, problem_table, tracebacks)
    folder = params.paths.features / modality
    summary = assemble(manifest.clips, root, meta, scratch, folder, problems)
    figures = summarise(len(meta.feature_names), reports, summary, meter.seconds)
    engine.publish_table(f"extract-{modality}", [figures], f"Extraction of {modality} with {chosen.extractor}")
    console.console.print(f"{modality}: {chosen.extractor} ({figures['reused']} from an earlier run) -> {folder}")
    console.console.print(table(figures))
    return asdict(summary)


if __name__ == "__main__":
    engine.main(extract, "modality")
