"""The outlier test: a far clip is found with its modality, and a checkpoint keeps what the test needs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.checkpoint.io import load_checkpoint, read_checkpoint_info
from model.config import MODALITIES, ModelConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluation.inference import infer
from model.evaluation.outliers import (
    MIN_CLIPS,
    SIGNIFICANCE,
    clip_vectors,
    detect_outliers,
    fit_density,
    sample_rows,
)
from model.predict import Predictor
from model.train import train

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu")


def make_vectors(clips: int, seed: int, size: int = 40) -> dict[str, np.ndarray]:
    """Correlated vectors of three modalities."""
    rng = np.random.default_rng(seed)
    mixing = {m: np.random.default_rng(i).normal(size=(6, size)) for i, m in enumerate(MODALITIES)}
    return {
        m: (rng.normal(size=(clips, 6)) @ mixing[m] + rng.normal(size=(clips, size)) + 5).astype(np.float32)
        for m in MODALITIES
    }


def test_clips_like_the_validation_clips_are_seldom_outliers():
    density = fit_density(make_vectors(60, 0), make_vectors(200, 1))  # fewer clips than entries of a vector
    found = detect_outliers(density, make_vectors(2000, 2))
    share = np.mean([bool(test.modalities) for test in found])
    assert share == pytest.approx(SIGNIFICANCE, abs=0.03)
    assert {test.clips for test in found} == {200}
    assert all(bool(test.modalities) == (test.p_value <= SIGNIFICANCE) for test in found)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_far_clip_is_found_with_the_modality_that_is_far(modality):
    density = fit_density(make_vectors(60, 0), make_vectors(100, 1))
    vectors = make_vectors(20, 2)
    vectors[modality] = vectors[modality] + 10
    for test in detect_outliers(density, vectors):
        assert modality in test.modalities and test.p_value == pytest.approx(1 / 101)


def test_permuted_features_are_found_though_each_is_in_its_range():
    density = fit_density(make_vectors(300, 0), make_vectors(100, 1))
    vectors = make_vectors(50, 2)
    vectors["audio"] = np.random.default_rng(0).permutation(vectors["audio"], axis=1)
    assert np.mean(["audio" in test.modalities for test in detect_outliers(density, vectors)]) > 0.9


def test_a_clip_is_compared_with_those_that_have_its_modalities():
    valid = make_vectors(60, 1)
    valid["text"][:25] = np.nan
    valid["vision"][25:] = np.nan
    density = fit_density(make_vectors(60, 0), valid)
    clips = make_vectors(4, 2)
    clips["vision"][0] = clips["text"][1] = clips["vision"][2] = clips["text"][2] = np.nan
    counts = [test and test.clips for test in detect_outliers(density, clips)]
    assert counts == [35, 25, 60, None]  # no validation clip has all three


def test_without_enough_clips_there_is_no_test():
    few = fit_density(make_vectors(60, 0), make_vectors(MIN_CLIPS - 1, 1))
    assert detect_outliers(few, make_vectors(2, 2)) == [None, None]
    assert detect_outliers({}, make_vectors(2, 2)) == [None, None]
    one = {m: values[:1] for m, values in make_vectors(60, 0).items()}
    assert fit_density(one, make_vectors(60, 1)) == {}


def test_constant_features_and_rounding_are_no_reason():
    train_vectors, valid, clips = make_vectors(60, 0), make_vectors(60, 1), make_vectors(5, 2)
    for vectors in (train_vectors, valid, clips):
        vectors["vision"][:, :10] = 1000
    density = fit_density(train_vectors, valid)
    expected = detect_outliers(density, clips)
    clips["vision"][:, :10] += 1e-3
    assert detect_outliers(density, clips) == expected and len({test.p_value for test in expected}) > 1


def test_large_corpora_are_sampled():
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(10_000)
    assert len(rows) == len(set(rows.tolist())) == 2000 and (np.diff(rows) > 0).all()


@pytest.fixture(scope="module")
def data(dataset_writer, tmp_path_factory):
    counts = {"train": 120, "valid": 100, "test": 30}
    return dataset_writer(tmp_path_factory.mktemp("data"), clips=counts, missing=False)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("out"), SMALL, SHORT, seed=0).best


def features(data) -> list[dict[str, np.ndarray]]:
    table = ClipTable.read(data, "test", 32)
    return [
        {m: s.values[a : a + n] for m, s in table.sequences.items() for a, n in [(s.starts[row], s.lengths[row])]}
        for row in range(len(table))
    ]


def test_the_density_is_in_the_checkpoint(data, trained):
    network, info = load_checkpoint(trained)
    vectors = [
        clip_vectors(table, infer(network, table, MODALITIES).pooled)
        for table in (ClipTable.read(data, split, 32) for split in ("train", "valid"))
    ]
    expected = fit_density(*vectors)
    assert info.density.keys() == expected.keys() and info.density["text.mean"].shape == (16 + 2 * 12,)
    for name, values in expected.items():
        np.testing.assert_allclose(info.density[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert "density.safetensors" in json.loads((trained / "checkpoint.json").read_text())["sha256"]
    assert read_checkpoint_info(trained).density == {}  # read without the weights


def test_a_score_of_an_outlier_has_no_interval_and_says_why(data, trained):
    predictor = Predictor.load(trained, device="cpu")
    results = [predictor.from_features(clip) for clip in features(data)]
    like = [result for result in results if not result.score.outlier_test.modalities]
    assert len(like) > 20
    assert all(r.score.interval and "unlike_training" not in {w.code for w in r.warnings} for r in like)
    for m in MODALITIES:
        clip = features(data)[0]
        result = predictor.from_features(clip | {m: 5 * clip[m] + 20})
        assert m in result.score.outlier_test.modalities and result.score.interval is None
        assert result.warnings[0].code == "unlike_training" and m in result.warnings[0].message
        assert "like the validation clips" in next(w.message for w in result.warnings if w.code == "no_interval")
        assert result.to_dict()["interval"] is None and m in result.to_dict()["outlier_test"]["modalities"]


def test_a_checkpoint_without_a_density_says_nothing(data, trained, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    description = json.loads((trained / "checkpoint.json").read_text())
    del description["sha256"]
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    clip = features(data)[0]
    result = Predictor(tmp_path, device="cpu").from_features(clip | {"audio": 5 * clip["audio"] + 20})
    assert result.score.outlier_test is None and result.score.interval
    assert (
        result.score.raw
        == Predictor(trained, device="cpu").from_features(clip | {"audio": 5 * clip["audio"] + 20}).score.raw
    )


def test_a_model_of_generated_videos_warns_of_it_first(data, trained, tmp_path):
    description = json.loads((trained / "checkpoint.json").read_text())
    for name in description["sha256"]:
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    description["dataset"]["generated"] = True
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    clip = features(data)[0]
    result = Predictor(tmp_path, device="cpu").from_features(clip | {"audio": 5 * clip["audio"] + 20})
    assert [w.code for w in result.warnings[:2]] == ["generated_training", "unlike_training"]
    assert "real people mean nothing" in result.warnings[0].message
