"""What the corruptions of the picture do, measured on the files that they write."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest

from extractors.base import Source
from extractors.corruption.vision import blur, drop_frames, lower_rate, occlude, write_frames
from media.container import MissingStreamError, probe
from media.video import read_frames, read_stored_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALL = (blur, occlude, drop_frames, lower_rate)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noisy_picture(number: int) -> np.ndarray:
    return np.random.default_rng(number // 5).integers(60, 200, (48, 64, 3))


def write_stored(path: Path, pixel_format: str, width: int = 64, height: int = 48) -> Path:
    """A second of random smooth pictures in a pixel format."""
    import cv2

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for number in range(25):
            image = cv2.resize(
                rng.integers(0, 256, (4, 4, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
            )
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def same_pictures(one: Path, other: Path, fps: float = 25) -> bool:
    pairs = zip(read_frames(one, fps), read_frames(other, fps), strict=True)
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in pairs)


def stamps(path: Path) -> list[tuple[Fraction, Fraction]]:
    return [(start, end) for _, start, end in read_stored_frames(path)]


@pytest.mark.parametrize(
    "made",
    [
        {"fps": 25},
        {"fps": 30000 / 1001},
        {"times": [0, 0.1, 0.11, 0.5, 1.2, 1.21]},
        {"times": [0.52 + 0.04 * i for i in range(10)]},  # the sound comes first
        {"rotation": 90},
        {"rotation": 180},
        {"pixel_aspect": Fraction(64, 45)},
        {"streams": "v"},
    ],
    ids=lambda made: next(iter(made)),
)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_what_is_not_corrupted_stays_bit_for_bit(make_clip, tmp_path, made, ending):
    clip = make_clip(tmp_path / f"clip.{ending}", **{"streams": "va"} | made)
    written = write_frames(clip, tmp_path / "out", lambda frames: frames)
    assert same_pictures(clip, written)
    assert probe(written).width == 64
    for before, after in zip(stamps(clip), stamps(written), strict=True):
        assert after == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "rgb24"])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_pictures_of_any_format_and_size_come_through(tmp_path, pixel_format, size):
    clip = write_stored(tmp_path / "clip.nut", pixel_format, *size)
    written = write_frames(clip, tmp_path / "out", lambda frames: frames)
    for (_, before), (_, after) in zip(read_frames(clip, 25), read_frames(written, 25), strict=True):
        assert after.shape == (size[1], size[0], 3)
        assert np.abs(after.astype(int) - before).mean() < 4  # of 255: how colours are made finer differs
    if pixel_format == "yuv444p" or (pixel_format == "yuv420p" and size == (64, 48)):
        assert same_pictures(clip, written)


@pytest.mark.parametrize("name", ["grid_bbaf2n.mpg", "single_face.mp4", "face_then_none.mov", "silent_face.mp4"])
def test_real_pictures_stay_bit_for_bit(real_clips, tmp_path, name):
    assert same_pictures(real_clips / name, write_frames(real_clips / name, tmp_path / "out", lambda frames: frames))


def detail(path: Path) -> float:
    """Mean absolute difference of neighbouring pixels."""
    return float(np.mean([np.abs(np.diff(image.astype(int), axis=1)).mean() for _, image in read_frames(path, 5)]))


def test_blurred_pictures_lose_their_detail_and_keep_their_brightness(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", "v", image=noisy_picture)
    files = [clip, *(blur(clip, tmp_path / f"{x}", x, rng()) for x in (0.01, 0.03, 0.1, 0.5))]
    found = [detail(path) for path in files]
    assert found == sorted(found, reverse=True) and found[-1] < 0.1 * found[0]
    light = [np.mean([image.mean() for _, image in read_frames(path, 5)]) for path in files]
    assert light == pytest.approx([light[0]] * len(light), abs=2)


@pytest.mark.parametrize("level", [0.02, 0.05, 0.2])  # the last two are done on smaller planes
def test_a_blurred_edge_rises_as_the_gaussian_integral_of_that_width(make_clip, tmp_path, level):
    from scipy.stats import norm

    picture = np.full((48, 64, 3), 50)
    picture[:, 32:] = 200
    clip = make_clip(tmp_path / "clip.mp4", "v", seconds=0.2, image=lambda number: picture)
    sizes = {"small": clip, "large": enlarged(clip, tmp_path / "large.mkv", 10)}
    for path in sizes.values():
        _, image = next(iter(read_frames(blur(path, tmp_path / f"{path.stem}-blurred", level, rng()), 25)))
        height, width = image.shape[:2]
        row = image[height // 2].mean(axis=1)
        x = (np.arange(width) + 0.5 - width / 2) / (level * height)
        inside = np.abs(x) * level * height < width / 4  # where the picture's own edges are far
        expected = row.min() + np.ptp(row) * norm.cdf(x)
        if level < 0.2:
            assert np.abs(row - expected)[inside].max() < 0.04 * 150
        assert row[width // 2 - 1 : width // 2 + 1].mean() == pytest.approx(125, abs=6)


def enlarged(clip: Path, path: Path, factor: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64 * factor, 48 * factor, "yuv420p"
        for frame, *_ in read_stored_frames(clip):
            container.mux(stream.encode(frame.reformat(64 * factor, 48 * factor, interpolation="POINT")))
        container.mux(stream.encode(None))
    return path


def patches(path: Path, fps: float = 25) -> list[np.ndarray]:
    """[H, W] bool of each picture: where a white clip is no longer white."""
    return [image.mean(axis=2) < 200 for _, image in read_frames(path, fps)]


@pytest.fixture
def white(make_clip, tmp_path) -> Path:
    return make_clip(tmp_path / "white.mp4", "v", seconds=4, image=lambda number: np.full((48, 64, 3), 250))


@pytest.mark.parametrize("level", [0.1, 0.25, 0.6, 1.0])
def test_the_patch_covers_so_much_of_every_picture(white, tmp_path, level):
    for seed in range(3):
        found = [patch.mean() for patch in patches(occlude(white, tmp_path / "out", level, rng(seed)))]
        assert len(found) == 100
        assert found == pytest.approx([level] * 100, abs=0.05)  # whole pixels of a picture of 64 x 48


def test_the_patch_moves_slowly_and_a_larger_one_covers_the_smaller(white, tmp_path):
    small, large = (patches(occlude(white, tmp_path / f"{x}", x, rng())) for x in (0.1, 0.3))
    assert all((~a | b).mean() > 0.99 for a, b in zip(small, large, strict=True))
    steps = [(a != b).mean() for a, b in pairwise(small)]
    assert max(steps) < 0.05 and (small[0] != small[-1]).mean() > 0.05
    elsewhere = patches(occlude(white, tmp_path / "other", 0.1, rng(1)))
    assert (elsewhere[0] != small[0]).any()


def kept_numbers(path: Path, frame_number: Callable) -> list[int]:
    return [frame_number(image) for _, image in read_frames(path, 25)]


def test_so_many_frames_are_lost_and_the_one_before_stays_on_the_screen(make_clip, frame_number, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", "v", seconds=10)
    few, many = (drop_frames(clip, tmp_path / f"{x}", x, rng()) for x in (0.2, 0.7))
    for path, level in ((few, 0.2), (many, 0.7)):
        shown = kept_numbers(path, frame_number)
        assert len(shown) == 250
        distinct = len(list(read_stored_frames(path)))
        assert distinct / 250 == pytest.approx(1 - level, abs=0.1)
        assert shown[0] == 0 and sorted(shown) == shown
        assert all(number <= time for time, number in enumerate(shown))
        assert {start for start, _ in stamps(path)} <= {start for start, _ in stamps(clip)}
        assert stamps(path)[-1][1] == stamps(clip)[-1][1]
    assert {start for start, _ in stamps(many)} <= {start for start, _ in stamps(few)}


@pytest.mark.parametrize(("fps", "level"), [(25, 10), (30, 10), (30000 / 1001, 7), (25, 1), (25, 0.3)])
def test_so_many_frames_a_second_are_left(make_clip, tmp_path, fps, level):
    clip = make_clip(tmp_path / "clip.mp4", "v", seconds=8, fps=fps)
    kept = stamps(lower_rate(clip, tmp_path / "out", level, rng()))
    assert len(kept) == pytest.approx(8 * level, abs=1)
    assert kept[0][0] == 0 and kept[-1][1] == stamps(clip)[-1][1]
    gaps = [float(b[0] - a[0]) for a, b in pairwise(kept)]
    assert all(gap == pytest.approx(1 / level, abs=1 / fps + 1e-3) for gap in gaps)


def test_a_video_with_fewer_frames_keeps_them_all(make_clip, tmp_path):
    clip = make_clip(tmp_path / "clip.mp4", "v", fps=12)
    assert same_pictures(clip, lower_rate(clip, tmp_path / "out", 25, rng()))


@pytest.mark.parametrize("change", ALL)
def test_a_clip_without_picture_has_nothing_to_corrupt(make_clip, tmp_path, change):
    with pytest.raises(MissingStreamError):
        change(make_clip(tmp_path / "sound.mkv", "a"), tmp_path / "out", 0.5, rng())


@pytest.mark.parametrize("change", ALL)
def test_the_clip_itself_is_not_touched(make_clip, tmp_path, change):
    clip = make_clip(tmp_path / "clip.mp4", "va")
    before = clip.read_bytes()
    change(clip, tmp_path / "out", 0.5, rng())
    assert clip.read_bytes() == before


def test_a_face_is_lost_behind_a_patch_and_in_the_blur(real_clips, face_landmarker, tmp_path):
    media = real_clips / "grid_bbaf2n.mpg"
    files = [media, occlude(media, tmp_path / "covered", 1, rng()), blur(media, tmp_path / "blurred", 0.3, rng())]
    files.append(blur(media, tmp_path / "soft", 0.01, rng()))
    seen, covered, blurred, soft = face_landmarker.extract([Source("a", path, "", "en", None) for path in files])
    assert seen.valid.all() and soft.valid.all()
    assert not covered.valid.any() and not blurred.valid.any()
    assert len(seen) == len(covered) == len(blurred) == len(soft)
    assert 0 < np.abs(soft.values - seen.values).mean() < 0.2
