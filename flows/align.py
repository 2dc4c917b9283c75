"""Stage `align`: features of the three modalities -> the dataset that the model reads."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task

from corpora.manifest import MODALITIES, read_manifest
from corpora.problems import read_problems, write_problems
from extractors.dataset.align import AlignSummary
from extractors.dataset.align import align as align_features
from flows.config.params import Params, load_params
from flows.display.console import console
from flows.display.metrics import format_count
from flows.display.progress import StageProgress
from flows.orchestration import engine

TRUE_WORD_TIMES = "words.csv"
"""True word times in a corpus's folder, if it has any: estimated ones are compared with them."""


@task
def join(params: Params) -> AlignSummary:
    """Join the modalities' features into the dataset."""
    paths = params.paths
    folders = {modality: paths.features / modality for modality in MODALITIES}
    manifest = read_manifest(paths.manifest)
    tables, true_times = (paths.manifest, paths.transcripts), Path(manifest.root) / TRUE_WORD_TIMES
    with StageProgress() as bar:
        advance = partial(bar.advance, bar.add_task("align", total=len(manifest.clips)))
        return align_features(*tables, folders, paths.dataset, params.align, true_times, progress=advance)


@flow(name="align", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def align(params_file: Path = Path("params.yaml")) -> dict[str, Any]:
    """Join the features by clip, time the words, and compute the training split's statistics.

    Args:
        params_file: Parameters of all stages.
    """
    params = load_params(params_file)
    summary = engine.call(join, params)
    earlier = [params.paths.problems / f"{stage}.parquet" for stage in ("prepare", "transcribe")]
    earlier += [params.paths.problems / f"extract-{modality}.parquet" for modality in MODALITIES]
    problems = [*read_problems(earlier), *summary.problems]
    write_problems(problems, params.paths.all_problems)
    engine.publish_table("problems", map(asdict, problems), "Problems of clips in all stages so far")
    counts = ", ".join(f"{count} {split}" for split, count in summary.clips.items())
    found = format_count(len(problems), "problem")
    console.print(f"{params.align.mode}: {counts}; {found} so far -> {params.paths.dataset}")
    for name, method in summary.word_times["methods"].items():
        words, clips = format_count(method["words"], "word"), format_count(method["clips"], "clip")
        line = f"word times ({name}): {words} of {clips}"
        if "error" in method:
            start = method["error"]["start"]
            line += (
                f"; start off by {start['median']:.3f} s in the median, {start['p90']:.3f} s at the 90th percentile, "
                f"over {format_count(method['error']['words'], 'word')}"
            )
        console.print(line)
    return {"clips": dict(summary.clips), "word_times": dict(summary.word_times)}


if __name__ == "__main__":
    engine.main(align)
