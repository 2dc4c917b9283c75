"""Of several faces the largest that is there consistently is followed, as if it were alone."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from corpora.demo.appearance import Motion
from corpora.demo.config import DemoConfig
from corpora.demo.face import render
from corpora.demo.plan import plan_clip, split_of_speakers
from corpora.demo.script import load_script
from extractors.base import Source
from extractors.vision import face_tracking
from extractors.vision.face_geometry import FEATURE_NAMES
from extractors.vision.face_landmarker import FaceLandmarkerVision
from extractors.vision.face_selection import FaceTracks, mask_other_faces

FPS, FRAMES = 10, 30
HEIGHT, WIDTH = 320, 640
LEFT, RIGHT = 0, 320
LARGE, SMALL = 1.25, 0.8  # of a picture of 256 pixels


def choose(*frames):
    """(x, side) of the selected box in each frame, given the (x, side) of all faces."""
    tracks = FaceTracks(1 / FPS)
    for number, boxes in enumerate(frames):
        tracks.add(np.array([(x, 100, side) for x, side in boxes], np.float32).reshape(-1, 3), number / FPS)
    return [None if np.isnan(box[0]) else tuple(box[[0, 2]].tolist()) for box in tracks.select()]


def test_the_larger_of_two_is_followed_whatever_their_order():
    large, small = (100, 50), (300, 30)
    assert choose(*[[large, small], [small, large]] * 5) == [large] * 10


def test_a_large_face_that_comes_later_wins_and_a_brief_one_does_not():
    small, large = (100, 40), (300, 90)
    assert choose(*[[small]] * 20, *[[small, large]] * 20)[20:] == [large] * 20
    assert choose(*[[small]] * 36, *[[small, large]] * 4) == [small] * 40


def test_faces_that_cross_are_kept_apart_by_their_size():
    path = [[(100 + 8 * n, 60), (340 - 8 * n, 30)] for n in range(30)]
    assert choose(*path) == [(100 + 8 * n, 60) for n in range(30)]


def test_after_a_cut_the_face_of_the_same_size_goes_on_and_the_other_does_not():
    assert choose(*[[(100, 60), (300, 30)]] * 10, *[[(100, 30), (300, 60)]] * 9) == [(100, 60)] * 10 + [(300, 60)] * 9


def test_a_face_that_the_detector_loses_keeps_its_place_for_a_while():
    large, small = (100, 60), (300, 30)
    found = choose(*[[large, small]] * 10, *[[small]] * 4, *[[large, small]] * 5, *[[small]] * 15)
    assert found == [large] * 24 + [None] * 10  # and is gone half a second later


def test_without_a_face_there_is_none_to_follow():
    assert choose([], [], []) == [None] * 3


def test_the_view_keeps_the_face_and_hides_the_others():
    image = np.full((100, 200, 3), 9, np.uint8)
    view = mask_other_faces(image, np.array([50, 50, 20.0]), np.array([[50, 50, 20], [72, 50, 16.0]]))
    assert (view[40:60, 40:60] == 9).all()
    assert not view[45:55, 64:80].any()  # the neighbour
    assert (view[27:40, 27:60] == 9).all()
    assert not view[:, 80:].any()
    assert not view.flags.writeable
    assert not mask_other_faces(image, np.full(3, np.nan), np.empty((0, 3))).any()


@pytest.fixture(scope="module")
def people():
    """Two drawn people [FRAMES, 256, 256, 3] that move and speak."""
    config = DemoConfig(clips=8, speakers=8)
    script, splits = load_script("en"), split_of_speakers(DemoConfig(clips=8, speakers=8))
    looks = [plan_clip(config, i, script, splits).speaker.look for i in (0, 1)]
    wave = np.sin(np.arange(FRAMES) / 3)
    still = np.zeros(FRAMES)
    motion = Motion(
        smile=wave, jaw=np.abs(wave), brow=wave / 2, blink=still, yaw=wave / 9, pitch=still, roll=still,
        shift=np.zeros((FRAMES, 2)),
    )  # fmt: skip
    return [render(look, motion)[..., ::-1] for look in looks]


@pytest.fixture
def film(people, tmp_path):
    """Write a clip of people: (who, scale, function of the picture's number that says where, None for nowhere)."""

    def write(name, *parts):
        path = tmp_path / f"{name}.mp4"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=Fraction(FPS), options={"crf": "12"})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(FRAMES):
                canvas = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
                for who, scale, where in parts:
                    left = where(number)
                    if left is not None:
                        picture = cv2.resize(
                            people[who][number], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
                        )
                        height, width = picture.shape[:2]
                        canvas[:height, left : left + width] = picture
                container.mux(video.encode(av.VideoFrame.from_ndarray(canvas, "rgb24")))
            container.mux(video.encode())
        return Source(name, path, "", "en", None)

    return write


def always(place):
    return lambda number: place


CASES = {
    "large on the left": ((0, LARGE, always(LEFT)), (1, SMALL, always(RIGHT))),
    "large on the right": ((1, LARGE, always(RIGHT)), (0, SMALL, always(LEFT))),
    "large comes later": ((0, LARGE, lambda n: RIGHT if n >= 8 else None), (1, SMALL, always(LEFT))),
    "large leaves": ((0, LARGE, lambda n: RIGHT if n < 20 else None), (1, SMALL, always(LEFT))),
    "large passes by": ((1, SMALL, always(LEFT)), (0, LARGE, lambda n: RIGHT if 9 <= n < 14 else None)),
    "they swap places": (
        (0, LARGE, lambda n: LEFT if n < 15 else RIGHT),
        (1, SMALL, lambda n: RIGHT if n < 15 else LEFT),
    ),
}


@pytest.fixture(scope="module")
def extractor():
    return FaceLandmarkerVision(fps=FPS)


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_followed_face_alone(film, extractor, case):
    followed, other = CASES[case]
    alone, both = extractor.extract([film("alone", followed), film("both", followed, other)])
    there = np.array([followed[2](n) is not None for n in range(FRAMES)])
    assert (alone.valid == there).mean() > 0.95  # a jump costs the landmarker a frame
    assert (both.valid == alone.valid).mean() > 0.95
    same = both.valid & alone.valid
    difference = np.abs(both.values[same] - alone.values[same])
    assert difference.mean() < 0.01
    head = [FEATURE_NAMES.index(name) for name in ("head_x", "head_scale")]
    assert difference[:, head].max() < 0.01


def test_a_clip_with_one_face_is_decoded_once_and_one_with_two_gives_the_same_again(film, extractor, monkeypatch):
    decoded = []
    read = face_tracking.read_frames
    monkeypatch.setattr(face_tracking, "read_frames", lambda media, fps: decoded.append(media.stem) or read(media, fps))
    one, two = film("one", CASES["large leaves"][0]), film("two", *CASES["large leaves"])
    first, second, again = extractor.extract([two, one, two])
    assert decoded == ["two"] * 3 + ["one"] + ["two"] * 3
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.valid, again.valid)
    assert second.valid[:20].all()
