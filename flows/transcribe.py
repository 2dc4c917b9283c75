"""Stage `transcribe`: manifest -> transcripts with word times, from the corpus, a recogniser and an aligner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from prefect import flow, task
from rich.progress import TaskID

from corpora.problems import check_failures, write_problems
from extractors.execution.cache import TRACEBACKS
from extractors.transcripts.transcribe import TranscribeSummary
from extractors.transcripts.transcribe import transcribe as transcribe_clips
from flows.config.params import Params, load_params
from flows.display.console import console
from flows.display.metrics import format_count
from flows.display.progress import StageProgress
from flows.orchestration import engine
from flows.orchestration.settings import forced, scratch_folder


@task
def transcribe_corpus(params: Params) -> TranscribeSummary:
    """Write the transcripts of all clips; recognised and aligned speech of earlier runs is reused unless forced."""
    paths, timeout = params.paths, params.extract.clip_timeout
    bar = StageProgress()
    rows: dict[str, TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in rows:
            bar.start()  # only now: most corpora need neither recogniser nor aligner
            rows[step] = bar.add_task(step, total=total)
        bar.update(rows[step], completed=done)

    try:
        tables = paths.manifest, paths.transcripts
        return transcribe_clips(*tables, params.transcribe, scratch_folder(), timeout, show, forced())
    finally:
        if rows:
            bar.stop()


@flow(name="transcribe", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def transcribe(params_file: Path = Path("params.yaml")) -> dict[str, dict[str, int]]:
    """Write every clip's transcript, with word times unless `align` is to estimate them.

    Args:
        params_file: Parameters of all stages.
    """
    params = load_params(params_file)
    summary = engine.call(transcribe_corpus, params)
    table = params.paths.problems / "transcribe.parquet"
    write_problems(summary.problems, table)
    engine.publish_table(
        "transcribe-problems", map(asdict, summary.problems), "Clips that could not be recognised or timed"
    )
    clips = sum(summary.texts.values())
    tracebacks = scratch_folder() / TRACEBACKS
    check_failures(summary.failures, clips, params.extract.max_failed_fraction, table, tracebacks)
    problems = format_count(len(summary.problems), "problem")
    console.print(
        f"transcripts of {format_count(clips, 'clip')} ({_counts(summary.texts)}; words timed by "
        f"{_counts(summary.methods)}; {summary.processed} recognised now, {problems}) -> {params.paths.transcripts}"
    )
    return {"texts": dict(summary.texts), "methods": dict(summary.methods)}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing"


if __name__ == "__main__":
    engine.main(transcribe)
