"""The flow `study`: trains the variants in worker processes, and compares them on every view of the split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flows import study as flow
from flows.config.params import load_params
from flows.studies.spec import read_spec, variant_params

ROOT = Path(__file__).parents[2]
STUDY = {
    "title": "A small study",
    "question": "Does it run?",
    "base": {"train.epochs": 1, "train.warmup_epochs": 0, "train.device": "cpu", "model.dim": 16, "model.heads": 4,
             "model.encoder_layers": 1, "model.max_positions": 32},
    "seeds": [0, 1, 2],
    "metrics": ["acc2", "mae", "corr"],
    "reference": "full",
    "variants": {"full": {}, "no alignment": {"model.alignment": False}},
    "conditions": {
        "no text": {"show": ["audio", "vision"]},
        "audio missing": {"drop": "audio", "levels": [0, 0.5, 1]},
    },
    "slices": ["text misleads"],
    "pareto": {"cost": "fusion_madds", "metric": "acc2"},
}  # fmt: skip


def test_trainings_are_compared_with_the_reference_on_every_view(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "scratch_folder", lambda: tmp_path / "scratch")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    params, spec = load_params(ROOT / "params.yaml"), read_spec(str(tmp_path / "mine.yaml"))
    monkeypatch.chdir(dataset.parent)  # outputs lie in the project
    params = replace(params, paths=replace(params.paths, dataset=Path(dataset.name)))
    trials = [flow.Trial(v, seed, variant_params(params, spec, v)) for v in spec.variants for seed in spec.seeds]
    result = flow._run_trials(params, spec, trials, workers=1)
    assert (result.split, result.clips) == ("valid", 8), "the test split is not looked at"
    assert result.metrics[1:] == ["mae", "corr"] and result.pareto[0] == "fusion_madds"
    for place in ({}, {"condition": "no text"}, {"condition": "audio missing", "level": 0.5}):
        difference = result.get("no alignment", "mae", "difference", **place)
        assert difference.verdict in ("better", "worse", "undecided")
        assert result.verdict(difference) == "no verdict", "one epoch teaches nothing"
    assert result.refusal.startswith("No verdicts. The reference, full, is ")
    clean = result.get("full", "mae").value
    mean = result.baselines["mean_label"]
    assert mean["mae"] + mean["mae_difference"] == pytest.approx(clean)
    assert result.get("no alignment", "mae", "area_difference", condition="audio missing").interval
    clean, none_missing = result.get("full", "mae"), result.get("full", "mae", condition="audio missing", level=0.0)
    assert (clean.value, clean.interval) == (none_missing.value, none_missing.interval)
    published = []
    monkeypatch.setattr(flow.engine, "publish_table", lambda key, rows, title: published.extend(rows))
    flow.publish(result)
    assert {(row["variant"], row["verdict"] != "") for row in published if row["metric"] == "mae"} == {
        ("full", False), ("no alignment", True)
    }  # fmt: skip
