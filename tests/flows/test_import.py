"""The stages `prepare` and `extract` of a corpus whose features are extracted already."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml

from corpora.manifest import MODALITIES, read_manifest
from corpora.problems import read_problems
from corpora.readers.restricted_pickle import RefusedPickleError
from extractors.store import FeatureReader
from flows.extract import extract
from flows.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with params.yaml, which reads features.pkl."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["prepare"] |= {"layout": "mmsa_pickle", "root": "features.pkl", "corpus": "mine"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pickle(path: Path, modalities: tuple[str, ...] = MODALITIES) -> dict[str, np.ndarray]:
    split = {m: np.random.default_rng(i).uniform(1, 2, (3, 5, 4)) for i, m in enumerate(modalities)}
    split["audio"][1, 2] = -np.inf
    named = {"id": ["a$_$1", "a$_$2", "b$_$1"], "raw_text": ["one", "two", "three"], "regression_labels": [1, 2, -1]}
    path.write_bytes(pickle.dumps({"train": split | named}))
    return split


def test_features_that_came_along_take_the_place_of_extracted_ones(project, capsys):
    given = write_pickle(project / "features.pkl")
    assert prepare.fn() == {"train": 3}
    said = capsys.readouterr().out
    assert "is not one that MMSA publishes" in said
    assert "audio: 3 clips, 15 steps, 1 of them not valid; 4 values of 1 clip were NaN or infinite" in said
    manifest = read_manifest(Path("data/manifest.parquet"))
    assert [clip.clip_id for clip in manifest.clips] == ["a/1", "a/2", "b/1"] and manifest.root == "data/generated"
    problems = read_problems([Path("data/problems/prepare.parquet")])
    assert [(p.clip_id, p.stage, p.modality, p.error) for p in problems] == [("a/2", "prepare", "audio", "NotFinite")]
    for modality in ("audio", "vision"):
        assert extract.fn(modality)["rows"] == 3
        assert f"{modality}: as it came with the corpus, not by {modality}." in capsys.readouterr().out
        stored = FeatureReader(Path("data/features") / modality, modality)["b/1"]
        assert np.array_equal(stored.values, given[modality][2].astype(np.float32))
        assert read_problems([Path(f"data/problems/extract-{modality}.parquet")]) == []


def test_another_corpus_leaves_nothing_of_the_one_before(project):
    write_pickle(project / "features.pkl")
    prepare.fn()
    write_pickle(project / "features.pkl", ("audio",))
    prepare.fn()
    assert [path.name for path in Path("data/generated/features").iterdir()] == ["audio"]


def test_a_pickle_that_would_run_something_stops_the_stage_before_it_writes(project):
    (project / "features.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(RefusedPickleError, match=r"features\.pkl: refused: .*os\.system.*Nothing of it was run"):
        prepare.fn()
    assert not Path("ran").exists() and not Path("data/manifest.parquet").exists()
