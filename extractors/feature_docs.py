"""Generate the page `docs/features.md`: `python -m extractors.feature_docs > docs/features.md`."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

from extractors.dataset.columns import PUBLISHED
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

_RECIPES = """\
## Recipes

Feature sets that the field knows by name, as presets of `dashfusion use`:

| preset | what it sets | source |
| --- | --- | --- |
| `recipe=sims_33` | `extract.audio` to `audio.sims_33`, hop 512 samples | thuiar/MMSA, `data/DataPre.py` |
| `recipe=mosi_covarep5` | `align.columns.audio` to `covarep_5` | see below |
| `recipe=default` | nothing: the features of the corpus's preset | |

`align.columns` chooses the columns that the dataset keeps of audio and vision, by the names of the features or by a
list that was published for a data set:

| list | for | columns, from 0 | names | source |
| --- | --- | --- | --- | --- |
{lists}

The list is refused for features of another width. CMU-MOSI's processed files come with 5 of COVAREP's 74 audio columns
already; the list gives the same columns of CMU-MultimodalSDK's `.csd` files (`corpus=csd`), as the maintainer of the
data published them. Two other selections are not offered:

- The 20 columns of FACET that the processed CMU-MOSI files hold as vision. Their list was published in the same place,
  but for 48 names, the first of which is the frame's time, while the `.csd` file has 47 columns: it does not say which
  one a number means. `align.columns.vision` takes the names that you decide on.
- COVAREP itself, which is MATLAB code: its features are imported, never extracted here.

## Audio by speaker

`align.normalise_audio: speaker` standardises every audio feature, the mean over the visible steps of the speaker's
clips becoming 0 and their standard deviation 1. It removes what is constant of a voice and its microphone, such as
pitch and level, and keeps how they vary (Busso, Metallinou and Narayanan, "Iterative Feature Normalization for
Emotional Speech Detection", ICASSP 2011, and the literature there).

- The statistics are those of the speaker's own clips in the same split. No clip of another split changes a value, even
  if a speaker is in several splits; labels are not used. A test clip's values do depend on the speaker's other test
  clips: the setting assumes that several clips of a new speaker are there when one is scored.
- A clip whose speaker the manifest does not know is standardised with the other clips of its video.
- A new video is standardised by its own steps: its windows share the statistics of the whole video. With a short video
  these are estimated from little, and what is constant in it, such as a raised voice throughout, is lost.
"""

_NUMBERED = re.compile(r"(.*?)(\d+)$")


def features_page() -> str:
    """Return the page in Markdown: one section per built-in extractor, then recipes and normalisation."""
    lists = [
        f"| `{name}` | {entry.modality}, {entry.width} columns | {', '.join(map(str, entry.columns))} | "
        f"{', '.join(f'`{column}`' for column in entry.names)} | {entry.source} |"
        for name, entry in PUBLISHED.items()
    ]
    return "\n".join([_HEAD, *(_section(name) for name in BUILT_IN), _RECIPES.format(lists="\n".join(lists))])


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
