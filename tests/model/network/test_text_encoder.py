"""Text as tokens: encoders that are trained with the network, from pre-trained or from random weights."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ContrastiveConfig, ModelConfig, TextConfig, TrainConfig, check_together
from model.data.clips import ClipTable
from model.data.info import read_info
from model.data.tokens import TextBackbone, encoder_name, prepare_text, train_tokenizer
from model.evaluate import evaluate
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion
from model.train import train
from model.training.batch_planner import BatchPlanner
from model.training.mining import label_classes, mine
from model.training.objective import Objective
from model.training.optimizer import parameter_groups
from tests.support.encoders import WORDS, save_encoder

ROOT = Path(__file__).parents[3]
CHINESE = "坏差劣平佳好棒"
SCRATCH = TextConfig(mode="scratch", vocabulary=200, layers=1, width=16, heads=2, max_tokens=16)
SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)
SHORT = TrainConfig(epochs=2, warmup_epochs=1, batch_size=8, learning_rate=2e-3, device="cpu")


def transcript(label, row, chinese=False):
    """A few words, of which one tells the label; every eleventh clip is silent."""
    if row % 11 == 10:
        return " "
    told = round(label) + 3
    return "这部电影" * (row % 3) + CHINESE[told] + "。" if chinese else "the film " * (row % 4) + WORDS[told] + "!"


@pytest.fixture(scope="session")
def spoken(dataset_writer, tmp_path_factory):
    """Makes a dataset whose transcripts tell the label."""

    def make(name="spoken", chinese=False, **options):
        def change(split, table):
            labels = table["label"].to_pylist()
            texts = [transcript(label, row, chinese) for row, label in enumerate(labels)]
            return table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts))

        return dataset_writer(tmp_path_factory.mktemp(name), change=change, **options)

    return make


@pytest.fixture(scope="session")
def english(spoken):
    return spoken()


def finetuning(folder, **options):
    return replace(SMALL, text=TextConfig(mode="finetune", encoder=str(folder), **options))


def scratch(**options):
    return replace(SMALL, text=replace(SCRATCH, **options))


def network_of(model, dataset):
    torch.manual_seed(0)
    text = prepare_text(model, dataset)
    return DashFusion(model, read_info(dataset), text).eval()


def encoder_weights(network):
    return {name: p.detach().clone() for name, p in network.encoders["text"].encoder.named_parameters()}


def test_finetuning_lowers_the_loss_and_changes_the_layers_that_are_not_frozen(english, bert, tmp_path):
    model = finetuning(bert, freeze_layers=1)
    result = train(english, tmp_path / "out", model, replace(SHORT, epochs=4, text_learning_rate=1e-3), 0)
    assert result.history[-1]["train_regression"] < 0.7 * result.history[0]["train_regression"]
    before = encoder_weights(network_of(model, english))
    after = encoder_weights(load_checkpoint(result.last)[0])
    changed = {name: not torch.equal(before[name], after[name]) for name in before}
    assert all(changed[name] == name.startswith("encoder.layer.1.") for name in changed), changed
    assert any(name.startswith("embeddings.") for name in changed)
    assert not any("pooler" in name for name in changed)


@pytest.mark.parametrize("rate", [1e-9, 1e-2])
def test_the_encoder_learns_at_its_own_rate(english, bert, tmp_path, rate):
    model = finetuning(bert)
    config = replace(SHORT, text_learning_rate=rate)
    fresh = network_of(model, english)
    before, projected = encoder_weights(fresh), fresh.encoders["text"].head.project[0].weight.detach().clone()
    network, info = load_checkpoint(train(english, tmp_path / "out", model, config, 0).last)
    after = encoder_weights(network)
    moved = max((before[name] - after[name]).abs().max().item() for name in before)
    assert rate / 10 < moved + 1e-9 < rate * 10
    assert (network.encoders["text"].head.project[0].weight - projected).abs().max() > 1e-4
    assert info.train.text_learning_rate == rate


def test_parameters_are_grouped_by_rate_and_decay_and_frozen_ones_left_out(english, bert):
    network = network_of(finetuning(bert, freeze_layers=1), english)
    groups = parameter_groups(network, replace(SHORT, text_learning_rate=1e-5, weight_decay=0.1))
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(2e-3, 0.1), (2e-3, 0.0), (1e-5, 0.1), (1e-5, 0.0)]
    assert all((p.ndim > 1) == (g["weight_decay"] > 0) for g in groups for p in g["params"])
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in network.parameters() if p.requires_grad}
    assert {id(p) for g in groups[2:] for p in g["params"]} == {
        id(p) for p in network.encoders["text"].encoder.encoder.layer[1].parameters()
    }
    whole = network_of(finetuning(bert, freeze_layers=2), english)
    assert [g["lr"] for g in parameter_groups(whole, SHORT)] == [2e-3, 2e-3]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "scratch"])
def test_padding_and_neighbours_never_change_a_clip(english, tmp_path, kind):
    model = scratch() if kind == "scratch" else finetuning(save_encoder(tmp_path / kind, kind))
    network = network_of(model, english)
    table = ClipTable.read(english, "train", 32, text=network.text)
    rows = np.arange(len(table))
    with torch.inference_mode():
        whole = network(table.batch(rows))
        embedded = network.embed(table.batch(rows))
        for row in rows:
            alone = network(table.batch(rows[row : row + 1]))
            assert (alone.prediction - whole.prediction[row]).abs() < 1e-5
            for stream, vectors in whole.embedding.streams.items():
                assert (alone.embedding.streams[stream][0] - vectors[row]).abs().max() < 1e-5
                assert (embedded.streams[stream][row] - vectors[row]).abs().max() < 1e-5
    assert len({*table.sequences["text"].lengths.tolist()}) > 3, "nothing was padded"


def test_what_a_batch_is_padded_with_is_not_seen(english, bert):
    network = network_of(finetuning(bert), english)
    table = ClipTable.read(english, "train", 32, text=network.text)
    batch = table.batch(np.arange(8))
    assert batch.values["text"].dtype == torch.int64 and batch.values["text"].ndim == 2
    hidden = ~batch.masks["text"]
    assert hidden.any()
    other = torch.where(hidden, 7, batch.values["text"])
    with torch.inference_mode():
        expected = network(batch).prediction
        found = network(replace(batch, values=batch.values | {"text": other})).prediction
    assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_text_in_chunks_of_its_own_changes_neither_loss_nor_gradient(english, tmp_path, kind):
    network = network_of(finetuning(save_encoder(tmp_path / kind, kind)), english).double()
    clips = ClipTable.read(english, "train", 32, text=network.text)
    classes = label_classes(clips.labels, (-3, 3))
    partners = mine(torch.randn(len(clips), 8), classes, SHORT.mining)
    planner = BatchPlanner(clips, classes, SHORT, seed=1, overhead=1)
    rank_batch = planner.plan(np.array([10, 2, 17, 4]), partners, epoch=1, number=0)  # 10 is silent
    assert len(rank_batch.text_chunks) > 2 and len(rank_batch.partner_chunks) > 1

    def outcome(texts):
        rank_batch.text_chunks = texts
        for batch in (rank_batch.anchors, *rank_batch.partner_chunks):
            for m in ("audio", "vision"):
                batch.values[m] = batch.values[m].double()
        network.zero_grad()
        loss = Objective(network, SHORT)(rank_batch)[0]
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    chunked, together = outcome(rank_batch.text_chunks), outcome([])
    assert torch.allclose(chunked[0], together[0], atol=1e-12, rtol=0)
    assert chunked[1].keys() == together[1].keys()
    assert all(torch.allclose(chunked[1][name], together[1][name], atol=1e-10, rtol=0) for name in chunked[1])


def test_a_silent_clip_is_one_without_text(english, bert):
    network = network_of(finetuning(bert), english)
    table = ClipTable.read(english, "train", 32, text=network.text)
    silent = np.flatnonzero(table.sequences["text"].lengths == 0)
    assert silent.tolist() == [10, 21]
    without = predict(network, table, ("audio", "vision"))
    shown = predict(network, table, MODALITIES)
    assert shown[silent] == pytest.approx(without[silent], abs=1e-5)
    assert np.isfinite(without).all()
    heard = np.setdiff1d(np.arange(len(table)), silent)
    assert np.abs(shown[heard] - without[heard]).min() > 1e-6
    network.train()
    network(table.batch(silent)).prediction.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.encoders["text"].encoder.parameters())


def test_a_finetuned_checkpoint_predicts_elsewhere_without_encoder_network_or_its_extractor(
    spoken, tmp_path, monkeypatch
):
    root, encoder = spoken(), save_encoder(tmp_path / "bert")
    result = train(root, tmp_path / "out", finetuning(encoder), SHORT, 0)
    expected = evaluate(root, [result.best], device="cpu").predictions
    shutil.rmtree(encoder)
    moved = tmp_path / "elsewhere" / "best"
    shutil.move(result.best, moved)
    assert sorted(path.name for path in (moved / "text").iterdir()) == ["config.json", "tokenizer.json"]

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert evaluate(root, [moved], device="cpu").predictions == expected
    description = json.loads((root / "dataset.json").read_text())
    description["modalities"]["text"] |= {"extractor": "text.words", "signature": "text.words-v1-111111111111"}
    (root / "dataset.json").write_text(json.dumps(description))
    assert evaluate(root, [moved], device="cpu").predictions == expected


def test_the_encoder_is_the_features_one_unless_another_is_named(english, bert, tmp_path):
    info = read_info(english)

    def named(options, extractor="text.transformer", encoder=""):
        text = replace(info.modalities["text"], options=options, extractor=extractor)
        found = replace(info, modalities={**info.modalities, "text": text})
        return encoder_name(TextConfig(mode="finetune", encoder=encoder), found)

    assert named({"model": str(bert)}) == str(bert)
    assert named({"model": str(bert)}, encoder="bert-base-uncased") == "bert-base-uncased"
    assert Path(named({}), "model.safetensors").is_file()
    assert named({"model": "minilm"}) == named({}, "text.words", "minilm") == named({})
    with pytest.raises(ValueError, match=r"text\.words, names no encoder.*model\.text\.mode to scratch"):
        named({}, "text.words")


def test_minilm_gives_the_tokens_and_hidden_states_that_its_features_are(english):
    text = prepare_text(finetuning("minilm"), english)
    sequences, cut = text.sequences(["I don't love this movie!", "", "so " * 200])
    assert sequences.lengths.tolist() == [10, 0, 128] and cut == 1
    assert sequences.starts.tolist() == [0, 10, 10]
    assert sequences.values[:10].tolist() == [101, 1045, 2123, 1005, 1056, 2293, 2023, 3185, 999, 102]
    encoder = text.build()
    assert sum(p.numel() for p in encoder.parameters()) > 22e6 and encoder.training
    encoder.eval()
    with torch.inference_mode():
        hidden = encoder(torch.tensor([[101, 2307, 3185, 102], [101, 6659, 3185, 102], [101, 2204, 2143, 102]]))
    great, terrible, good = torch.nn.functional.normalize(hidden.last_hidden_state[:, 1:3].mean(1), dim=-1)
    assert great @ good > great @ terrible


def test_roberta_counts_its_positions_from_behind_the_padding(english, tmp_path):
    model = finetuning(save_encoder(tmp_path / "roberta", "roberta", positions=13))
    network = network_of(model, english)
    assert network.text.limit == 12
    sequences, cut = network.text.sequences(["the film " * 9])
    assert sequences.lengths.tolist() == [12] and cut == 1
    assert sequences.values[-1] == network.text.tokenizer.token_to_id("[SEP]")
    ids = torch.from_numpy(sequences.values)[None].long()
    with torch.inference_mode():
        sequence = network.encoders["text"](ids, torch.ones_like(ids, dtype=torch.bool))
    assert sequence.values.shape == (1, 12, 16) and sequence.mask.all()
    bert = network_of(finetuning(save_encoder(tmp_path / "bert", positions=13), max_tokens=11), english)
    assert bert.text.limit == 11


@pytest.mark.parametrize(("chinese", "kind"), [(False, "subword"), (True, "character"), (True, "subword")])
def test_an_encoder_from_scratch_learns_from_words_and_meets_unknown_ones(spoken, tmp_path, chinese, kind):
    root = spoken(f"scratch-{chinese}-{kind}", chinese, clips={"train": 48, "valid": 8, "test": 8})
    # Nothing but the transcripts tells the label.
    config = replace(SHORT, modalities=("text",), epochs=16, patience=16, learning_rate=5e-3)
    result = train(root, tmp_path / "out", scratch(tokenizer=kind), config, 0)
    assert result.history[-1]["train_regression"] < 0.5 * result.history[0]["train_regression"]
    network, info = load_checkpoint(result.last)
    sequences, _ = network.text.sequences(["Ж 龘 🙂", "the Film 好" if kind == "subword" else "电 好"])
    unknown = network.text.tokenizer.token_to_id("[UNK]")
    assert unknown in sequences.values[: sequences.lengths[0]]
    table = ClipTable.read(root, "test", 32, text=network.text)
    strange = replace(table, sequences={**table.sequences, "text": sequences}).select(np.arange(2))
    assert np.isfinite(predict(network, strange, ("text",))).all()
    info.check_compatible(
        replace(table.info, modalities={**table.info.modalities, "text": table.info.modalities["audio"]})
    )
    with pytest.raises(ValueError, match=r"from scratch on 'en'.*are 'zh'.*finetune"):
        info.check_compatible(replace(table.info, language="zh"))


def test_characters_are_tokens_and_words_are_cut_where_the_corpus_repeats_itself():
    chinese = train_tokenizer(["这部 电影很 好"] * 2, "character", 100)
    assert chinese.encode("电影X 好").tokens == ["[CLS]", "电", "影", "[UNK]", "好", "[SEP]"]
    english = train_tokenizer(["Falling, FALLING and rising"] * 5 + ["Ö"], "subword", 100)
    assert english.encode("falling, Rising").tokens == ["[CLS]", "▁falling", ",", "▁rising", "[SEP]"]
    assert "[UNK]" in english.encode("ö").tokens, "one occurrence teaches what unknown is"
    assert [english.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]")] == [0, 1, 2, 3]
    french = train_tokenizer(["été"] * 5, "subword", 100)
    assert french.encode("e").tokens != french.encode("é").tokens


def test_the_same_transcripts_give_the_same_tokenizer_in_every_process():
    code = (
        "import random; from model.data.tokens import train_tokenizer; r = random.Random(0);"
        "texts = [' '.join(''.join(r.choices('abcdefghijklmnopqrstuvwxyzäöüßéèñçøå电影很好', k=4)) for _ in range(9))"
        " for _ in range(60)];"
        "[print(train_tokenizer(texts, k, size).to_str()) for k in ('subword', 'character') for size in (64, 300)]"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    vocabularies = [json.loads(line)["model"]["vocab"] for line in runs[0].splitlines()]
    assert all("e" in vocabulary for vocabulary in vocabularies)
    assert [len(vocabulary) for vocabulary in vocabularies] == [64, 238, 44, 44]


def test_the_tokenizer_is_trained_on_the_training_split_alone(english):
    train_texts = [transcript(label, row) for row, label in enumerate(ClipTable.read(english, "train", 32).labels)]
    text = prepare_text(scratch(), english)
    assert text.tokenizer.get_vocab() == train_tokenizer(train_texts, "subword", SCRATCH.vocabulary).get_vocab()


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_a_killed_run_goes_on_and_ends_with_the_same_metrics(english, bert, tmp_path, mode):
    class Killer:
        def on_batch(self, epoch, done, total):
            if (epoch, done) == (2, 2):
                raise KeyboardInterrupt

        def on_epoch(self, epoch, metrics):
            pass

    model = finetuning(bert) if mode == "finetune" else scratch()
    config = replace(SHORT, checkpoint_minutes=0, text_learning_rate=1e-3)
    whole = train(english, tmp_path / "whole", model, config, 0)
    train(english, tmp_path / "features", SMALL, SHORT, 0, None, tmp_path / "scratch")  # maps features, text's too
    with pytest.raises(KeyboardInterrupt):
        train(english, tmp_path / "out", model, config, 0, Killer(), tmp_path / "scratch")
    taken_up = train(english, tmp_path / "out", model, config, 0, None, tmp_path / "scratch")
    assert taken_up.resumed == (2, 2)
    losses = ("train_loss", "train_supervised", "valid_mae")
    assert [[m[k] for k in losses] for m in taken_up.history] == [[m[k] for k in losses] for m in whole.history]


def test_another_encoder_in_the_same_folder_never_goes_on_from_this_run(english, tmp_path):
    model = finetuning(save_encoder(tmp_path / "bert"))
    config = replace(SHORT, epochs=1)
    train(english, tmp_path / "a", model, config, 0, None, tmp_path / "scratch")
    assert train(english, tmp_path / "b", model, config, 0, None, tmp_path / "scratch").resumed
    save_encoder(tmp_path / "bert", layers=3)
    assert train(english, tmp_path / "c", model, config, 0, None, tmp_path / "scratch").resumed is None


def test_contrastive_learning_within_the_batch_takes_tokens_too(english, bert, tmp_path):
    config = replace(SHORT, epochs=1, contrastive=ContrastiveConfig(scope="in_batch"))
    (epoch,) = train(english, tmp_path / "out", finetuning(bert), config, 0).history
    assert epoch["train_supervised"] > 0 and np.isfinite(epoch["train_loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_predicts_what_a_cpu_does_of_silent_clips_too_and_trains_in_half_precision(english, bert, tmp_path):
    network = network_of(finetuning(bert), english)
    table = ClipTable.read(english, "train", 32, text=network.text)
    expected = predict(network, table, MODALITIES)
    assert predict(network.to("cuda"), table, MODALITIES) == pytest.approx(expected, abs=1e-3)
    config = replace(SHORT, device="cuda", precision="bf16", epochs=4)
    history = train(english, tmp_path / "out", finetuning(bert, freeze_layers=1), config, 0).history
    assert history[-1]["train_regression"] < history[0]["train_regression"]


def spoil(folder, what):
    if what == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif what == "other weights":
        other = save_encoder(folder / "other", layers=1)
        shutil.copy(other / "model.safetensors", folder)
    elif what == "decoder":
        from transformers import BartConfig

        BartConfig().save_pretrained(folder)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", r"the folder holds no encoder .*give a folder with config\.json"),
        ("no weights", r"the folder holds no encoder .*give a folder with config\.json"),
        ("no tokenizer", r"its tokenizer has \d tokens, but the encoder \d\d; .*the tokenizer\.json that belongs"),
        ("other weights", r"its weights lack 16 parts of a bert, such as encoder\.layer\.1"),
        ("decoder", r"a bart is an encoder with a decoder; choose an encoder alone"),
        ("nothing", r"not a folder, and not available from the hub"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_refused_with_the_way_out(english, tmp_path, what, message):
    folder = tmp_path / "encoder"
    if what != "nothing":
        spoil(save_encoder(folder), what)
    with pytest.raises(ValueError, match=rf"model\.text\.encoder is '.*encoder'.*{message}"):
        network_of(finetuning(folder), english)


def test_more_frozen_layers_than_there_are_are_refused(english, bert):
    with pytest.raises(ValueError, match=r"freeze_layers is 3: the encoder has 2 layers; set it to 2 or less"):
        network_of(finetuning(bert, freeze_layers=3), english)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tuned"}, r"model\.text\.mode is 'tuned': it must be one of frozen, finetune, scratch"),
        ({"freeze_layers": 2}, r"freeze_layers is 2: it has no effect with model\.text\.mode frozen.*to finetune"),
        ({"max_tokens": 64}, r"max_tokens is 64: it has no effect.*finetune or scratch"),
        ({"mode": "scratch", "encoder": "minilm"}, r"encoder is 'minilm': it has no effect.*scratch"),
        ({"mode": "finetune", "layers": 4}, r"layers is 4: it has no effect.*set the mode to scratch"),
        ({"mode": "finetune", "freeze_layers": -1}, r"freeze_layers is -1: it must be at least 0"),
        ({"mode": "scratch", "tokenizer": "bytes"}, r"tokenizer is 'bytes': it must be subword or character"),
        ({"mode": "scratch", "width": 20, "heads": 3}, r"heads is 3: it must divide model\.text\.width \(20\)"),
        ({"mode": "scratch", "max_tokens": 2}, r"max_tokens is 2: it must be at least 3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**options)


def test_a_text_learning_rate_needs_an_encoder_to_train_and_an_encoder_needs_text(english, tmp_path):
    with pytest.raises(ValueError, match=r"text_learning_rate is 1e-05.*frozen no text encoder.*null"):
        train(english, tmp_path, SMALL, replace(SHORT, text_learning_rate=1e-5), 0)
    with pytest.raises(ValueError, match=r"model\.text\.mode is 'scratch'.*shows the network no text.*add text"):
        check_together(scratch(), replace(SHORT, modalities=("audio",)))
    with pytest.raises(ValueError, match=r"text_learning_rate is 0.*positive, or null"):
        replace(SHORT, text_learning_rate=0)


def test_an_older_checkpoint_without_text_options_is_frozen(english, tmp_path):
    result = train(english, tmp_path / "out", SMALL, replace(SHORT, epochs=1), 0)
    path = result.best / "checkpoint.json"
    description = json.loads(path.read_text())
    del description["model"]["text"]
    path.write_text(json.dumps(description))
    network, info = load_checkpoint(result.best)
    assert network.text is None and info.model.text == TextConfig()
    assert not (result.best / "text").exists()


def test_a_text_comes_back_as_it_was_saved(english, bert, tmp_path):
    text = prepare_text(finetuning(bert, max_tokens=7), english)
    text.save(tmp_path / "text")
    loaded = TextBackbone.load(tmp_path / "text")
    assert loaded.limit == text.limit == 7
    assert loaded.pretrained is None
    assert loaded.tokenizer.to_str() == text.tokenizer.to_str()
    assert {k: p.shape for k, p in loaded.build().named_parameters()} == {
        k: p.shape for k, p in text.build().named_parameters()
    }
