"""The registry of corruptions: names, levels, and what a clip's corruption hangs on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from extractors.base import MissingModalityError
from extractors.corruption.conditions import CORRUPTIONS, Condition, table
from extractors.corruption.text import Lexicon
from extractors.transcripts.table import Transcript
from media.audio import read_audio
from media.container import MediaError
from media.video import read_frames

PAGE = Path(__file__).parents[3] / "docs" / "robustness.md"
LEVELS = {
    "audio.noise": 5, "audio.spans": 0.4, "vision.blur": 0.05, "vision.occlusion": 0.3, "vision.frames": 0.4,
    "vision.rate": 4, "text.words": 0.5, "text.recogniser": 0.5, "text.negation": 1,
}  # fmt: skip
MEDIA = [name for name in LEVELS if not name.startswith("text")]
SAID = Transcript("v/1", "I like it and it is good to have it here.", "corpus", [])


@pytest.fixture(scope="module")
def clip(tmp_path_factory, make_clip) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", "va", seconds=2)


def content(path: Path) -> np.ndarray:
    """The sound of a sound file, the pictures of another."""
    return (
        read_audio(path, 44_100) if path.suffix == ".wav" else np.stack([image for _, image in read_frames(path, 25)])
    )


def changed(name: str, clip: Path, out: Path, clip_id: str = "v/1", seed: int = 0) -> np.ndarray | str:
    condition = Condition(name, LEVELS[name], seed)
    if name in MEDIA:
        return content(condition.write_media(clip, clip_id, out / f"{name}-{clip_id.replace('/', '-')}-{seed}"))
    said = Transcript(clip_id, SAID.text, "corpus", [])
    return condition.change_text(said, "en", Lexicon([SAID.text], "en")).text


def test_every_corruption_is_tested_here():
    assert set(LEVELS) == set(CORRUPTIONS)
    assert all(CORRUPTIONS[name].modality == name.split(".")[0] for name in CORRUPTIONS)


@pytest.mark.parametrize("name", LEVELS)
def test_a_clip_is_corrupted_alike_whatever_is_done_beside_it(clip, tmp_path, name):
    first = changed(name, clip, tmp_path)
    changed(name, clip, tmp_path, clip_id="v/2")
    assert np.array_equal(changed(name, clip, tmp_path), first)


@pytest.mark.parametrize("name", sorted(set(LEVELS) - {"vision.blur", "vision.rate", "text.negation"}))
def test_another_clip_or_seed_is_corrupted_in_another_way(clip, tmp_path, name):
    first = changed(name, clip, tmp_path)
    assert not np.array_equal(changed(name, clip, tmp_path, clip_id="v/3"), first)
    assert not np.array_equal(changed(name, clip, tmp_path, seed=1), first)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_level_of_no_corruption_is_known_for_each(name):
    condition = Condition(name, CORRUPTIONS[name].clean_level)
    assert condition.is_clean and not Condition(name, LEVELS[name]).is_clean
    if condition.modality == "text":
        assert condition.change_text(SAID, "en") is SAID


@pytest.mark.parametrize("name", sorted(set(MEDIA) - {"audio.noise"}))
def test_next_to_no_corruption_is_next_to_nothing(clip, tmp_path, name):
    """What is as it is needs no file; a level beside it gives one that says the same."""
    level = 1000 if math.isinf(CORRUPTIONS[name].clean_level) else 1e-9
    written = Condition(name, level).write_media(clip, "v/1", tmp_path / "out")
    before = content(clip) if name.startswith("vision") else read_audio(clip, 44_100)
    assert np.array_equal(content(written), before)


def test_a_clip_without_the_stream_lacks_the_modality(make_clip, tmp_path):
    mute, blind = make_clip(tmp_path / "mute.mp4", "v"), make_clip(tmp_path / "blind.mkv", "a")
    for name in MEDIA:
        with pytest.raises(MissingModalityError):
            Condition(name, LEVELS[name]).write_media(
                mute if name.startswith("audio") else blind, "v/1", tmp_path / "x"
            )


def test_a_damaged_file_is_an_error_and_no_missing_modality(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing like a video")
    for name in MEDIA:
        with pytest.raises(MediaError, match=r"bad\.mp4"):
            Condition(name, LEVELS[name]).write_media(tmp_path / "bad.mp4", "v/1", tmp_path / "out")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown corruption 'audio\.noize'; did you mean 'audio\.noise'\? Known"):
        Condition("audio.noize", 3)


@pytest.mark.parametrize(
    ("name", "level", "found"),
    [
        ("audio.spans", 1.2, r"level 1\.2 must be a number \(fraction of the duration\), 0 to 1; 0 leaves"),
        ("audio.noise", -99, r"-30 or more; inf leaves clips unchanged"),
        ("audio.noise", math.nan, "level nan"),
        ("vision.frames", 1, r"0 to 0\.99"),
        ("vision.rate", 0, r"0\.1 or more"),
        ("text.words", "0.5", "must be a number"),
        ("text.words", True, "must be a number"),
    ],
)
def test_a_level_out_of_range_is_refused_with_the_range_and_the_way_out(name, level, found):
    with pytest.raises(ValueError, match=found):
        Condition(name, level)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="whole number of 0 or more"):
        Condition("text.words", 0.5, seed)


def test_signatures_tell_conditions_apart_and_whole_levels_alike():
    made = [
        Condition(name, level, seed) for name in ("text.words", "audio.spans") for level in (0.1, 1) for seed in (0, 1)
    ]
    assert len({condition.signature for condition in made}) == len(made)
    assert Condition("audio.noise", 10) == Condition("audio.noise", 10.0)
    assert Condition("audio.noise", 10).signature == Condition("audio.noise", 10.0).signature


def test_the_page_shows_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "put the output of python -m extractors.corruption.conditions there"
    )
