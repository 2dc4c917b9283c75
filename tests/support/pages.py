"""Fenced code blocks of README.md and docs/: what they are, where they are, and why some are not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [Path("README.md"), *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))]

REASONS = {
    "configures another program", "needs a GPU", "needs a cluster", "needs the network", "run by the server tests",
}  # fmt: skip
"""Reasons for which a block is not run, in a comment of its own before the block: `<!-- not run: needs a GPU -->`."""

NOT_RUN = re.compile(r"<!-- not run: (.*) -->")
PROGRAMS = (
    "curl", "dashfusion", "dask", "docker", "dvc", "git", "kubectl", "make", "pip", "prefect", "pytest", "python",
    "ray", "torchrun",
)  # fmt: skip
"""Programs by which a block without a language is recognised as commands; other such blocks are output."""

COMMAND = re.compile(rf"(?:\w+=\S+ )*(?:{'|'.join(PROGRAMS)}) |export \w+=|for \w+ in |\. \.venv")


@dataclass(frozen=True)
class Command:
    """A command of a page, with continued lines joined; `line` is that of its first."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    def programs(self) -> list[list[str]]:
        """Return the words of each simple command in it: of `a && X=1 b c > d`, these are [a] and [b, c]."""
        lexer = shlex.shlex(self.text, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        found: list[list[str]] = [[]]
        for word in lexer:
            if word in (">", ">>"):
                next(lexer)
            elif set(word) <= set("&;|"):
                found.append([])
            elif word == "do" or (not found[-1] and re.match(r"\w+=", word)):
                found[-1].clear()
            else:
                found[-1].append(word)
        return [words for words in found if words]


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its first line, `language` may be empty."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def kind(self) -> str:
        """`commands`, `output`, or the block's language."""
        if self.language in ("", "sh", "bash", "console"):
            return "commands" if any(map(COMMAND.match, self.text.splitlines())) else "output"
        return self.language

    def commands(self) -> list[Command]:
        """Return the commands of a block of commands."""
        found, begun = [], None
        for number, line in enumerate(self.text.splitlines(), self.line):
            text = line.strip()
            if begun is None and (not text or text.startswith("#")):
                continue
            begun = begun or (number, [])
            begun[1].append(text.removesuffix("\\").strip())
            if not text.endswith("\\"):
                found.append(Command(self.page, begun[0], " ".join(begun[1])))
                begun = None
        return found


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page of the repository, in order."""
    blocks: list[Block] = []
    opened: tuple[int, str, str | None] | None = None
    lines: list[str] = []
    reason = None
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if opened is None and line.lstrip().startswith("```"):
            opened = number + 1, line.strip().strip("`"), reason
            indentation = len(line) - len(line.lstrip())
        elif opened and line.strip() == "```":
            blocks.append(Block(str(page), opened[0], opened[1], "\n".join(lines), opened[2]))
            opened, lines, reason = None, [], None
        elif opened:
            lines.append(line[indentation:])
        elif line.strip():
            match = NOT_RUN.fullmatch(line.strip())
            reason = match[1] if match else None
    assert opened is None, f"{page}:{opened[0] if opened else ''}: the block is not closed"
    return blocks
