"""Stage `extract`: media -> one modality's features, in worker processes, resumable."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from corpora.manifest import Clip, Manifest, read_manifest
from corpora.problems import write_problems
from extractors.execution.units import UnitReport, assemble, check_failures, describe, work_units
from extractors.execution.workers import Stage, WorkerLostError, WorkerPool, close_own_pools, own_pool
from extractors.imported import copy_imported, imported_folder
from extractors.transcripts.table import read_transcripts, with_transcripts
from flows.config.params import IMPORTED_LAYOUTS, ExtractorParams, ExtractParams, Params, load_params
from flows.display import console
from flows.orchestration import engine, task_runners
from flows.orchestration.extraction_progress import LEGEND, Meter, summarise, table

from prefect import flow, task  # isort: skip  (flows.orchestration.engine sets Prefect's switches before it is imported)
from flows.orchestration.settings import scratch_folder

UNIT_CLIPS = (16, 64)  # fewest and most clips of a work unit: one Prefect task each


_pools: dict[str, WorkerPool] = {}  # by modality: a pool cannot travel through a task's parameters


def worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    """A worker that did not come up, or a disk that failed, may do better the next time; wrong options never."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WorkerLostError | OSError)


@task(task_run_name="{modality} unit", retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=worth_a_retry)
def extract_clips(
    clips: Sequence[Clip],
    *,
    modality: str,
    root: Path,
    extractor: ExtractorParams,
    scratch: Path,
    stage: Stage | None = None,
) -> UnitReport:
    """One work unit, in a process of the stage's own pool, or of a cluster's where `stage` tells of the stage.

    A retry does not do again what was finished.
    """
    pool = _pools[modality] if stage is None else own_pool(stage)
    return pool.run(clips, root, extractor.extractor, extractor.options, scratch)


def run_units(
    clips: Sequence[Clip], params: ExtractParams, each: Callable[[UnitReport], None], **fixed: Any
) -> list[UnitReport]:
    """Reports on the work units that the clips make, run by what `params.runner` says.

    Args:
        each: called with reports as soon as there are any: on batches of clips here, on whole units by a cluster.
        fixed: what `extract_clips` takes beside the clips.
    """
    workers = params.workers or os.cpu_count() or 1
    size = max(UNIT_CLIPS[0], min(UNIT_CLIPS[1], -(-len(clips) // (2 * workers))))
    units = work_units(clips, size)
    if params.runner == "processes":
        modality = fixed["modality"]
        with WorkerPool(min(workers, len(units)), params.clip_timeout, each=each) as _pools[modality]:
            try:
                return engine.map_tasks(extract_clips, units, workers=workers, **fixed)
            finally:
                del _pools[modality]
    with (
        task_runners.task_runner(params.runner, params.address, workers, close_own_pools) as runner,
        _mark(fixed["scratch"]) as mark,
    ):
        stage = Stage(platform.node(), Path.cwd(), Path(mark.name), params.clip_timeout)
        return engine.map_tasks(extract_clips, units, workers=workers, each=each, runner=runner, stage=stage, **fixed)


def _mark(scratch: Path) -> Any:
    """A file in scratch by which a cluster's machines know that it is the stage's; it goes with the block."""
    scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=scratch, prefix=".run-")


def take_imported(brought: Path, modality: str, manifest: Manifest, params: Params) -> dict[str, int]:
    """The features that came with the corpus, in place of an extractor's."""
    folder = params.paths.features / modality
    meta, summary = copy_imported(brought, modality, [clip.clip_id for clip in manifest.clips], folder)
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

    Args:
        modality: Text, audio or vision; its extractor and options are in the parameters.
        params_file: The parameters; every stage reads its own block of them.
    """
    params = load_params(params_file)
    chosen: ExtractorParams = getattr(params.extract, modality)
    manifest = read_manifest(params.paths.manifest)
    if params.prepare.layout in IMPORTED_LAYOUTS and (brought := imported_folder(Path(manifest.root), modality)):
        return take_imported(brought, modality, manifest, params)
    meta = describe(chosen.extractor, chosen.options)  # refuses a wrong name or option before any worker starts
    if modality == "text":  # a clip without a transcript may have a recogniser's
        manifest = with_transcripts(manifest, read_transcripts(params.paths.transcripts))
    root, scratch = Path(manifest.root), scratch_folder()
    with Meter(modality, len(manifest.clips)) as meter:
        fixed = {"modality": modality, "root": root, "extractor": chosen, "scratch": scratch}
        reports = run_units(manifest.clips, params.extract, meter.add, **fixed)
    problems = [problem for report in reports for problem in report.problems]
    listed = params.paths.problems / f"extract-{modality}.parquet"
    write_problems(problems, listed)
    engine.publish_table(f"extract-{modality}-problems", map(asdict, problems), f"Clips whose {modality} failed")
    check_failures(problems, len(manifest.clips), params.extract.max_failed_fraction, listed, scratch)
    folder = params.paths.features / modality
    summary = assemble(manifest.clips, root, meta, scratch, folder, problems)
    figures = summarise(len(meta.feature_names), reports, summary, meter.seconds)
    engine.publish_table(f"extract-{modality}", [figures], f"Extraction of {modality} with {chosen.extractor}")
    console.console.print(f"{modality}: {chosen.extractor} ({figures['reused']} from an earlier run) -> {folder}")
    console.console.print(table(figures))
    console.console.print(LEGEND, style="dim")
    return asdict(summary)


if __name__ == "__main__":
    engine.main(extract, modality=sys.argv[1])
