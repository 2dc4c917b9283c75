from __future__ import annotations

import pyarrow.parquet as pq

from corpora.problems import Problem, read_problems, write_problems

ROWS = [
    Problem("v/1", "extract", "audio", "MediaError", "cannot be read", "0123456789ab"),
    Problem("v/2", "prepare", "", "MissingMedia", "no file"),
]


def test_problems_are_read_as_they_were_written(tmp_path):
    write_problems(ROWS, tmp_path / "a.parquet")
    write_problems([], tmp_path / "b.parquet")
    assert read_problems([tmp_path / "b.parquet", tmp_path / "a.parquet"]) == ROWS


def test_a_table_without_the_traceback_column_is_read(tmp_path):
    write_problems(ROWS, tmp_path / "new.parquet")
    pq.write_table(pq.read_table(tmp_path / "new.parquet").drop_columns(["traceback"]), tmp_path / "old.parquet")
    assert [problem.traceback for problem in read_problems([tmp_path / "old.parquet"])] == ["", ""]
