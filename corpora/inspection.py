"""Contents and problems of a raw corpus, from its table and the headers of its media. Nothing is decoded."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.manifest import Clip, Manifest, by_split
from corpora.readers.raw import PROBING_THREADS, read_raw
from media.container import MediaError, MediaInfo, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from corpora.problems import Problem

KEPT_ERRORS = ("StraddlingVideo", "StraddlingSpeaker")
"""Problems whose rows stay in the manifest. Rows with any other problem are left out."""


@dataclass(frozen=True, slots=True)
class CorpusInspection:
    """Result of `inspect_corpus`.

    Attributes:
        manifest: the rows that can enter the pipeline.
        problems: those that the prepare stage will list.
        media: header information by clip_id.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    media: Mapping[str, MediaInfo]

    @property
    def rows(self) -> int:
        """Number of rows in the corpus's table."""
        return len(self.manifest.clips) + self.unusable

    @property
    def unusable(self) -> int:
        """Number of rows that are left out."""
        return sum(problem.error not in KEPT_ERRORS for problem in self.problems)

    def missing_modalities(self) -> dict[str, list[str]]:
        """Return the ids of the clips without each modality; of a corpus of features, of those without text."""
        streams = {clip.clip_id: self.media[clip.clip_id] for clip in self.manifest.clips if clip.clip_id in self.media}
        missing = {"text": [clip.clip_id for clip in self.manifest.clips if not clip.text]}
        if streams:
            missing["audio"] = [clip_id for clip_id, info in streams.items() if not info.has_audio]
            missing["vision"] = [clip_id for clip_id, info in streams.items() if not info.has_video]
        return missing

    def durations(self) -> np.ndarray:
        """Return the known durations in seconds, sorted, [clips] float64."""
        return np.sort([clip.duration for clip in self.manifest.clips if clip.duration is not None])

    def formats(self) -> dict[str, Counter[str]]:
        """Count the clips by container, codec, frame size and rates; `none` where there is no such stream."""
        properties: dict[str, Callable[[MediaInfo], object]] = {
            "container": lambda info: info.container,
            "video codec": lambda info: info.video_codec,
            "frame size": lambda info: f"{info.width} x {info.height}" if info.has_video else None,
            "frames a second": lambda info: f"{info.fps:g}" if info.fps else None,
            "audio codec": lambda info: info.audio_codec,
            "samples a second": lambda info: info.sample_rate,
        }
        media = self.media.values()
        return {name: Counter(str(value(info) or "none") for info in media) for name, value in properties.items()}

    def languages(self) -> Counter[str]:
        """Count the clips by language code."""
        return Counter(clip.language for clip in self.manifest.clips)

    def splits(self) -> dict[str, list[Clip]]:
        """Group the clips by split. Every split has an entry."""
        return by_split(self.manifest.clips)


def inspect_corpus(root: Path, **reading: Any) -> CorpusInspection:
    """Read a corpus as the prepare stage does (`read_raw`), and the headers of all media. Nothing is decoded.

    Args:
        root: folder with the table and the media.
        **reading: further arguments of `read_raw`, but for `corpus`.

    Raises:
        FileNotFoundError: there is no folder, or no table in it.
        ValueError: the table cannot be read, or no splits can be drawn.
    """
    root = Path(root)
    manifest, problems = read_raw(root, corpus=root.name, **reading)

    def probe_clip(clip: Clip) -> MediaInfo | None:
        try:
            return probe(root / clip.media)
        except (MediaError, OSError):
            return None  # it was replaced since `read_raw` read it

    with ThreadPoolExecutor(PROBING_THREADS) as pool:
        media = dict(zip((c.clip_id for c in manifest.clips), pool.map(probe_clip, manifest.clips), strict=True))
    return CorpusInspection(manifest, tuple(problems), {name: info for name, info in media.items() if info})


def label_histogram(clips: Iterable[Clip], label_range: tuple[float, float], bins: int = 7) -> np.ndarray:
    """Count labelled clips, [bins] int64, in bins of equal width over the label range."""
    labels = [clip.label for clip in clips if clip.label is not None]
    return np.histogram(labels, bins=bins, range=label_range)[0]
