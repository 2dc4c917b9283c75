"""The transcribe stage on made clips, with a Whisper and a CTC model of random weights: who says what when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corpora.manifest import Clip, Manifest, write_manifest
from extractors.execution.cache import traceback_path
from extractors.execution.workers import Worker
from extractors.transcripts import transcribe as stage
from extractors.transcripts.asr import Recogniser
from extractors.transcripts.table import Transcript, read_transcripts, with_transcripts, write_transcripts
from extractors.transcripts.transcribe import TranscribeConfig, model_identities, transcribe
from media.audio import read_audio

VOCABULARY = [" good", " film", " no", " plot", " 好", "看"]
SPECIAL = ("endoftext", "startoftranscript", "en", "zh", "translate", "transcribe", "startoflm", "startofprev")
SPECIAL = tuple(f"<|{name}|>" for name in (*SPECIAL, "nospeech", "notimestamps"))


def make_whisper(folder: Path) -> Path:
    """A Whisper of random weights that says words of `VOCABULARY`; its window is two seconds."""
    import torch
    import transformers as hf
    from tokenizers import AddedToken
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    words = ["".join(piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(w)) for w in VOCABULARY]
    vocabulary = {text: i for i, text in enumerate([*alphabet, *words])}
    end = SPECIAL[0]
    tokenizer = hf.WhisperTokenizer(
        vocab=vocabulary, merges=[], unk_token=end, bos_token=end, eos_token=end, pad_token=end
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", special=False, normalized=False) for i in range(101)])
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    torch.manual_seed(3)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8}
    sizes |= {"max_source_positions": 100, "max_target_positions": 20, "init_std": 0.5}
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), ids[end])
    model = hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(vocab_size=len(tokenizer), decoder_start_token_id=ids[SPECIAL[1]], **sizes, **ends)
    )
    said = {
        "_from_model_config": False,
        "alignment_heads": [[1, 0]],
        "is_multilingual": True,
        "lang_to_id": {name: ids[name] for name in ("<|en|>", "<|zh|>")},
        "max_initial_timestamp_index": 50,
        "max_length": 12,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": [*range(len(alphabet)), *(ids[name] for name in SPECIAL[1:])],
        "task_to_id": {name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
    }
    for name, value in said.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=8, chunk_length=2).save_pretrained(folder)
    return folder


def make_ctc(folder: Path) -> Path:
    """A wav2vec2 for letters, of random weights."""
    import torch
    import transformers as hf

    folder.mkdir()
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    hf.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config = hf.Wav2Vec2Config(vocab_size=len(symbols), pad_token_id=0, **sizes)
    hf.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("models") / "whisper")


@pytest.fixture(scope="module")
def ctc(tmp_path_factory) -> Path:
    return make_ctc(tmp_path_factory.mktemp("models") / "ctc")


@pytest.fixture(scope="module")
def media(tmp_path_factory, make_clip) -> Path:
    """Clips 0 to 3 of a sweep, 1 to 2.5 s; one without sound, one that is broken."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(4):
        time = np.arange(round((1 + number / 2) * 44_100)) / 44_100
        wave = np.sin(2 * np.pi * (150 + 60 * number * np.sin(5 * time)) * time) * (0.3 + 0.2 * np.sin(9 * time))
        make_clip(folder / f"{number}.wav", "a", audio=wave, codecs=("", "pcm_s16le"))
    make_clip(folder / "mute.mp4", "v", seconds=0.2)
    (folder / "broken.mp4").write_text("no media")
    return folder


class InProcess(Worker):
    """A worker without the process: starting one takes longer than all that these clips do."""

    running = True

    def call(self, timeout, function, *arguments):
        return function(*arguments)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(stage, "Worker", InProcess)


class Place:
    """A manifest of clips in `media`, and the stage's output and scratch."""

    def __init__(self, root: Path, media: Path, texts: dict[str, str], language: str = "en") -> None:
        self.root, self.scratch = root, root / "scratch"
        clips = [Clip(f"v/{Path(name).stem}", "v", "train", language, name, text) for name, text in texts.items()]
        write_manifest(Manifest("made", str(media), (-3.0, 3.0), clips), root / "manifest.parquet")

    def run(
        self, out: str = "t.parquet", clip_timeout: float = 60.0, fresh: bool = False, **config
    ) -> stage.TranscribeSummary:
        config = {name: str(value) for name, value in config.items()}
        manifest = self.root / "manifest.parquet"
        tables = manifest, self.root / out
        return transcribe(*tables, TranscribeConfig(**config), self.scratch, clip_timeout, fresh=fresh)

    def rows(self, out: str = "t.parquet") -> dict[str, Transcript]:
        return read_transcripts(self.root / out)

    def words(self, lines: list[str]) -> Path:
        path = self.root / "words.csv"
        path.write_text("\n".join(["clip_id,index,word,start,end", *lines]), encoding="utf-8")
        return path


def check_times(row: Transcript, seconds: float) -> None:
    """As many times as words, in order, inside the clip."""
    assert len(row.words) == len(row.start) == len(row.end) > 0
    assert all(0 <= start <= end <= seconds + 1e-6 for start, end in zip(row.start, row.end, strict=True))
    assert list(row.start) == sorted(row.start)


def test_without_models_the_corpuss_transcripts_go_through(tmp_path, media):
    place = Place(tmp_path, media, {"0.wav": " Well, “fine”. ", "1.wav": "", "2.wav": " "})
    summary = place.run()
    rows = place.rows()
    assert rows["v/0"] == Transcript("v/0", " Well, “fine”. ", "corpus", ["Well,", "“fine”."], [], [], "")
    assert rows["v/1"] == Transcript("v/1", "", "", [], [], [], "") and rows["v/2"].text == ""
    assert (summary.texts, summary.methods) == ({"corpus": 1, "none": 2}, {"proportional": 1})
    assert summary.processed == 0 and not summary.problems and not place.scratch.exists()


def test_a_stage_with_nothing_to_hear_loads_no_model_library(tmp_path, media):
    Place(tmp_path, media, {"0.wav": "Fine."})
    code = (
        "import sys; from pathlib import Path\n"
        "from extractors.transcripts.transcribe import TranscribeConfig, transcribe\n"
        f"root = Path({str(tmp_path)!r})\n"
        "transcribe(root / 'manifest.parquet', root / 't.parquet', TranscribeConfig(), root / 'scratch', 1.0)\n"
        "print({'torch', 'transformers', 'librosa'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_clips_without_a_transcript_get_the_recognisers_in_a_process_of_its_own(tmp_path, media, whisper):
    texts = {"0.wav": "Corpus text.", "1.wav": "", "3.wav": " ", "mute.mp4": "", "broken.mp4": ""}
    place = Place(tmp_path, media, texts)
    seen: list[tuple[str, int, int]] = []
    config = TranscribeConfig(model=str(whisper))
    summary = transcribe(
        tmp_path / "manifest.parquet", tmp_path / "t.parquet", config, place.scratch, 60.0, lambda *s: seen.append(s)
    )
    rows = place.rows()
    assert (rows["v/0"].text, rows["v/0"].text_source, rows["v/0"].times_method) == ("Corpus text.", "corpus", "")
    for name, seconds in (("v/1", 1.5), ("v/3", 2.5)):  # longer than the model's window, too
        assert (rows[name].text_source, rows[name].times_method) == ("asr", "asr")
        assert rows[name].text and {*rows[name].text} <= {*"".join(VOCABULARY)}
        check_times(rows[name], seconds)
    assert rows["v/mute"].text == rows["v/broken"].text == ""
    (problem,) = summary.failures
    assert (problem.clip_id, problem.stage, problem.error) == ("v/broken", "transcribe", "MediaError")
    assert "MediaError" in traceback_path(place.scratch, problem.traceback).read_text()
    assert (summary.texts, summary.processed) == ({"corpus": 1, "asr": 2, "none": 2}, 3)
    assert seen[0] == ("recognise speech", 0, 4) and seen[-1] == ("recognise speech", 4, 4)


def test_what_was_heard_once_is_not_heard_again(tmp_path, media, whisper, in_process):
    place = Place(tmp_path, media, {"0.wav": "", "1.wav": "", "2.wav": ""})
    assert place.run("a.parquet", model=whisper).processed == 3
    assert place.run("b.parquet", model=whisper).processed == 0
    assert place.run("b.parquet", model=whisper, fresh=True).processed == 3
    kept = sorted(place.scratch.glob("transcribe.asr-*/*/*.json"))
    (identity,) = model_identities(TranscribeConfig(str(whisper)))
    assert len(kept) == 3 and {path.parents[1].name for path in kept} == {identity.signature}
    kept[0].unlink()
    kept[1].write_text('{"text": "cut of')
    changed = json.loads(kept[2].read_text())
    kept[2].write_text(json.dumps(changed | {"text": changed["text"] + "x"}))
    assert place.run("c.parquet", model=whisper).processed == 3
    older = json.loads(kept[2].read_text())  # without a checksum
    older.pop("crc32")
    kept[2].write_text(json.dumps(older))
    assert place.run("c.parquet", model=whisper).processed == 0
    contents = {(tmp_path / name).read_bytes() for name in ("a.parquet", "b.parquet", "c.parquet")}
    assert len(contents) == 1


def test_a_replaced_file_or_another_model_is_heard_anew(tmp_path, media, whisper, in_process):
    folder = tmp_path / "media"
    folder.mkdir()
    for name in ("0.wav", "1.wav"):
        shutil.copy(media / name, folder)
    place = Place(tmp_path, folder, {"0.wav": "", "1.wav": ""})
    place.run(model=whisper)
    shutil.copy(media / "2.wav", folder / "0.wav")
    assert place.run(model=whisper).processed == 1
    other = shutil.copytree(whisper, tmp_path / "other")
    said = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(said | {"max_length": 8}))
    assert place.run(model=other).processed == 2


def test_times_come_from_the_corpus_then_the_aligner_then_the_recogniser(tmp_path, media, whisper, ctc, in_process):
    texts = {"0.wav": "Given times.", "1.wav": "Of no file.", "2.wav": ""}
    place = Place(tmp_path, media, texts)
    words = place.words(["v/0,0,given,0.1,0.4", "v/0,1,times,0.5,0.75"])
    place.run(model=whisper, word_times=words)
    assert [row.times_method for row in place.rows().values()] == ["file", "", "asr"]
    summary = place.run(model=whisper, word_times=words, aligner=ctc)
    rows = place.rows()
    assert [row.times_method for row in rows.values()][:2] == ["file", "ctc"]
    assert (rows["v/0"].start, rows["v/0"].end) == ([pytest.approx(0.1), 0.5], [pytest.approx(0.4), 0.75])
    check_times(rows["v/1"], 1.5)
    assert rows["v/2"].text_source == "asr" and rows["v/2"].times_method == (
        "asr" if any(p.clip_id == "v/2" for p in summary.problems) else "ctc"
    )
    assert summary.processed == 2 and not summary.failures  # the recogniser's result was there
    assert place.run(model=whisper, word_times=words, aligner=ctc).processed <= 1


def test_words_that_are_not_the_transcripts_are_listed_and_timed_by_another_method(tmp_path, media, ctc, in_process):
    place = Place(tmp_path, media, {"0.wav": "A good film.", "1.wav": "电影 123"})
    words = place.words(["v/0,0,something,0.1,0.4", "v/1,0,else,0.1,0.4"])
    summary = place.run(word_times=words, aligner=ctc)
    rows = place.rows()
    assert rows["v/0"].times_method == "ctc" and rows["v/1"].times_method == ""
    assert [(p.clip_id, p.error) for p in summary.problems] == [
        ("v/0", "OtherWords"), ("v/1", "OtherWords"), ("v/1", "NotAligned"),
    ]  # fmt: skip
    assert not summary.failures and summary.methods == {"ctc": 1, "proportional": 1}


def test_a_clip_that_takes_too_long_is_listed_and_keeps_what_it_has(tmp_path, media, ctc, monkeypatch):
    place = Place(tmp_path, media, {"0.wav": "Fine."})
    summary = place.run(aligner=ctc, clip_timeout=1e-4)
    (problem,) = summary.failures
    assert problem.error == "Timeout" and "extract.clip_timeout" in problem.message
    assert place.rows()["v/0"].text == "Fine."
    monkeypatch.setattr(stage, "Worker", InProcess)  # the next run tries again
    assert place.run(aligner=ctc).processed == 1


def test_a_language_that_the_recogniser_does_not_know_fails_its_clips_alone(tmp_path, media, whisper, in_process):
    clips = [Clip(f"v/{i}", "v", "train", language, f"{i}.wav", "") for i, language in enumerate(("en", "de", "zh"))]
    place = Place(tmp_path, media, {})
    write_manifest(Manifest("made", str(media), (-3.0, 3.0), clips), tmp_path / "manifest.parquet")
    (problem,) = place.run(model=whisper).failures
    assert problem.clip_id == "v/1" and "<|de|> is not supported" in problem.message
    assert [bool(row.text) for row in place.rows().values()] == [True, False, True]


def sounds(media: Path, *numbers: int) -> list[np.ndarray]:
    return [read_audio(media / f"{number}.wav", 16_000) for number in numbers]


def test_clips_that_are_recognised_together_say_the_same_as_alone(media, whisper):
    recogniser = Recogniser(str(whisper))
    heard = sounds(media, 0, 1, 2)
    assert recogniser.recognise(heard, "en") == [recogniser.recognise([one], "en")[0] for one in heard]
    assert recogniser.recognise(sounds(media, 0, 3), "en")[1] == recogniser.recognise(sounds(media, 3), "en")[0]


def test_a_whisper_of_one_language_and_without_alignment_heads_gives_text_alone(tmp_path, media, whisper):
    folder = shutil.copytree(whisper, tmp_path / "whisper")
    said = json.loads((folder / "generation_config.json").read_text())
    del said["alignment_heads"], said["lang_to_id"], said["task_to_id"]
    (folder / "generation_config.json").write_text(json.dumps(said | {"is_multilingual": False}))
    (speech,) = Recogniser(str(folder)).recognise(sounds(media, 1), "en")
    assert speech.text and speech.words == ()


def test_a_ctc_model_recognises_as_well(media, ctc):
    recogniser = Recogniser(str(ctc))
    (speech,) = recogniser.recognise(sounds(media, 3), "en")
    assert speech.text == " ".join(word.text for word in speech.words if word.text)
    assert all(0 <= word.start <= word.end <= 2.5 for word in speech.words)
    assert recogniser.load() == 1


def test_models_of_other_kinds_are_refused(speech_models, tmp_path, media):
    with pytest.raises(ValueError, match="is Wav2Vec2Model: choose a Whisper"):
        Recogniser(str(speech_models / "wav2vec2"))
    with pytest.raises(ValueError, match="is WhisperModel: choose a Whisper"):
        Recogniser(str(speech_models / "whisper"))
    with pytest.raises(ValueError, match="neither a folder"):
        Place(tmp_path, media, {"0.wav": ""}).run(model="nobody-here/no-such-model")


@pytest.mark.parametrize("options", [{"model": ""}, {"segments": "labels.csd"}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match="transcribe"):
        TranscribeConfig(**options)


def test_the_manifest_takes_its_texts_from_the_transcripts(tmp_path):
    clips = [Clip(f"v/{i}", "v", "train", "en", "", text) for i, text in enumerate(("Corpus.", ""))]
    manifest = Manifest("made", "raw", (-3.0, 3.0), clips)
    rows = [Transcript("v/0", "Corpus.", "corpus", ["Corpus."]), Transcript("v/1", "Heard", "asr", ["Heard"])]
    write_transcripts(rows, tmp_path / "t.parquet")
    read = read_transcripts(tmp_path / "t.parquet")
    assert [clip.text for clip in with_transcripts(manifest, read).clips] == ["Corpus.", "Heard"]
    del read["v/1"]
    with pytest.raises(ValueError, match=r"1 clips, v/1 the first, .*run the transcribe stage again"):
        with_transcripts(manifest, read)
    with pytest.raises(FileNotFoundError, match="dashfusion transcribe"):
        read_transcripts(tmp_path / "nowhere.parquet")
    write_manifest(manifest, tmp_path / "m.parquet")
    with pytest.raises(ValueError, match="run the transcribe stage again"):
        read_transcripts(tmp_path / "m.parquet")
