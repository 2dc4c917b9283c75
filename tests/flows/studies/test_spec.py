"""A study's file: what it may say, and how it is told what it may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flows.config.params import ParamsError, load_params
from flows.studies.spec import FOLDER, available, metric_keys, read_spec, variant_params
from model.config import AugmentConfig

ROOT = Path(__file__).parents[3]

SPEC = {
    "title": "A title",
    "question": "What is asked?",
    "variants": {"full": {}, "no alignment": {"model.alignment": False}},
    "reference": "full",
    "metrics": ["acc2", "mae"],
    "conditions": {
        "no text": {"show": ["audio", "vision"]},
        "audio missing": {"drop": "audio", "levels": [0.5, 1]},
    },
    "slices": ["text misleads"],
}


def write(folder: Path, changes: dict) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}), encoding="utf-8")
    return str(path)


def test_a_file_is_a_study_of_its_name(tmp_path):
    spec = read_spec(write(tmp_path, {}))
    assert spec.name == "mine" and spec.seeds == (0, 1, 2, 3, 4)
    assert spec.conditions["audio missing"].levels == (0.5, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "ful"}, r"reference: there is no 'ful'; did you mean 'full'\?"),
        ({"slices": ["text mislead"]}, r"did you mean 'text misleads'\?"),
        ({"colour": 1}, r"colour: Unexpected keyword argument"),
        ({"conditions": {"x": {"show": ["text"], "drop": "audio", "levels": [1]}}}, "has exactly one of show"),
        ({"conditions": {"x": {"drop": "audio"}}}, "need levels"),
        ({"conditions": {"x": {"drop": "audio", "levels": [2]}}}, "from 0 to 1"),
        ({"conditions": {"x": {"drop": "sound", "levels": [1]}}}, "text.*audio.*vision"),
        ({"conditions": {"x": {"corrupt": "audio.nois", "levels": [10]}}}, "did you mean 'audio.noise'"),
        ({"conditions": {"x": {"corrupt": "audio.spans", "levels": [0.1, 7]}}}, "audio.spans.* 7"),
        ({"checks": [{"question": "?", "metric": "acc2"}]}, "`checks` was removed; .* paired difference .* verdict"),
        ({"questions": []}, "`questions` was removed; delete it"),
        ({"pareto": {"cost": "madds", "metric": "acc5"}}, "pareto.metric: there is no 'acc5'"),
        ({"pareto": {"cost": "money", "metric": "acc2"}}, r"cost: there is no 'money'"),
        ({"seeds": [1, 1, 2]}, "each seed once"),
        ({"seeds": [1, 2]}, r"seeds: \[1, 2\]; .* at least 3"),
    ],
    ids=str,
)
def test_what_a_file_may_not_say_is_refused_with_the_way_out(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_spec(write(tmp_path, changes))


def test_an_unknown_study_is_refused_with_the_nearest_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"no study studies/ablaton.yaml: did you mean 'ablation'\?"):
        read_spec("ablaton")


def test_a_variant_changes_its_own_keys_over_the_studys_and_the_projects(project, tmp_path):
    variants = {"full": {}, "wide": {"model.dim": 64, "train.augment.noise": 0.5}}
    spec = read_spec(write(tmp_path, {"variants": variants, "base": {"train.epochs": 3, "model.dim": 32}}))
    params = load_params()
    full, wide = (variant_params(params, spec, name) for name in spec.variants)
    assert (full.model.dim, full.train.epochs, wide.model.dim, wide.train.epochs) == (32, 3, 64, 3)
    assert wide.train.augment == AugmentConfig(noise=0.5) and full.train.augment == AugmentConfig()
    assert full.paths == params.paths and full.extract == params.extract


def test_a_variant_may_be_another_network_with_its_options(project, tmp_path):
    lmf = {"model.name": "lmf", "model.options.rank": 8, "train.contrastive.weight": 0}
    spec = read_spec(write(tmp_path, {"variants": {"full": {}, "lmf": lmf}}))
    found = variant_params(load_params(), spec, "lmf").model
    assert (found.name, found.options) == ("lmf", {"rank": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.fuson": "hbf"}, r"variant 'other':\s+model.fuson: no such key; did you mean 'fusion'\?"),
        ({"model.heads": 3}, "model.heads is 3"),
        ({"model.options.rank": 8}, "model.options.rank is 8: model.name dashfusion has no options"),
        ({"extract.audio.extractor": "x"}, "extract.audio.extractor cannot be changed by a study"),
        ({"train.seeds": [1]}, "train.seeds cannot be changed .* set the seeds with the study's own key `seeds`"),
        ({"model": {}}, "model cannot be changed by a study"),
    ],
    ids=str,
)
def test_a_variant_that_cannot_be_is_refused_by_its_name(project, tmp_path, changes, message):
    spec = read_spec(write(tmp_path, {"variants": {"full": {}, "other": changes}}))
    with pytest.raises(ParamsError, match=message):
        variant_params(load_params(), spec, "other")


def test_metrics_have_the_names_of_the_label_range():
    names = ["acc2", "f1", "acc7", "mae"]
    assert metric_keys(names, (-3, 3)) == ["acc2_np", "f1_np", "acc7", "mae"]
    assert metric_keys(names, (-1, 1)) == ["acc2", "f1", "mae"], "[-1, 1] has no acc7"


def test_every_study_of_the_project_can_be_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = available()
    assert {"ablation", "bottleneck", "anchor", "missing", "noise", "text_quality"} <= set(names)
    for name in names:
        spec = read_spec(name)
        for variant in spec.variants:
            variant_params(load_params(), spec, variant)
        assert len(spec.seeds) >= 5
        assert re.fullmatch(r"[a-z_]+", name) and spec.title and spec.question.endswith("?")
        assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").isascii()
