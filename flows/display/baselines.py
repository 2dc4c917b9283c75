"""The comparison of a model with the baselines, in a table and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from flows.display.metrics import (
    LESS_IS_BETTER,
    METRICS,
    NOTHING,
    Verdict,
    direction,
    format_difference,
    format_metric,
)

BASELINES = {
    "majority_class": ("Majority class", "the more frequent polarity of the training labels"),
    "mean_label": ("Mean label", "mean of the training labels"),
    "median_label": ("Median label", "median of the training labels"),
    "ridge_text": ("Ridge on text", "linear regression on the mean of a clip's text features"),
}
"""Key in metrics/<split>.json -> name and meaning."""

_RANK: tuple[Verdict, ...] = ("worse", "undecided", "better")


@dataclass(frozen=True, slots=True)
class BaselineRow:
    """A baseline as text.

    Attributes:
        name: Its name.
        meaning: What it predicts.
        cells: Of each metric its value, and the model's difference to it with the interval; empty where undefined.
        verdicts: Of each metric whether the model is better; empty where undefined.
    """

    name: str
    meaning: str
    cells: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict | str, ...]


ZERO_SHOT = "zero_shot"
"""Key of the chat models that were asked about the clips, see `flows.zero_shot`."""


def baseline_metrics(found: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a comparison, the one that decides first."""
    compared = [found.get(name, {}) for name in BASELINES] + list(found.get(ZERO_SHOT, ()))
    keys = [key for values in compared for key in values if key in METRICS]
    return sorted(dict.fromkeys(keys), key=lambda key: key not in LESS_IS_BETTER)


def baseline_values(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return name, meaning and values of the baselines and chat models of a comparison."""
    named = [(name, meaning, found.get(key, {})) for key, (name, meaning) in BASELINES.items()]
    chat_models = found.get(ZERO_SHOT, ())
    named += [(f"Zero-shot: {values['model']}", zero_shot_meaning(values), values) for values in chat_models]
    return [
        (name, f"{meaning} ({values['features']})" if "features" in values else meaning, values)
        for name, meaning, values in named
        if values
    ]


def baseline_rows(found: Mapping[str, Any]) -> list[BaselineRow]:
    """Return the rows of a comparison, as `baselines` of metrics/<split>.json."""
    rows = []
    for name, meaning, values in baseline_values(found):
        cells, verdicts = [], []
        for metric in baseline_metrics(found):
            cells.append((format_metric(metric, values.get(metric)), _difference(metric, values)))
            verdicts.append(_verdict(metric, values) if metric in values else "")
        rows.append(BaselineRow(name, meaning, tuple(cells), tuple(verdicts)))
    return rows


def zero_shot_meaning(values: Mapping[str, Any]) -> str:
    """Return what a chat model was asked, on how many clips it has no score and why, and the cost."""
    without = ("refused", "unparsable", "out_of_range", "not_asked")
    parts = [f"{values[key]:,} {key.replace('_', ' ')}" for key in without if values[key]]
    tokens = [values["prompt_tokens"], values["completion_tokens"]]
    cost = "tokens not counted" if None in tokens else f"{sum(tokens):,} tokens"
    answered = f"{values['answered']:,} of {values['clips']:,} clips"
    return f"chat model, transcript alone: {'; '.join([answered, *parts, cost])}"


def baseline_table(found: Mapping[str, Any]) -> Table:
    """Return a comparison as a table for the terminal; it fits into 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("baseline")
    for metric in baseline_metrics(found):
        for column in (METRICS[metric].short, "model's difference"):
            table.add_column(column, justify="right", no_wrap=True)
    for row in baseline_rows(found):
        table.add_row(escape(row.name), *(text for cell in row.cells for text in cell))
    return table


def baseline_verdict(found: Mapping[str, Any], subject: str = "the model", brief: bool = False) -> str:
    """Return in words whether the model is better than the baselines.

    Args:
        found: A comparison, as `baselines` of metrics/<split>.json; empty, as in files of earlier versions: no words.
        subject: What was compared.
        brief: Whether to tell of the metric that decides alone.
    """
    sentences = list(_sentences(found, subject)) if found else []
    return " ".join(sentences[:1] if brief else sentences)


def is_better(found: Mapping[str, Any]) -> bool:
    """Return whether the model was found to be better than every baseline."""
    return bool(found.get("verdict") == "better")


def _sentences(found: Mapping[str, Any], subject: str) -> Iterator[str]:
    missing = found.get("undefined", {})
    if "verdict" not in found:
        yield f"{subject[0].upper()}{subject[1:]} could not be compared with baselines: {next(iter(missing.values()))}."
        return
    metric, *others = baseline_metrics(found)
    yield _sentence(subject, metric, found["verdict"], found["hardest"], found, every=True)
    for other in others:  # an accuracy: more is better
        verdicts = {name: _verdict(other, found[name]) for name in BASELINES if other in found.get(name, ())}
        worst = min(verdicts, key=lambda name: (_RANK.index(verdicts[name]), -found[name][other]))
        if verdicts[worst] != "better":
            yield _sentence("it", other, verdicts[worst], worst, found)
    for values in found.get(ZERO_SHOT, ()):
        yield _zero_shot_sentence(subject, metric, values)
    for name, reason in missing.items():
        yield f"{BASELINES[name][0]} was left out: {reason}."


def _sentence(
    subject: str, metric: str, verdict: str, baseline: str, found: Mapping[str, Any], every: bool = False
) -> str:
    """Return a sentence on the model and one baseline; `every`: the model was compared with all of them."""
    values, name = found[baseline], BASELINES[baseline][0].lower()
    relation = {
        "better": "is better than every baseline" if every else f"is better than the baseline {name}",
        "undecided": f"is not shown to be better than the baseline {name}",
        "worse": f"is worse than the baseline {name}",
    }[verdict]
    ours, theirs = (format_metric(metric, values[metric] + d) for d in (values[f"{metric}_difference"], 0))
    against = f"{theirs} of {name}" if verdict == "better" else theirs
    figures = f"{METRICS[metric].short} {ours} against {against}, difference {_difference(metric, values)}"
    return f"{subject[0].upper()}{subject[1:]} {relation}: {figures}."


def _zero_shot_sentence(subject: str, metric: str, values: Mapping[str, Any]) -> str:
    """Return a sentence on the model and a chat model, on the clips that the latter answered."""
    name = f"{values['model']}, zero-shot"
    if metric not in values:
        return f"{name[0].upper()}{name[1:]}, has no usable score of any clip."
    relation = {
        "better": "is better than",
        "undecided": "is not shown to be better than",
        "worse": "is worse than",
    }[_verdict(metric, values)]
    theirs = format_metric(metric, values[metric])
    on = f"on the {values['answered']:,} of {values['clips']:,} clips that it answered"
    figures = f"{METRICS[metric].short} {theirs} {on}, difference {_difference(metric, values)}"
    return f"{subject[0].upper()}{subject[1:]} {relation} {name}: {figures}."


def _difference(metric: str, values: Mapping[str, Any]) -> str:
    if metric not in values:
        return NOTHING
    interval = values[f"{metric}_interval"]
    return format_difference(metric, values[f"{metric}_difference"], tuple(interval) if interval else None)


def _verdict(metric: str, values: Mapping[str, Any]) -> Verdict:
    interval = values.get(f"{metric}_interval")
    return direction(metric, tuple(interval) if interval else None)
