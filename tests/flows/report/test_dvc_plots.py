"""What DVC's plots are drawn from."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest

from corpora.manifest import Clip
from flows.report import write_plot_data

if TYPE_CHECKING:
    from pathlib import Path

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_plot_data_has_one_row_a_labelled_clip(tmp_path, make):
    clips = {
        "a/1": Clip("a/1", "a", "test", "en", "", "", -3.0),
        "a/2": Clip("a/2", "a", "test", "en", "", "", 2.4),
        "a/3": Clip("a/3", "a", "test", "en", "", "", None),
    }
    write_plot_data(tmp_path, make.predictions(clips, {0: 0.0, 1: 1.0}), WIDE)
    assert read_csv(tmp_path / "confusion.csv") == [
        {"actual": "a: -3", "predicted": "b: -2"},  # -2.5 rounds to even
        {"actual": "f: 2", "predicted": "g: 3"},
    ]
    assert read_csv(tmp_path / "scatter.csv") == [
        {"label": "-3", "prediction": "-2.5"},
        {"label": "2.4", "prediction": "2.9"},
    ]


@pytest.mark.parametrize(("label_range", "count"), [(WIDE, 7), (UNIT, 5)])
def test_classes_of_the_plot_data_sort_from_negative_to_positive(tmp_path, label_range, count, make):
    clips = make.clips(61, high=label_range[1])
    write_plot_data(tmp_path, make.predictions(clips, {0: 0.0}), label_range)
    names = [row["actual"] for row in read_csv(tmp_path / "confusion.csv")]
    assert names == sorted(names)
    assert len(set(names)) == count
