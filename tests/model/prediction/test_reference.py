"""The reference clip of a checkpoint tells whether features here are those of the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.predict import Predictor
from model.prediction.protocol import Segment, Steps, Video, VideoFeatures
from model.prediction.reference import _scale, difference
from model.train import train
from tests.support.datasets import DIMS

REFERENCE = {m: np.random.default_rng(3).normal(size=(10, dim)).astype(np.float32) for m, dim in DIMS.items()}


class Maker:
    """Makes the features that it is given, and counts the comparisons."""

    versions: dict[str, dict[str, str]]

    def __init__(self, reference: dict[str, np.ndarray], library: str = "2.0") -> None:
        self.reference, self.calls = reference, 0
        self.versions = {m: {"lib": library} for m in reference}

    def prepare(self):
        pass

    def make(self, videos, **options):
        steps = {m: Steps(values, np.ones(len(values), bool)) for m, values in self.reference.items()}
        return iter([VideoFeatures(1.0, "given", Segment(0.0, 1.0, "words", steps)) for _ in videos])

    def reproduce_reference(self, folder: Path) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.reference


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    """A checkpoint of a dataset with a reference clip, whose features were computed with lib 1.0."""
    from model.config import ModelConfig, TrainConfig

    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("data") / "dataset")
    description = json.loads((folder / "dataset.json").read_text())
    for entry in description["modalities"].values():
        entry["versions"] = {"lib": "1.0"}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "reference").mkdir()
    for m, values in REFERENCE.items():
        save_file({"values": values, "clip": np.zeros(3, np.uint8)}, folder / "reference" / f"{m}.safetensors")
    small = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=12)
    short = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu")
    return train(folder, tmp_path_factory.mktemp("out"), small, short, seed=0).best


@pytest.fixture
def predict(trained, tmp_path, monkeypatch):
    """Scores a video with a maker, with a cache of the test's own; returns the warnings' codes and messages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(maker: Maker, checkpoint: Path = trained, **options) -> dict[str, str]:
        monkeypatch.setattr("model.predict.find_maker", lambda: lambda *arguments, **keywords: maker)
        predictor = Predictor(checkpoint, device="cpu", **options)
        (result,) = predictor.predict([Video(checkpoint / "clip.mp4")])
        return {warning.code: warning.message for warning in result.warnings}

    return run


def changed(by: float) -> dict[str, np.ndarray]:
    return REFERENCE | {"audio": REFERENCE["audio"] + np.float32(by)}


def test_another_version_with_equal_features_is_accepted_silently_and_compared_once(predict, caplog):
    maker = Maker(changed(1e-6))
    for _ in range(2):
        assert "features_differ" not in predict(maker)
    assert maker.calls == 1 and not caplog.records
    again = Maker(REFERENCE, library="3.0")  # another environment
    predict(again)
    assert again.calls == 1


def test_features_that_differ_a_little_are_a_warning_with_the_versions(predict):
    message = predict(Maker(changed(0.2)))["features_differ"]
    assert "audio features" in message and "had lib 1.0" in message and "here are lib 2.0" in message


def test_far_other_features_are_refused_unless_allowed(predict):
    with pytest.raises(ValueError, match=r"audio features .*lib 1\.0.*lib 2\.0.*--allow-different-features"):
        predict(Maker(changed(20.0)))
    assert "features_differ" in predict(Maker(changed(20.0)), allow_different_features=True)
    with pytest.raises(ValueError, match="differ by inf"):
        predict(Maker(REFERENCE | {"vision": REFERENCE["vision"][:5]}, library="2.1"))


def test_a_checkpoint_without_a_reference_clip_works_and_says_so(predict, trained, tmp_path, caplog):
    old = shutil.copytree(trained, tmp_path / "old")
    shutil.rmtree(old / "reference")
    description = json.loads((old / "checkpoint.json").read_text())
    description["sha256"] = {k: v for k, v in description["sha256"].items() if not k.startswith("reference")}
    (old / "checkpoint.json").write_text(json.dumps(description))
    assert "features_differ" not in predict(Maker(changed(20.0)), old)
    assert "has no reference clip" in caplog.text


def test_without_a_writable_cache_it_compares_each_time(predict, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    maker = Maker(REFERENCE)
    predict(maker)
    predict(maker)
    assert maker.calls == 2


def test_a_user_without_a_home_compares_each_time(predict, monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME")
    maker = Maker(REFERENCE)
    predict(maker)
    predict(maker)
    assert maker.calls == 2


def test_a_damaged_reference_is_named(predict, trained, tmp_path):
    damaged = shutil.copytree(trained, tmp_path / "damaged")
    (damaged / "reference/audio.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"audio\.safetensors: damaged"):
        predict(Maker(REFERENCE), damaged)


def test_standardised_audio_is_compared_in_units_of_its_own_spread(tmp_path):
    values = np.random.default_rng(0).normal(5, 3, (40, 2)).astype(np.float32)
    for m in ("audio", "vision"):
        save_file({"values": values, "clip": np.zeros(1, np.uint8)}, tmp_path / f"{m}.safetensors")
    statistics = {m: {"mean": [0, 0], "std": [1, 1]} for m in ("audio", "vision")}
    description = {"dataset": {"statistics": statistics, "normalise_audio": "speaker"}}
    scales = {m: _scale(tmp_path / f"{m}.safetensors", description) for m in ("audio", "vision")}
    np.testing.assert_allclose(scales["audio"], values.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scales["vision"], [1, 1])


def test_one_step_that_differs_weighs_little_and_another_length_much():
    values = np.zeros((20, 2), np.float32)
    other = values.copy()
    other[3, 1] = 1.0
    scale = np.ones(2)
    assert difference(values, other, scale) == pytest.approx(0.05)
    assert difference(values, other[:19], scale) == pytest.approx(1 / 19)
    assert difference(values, other[:15], scale) == float("inf")
    assert difference(values, other[:, :1], scale) == float("inf")
