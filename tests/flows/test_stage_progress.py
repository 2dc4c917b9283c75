"""What the stages `prepare` and `evaluate` report while they work: as many steps as they announce."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from corpora.manifest import MODALITIES, read_manifest
from extractors.transcripts.table import read_transcripts
from flows import evaluate, prepare
from flows.config.params import Params, load_params
from flows.display.progress import StageProgress
from flows.report import analysis

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def bars(monkeypatch) -> list[tuple[str, float, float | None]]:
    """Description, steps done and steps in all of each bar when its stage has ended."""
    seen: list[tuple[str, float, float | None]] = []

    class Recorder(StageProgress):
        def stop(self) -> None:
            seen.extend((task.description, task.completed, task.total) for task in self.tasks)
            super().stop()

    for module in (evaluate, prepare):
        monkeypatch.setattr(module, "StageProgress", Recorder)
    return seen


@pytest.fixture
def load(project) -> Callable[..., Params]:
    """The project's parameters, with changes of one block."""

    def changed(block: str, **values: Any) -> Params:
        params = load_params()
        return replace(params, **{block: replace(getattr(params, block), **values)})

    return changed


def test_prepare_counts_the_clips_whose_media_it_reads(load, demo, bars):
    prepare.read_corpus.fn(load("prepare", layout="mmsa", root=str(demo)).prepare, demo)
    assert bars == [("read media", 5, 5)]


def test_prepare_counts_the_sequences_that_it_imports(load, project, bars):
    steps = {m: np.ones((4, 2, 3), np.float32) for m in MODALITIES}
    content = {"train": steps | {"id": ["a$_$1", "a$_$2", "b$_$1", "b$_$2"], "regression_labels": np.ones(4)}}
    (project / "mine.pkl").write_bytes(pickle.dumps(content))
    prepare.import_corpus.fn(load("prepare", layout="mmsa_pickle", root="mine.pkl").prepare, Path("data/generated"))
    assert bars == [("import features", 12, 12)]


def test_evaluate_counts_predictions_and_the_parts_of_the_report(load, project, corpus, bars):
    (project / "models").mkdir()
    (project / "models/seed-0").symlink_to(corpus / "models-unaligned")
    tables = {name: corpus / f"{name}.parquet" for name in ("manifest", "transcripts")}
    params = load("paths", dataset=corpus / "unaligned", models=Path("models"), features=corpus / "features", **tables)
    manifest, transcripts = read_manifest(tables["manifest"]), read_transcripts(tables["transcripts"])
    result = evaluate.measure.fn(params)
    clips = len(result.predictions)
    assert bars == [("evaluate", 4 * clips, 4 * clips)], "once with all modalities, and once without each"
    begun: list[str] = []
    found = analysis.analyse(params, result, manifest, transcripts, begun.append)
    assert tuple(begun) == tuple(found) == analysis.PARTS
