"""Stage `extract`: media -> one modality's features, in worker processes, resumable."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from corpora.manifest import Clip, read_manifest
from corpora.problems import write_problems
from extractors.run import UnitReport, assemble, check_failures, describe, work_units
from extractors.workers import WorkerLost, WorkerPool
from flows import runtime
from flows.params import ExtractorParams, load_params
from flows.runtime import console, progress

from prefect import flow, task  # isort: skip  (flows.runtime sets Prefect's switches before it is imported)

UNIT_CLIPS = (16, 64)  # fewest and most clips of a work unit: one Prefect task each


_pools: dict[str, WorkerPool] = {}  # by modality: a pool cannot travel through a task's parameters


def worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    """A worker that did not come up, or a disk that failed, may do better the next time; wrong options never."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WorkerLost | OSError)


@task(task_run_name="{modality} unit", retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=worth_a_retry)
def extract_clips(
    clips: Sequence[Clip], *, modality: str, root: Path, extractor: ExtractorParams, scratch: Path
) -> UnitReport:
    """One work unit. A retry does not do again what was finished."""
    return _pools[modality].run(clips, root, extractor.extractor, extractor.options, scratch)


def scratch_folder() -> Path:
    """Where finished clips lie between runs: `$DASHFUSION_SCRATCH`, or `.dashfusion/scratch` here."""
    return Path(os.environ.get("DASHFUSION_SCRATCH", ".dashfusion/scratch")).absolute()


@flow(name="extract", flow_run_name=runtime.run_name)
def extract(modality: Literal["text", "audio", "vision"], params_file: Path = Path("params.yaml")) -> dict[str, int]:
    """Extract one modality's features of every clip in the manifest.

    Args:
        modality: text, audio or vision; its extractor and options are in the parameters.
        params_file: the parameters.
    """
    params = load_params(params_file)
    chosen: ExtractorParams = getattr(params.extract, modality)
    meta = describe(chosen.extractor, chosen.options)  # refuses a wrong name or option before any worker starts
    manifest = read_manifest(params.paths.manifest)
    workers = params.extract.workers or os.cpu_count() or 1
    size = max(UNIT_CLIPS[0], min(UNIT_CLIPS[1], -(-len(manifest.clips) // (2 * workers))))
    units = work_units(manifest.clips, size)
    fixed = {
        "modality": modality,
        "root": Path(manifest.root),
        "extractor": chosen,
        "scratch": scratch_folder(),
    }
    with WorkerPool(min(workers, len(units)), params.extract.clip_timeout) as pool, progress() as bar:
        _pools[modality] = pool
        row = bar.add_task(f"extract {modality}", total=len(manifest.clips), note=chosen.extractor)

        def advance(report: UnitReport) -> None:
            bar.advance(row, report.extracted + report.reused + len(report.problems))

        reports = runtime.map_tasks(extract_clips, units, workers=workers, each=advance, **fixed)
    problems = [problem for report in reports for problem in report.problems]
    table = params.paths.problems / f"extract-{modality}.parquet"
    write_problems(problems, table)
    runtime.publish_table(f"extract-{modality}-problems", map(asdict, problems), f"Clips whose {modality} failed")
    check_failures(problems, len(manifest.clips), params.extract.max_failed_fraction, table)
    folder = params.paths.features / modality
    summary = assemble(manifest.clips, Path(manifest.root), meta, scratch_folder(), folder, problems)
    reused = sum(report.reused for report in reports)
    console.print(
        f"{modality}: {summary.rows} clips, {summary.steps} steps x {len(meta.feature_names)} features "
        f"({reused} from an earlier run, {summary.missing} without {modality}, {summary.failed} failed) -> {folder}"
    )
    return asdict(summary)


if __name__ == "__main__":
    runtime.main(extract, modality=sys.argv[1])
