"""Detection of an unknown corpus: its layout, the columns of its table, the range of its labels and its language."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

from corpora.languages import likely_language
from corpora.manifest import split_name, unsafe_id
from corpora.readers.csd import LABELS as CSD_LABELS
from corpora.readers.csd import SUFFIX as CSD_SUFFIX
from corpora.readers.mmsa_pickle import SUFFIXES as PICKLE_SUFFIXES
from corpora.readers.raw import (
    LABELS,
    MEDIA_FOLDER,
    REQUIRED,
    TABLE_SUFFIXES,
    TABLES,
    MediaFiles,
    find_table,
    list_media,
    list_tables,
    locate_media,
    read_rows,
)
from corpora.readers.table import MEDIA, Table, guess_encoding, open_table, parse_number
from corpora.splits import SplitConfig, group_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from corpora.manifest import Clip
    from corpora.readers.raw import Layout

MAX_ROWS = 500
"""Rows of a table by whose values its columns are told."""
MIN_SHARE = 0.5
"""Share of the values that must fit where a column is told by them."""
MAX_OUTLIERS = 0.05
"""Share of the labels that may be mistakes, beyond either range."""

LABEL_RANGES = ((-1.0, 1.0), (-3.0, 3.0))
"""Ranges that the metrics are defined for, the narrow one first."""

SYNONYMS = {
    MEDIA: ("media", "file", "filename", "path", "filepath", "video", "videofile", "videopath", "videoname", "clip",
            "clipfile", "audio", "wav"),
    "mode": ("mode", "split", "set", "partition", "subset", "fold"),
    "label": ("label", "sentiment", "score", "rating", "sentimentscore", "valence", "polarity", "annotation", "target",
              "value"),
    "label_T": ("labelt", "labeltext", "textlabel", "sentimenttext"),
    "label_A": ("labela", "labelaudio", "audiolabel", "sentimentaudio"),
    "label_V": ("labelv", "labelvision", "labelvideo", "visionlabel", "visuallabel", "sentimentvision"),
    "text": ("text", "transcript", "transcription", "sentence", "utterance", "caption", "asr", "content", "subtitle"),
    "video_id": ("videoid", "video", "recording", "recordingid", "session", "sessionid", "source", "dialogueid"),
    "clip_id": ("clipid", "clip", "segment", "segmentid", "utteranceid", "uttid", "clipno", "segmentno"),
    "speaker": ("speaker", "speakerid", "speakername", "spk", "person", "personid", "actor", "subject", "subjectid",
                "participant", "participantid"),
    "gender": ("gender", "sex"),
}  # fmt: skip
"""What tables call our columns, most likely names first, in lower case and with letters alone."""


@dataclass(frozen=True, slots=True)
class DetectedCorpus:
    """What was found out about a folder.

    Attributes:
        layout: mmsa, folder, csd or mmsa_pickle.
        root: what `prepare.root` should be: the folder, or its only pickle.
        table: name of the table; empty without one.
        other_tables: other tables of the folder, which are not read -> what was found in them.
        separator: of the table's columns.
        encoding: of the table, if it must be named.
        columns: our name -> the table's, where they differ.
        splits: values of the table's column of splits -> rows.
        label_range: range of the labels; the wide one if there are none.
        language: ISO 639-1 code of the transcripts; en if there are none.
        split: how splits can be drawn; None where the corpus has its own, or nothing to train on.
        remarks: what a user should check.
    """

    layout: Literal["mmsa", "folder", "csd", "mmsa_pickle"]
    root: Path
    table: str = ""
    other_tables: Mapping[str, str] = field(default_factory=dict)
    separator: str = ""
    encoding: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    label_range: tuple[float, float] = LABEL_RANGES[-1]
    language: str = "en"
    split: SplitConfig | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """A table as `read_rows` would read it."""

    table: Table
    encoding: str | None
    layout: Layout
    columns: Mapping[str, str]
    clips: Sequence[Clip]


def detect_corpus(root: Path, table: str | None = None) -> DetectedCorpus:
    """Find out how a folder of videos can be read. Only names of files and the table are looked at.

    Args:
        root: the folder.
        table: name of its table; None: of several, the one that labels, or else names, the most videos.

    Raises:
        FileNotFoundError: there is no folder, or no such table.
        ValueError: the folder has neither media nor a table, or no table of several leads to media; the table cannot
            be read.
    """
    path, others = _choose_table(root, table)
    if path is None:
        if not list_media(root, []):
            raise ValueError(
                f"{root}: no corpus: neither a table ({TABLES[0]} or any .csv) nor videos, nor features (.pkl, .csd)"
            )
        return DetectedCorpus("folder", root, remarks=("no table: every video is a clip without a label, in test",))
    reading = _read_table(root, path, MediaFiles(root))
    clips, header = reading.clips, reading.table.header
    label_range, remarks = detect_label_range(_labels(clips))
    if all(clip.label is None for clip in clips):
        remarks.append(
            f"no labels, without which clips are not trained on; name their column, out of {', '.join(header)}: "
            "prepare.columns.label"
        )
    if not any(clip.text for clip in clips):
        remarks.append("no transcripts; name their column, prepare.columns.text, or a recogniser, transcribe.model")
    mode = reading.columns.get("mode", "mode")
    split = None
    if mode not in header and any(clip.label is not None for clip in clips):
        split, remark = _drawable(clips)
        remarks += [remark] if remark else []
    return DetectedCorpus(
        layout=reading.layout,
        root=root,
        table=path.name,
        other_tables=others,
        separator=reading.table.separator,
        encoding=reading.encoding,
        columns=reading.columns,
        splits=Counter(row.values[mode].strip() for row in reading.table.rows()) if mode in header else {},
        label_range=label_range,
        language=likely_language(clip.text for clip in clips[:MAX_ROWS]),
        split=split,
        remarks=tuple(remarks),
    )


def _choose_table(root: Path, name: str | None) -> tuple[Path | None, dict[str, str]]:
    """Return the folder's table, None without one, and what was found in each table that is not read."""
    tables = list_tables(root)
    named = find_table(root, "folder", name) if name else None
    if named and named not in tables:
        tables.append(named)
    if len(tables) < 2:
        return next(iter(tables), None), {}
    files = MediaFiles(root)
    score: dict[Path, tuple[int, int]] = {}
    found: dict[str, str] = {}
    for path in tables:
        try:
            clips = _read_table(root, path, files).clips
        except ValueError as error:
            score[path], found[path.name] = (0, 0), str(error).removeprefix(f"{path}: ")
            continue
        labelled = {place[0]: clip.label is not None for clip in clips if (place := locate_media(clip, root, files))}
        score[path] = sum(labelled.values()), len(labelled)
        found[path.name] = f"videos that its rows lead to: {len(labelled)}; with a label: {score[path][0]}"
    best = named or max(tables, key=lambda path: score[path])  # the first of equal ones
    if not named and not score[best][1]:
        listed = "; ".join(f"{table}: {what}" for table, what in found.items())
        raise ValueError(f"{root}: several tables, but none leads to its videos; name one as prepare.table: {listed}")
    return best, {table: what for table, what in found.items() if table != best.name}


def _read_table(root: Path, path: Path, files: MediaFiles) -> _Reading:
    """Find out how a table is read, and read it.

    Raises:
        ValueError: it cannot be read.
    """
    encoding = _encoding(path)
    table = open_table(path, encoding)
    layout: Layout = "mmsa"
    columns: dict[str, str] = {}
    if path.name not in TABLES or not set(REQUIRED) <= set(table.header) or not (root / MEDIA_FOLDER).is_dir():
        layout, columns = "folder", detect_columns(table, [row.values for row in islice(table.rows(), MAX_ROWS)], files)
    located, _ = read_rows(root, "", layout, columns, encoding, table=path.name)
    return _Reading(table, encoding, layout, columns, [clip for _, clip in located])


def features_of(path: Path) -> tuple[Literal["csd", "mmsa_pickle"], Path] | None:
    """Return layout and root of a corpus of extracted features, or None where there are none.

    Args:
        path: folder, or a file: a pickle is a corpus of its own, a `.csd` one of those in its folder.
    """
    if path.is_file():
        if path.suffix.lower() in PICKLE_SUFFIXES:
            return "mmsa_pickle", path
        return ("csd", path.parent) if path.suffix.lower() == CSD_SUFFIX else None
    if (path / CSD_LABELS).is_file():
        return "csd", path
    files = sorted(path.glob("*")) if path.is_dir() else []
    pickles = [file for file in files if file.suffix.lower() in PICKLE_SUFFIXES]
    sequences = [file for file in files if file.suffix.lower() == CSD_SUFFIX]
    if not (pickles or sequences) or list_media(path, []):
        return None
    if sequences:
        return "csd", path
    return None if list_tables(path) else ("mmsa_pickle", pickles[0] if len(pickles) == 1 else path)


def is_corpus_file(path: Path) -> bool:
    """Return whether a file is a corpus of features or a corpus's table, rather than a media file."""
    return path.is_file() and (features_of(path) is not None or path.suffix.lower() in TABLE_SUFFIXES)


def _encoding(path: Path) -> str | None:
    """Return the encoding that must be named for a table, or None if it can be told by itself."""
    try:
        open_table(path)
    except ValueError:
        encoding = guess_encoding(path.read_bytes())
        if encoding is None:
            raise
        return encoding
    return None


def detect_columns(table: Table, rows: Sequence[Mapping[str, str]], files: MediaFiles) -> dict[str, str]:
    """Return our name -> the table's of each column that has another name than ours.

    A column whose values do not fit is not taken, whatever it is called; one that is called otherwise is taken for the
    media, the splits, the labels or the transcripts if its values leave no doubt.
    """
    free = [name for name in dict.fromkeys(table.header) if name]
    values = {name: [value for row in rows if (value := row[name].strip())] for name in free}
    found: dict[str, str] = {}

    def share(name: str, fits: Callable[[str], bool]) -> float:
        return sum(map(fits, values[name])) / max(len(values[name]), 1)

    def take(ours: str, fits: Callable[[str], bool] = bool, by_values: float = 2.0) -> None:
        """Take the first column with a name for `ours` whose values fit, else the one column whose values all fit."""
        chosen = [theirs for name in SYNONYMS[ours] for theirs in free if _letters(theirs) == name]
        chosen = [theirs for theirs in chosen if not values[theirs] or share(theirs, fits) >= MIN_SHARE]
        if not chosen:
            likely = {theirs: share(theirs, fits) for theirs in free}
            chosen = [t for t, fit in sorted(likely.items(), key=lambda item: -item[1]) if fit >= by_values][:1]
        if chosen:
            found[ours] = chosen[0]
            free.remove(chosen[0])

    def pairs() -> Iterator[tuple[str, str]]:
        for video in (name for name in free if _letters(name) in SYNONYMS["video_id"]):
            yield from ((video, clip) for clip in free if _letters(clip) in SYNONYMS["clip_id"] and clip != video)

    def located(video: str, clip: str) -> bool:
        hits = sum(len(files.find(f"{row[video].strip()}/{row[clip].strip()}")) == 1 for row in rows)
        return hits >= MIN_SHARE * len(rows)

    pair = next((pair for pair in pairs() if rows and located(*pair)), None)
    if pair:
        found |= dict(zip(("video_id", "clip_id"), pair, strict=True))
        free = [name for name in free if name not in pair]
    else:
        take(MEDIA, lambda value: len(files.find(value.replace("\\", "/"))) == 1, MIN_SHARE)
        if MEDIA not in found:  # the files may not be there yet
            take(MEDIA)
    take("mode", lambda value: split_name(value) is not None, 1.0)
    for column in list(LABELS.values())[1:]:
        take(column, lambda value: parse_number(value) is not None)
    take("label", lambda value: parse_number(value) is not None)
    take("text", lambda value: parse_number(value) is None)
    take("speaker")
    take("gender")
    if not pair:
        take("video_id", lambda value: unsafe_id(value) is None)
    if "label" not in found:  # numbers on both sides of 0
        signed = {name for name in free if any((parse_number(value) or 0) < 0 for value in values[name])}
        numbers = [name for name in free if name in signed and share(name, _is_label) == 1]
        found |= {"label": numbers[0]} if len(numbers) == 1 else {}
    if "text" not in found:
        take("text", lambda value: parse_number(value) is None and (value.count(" ") > 1 or not value.isascii()), 0.8)
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def _is_label(value: str) -> bool:
    number = parse_number(value)
    return number is not None and abs(number) <= LABEL_RANGES[-1][1]


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _labels(clips: Iterable[Clip]) -> list[float]:
    return [label for clip in clips for name in LABELS if (label := getattr(clip, name)) is not None]


def detect_label_range(labels: Sequence[float]) -> tuple[tuple[float, float], list[str]]:
    """Return the narrowest range that holds the labels, a few mistakes aside, and remarks on them."""
    narrow, wide = LABEL_RANGES
    within = [label for label in labels if abs(label) <= wide[1]]
    if not labels:
        return wide, []
    if len(labels) - len(within) > MAX_OUTLIERS * len(labels):
        low, high = min(labels), max(labels)
        middle, scale = (low + high) / 2, 6 / (high - low) if high > low else 1.0
        return wide, [
            f"labels from {low:g} to {high:g} are neither in [-3, 3] nor in [-1, 1]: convert the column first, such as "
            f"to (label {'-' if middle >= 0 else '+'} {abs(middle):g}) * {scale:g}"
        ]
    label_range = narrow if all(abs(label) <= narrow[1] for label in within) else wide
    if min(within) >= 0:
        return label_range, ["no label is below 0: 0 must mean neutral, and negative sentiment be below it"]
    return label_range, []


def _drawable(clips: Sequence[Clip]) -> tuple[SplitConfig | None, str]:
    """Return how splits can be drawn for clips that have none, and a remark."""
    for by in ("speaker", "clip"):
        split = SplitConfig(valid=0.15, test=0.2, by=by, seed=7)
        if len(set(group_clips(clips, by).values())) >= len(split.shares):
            known = any(clip.speaker for clip in clips)
            if by == "clip":
                return split, "one video, of speakers that no column names: splits are drawn by clip"
            return split, "" if known else "no column names the speakers: splits are drawn by video"
    return None, "too few speakers for splits: all clips are in test"
