"""Stage `prepare`: a corpus -> the manifest. The demo's corpus is generated first, then read like any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from corpora.demo import generate
from corpora.manifest import SPLITS, Manifest, write_manifest
from corpora.problems import Problem, write_problems
from corpora.readers.csd import read_csd
from corpora.readers.mmsa_pickle import read_mmsa
from corpora.readers.raw import read_raw
from extractors.imported import write_imported
from flows.config.params import IMPORTED_LAYOUTS, Params, PrepareParams, load_params
from flows.display.console import console, progress
from flows.orchestration import engine

from prefect import flow, task  # isort: skip  (flows.orchestration.engine sets Prefect's switches before it is imported)


READERS = {"mmsa_pickle": read_mmsa, "csd": read_csd}  # of the layouts whose features are extracted already


@task
def generate_demo(params: PrepareParams, root: Path, workers: int) -> None:
    """Write the demo's mp4 files and its label.csv under `root`."""
    with progress() as bar:
        row = bar.add_task("generate demo", total=params.demo.clips, note="")
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
    """Read and check every row of the corpus; rows that cannot be used come back as problems."""
    return read_raw(
        root,
        corpus=params.corpus,
        language=params.language,
        label_range=params.label_range,
        layout=params.raw_layout,
        columns=params.raw_columns,
    )


@task
def import_corpus(params: PrepareParams, root: Path) -> tuple[Manifest, list[Problem]]:
    """Read a corpus of features, write these under `root`, and say what is in them."""
    settings = {"corpus": params.corpus, "language": params.language, "label_range": params.label_range}
    corpus = READERS[params.layout](Path(params.root).expanduser(), **settings, root=str(root))
    for remark in corpus.remarks:
        console.print(remark, markup=False)
    counts, problems = write_imported(corpus, root, params.layout)
    for modality, found in counts.items():
        said = f"{modality}: {found.clips} clips, {found.steps} steps, {found.invalid} of them not valid"
        if found.replaced:
            said += f"; {found.replaced} values of {found.replaced_clips} clips were NaN or infinite and are 0 now"
        console.print(said)
    return corpus.manifest, [*corpus.problems, *problems]


@flow(name="prepare", flow_run_name=engine.run_name, on_running=[engine.add_tags])
def prepare(params_file: Path = Path("params.yaml")) -> dict[str, int]:
    """Turn a corpus into the manifest: one checked row a clip, problems listed and never dropped in silence.

    Args:
        params_file: The parameters; every stage reads its own block of them.
    """
    params: Params = load_params(params_file)
    media = params.paths.media
    if params.prepare.layout == "demo":
        engine.call(generate_demo, params.prepare, media, params.extract.workers)
        root = media
    else:
        media.mkdir(parents=True, exist_ok=True)  # DVC wants every output of a stage to be there
        root = Path(params.prepare.root)
    if params.prepare.layout in IMPORTED_LAYOUTS:
        manifest, problems = engine.call(import_corpus, params.prepare, media)
    else:
        manifest, problems = engine.call(read_corpus, params.prepare, root)
    write_manifest(manifest, params.paths.manifest)
    write_problems(problems, params.paths.problems / "prepare.parquet")
    if not manifest.clips:
        raise ValueError(f"{root}: no usable clip in this corpus; {_first(problems)}")
    counts = Counter(clip.split for clip in manifest.clips)
    engine.publish_table("prepare-problems", map(asdict, problems), "Rows of the corpus that had a problem")
    console.print(
        f"{manifest.corpus}: {len(manifest.clips)} clips ("
        + ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        + f"), {len(problems)} problems -> {params.paths.manifest}"
    )
    return dict(counts)


def _first(problems: list[Problem]) -> str:
    return f"{len(problems)} problems, the first: {problems[0].message}" if problems else "its table is empty"


if __name__ == "__main__":
    engine.main(prepare)
