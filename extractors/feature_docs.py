"""Generate the page `docs/features.md`: `python -m extractors.feature_docs > docs/features.md`."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from extractors.registry import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extractors.base import Feature, FeatureDescription

_HEAD = """\
# Features

The features of each extractor and how they are measured. The extractor of a modality and its options are set in
`params.yaml` under `extract.<modality>`. Times are seconds from the clip's start; intervals are half-open.

This page is generated: `python -m extractors.feature_docs > docs/features.md`.
"""

_NUMBERED = re.compile(r"(.*?)(\d+)$")


def features_page() -> str:
    """Return the page in Markdown, with one section per built-in extractor."""
    return "\n".join([_HEAD, *(_section(name) for name in BUILT_IN)])


def extractor_class(name: str) -> Any:
    """Return the class of a built-in extractor; it is not constructed, so no weights are needed."""
    module, _, attribute = BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _section(name: str) -> str:
    extractor = extractor_class(name)
    description = extractor.description
    lines = [f"## {name}", "", *_table(("", ""), _facts(description)), ""]
    options = _options(extractor)
    if options:
        lines += [*_table(("option", "default", "meaning"), options), ""]
    else:
        lines += ["No options.", ""]
    rows = [(_names(feature), feature.meaning, feature.unit) for feature in description.features]
    return "\n".join([*lines, *_table(("feature", "meaning", "unit"), rows), ""])


def _facts(description: FeatureDescription) -> list[tuple[str, str]]:
    facts = [(name, getattr(description, name)) for name in ("source", "rate", "window", "valid")]
    return facts + [("needs", f"`pip install 'dashfusion[{description.extra}]'`")] * bool(description.extra)


def _options(extractor: Any) -> list[tuple[str, str, str]]:
    """Return name, default and meaning of the options, the meaning from the `Args:` of the class's docstring."""
    meanings = _arguments(inspect.getdoc(extractor) or "")
    rows = []
    for name, parameter in inspect.signature(extractor).parameters.items():
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default}`"
        rows.append((f"`{name}`", default, meanings[name]))
    return rows


def _arguments(docstring: str) -> dict[str, str]:
    """Return the entries of the `Args:` section of a docstring, each on one line."""
    meanings: dict[str, str] = {}
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    name = ""
    for line in (section.group(1) if section else "").splitlines():
        entry = re.match(r" {4}(\w+): (.*)", line)
        if entry:
            name, meanings[entry[1]] = entry[1], entry[2]
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings


def _names(feature: Feature) -> str:
    """Return the names in code marks, with runs of three or more consecutive numbers shortened to their ends."""
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
    """Group names with the same prefix and consecutive numbers."""
    runs: list[list[str]] = []
    for name in names:
        current, last = _NUMBERED.match(name), _NUMBERED.match(runs[-1][-1]) if runs else None
        if current and last and current[1] == last[1] and int(current[2]) == int(last[2]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    print(features_page(), end="")
