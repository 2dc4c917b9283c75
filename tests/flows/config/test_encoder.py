"""A text encoder that cannot be had is refused before any stage runs."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from flows.config import encoder
from flows.config.encoder import check_encoder
from flows.config.params import check_params
from flows.config.presets import apply, compose
from flows.prepare import prepare
from model.data import tokens

ROOT = Path(__file__).parents[3]
CONF = ROOT / "conf"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty folder with conf/ and params.yaml."""
    shutil.copytree(CONF, tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*choices: str) -> None:
    check_encoder(check_params(compose(choices, CONF), "conf/"), " ".join(choices))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["corpus=mosi_pickle"], "corpus=mosi_pickle: the text encoder 'bert-base-uncased' .* nor available from the "),
        (["corpus=sims"], "the text encoder 'bert-base-chinese'"),
        (
            ["corpus=mosi_pickle", "model.text.encoder=/nowhere/bert"],
            "'/nowhere/bert' .* no such folder; give the folder",
        ),
        (
            ["corpus=mmsa_pickle", "experiment=finetune"],
            "model.text.encoder is empty, and features of layout mmsa_pickle",
        ),
        (
            ["corpus=demo_zh", "text=characters", "experiment=finetune", "model.text.tokenizer=subword"],
            "text.words name no",
        ),
    ],
)
def test_an_encoder_that_is_not_there_is_refused_with_the_way_out(choices, message):
    with pytest.raises(ValueError, match=message):
        check(*choices)


def test_an_encoder_that_is_there_or_not_needed_is_not(tmp_path):
    check("experiment=finetune")  # minilm, by extract.text
    check("corpus=mmsa_pickle", "experiment=finetune", "model.text.encoder=minilm")
    check("corpus=mmsa_pickle")
    check("corpus=demo_zh")
    (tmp_path / "config.json").write_text("{}")
    check("corpus=mosi_pickle", f"model.text.encoder={tmp_path}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"is a folder without config\.json"):
        check("corpus=mosi_pickle", f"model.text.encoder={tmp_path}")
    assert (encoder.MINILM, encoder.MINILM_PACKAGE) == (tokens.MINILM, tokens.MINILM_PACKAGE)


def test_use_and_prepare_refuse_and_change_nothing(project):
    split = {m: np.ones((2, 3, 4)) for m in ("text", "audio", "vision")}
    split |= {"id": ["a$_$1", "b$_$1"], "raw_text": ["one", "two"], "regression_labels": [1, -1]}
    (project / "features.pkl").write_bytes(pickle.dumps({"train": split}))
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ValueError, match="the text encoder 'bert-base-uncased'"):
        apply(["corpus=mosi_pickle", "prepare.root=features.pkl"], check=check_encoder)
    assert (project / "params.yaml").read_bytes() == before
    apply(["corpus=mosi_pickle", "prepare.root=features.pkl", "model.text.encoder=minilm"], check=check_encoder)
    values = yaml.safe_load((project / "params.yaml").read_text())
    assert values["train"]["seeds"] == [1111, 1112, 1113, 1114, 1115]
    values["model"]["text"]["encoder"] = "gone/bert"
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"params\.yaml: the text encoder 'gone/bert'"):
        prepare.fn()
    assert not (project / "data").exists()
    values["model"]["text"]["encoder"] = "minilm"
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert prepare.fn() == {"train": 2}
