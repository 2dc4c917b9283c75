"""`dashfusion predict`: which files, and how their scores are shown. The scores are `model.predict`'s.

Neither Prefect nor DVC takes part, nor is the parameters' schema built: the command should answer soon.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.prediction.console import _watched, show
from flows.prediction.html import write_page

if TYPE_CHECKING:
    from model.predict import Predictor
    from model.prediction.protocol import Video


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be done with the results beside showing them.

    Attributes:
        as_json: print JSON instead of a table.
        out: Parquet file.
        report: HTML page.
        strict: one video that cannot be scored is a failure.
    """

    as_json: bool = False
    out: Path | None = None
    report: Path | None = None
    strict: bool = False


def predict(
    predictor: Predictor, videos: Sequence[Video], level: float, workers: int, wishes: Wishes, **options: Any
) -> bool:
    """Score the videos and show the results; True where that counts as a success.

    Args:
        workers: processes; 0: one a core, and no more than there are videos.
        options: of `Predictor.predict`.

    Raises:
        ValueError: as `Predictor.predict`.
        OSError: a result file cannot be written.
    """
    from flows.display.console import console

    count = min(workers or os.cpu_count() or 1, len(videos))
    results = list(_watched(predictor.predict(videos, level=level, workers=count, **options), len(videos)))
    plain = [result.to_dict() for result in results]
    content = document(predictor.description, str(predictor.folder), level, plain)
    if wishes.as_json:
        print(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        show(console, plain, content["model"]["label_range"])
    if wishes.out:
        from model.prediction.results import write_results

        write_results(results, wishes.out)
    if wishes.report:
        write_page(wishes.report, plain, content["model"], level)
    failed = sum(result["error"] is not None for result in plain)
    return failed == 0 if wishes.strict else failed < len(plain)


def document(
    description: Mapping[str, Any], folder: str, level: float, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is printed as JSON, and what the server answers.

    Args:
        description: the content of the checkpoint's checkpoint.json.
        folder: of the checkpoint, as it is to be named.
        results: as `to_dict` of a result gives them.
    """
    from model.prediction.results import SCHEMA_VERSION

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
