"""Forced alignment: the path against a slow twin, spelling, and words found where they were put."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.base import ExtractionError
from extractors.transcripts import forced_alignment
from extractors.transcripts.forced_alignment import WILDCARD, CtcAligner, Vocabulary, best_path, make_chunks
from extractors.transcripts.words import Word, split_words

SYMBOLS = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
RATE, FRAME = 16_000, 320


def save_model(folder, symbols=SYMBOLS, **config):
    """A wav2vec 2.0 with a CTC head of random weights, 16 wide, and what is saved beside it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config = {"vocab_size": len(symbols), "pad_token_id": 0} | config
    hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**sizes, **config)).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(symbols)}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def ctc_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("ctc") / "english")


@pytest.fixture(scope="session")
def chinese_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("ctc") / "chinese", ["<pad>", "|", *"你好吗我很"])


def sung(text, symbols=SYMBOLS, lead=10):
    """Sound that `listen` understands: `lead` frames of silence, then each symbol for two frames and two of blank.

    A `_` is half a second of silence.

    Returns:
        samples, and the first frame of each character of `text`.
    """
    ids, firsts = [0] * lead, []
    for character in text:
        firsts.append(len(ids))
        ids += [0] * 25 if character == "_" else [symbols.index(character)] * 2 + [0, 0]
    return np.repeat(np.array([*ids, 0, 0], np.float32) / 100, FRAME), firsts


def listen(aligner, sure=8.0, heard=None):
    """Give the aligner a model that reads each frame's symbol from its middle sample."""
    size = json.loads((aligner.folder / "config.json").read_text())["vocab_size"]

    def model(wave):
        middle = wave.unfold(1, 400, FRAME)[:, :, 200]
        if heard is not None:
            heard.append(wave.shape[1])
        return SimpleNamespace(logits=sure * torch.nn.functional.one_hot((middle * 100).round().long(), size).float())

    model.device = torch.device("cpu")
    prepare = hf.AutoFeatureExtractor.from_pretrained(aligner.folder)
    aligner._loaded = prepare, model
    return aligner


def slow_best_path(log_probs, symbols):
    """The score of every labelling of the frames that collapses to the symbols; the greatest."""
    best = -np.inf
    for labels in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        if [label for label, _ in itertools.groupby(labels) if label] == list(symbols):
            best = max(best, sum(log_probs[t, label] for t, label in enumerate(labels)))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 2), min_size=1, max_size=4))
def test_the_path_is_the_likeliest_of_all(seed, symbols):
    symbols = np.array(symbols)
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 7))
    spans = best_path(log_probs, symbols)
    assert (spans[:, 0] < spans[:, 1]).all() and (spans[1:, 0] >= spans[:-1, 1]).all()
    labels = np.zeros(7, int)
    for symbol, (first, stop) in zip(symbols, spans, strict=True):
        labels[first:stop] = symbol
    assert [label for label, _ in itertools.groupby(labels) if label] == list(symbols)
    assert log_probs[np.arange(7), labels].sum() == pytest.approx(slow_best_path(log_probs, symbols))


def test_as_many_frames_as_are_needed_are_enough():
    log_probs = np.log(np.full((4, 3), 1 / 3))
    assert best_path(log_probs, np.array([1, 2, 2])).tolist() == [[0, 1], [1, 2], [3, 4]]
    assert best_path(log_probs[:1], np.array([2])).tolist() == [[0, 1]]


class TestSpelling:
    ENGLISH = Vocabulary({text: i for i, text in enumerate(SYMBOLS)}, "|", 0)

    def letters(self, word, vocabulary=ENGLISH):
        names = {i: text for text, i in vocabulary._symbols.items()} | {WILDCARD: "*"}
        return "".join(names[i] for i in vocabulary.spell(word))

    @pytest.mark.parametrize(
        ("word", "letters"),
        [
            ("Well,", "WELL"),
            ("don't", "DON'T"),
            ("don\u2019t", "DON'T"),
            ("'hello'", "HELLO"),
            ("café", "CAFE"),
            ("\uff46\uff55\uff4c\uff4c", "FULL"),
            ("ﬁne", "FINE"),
            ("Straße", "STRASSE"),
            ("well-known", "WELLKNOWN"),
            ("25", "**"),
            ("B2B", "B*B"),
            ("你", "*"),
            ("--", ""),
            ("|", ""),
            ("%", ""),
            ("<pad>", "PAD"),
        ],
    )
    def test_words_in_the_models_letters(self, word, letters):
        assert self.letters(word) == letters

    def test_case_and_accents_are_kept_where_the_vocabulary_has_them(self):
        german = Vocabulary({text: i for i, text in enumerate("_| abcdäß")}, " ", 0)
        assert self.letters("BÄDÀß.", german) == "bädaß"
        both = Vocabulary({text: i for i, text in enumerate("_aA")}, "|", 0)
        assert self.letters("Aa", both) == "Aa"

    def test_vowel_signs_are_letters(self):
        hindi = Vocabulary({text: i for i, text in enumerate("_हिनदी")}, "|", 0)
        assert self.letters("हिनदी।", hindi) == "हिनदी"

    def join(self, words, vocabulary=ENGLISH):
        symbols, owner = vocabulary.join(words, [vocabulary.spell(word) for word in words])
        names = {i: text for text, i in vocabulary._symbols.items()} | {WILDCARD: "*", 4: "|"}
        return "".join(names[i] for i in symbols), owner.tolist()

    def test_words_are_parted_by_the_delimiter_and_numbers_are_one_wildcard(self):
        assert self.join(["a", "-", "1984", "b1", "2"]) == ("A|*|B*|*", [0, -1, 2, -1, 3, 3, -1, 4])

    def test_chinese_characters_are_not_parted(self):
        words = split_words("你好。OK go")
        assert self.join(words) == ("**OK|GO", [0, 1, 2, 2, -1, 3, 3])

    def test_models_without_a_delimiter(self):
        bare = Vocabulary({"<pad>": 0, "a": 1, "b": 2}, "|", 0)
        assert self.join(["a", "b"], bare) == ("ab", [0, 1])


def expected(words, firsts, text):
    """Each word from its first letter's frame to its last letter's second; a frame is centred on its middle sample."""
    times, at = [], 0
    for word in words:
        first, last = firsts[text.index(word, at)], firsts[text.index(word, at) + len(word) - 1] + 1
        at = text.index(word, at) + len(word)
        times.append((first * FRAME + 40, (last + 1) * FRAME + 40))
    return np.array(times) / RATE


def times_of(words):
    return np.array([(word.start, word.end) for word in words])


def test_words_are_found_where_they_were_put(ctc_model):
    text = "HELLO|BOOK|A"
    samples, firsts = sung(text)
    found = listen(CtcAligner(str(ctc_model))).align(samples, ["Hello,", "book", "a."], "en")
    assert [word.text for word in found] == ["Hello,", "book", "a."]
    assert times_of(found) == pytest.approx(expected(["HELLO", "BOOK", "A"], firsts, text))


def test_words_that_the_vocabulary_lacks_lie_between_their_neighbours(ctc_model):
    text = "IN_|_XYZXYZ_|_WE|MET"
    samples, firsts = sung(text)
    found = listen(CtcAligner(str(ctc_model))).align(samples, ["In", "1984,", "--", "we", "met"], "en")
    # The unknown number is where something is said that its neighbours are not, and takes no part of the silences.
    times = expected(["IN", "XYZXYZ", "WE", "MET"], firsts, text)
    assert times_of(found)[[0, 3, 4]] == pytest.approx(times[[0, 2, 3]])
    assert times_of(found)[1] == pytest.approx(times[1], abs=0.04)
    assert found[2] == Word("--", found[1].end, found[1].end)


def test_words_of_marks_alone_before_the_first_stand_at_its_start(ctc_model):
    samples, _ = sung("A")
    dots, a = listen(CtcAligner(str(ctc_model))).align(samples, ["...", "a"], "en")
    assert (dots.start, dots.end) == (a.start, a.start)


def test_chinese_characters_are_words(chinese_model):
    symbols = ["<pad>", "|", *"你好吗我很"]
    samples, firsts = sung("你好我很好", symbols)
    found = listen(CtcAligner(str(chinese_model))).align(samples, split_words("你好!我很好。"), "zh")
    assert [word.text for word in found] == ["你", "好!", "我", "很", "好。"]
    starts = (np.array(firsts) * FRAME + 40) / RATE
    assert [word.start for word in found] == pytest.approx(starts)


def test_long_sound_goes_by_in_chunks_and_gives_the_same(ctc_model, monkeypatch):
    text = "|".join(["HELLO", "BOOK", "DEED"] * 6)
    samples, _ = sung(text)
    words, heard = text.split("|"), []
    whole = listen(CtcAligner(str(ctc_model)), heard=heard).align(samples, words, "en")
    assert len(heard) == 1
    monkeypatch.setattr(forced_alignment, "CHUNK_SECONDS", 0.8)
    monkeypatch.setattr(forced_alignment, "CONTEXT_SECONDS", 0.1)
    cut = listen(CtcAligner(str(ctc_model)), heard=heard).align(samples, words, "en")
    assert len(heard) > 9 and max(heard[1:]) <= 0.8 * RATE + 400
    assert cut == whole


@pytest.mark.parametrize("seconds", [0.5, 3.0, 40.0])
def test_a_models_words_are_in_order_and_inside_the_clip(ctc_model, seconds):
    samples = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    words = ["This", "is", "--", "a", "7", "test."]
    found = CtcAligner(str(ctc_model)).align(samples, words, "en")
    assert [word.text for word in found] == words
    edges = [edge for word in found for edge in (word.start, word.end)]
    assert edges == sorted(edges)
    assert min(edges) >= 0 and max(edges) <= seconds
    assert all(word.end > word.start for word in found if word.text != "--")


def test_the_models_own_output_is_what_is_aligned(ctc_model):
    samples = np.random.default_rng(1).normal(0, 0.1, RATE).astype(np.float32)
    aligner = CtcAligner(str(ctc_model))
    model = hf.Wav2Vec2ForCTC.from_pretrained(ctc_model).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(samples[None])).logits[0]
    whole = torch.log_softmax(logits, -1).numpy()
    found = aligner._log_probs(samples, np.array([WILDCARD, 7, 20]))
    assert found[:, [0, 2, 3]] == pytest.approx(whole[:, [0, 7, 20]], abs=1e-5)
    assert found[:, 1] == pytest.approx(whole.max(axis=1) - forced_alignment.WILDCARD_COST, abs=1e-5)


def test_no_words_have_no_times(ctc_model):
    assert CtcAligner(str(ctc_model)).align(np.zeros(RATE, np.float32), [], "en") == []


@pytest.mark.parametrize(
    ("seconds", "words", "message"),
    [
        (1.0, ["你", "好"], "has 0 of the 2 letters and digits of this xx transcript; choose a CTC model"),
        (1.0, ["OK", "你", "好", "吗"], "has 2 of the 5 letters"),
        (1.0, ["--", "?"], "this xx transcript has no letters or digits"),
        (0.12, ["hello"], "needs 6 frames of the alignment model, but the sound has 5"),
        (0.0, ["ab"], "needs 2 frames of the alignment model, but the sound has 1"),
        (1.0, ["a" * 26], "needs 51 frames of the alignment model, but the sound has 49"),
    ],
)
def test_what_cannot_be_aligned_says_why(ctc_model, seconds, words, message):
    samples = np.zeros(round(seconds * RATE), np.float32)
    with pytest.raises(ExtractionError, match=message):
        CtcAligner(str(ctc_model)).align(samples, words, "xx")


def test_a_sound_too_long_for_one_trellis_is_refused_before_the_model_runs(ctc_model, monkeypatch):
    monkeypatch.setattr(forced_alignment, "MAX_TRELLIS_BYTES", 100)
    with pytest.raises(ExtractionError, match=r"49 frames by 1 symbols are too much.*cut the clip"):
        CtcAligner(str(ctc_model)).align(np.zeros(RATE, np.float32), ["a"], "en")


def test_a_models_nan_is_refused(ctc_model):
    with pytest.raises(ExtractionError, match="gives NaN or infinite values"):
        CtcAligner(str(ctc_model)).align(np.full(RATE, np.nan, np.float32), ["a"], "en")


def test_the_signature_follows_the_model(ctc_model, chinese_model):
    assert CtcAligner(str(ctc_model)).identity.signature == CtcAligner(str(ctc_model)).identity.signature
    assert CtcAligner(str(ctc_model)).identity.signature != CtcAligner(str(chinese_model)).identity.signature


class TestModels:
    def test_an_encoder_without_a_head_or_of_another_kind_is_refused(self, speech_models):
        with pytest.raises(ValueError, match=r"is 'wav2vec2', Wav2Vec2Model: words are timed by wav2vec2, hubert"):
            CtcAligner(str(speech_models / "wav2vec2"))
        with pytest.raises(ValueError, match="is 'whisper'"):
            CtcAligner(str(speech_models / "whisper"))

    def test_a_vocabulary_that_is_absent_or_not_the_models_is_refused(self, tmp_path):
        folder = save_model(tmp_path / "m")
        path = folder / "vocab.json"
        path.write_text(json.dumps({"<pad>": 0, "a": 32}))
        with pytest.raises(ValueError, match=r"vocab\.json has symbols up to 32, but the model 32"):
            CtcAligner(str(folder))
        path.write_text(json.dumps({"eng": {"a": 1}}))
        with pytest.raises(ValueError, match="does not number symbols; if it has vocabularies of several languages"):
            CtcAligner(str(folder))
        path.unlink()
        with pytest.raises(ValueError, match=r"vocab\.json is missing"):
            CtcAligner(str(folder))

    def test_another_delimiter_and_blank_are_the_models(self, tmp_path):
        folder = save_model(tmp_path / "m", ["a", "b", " ", "[PAD]"], pad_token_id=3)
        (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": " "}))
        samples, firsts = sung("ab a", ["[PAD]", "a", "b", " "])
        ids = {0: 3, 1: 0, 2: 1, 3: 2}
        samples = np.vectorize(lambda value: ids[round(value * 100)] / 100)(samples).astype(np.float32)
        found = listen(CtcAligner(str(folder))).align(samples, ["ab", "a"], "en")
        assert times_of(found) == pytest.approx(expected(["ab", "a"], firsts, "ab a"))


@pytest.mark.parametrize(("steps", "longest", "context"), [(1, 10, 2), (10, 10, 2), (11, 10, 2), (1000, 97, 12)])
def test_chunks_keep_every_step_once_and_stay_in_bounds(steps, longest, context):
    kept = []
    for chunk, inside in make_chunks(steps, longest, context):
        assert 0 <= chunk.start < chunk.stop <= steps
        assert chunk.stop - chunk.start <= longest
        kept.extend(range(steps)[chunk][inside])
    assert kept == list(range(steps))
