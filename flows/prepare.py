"""Stage `prepare`: corpus -> manifest. The demo corpus is generated first, then read like any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from prefect import flow, task

from corpora.demo.generate import generate
from corpora.manifest import SPLITS, Manifest, write_manifest
from corpora.problems import Problem, check_failures, write_problems
from corpora.readers.csd import read_csd
from corpora.readers.mmsa_pickle import read_mmsa
from corpora.readers.raw import UNREADABLE, read_raw
from extractors.imported import write_imported
from flows.config.encoder import check_encoder
from flows.config.params import IMPORTED_LAYOUTS, Params, PrepareParams, load_params
from flows.display.console import console
from flows.display.metrics import format_count
from flows.display.progress import StageProgress
from flows.orchestration import engine

READERS = {"mmsa_pickle": read_mmsa, "csd": read_csd}
"""Readers of `IMPORTED_LAYOUTS`."""


@task
def generate_demo(params: PrepareParams, root: Path, workers: int) -> None:
    """Write the demo's mp4 files and its label.csv under `root`."""
    with StageProgress() as bar:
        row = bar.add_task("generate demo", total=params.demo.clips)
        generate(
            root,
            params.demo,
            params.language,
            progress=lambda n: bar.advance(row, n),
            workers=workers,
            limit=params.label_range[1],
        )


@task
def read_corpus(params: PrepareParams, root: Path) -> tuple[Manifest, list[Problem]]:
    """Read and check every row of the corpus; rows that cannot be used are returned as problems."""
    with StageProgress() as bar:
        row = bar.add_task("read media", total=None)
        return read_raw(
            root,
            corpus=params.corpus,
            language=params.language,
            label_range=params.label_range,
            layout=params.raw_layout,
            columns=params.raw_columns,
            encoding=params.encoding,
            split=params.split,
            table=params.table,
            progress=lambda done, total: bar.update(row, completed=done, total=total),
        )


@task
def import_corpus(params: PrepareParams, root: Path) -> tuple[Manifest, list[Problem]]:
    """Read a corpus of extracted features, write these under `root`, and print their counts."""
    with StageProgress("sequences") as bar:
        row = bar.add_task("import features", total=None)
        corpus = READERS[params.layout](
            Path(params.root).expanduser(),
            corpus=params.corpus,
            language=params.language,
            label_range=params.label_range,
            root=str(root),
        )
        bar.update(row, total=len(corpus.feature_names) * len(corpus.manifest.clips))
        counts, problems = write_imported(corpus, root, params.layout, progress=lambda n: bar.advance(row, n))
    for remark in corpus.remarks:
        console.print(remark, markup=False)
    for modality, count in counts.items():
        clips = format_count(count.clips, "clip")
        line = f"{modality}: {clips}, {format_count(count.steps, 'step')}, {count.invalid} of them not valid"
        if count.replaced:
            verb, clips = "was" if count.replaced == 1 else "were", format_count(count.replaced_clips, "clip")
            line += f"; {format_count(count.replaced, 'value')} of {clips} {verb} NaN or infinite and are 0 now"
        console.print(line)
    return corpus.manifest, [*corpus.problems, *problems]


@flow(name="prepare", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def prepare(params_file: Path = Path("params.yaml")) -> dict[str, int]:
    """Write the manifest of a corpus, one checked row a clip, and list the rows that had a problem.

    Files that cannot be read are left out. If they are more than `extract.max_failed_fraction`, the stage stops.

    Args:
        params_file: Parameters of all stages.
    """
    params: Params = load_params(params_file)
    check_encoder(params, str(params_file))
    media = params.paths.media
    if params.prepare.layout == "demo":
        engine.call(generate_demo, params.prepare, media, params.extract.workers)
        root = media
    else:
        media.mkdir(parents=True, exist_ok=True)  # DVC requires every output of a stage to exist
        root = Path(params.prepare.root)
    if params.prepare.layout in IMPORTED_LAYOUTS:
        manifest, problems = engine.call(import_corpus, params.prepare, media)
    else:
        manifest, problems = engine.call(read_corpus, params.prepare, root)
    manifest = replace(manifest, generated=params.prepare.layout == "demo")
    write_manifest(manifest, params.paths.manifest)
    table = params.paths.problems / "prepare.parquet"
    write_problems(problems, table)
    unreadable = [problem for problem in problems if problem.error == UNREADABLE]
    check_failures(unreadable, len(manifest.clips) + len(unreadable), params.extract.max_failed_fraction, table)
    if not manifest.clips:
        raise ValueError(f"{root}: no usable clip in this corpus; {_first(problems)}")
    counts = Counter(clip.split for clip in manifest.clips)
    engine.publish_table("prepare-problems", map(asdict, problems), "Rows of the corpus that had a problem")
    console.print(
        f"{manifest.corpus}: {format_count(len(manifest.clips), 'clip')} ("
        + ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        + f"), {format_count(len(problems), 'problem')} -> {params.paths.manifest}"
    )
    if params.prepare.split:
        console.print(f"splits drawn: {params.prepare.split}")
    if problems:
        console.print("`dashfusion problems` lists what could not be used, and why")
    return dict(counts)


def _first(problems: list[Problem]) -> str:
    if not problems:
        return "its table is empty"
    return f"{format_count(len(problems), 'problem')}, the first: {problems[0].message}"


if __name__ == "__main__":
    engine.main(prepare)
