"""Features of videos that are in no corpus: the real clips, text from all sides, windows, mismatches, bad files."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from extractors.base import Source
from extractors.inference.feature_maker import FeatureMaker, in_other_script
from extractors.inference.media_features import extract_media
from extractors.registry import create
from extractors.transcripts.asr import Speech
from extractors.transcripts.words import Word
from model.prediction.protocol import FeatureFailure, Video, VideoFeatures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXTRACTORS = {
    "text": ("text.words", {}),
    "audio": ("audio.librosa", {"hop_seconds": 0.064}),
    "vision": ("vision.face_landmarker", {"fps": 10}),
}


def dataset(**changes: Any) -> dict[str, Any]:
    """What a dataset.json says that was made with `EXTRACTORS`."""
    modalities = {}
    for m, (name, options) in EXTRACTORS.items():
        built = create(name, options)
        modalities[m] = {"extractor": name, "options": options, "signature": built.signature}
        modalities[m]["dim"] = len(built.feature_names)
    base = {"mode": "unaligned", "mask_invalid": ["vision"], "language": "en", "modalities": modalities}
    return base | changes


@pytest.fixture(scope="module")
def maker() -> FeatureMaker:
    return FeatureMaker(dataset(), tuple(EXTRACTORS))


@pytest.fixture(scope="module")
def real(real_clips, maker) -> Callable[..., VideoFeatures]:
    """Features of a real clip, by name."""

    def made(name: str, text: str | None = None) -> VideoFeatures:
        (found,) = maker.make([Video(real_clips / name, text)])
        assert isinstance(found, VideoFeatures), found
        return found

    return made


def codes(made: VideoFeatures) -> set[str]:
    return {note.code for note in made.notes}


def steps(made: VideoFeatures) -> Mapping[str, int]:
    return {m: len(one.mask) for m, one in made.whole.steps.items()}


def test_a_whole_clip_has_what_its_extractors_make_of_it_alone(real, real_clips):
    made = real("grid_bbaf2n.mpg", "bin blue at f two now")
    assert codes(made) == set() and made.text_source == "given" and made.duration == pytest.approx(2.98, abs=0.05)
    for m, (name, options) in EXTRACTORS.items():
        source = Source("x", real_clips / "grid_bbaf2n.mpg", "bin blue at f two now", "en", made.duration)
        (expected,) = create(name, options).extract([source])
        np.testing.assert_array_equal(made.whole.steps[m].values, expected.values)
    assert made.seconds["decode"] > 0 and made.seconds["features"] > 0 and made.seconds["transcribe"] == 0


@pytest.mark.parametrize(
    ("name", "missing", "notes"),
    [
        ("bus_chinese.wav", {"text", "vision"}, {"no_text", "no_vision"}),
        ("silent_face.mp4", {"text", "audio"}, {"no_text", "no_audio"}),
        ("no_face.mp4", {"text"}, {"no_text", "no_face"}),
        ("face_then_none.mov", {"text"}, {"no_text", "no_face"}),
        ("single_face.mp4", {"text"}, {"no_text", "no_voice"}),
    ],
)
def test_what_a_real_clip_lacks_is_missing_and_said(real, name, missing, notes):
    made = real(name)
    assert {m for m, count in steps(made).items() if not count} == missing
    assert codes(made) == notes


def test_frames_without_a_face_are_counted_and_hidden(real):
    part, none = real("face_then_none.mov"), real("no_face.mp4")
    (note,) = (note for note in part.notes if note.code == "no_face")
    hidden = ~part.whole.steps["vision"].mask
    assert f"{hidden.mean():.0%} of the frames" in note.message and 0.5 < hidden.mean() < 0.8
    assert not none.whole.steps["vision"].mask.any() and len(none.whole.steps["vision"].mask)


def test_text_comes_from_a_file_or_nowhere(real_clips, maker, tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:00,500 --> 00:00:01,500\nbin blue\n")
    (tmp_path / "b.txt").write_text("")
    media = real_clips / "grid_bbaf2n.mpg"
    items = [Video(media, transcript=tmp_path / "a.srt"), Video(media, transcript=tmp_path / "b.txt"), Video(media)]
    timed, empty, none = maker.make(items)
    assert (timed.whole.text, timed.text_source) == ("bin blue", "file")
    np.testing.assert_allclose(timed.whole.steps["text"].start, [0.5, 0.9286], atol=1e-3)
    assert empty.text_source == none.text_source == "" and {"no_text"} == codes(empty) == codes(none)


class FakeRecogniser:
    """Hears the same in every sound."""

    heard: tuple[int, str] = (0, "")

    def __init__(self, model: str) -> None:
        if model == "absent":
            raise ValueError("model 'absent' is neither a folder nor in the local cache")

    def recognise(self, sounds, language):
        FakeRecogniser.heard = len(sounds[0]), language
        return [Speech("hello there", (Word("hello", 0.2, 0.8), Word("there", 1.0, 1.5)))]


def test_speech_is_recognised_where_there_is_no_transcript(real_clips, monkeypatch):
    monkeypatch.setattr("extractors.inference.feature_maker.create_recogniser", FakeRecogniser)
    listening = FeatureMaker(dataset(), tuple(EXTRACTORS), recogniser="a model")
    media = real_clips / "grid_bbaf2n.mpg"
    heard, given, mute = listening.make([Video(media), Video(media, "bin"), Video(real_clips / "silent_face.mp4")])
    assert (heard.whole.text, heard.text_source) == ("hello there", "asr") and "text_recognised" in codes(heard)
    np.testing.assert_allclose(heard.whole.steps["text"].start, [0.2, 1.0], atol=1e-6)
    assert FakeRecogniser.heard == (pytest.approx(2.98 * 16_000, abs=4000), "en")
    assert (given.whole.text, given.text_source) == ("bin", "given")
    assert mute.text_source == "" and "no_text" in codes(mute)
    with pytest.raises(ValueError, match="say which one is spoken"):
        FeatureMaker(dataset(language="mul"), tuple(EXTRACTORS), recogniser="a model")


def test_audio_is_standardised_by_the_whole_video_and_columns_are_the_datasets(real_clips, maker):
    described = dataset(normalise_audio="speaker")
    names = create(*EXTRACTORS["audio"]).feature_names
    kept = [names.index(name) for name in ("mfcc_3", "log_f0")]
    described["modalities"]["audio"] |= {"feature_names": ["mfcc_3", "log_f0"], "dim": 2}
    video = Video(real_clips / "grid_bbaf2n.mpg", "bin blue at f two now")
    (raw,) = maker.make([video], window=1.5, hop=1.5)
    (made,) = FeatureMaker(described, tuple(EXTRACTORS)).make([video], window=1.5, hop=1.5)
    whole = raw.whole.steps["audio"].values[:, kept].astype(float)
    assert len(made.windows) > 1
    for one, other in [(raw.whole, made.whole), *zip(raw.windows, made.windows, strict=True)]:
        expected = (one.steps["audio"].values[:, kept] - whole.mean(axis=0)) / whole.std(axis=0)
        np.testing.assert_allclose(other.steps["audio"].values, expected, atol=1e-4)
        np.testing.assert_array_equal(one.steps["vision"].values, other.steps["vision"].values)


def test_windows_hold_their_own_steps_and_words(real_clips, maker, tmp_path):
    (tmp_path / "a.srt").write_text(
        "1\n00:00:00,000 --> 00:00:01,400\nbin blue\n\n2\n00:00:01,600 --> 00:00:02,900\nat f two now\n"
    )
    item = Video(real_clips / "grid_bbaf2n.mpg", transcript=tmp_path / "a.srt")
    (made,) = maker.make([item], window=1.5, hop=1.5)
    assert [window.text for window in made.windows] == ["bin blue", "at f two now"]
    assert made.windows[0].start == 0 and made.windows[1].end == pytest.approx(made.duration)
    for m in ("audio", "vision"):
        inside = np.concatenate([window.steps[m].values for window in made.windows])
        np.testing.assert_array_equal(inside, made.whole.steps[m].values[: len(inside)])
        assert len(inside) >= len(made.whole.steps[m].values) - 2
    assert made.windows[1].steps["vision"].start[0] < 0.15 and made.windows[1].steps["text"].start[0] < 0.3
    (short,) = maker.make([item], window=1.5, hop=1.5, longer_than=3.0)
    assert short.windows == ()


def test_aligned_mode_pools_onto_the_texts_steps(real_clips):
    pooling = FeatureMaker(dataset(mode="aligned"), ("vision",))  # text and audio as well, for the words' times
    spoken, silent = pooling.make(
        [Video(real_clips / "grid_bbaf2n.mpg", "bin blue at f two now"), Video(real_clips / "grid_bbaf2n.mpg")]
    )
    assert steps(spoken)["vision"] == 1 == steps(silent)["vision"]  # nobody reads text: one step over the clip
    reading = FeatureMaker(dataset(mode="aligned"), tuple(EXTRACTORS))
    (made,) = reading.make([Video(real_clips / "grid_bbaf2n.mpg", "bin blue at f two now")])
    assert set(steps(made).values()) == {6}


def test_bad_files_fail_alone_and_say_what_to_do(real_clips, maker, make_clip, tmp_path):
    good = real_clips / "grid_bbaf2n.mpg"
    (tmp_path / "notes.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(make_clip(tmp_path / "whole.mp4").read_bytes()[:3000])
    odd = tmp_path / "ein \U0001f600 [bold]; $(x).mpg"
    odd.write_bytes(good.read_bytes())
    (tmp_path / "bad.srt").write_text("no subtitles")
    items = [Video(tmp_path / name) for name in ("nowhere.mp4", "", "notes.mp4", "empty.mp4")]
    items += [Video(torn, "text helps nothing"), Video(odd)]
    items += [Video(good, transcript=tmp_path / "bad.srt"), Video(good)]
    results = list(maker.make(items))
    assert [isinstance(result, VideoFeatures) for result in results] == [False] * 5 + [True, False, True]
    for result, word in zip(results, ["no such file", "a folder", "not a media file", "zero bytes"], strict=False):
        assert isinstance(result, FeatureFailure) and word in result.message
    assert "bad.srt" in results[6].message


def test_a_modality_that_is_damaged_counts_as_missing(maker, real_clips, monkeypatch):
    from extractors.vision.face_landmarker import FaceLandmarkerVision

    monkeypatch.setattr(FaceLandmarkerVision, "_extract", lambda self, media: 1 / 0)
    (made,) = maker.make([Video(real_clips / "grid_bbaf2n.mpg", "bin blue")])
    assert steps(made)["vision"] == 0 and steps(made)["audio"] > 0
    assert any(note.code == "vision_failed" and "division by zero" in note.message for note in made.notes)


def test_worker_processes_find_the_same(maker, real_clips, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    items = [Video(real_clips / "grid_bbaf2n.mpg", "bin blue"), Video(tmp_path / "notes.mp4"),
             Video(real_clips / "bus_chinese.wav"), Video(real_clips / "silent_face.mp4")]  # fmt: skip
    here, there = list(maker.make(items)), list(maker.make(items, workers=2))
    for a, b in zip(here, there, strict=True):
        assert type(a) is type(b)
        if isinstance(a, VideoFeatures):
            assert codes(a) == codes(b) and a.duration == b.duration
            for m in EXTRACTORS:
                np.testing.assert_allclose(a.whole.steps[m].values, b.whole.steps[m].values, atol=1e-5)


def test_a_worker_that_hangs_fails_its_file_and_the_next_goes_on(maker, real_clips):
    first, second = maker.make([Video(real_clips / "grid_bbaf2n.mpg")] * 2, workers=1, timeout=0.01)
    assert isinstance(first, FeatureFailure) and first.error == "Timeout" and "0.01 s" in first.message
    assert isinstance(second, FeatureFailure)


def test_results_come_in_the_order_of_the_files_and_reading_begins_at_once(real_clips, monkeypatch):
    begun = threading.Event()
    monkeypatch.setattr(
        "extractors.inference.feature_maker.extract_media", lambda *arguments: begun.set() or extract_media(*arguments)
    )
    reading = FeatureMaker(dataset(), ("audio",))
    results = reading.make([Video(real_clips / "bus_chinese.wav"), Video(real_clips / "grid_bbaf2n.mpg")])
    assert begun.wait(30)
    assert [round(made.duration) for made in results] == [3, 3]


def test_what_the_network_does_not_read_is_not_made(real_clips):
    only = FeatureMaker(dataset(), ("audio",))
    (made,) = only.make([Video(real_clips / "grid_bbaf2n.mpg", "bin blue")])
    assert {m for m, count in steps(made).items() if count} == {"audio"} and codes(made) == set()
    tokens = FeatureMaker(dataset(), ("text",), tokens=True)
    (made,) = tokens.make([Video(real_clips / "grid_bbaf2n.mpg", "bin blue")])
    assert made.whole.text == "bin blue" and not any(steps(made).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": "audio.nowhere"}, "no extractor is called 'audio.nowhere'.*install what is missing"),
        ({"signature": "audio.librosa-v1-000000000000"}, "audio.librosa-v1-000000000000.*install the version"),
        ({"options": {"hops": 3}}, "hops"),
        ({"extractor": "audio.imported", "options": {"layout": "mmsa_pickle"}}, "from_features"),
    ],
)
def test_features_that_would_be_others_than_the_trainings_are_refused(change, message):
    other = copy.deepcopy(dataset())
    other["modalities"]["audio"] |= change
    with pytest.raises(ValueError, match=f"(?s)audio features.*{message}"):
        FeatureMaker(other, tuple(EXTRACTORS))
    FeatureMaker(other, ("text", "vision"))  # nobody looks at it


def test_a_text_that_is_changed_or_cannot_be(real_clips):
    with pytest.raises(ValueError, match=r"text.words.*no network"):
        FeatureMaker(dataset(), tuple(EXTRACTORS), change_text=lambda model: model)


@pytest.mark.parametrize(
    ("text", "language", "other"),
    [
        ("good", "en", False), ("今天很好", "en", True), ("今天很好", "zh", False), ("good day", "zh", True),
        ("すごい", "ja", False), ("", "en", False), ("12", "en", False), ("今天", "", False),
    ],
)  # fmt: skip
def test_another_script_than_the_languages_is_seen(text, language, other):
    assert in_other_script(text, language) is other


def test_another_script_is_said(real_clips, maker):
    (made,) = maker.make([Video(real_clips / "bus_chinese.wav", "今天很好")])
    assert "other_language" in codes(made)
    chinese = FeatureMaker(dataset(), tuple(EXTRACTORS), language="zh")  # of a network that was trained on English
    (made,) = chinese.make([Video(real_clips / "bus_chinese.wav", "今天很好")])
    assert any(note.message.startswith("zh is spoken") for note in made.notes if note.code == "other_language")
