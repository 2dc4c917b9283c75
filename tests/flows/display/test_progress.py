"""What a user sees of a stage's progress: bars in a terminal, else lines; and bars of a stage whose output is read."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.display import progress
from flows.display.progress import MARK, RECORDS, BarReader, StageProgress

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shown(monkeypatch):
    """The console of the module, as a pipe or as a terminal, and what was written to it."""

    def make(terminal: bool = False) -> io.StringIO:
        out = io.StringIO()
        monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=terminal, width=100))
        return out

    return make


def erased(out: io.StringIO) -> bool:
    """Whether nothing was drawn after the last line was erased."""
    rest = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", out.getvalue().rpartition("\x1b[2K")[2])
    return rest.strip() == ""


def wait_for(out: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in out.getvalue():
        assert time.monotonic() < deadline, out.getvalue()
        time.sleep(0.005)


def test_without_a_terminal_a_long_stage_prints_lines_and_nothing_else(shown, monkeypatch):
    out = shown()
    monkeypatch.setattr(progress, "LINE_EVERY", 0.05)
    with StageProgress("batches") as bar:
        row = bar.add_task("train seed 0", total=40)
        bar.update(row, completed=10, note="epoch 1")
        wait_for(out, "train seed 0: 10 of 40 batches, epoch 1\n")
        bar.update(row, completed=20)
        wait_for(out, " left, epoch 1\n")
    lines = out.getvalue().splitlines()
    assert all(line.startswith("train seed 0: ") for line in lines), lines
    assert any("20 of 40 batches, " in line and "batches/s, " in line and " s left" in line for line in lines), lines


def test_what_takes_long_before_the_first_step_says_for_how_long(shown, monkeypatch):
    out = shown()
    now = {"seconds": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["seconds"])
    bar = StageProgress()
    bar.get_time = lambda: now["seconds"]
    row = bar.add_task("import features", total=None)
    now["seconds"] += 95
    bar.print_if_due()
    bar.update(row, total=30)
    now["seconds"] += 30
    bar.print_if_due()
    assert out.getvalue() == "import features: 1 min 35 s so far\nimport features: 0 of 30 clips\n"


def test_without_a_terminal_a_short_stage_prints_nothing(shown):
    out = shown()
    with StageProgress() as bar:
        bar.advance(bar.add_task("generate demo", total=2), 2)
    assert out.getvalue() == ""


def test_a_line_of_the_stage_takes_the_place_of_one_of_the_progress(shown, monkeypatch):
    out = shown()
    now = {"seconds": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["seconds"])
    bar = StageProgress()
    row = bar.add_task("train", total=3)
    now["seconds"] += 29
    bar.print_line(row, "epoch 1")
    now["seconds"] += 29
    bar.print_if_due()
    assert out.getvalue() == "train: epoch 1\n"
    now["seconds"] += 1
    bar.print_if_due()
    assert out.getvalue() == "train: epoch 1\ntrain: 0 of 3 clips\n"


def test_in_a_terminal_a_bar_is_drawn_and_gone_at_the_end(shown):
    out = shown(terminal=True)
    with StageProgress() as bar:
        row = bar.add_task("generate demo", total=2)
        bar.advance(row, 1)
        bar.print_line(row, "a line for logs")
        bar.refresh()
    assert "1/2" in out.getvalue() and "a line for logs" not in out.getvalue()
    assert erased(out)


def test_bars_of_a_stage_in_a_pipe_are_drawn_by_its_reader(shown, monkeypatch):
    monkeypatch.setenv(RECORDS, "1")
    monkeypatch.setattr(progress, "RECORD_EVERY", 0.01)
    sent = shown()
    with StageProgress("batches") as bar:
        row = bar.add_task("train seed 0", total=40)
        bar.update(row, completed=10, note="[red]loss")
        bar.print_line(row, "a line for logs")
        wait_for(sent, '"completed": 10')
    lines = sent.getvalue().split("\n")[:-1]
    assert all(line.startswith(MARK) for line in lines), "no lines beside the bars"
    drawn = shown(terminal=True)
    with BarReader() as bars:
        assert not bars.take("seed 0: best validation MAE 0.5")
        assert [bars.take(line) for line in lines[:-1]] == [True] * (len(lines) - 1)
        bars._bars.refresh()
        text = drawn.getvalue()
        assert "train seed 0" in text and "10/40" in text and "batches" in text and "[red]loss" in text
        assert bars.take(lines[-1]) and bars._bars is None, "the stage has removed it"
    assert erased(drawn)


def test_a_bar_whose_stage_was_killed_is_removed(shown):
    drawn = shown(terminal=True)
    with BarReader() as bars:
        record = '{"bar": 0, "description": "x", "completed": 1, "total": 2, "unit": "clips", "note": ""}'
        assert bars.take(MARK + record)
    assert erased(drawn)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"bar": 0}', '{"bar": "x", "done": true}', '{"bar": null}'])
def test_what_only_looks_like_a_record_is_an_ordinary_line(content):
    with BarReader() as bars:
        assert not bars.take(MARK + content)


STAGE = """
import time
from flows.display.progress import StageProgress
with StageProgress() as bar:
    row = bar.add_task("audio", total=20)
    for _ in range(20):
        bar.advance(row)
        time.sleep(0.05)
print("audio: done")
"""

PIPELINE = """
import subprocess, sys
from flows.orchestration import dvc
stage = subprocess.Popen([sys.executable, "-c", {stage!r}], stdout=subprocess.PIPE, text=True,
                         env=dvc.stage_environment(force=False))
dvc._read(stage.stdout, dvc.Output())
"""


def run_in(terminal: bool, script: str) -> str:
    """The output of a script whose standard output is a terminal, or a pipe."""
    command = [sys.executable, "-c", script]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    if not terminal:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                said += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.wait() == 0, said.decode()
    return said.decode()


def test_a_pipelines_terminal_shows_the_bars_of_its_stages_live():
    script = PIPELINE.format(stage=STAGE)
    live = run_in(True, script)
    assert len(set(re.findall(r"(\d+)/20", live))) > 2, "the bar moved while the stage ran"
    assert MARK not in live and "audio: done" in live
    assert run_in(False, STAGE) == "audio: done\n"
