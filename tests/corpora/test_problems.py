from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from corpora.problems import Problem, TooManyFailuresError, check_failures, read_problems, write_problems

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


def failure(clip_id: str, error: str = "MediaError") -> Problem:
    return Problem(clip_id, "extract", "audio", error, "cannot be read")


def test_few_failures_pass_and_many_stop_with_a_summary():
    table, tracebacks = Path("data/problems/extract-audio.parquet"), Path("scratch/tracebacks")
    check_failures([failure("a")], 50, 0.02, table, tracebacks)
    check_failures([], 0, 0.0, table)
    failed = [failure("a"), failure("b"), failure("c", "ZeroDivisionError")]
    with pytest.raises(TooManyFailuresError) as raised:
        check_failures(failed, 50, 0.02, table, tracebacks)
    parts = ("3 of 50 clips failed, 6.0%", "MediaError 2, ZeroDivisionError 1", "a (audio)", str(table), "tracebacks")
    assert all(part in str(raised.value) for part in parts)
    with pytest.raises(TooManyFailuresError) as raised:
        check_failures(failed, 50, 0.02, table)
    assert "traceback" not in str(raised.value)
