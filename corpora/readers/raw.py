"""Reader of raw corpora, either in MMSA's layout or as any folder of media.

MMSA's layout is `label.csv` (or `meta.csv`) and `Raw/<video_id>/<clip_id>.mp4`. Any other folder may come with a table
of its own, or with none. Every row of the table ends up in the manifest or in the list of problems.
"""

from __future__ import annotations

import csv
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from corpora.files import sha256_of
from corpora.manifest import SPLITS, Clip, Manifest, unsafe_id, validate
from corpora.problems import Problem, printable
from media.container import MediaError, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TABLES = ("label.csv", "meta.csv")
REQUIRED = ("video_id", "clip_id", "text", "label", "mode")
"""Columns of MMSA's table."""
LABELS = {"label": "label", "label_text": "label_T", "label_audio": "label_A", "label_vision": "label_V"}
"""The table's column of each of the manifest's labels."""
MEDIA = "media"
"""Column of a folder's own table: path of the clip's file, relative to the folder."""
SPEAKER = ("speaker", "gender")
"""Optional columns about the speaker."""
COLUMNS = (MEDIA, *REQUIRED, *list(LABELS.values())[1:], *SPEAKER)
"""All columns that are read. Other column names can be mapped to these."""
DEFAULT_SPLIT = "test"
"""Split of a folder's clips where the table has none, so that they can be predicted."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Separators of columns that spreadsheets write in place of commas."""

Layout = Literal["mmsa", "folder"]
MEDIA_FOLDER = "Raw"
MEDIA_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp",
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus",
)  # fmt: skip
"""Suffixes of media files. Where several files exist, the first suffix in this order counts."""
PROBING_THREADS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        line: number of the line that the row ends on.
        values: by column.
        surplus: number of values beyond the last column.
    """

    line: int
    values: Mapping[str, str]
    surplus: int

    @property
    def clip_id(self) -> str:
        """The manifest's clip id."""
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
    """Read a corpus, and probe and hash its media.

    Rows with an invalid id, split or label, without media, or that repeat a clip are left out and listed as problems.
    Also listed, but kept: rows whose media cannot be read (`UnreadableMedia`, duration None), and videos and speakers
    in more than one split (`StraddlingVideo`, `StraddlingSpeaker`).

    Media may be links to files elsewhere, such as on another disk: of a media file, only pictures and sound are used.

    Args:
        root: folder with the table and the media.
        corpus: name of the corpus in reports.
        language: ISO 639-1 code of every clip.
        label_range: minimum and maximum label.
        layout: `mmsa`: a table with all of `REQUIRED`, media in `Raw/`. `folder`: the table only has to say where the
            media are, by `media` or as in MMSA's layout; without a table, every media file is a clip. The video is the
            file's folder, unless the table has one; clips without a split are in test.
        columns: maps names of `COLUMNS` to the table's own names, where they differ.

    Raises:
        FileNotFoundError: there is no folder, or no table in it.
        ValueError: the table lacks columns, is not UTF-8, or has no rows; or the folder has no media.
    """
    # Table
    root = Path(root)
    located, problems = read_rows(root, language, layout, columns or {})
    clips, invalid = validate(located, label_range)
    problems += invalid

    # Media
    places = {clip.clip_id: where for where, clip in reversed(located)}  # the first place of a repeated clip
    with ThreadPoolExecutor(PROBING_THREADS) as pool:
        probed = list(pool.map(lambda clip: _add_media(clip, root, places[clip.clip_id]), clips))
    problems += [problem for _, problem in probed if problem is not None]
    kept = tuple(clip for clip, _ in probed if clip is not None)
    return Manifest(corpus, str(root), label_range, kept), problems


def read_rows(
    root: Path, language: str, layout: Layout, columns: Mapping[str, str]
) -> tuple[list[tuple[str, Clip]], list[Problem]]:
    """Read the table's rows, or list a folder's media, without a look at the media.

    Arguments are those of `read_raw`, whose exceptions are raised.

    Returns:
        (place for messages, clip) of each row; problems of the others.
    """
    table = find_table(root, layout)
    problems: list[Problem] = []
    located: list[tuple[str, Clip]] = []
    for where, row in _list_media(root, problems) if table is None else _rows(table, layout, columns):
        try:
            located.append((where, _clip_of(row, language)))
        except _InvalidRowError as error:
            problems.append(Problem(row.clip_id, "prepare", "", error.error, f"{where}: {error}"))
    return located, problems


def find_table(root: Path, layout: Layout = "mmsa") -> Path | None:
    """Return the path of the corpus's table, or None for a folder without one.

    Raises:
        FileNotFoundError: there is no folder, or a required `label.csv` or `meta.csv` is not in it.
        ValueError: the folder has several other tables.
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
    found = printable(", ".join(sorted(path.name for path in root.iterdir())[:8])) or "nothing"
    raise FileNotFoundError(
        f"{root / TABLES[0]}: no such file, nor {TABLES[1]}; the folder holds {found}. "
        f"Its columns must be {', '.join(REQUIRED)}, and optionally {', '.join(list(LABELS.values())[1:])}; "
        "for a folder of videos with a table of your own, or with none, set prepare.layout to folder"
    )


def _rows(table: Path, layout: Layout, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yield (place for messages, row) of the table; rows of a folder's table get default ids and split."""
    for row in read_table(table, columns, REQUIRED if layout == "mmsa" else ()):
        yield (
            f"{table.name} row {row.line}",
            row if layout == "mmsa" else replace(row, values=_with_defaults(row.values)),
        )


def _with_defaults(values: Mapping[str, str]) -> dict[str, str]:
    """Add ids that are derived from the file's path, and a split, where a folder's row has none."""
    video, clip = _ids_of(_posix(values.get(MEDIA, "")))
    return {"video_id": video, "clip_id": clip, "text": "", "label": "", "mode": DEFAULT_SPLIT, **values}


def _ids_of(media: str) -> tuple[str, str]:
    """Derive video and clip from a path: `interview/03.mp4` is clip 03 of interview, `03.mp4` is a video of its own."""
    path = PurePosixPath(media)
    stem = path.stem if path.suffix.lower() in MEDIA_SUFFIXES else path.name
    folders = path.parts[1:-1] if path.parts[:1] == (MEDIA_FOLDER,) else path.parts[:-1]
    return "_".join(folders) or stem, stem


def _list_media(root: Path, problems: list[Problem]) -> Iterator[tuple[str, Row]]:
    """Yield (path, row) for each media file of a folder without a table, sorted by path.

    Files may be links. Folders that are links are not entered, hidden files and folders are skipped.

    Args:
        root: the folder.
        problems: list that folders are added to which cannot be read.

    Raises:
        OSError: the folder itself cannot be read.
        ValueError: the folder has no media.
    """

    def add_problem(error: OSError) -> None:
        if Path(error.filename) == root:
            raise error
        folder = Path(error.filename).relative_to(root).as_posix()
        message = f"{folder}: {error.strerror}; check the folder and its permissions"
        problems.append(Problem(folder, "prepare", "", "UnreadableFolder", message))

    visible: list[Path] = []
    for folder, folders, files in os.walk(root, onerror=add_problem):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(folder, name).relative_to(root) for name in files if not name.startswith(".")]
        visible += [path for path in paths if path.suffix.lower() in MEDIA_SUFFIXES]
    if not visible:
        raise ValueError(f"{root}: neither a table nor a media file; it can hold {', '.join(MEDIA_SUFFIXES)}")
    for media in map(Path.as_posix, sorted(visible)):
        yield media, Row(0, _with_defaults({MEDIA: media}), 0)


def read_table(path: Path, columns: Mapping[str, str], required: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table with string values by our column names. A UTF-8 byte-order mark is dropped.

    Args:
        path: the CSV file.
        columns: maps our column names to the table's.
        required: our names of the columns that the table must have. If empty, it needs those that locate the media.

    Raises:
        ValueError: columns are missing or occur twice, a quote takes in further rows, the file is not UTF-8, or there
            are no rows.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            lines = list(handle)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save the table as CSV UTF-8") from error
    rows = read = 0
    try:
        reader = csv.DictReader(iter(lines), restval="")
        names = _map_header(path, [name.strip() for name in reader.fieldnames or ()], columns, required)
        reader.fieldnames = names
        read = reader.line_num
        for values in reader:
            if _quote_takes_rows(lines[read : reader.line_num], names):
                raise ValueError(
                    f"{path}, line {read + 1}: a quote in this row is not closed where its text ends, and takes in the "
                    f'lines up to {reader.line_num}; close it, and double the quotes inside a text ("")'
                )
            read = reader.line_num
            rows += 1
            surplus = len(values.pop(None, ()))
            yield Row(read, values, surplus)
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {read + 1}: not a CSV table: {error}; close a quote that opens there, or save it as CSV "
            "UTF-8 again"
        ) from error
    if not rows:
        raise ValueError(f"{path}: a header and no rows; fill it with one row a clip")


def _quote_takes_rows(lines: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether the lines that were read as one row are several, of which a quote left open took the others.

    Quotes may enclose a text of several lines. They must then be exactly as the format has them, and neither a line
    inside the text nor two of the lines may be a complete row.
    """
    if len(lines) == 1:
        return False
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error:
        return True
    complete = [_is_complete_row(line, names) for line in lines]
    return any(complete[1:-1]) or sum(complete) > 1


def _is_complete_row(line: str, names: Sequence[str]) -> bool:
    """Return whether a line, whatever its quotes, has a value for each column, likely ones for the known."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(names):
        return False
    likely: dict[str, Callable[[str], bool]] = {
        "mode": lambda value: value in SPLITS,
        "label": lambda value: re.fullmatch(r"[-+]?[0-9.]+", value) is not None,
        MEDIA: lambda value: value.lower().endswith(MEDIA_SUFFIXES),
    }
    found = [likely[name](value) for name, value in zip(names, fields, strict=True) if name in likely]
    return bool(found) and all(found)


def _map_header(path: Path, header: list[str], columns: Mapping[str, str], required: Sequence[str]) -> list[str]:
    """Return our names of the header's columns; empty for a column that another one is mapped to replace."""
    found = f"found {', '.join(header) or 'an empty file'}"
    separator = next((name for mark, name in SEPARATORS.items() if len(header) == 1 and mark in header[0]), None)
    if separator:
        raise ValueError(
            f"{path}: its columns are separated by {separator}, not by commas; save it as CSV again; {found}"
        )
    for ours, theirs in columns.items():
        if theirs not in header:
            raise ValueError(f"{path}: no column {theirs!r}, which prepare.columns.{ours} names; {found}")
    ours_of = {theirs: ours for ours, theirs in columns.items()}
    names = [ours_of.get(name, "" if name in columns else name) for name in header]
    repeated = [name for name in COLUMNS if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: two columns are called {', '.join(repeated)}; {found}; rename one of them")
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


class _InvalidRowError(Exception):
    """A row is invalid; `error` is the problem's class."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


def _clip_of(row: Row, language: str) -> Clip:
    """Convert a row to a clip without duration and hash.

    Raises:
        _InvalidRowError: surplus values, a path that is absolute or has `..`, or a label that is not a number.
    """
    if row.surplus:
        raise _InvalidRowError(
            "MalformedRow",
            f"{row.surplus} more values than columns; put quotes around a text that holds commas",
        )
    labels = {name: _label(column, row.values.get(column, "")) for name, column in LABELS.items()}
    return Clip(
        clip_id=row.clip_id,
        video_id=row.values["video_id"],
        split=row.values["mode"].strip(),
        language=language,
        media=_media_of(row.values),
        text=row.values["text"].strip(),
        label=labels["label"],
        label_text=labels["label_text"],
        label_audio=labels["label_audio"],
        label_vision=labels["label_vision"],
        speaker=row.values.get("speaker", "").strip(),
        gender=row.values.get("gender", "").strip(),
    )


def _media_of(values: Mapping[str, str]) -> str:
    """Return the media path that the table gives for a clip; empty if it gives none.

    Raises:
        _InvalidRowError: the path has `..`, is absolute, or is not in UTF-8.
    """
    media = _posix(values.get(MEDIA, ""))
    for name in media.split("/") if media else ():
        if reason := unsafe_id(name):
            raise _InvalidRowError(
                "UnsafeMedia",
                f"media {media!r}: {name!r} {reason}; write the file's path in the folder, or rename the file",
            )
    return media


def _posix(media: str) -> str:
    """Convert a path that may be written with backslashes."""
    return media.strip().replace("\\", "/")


def _label(column: str, value: str) -> float | None:
    """Parse a label; None for an empty value."""
    if not value.strip():
        return None
    try:
        label = float(value)
    except ValueError:
        label = math.nan
    if not math.isfinite(label):
        raise _InvalidRowError("BadLabel", f"{column} {value!r} is not a number; correct it or leave it empty")
    return label


def _with_suffix(path: Path, exact: bool) -> Path | None:
    """Return the file at the path itself (if `exact`), or with the first suffix of `MEDIA_SUFFIXES` that exists."""
    if exact and path.is_file():
        return path
    for suffix in MEDIA_SUFFIXES:
        for spelled in (suffix, suffix.upper()):
            if (candidate := path.with_name(f"{path.name}{spelled}")).is_file():
                return candidate
    return None


def find_media(root: Path, clip: Clip) -> Path | None:
    """Return the clip's media file below `root`; None if there is none."""
    return _with_suffix(root / (clip.media or f"{MEDIA_FOLDER}/{clip.clip_id}"), exact=bool(clip.media))


def _add_media(clip: Clip, root: Path, where: str) -> tuple[Clip | None, Problem | None]:
    """Return the clip with media path, duration and hash, or None without media; and the problem of its media."""

    def problem(error: str, message: str) -> Problem:
        return Problem(clip.clip_id, "prepare", "", error, f"{where}: {message}")

    expected = clip.media or f"{MEDIA_FOLDER}/{clip.clip_id}.mp4"
    found = replace(clip, media=expected)
    try:
        media = find_media(root, clip)
        if media is None and (root / expected).is_symlink():
            return None, problem("MissingMedia", f"{expected} is a link that leads to no file; correct it")
        if media is None:
            return None, problem("MissingMedia", f"no file {expected}, nor with another ending; copy it there")
        found = replace(clip, media=media.relative_to(root).as_posix())
        found = replace(found, sha256=sha256_of(media))
        return replace(found, duration=probe(media).duration), None
    except OSError as error:
        message = f"{found.media}: {error.strerror}; check the file and its permissions"
        return found, problem("UnreadableMedia", message)
    except MediaError as error:
        return found, problem("UnreadableMedia", str(error))
