"""The comparison of networks as a leaderboard: ranking, one flat row a network, and a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from corpora.files import atomic_file
from flows.display.baselines import baseline_values
from flows.display.metrics import LESS_IS_BETTER
from flows.studies.results import COSTS, VALID_MAE, Row, StudyResult


def ranking(result: StudyResult) -> list[str]:
    """Return the networks by the mean of the first metric on the test split, the best first; undefined ones last."""
    metric = result.metrics[0]
    sign = 1 if metric in LESS_IS_BETTER else -1

    def key(name: str) -> tuple[bool, float]:
        row = result.get(name, metric)
        return row is None, sign * (row.value or 0.0) if row else 0.0

    return sorted(result.variants, key=key)


def format_budget(budget: Mapping[str, int]) -> str:
    """Return what each network was given, in words."""
    trials = "published settings" if budget["trials"] < 2 else f"best of {budget['trials']} settings"
    return f"{trials}, at most {budget['epochs']} epochs, patience {budget['patience']}"


def chosen_changes(result: StudyResult, network: str) -> dict[str, Any]:
    """Return what the chosen settings of a network have other than the published ones: dotted key -> value."""
    assert result.comparison is not None
    published = result.comparison.settings[network][0]
    return {key: value for key, value in result.variants[network].items() if published.get(key) != value}


def leaderboard_table(result: StudyResult) -> list[dict[str, Any]]:
    """Return the leaderboard as one flat row a network, the best first, then baselines, then what was left out.

    Columns: rank, network; of each metric the mean, its interval and the standard deviation; of each reference and
    metric the difference with its interval, p values and verdict; the mean validation error and the costs; why it has
    no verdicts, or was left out. Baselines and chat models have the metrics that are compared with theirs, and their
    meaning.
    """
    comparison = result.comparison
    assert comparison is not None
    rows: list[dict[str, Any]] = []
    for rank, name in enumerate(ranking(result), start=1):
        row: dict[str, Any] = {"rank": rank, "network": name}
        for metric in result.metrics:
            mean, std = (result.get(name, metric, statistic) for statistic in ("mean", "std"))
            row |= _columns(metric, mean) | {f"{metric}_std": std.value if std else None}
            for number, reference in enumerate(comparison.references):
                column = f"{metric}_to_{'best' if number == 0 else reference}"
                difference = result.get(name, metric, "difference", reference=reference)
                row |= _columns(column, difference)
                row[f"{column}_p"] = difference.p if difference else None
                row[f"{column}_p_adjusted"] = difference.p_adjusted if difference else None
                row[f"{column}_verdict"] = result.verdict(difference) if difference else None
        for metric in (VALID_MAE, *COSTS):
            found = result.get(name, metric)
            row[metric] = found.value if found else None
        rows.append(row | {"note": comparison.refusal(name)})
    for name, meaning, values in baseline_values(comparison.baselines[comparison.references[0]]):
        metrics = {metric: values[metric] for metric in result.metrics if metric in values}
        rows.append({"network": name, **metrics, "note": meaning})
    rows += [{"network": name, "note": f"left out: {why}"} for name, why in comparison.left_out.items()]
    return rows


def _columns(column: str, row: Row | None) -> dict[str, float | None]:
    value, low, high = (row.value, row.low, row.high) if row else (None, None, None)
    return {column: value, f"{column}_low": low, f"{column}_high": high}


def write_leaderboard(result: StudyResult, path: Path) -> None:
    """Write the leaderboard as a CSV file, atomically; undefined values are empty."""
    rows = leaderboard_table(result)
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
