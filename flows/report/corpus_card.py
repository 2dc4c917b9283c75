"""The corpus in figures: what each split holds, what is missing, and how the labels spread.

Clips, labels and lengths come from the manifest, words from the transcripts, steps from the dataset's masks: no
features are read. N clips of a group: a split, or all of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, by_split
from corpora.problems import Problem
from extractors.transcripts.table import Transcript
from flows.display.metrics import NOTHING
from flows.display.plots import SERIES, Plot, plotting, to_svg
from flows.report.figures import class_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = "all"
HOURS_FROM = 2 * 3600
"""Seconds of sound in a corpus from which its lengths are told in hours."""


@dataclass(slots=True)
class StoredClips:
    """Clips of one group that are in the dataset.

    Attributes:
        clip_ids: theirs.
        missing: by modality, clips without a step of it.
        steps, valid: by modality, its steps of all clips together, and those that the mask shows.
    """

    clip_ids: set[str] = field(default_factory=set)
    missing: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    valid: Counter[str] = field(default_factory=Counter)

    def add(self, other: StoredClips) -> None:
        """Count those of `other` too."""
        self.clip_ids |= other.clip_ids
        for name in ("missing", "steps", "valid"):
            getattr(self, name).update(getattr(other, name))


@dataclass(frozen=True, slots=True)
class CorpusCard:
    """What the report shows of a corpus. A group is a split that has clips, or all of them.

    Attributes:
        groups: their names, in the order of every row's cells.
        rows: (what, its value of each group).
        absent: clips of the manifest that are not in the dataset.
        reasons: (stage, modality, error) and how many of those clips it concerns; most first.
        histogram: labels by class and split; None where no clip has a label.
        classes: (class, its labelled clips of each group).
        by_modality: (modality, clips with a label of their own for it, its correlation with the clip's label).
        signatures: (modality, signature of the extractor that measured it).
    """

    groups: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    absent: int
    reasons: Sequence[tuple[tuple[str, str, str], int]]
    histogram: Plot | None
    classes: Sequence[tuple[str, Sequence[int]]]
    by_modality: Sequence[tuple[str, int, float | None]]
    signatures: Sequence[tuple[str, str]]


def corpus_card(
    manifest: Manifest,
    transcripts: Mapping[str, Transcript],
    dataset: Path,
    problems: Sequence[Problem],
    mask_invalid: Sequence[str],
) -> CorpusCard:
    """The card of a corpus.

    Args:
        manifest: its clips; their `text` is not looked at.
        transcripts: clip_id -> what is said in it.
        dataset: folder that `align` made.
        problems: rows of the problems tables of all stages.
        mask_invalid: modalities whose mask tells valid steps from others (`align.mask_invalid`).

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
    # pooled onto the text's tokens, a step is visible wherever the clip has any valid one: no share to tell
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
    )


def read_stored(parts: Sequence[Path]) -> StoredClips:
    """Count the clips and steps of a split's files: ids and masks only, some clips in memory at a time."""
    found = StoredClips()
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["clip_id", *(f"{m}_mask" for m in MODALITIES)], batch_size=1024):
                found.clip_ids.update(batch["clip_id"].to_pylist())
                for m in MODALITIES:
                    masks = batch[f"{m}_mask"]
                    lengths, shown = np.diff(masks.offsets.to_numpy()), masks.flatten()
                    found.missing[m] += int((lengths == 0).sum())
                    found.steps[m] += len(shown)
                    found.valid[m] += shown.true_count
    return found


def _rows(
    groups: Mapping[str, Sequence[Clip]],
    stored: Mapping[str, StoredClips],
    transcripts: Mapping[str, Transcript],
    shares: Sequence[str],
) -> list[tuple[str, list[str]]]:
    seconds = {group: _seconds(clips) for group, clips in groups.items()}
    words = {group: _words(clips, transcripts) for group, clips in groups.items()}
    hours = seconds[ALL].sum() >= HOURS_FROM
    unit = 3600 if hours else 60

    def row(name: str, tell: Callable[[str], str]) -> tuple[str, list[str]]:
        return name, [tell(group) for group in groups]

    def count(name: str, number: Callable[[str], int]) -> tuple[str, list[str]]:
        return row(name, lambda group: f"{number(group):,}")

    rows = [
        count("Clips", lambda group: len(groups[group])),
        count("Videos", lambda group: len({clip.video_id for clip in groups[group]})),
        row("Hours" if hours else "Minutes", lambda group: _told(seconds[group], lambda s: f"{s.sum() / unit:,.1f}")),
        row("Median (s)", lambda group: _told(seconds[group], lambda s: f"{np.median(s):.1f}")),
        row("Shortest (s)", lambda group: _told(seconds[group], lambda s: f"{s.min():.1f}")),
        row("Longest (s)", lambda group: _told(seconds[group], lambda s: f"{s.max():.1f}")),
        row("Median words", lambda group: _told(words[group], lambda w: f"{np.median(w):g}")),
        count("Without label", lambda group: sum(clip.label is None for clip in groups[group])),
        *(count(f"Without {m}", lambda group, m=m: stored[group].missing[m]) for m in MODALITIES),
        *(row(f"Valid {m}", lambda group, m=m: _share(stored[group], m)) for m in shares),
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
    """Lengths of the clips that have a known one."""
    return np.array([clip.duration for clip in clips if clip.duration is not None], np.float64)


def _words(clips: Sequence[Clip], transcripts: Mapping[str, Transcript]) -> np.ndarray:
    """Words of the clips in which any is said."""
    counts = (len(transcripts[clip.clip_id].words) for clip in clips if clip.clip_id in transcripts)
    return np.array([count for count in counts if count], np.float64)


def _told(values: np.ndarray, tell: Callable[[np.ndarray], str]) -> str:
    return tell(values) if len(values) else NOTHING


def _share(clips: StoredClips, modality: str) -> str:
    steps = clips.steps[modality]
    return f"{clips.valid[modality] / steps:.1%}" if steps else NOTHING


def _reasons(absent: set[str], problems: Sequence[Problem]) -> list[tuple[tuple[str, str, str], int]]:
    """What is known of clips that are not in the dataset; a clip that failed twice in a way counts once."""
    found = {(p.stage, p.modality, p.error, p.clip_id) for p in problems if p.clip_id in absent}
    counts = Counter(entry[:3] for entry in found)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _labels(clips: Sequence[Clip], name: str = "label") -> np.ndarray:
    """[N] labels, NaN where there is none."""
    values = (getattr(clip, name) for clip in clips)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _by_class(clips: Sequence[Clip], label_range: tuple[float, float]) -> np.ndarray:
    """Labelled clips of each class of the confusion matrix."""
    from model.evaluation.metrics import to_classes

    labels, count = _labels(clips), class_count(label_range)
    return np.bincount(to_classes(labels[np.isfinite(labels)], label_range, count), minlength=count)


def _by_modality(clips: Sequence[Clip]) -> list[tuple[str, int, float | None]]:
    """Of each modality for which any clip has a label of its own; the correlation is None where undefined."""
    from model.evaluation.metrics import correlation

    whole, found = _labels(clips), []
    for m in MODALITIES:
        own = _labels(clips, f"label_{m}")
        both = np.isfinite(own) & np.isfinite(whole)
        if np.isfinite(own).any():
            found.append((m, int(np.isfinite(own).sum()), correlation(own[both], whole[both])))
    return found


def _histogram(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> Plot | None:
    """Share of each split's labelled clips by class."""
    if not any(count.any() for count in counts.values()):
        return None
    title = "Labels by split"
    with plotting(4.0, 3.2) as (figure, axes):
        _draw_histogram(axes, counts, names)
        return Plot(title, to_svg(figure, title))


def _draw_histogram(axes: Axes, counts: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    """Bars of all splits beside each other, in percent so that small splits compare with large ones."""
    from matplotlib.ticker import PercentFormatter

    shown = {split: count for split, count in counts.items() if count.any()}
    width = 0.8 / len(shown)
    for i, (split, count) in enumerate(shown.items()):
        places = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * width
        colour = SERIES[SPLITS.index(split)]
        axes.bar(places, 100 * count / count.sum(), 0.92 * width, color=colour, linewidth=0, label=split)
    long = max(map(len, names)) > 3
    ticks = [name.replace("-", "\u2212") for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=30 if long else 0, ha="right" if long else "center")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.set_xlabel("label")
    axes.tick_params(length=0)
    axes.grid(axis="x", visible=False)
    axes.legend(ncols=len(shown), fontsize=8, handlelength=1.0, columnspacing=1.2, loc="lower center",
                bbox_to_anchor=(0.5, 1.0))  # fmt: skip
