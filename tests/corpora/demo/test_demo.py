"""The generated corpus: media that plays, labels that follow the seed, words where they are said."""

from __future__ import annotations

import csv
import hashlib
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.demo.plan import INCONGRUENCE_CYCLE, draw_sentiments, incongruent_modality, plan_clip, split_of_speakers
from corpora.demo.script import compose, kind_of, languages, load_script
from corpora.demo.voice import Prosody, pronounce, synthesize, word_times
from corpora.manifest import MODALITIES, SPLITS

if TYPE_CHECKING:
    from pathlib import Path

CALM = Prosody(rate=170, pitch=50, pitch_range=50, gain=0.5, emphasis=1.0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def media(root: Path) -> list[Path]:
    return sorted((root / "Raw").rglob("*.mp4"))


def test_every_clip_plays_with_picture_and_sound(demo: Path) -> None:
    assert len(media(demo)) == 5
    for path in media(demo):
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
            assert container.streams.audio[0].codec_context.name == "aac"
            frames = sum(1 for _ in container.decode(video=0))
            container.seek(0)
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            rate = container.streams.audio[0].rate
        assert frames / 25 == pytest.approx(len(sound) / rate, abs=0.15)
        assert 1.0 < frames / 25 < 10.0
        assert np.sqrt(np.mean(sound**2)) > 0.01


def test_same_seed_gives_the_same_bytes_in_any_process(demo: Path, tiny_config: DemoConfig, tmp_path: Path) -> None:
    counted: list[int] = []
    generate(tmp_path, tiny_config, progress=counted.append, workers=2)
    assert sum(counted) == tiny_config.clips
    for name in ("label.csv", "words.csv"):
        assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()
    for ours, theirs in zip(media(tmp_path), media(demo), strict=True):
        assert ours.relative_to(tmp_path) == theirs.relative_to(demo)
        assert ours.read_bytes() == theirs.read_bytes(), ours.name


def test_the_english_demo_says_what_it_always_said(demo: Path) -> None:
    """Figures in the README are of these draws."""
    lines = (demo / "label.csv").read_text(encoding="utf-8").splitlines()
    assert {line.rpartition(",")[2] for line in lines} <= {"gender", "male", "female"}
    drawn = "".join(f"{line.rpartition(',')[0]}\n" for line in lines)  # without that column, which is no draw
    found = hashlib.sha256(drawn.encode()).hexdigest()
    assert found == "26b2f68b568ae86132abf4eb9cf874830a50ef01ebdda6f81b19bf44cbda39a5"


@pytest.fixture(scope="module")
def mandarin(tmp_path_factory: pytest.TempPathFactory, tiny_config: DemoConfig) -> Path:
    """Root of a generated corpus of five clips, labelled as CH-SIMS is."""
    root = tmp_path_factory.mktemp("mandarin")
    generate(root, tiny_config, "zh", workers=1, limit=1.0)
    return root


def test_mandarin_clips_speak_their_words_in_order(mandarin: Path) -> None:
    spoken: dict[str, list[dict[str, str]]] = {}
    for word in rows(mandarin / "words.csv"):
        spoken.setdefault(word["clip_id"], []).append(word)
    assert len(media(mandarin)) == len(spoken) == 5
    for row in rows(mandarin / "label.csv"):
        words = spoken[f"{row['video_id']}/{row['clip_id']}"]
        assert "".join(word["word"] for word in words) == row["text"]
        assert row["text"].endswith("。") and not any(character.isascii() for character in row["text"])
        times = [(float(word["start"]), float(word["end"])) for word in words]
        assert all(start < end for start, end in times)
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(times))
        with av.open(str(mandarin / "Raw" / row["video_id"] / f"{row['clip_id']}.mp4")) as container:
            assert times[-1][1] <= container.duration / av.time_base < 10
            assert container.streams.video and container.streams.audio


def test_mandarin_labels_are_those_of_ch_sims(mandarin: Path, demo: Path) -> None:
    columns = ("label", "label_T", "label_A", "label_V")
    for row, english in zip(rows(mandarin / "label.csv"), rows(demo / "label.csv"), strict=True):
        for column in columns:
            value = float(row[column])
            assert -1 <= value <= 1
            assert value * 5 == pytest.approx(round(value * 5))
            assert value == pytest.approx(float(english[column]) / 3, abs=0.15)  # the same latent sentiment
    assert len({tuple(row[column] for column in columns) for row in rows(mandarin / "label.csv")}) > 1
    assert any(len({row[column] for column in columns[1:]}) > 1 for row in rows(mandarin / "label.csv"))


def test_another_seed_says_something_else(demo: Path, tiny_config: DemoConfig) -> None:
    script, other = load_script("en"), DemoConfig(clips=5, speakers=4, seed=tiny_config.seed + 1)
    texts = [plan_clip(other, i, script, split_of_speakers(other)).text for i in range(5)]
    assert texts != [row["text"] for row in rows(demo / "label.csv")]


def test_words_are_the_transcript_in_order_within_the_clip(demo: Path) -> None:
    spoken: dict[str, list[dict[str, str]]] = {}
    for row in rows(demo / "words.csv"):
        spoken.setdefault(row["clip_id"], []).append(row)
    for row in rows(demo / "label.csv"):
        words = spoken.pop(f"{row['video_id']}/{row['clip_id']}")
        assert [word["word"] for word in words] == row["text"].split()
        assert [int(word["index"]) for word in words] == list(range(len(words)))
        with av.open(str(demo / "Raw" / row["video_id"] / f"{row['clip_id']}.mp4")) as container:
            duration = container.duration / av.time_base
        times = [(float(word["start"]), float(word["end"])) for word in words]
        assert times[0][0] >= 0.1
        assert all(start < end for start, end in times)
        assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(times))
        assert times[-1][1] <= duration
    assert spoken == {}


def test_words_are_where_the_sound_is(demo: Path) -> None:
    path = media(demo)[0]
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    words = [row for row in rows(demo / "words.csv") if row["clip_id"] == "speaker_000/0001"]
    first, last = float(words[0]["start"]), float(words[-1]["end"])
    loud = np.flatnonzero(np.abs(sound) > 0.02) / rate
    assert loud[0] == pytest.approx(first, abs=0.1)
    assert loud[-1] == pytest.approx(last, abs=0.1)


def test_labels_are_in_range_in_steps_of_a_fifth(demo: Path) -> None:
    for row in rows(demo / "label.csv"):
        for column in ("label", "label_T", "label_A", "label_V"):
            value = float(row[column])
            assert -3 <= value <= 3
            assert value * 5 == pytest.approx(round(value * 5))


def test_no_speaker_is_in_two_splits() -> None:
    config = DemoConfig(clips=320, speakers=40, seed=7)
    script, splits = load_script("en"), split_of_speakers(config)
    plans = [plan_clip(config, index, script, splits) for index in range(0, config.clips, 3)]
    of_speaker = {plan.video_id: {p.split for p in plans if p.video_id == plan.video_id} for plan in plans}
    assert all(len(found) == 1 for found in of_speaker.values())
    assert {name: splits.count(name) for name in SPLITS} == {"train": 24, "valid": 6, "test": 10}


def test_each_modality_is_off_equally_often_and_never_two_at_once() -> None:
    turns = [incongruent_modality(7, speaker, number) for speaker in range(4) for number in range(INCONGRUENCE_CYCLE)]
    for modality in MODALITIES:
        assert turns.count(modality) == 4


def test_modality_that_is_off_does_not_show_the_sentiment_and_the_others_do() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_sentiments("audio", rng) for _ in range(400)]
    latent = np.array([draw[0] for draw in draws])
    shown = {m: np.array([draw[1][m] for draw in draws]) for m in MODALITIES}
    assert np.corrcoef(latent, shown["text"])[0, 1] > 0.9
    assert np.corrcoef(latent, shown["vision"])[0, 1] > 0.9
    assert np.corrcoef(latent, shown["audio"])[0, 1] < -0.3


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("sentiment", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_sentences_have_a_sensible_length_and_stress_existing_words(sentiment: float, language: str) -> None:
    script, rng = load_script(language), np.random.default_rng(1)
    for _ in range(200):
        sentence = compose(script, sentiment, rng)
        assert 4 <= len(sentence.words) <= 20
        assert all(0 <= index < len(sentence.words) for index in sentence.emphasised)
        assert not any(set(word) & set("{}") or word in (",", ".", "\uff0c", "。") for word in sentence.words)


def test_kinds_of_sentences_follow_the_sentiment() -> None:
    kinds = [kind_of(s) for s in (-3, -1, 0.1, 1, 3)]
    assert kinds == ["strong_negative", "negative", "neutral", "positive", "strong_positive"]


def test_language_without_a_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"speaks en, zh, not 'tlh'"):
        generate(tmp_path, DemoConfig(clips=3, speakers=3), language="tlh")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speakers": 2}, "speakers must be at least 3"),
        ({"clips": 10, "speakers": 11}, "clips must be at least"),
        ({"seed": -1}, "seed must not be negative"),
        ({"clips": 3.5}, "clips must be a whole number"),
        ({"clips": True}, "clips must be a whole number"),
    ],
)
def test_config_out_of_range_says_which_option(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoConfig(**values)


def test_an_utterance_does_not_depend_on_what_was_said_before() -> None:
    first = synthesize(["hello", "there"], "en-us+f2", CALM)
    synthesize(["something", "else", "entirely"], "en-us+m3", CALM)
    again = synthesize(["hello", "there"], "en-us+f2", CALM)
    assert np.array_equal(first.samples, again.samples)
    assert (first.starts, first.ends) == (again.starts, again.ends)


def test_mandarin_voice_times_every_character() -> None:
    words = list("这部电影真的很好看")
    speech = synthesize(words, "cmn", CALM, joiner="")
    assert len(speech.starts) == len(words)
    assert all(start < end for start, end in zip(speech.starts, speech.ends, strict=True))
    assert speech.ends[-1] <= len(speech.samples) / speech.sample_rate


def test_unknown_voice_is_named() -> None:
    with pytest.raises(ValueError, match="no voice 'xx-none'"):
        synthesize(["hello"], "xx-none", CALM)


def test_words_are_pronounced_alike_in_any_order():
    words = ["write", "right", "read", "film"]
    sounds = dict(zip(words, pronounce(words, "en-us"), strict=True))
    assert sounds["write"] == sounds["right"] != sounds["film"]
    assert pronounce(words[::-1], "en-us") == [sounds[word] for word in words[::-1]]
    assert pronounce(["x"], "xx-none") is None


def test_words_said_as_one_share_its_time_and_pauses_belong_to_no_word() -> None:
    samples = np.zeros(100)
    samples[10:40], samples[60:100] = 0.5, 0.5
    starts, ends = word_times(["of", "the", "end."], 1, [(0, 10), (7, 60)], samples, 100)
    assert starts == pytest.approx([0.10, 0.22, 0.60])
    assert ends == pytest.approx([0.22, 0.40, 1.00])


def test_without_espeak_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match=r"pip install 'dashfusion\[demo\]'"):
        synthesize(["good"], "en-us", Prosody(150, 50, 50, 1.0, 1.0))


def test_face_landmarker_finds_the_avatar_and_measures_its_smile(demo: Path) -> None:
    from mediapipe.tasks.python.vision import FaceLandmarker

    from corpora.demo.appearance import Motion
    from corpora.demo.face import render
    from corpora.demo.plan import plan_speaker
    from extractors.vision.face_bundle import find_bundle
    from extractors.vision.face_tracking import to_mediapipe

    def lift(points: np.ndarray) -> float:
        """How far the mouth's corners are above its middle, over the distance of the eyes."""
        corners, middle = points[[61, 291], 1].mean(), points[[13, 14], 1].mean()
        return (middle - corners) / np.linalg.norm(points[33] - points[263])

    zero = np.zeros(2)
    motion = Motion(
        smile=np.array([0.7, -0.7]), jaw=zero, brow=zero, blink=zero, yaw=zero, pitch=zero, roll=zero,
        shift=np.zeros((2, 2)),
    )  # fmt: skip
    with FaceLandmarker.create_from_model_path(str(find_bundle())) as landmarker:

        def points_of(picture: np.ndarray) -> np.ndarray:
            found = landmarker.detect(to_mediapipe(picture)).face_landmarks
            assert found, "no face found"
            return np.array([(p.x, p.y) for p in found[0]])

        for speaker in range(4):
            glad, sad = (points_of(p[..., ::-1]) for p in render(plan_speaker(7, speaker).look, motion))
            assert lift(glad) > lift(sad) + 0.05
        with av.open(str(media(demo)[0])) as container:
            for frame in list(container.decode(video=0))[::10]:
                points_of(frame.to_ndarray(format="rgb24"))
