"""Options are checked where they enter, and YAML fills them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from model.config import ContrastiveConfig, MiningConfig, ModelConfig, TrainConfig


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: ModelConfig(dim=100), "model.heads"),
        (lambda: ModelConfig(dropout=1.0), "model.dropout"),
        (lambda: ModelConfig(fusion_layers=0), "model.fusion_layers"),
        (lambda: ModelConfig(anchor="smell"), "model.anchor is 'smell': it must be one of text, audio"),
        (lambda: ModelConfig(fusion="sum"), "model.fusion is 'sum'.*hbf is the paper's"),
        (lambda: ModelConfig(anchor="symmetric", alignment=False), "model.anchor.*or model.alignment to true"),
        (lambda: ContrastiveConfig(temperature=0), "train.contrastive.temperature"),
        (lambda: ContrastiveConfig(scope="corpus"), "train.contrastive.scope"),
        (lambda: ContrastiveConfig(semantic=False, supervised=False), "nothing to weigh.*one of the two to true"),
        (lambda: MiningConfig(positives=11), "train.mining.positives"),
        (lambda: MiningConfig(hard_negatives=0, easy_negatives=0), "train.mining.hard_negatives"),
        (lambda: TrainConfig(modalities=("text", "smell")), "train.modalities"),
        (lambda: TrainConfig(modalities=()), "train.modalities"),
        (lambda: TrainConfig(seeds=(1, 1)), "train.seeds"),
        (lambda: TrainConfig(epochs=1), "train.warmup_epochs"),
        (lambda: TrainConfig(device="gpu"), "train.device"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(build, option):
    with pytest.raises(ValueError, match=option):
        build()


def test_yaml_values_fill_the_config_and_unknown_keys_are_refused():
    adapter = TypeAdapter(TrainConfig)
    config = adapter.validate_python({"modalities": ["text"], "seeds": [0, 1], "mining": {"refresh_epochs": 3}})
    assert config == TrainConfig(modalities=("text",), seeds=(0, 1), mining=MiningConfig(refresh_epochs=3))
    with pytest.raises(ValidationError, match="learning_rat"):
        adapter.validate_python({"learning_rat": 0.1})
    with pytest.raises(ValidationError, match=r"train\.epochs"):
        adapter.validate_python({"epochs": 0})
