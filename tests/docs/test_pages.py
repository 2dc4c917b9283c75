"""What README.md and docs/ show exists: commands and options, keys of params.yaml, studies. Nothing is run here."""

from __future__ import annotations

import ast
import copy
import importlib.util
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pages import PAGES, REASONS, ROOT, Block, read_blocks

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
COMMANDS = [command for block in BLOCKS if block.kind == "commands" for command in block.commands()]


def test_the_parser_finds_commands_their_lines_and_what_is_not_run(tmp_path, monkeypatch):
    page = "\n".join(
        [
            "text",
            "<!-- not run: needs a GPU -->",
            "```",
            "# on a machine",
            "A=1 dvc exp run \\",
            "    -S x=1   # why",
            "for i in 1; do dashfusion study $i > all.txt; done",
            "```",
            "- a list:",
            "  ```python",
            "  x = 1",
            "  ```",
            "```",
            "dashfusion: made",
            "```",
        ]
    )
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    monkeypatch.setattr("tests.support.pages.ROOT", tmp_path)
    commands, python, output = read_blocks(Path("page.md"))
    assert [(block.kind, block.line, block.reason) for block in (commands, python, output)] == [
        ("commands", 4, "needs a GPU"),
        ("python", 11, None),
        ("output", 14, None),
    ]
    assert python.text == "x = 1"
    first, second = commands.commands()
    assert str(first) == "page.md:5: A=1 dvc exp run -S x=1   # why"
    assert first.programs() == [["dvc", "exp", "run", "-S", "x=1"]]
    assert second.line == 7 and second.programs() == [["for", "i", "in", "1"], ["dashfusion", "study", "$i"], ["done"]]


def test_every_reason_for_not_running_a_block_is_a_known_one():
    unknown = [
        f"{block}: {block.reason!r}" for block in BLOCKS if block.reason is not None and block.reason not in REASONS
    ]
    assert not unknown, f"{unknown}; known are {sorted(REASONS)}"


@pytest.fixture(scope="module")
def check() -> Any:
    """Raises what the program itself raises when it cannot read its arguments."""
    from dvc.cli.parser import get_main_parser
    from typer.main import get_command

    from flows.cli import app

    dashfusion, dvc = get_command(app), get_main_parser()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    def check_words(program: str, *words: str) -> None:
        if program == "dashfusion":
            command, context, rest = dashfusion, None, list(words)
            while hasattr(command, "commands"):
                context = command.make_context(program, rest[:1], parent=context, resilient_parsing=True)
                program, command, rest = command.resolve_command(context, rest)
            command.make_context(program, rest, parent=context)
        elif program == "dvc":
            dvc.parse_args(words)
        elif program == "make":
            assert {word for word in words if "=" not in word} <= targets, f"no such target: {words}"
        elif program == "torchrun" or (program == "python" and words[0] == "-m"):
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module), f"no module {module}"

    return check_words


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_commands_and_options_of_a_page_exist(page, check):
    wrong = []
    for command in (command for command in COMMANDS if command.page == str(page)):
        for words in command.programs():
            try:
                check(*words)
            except (Exception, SystemExit) as error:
                wrong.append(f"{command}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def merged(base: Any, change: Any) -> Any:
    """The values of `change` in place of those of `base`."""
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind in ("yaml", "toml", "python", "json")], ids=str
)
def test_a_block_of_a_language_is_valid(block: Block, tmp_path):
    from flows.config.params import check_params
    from flows.studies.spec import read_spec

    if block.kind == "toml":
        assert tomllib.loads(block.text)
    elif block.kind == "python":
        ast.parse(block.text, str(block))
    else:
        values = yaml.safe_load(block.text)
        if block.reason:
            assert block.reason == "configures another program"
            return
        if "variants" in values:  # a study
            (tmp_path / "study.yaml").write_text(block.text, encoding="utf-8")
            assert read_spec(str(tmp_path / "study.yaml")).variants
            return
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        assert set(values) <= set(params), f"{block}: params.yaml has no {set(values) - set(params)}"
        check_params(merged(copy.deepcopy(params), values), str(block))
