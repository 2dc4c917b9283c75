"""params.yaml is checked as a whole before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from flows.config.params import ParamsError, check_params, load_params
from model.config import ModelConfig, TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture
def values() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_the_committed_parameters_are_valid(values):
    params = check_params(values, "params.yaml")
    assert params.train.seeds and params.prepare.corpus == "demo_en"
    assert params.paths.manifest == Path("data/manifest.parquet")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epoch", 3, "train.epoch: no such key; did you mean 'epochs'?"),
        ("model.bottleneck_token", 4, "did you mean 'bottleneck_tokens'?"),
        ("extract.vision.option", {}, "did you mean 'options'?"),
        ("prepare.layout", "pickle", "prepare.layout"),
        ("transcribe.modell", "whisper", "did you mean 'model'?"),
        ("transcribe.model", "", "transcribe.model is empty"),
        ("transcribe.segments", "labels.csd", "name it as transcribe.word_times"),
        ("extract.max_failed_fraction", 2, "[0, 1]"),
        ("prepare.label_range", [-2, 2], "[-3, 3] or [-1, 1]"),
        ("train.epochs", "many", "train.epochs"),
        ("compare.trial", 3, "did you mean 'trials'?"),
        ("compare.trials", -1, "compare: trials must be 0 or more, found -1"),
        ("compare.epochs", 0, "epochs must be 1 or more"),
        ("compare.seeds", [0, 1], "name at least 3"),
        ("compare.seeds", [0, 1, 2**32 - 1], "from 0 to 4294967294"),
        ("compare.seeds", [0, 1, 1, 2], "name each once"),
        ("compare.models", ["text", "text"], "name each once"),
        ("compare.models", ["text", "late_fusio"], "there is no network 'late_fusio'; did you mean 'late_fusion'?"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(values, key, value, expected):
    place = values
    *path, last = key.split(".")
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(ParamsError) as error:
        check_params(values, "params.yaml")
    assert expected in str(error.value)


def test_every_complaint_is_listed_at_once(values):
    values["train"]["epoch"] = 1
    values["model"]["dims"] = 1
    with pytest.raises(ParamsError) as error:
        check_params(values, "params.yaml")
    assert "train.epoch" in str(error.value) and "model.dims" in str(error.value)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="project's folder"):
        load_params(tmp_path / "params.yaml")


def test_broken_yaml_is_told_with_its_place(tmp_path):
    (tmp_path / "params.yaml").write_text("train: [1, 2\nmodel: 3\n")
    with pytest.raises(ParamsError, match="line 2"):
        load_params(tmp_path / "params.yaml")


def test_every_option_of_the_network_and_its_training_can_be_used():
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    defaults = {"model": asdict(ModelConfig()), "train": asdict(TrainConfig())}

    def absent(known, given, place):
        for key, value in known.items():
            if key not in given:
                yield f"{place}.{key}"
            elif isinstance(value, dict):
                yield from absent(value, given[key], f"{place}.{key}")

    assert not [key for block, known in defaults.items() for key in absent(known, params[block], block)]
