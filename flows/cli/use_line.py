"""The `dashfusion use` line that selects a corpus, to be pasted into a shell."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.display.console import printable

if TYPE_CHECKING:
    from corpora.detection import DetectedCorpus

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_RESERVED = {"true", "false", "null", "inf", "nan"}


def use_line(corpus: DetectedCorpus) -> str:
    """Return the command, quoted for a POSIX shell.

    Raises:
        ValueError: a path or a column has a name that no parameter can hold.
    """
    low, high = corpus.label_range
    choices = [
        f"corpus={corpus.layout}",
        f"prepare.root={_value(_path(corpus.root))}",
        f"prepare.corpus={_value(_name(corpus.root.resolve()))}",
        *(f"prepare.columns.{ours}={_value(theirs)}" for ours, theirs in corpus.columns.items()),
    ]
    if corpus.other_tables:
        choices.append(f"prepare.table={_value(corpus.table)}")
    if corpus.encoding:
        choices.append(f"prepare.encoding={corpus.encoding}")
    if (low, high) != (-3, 3):
        choices.append(f"prepare.label_range=[{low:g},{high:g}]")
    if corpus.language != "en":
        choices += [f"prepare.language={corpus.language}", "text=characters"]
    if corpus.split:
        choices.append("prepare.split={" + ", ".join(f"{k}: {v}" for k, v in asdict(corpus.split).items()) + "}")
    return " ".join(["dashfusion", "use", *map(_word, choices)])


def _word(text: str) -> str:
    """Quote a word for the shell; in double quotes where it holds single ones and nothing that those leave special."""
    if "'" in text and not set('"$`\\!') & set(text):
        return f'"{text}"'
    return shlex.quote(text)


def _name(root: Path) -> str:
    return (root.stem if root.is_file() else root.name) or "mine"


def _path(root: Path) -> str:
    """Return the folder relative to the project where it is inside, otherwise absolute."""
    path = root.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _value(text: str) -> str:
    """Quote a text as a value of Hydra's."""
    if "${" in text or printable(text) != text or "\n" in text:
        raise ValueError(f"{text!r}: rename this first; a parameter cannot hold ${{ or control characters")
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"
