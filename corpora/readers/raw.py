"""Reading a raw corpus: in MMSA's layout, `label.csv` (or `meta.csv`) and `Raw/<video_id>/<clip_id>.mp4`, or any
folder of media with a table of one's own, or with none.

Every row of the table ends up in the manifest or in the list of problems; nothing is left out silently.
"""

from __future__ import annotations

import csv
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from corpora.files import sha256_of
from corpora.manifest import Clip, Manifest, unsafe_id, validate
from corpora.problems import Problem
from media.container import MediaError, probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TABLES = ("label.csv", "meta.csv")
REQUIRED = ("video_id", "clip_id", "text", "label", "mode")
"""Columns of MMSA's table."""
LABELS = {"label": "label", "label_text": "label_T", "label_audio": "label_A", "label_vision": "label_V"}
"""The manifest's name of each label, and the table's."""
MEDIA = "media"
"""Column of one's own table: the path of the clip's file in the folder."""
COLUMNS = (MEDIA, *REQUIRED, *list(LABELS.values())[1:])
"""What a table can say; its own names of the columns are mapped to these."""
NO_SPLIT = "test"
"""Split of the clips of one's own folder where nothing says which: they can be predicted."""

Layout = Literal["mmsa", "folder"]
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
    root: Path,
    *,
    corpus: str,
    language: str,
    label_range: tuple[float, float],
    layout: Layout = "mmsa",
    columns: Mapping[str, str] | None = None,
) -> tuple[Manifest, list[Problem]]:
    """Read a corpus; probe and hash its media.

    Rows with a bad id, split or label, with no media, or that repeat a clip are left out and listed. Kept, and listed
    too: rows whose media cannot be read (`UnreadableMedia`, duration None), and videos that are in more than one split
    (`StraddlingVideo`).

    Args:
        root: folder with the table and the media.
        corpus: its name in reports.
        language: ISO 639-1 code of every clip.
        label_range: least and greatest label.
        layout: mmsa: a table with all of `REQUIRED`, media in `Raw/`. folder: only what says where the media are is
            required, by `media` or as in MMSA's layout; without a table, every media file in the folder is a clip. The
            file's folder is the video, unless the table names it. Without a split, clips are in test.
        columns: of `COLUMNS` -> the table's own name of it, where it has another.

    Raises:
        FileNotFoundError: no folder, or no table in it.
        ValueError: the table lacks columns, is not UTF-8, or has no rows; a folder without media.
    """
    root = Path(root)
    table = find_table(root, layout)
    problems: list[Problem] = []
    located: list[tuple[str, Clip]] = []
    for where, row in _listed(root) if table is None else _rows(table, layout, columns or {}):
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


def find_table(root: Path, layout: Layout = "mmsa") -> Path | None:
    """Path of the corpus's table; None for a folder without any.

    Raises:
        FileNotFoundError: no folder, or neither `label.csv` nor `meta.csv` in it where there must be one.
        ValueError: a folder with several other tables.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set prepare.root to the folder that holds label.csv and Raw/")
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    if layout == "folder":
        others = sorted(path for path in root.glob("*.csv") if not path.name.startswith("."))
        if len(others) > 1:
            raise ValueError(f"{root}: which table? {', '.join(p.name for p in others)}; call it {TABLES[0]}")
        return others[0] if others else None
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise FileNotFoundError(
        f"{root / TABLES[0]}: no such file, nor {TABLES[1]}; the folder holds {found}. "
        f"Its columns must be {', '.join(REQUIRED)}, and optionally {', '.join(list(LABELS.values())[1:])}; "
        "for a folder of videos with a table of your own, or with none, set prepare.layout to folder"
    )


def _rows(table: Path, layout: Layout, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Rows of the table and where they are; of a folder's, with the ids and the split that it left out."""
    for row in read_table(table, columns, REQUIRED if layout == "mmsa" else ()):
        yield f"{table.name} row {row.line}", row if layout == "mmsa" else replace(row, values=_filled(row.values))


def _filled(values: Mapping[str, str]) -> dict[str, str]:
    """The values of a folder's row, with the ids that its file's path gives and the split that is not there."""
    video, clip = _ids_of(_slashes(values.get(MEDIA, "")))
    given = {"video_id": video, "clip_id": clip, "text": "", "label": "", "mode": NO_SPLIT}
    return given | values


def _ids_of(media: str) -> tuple[str, str]:
    """Video and clip of a file: `interview/03.mp4` is clip 03 of interview; a file at the top is a video of its own."""
    path = PurePosixPath(media)
    stem = path.stem if path.suffix.lower() in MEDIA_SUFFIXES else path.name
    folders = path.parts[1:-1] if path.parts[:1] == (MEDIA_FOLDER,) else path.parts[:-1]
    return "_".join(folders) or stem, stem


def _listed(root: Path) -> Iterator[tuple[str, Row]]:
    """A row for each media file of a folder without a table, by name.

    Raises:
        ValueError: there is none.
    """
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.suffix.lower() in MEDIA_SUFFIXES]
    shown = [path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)]
    if not shown:
        raise ValueError(f"{root}: neither a table nor a media file; it can hold {', '.join(MEDIA_SUFFIXES)}")
    for media in shown:
        yield media, Row(0, _filled({MEDIA: media}), 0)


def read_table(path: Path, columns: Mapping[str, str], required: Sequence[str]) -> Iterator[Row]:
    """Rows of the table, every value a string, by our names of the columns; a UTF-8 byte-order mark is dropped.

    Args:
        columns: our name of a column -> the table's.
        required: columns that the table must have, by our names; none: what says where a clip's media are.

    Raises:
        ValueError: columns are missing, the file is not UTF-8, or there are no rows.
    """
    rows = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, restval="")
            reader.fieldnames = _our_names(path, [name.strip() for name in reader.fieldnames or ()], columns, required)
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


def _our_names(path: Path, header: list[str], columns: Mapping[str, str], required: Sequence[str]) -> list[str]:
    """The header's columns by our names; those that another column was named for instead get none."""
    found = f"found {', '.join(header) or 'an empty file'}"
    for ours, theirs in columns.items():
        if theirs not in header:
            raise ValueError(f"{path}: no column {theirs!r}, which prepare.columns.{ours} names; {found}")
    ours_of = {theirs: ours for ours, theirs in columns.items()}
    names = [ours_of.get(name, "" if name in columns else name) for name in header]
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; {found}, needed {', '.join(required)}; where yours are called "
            "otherwise, say so in prepare.columns"
        )
    if not required and MEDIA not in names and not {"video_id", "clip_id"} <= set(names):
        raise ValueError(
            f"{path}: no column {MEDIA} (the clip's file); {found}; say which one it is: prepare.columns.{MEDIA}"
        )
    return names


class _BadRow(Exception):
    """A row that no clip can be made of; `error` is the problem's class."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def _clip_of(row: Row, language: str) -> Clip:
    """The row's clip, without its media.

    Raises:
        _BadRow: values beyond the last column, a path that leaves the corpus, or a label that is not a number.
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
        media=_media_of(row.values),
        text=row.values["text"].strip(),
        **{name: _label(column, row.values.get(column, "")) for name, column in LABELS.items()},
    )


def _media_of(values: Mapping[str, str]) -> str:
    """The path that the table gives of the clip's media; empty where it gives none.

    Raises:
        _BadRow: it is no path inside the corpus.
    """
    media = _slashes(values.get(MEDIA, ""))
    for name in media.split("/") if media else ():
        if reason := unsafe_id(name):
            raise _BadRow("UnsafeMedia", f"media {media!r}: {name!r} {reason}; write the file's path in the folder")
    return media


def _slashes(media: str) -> str:
    """A path as Windows writes it too, as one writes it elsewhere."""
    return media.strip().replace("\\", "/")


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
    return _with_suffix(root / MEDIA_FOLDER / video_id / clip_id, exact=False)


def _with_suffix(path: Path, exact: bool = True) -> Path | None:
    """The file, by its whole path (`exact`) or with the first ending of a media file that exists."""
    if exact and path.is_file():
        return path
    for suffix in MEDIA_SUFFIXES:
        for spelled in (suffix, suffix.upper()):
            if (found := path.with_name(f"{path.name}{spelled}")).is_file():
                return found
    return None


def _with_media(clip: Clip, root: Path, where: str) -> tuple[Clip | None, Problem | None]:
    """The clip with its media, duration and hash; None without media; and what is wrong with the media."""

    def problem(error: str, message: str) -> Problem:
        return Problem(clip.clip_id, "prepare", "", error, f"{where}: {message}")

    if clip.media:
        media, expected = _with_suffix(root / clip.media), clip.media
    else:
        media = find_media(root, clip.video_id, clip.clip_id.removeprefix(f"{clip.video_id}/"))
        expected = f"{MEDIA_FOLDER}/{clip.clip_id}.mp4"
    if media is None:
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
