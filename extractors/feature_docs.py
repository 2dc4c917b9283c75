"""Generate the page `docs/features.md`: `python -m extractors.feature_docs > docs/features.md`."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from extractors.registry import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extractors.base import Feature

_HEAD = """\
# Features

What each extractor measures, and how. This page is generated from the extractors
(`python -m extractors.feature_docs > docs/features.md`). An extractor and its options are chosen in `params.yaml`,
under `extract.<modality>`. Times are seconds from the clip's start, half-open.
"""

_NUMBERED = re.compile(r"(.*?)(\d+)$")


def features_page() -> str:
    """The whole page, in Markdown; one section a built-in extractor."""
    return "\n".join([_HEAD, *(_section(name) for name in BUILT_IN)])


def extractor_class(name: str) -> Any:
    """Class of a built-in extractor; nothing is built, so no weights are needed."""
    module, _, attribute = BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _section(name: str) -> str:
    made = extractor_class(name)
    description = made.description
    lines = [f"## {name}", "", *_table(("", ""), _facts(description)), ""]
    options = _options(made)
    if options:
        lines += [*_table(("option", "default", "meaning"), options), ""]
    else:
        lines += ["No options.", ""]
    rows = [(_names(feature), feature.meaning, feature.unit) for feature in description.features]
    return "\n".join([*lines, *_table(("feature", "meaning", "unit"), rows), ""])


def _facts(description: Any) -> list[tuple[str, str]]:
    facts = [("source", description.source), ("rate", description.rate), ("window", description.window), ("valid", description.valid)]
    return facts + [("needs", f"`pip install 'dashfusion[{description.extra}]'`")] * bool(description.extra)


def _options(made: Any) -> list[tuple[str, str, str]]:
    """Name, default and meaning, the last from the `Args:` of the class's docstring."""
    meanings = _arguments(inspect.getdoc(made) or "")
    rows = []
    for name, parameter in inspect.signature(made).parameters.items():
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default}`"
        rows.append((f"`{name}`", default, meanings[name]))
    return rows


def _arguments(docstring: str) -> dict[str, str]:
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    name = ""
    for line in (section.group(1) if section else "").splitlines():
        opening = re.match(r" {4}(\w+): (.*)", line)
        if opening:
            name, found[opening[1]] = opening[1], opening[2]
        elif line.strip():
            found[name] += f" {line.strip()}"
    return found


def _names(feature: Feature) -> str:
    """Names in code marks; a run of three numbers or more by its ends, `*` by a model's width."""
    shown: list[str] = []
    for run in _runs(feature.names):
        if len(run) > 2:
            shown.append(f"`{run[0]}` to `{run[-1]}`")
        else:
            shown += [
                f"`{name.replace('*', '0')}` to `{name.replace('*', '<width - 1>')}`" if "*" in name else f"`{name}`"
                for name in run
            ]
    return ", ".join(shown)


def _runs(names: Sequence[str]) -> list[list[str]]:
    """Names that count up by one after the same prefix, together."""
    runs: list[list[str]] = []
    for name in names:
        here, before = _NUMBERED.match(name), _NUMBERED.match(runs[-1][-1]) if runs else None
        if here and before and here[1] == before[1] and int(here[2]) == int(before[2]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    print(features_page(), end="")
