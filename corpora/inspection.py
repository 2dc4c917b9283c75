"""What a corpus holds and what is wrong with it, by its table and its files' headers. Nothing is decoded."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpora.manifest import Clip, Manifest, by_split
from corpora.readers.raw import MEASURING_THREADS, Layout, read_raw
from media.container import MediaError, MediaInfo, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from corpora.problems import Problem

KEPT = ("UnreadableMedia", "StraddlingVideo")
"""Problems whose rows stay in the manifest; the rows of all others are left out."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A corpus, looked at.

    Attributes:
        manifest: the rows that can enter the pipeline.
        problems: what is wrong, as the prepare stage will list it.
        media: clip_id -> what its file's headers say; None where they cannot be read.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    media: Mapping[str, MediaInfo | None]

    @property
    def rows(self) -> int:
        """Rows of the corpus's table."""
        return len(self.manifest.clips) + sum(problem.error not in KEPT for problem in self.problems)

    @property
    def unusable(self) -> int:
        """Rows that are left out, or whose media cannot be read."""
        return self.rows - sum(info is not None for info in self.media.values())

    def lacking(self) -> dict[str, list[str]]:
        """Modality -> clips that have none of it, of those that can be read."""
        read = [(clip, info) for clip in self.manifest.clips if (info := self.media[clip.clip_id]) is not None]
        return {
            "text": [clip.clip_id for clip in self.manifest.clips if not clip.text],
            "audio": [clip.clip_id for clip, info in read if not info.has_audio],
            "vision": [clip.clip_id for clip, info in read if not info.has_video],
        }

    def durations(self) -> np.ndarray:
        """Seconds of every clip whose header says, sorted, [clips] float64."""
        return np.sort([clip.duration for clip in self.manifest.clips if clip.duration is not None])

    def formats(self) -> dict[str, Counter[str]]:
        """Containers, codecs, sizes and rates, each with its number of clips; `none` where there is no such stream."""
        tell: dict[str, Callable[[MediaInfo], object]] = {
            "container": lambda info: info.container,
            "video codec": lambda info: info.video_codec,
            "frame size": lambda info: f"{info.width} x {info.height}" if info.has_video else None,
            "frames a second": lambda info: f"{info.fps:g}" if info.fps else None,
            "audio codec": lambda info: info.audio_codec,
            "samples a second": lambda info: info.sample_rate,
        }
        read = [info for info in self.media.values() if info is not None]
        return {name: Counter(str(of(info) or "none") for info in read) for name, of in tell.items()}

    def languages(self) -> Counter[str]:
        """Language code -> clips."""
        return Counter(clip.language for clip in self.manifest.clips)

    def splits(self) -> dict[str, list[Clip]]:
        """Split -> its clips, every split present."""
        return by_split(self.manifest.clips)


def examine(
    root: Path,
    *,
    language: str,
    label_range: tuple[float, float],
    layout: Layout = "mmsa",
    columns: Mapping[str, str] | None = None,
) -> Examination:
    """Read a corpus as the prepare stage does (`read_raw`), and every media file's headers. Nothing is decoded.

    Raises:
        FileNotFoundError: no folder, or no table in it.
        ValueError: the table cannot be read.
    """
    root = Path(root)
    manifest, problems = read_raw(
        root, corpus=root.name, language=language, label_range=label_range, layout=layout, columns=columns
    )

    def headers(clip: Clip) -> MediaInfo | None:
        try:
            return probe(root / clip.media)
        except (MediaError, OSError):
            return None  # listed by `read_raw` with its reason

    with ThreadPoolExecutor(MEASURING_THREADS) as pool:
        media = dict(zip((c.clip_id for c in manifest.clips), pool.map(headers, manifest.clips), strict=True))
    return Examination(manifest, tuple(problems), media)


def label_histogram(clips: Iterable[Clip], label_range: tuple[float, float], bins: int = 7) -> np.ndarray:
    """Clips by label, [bins] int64, in equal parts of the range. Clips without are left out."""
    labels = [clip.label for clip in clips if clip.label is not None]
    return np.histogram(labels, bins=bins, range=label_range)[0]
