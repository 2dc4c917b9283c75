"""`dashfusion predict`: score videos and show, print or write the results.

Uses neither Prefect, DVC nor the parameters' schema, so that the command starts quickly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prediction.console import show, with_progress
from flows.prediction.html import write_page
from model.prediction.results import SCHEMA_VERSION, write_results

if TYPE_CHECKING:
    from model.predict import Predictor
    from model.prediction.protocol import Video


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Outputs and exit status of `dashfusion predict`.

    Attributes:
        as_json: Print JSON instead of a table.
        out: Parquet file to write.
        report: HTML page to write.
        strict: Fail if any video cannot be scored, rather than if none can.
    """

    as_json: bool = False
    out: Path | None = None
    report: Path | None = None
    strict: bool = False


def predict(
    predictor: Predictor, videos: Sequence[Video], level: float, workers: int, output: OutputOptions, **options: Any
) -> bool:
    """Score the videos and output the results.

    Args:
        predictor: Checkpoint to score with.
        videos: Videos to score.
        level: Interval level.
        workers: Number of processes that read videos; 0 for one per core.
        output: What to do with the results.
        options: Further options of `Predictor.predict`.

    Returns:
        Whether scoring succeeded, see `OutputOptions.strict`.

    Raises:
        ValueError: As `Predictor.predict`.
        OSError: An output file cannot be written.
    """
    from flows.display.console import console

    count = min(workers or os.cpu_count() or 1, len(videos))
    results = list(with_progress(predictor.predict(videos, level=level, workers=count, **options), len(videos)))
    rows = [result.to_dict() for result in results]
    document = to_document(predictor.description, str(predictor.folder), level, rows)
    if output.as_json:
        print(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        show(console, rows, document["model"]["label_range"])
    if output.out:
        write_results(results, output.out)
    if output.report:
        write_page(output.report, rows, document["model"], level)
    failed = sum(row["error"] is not None for row in rows)
    return failed == 0 if output.strict else failed < len(rows)


def to_document(
    description: Mapping[str, Any], folder: str, level: float, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the JSON document of the results, which the command prints and the server responds with.

    Args:
        description: Content of the checkpoint's checkpoint.json.
        folder: Name of the checkpoint folder.
        level: Interval level.
        results: Results as returned by `Result.to_dict()`.
    """
    dataset = description["dataset"]
    model = {
        "path": folder,
        "corpus": dataset["corpus"],
        "language": dataset["language"],
        "label_range": dataset["label_range"],
        "seed": description["seed"],
        "epoch": description["epoch"],
    }
    return {"schema_version": SCHEMA_VERSION, "model": model, "level": level, "results": list(results)}
