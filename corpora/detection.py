"""Detection of an unknown corpus: its layout, the columns of its table, the range of its labels and its language."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from corpora.languages import likely_language
from corpora.manifest import split_name, unsafe_id
from corpora.readers.csd import LABELS as CSD_LABELS
from corpora.readers.raw import LABELS, MEDIA_FOLDER, REQUIRED, TABLES, MediaFiles, find_table, list_media, read_rows
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
    separator: str = ""
    encoding: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    label_range: tuple[float, float] = LABEL_RANGES[-1]
    language: str = "en"
    split: SplitConfig | None = None
    remarks: tuple[str, ...] = ()


def detect_corpus(root: Path) -> DetectedCorpus:
    """Find out how a folder of videos can be read. Only names of files and the table are looked at.

    Raises:
        FileNotFoundError: there is no folder.
        ValueError: the folder has neither media nor a table, or several tables; the table cannot be read.
    """
    path = find_table(root, "folder")
    if path is None:
        if not list_media(root, []):
            raise ValueError(
                f"{root}: no corpus: neither a table ({TABLES[0]} or any .csv) nor videos, nor features (.pkl, .csd)"
            )
        return DetectedCorpus("folder", root, remarks=("no table: every video is a clip without a label, in test",))
    encoding = _encoding(path)
    table = open_table(path, encoding)
    rows = [row.values for _, row in zip(range(MAX_ROWS), table.rows(), strict=False)]
    if path.name in TABLES and set(REQUIRED) <= set(table.header) and (root / MEDIA_FOLDER).is_dir():
        layout: Layout = "mmsa"
        columns: dict[str, str] = {}
    else:
        layout, columns = "folder", detect_columns(table, rows, MediaFiles(root))
    located, _ = read_rows(root, "", layout, columns, encoding)
    clips = [clip for _, clip in located]
    label_range, remarks = detect_label_range(_labels(clips))
    if all(clip.label is None for clip in clips):
        remarks.append(
            f"no labels, without which clips are not trained on; name their column, out of {', '.join(table.header)}: "
            "prepare.columns.label"
        )
    if not any(clip.text for clip in clips):
        remarks.append("no transcripts; name their column, prepare.columns.text, or a recogniser, transcribe.model")
    mode = columns.get("mode", "mode")
    split = None
    if mode not in table.header and any(clip.label is not None for clip in clips):
        split, remark = _drawable(clips)
        remarks += [remark] if remark else []
    return DetectedCorpus(
        layout=layout,
        root=root,
        table=path.name,
        separator=table.separator,
        encoding=encoding,
        columns=columns,
        splits=Counter(row.values[mode].strip() for row in table.rows()) if mode in table.header else {},
        label_range=label_range,
        language=likely_language(clip.text for clip in clips[:MAX_ROWS]),
        split=split,
        remarks=tuple(remarks),
    )


def features_of(root: Path) -> tuple[Literal["csd", "mmsa_pickle"], Path] | None:
    """Return layout and path of a corpus of extracted features, or None for a folder that has none."""
    if (root / CSD_LABELS).is_file():
        return "csd", root
    pickles = [path for path in sorted(root.glob("*")) if path.suffix in (".pkl", ".pickle")] if root.is_dir() else []
    if pickles and find_table(root, "folder") is None and not list_media(root, []):
        return "mmsa_pickle", pickles[0] if len(pickles) == 1 else root
    return None


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
