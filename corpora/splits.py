"""Splits that are drawn for a corpus without its own: no speaker is in two of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from corpora.manifest import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from corpora.manifest import Clip


@dataclass(frozen=True)
class SplitConfig:
    """How to draw the splits.

    Attributes:
        valid: share of the clips in the validation split; 0: none.
        test: share of the clips in the test split; 0: none.
        by: what is never divided, besides the clips of one speaker. `speaker`: a video of unknown speakers. `video`:
            every video. `clip`: nothing.
        seed: another seed draws other splits.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    valid: float
    test: float
    by: Literal["speaker", "video", "clip"] = "speaker"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("valid", "test"):
            share = getattr(self, name)
            if not 0 <= share < 1:
                raise ValueError(f"{name} is a share of the clips, from 0 to below 1; found {share}")
        if not 0 < self.valid + self.test < 1:
            raise ValueError(
                f"valid and test together must be more than 0 and leave clips to train on; found "
                f"{self.valid:g} + {self.test:g}"
            )

    def __str__(self) -> str:
        return f"by {self.by}, {self.valid:.3g} in valid, {self.test:.3g} in test, seed {self.seed}"

    @property
    def shares(self) -> dict[str, float]:
        """Share of the clips of each split that gets any."""
        shares = dict(zip(SPLITS, (1 - self.valid - self.test, self.valid, self.test), strict=True))
        return {split: share for split, share in shares.items() if share > 0}


def draw_splits(clips: Sequence[Clip], config: SplitConfig) -> list[Clip]:
    """Return the clips with splits drawn at random, whole groups of clips at a time (`group_clips`).

    Only the clips' ids, videos and speakers, and the seed, decide: not their order. Every split of `config.shares` gets
    a group; its size is within a group of its share.

    Raises:
        ValueError: there are fewer groups than splits.
    """
    groups = group_clips(clips, config.by)
    sizes = Counter(groups.values())
    if len(sizes) < len(config.shares):
        raise ValueError(
            f"prepare.split: {len(clips)} clips in {len(sizes)} groups that must not be divided (by {config.by}) make "
            f"no {len(config.shares)} splits; name the table's column of speakers (prepare.columns.speaker), or set "
            "prepare.split.by=clip if every clip has a speaker of its own"
        )

    def order(group: str) -> tuple[int, bytes]:
        """Largest first, so that small groups even the splits out; at random among those of about one size."""
        digest = hashlib.sha256(f"{config.seed}\0{group}".encode()).digest()
        return -int(math.log2(sizes[group])), digest

    filled = dict.fromkeys(config.shares, 0)
    split_of = {}
    for group in sorted(sizes, key=order):
        split_of[group] = min(filled, key=lambda split: filled[split] / config.shares[split])
        filled[split_of[group]] += sizes[group]
    return [replace(clip, split=split_of[groups[clip.clip_id]]) for clip in clips]


def group_clips(clips: Iterable[Clip], by: str) -> Mapping[str, str]:
    """Return clip id -> the group of clips that it stays together with, named by the least id of its clips."""
    clips = sorted(clips, key=lambda clip: clip.clip_id)
    parent = {clip.clip_id: clip.clip_id for clip in clips}

    def root(clip_id: str) -> str:
        while parent[clip_id] != clip_id:
            parent[clip_id] = clip_id = parent[parent[clip_id]]
        return clip_id

    first: dict[tuple[str, str], str] = {}
    for clip in clips:
        shared = {"speaker": clip.speaker_or_video if by == "speaker" else clip.speaker}
        shared |= {"video": clip.video_id} if by == "video" else {}
        for key in filter(lambda item: item[1], shared.items()):
            a, b = sorted((root(first.setdefault(key, clip.clip_id)), root(clip.clip_id)))
            parent[b] = a
    return {clip.clip_id: root(clip.clip_id) for clip in clips}
