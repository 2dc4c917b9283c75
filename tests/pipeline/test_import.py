"""Features from elsewhere go through `dvc repro` as extracted ones do; a harmful file gets nowhere."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora.problems import read_problems
from model.data.info import read_info
from tests.support.project import SMALL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e

SHORT = SMALL | {"train.epochs": 1, "train.warmup_epochs": 0}
FILLED = {"text": 4, "audio": 15, "vision": 9}


def odd_split(name: str, count: int, aligned: bool) -> dict[str, Any]:
    """A split as published ones are at their oddest: float64, -inf, NaN, padding, strings as objects."""
    rng = np.random.default_rng(count)
    labels = np.linspace(-1, 1, count).round(1)
    split: dict[str, Any] = {"regression_labels": labels}
    for m, filled in FILLED.items():
        values = rng.normal(labels[:, None, None], 1, (count, 12 if aligned else filled + 5, 6))
        values[:, 4 if aligned else filled :] = 0
        split[m] = values
    split["audio"][::5, 1, 2] = -np.inf
    split["vision"][::7, 2] = np.nan
    split["raw_text"] = np.array([f"words of clip {i}, in {name}" for i in range(count)], object)
    split["id"] = np.array([f"{name}{i // 4}$_$clip_{i}" for i in range(count)], object)
    split |= {f"regression_labels_{m}": labels for m in "TAV"}
    if not aligned:  # and the aligned file has neither lengths nor text_bert
        split |= {f"{m}_lengths": [FILLED[m]] * count for m in ("audio", "vision")}
        split["text_bert"] = np.zeros((count, 3, 9))
        split["text_bert"][:, :2, :4] = 1
    return split


@pytest.mark.parametrize("aligned", [False, True])
def test_odd_features_are_imported_trained_and_evaluated(make_project, tmp_path, aligned):
    clips = {"train": 32, "valid": 8, "test": 0 if aligned else 16}
    content = {name: odd_split(name, count, aligned) for name, count in clips.items()}
    path = tmp_path / "features.pkl"
    path.write_bytes(pickle.dumps(content, protocol=4))
    settings = {"prepare.layout": "mmsa_pickle", "prepare.root": str(path), "prepare.label_range": [-1, 1]}
    settings |= {"prepare.corpus": "odd", "evaluate.split": "valid" if aligned else "test"}
    project = make_project(tmp_path / "project", SHORT | settings)
    ran = project.repro()
    assert "prepare" in ran and "evaluate" in ran
    info = read_info(project.folder / "data/dataset")
    assert info.clips == clips
    assert {entry.extractor for entry in info.modalities.values()} == {f"{m}.imported" for m in FILLED}
    first = pq.read_table(project.folder / "data/dataset/train").slice(0, 1).to_pylist()[0]
    assert first["label_audio"] == -1 and first["text"] == "words of clip 0, in train"
    assert len(first["audio_values"]) == (4 if aligned else 15)
    assert first["audio_values"][1][2] == 0
    errors = [p.error for p in read_problems([project.folder / "data/problems.parquet"]) if p.modality == "audio"]
    assert errors == ["NotFinite"] * sum(-(-count // 5) for count in clips.values())
    assert pq.read_table(project.folder / "predictions.parquet").num_rows == (8 if aligned else 16)
    assert project.repro() == []


class Harm:
    """Pickles as a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


def test_a_harmful_file_ends_the_stage_with_its_reason_and_leaves_nothing(make_project, tmp_path):
    content = {"train": odd_split("train", 8, False)}
    content["train"]["id"] = np.array([*content["train"]["id"][:-1], Harm(tmp_path / "ran")], object)
    (tmp_path / "features.pkl").write_bytes(pickle.dumps(content, protocol=4))
    settings = {"prepare.layout": "mmsa_pickle", "prepare.root": str(tmp_path / "features.pkl")}
    project = make_project(tmp_path / "project", SHORT | settings)
    done = project.run("python", "-m", "flows.prepare", DASHFUSION_SERVER="off")
    assert done.returncode == 1
    assert f"{os.system.__module__}.system" in done.stdout and "Nothing of it was run" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists() and not (project.folder / "data/manifest.parquet").exists()
