"""The baselines against which a model is measured: fitted on train alone, and compared clip by clip."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.data.clips import ClipTable
from model.evaluation.baselines import MAJORITY, MEAN, MEDIAN, RIDGE, Ridge, compare_with_baselines, fit_baselines
from model.evaluation.metrics import evaluate_metrics

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)
ALL = {MAJORITY, MEAN, MEDIAN, RIDGE}


def labelled(**by_split):
    """A `change` that gives splits these labels."""

    def change(split, table):
        labels = by_split.get(split)
        if labels is None:
            return table
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.float32()))

    return change


def compare(dataset, prediction_SN, split="test", **options):
    table = ClipTable.read(dataset, split, 32)
    prediction_SN = np.atleast_2d(prediction_SN).astype(np.float64)
    baselines = fit_baselines(dataset, split, **options)
    return compare_with_baselines(prediction_SN, table.labels, table.speakers, table.info.label_range, baselines)


@pytest.mark.parametrize("label_range", [WIDE, UNIT])
def test_constants_come_from_the_training_labels_and_are_scored_as_any_model(dataset_writer, tmp_path, label_range):
    labels = [-1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 1.0, None, None]
    test = [1.0, -1.0, 0.5, 0.5, None, 0.0]
    change = labelled(train=labels, test=test)
    counts = {"train": 10, "valid": 2, "test": 6}
    dataset = dataset_writer(tmp_path, clips=counts, label_range=label_range, change=change)
    found = fit_baselines(dataset, "test").prediction
    # 0 counts as not positive only where Acc-2 has it: 3 of 5 polar labels are positive, 3 of 8 of all
    majority = 1.0 if label_range == WIDE else -1.0
    assert found[MAJORITY].tolist() == [majority] * 6
    assert found[MEAN] == pytest.approx(0.5 / 8) and found[MEDIAN].tolist() == [0.0] * 6
    compared = compare(dataset, np.zeros(6))
    known = np.array([value is not None for value in test])
    key = "acc2_np" if label_range == WIDE else "acc2"
    for name in ALL:
        expected = evaluate_metrics(
            found[name][known].astype(np.float32), np.array(test, np.float32)[known], label_range
        )
        assert compared[name][key] == pytest.approx(expected[key]), name
        if name == MAJORITY:
            assert "mae" not in compared[name], "a class has no score"
        else:
            assert compared[name]["mae"] == pytest.approx(expected["mae"])


def test_no_baseline_sees_the_labels_that_it_is_measured_by(dataset_writer, tmp_path):
    for name, value in (("a", 3.0), ("b", -3.0)):
        dataset_writer(tmp_path / name, change=labelled(valid=[value] * 8, test=[value] * 8))
    a, b = (fit_baselines(tmp_path / name, "test").prediction for name in ("a", "b"))
    assert all(np.array_equal(a[name], b[name]) for name in ALL) and set(a) == ALL


def test_text_is_pooled_over_the_visible_steps_of_every_part(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path, change=mask_text)
    path = dataset / "test/part-00000.parquet"
    table = pq.read_table(path)
    before = fit_baselines(dataset, "test")
    pq.write_table(table.slice(3), dataset / "test/part-00001.parquet")
    pq.write_table(table.slice(0, 3), path)
    after = fit_baselines(dataset, "test")
    np.testing.assert_allclose(after.prediction[RIDGE], before.prediction[RIDGE], atol=1e-9)
    # The same, from the arrays that the network is shown
    pooled = {}
    for split in ("train", "test"):
        batch = ClipTable.read(dataset, split, 32).batch(np.arange(24 if split == "train" else 8))
        value_BTD, mask_BT = batch.values["text"].numpy().astype(np.float64), batch.masks["text"].numpy()
        with np.errstate(invalid="ignore"):
            pooled[split] = (value_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1)[:, None]
    label_n = ClipTable.read(dataset, "train", 32).labels.astype(np.float64)
    known_n = np.isfinite(pooled["train"]).all(1)
    expected_N = Ridge.fit(pooled["train"][known_n], label_n[known_n]).predict(pooled["test"])
    without_N = np.isnan(expected_N)
    assert without_N.tolist() == [True, False, False, False, False, False, False, True]
    np.testing.assert_allclose(after.prediction[RIDGE][~without_N], expected_N[~without_N], atol=1e-6)
    assert after.prediction[RIDGE][without_N] == pytest.approx(label_n.mean()), "no text: the mean label"


def mask_text(split, table):
    """Hide the last text step of every clip of several steps, whose values are far off."""
    masks = [[*[True] * (len(m) - 1), len(m) == 1] if m else [] for m in table["text_mask"].to_pylist()]
    values = table["text_values"].to_pylist()
    for clip in values:
        if len(clip) > 1:
            clip[-1] = [1000.0] * 12
    for name, new in (("text_mask", masks), ("text_values", values)):
        at = table.column_names.index(name)
        new = [[np.asarray(step, np.float16) for step in clip] for clip in new] if name == "text_values" else new
        table = table.set_column(at, name, pa.array(new, table.schema.field(name).type))
    return table


def test_the_closed_form_is_that_of_leaving_each_clip_out(monkeypatch):
    rng = np.random.default_rng(0)
    feature_nD = rng.normal(size=(30, 4)) * [1, 5, 0.1, 1] + 3
    feature_nD[:, 3] = 7.0  # constant
    label_n = feature_nD @ [0.5, 0.1, 2.0, 0.0] + rng.normal(size=30)
    found = Ridge.fit(feature_nD, label_n)

    # Plain: standardise once, then solve the normal equations without each clip, intercept unpenalised
    scaled = (feature_nD[:, :3] - feature_nD[:, :3].mean(0)) / feature_nD[:, :3].std(0)
    with_one = np.column_stack([scaled, np.ones(30)])

    def solve(rows, strength):
        gram = with_one[rows].T @ with_one[rows] + np.diag([strength] * 3 + [0.0])
        return np.linalg.solve(gram, with_one[rows].T @ label_n[rows])

    def left_out(strength):
        others = [np.delete(np.arange(30), i) for i in range(30)]
        errors = [abs(label_n[i] - with_one[i] @ solve(rows, strength)) for i, rows in enumerate(others)]
        return np.mean(errors)

    strengths = np.logspace(-3, 6, 37)
    assert found.strength == strengths[np.argmin([left_out(strength) for strength in strengths])]
    np.testing.assert_allclose(found.predict(feature_nD), with_one @ solve(np.arange(30), found.strength))
    assert found.weight_D[3] == 0


def test_a_model_that_answers_right_is_better_and_one_that_does_not_is_worse(dataset_writer, tmp_path):
    by_video = {"train": 30, "valid": 4, "test": 40}
    dataset = dataset_writer(tmp_path, clips=by_video, change=ten_videos, missing=False)
    label_N = ClipTable.read(dataset, "test", 32).labels
    right = compare(dataset, label_N)
    assert right["verdict"] == "better" and right["hardest"] == RIDGE, "text tells the labels of this dataset"
    for name in (MEAN, MEDIAN, RIDGE):
        low, high = right[name]["mae_interval"]
        assert low < right[name]["mae_difference"] < high < 0
        assert right[name]["mae_difference"] == pytest.approx(-right[name]["mae"])
    wrong = compare(dataset, -label_N)
    assert wrong["verdict"] == "worse" and wrong["hardest"] == RIDGE
    assert compare(dataset, np.zeros(40))["hardest"] == RIDGE
    no_text = compare(dataset, np.zeros(40), text=False)
    assert no_text["verdict"] == "undecided" and no_text["undefined"] == {RIDGE: "the model does not use text"}
    seeds = compare(dataset, [label_N, label_N * 0.99, label_N * 1.01])
    assert seeds["verdict"] == "better"
    mean = np.mean([np.abs(label_N * f).mean() for f in (0, 0.01, 0.01)])
    assert seeds[MEAN]["mae"] + seeds[MEAN]["mae_difference"] == pytest.approx(mean, rel=1e-4)
    assert json.loads(json.dumps(seeds)) == seeds, "as it is read again"
    one_bad = compare(dataset, [label_N, label_N, -label_N])
    assert one_bad["verdict"] == "undecided", "another seed might be the bad one"


def ten_videos(split, table):
    """The clips as those of ten videos."""
    videos = pa.array([f"{split}-{i % 10}" for i in range(len(table))])
    return table.set_column(table.column_names.index("video_id"), "video_id", videos)


def test_few_clips_decide_nothing(dataset_writer, tmp_path):
    """Two clips, both far better: an interval of resamples alone would exclude 0, but tells nothing."""
    dataset = dataset_writer(tmp_path, clips={"train": 24, "valid": 2, "test": 2}, missing=False)
    label_N = ClipTable.read(dataset, "test", 32).labels
    assert compare(dataset, label_N)["verdict"] == "undecided"
    dataset_writer(tmp_path, clips={"train": 24, "valid": 2, "test": 1}, missing=False)
    found = compare(dataset, ClipTable.read(dataset, "test", 32).labels)
    assert found["verdict"] == "undecided" and found[MEAN]["mae_interval"] is None
    assert not any("acc2_np" in found[name] for name in ALL), "one clip has no accuracy"


def test_what_cannot_be_computed_says_why(dataset_writer, tmp_path):
    one_class = dataset_writer(tmp_path / "one", change=labelled(test=[1.0] * 8))
    assert not any("acc2_np" in compare(one_class, np.zeros(8))[name] for name in ALL)
    none = dataset_writer(tmp_path / "none", change=labelled(test=[None] * 8))
    assert compare(none, np.zeros(8)) == {"undefined": dict.fromkeys([*fit_order()], "no labelled clip")}
    untrained = dataset_writer(tmp_path / "untrained", change=labelled(train=[None] * 24))
    assert compare(untrained, np.zeros(8)) == {
        "undefined": dict.fromkeys(fit_order(), "the training split has no labelled clip")
    }
    silent = dataset_writer(tmp_path / "silent", change=no_text)
    reason = "fewer than two labelled training clips have text features"
    found = compare(silent, np.zeros(8))
    assert found["undefined"] == {RIDGE: reason} and found["hardest"] in (MEAN, MEDIAN)


def fit_order():
    return (MAJORITY, MEAN, MEDIAN, RIDGE)


def no_text(split, table):
    for i, field in enumerate(table.schema):
        if field.name in ("text_values", "text_mask", "text_start", "text_end"):
            table = table.set_column(i, field.name, pa.array([[]] * len(table), field.type))
    return table
