"""What is printed: control characters of file names, transcripts and checkpoints never reach the terminal."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from flows.cli.app import app
from flows.display.console import SafeConsole, printable, valid_unicode

EVIL = "a\x1b]0;owned\x07b\x9b31m\u202ec\udce9\ud83d.mp4"


def test_unsafe_characters_become_escapes():
    assert printable(EVIL) == r"a\x1b]0;owned\x07b\x9b31m\u202ec\xe9\ud83d.mp4"
    assert printable("会议\u3000 記録\tü\n👩\u200d🔬") == "会议\u3000 記録\tü\n👩\u200d🔬"
    assert valid_unicode(EVIL) == "a\x1b]0;owned\x07b\x9b31m\u202ec\\xe9\\ud83d.mp4"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_renderable_brings_a_control_character_to_the_terminal(terminal):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    colours = "truecolor" if terminal else None
    console = SafeConsole(file=file, force_terminal=terminal, width=200, color_system=colours)
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL, "red"))
    console.print(EVIL, style="bold red", markup=False)
    console.print(table)
    console.print(Text.assemble((EVIL, "bold"), ": ", EVIL))
    console.log(EVIL)
    console.rule(EVIL)
    file.flush()
    shown = file.buffer.getvalue().decode("utf-8")
    assert "\x1b]0" not in shown and "\x9b" not in shown and "\u202e" not in shown and r"\x1b]0;owned" in shown
    assert ("\x1b[1;31m" in shown) == terminal, "rich's own codes stay"


def test_an_errors_message_is_printed_without_control_characters():
    for options in ((), ("--json",)):
        shown = CliRunner().invoke(app, ["predict", "x.mp4", "--model", f"/nowhere/{EVIL[:-6]}", *options])
        assert shown.exit_code == 1 and r"\x1b]0;owned" in shown.output and "\x1b]0" not in shown.output
