"""Pre-trained text encoders of the tests' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("awful", "bad", "poor", "plain", "fine", "good", "great")


def save_encoder(folder: Path, kind: str = "bert", layers: int = 2, positions: int = 24) -> Path:
    """Save an encoder as one finds them, but for its random weights and its small vocabulary."""
    import torch
    from transformers import AutoModel, BertConfig, DistilBertConfig, PreTrainedTokenizerFast, RobertaConfig

    from model.data.tokens import train_tokenizer

    texts = [f"the film {word}! a so" for word in WORDS] * 3
    tokenizer = train_tokenizer(texts, "subword", 120)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
    size = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": positions, "pad_token_id": 0}
    bert = {"hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32}
    config = {
        "bert": lambda: BertConfig(**size, **bert),
        "roberta": lambda: RobertaConfig(**size, **bert),
        "distilbert": lambda: DistilBertConfig(**size, dim=16, n_layers=layers, n_heads=2, hidden_dim=32),
    }[kind]()
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a BERT of two layers, 16 wide."""
    return save_encoder(tmp_path_factory.mktemp("bert"))
