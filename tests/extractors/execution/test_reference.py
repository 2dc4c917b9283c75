"""The reference clip goes through extraction beside the corpus, and into the feature store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from corpora.manifest import Clip
from extractors.execution.cache import reference_path
from extractors.execution.reference import reproduce_reference, save_reference
from extractors.execution.units import assemble, describe
from extractors.execution.workers import WorkerPool
from extractors.store import REFERENCE, FeatureReader

if TYPE_CHECKING:
    from pathlib import Path

JOB = "audio.librosa", {"hop_seconds": 0.064}


def test_a_store_holds_the_clip_and_its_features_which_can_be_computed_again(tmp_path, make_clip):
    make_clip(tmp_path / "a.mp4", "a", seconds=0.5)
    clips = [Clip("a", "v", "train", "en", "a.mp4", "", duration=0.5)]
    scratch = tmp_path / "scratch"
    with WorkerPool(1, 60.0) as pool:
        report = pool.run(clips, tmp_path, *JOB, scratch)
    assert report.extracted == 1 and not report.problems
    assemble(clips, tmp_path, report.meta, scratch, tmp_path / "store")
    content = load_file(tmp_path / "store" / REFERENCE)
    meta = FeatureReader(tmp_path / "store", "audio").meta
    assert meta.versions["librosa"] and content["values"].shape[1] == len(meta.feature_names)
    again = reproduce_reference(*JOB, tmp_path / "store" / REFERENCE)
    assert np.allclose(again, content["values"], atol=1e-5)


def test_another_version_of_a_library_has_a_file_of_its_own(tmp_path, monkeypatch):
    save_reference(*JOB, tmp_path)
    monkeypatch.setattr("extractors.base.metadata.version", lambda package: "99.0")
    path = reference_path(tmp_path, describe(*JOB))
    assert not path.exists()
    save_reference(*JOB, tmp_path)
    assert path.is_file() and len(list(path.parent.iterdir())) == 2


def test_a_failure_is_logged_and_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("extractors.execution.reference.extract_all", lambda extractor, sources: [ValueError("no")])
    with caplog.at_level(logging.WARNING):
        save_reference(*JOB, tmp_path)
    assert "fails on the reference clip: no" in caplog.text and not (tmp_path / "reference").exists()


def test_a_damaged_file_is_named(tmp_path):
    path: Path = tmp_path / "audio.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"audio\.safetensors: damaged"):
        reproduce_reference(*JOB, path)
