"""`model.text.tokens` text_bert: the token ids that came with the text features, in place of the transcripts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TextConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.info import read_info
from model.data.tokens import TextBackbone, prepare_text, train_tokenizer
from model.evaluation.inference import predict
from model.network.registry import build_network
from model.train import train
from tests.support.datasets import list_column

WORDS = ("awful", "bad", "poor", "plain", "fine", "good", "great")
SHORT = TrainConfig(epochs=1, warmup_epochs=0, device="cpu", contrastive=ContrastiveConfig(weight=0))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small BERT with its tokenizer."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = train_tokenizer([f"the film {word}!" for word in WORDS] * 3, "subword", 120)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=24, pad_token_id=0, **sizes)
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    return folder


def model(encoder, tokens: str, limit: int = 24) -> ModelConfig:
    text = TextConfig(mode="finetune", encoder=str(encoder), tokens=tokens, max_tokens=limit)
    return ModelConfig(dim=16, heads=2, encoder_layers=1, max_positions=32, text=text)


def backbone(encoder, tokens: str, dataset, limit: int = 24) -> TextBackbone:
    text = prepare_text(model(encoder, tokens, limit), dataset)
    assert text is not None
    return text


@pytest.fixture(scope="module")
def datasets(encoder, dataset_writer, tmp_path_factory):
    """Makes a dataset with transcripts, some empty, and their ids as a file brings them; `change` alters the ids."""

    def make(change=lambda ids: ids):
        def with_text(split, table):
            texts = ["" if i % 5 == 4 else f"the {WORDS[i % 7]} film" for i in range(len(table))]
            tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
            ids = [change(np.array(tokenizer.encode(t).ids if t else [], np.int32)) for t in texts]
            for name, column in (("text", pa.array(texts)), ("text_token_ids", list_column(ids, pa.int32()))):
                table = table.set_column(table.schema.get_field_index(name), name, column)
            return table

        return dataset_writer(tmp_path_factory.mktemp("tokens"), change=with_text)

    return make


def test_ids_that_came_along_give_what_the_transcripts_give(encoder, datasets):
    dataset = datasets()
    torch.manual_seed(0)
    text = backbone(encoder, "transcript", dataset)
    network = build_network(model(encoder, "transcript"), read_info(dataset), text).eval()
    spoken = ClipTable.read(dataset, "train", 32, text=text)
    stored = ClipTable.read(dataset, "train", 32, text=backbone(encoder, "text_bert", dataset))
    assert stored.truncated["text"] == 0 and (stored.sequences["text"].lengths == 0).any()
    assert np.array_equal(predict(network, spoken, MODALITIES), predict(network, stored, MODALITIES))


def test_the_ids_count_where_they_differ_from_the_transcripts_and_are_cut_at_the_limit(encoder, datasets):
    dataset = datasets(change=lambda ids: ids[::-1].copy())
    spoken = ClipTable.read(dataset, "train", 32, text=backbone(encoder, "transcript", dataset))
    stored = ClipTable.read(dataset, "train", 32, text=backbone(encoder, "text_bert", dataset))
    rows = np.arange(3)
    ids, others = (table.batch(rows).values["text"] for table in (stored, spoken))
    assert torch.equal(ids, others.flip(1))
    cut = ClipTable.read(dataset, "train", 32, text=backbone(encoder, "text_bert", dataset, limit=3))
    assert cut.truncated["text"] == (spoken.sequences["text"].lengths > 3).sum() > 0
    assert cut.batch(rows).values["text"].shape[1] == 3


def test_a_checkpoint_reads_the_ids_again(encoder, datasets, tmp_path):
    dataset = datasets(change=lambda ids: ids[::-1].copy())
    result = train(dataset, tmp_path, model(encoder, "text_bert"), SHORT, seed=0)
    network, info = load_checkpoint(result.best)
    assert info.model.text.tokens == "text_bert" and network.text is not None and network.text.stored
    table = ClipTable.read(dataset, "valid", 32, text=network.text)
    transcripts = ClipTable.read(dataset, "valid", 32, text=replace(network.text, stored=False))
    assert not np.allclose(predict(network, table, ("text",)), predict(network, transcripts, ("text",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: np.full_like(ids, -1), "has no token ids; set it to transcript, or import"),
        (lambda ids: ids + 500, r"has the token id 50\d, but the encoder has \d+ tokens; set it"),
    ],
)
def test_ids_that_the_encoder_cannot_read_are_refused(encoder, datasets, change, message):
    dataset = datasets(change)
    with pytest.raises(ValueError, match=rf"model\.text\.tokens is text_bert: .* {message}"):
        ClipTable.read(dataset, "train", 32, text=backbone(encoder, "text_bert", dataset))


def test_ids_need_an_encoder_that_is_fine_tuned():
    with pytest.raises(
        ValueError, match=r"model\.text\.tokens is 'text_bert': it has no effect with model\.text\.mode scratch"
    ):
        TextConfig(mode="scratch", tokens="text_bert")
