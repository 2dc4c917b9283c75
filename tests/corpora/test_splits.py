"""Splits that are drawn: no group divided, near their shares, and the same whatever the order of the clips."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from corpora.manifest import Clip
from corpora.splits import SplitConfig, draw_splits, group_clips


def make_clip(clip: str, video: str, speaker: str = "") -> Clip:
    return Clip(f"{video}/{clip}", video, "test", "en", "", "", speaker=speaker)


def corpus(speakers: int, known: bool = True) -> list[Clip]:
    """Clips of speakers with one to forty clips each, in two videos."""
    sizes = random.Random(5)
    return [
        make_clip(f"{i}", f"v{s}_{i % 2 if known else 0}", f"s{s}" if known else "")
        for s in range(speakers)
        for i in range(sizes.randint(1, 40))
    ]


@pytest.mark.parametrize("by", ["speaker", "video", "clip"])
@pytest.mark.parametrize("known", [True, False])
def test_no_speaker_is_in_two_splits(by, known):
    drawn = draw_splits(corpus(12, known), SplitConfig(0.15, 0.2, by, seed=7))
    keys = {"speaker": "speaker_or_video", "video": "video_id", "clip": "speaker_or_video" if known else "clip_id"}
    splits = Counter(group for group, _ in {(getattr(clip, keys[by]), clip.split) for clip in drawn})
    assert set(splits.values()) == {1}
    if known:
        assert len({(clip.speaker, clip.split) for clip in drawn}) == 12


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_met_within_a_few_clips(seed):
    clips = corpus(60)
    sizes = Counter(clip.split for clip in draw_splits(clips, SplitConfig(0.15, 0.2, seed=seed)))
    for split, share in {"train": 0.65, "valid": 0.15, "test": 0.2}.items():
        assert sizes[split] / len(clips) == pytest.approx(share, abs=0.02)


def test_the_order_of_the_clips_changes_nothing_and_the_seed_does():
    clips, config = corpus(30), SplitConfig(0.15, 0.2, seed=7)
    shuffled = random.Random(1).sample(clips, len(clips))
    splits = {clip.clip_id: clip.split for clip in draw_splits(clips, config)}
    assert {clip.clip_id: clip.split for clip in draw_splits(shuffled, config)} == splits
    assert [clip.clip_id for clip in draw_splits(shuffled, config)] == [clip.clip_id for clip in shuffled]
    other = draw_splits(clips, SplitConfig(0.15, 0.2, seed=8))
    assert {clip.clip_id: clip.split for clip in other} != splits


def test_the_draw_is_the_same_on_every_machine():
    clips = [make_clip("1", f"v{i}") for i in range(10)]
    drawn = "".join(clip.split[:2] for clip in draw_splits(clips, SplitConfig(0.2, 0.3, seed=7)))
    assert drawn == "trtrvatetevatrtetrtr"


def test_a_speaker_of_several_videos_and_a_video_of_several_speakers_make_one_group_by_video():
    clips = [make_clip("1", "a", "x"), make_clip("1", "b", "x"), make_clip("2", "b", "y"), make_clip("1", "c")]
    assert list(group_clips(clips, "video").values()) == ["a/1", "a/1", "a/1", "c/1"]
    assert list(group_clips(clips, "speaker").values()) == ["a/1", "a/1", "b/2", "c/1"]
    assert list(group_clips([*clips, make_clip("2", "c")], "clip").values()) == ["a/1", "a/1", "b/2", "c/1", "c/2"]


def test_a_share_of_nothing_is_no_split_and_every_other_split_gets_a_group():
    clips = [make_clip(str(i), "big") for i in range(50)] + [make_clip("1", "small")]
    assert {c.split for c in draw_splits(clips, SplitConfig(0.1, 0))} == {"train", "valid"}
    with pytest.raises(ValueError, match="51 clips in 2 groups"):
        draw_splits(clips, SplitConfig(0.1, 0.1))
