"""Builders of corpora, in MMSA's layout and as a folder of one's own."""

from __future__ import annotations

import csv
import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLUMNS = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")


@pytest.fixture
def corpus(tmp_path: Path, demo: Path) -> Callable[..., Path]:
    """A function that writes a corpus from rows (dicts over good defaults) and gives its root.

    Each row gets media, a copy of a generated clip, unless `media=False`.
    """
    source = demo / "Raw" / "speaker_000" / "0001.mp4"

    def write(*rows: dict, table: str = "label.csv", encoding: str = "utf-8") -> Path:
        root = tmp_path / "corpus"
        root.mkdir(exist_ok=True)
        with (root / table).open("w", encoding=encoding, newline="") as out:
            optional = [name for name in ("speaker", "gender") if any(name in row for row in rows)]
            writer = csv.DictWriter(out, [*COLUMNS, *optional], extrasaction="ignore", restval="")
            writer.writeheader()
            for row in rows:
                row = {"video_id": "v", "clip_id": "1", "text": "fine", "label": "1.0", "mode": "train"} | row
                writer.writerow(row)
                path = root / "Raw" / row["video_id"] / f"{row['clip_id']}.mp4"
                if row.get("media", True):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read_bytes())
        return root

    return write


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Callable[..., Path]:
    """A function that puts media, copies of a generated clip, and perhaps a table into a folder of one's own."""

    def make(*media: str, table: str = "", name: str = "label.csv", encoding: str = "utf-8") -> Path:
        root = tmp_path / "own"
        for path in media:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demo / "Raw" / "speaker_000" / "0001.mp4", root / path)
        if table:
            (root / name).write_bytes(table.encode(encoding))
        return root

    return make
