"""Model cards: what a checkpoint says of itself, and copies of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model.checkpoint.description import GENERATED_NOTICE
from model.checkpoint.io import load_checkpoint
from model.checkpoint.model_card import CARD, card_lines, export_checkpoint
from model.config import ModelConfig, TextConfig, TrainConfig
from model.train import train

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu")


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> Path:
    return train(dataset, tmp_path_factory.mktemp("out"), SMALL, SHORT, seed=3).best


def test_training_leaves_a_card_with_the_validation_figures(trained):
    card = (trained / CARD).read_text(encoding="utf-8")
    mae = json.loads((trained / "checkpoint.json").read_text())["metrics"]["valid_mae"]
    for fact in ("trained on synthetic", f"| Mean absolute error | {mae:.3f} |", "On the validation clips", "Seed 3"):
        assert fact in card
    assert "text.synthetic" in card and "| text+audio+vision | " in card and "without modality dropout" in card


def test_a_copy_is_whole_and_tells_the_test_figures(trained, tmp_path):
    export_checkpoint(
        trained, tmp_path / "copy", {"n": 8, "mae": 0.5, "corr": None, "acc2_np": 0.75, "seeds": 2}, "test"
    )
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in trained.iterdir()}
    network, info = load_checkpoint(tmp_path / "copy")
    assert info == load_checkpoint(trained)[1] and network.config == SMALL
    card = (tmp_path / "copy" / CARD).read_text(encoding="utf-8")
    assert (
        "8 labelled clips of the test split, mean of 2 seeds" in card
        and "| Acc-2, negative / positive | 0.750 |" in card
    )
    assert "Pearson" not in card and "validation clips, by which" not in card
    assert "On the validation clips" in (trained / CARD).read_text(encoding="utf-8")
    export_checkpoint(trained, tmp_path / "copy", None, "test")  # again, over the first
    assert "On the validation clips" in (tmp_path / "copy" / CARD).read_text(encoding="utf-8")


def test_a_copy_never_takes_the_place_of_something_else(trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="name a new folder"):
        export_checkpoint(trained, tmp_path / "mine", None, "test")
    with pytest.raises(ValueError, match="the checkpoint itself"):
        export_checkpoint(trained, trained, None, "test")
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        export_checkpoint(tmp_path / "mine", tmp_path / "new", None, "test")
    assert (tmp_path / "mine/thesis.txt").exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("entry", "text", "terms"),
    [
        ({"extractor": "text.transformer", "options": {"model": "minilm"}}, {}, "all-MiniLM-L6-v2 (Apache-2.0)"),
        ({"extractor": "text.transformer", "options": {}}, {}, "all-MiniLM-L6-v2 (Apache-2.0)"),
        ({"extractor": "text.transformer", "options": {"model": "me/bert"}}, {}, "`me/bert`, under their own terms"),
        ({"extractor": "text.words", "options": {}}, {}, "no weights"),
        ({"extractor": "text.words", "options": {}}, {"mode": "scratch"}, "from random weights"),
        ({"extractor": "text.words", "options": {}}, {"mode": "finetune", "encoder": "me/bert"}, "`me/bert`"),
    ],
)
def test_the_terms_of_what_went_in_are_told(trained, entry, text, terms):
    description = json.loads((trained / "checkpoint.json").read_text())
    description["dataset"]["modalities"]["text"] |= entry
    description["model"]["text"] |= text
    line = next(line for line in reversed(list(card_lines(description))) if line.startswith("- text: "))
    assert terms in line


def test_a_generated_corpus_is_told_to_be_one(trained):
    description = json.loads((trained / "checkpoint.json").read_text())
    assert GENERATED_NOTICE not in "\n".join(card_lines(description))
    for changes in ({"corpus": "demo_en"}, {"generated": True}):  # of an older and of this version
        dataset = description["dataset"] | changes
        title, _, notice, *_ = card_lines(description | {"dataset": dataset})
        assert title.startswith("# ") and notice == f"**{GENERATED_NOTICE}**"
    recorded = description["dataset"] | {"corpus": "demo_of_ours", "generated": False}
    assert GENERATED_NOTICE not in "\n".join(card_lines(description | {"dataset": recorded}))


def test_an_undefined_metric_is_a_dash_with_its_reason(trained):
    description = json.loads((trained / "checkpoint.json").read_text())
    metrics = {"n": 1, "mae": 0.5, "corr": None, "undefined": {"corr": "one clip"}}
    assert "| Pearson correlation | - (one clip) |" in list(card_lines(description, metrics, "test"))


def test_a_card_of_a_network_with_its_own_encoder_says_so(dataset, tmp_path):
    text = TextConfig(mode="scratch", vocabulary=64, layers=1, width=16, heads=2)
    best = train(dataset, tmp_path, ModelConfig(dim=16, heads=4, encoder_layers=1, text=text), SHORT, seed=0).best
    assert "the network's own (`scratch`)" in (best / CARD).read_text(encoding="utf-8")
