"""The shared real clips through the extractors, with loose physical bounds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from extractors.base import FeatureSequence, MissingModalityError, Source
from media.container import probe

GRID = ("grid_bbaf2n.mpg", "grid_brbk7n.mpg")
WITH_FACE = (*GRID, "single_face.mp4")
ALL = (*WITH_FACE, "face_then_none.mov", "no_face.mp4", "silent_face.mp4", "bus_chinese.wav")


def sources(folder):
    return [Source(name, folder / name, "", "en", probe(folder / name).duration) for name in ALL]


@pytest.fixture(scope="module")
def vision(real_clips, face_landmarker):
    return dict(zip(ALL, face_landmarker.extract(sources(real_clips)), strict=True))


@pytest.fixture(scope="module")
def audio(real_clips, librosa_audio):
    return dict(zip(ALL, librosa_audio.extract(sources(real_clips)), strict=True))


def column(extractor, result, name):
    return result.values[result.valid, extractor.feature_names.index(name)]


@pytest.mark.parametrize("name", WITH_FACE)
def test_a_face_is_found_in_every_frame(vision, real_clips, name):
    assert vision[name].valid.all()
    assert len(vision[name]) == pytest.approx(probe(real_clips / name).duration * 25, abs=1.5)


def test_nobody_is_found_where_nobody_is(vision):
    assert len(vision["no_face.mp4"]) > 90
    assert not vision["no_face.mp4"].valid.any()
    assert not vision["no_face.mp4"].values.any()


def test_a_face_that_leaves_the_picture_ends_its_valid_steps(vision):
    valid = vision["face_then_none.mov"].valid
    left = np.flatnonzero(~valid)[0]
    assert valid[:left].all()
    assert not valid[left:].any()
    assert 2.0 < vision["face_then_none.mov"].start[left] < 3.0


def test_missing_streams_are_missing_modalities(vision, audio):
    assert isinstance(audio["silent_face.mp4"], MissingModalityError)
    assert isinstance(vision["bus_chinese.wav"], MissingModalityError)
    assert isinstance(vision["silent_face.mp4"], FeatureSequence)
    assert isinstance(audio["bus_chinese.wav"], FeatureSequence)


@pytest.mark.parametrize("name", WITH_FACE)
def test_head_and_eyes_are_where_they_can_be(vision, face_landmarker, name):
    result = vision[name]
    for angle in ("head_pitch", "head_yaw", "head_roll"):
        assert np.abs(column(face_landmarker, result, angle)).max() < 0.25  # they look at the camera
    for side in ("left", "right"):
        assert np.abs(column(face_landmarker, result, f"gaze_{side}_x")).max() < 0.5
        assert 0.15 < np.median(column(face_landmarker, result, f"eye_open_{side}")) < 0.45
    assert (column(face_landmarker, result, "mouth_width") > 0.5).all()
    assert (column(face_landmarker, result, "mouth_open") > -0.05).all()
    assert 0.05 < column(face_landmarker, result, "head_scale").mean() < 0.3


def test_a_head_bent_over_a_phone_looks_down_and_away(vision, face_landmarker):
    result = vision["silent_face.mp4"]
    assert result.valid.all()
    assert np.median(column(face_landmarker, result, "head_pitch")) < -0.15
    assert np.median(column(face_landmarker, result, "head_yaw")) < -0.1
    assert np.median(column(face_landmarker, result, "eye_open_left")) < 0.15  # lids down


def test_a_speaking_mouth_moves_more_than_the_head(vision, face_landmarker):
    for name in GRID:
        assert np.ptp(column(face_landmarker, vision[name], "mouth_open")) > 0.1
        assert np.ptp(column(face_landmarker, vision[name], "head_scale")) < 0.02


def test_a_clip_gives_the_same_features_after_any_other(vision, real_clips, face_landmarker):
    clips = [Source(name, real_clips / name, "", "en", None) for name in ("single_face.mp4", GRID[0])]
    _, again = face_landmarker.extract(clips)
    assert np.array_equal(again.values, vision[GRID[0]].values)


@pytest.mark.parametrize(
    ("name", "low", "high"), [(GRID[0], 70, 180), (GRID[1], 140, 280), ("bus_chinese.wav", 140, 300)]
)
def test_speakers_pitch_is_a_voices(audio, librosa_audio, name, low, high):
    result = audio[name]
    f0 = np.exp(column(librosa_audio, result, "log_f0"))
    assert f0.min() > 60
    assert f0.max() < 500
    assert low < np.median(f0) < high
    assert 0.2 < result.valid.mean() < 0.9


def test_sound_that_starts_late_is_silent_before(audio, real_clips):
    result = audio["face_then_none.mov"]
    assert not result.valid[result.end < 2.4].any()
    assert result.valid[result.start > 2.5].any()
    assert result.end[-1] == pytest.approx(probe(real_clips / "face_then_none.mov").duration, abs=0.1)


def test_extraction_of_real_clips_is_silent(real_clips):
    code = (
        "import sys; from pathlib import Path; from extractors.base import Source; "
        "from extractors.vision.face_landmarker import FaceLandmarkerVision; "
        "clips = [Source(p, Path(p), '', 'en', None) for p in sys.argv[1:]]; "
        "print([int(r.valid.sum()) for r in FaceLandmarkerVision(fps=5).extract(clips)])"
    )
    paths = [real_clips / "no_face.mp4", real_clips / GRID[0]]
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[0, 15]"
    assert ran.stderr == ""
