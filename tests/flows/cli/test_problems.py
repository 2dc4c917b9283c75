"""`dashfusion problems`: the tables of all stages, as text and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corpora.problems import Problem, write_problems
from flows.cli.app import app
from flows.display import console as consoles

HOSTILE = '=1+1,"\x1b[2J[bold]\r\nsecond'
LONG = "a message with so many words that no terminal of eighty columns has room for it in a single line; shorten it"
PREPARE = [Problem("v/1", "prepare", "", "MissingMedia", LONG), Problem(HOSTILE, "prepare", "", "UnsafeId", HOSTILE)]
AUDIO = [Problem("v/2", "extract", "audio", "MediaError", "cannot be read", "0123456789ab")]
ALIGN = [Problem("v/3", "align", "", "NoModality", "nothing is left")]


@pytest.fixture
def run(project):
    """A function that runs the command in a terminal of 80 columns: (exit code, standard output, standard error)."""

    def invoke(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["problems", *arguments])
        return result.exit_code, result.stdout_bytes.decode(), result.stderr

    return invoke


@pytest.fixture
def tables(monkeypatch):
    """The tables of a project whose extraction stopped after audio, and that was aligned before."""
    monkeypatch.setattr(consoles, "console", consoles.SafeConsole(highlight=False, soft_wrap=True, width=80))
    write_problems(PREPARE, Path("data/problems/prepare.parquet"))
    write_problems([], Path("data/problems/transcribe.parquet"))
    write_problems(AUDIO, Path("data/problems/extract-audio.parquet"))
    write_problems([*PREPARE, *AUDIO, *ALIGN], Path("data/problems.parquet"))


def test_problems_are_shown_by_stage_and_kind(run, tables):
    code, shown, _ = run()
    tables_shown = shown[: shown.index("4 problems")]
    assert code == 0 and max(map(len, tables_shown.splitlines())) <= 80
    titles = [
        "prepare: MissingMedia (1)",
        "prepare: UnsafeId (1)",
        "extract audio: MediaError (1)",
        "align: NoModality",
    ]
    assert [title for title in sorted(titles, key=shown.find) if title in shown] == titles
    assert LONG in " ".join(part.strip() for part in shown.replace("v/1", "").splitlines())
    assert "\x1b[2J" not in shown and r"\x1b[2J[bold]" in shown
    assert "4 problems (prepare 2, extract 1, align 1); tracebacks are in" in shown
    assert "not run yet: extract text, extract vision; `dashfusion extract text` runs" in shown


def test_one_stage_is_shown_alone_and_the_absence_of_problems_is_said(run, tables):
    assert "v/3" in run("--stage", "align")[1] and "v/1" not in run("--stage", "align")[1]
    assert run("--stage", "transcribe") == (0, "no problems in transcribe\n", "")
    code, shown, _ = run("--stage", "extract")
    assert (code, "v/2" in shown, "extract text, extract vision" in shown) == (0, True, True)


def test_csv_is_exact_and_on_standard_output_alone(run, tables):
    code, shown, errors = run("--csv")
    assert code == 0 and "not run yet" in errors
    assert list(csv.DictReader(io.StringIO(shown, newline=""))) == [asdict(p) for p in (*PREPARE, *AUDIO, *ALIGN)]
    assert run("--csv", "--stage", "transcribe") == (0, "clip_id,stage,modality,error,message,traceback\n", "")


@pytest.mark.parametrize("arguments", [[], ["--stage", "prepare"], ["--csv"]])
def test_before_the_stage_the_command_that_runs_it_is_named(run, arguments):
    code, shown, errors = run(*arguments)
    assert code == 1 and "not run yet: prepare" in shown + errors and "`dashfusion prepare`" in shown + errors
    assert ("clip_id" in shown) == ("--csv" in arguments)
