"""Reader of raw corpora, either in MMSA's layout or as any folder of media.

MMSA's layout is `label.csv` (or `meta.csv`) and `Raw/<video_id>/<clip_id>.mp4`. Any other folder may come with a table
of its own, or with none. Every row of the table ends up in the manifest or in the list of problems.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from corpora.files import sha256_of
from corpora.manifest import Clip, Manifest, split_name, straddling, unsafe_id, validate
from corpora.problems import Problem, printable
from corpora.readers.table import MEDIA, MEDIA_SUFFIXES, Row, parse_number, read_table
from corpora.splits import SplitConfig, draw_splits
from media.container import MediaError, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TABLES = ("label.csv", "meta.csv")
TABLE_SUFFIXES = (".csv", ".tsv")
REQUIRED = ("video_id", "clip_id", "text", "label", "mode")
"""Columns of MMSA's table."""
LABELS = {"label": "label", "label_text": "label_T", "label_audio": "label_A", "label_vision": "label_V"}
"""The table's column of each of the manifest's labels."""
SPEAKER = ("speaker", "gender")
"""Optional columns about the speaker."""
COLUMNS = (MEDIA, *REQUIRED, *list(LABELS.values())[1:], *SPEAKER)
"""All columns that are read. Other column names can be mapped to these."""
DEFAULT_SPLIT = "test"
"""Split of a folder's clips where the table has none, so that they can be predicted."""

Layout = Literal["mmsa", "folder"]
MEDIA_FOLDER = "Raw"
UNREADABLE = "UnreadableMedia"
"""Problem of a media file that is damaged or may not be read."""
PROBING_THREADS = 4
MAX_SHOWN = 3
"""Paths of a list that a message names."""


def read_raw(
    root: Path,
    *,
    corpus: str,
    language: str,
    label_range: tuple[float, float],
    layout: Layout = "mmsa",
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    split: SplitConfig | None = None,
    table: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Manifest, list[Problem]]:
    """Read a corpus, and probe and hash its media.

    Rows with an invalid id, split or label, without media that can be read, or that repeat a clip are left out and
    listed as problems. Also listed, but kept: videos and speakers in more than one split (`StraddlingVideo`,
    `StraddlingSpeaker`).

    Media may be links to files elsewhere, such as on another disk: of a media file, only pictures and sound are used.

    Args:
        root: folder with the table and the media.
        corpus: name of the corpus in reports.
        language: ISO 639-1 code of every clip.
        label_range: minimum and maximum label.
        layout: `mmsa`: a table with all of `REQUIRED`, media in `Raw/`. `folder`: the table only has to say where the
            media are, by `media` or as in MMSA's layout, and may leave out the folder of a file whose name is unique;
            without a table, every media file is a clip. The video is the file's folder, unless the table has one;
            clips without a split are in test.
        columns: maps names of `COLUMNS` to the table's own names, where they differ.
        encoding: of the table; None: UTF-8, or what its byte-order mark says.
        split: how to draw the splits of a folder's clips; None: they are the table's.
        table: name of a folder's table; None: `label.csv`, `meta.csv` or the only one.
        progress: called after each clip with the number of clips that were read and of all clips.

    Raises:
        FileNotFoundError: there is no folder, or no table in it.
        ValueError: the table lacks columns, is in another encoding, or has no rows; the folder has no media; or splits
            are to be drawn, and the table has its own, or there are too few speakers.
    """
    # Table
    root = Path(root)
    located, problems = read_rows(root, language, layout, columns or {}, encoding, split is None, table)
    clips, invalid = validate(located, label_range)
    clips = clips if split is None else draw_splits(clips, split)
    problems += invalid + straddling(clips)

    # Media
    places = {clip.clip_id: where for where, clip in reversed(located)}  # the first place of a repeated clip
    files = MediaFiles(root) if layout == "folder" and find_table(root, layout, table) else None
    probed: list[Clip | Problem] = []
    with ThreadPoolExecutor(PROBING_THREADS) as pool:
        for read in pool.map(lambda clip: _add_media(clip, root, places[clip.clip_id], files), clips):
            probed.append(read)
            if progress is not None:
                progress(len(probed), len(clips))
    kept = [clip for clip in probed if isinstance(clip, Clip)]
    problems += [problem for problem in probed if isinstance(problem, Problem)]
    drawn = asdict(split) if split else None
    return Manifest(corpus, str(root), label_range, tuple(kept), drawn=drawn), problems


def read_rows(
    root: Path,
    language: str,
    layout: Layout,
    columns: Mapping[str, str],
    encoding: str | None = None,
    own_splits: bool = True,
    table: str | None = None,
) -> tuple[list[tuple[str, Clip]], list[Problem]]:
    """Read the table's rows, or list a folder's media, without a look at the media.

    Arguments are those of `read_raw`, whose exceptions are raised.

    Returns:
        (place for messages, clip) of each row, all in test if not `own_splits`; problems of the others.
    """
    path = find_table(root, layout, table)
    problems: list[Problem] = []
    located: list[tuple[str, Clip]] = []
    rows = _list_media(root, problems) if path is None else _table_rows(path, layout, columns, encoding)
    for where, row in rows:
        if not own_splits and row.values.get("mode", "").strip():
            column = columns.get("mode", "mode")
            raise ValueError(
                f"{where}: the table has splits of its own, in its column {column}: set prepare.split=null to keep "
                "them, or remove the column to draw others"
            )
        if not own_splits:
            row = replace(row, values={**row.values, "mode": DEFAULT_SPLIT})
        try:
            located.append((where, _clip_of(row, language)))
        except _InvalidRowError as error:
            problems.append(Problem(_clip_id(row.values), "prepare", "", error.error, f"{where}: {error}"))
    return located, problems


def list_tables(root: Path) -> list[Path]:
    """Return the tables of a folder: `label.csv` or `meta.csv` alone if there is one, otherwise all others, sorted.

    Raises:
        FileNotFoundError: there is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; set prepare.root to the folder that holds label.csv and Raw/")
    for name in TABLES:
        if (root / name).is_file():
            return [root / name]
    return sorted(p for p in root.iterdir() if p.suffix.lower() in TABLE_SUFFIXES and not p.name.startswith("."))


def find_table(root: Path, layout: Layout = "mmsa", name: str | None = None) -> Path | None:
    """Return the path of the corpus's table, or None for a folder without one.

    Args:
        root: the corpus's folder.
        layout: its layout.
        name: name of a folder's table; None: `label.csv`, `meta.csv` or the only one.

    Raises:
        FileNotFoundError: there is no folder, no table with the name, or no `label.csv` or `meta.csv` in MMSA's layout.
        ValueError: the folder has several tables, and none is named.
    """
    tables = list_tables(root)
    if name:
        if not (root / name).is_file():
            there = printable(", ".join(path.name for path in tables)) or "no table"
            raise FileNotFoundError(f"{root / name}: no such file, which prepare.table names; the folder has {there}")
        return root / name
    if tables and tables[0].name in TABLES:
        return tables[0]
    if layout == "folder":
        if len(tables) > 1:
            raise ValueError(
                f"{root}: which table? {printable(', '.join(p.name for p in tables))}; name it as prepare.table; "
                f"`dashfusion doctor` of the folder tells which one fits"
            )
        return tables[0] if tables else None
    found = printable(", ".join(sorted(path.name for path in root.iterdir())[:8])) or "nothing"
    raise FileNotFoundError(
        f"{root / TABLES[0]}: no such file, nor {TABLES[1]}; the folder holds {found}. "
        f"Its columns must be {', '.join(REQUIRED)}, and optionally {', '.join(list(LABELS.values())[1:])}; "
        "for a folder of videos with a table of your own, or with none, set prepare.layout to folder"
    )


def _table_rows(
    table: Path, layout: Layout, columns: Mapping[str, str], encoding: str | None
) -> Iterator[tuple[str, Row]]:
    """Yield (place for messages, row) of the table; rows of a folder's table get default ids and split."""
    required = REQUIRED if layout == "mmsa" else ()
    for row in read_table(table, columns, required, COLUMNS, encoding):
        values = row.values if layout == "mmsa" else _with_defaults(row.values)
        yield f"{table.name} row {row.line}", replace(row, values=values)


def _clip_id(values: Mapping[str, str]) -> str:
    return f"{values['video_id']}/{values['clip_id']}"


def _with_defaults(values: Mapping[str, str]) -> dict[str, str]:
    """Add ids that are derived from the file's path, where a folder's row has none."""
    video, clip = _ids_of(_posix(values.get(MEDIA, "")))
    return {"video_id": video, "clip_id": clip, "text": "", "label": "", **values}


def _ids_of(media: str) -> tuple[str, str]:
    """Derive video and clip from a path: `interview/03.mp4` is clip 03 of interview, `03.mp4` is a video of its own."""
    path = PurePosixPath(media)
    stem = path.stem if path.suffix.lower() in MEDIA_SUFFIXES else path.name
    folders = path.parts[1:-1] if path.parts[:1] == (MEDIA_FOLDER,) else path.parts[:-1]
    return "_".join(folders) or stem, stem


def _list_media(root: Path, problems: list[Problem]) -> Iterator[tuple[str, Row]]:
    """Yield (path, row) for each media file of a folder without a table, sorted by path.

    Raises as `list_media` does, and ValueError for a folder without media.
    """
    media = list_media(root, problems)
    if not media:
        raise ValueError(f"{root}: neither a table nor a media file; it can hold {', '.join(MEDIA_SUFFIXES)}")
    for path in media:
        yield path, Row(0, _with_defaults({MEDIA: path}))


def list_media(root: Path, problems: list[Problem]) -> list[str]:
    """Return the paths of the media files in a folder and its folders, relative to it, sorted.

    Files may be links. Folders that are links are not entered, hidden files and folders are skipped.

    Args:
        root: the folder.
        problems: list that folders are added to which cannot be read.

    Raises:
        OSError: the folder itself cannot be read.
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
    return [path.as_posix() for path in sorted(visible)]


class MediaFiles:
    """The media files of a folder, to be found by the last part of their paths."""

    def __init__(self, root: Path) -> None:
        self._paths: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
        for media in list_media(root, []):  # of a folder that cannot be read, the clips are problems
            self._paths[PurePosixPath(media).stem].append(PurePosixPath(media))

    def find(self, tail: str) -> list[str]:
        """Return the files whose paths end in `tail`, which may lack the suffix; one of each folder."""
        wanted = PurePosixPath(tail)
        exact = wanted.suffix.lower() in MEDIA_SUFFIXES
        found: dict[PurePosixPath, PurePosixPath] = {}
        for path in self._paths.get(wanted.stem if exact else wanted.name, ()):
            parts = path.parts if exact else path.with_suffix("").parts
            if parts[-len(wanted.parts) :] == wanted.parts:
                found[path.parent] = min(found.get(path.parent, path), path, key=_suffix_order)
        return sorted(map(str, found.values()))


def _suffix_order(path: PurePosixPath) -> int:
    return MEDIA_SUFFIXES.index(path.suffix.lower())


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
            f"more values than columns, by {row.surplus}; put quotes around a text that holds commas",
        )
    mode = row.values.get("mode", DEFAULT_SPLIT).strip()
    labels = {name: _label(column, row.values.get(column, "")) for name, column in LABELS.items()}
    return Clip(
        clip_id=_clip_id(row.values),
        video_id=row.values["video_id"],
        split=split_name(mode) or mode,
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
    label = parse_number(value)
    if label is None or not math.isfinite(label):
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


def locate_media(clip: Clip, root: Path, files: MediaFiles | None) -> list[Path]:
    """Return the media file at the clip's place, or otherwise those of `files` with its name; empty if there is none.

    Args:
        clip: a clip of the table.
        root: the corpus's folder.
        files: all media of the folder; None: do not look elsewhere.
    """
    media = _with_suffix(root / (clip.media or f"{MEDIA_FOLDER}/{clip.clip_id}"), exact=bool(clip.media))
    if media is not None:
        return [media]
    return [root / path for path in files.find(clip.media or clip.clip_id)] if files else []


def _add_media(clip: Clip, root: Path, where: str, files: MediaFiles | None) -> Clip | Problem:
    """Return the clip with media path, duration and hash, or the problem of its media.

    Args:
        clip: a clip of the table.
        root: the corpus's folder.
        where: the clip's place, for messages.
        files: all media of the folder, to look for a file that is not at its path; None: do not look.
    """

    def problem(error: str, message: str) -> Problem:
        return Problem(clip.clip_id, "prepare", "", error, f"{where}: {message}")

    expected = clip.media or f"{MEDIA_FOLDER}/{clip.clip_id}.mp4"
    name = expected
    try:
        found = [path.relative_to(root).as_posix() for path in locate_media(clip, root, files)]
        if not found and (root / expected).is_symlink():
            return problem("MissingMedia", f"{expected} is a link that leads to no file; correct it")
        if len(found) > 1:
            shown = ", ".join(found[:MAX_SHOWN]) + (", ..." if len(found) > MAX_SHOWN else "")
            message = f"{len(found)} files are called so: {shown}; write the file's path in the folder"
            return problem("AmbiguousMedia", f"{clip.media or clip.clip_id}: {message}")
        if not found:
            return problem("MissingMedia", f"no file {expected}, nor with another ending; copy it there")
        name, media = found[0], root / found[0]
        return replace(clip, media=name, sha256=sha256_of(media), duration=probe(media).duration)
    except OSError as error:
        return problem(UNREADABLE, f"{name}: {error.strerror}; check the file and its permissions")
    except MediaError as error:
        return problem(UNREADABLE, str(error))
