"""Generate the page `docs/networks.md`: `python -m model.network_docs > docs/networks.md`."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from model.network.registry import BUILT_IN, find_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.network.base import Network

_HEAD = """\
# Networks

`model.name` chooses the network, `model.options` its own hyperparameters:

```
dashfusion use model.name=lmf model.options.rank=8 train.contrastive.weight=0
dashfusion train
```

Every network reads the same batches, and is trained, resumed, evaluated, explained, exported, used for prediction and
compared in studies in the same way. All accept clips that lack a modality, every [text mode](text_modes.md), modality
dropout and augmentation. A setting that a network does not have, or cannot take, is refused with the reason. Except
for the two DashFusion networks none has the streams that contrastive learning compares: set `train.contrastive.weight`
to 0.

The networks of the literature are written from the papers; what these leave out follows MMSA 2.2.1, and tests compare
them with MMSA's modules: the same weights and inputs give the same predictions. They are trained as this project trains
every network: with AdamW, a warm-up and a linear decay of the learning rate, and batches whose padding no network sees;
`train.regression_loss` chooses between squared and absolute errors. A loss of a network's own, such as MISA's or
Self-MM's, is added to that and reported as `train_auxiliary`. *Published settings* below are those that differ from the
defaults.

This page is generated: `python -m model.network_docs > docs/networks.md`.
"""

_OWN = """\
## A network of your own

A package can register networks, which then have all that the built-in ones have:

```toml
[project.entry-points."dashfusion.networks"]
mean = "my_package.networks:MeanNetwork"
```

`model.network.base.Network` describes the class attributes and methods. `FeatureInputs` gives the normalised features,
or the hidden states of a text encoder that is trained, `MaskedLSTM` and the layers of `model.network.layers` compute on
masked sequences. Masked steps must not change a prediction.

```python
from dataclasses import dataclass

import torch
from torch import nn

from model.config_blocks import require_at_least
from model.network.base import Embedding, Network, Output
from model.network.inputs import FeatureInputs
from model.network.layers import at_least_float32, masked_mean


@dataclass(frozen=True)
class Options:
    width: int = 64

    def __post_init__(self):
        require_at_least("model.options.width", self.width, 1)


class MeanNetwork(Network):
    options_class = Options
    source = "my own: the means of the features through one hidden layer"
    paper = {"train.contrastive.weight": 0.0}
    search_space = {"model.options.width": (32, 64, 128)}

    def __init__(self, config, info, text=None):
        super().__init__(config, info, text)
        self.inputs = FeatureInputs(config, info, text)
        width = sum(self.inputs.dims.values())
        self.layers = nn.Sequential(nn.Linear(width, self.options.width), nn.ReLU(), nn.Linear(self.options.width, 1))

    def forward(self, batch):
        means = {m: masked_mean(x.values, x.mask) for m, x in self.inputs(batch).items()}
        prediction = self.layers(torch.cat(list(means.values()), dim=1))
        present = {m: batch.masks[m].any(dim=1) for m in means}
        return Output(at_least_float32(prediction).squeeze(-1), Embedding(means, present))
```

Training resumes, and cached study trainings are used, only while the file of the class is unchanged; after a change
elsewhere in the package run `dvc repro -f train`.
"""


def networks_page() -> str:
    """Return the page in Markdown, with one section per built-in network."""
    networks = {name: find_network(name) for name in BUILT_IN}
    rows = [(f"[`{name}`](#{name})", _summary(network), ", ".join(network.reads)) for name, network in networks.items()]
    table = _table(("`model.name`", "network", "reads"), rows)
    sections = [line for name, network in networks.items() for line in _section(name, network)]
    return "\n".join([_HEAD, *table, "", *sections, _OWN])


def _summary(network: type[Network]) -> str:
    """Return the first sentence of the network's module."""
    return " ".join((sys.modules[network.__module__].__doc__ or "").split("\n\n")[0].split())


def _section(name: str, network: type[Network]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield from (inspect.getdoc(network) or "").partition("\n\nRaises:")[0].splitlines()
    yield ""
    yield f"Source: {network.source}."
    yield ""
    if settings := ", ".join(f"`{key}: {_yaml(value)}`" for key, value in network.paper.items()):
        yield f"Published settings: {settings}."
        yield ""
    if lacks := ", ".join(f"`model.{key}`" for key in network.fixed):
        yield f"Does not have: {lacks}."
        yield ""
    meanings = _attributes(inspect.getdoc(network.options_class) or "")
    defaults = network.options_class()
    rows = [
        (f"`{item.name}`", f"`{_yaml(getattr(defaults, item.name))}`", meanings[item.name])
        for item in fields(network.options_class)
    ]
    if rows:
        yield from _table(("`model.options`", "default", "meaning"), rows)
    else:
        yield "No options of its own."
    yield ""


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_yaml, value))}]"
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _attributes(docstring: str) -> dict[str, str]:
    """Return the entries of the `Attributes:` section of a docstring, each on one line."""
    section = re.search(r"^Attributes:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w+: )", section[1] if section else "", flags=re.MULTILINE)
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return {name: meaning for name, _, meaning in pairs if name}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


if __name__ == "__main__":
    print(networks_page(), end="")
