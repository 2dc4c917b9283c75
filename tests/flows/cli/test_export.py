"""`dashfusion export` says what it wrote, and what a user can do where there is nothing to write."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from corpora.manifest import MODALITIES, write_manifest
from corpora.readers.mmsa_pickle import read_mmsa
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.imported import write_imported
from extractors.transcripts.transcribe import TranscribeConfig, transcribe
from flows.cli.app import app

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml and nothing else."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dataset(project) -> Path:
    """Three clips, one of them without a label, in data/dataset."""
    split = {m: np.ones((3, 4, 2)) for m in MODALITIES} | {
        "id": ["a$_$1", "a$_$2", "b$_$1"],
        "raw_text": ["one", "two", "three"],
        "regression_labels": [1.0, np.nan, -1.0],
    }
    (project / "in.pkl").write_bytes(pickle.dumps({"train": split}))
    corpus = read_mmsa(project / "in.pkl", corpus="a", language="en", label_range=(-3.0, 3.0), root=str(project))
    write_imported(corpus, project, "mmsa_pickle")
    write_manifest(corpus.manifest, project / "manifest.parquet")
    transcribe(project / "manifest.parquet", project / "words.parquet", TranscribeConfig(), project / "scratch", 1.0)
    stores = {m: project / "features" / m for m in MODALITIES}
    out = project / "data" / "dataset"
    align(project / "manifest.parquet", project / "words.parquet", stores, out, AlignConfig())
    return out


def test_what_was_written_is_said(dataset, project):
    done = CliRunner().invoke(app, ["export", "mmsa", "out.pkl"])
    assert done.exit_code == 0, done.output
    assert "out.pkl: 2 train, 0 valid, 0 test; text 4 x 2, audio 4 x 2, vision 4 x 2; without text_bert" in done.output
    assert "left out: 1 clip without a label" in done.output
    assert pickle.loads((project / "out.pkl").read_bytes())["train"]["id"] == ["a$_$1", "b$_$1"]
    done = CliRunner().invoke(app, ["export", "datasets", "out"])
    assert done.exit_code == 0 and "out: 3 train" in done.output
    assert (project / "out" / "data" / "train-00000-of-00001.parquet").is_file()


@pytest.mark.parametrize("command", ["mmsa", "datasets"])
def test_without_a_dataset_it_ends_with_the_stage_that_makes_one(project, command):
    done = CliRunner().invoke(app, ["export", command, "out"])
    assert done.exit_code == 1 and "dashfusion align" in done.output
    assert not (project / "out").exists()
