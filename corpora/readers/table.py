"""Reader of a corpus's table: text with a header and one row a line, as people and spreadsheets write it.

Separators are commas, semicolons, tabs or vertical bars. The encoding is UTF-8, or UTF-16 with a byte-order mark,
unless it is named. No row is lost to a quote that was left open.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corpora.manifest import split_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

MEDIA = "media"
"""Column of a folder's own table: path of the clip's file, relative to the folder."""
MEDIA_SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp",
    ".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus",
)  # fmt: skip
"""Suffixes of media files. Where several files exist, the first suffix in this order counts."""

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""Separators of columns. Where a header has as many of two of them, the first in this order counts."""

BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

MIN_CHINESE = 0.8
"""Share of the characters beyond ASCII that must be frequent Chinese ones where a text is taken for Chinese."""
MAX_ADJACENT = 0.5
"""Largest share of the bytes beyond ASCII that stand next to each other where a text is taken for Western European."""

_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
"""First line by which Excel is told the separator; it is not part of the table."""
_NUMBER = re.compile(r"[-+\u2212]?(\d+([.,]\d*)?|[.,]\d+)")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        line: number of the line that the row ends on.
        values: by column.
        surplus: number of values beyond the last column.
    """

    line: int
    values: Mapping[str, str]
    surplus: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table's text, before its columns have our names.

    Attributes:
        path: its file.
        encoding: in which it was read.
        separator: of its columns, one of `SEPARATORS`.
        header: names of its columns, without spaces around them.
        lines: its lines with their ends, the header's included.
        first: number of lines in front of the header.
    """

    path: Path
    encoding: str
    separator: str
    header: tuple[str, ...]
    lines: Sequence[str]
    first: int = 0

    def rows(self, names: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the rows, with values by `names`, which are the header's unless they are given.

        Raises:
            ValueError: a quote takes in further rows, or a field is longer than the format allows.
        """
        names = self.header if names is None else names
        body = self.lines[self.first :]
        read = 0
        try:
            reader = csv.DictReader(iter(body), names, restval="", delimiter=self.separator)
            next(reader, None)  # the header
            read = reader.line_num
            for values in reader:
                if _quote_takes_rows(body[read : reader.line_num], names, self.separator):
                    raise ValueError(
                        f"{self.path}, line {self.first + read + 1}: a quote in this row is not closed where its text "
                        f"ends, and takes in the lines up to {self.first + reader.line_num}; close it, and double the "
                        'quotes inside a text ("")'
                    )
                read = reader.line_num
                surplus = len(values.pop(None, ()))
                yield Row(self.first + read, values, surplus)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {self.first + read + 1}: not a CSV table: {error}; close a quote that opens there, "
                "or save it as CSV UTF-8 again"
            ) from error


def open_table(path: Path, encoding: str | None = None, encoding_key: str = "prepare.encoding") -> Table:
    """Read a table's text, and find its separator and header.

    Args:
        path: the file.
        encoding: of the text. A byte-order mark counts more; without either it is UTF-8.
        encoding_key: parameter by which users name the encoding, for messages; empty: there is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not in this encoding; the message names one in which it could be.
    """
    data = path.read_bytes()
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    used = marked or encoding or "utf-8"
    try:
        text = data.decode(used)
    except UnicodeDecodeError as error:
        likely = guess_encoding(data)
        remedy = f"it may be {likely}: " if likely not in (None, used) else ""
        remedy += f"set {encoding_key}={likely}, or " if remedy and encoding_key else ""
        name = "UTF-8" if used.startswith("utf-8") else used
        raise ValueError(f"{path}: not {name} at byte {error.start}; {remedy}save the table as CSV UTF-8") from error
    lines = list(io.StringIO(text, newline=""))
    told = _SEPARATOR_LINE.fullmatch(lines[0]) if lines else None
    first = 1 if told and told[1] in SEPARATORS else 0
    separator = told[1] if told and first else find_separator(lines[first] if lines else "")
    try:
        header = next(csv.reader(lines[first:], delimiter=separator), [])
    except csv.Error as error:
        raise ValueError(f"{path}, line {first + 1}: not a CSV table: {error}; save it as CSV UTF-8 again") from error
    return Table(path, used, separator, tuple(name.strip() for name in header), lines, first)


def guess_encoding(data: bytes) -> str | None:
    """Return the encoding of a text without byte-order mark: utf-8, gb18030 or cp1252; None where it is none of them.

    Frequent Chinese characters are pairs of certain bytes in GB 18030; accented letters stand alone in Windows-1252.
    """

    def decodes(encoding: str) -> bool:
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            return False
        return True

    if decodes("utf-8"):
        return "utf-8"
    if decodes("gb18030"):
        wide = [c.encode("gb18030") for c in data.decode("gb18030") if ord(c) > 127]
        frequent = sum(
            (0xA1 <= pair[0] <= 0xA3 or 0xB0 <= pair[0] <= 0xD7) and pair[1] >= 0xA1 for pair in wide if len(pair) == 2
        )
        if frequent >= MIN_CHINESE * len(wide):
            return "gb18030"
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    adjacent = sum(run for run in runs if run > 1) / sum(runs)
    return "cp1252" if adjacent <= MAX_ADJACENT and decodes("cp1252") else None


def find_separator(header: str) -> str:
    """Return the separator that occurs most often in a header, outside of quotes; a comma if there is none."""
    bare = re.sub(r'"[^"]*"', "", header)
    return max(SEPARATORS, key=bare.count)


def parse_number(value: str) -> float | None:
    """Return a number that may have a decimal comma or a typographic minus, or None for anything else."""
    value = value.strip().replace("\u2212", "-")
    try:
        return float(value.replace(",", ".") if _NUMBER.fullmatch(value) else value)
    except ValueError:
        return None


def read_table(
    path: Path,
    columns: Mapping[str, str],
    required: Sequence[str],
    known: Sequence[str] = (),
    encoding: str | None = None,
) -> Iterator[Row]:
    """Yield the rows of a table with string values by our column names.

    Args:
        path: the file.
        columns: maps our column names to the table's.
        required: our names of the columns that the table must have. If empty, it needs those that locate the media.
        known: all our names, of which each may occur once only.
        encoding: as of `open_table`.

    Raises:
        ValueError: columns are missing or occur twice, a quote takes in further rows, the file is not in the encoding,
            or there are no rows.
    """
    table = open_table(path, encoding)
    names = _map_header(table, columns, required, known)
    row = None
    for row in table.rows(names):
        yield row
    if row is None:
        raise ValueError(f"{path}: a header and no rows; fill it with one row a clip")


def _map_header(
    table: Table, columns: Mapping[str, str], required: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """Return our names of the header's columns; empty for a column that another one is mapped to replace."""
    path, header = table.path, table.header
    found = f"found {', '.join(header) or 'an empty file'}"
    for ours, theirs in columns.items():
        if theirs not in header:
            raise ValueError(f"{path}: no column {theirs!r}, which prepare.columns.{ours} names; {found}")
    ours_of = {theirs: ours for ours, theirs in columns.items()}
    names = tuple(ours_of.get(name, "" if name in columns else name) for name in header)
    repeated = [name for name in known if names.count(name) > 1]
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


def _quote_takes_rows(lines: Sequence[str], names: Sequence[str], separator: str) -> bool:
    """Return whether the lines that were read as one row are several, of which a quote left open took the others.

    Quotes may enclose a text of several lines. They must then be exactly as the format has them, and neither a line
    inside the text nor two of the lines may be a complete row.
    """
    if len(lines) == 1:
        return False
    try:
        list(csv.reader(lines, strict=True, delimiter=separator))
    except csv.Error:
        return True
    complete = [_is_complete_row(line, names, separator) for line in lines]
    return any(complete[1:-1]) or sum(complete) > 1


def _is_complete_row(line: str, names: Sequence[str], separator: str) -> bool:
    """Return whether a line, whatever its quotes, has a value for each column, likely ones for the known."""
    fields = [field.strip() for field in line.split(separator)]
    if len(fields) != len(names):
        return False
    likely: dict[str, Callable[[str], bool]] = {
        "mode": lambda value: split_name(value) is not None,
        "label": lambda value: _NUMBER.fullmatch(value) is not None,
        MEDIA: lambda value: value.lower().endswith(MEDIA_SUFFIXES),
    }
    found = [likely[name](value) for name, value in zip(names, fields, strict=True) if name in likely]
    return bool(found) and all(found)
