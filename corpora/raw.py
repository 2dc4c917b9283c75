"""Reading a raw corpus in MMSA's layout: `label.csv` (or `meta.csv`) and `Raw/<video_id>/<clip_id>.mp4`.

Every row of the table ends up in the manifest or in the list of problems; nothing is left out silently.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from corpora.files import sha256_of
from corpora.manifest import Clip, Manifest, validate
from corpora.problems import Problem
from extractors.media import MediaError, probe

TABLES = ("label.csv", "meta.csv")
REQUIRED = ("video_id", "clip_id", "text", "label", "mode")
LABELS = {"label": "label", "label_text": "label_T", "label_audio": "label_A", "label_vision": "label_V"}
"""The manifest's name of each label, and the table's."""
MEDIA_FOLDER = "Raw"
MEDIA_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp",
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus",
)  # fmt: skip
"""What a clip's media file may end in, the first that exists being taken."""
MEASURING_THREADS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the file's line it ends on, values by column, count of values beyond them."""

    line: int
    values: Mapping[str, str]
    surplus: int

    @property
    def clip_id(self) -> str:
        return f"{self.values['video_id']}/{self.values['clip_id']}"


def read_raw(
    root: Path, *, corpus: str, language: str, label_range: tuple[float, float]
) -> tuple[Manifest, list[Problem]]:
    """Read a corpus; probe and hash its media.

    Rows with a bad id, split or label, with no media, or that repeat a clip are left out and listed. Kept,
    and listed
    too: rows whose media cannot be read (`UnreadableMedia`, duration None), and videos that are in more than
    one split (`StraddlingVideo`).

    Args:
        root: folder with the table and `Raw/`.
        corpus: its name in reports.
        language: ISO 639-1 code of every clip.
        label_range: least and greatest label.

    Raises:
        FileNotFoundError: no folder, or no table in it.
        ValueError: the table lacks columns, is not UTF-8, or has no rows.
    """
    root = Path(root)
    table = find_table(root)
    problems: list[Problem] = []
    located: list[tuple[str, Clip]] = []
    for row in read_table(table):
        where = f"{table.name} row {row.line}"
        try:
            located.append((where, _clip_of(row, language)))
        except _BadRow as bad:
            problems.append(Problem(row.clip_id, "prepare", "", bad.error, f"{where}: {bad}"))
    clips, found = validate(located, label_range)
    problems += found
    place = {clip.clip_id: where for where, clip in reversed(located)}  # of a repeated clip, the first
    with ThreadPoolExecutor(MEASURING_THREADS) as pool:
        measured = list(pool.map(lambda clip: _with_media(clip, root, place[clip.clip_id]), clips))
    problems += [problem for _, problem in measured if problem is not None]
    kept = tuple(clip for clip, _ in measured if clip is not None)
    return Manifest(corpus, str(root), label_range, kept), problems


def find_table(root: Path) -> Path:
    """Path of the corpus's table.

    Raises:
        FileNotFoundError: no folder, or neither `label.csv` nor `meta.csv` in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set prepare.root to the folder that holds label.csv and Raw/")
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{root / TABLES[0]}: no such file, nor {TABLES[1]}; the folder holds {found}. "
        f"Its columns must be {', '.join(REQUIRED)}, and optionally {', '.join(list(LABELS.values())[1:])}"
    )


def read_table(path: Path) -> Iterator[Row]:
    """Rows of the table, every value a string; a UTF-8 byte-order mark is dropped.

    Raises:
        ValueError: columns are missing, the file is not UTF-8, or there are no rows.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            missing = [name for name in REQUIRED if name not in columns]
            if missing:
                raise ValueError(
                    f"{path}: no column {', '.join(missing)}; found {', '.join(columns) or 'an empty file'}, "
                    f"needed {', '.join(REQUIRED)}"
                )
            reader.fieldnames = columns
            rows = 0
            for values in reader:
                rows += 1
                surplus = len(values.pop(None, ()))
                yield Row(reader.line_num, values, surplus)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save the table as CSV UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table: {error}; save it as CSV UTF-8 again") from error
    if not rows:
        raise ValueError(f"{path}: a header and no rows; fill it with one row a clip")


class _BadRow(Exception):
    """A row that no clip can be made of; `error` is the problem's class."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def _clip_of(row: Row, language: str) -> Clip:
    """The row's clip, without its media.

    Raises:
        _BadRow: values beyond the last column, or a label that is not a number.
    """
    if row.surplus:
        raise _BadRow(
            "MalformedRow",
            f"{row.surplus} more values than columns; put quotes around a text that holds commas",
        )
    return Clip(
        clip_id=row.clip_id,
        video_id=row.values["video_id"],
        split=row.values["mode"].strip(),
        language=language,
        media="",
        text=row.values["text"].strip(),
        **{name: _label(column, row.values.get(column, "")) for name, column in LABELS.items()},
    )


def _label(column: str, value: str) -> float | None:
    if not value.strip():
        return None
    try:
        label = float(value)
    except ValueError:
        label = math.nan
    if not math.isfinite(label):
        raise _BadRow("BadLabel", f"{column} {value!r} is not a number; correct it or leave it empty")
    return label


def find_media(root: Path, video_id: str, clip_id: str) -> Path | None:
    """Path of a clip's media file, `.mp4` first, or None. The ids must have passed `unsafe_id`."""
    folder = root / MEDIA_FOLDER / video_id
    for suffix in MEDIA_SUFFIXES:
        for spelled in (suffix, suffix.upper()):
            if (path := folder / f"{clip_id}{spelled}").is_file():
                return path
    return None


def _with_media(clip: Clip, root: Path, where: str) -> tuple[Clip | None, Problem | None]:
    """The clip with its media, duration and hash; None without media; and what is wrong with the media."""

    def problem(error: str, message: str) -> Problem:
        return Problem(clip.clip_id, "prepare", "", error, f"{where}: {message}")

    media = find_media(root, clip.video_id, clip.clip_id.removeprefix(f"{clip.video_id}/"))
    if media is None:
        expected = f"{MEDIA_FOLDER}/{clip.clip_id}.mp4"
        return None, problem("MissingMedia", f"no file {expected}, nor with another ending; copy it there")
    relative = media.relative_to(root).as_posix()
    if not media.resolve().is_relative_to(root.resolve()):
        return None, problem(
            "EscapingMedia",
            f"{relative} links to {media.resolve()}, outside the corpus; copy the file into it",
        )
    clip = replace(clip, media=relative)
    try:
        clip = replace(clip, sha256=sha256_of(media))
        return replace(clip, duration=probe(media).duration), None
    except OSError as error:
        return clip, problem("UnreadableMedia", f"{relative}: {error.strerror}; check the file and its permissions")
    except MediaError as error:
        return clip, problem("UnreadableMedia", str(error))
