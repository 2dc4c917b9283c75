"""The corpus card: contents of each split, missing data, and the distribution of the labels.

Clips, labels and durations come from the manifest, words from the transcripts, steps from the dataset's masks: no
features are read. A group is a split that has clips, or all clips.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, by_split
from corpora.problems import Problem
from extractors.transcripts.table import Transcript
from flows.display.metrics import MINUS, NOTHING
from flows.display.plots import SERIES, Plot, plotting, to_svg
from flows.report.figures import class_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = "all"
MIN_HOURS_SECONDS = 2 * 3600
"""Total duration from which it is shown in hours."""


@dataclass(slots=True)
class StoredClips:
    """The dataset's clips of one group.

    Attributes:
        clip_ids: Their ids.
        missing: Modality -> clips without a step of it.
        steps: Modality -> steps of all clips.
        valid: Modality -> steps that are not masked.
    """

    clip_ids: set[str] = field(default_factory=set)
    missing: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    valid: Counter[str] = field(default_factory=Counter)

    def add(self, other: StoredClips) -> None:
        """Add the clips of `other`."""
        self.clip_ids |= other.clip_ids
        for name in ("missing", "steps", "valid"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True, slots=True)
class CorpusCard:
    """Statistics of a corpus.

    Attributes:
        groups: Names of the groups.
        rows: (name, value of each group).
        absent: Number of the manifest's clips that are not in the dataset.
        reasons: (stage, modality, error) and the number of these clips that it concerns, most first.
        histogram: Labels by class and split; None if no clip has a label.
        classes: (class, labelled clips of each group).
        by_modality: (modality, clips with a label of that modality, its correlation with the clip's label).
        signatures: (modality, signature of its extractor).
        drawn: How the splits were drawn (`corpora.splits.SplitConfig`); None: they are the corpus's own.
    """

    groups: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    absent: int
    reasons: Sequence[tuple[tuple[str, str, str], int]]
    histogram: Plot | None
    classes: Sequence[tuple[str, Sequence[int]]]
    by_modality: Sequence[tuple[str, int, float | None]]
    signatures: Sequence[tuple[str, str]]
    drawn: Mapping[str, Any] | None = None


def corpus_card(
    manifest: Manifest,
    transcripts: Mapping[str, Transcript],
    dataset: Path,
    problems: Sequence[Problem],
    mask_invalid: Sequence[str],
) -> CorpusCard:
    """Return the card of a corpus.

    Args:
        manifest: The clips; their `text` is not used.
        transcripts: Clip id -> transcript.
        dataset: Output folder of `align`.
        problems: Rows of the problems tables of all stages.
        mask_invalid: Modalities whose invalid steps are masked (`align.mask_invalid`).

    Raises:
        ValueError: a label range other than [-3, 3] and [-1, 1].
    """
    from model.evaluation.metrics import class_names

    content = json.loads((Path(dataset) / "dataset.json").read_text(encoding="utf-8"))
    groups = {split: clips for split, clips in by_split(manifest.clips).items() if clips} | {ALL: list(manifest.clips)}
    stored = {split: read_stored(sorted((Path(dataset) / split).glob("part-*.parquet"))) for split in SPLITS}
    stored[ALL] = StoredClips()
    for split in SPLITS:
        stored[ALL].add(stored[split])
    # Steps pooled onto the text's tokens are visible wherever the clip has any valid step: there is no share
    shares = [m for m in ("audio", "vision") if m in mask_invalid and content["mode"] == "unaligned"]
    absent = {clip.clip_id for clip in manifest.clips} - stored[ALL].clip_ids
    names = class_names(manifest.label_range, class_count(manifest.label_range))
    counts = {group: _by_class(clips, manifest.label_range) for group, clips in groups.items()}
    return CorpusCard(
        groups=list(groups),
        rows=_rows(groups, stored, transcripts, shares),
        absent=len(absent),
        reasons=_reasons(absent, problems),
        histogram=_histogram({group: counts[group] for group in groups if group != ALL}, names),
        classes=[(name, [int(counts[group][i]) for group in groups]) for i, name in enumerate(names)],
        by_modality=_by_modality(manifest.clips),
        signatures=[(m, content["modalities"][m]["signature"]) for m in MODALITIES],
        drawn=manifest.drawn,
    )


def read_stored(parts: Sequence[Path]) -> StoredClips:
    """Count the clips and steps of a split's files, reading ids and masks of 1024 clips at a time."""
    stored = StoredClips()
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["clip_id", *(f"{m}_mask" for m in MODALITIES)], batch_size=1024):
                stored.clip_ids.update(batch["clip_id"].to_pylist())
                for m in MODALITIES:
                    masks = batch[f"{m}_mask"]
                    lengths, shown = np.diff(masks.offsets.to_numpy()), masks.flatten()
                    stored.missing[m] += int((lengths == 0).sum())
                    stored.steps[m] += len(shown)
                    stored.valid[m] += shown.true_count
    return stored


def _rows(
    groups: Mapping[str, Sequence[Clip]],
    stored: Mapping[str, StoredClips],
    transcripts: Mapping[str, Transcript],
    shares: Sequence[str],
) -> list[tuple[str, list[str]]]:
    seconds = {group: _seconds(clips) for group, clips in groups.items()}
    words = {group: _words(clips, transcripts) for group, clips in groups.items()}
    hours = seconds[ALL].sum() >= MIN_HOURS_SECONDS

    def row(name: str, cell: Callable[[str], str]) -> tuple[str, list[str]]:
        return name, [cell(group) for group in groups]

    def statistic(
        name: str, values: Mapping[str, np.ndarray], function: Callable[[np.ndarray], float], form: str = ".1f"
    ) -> tuple[str, list[str]]:
        return row(name, lambda group: format(function(values[group]), form) if len(values[group]) else NOTHING)

    def count(name: str, number: Callable[[str], int]) -> tuple[str, list[str]]:
        return row(name, lambda group: f"{number(group):,}")

    def missing(modality: str) -> tuple[str, list[str]]:
        return count(f"Without {modality}", lambda group: stored[group].missing[modality])

    def valid(modality: str) -> tuple[str, list[str]]:
        return row(f"Valid {modality}", lambda group: _share(stored[group], modality))

    rows = [
        count("Clips", lambda group: len(groups[group])),
        count("Videos", lambda group: len({clip.video_id for clip in groups[group]})),
        statistic("Hours" if hours else "Minutes", seconds, lambda s: s.sum() / (3600 if hours else 60), ",.1f"),
        statistic("Median (s)", seconds, np.median),
        statistic("Shortest (s)", seconds, np.min),
        statistic("Longest (s)", seconds, np.max),
        statistic("Median words", words, np.median, "g"),
        count("Without label", lambda group: sum(clip.label is None for clip in groups[group])),
        *map(missing, MODALITIES),
        *map(valid, shares),
    ]
    optional = [
        count("Length unknown", lambda group: len(groups[group]) - len(seconds[group])),
        count(
            "Not in dataset",
            lambda group: sum(clip.clip_id not in stored[group].clip_ids for clip in groups[group]),
        ),
    ]
    return rows + [(name, cells) for name, cells in optional if any(cell != "0" for cell in cells)]


def _seconds(clips: Sequence[Clip]) -> np.ndarray:
    """Return the known durations."""
    return np.array([clip.duration for clip in clips if clip.duration is not None], np.float64)


def _words(clips: Sequence[Clip], transcripts: Mapping[str, Transcript]) -> np.ndarray:
    """Return the numbers of words of the clips that have any."""
    counts = (len(transcripts[clip.clip_id].words) for clip in clips if clip.clip_id in transcripts)
    return np.array([count for count in counts if count], np.float64)


def _share(clips: StoredClips, modality: str) -> str:
    steps = clips.steps[modality]
    return f"{clips.valid[modality] / steps:.1%}" if steps else NOTHING


def _reasons(absent: set[str], problems: Sequence[Problem]) -> list[tuple[tuple[str, str, str], int]]:
    """Count the problems of clips that are not in the dataset; the same problem of a clip counts once."""
    distinct = {(p.stage, p.modality, p.error, p.clip_id) for p in problems if p.clip_id in absent}
    counts = Counter(entry[:3] for entry in distinct)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _labels(clips: Sequence[Clip], name: str = "label") -> np.ndarray:
    """Return the labels [N], NaN where unlabelled."""
    return np.array([getattr(clip, name) for clip in clips], np.float64)  # None becomes NaN


def _by_class(clips: Sequence[Clip], label_range: tuple[float, float]) -> np.ndarray:
    """Count the labelled clips of each class of the confusion matrix."""
    from model.evaluation.metrics import to_classes

    labels, count = _labels(clips), class_count(label_range)
    return np.bincount(to_classes(labels[np.isfinite(labels)], label_range, count), minlength=count)


def _by_modality(clips: Sequence[Clip]) -> list[tuple[str, int, float | None]]:
    """Compare each modality's labels, where there are any, with the clips'; an undefined correlation is None."""
    from model.evaluation.metrics import correlation

    labels, rows = _labels(clips), []
    for m in MODALITIES:
        own = _labels(clips, f"label_{m}")
        both = np.isfinite(own) & np.isfinite(labels)
        if np.isfinite(own).any():
            rows.append((m, int(np.isfinite(own).sum()), correlation(own[both], labels[both])))
    return rows


def _histogram(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> Plot | None:
    """Plot the share of each split's labelled clips by class."""
    if not any(count.any() for count in counts.values()):
        return None
    title = "Labels by split"
    with plotting(4.0, 3.2) as (figure, axes):
        _draw_histogram(axes, counts, names)
        return Plot(title, to_svg(figure, title))


def _draw_histogram(axes: Axes, counts: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Draw the bars of all splits side by side, in percent, so that splits of different size can be compared."""
    from matplotlib.ticker import PercentFormatter

    shown = {split: count for split, count in counts.items() if count.any()}
    width = 0.8 / len(shown)
    for i, (split, count) in enumerate(shown.items()):
        places = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * width
        colour = SERIES[SPLITS.index(split)]
        axes.bar(places, 100 * count / count.sum(), 0.92 * width, color=colour, linewidth=0, label=split)
    long = max(map(len, names)) > 3
    ticks = [name.replace("-", MINUS) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=30 if long else 0, ha="right" if long else "center")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("label")
    axes.tick_params(length=0)
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=len(shown), fontsize=8, handlelength=1.0, columnspacing=1.2, loc="lower center",
                bbox_to_anchor=(0.5, 1.0))  # fmt: skip
