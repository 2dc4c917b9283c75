"""`dashfusion predict`: score videos and show, print or write the results.

Uses neither Prefect, DVC nor the parameters' schema, so that the command starts quickly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.execution.workers import MEMORY_LIMIT
from flows.display.console import printable_json, valid_unicode
from flows.prediction.console import show, with_progress
from flows.prediction.html import write_page
from model.data.info import is_generated
from model.prediction.results import SCHEMA_VERSION, Failure, Result, write_results

if TYPE_CHECKING:
    from model.predict import Predictor
    from model.prediction.protocol import Video


MEMORY = MEMORY_LIMIT / 2**30
"""Default memory limit of a process that reads videos, GiB."""


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Outputs and exit status of `dashfusion predict`.

    Attributes:
        as_json: Print JSON instead of a table.
        out: File to write: CSV if its name ends in .csv, else Parquet.
        report: HTML page to write.
        strict: Fail if any video cannot be scored, rather than if none can.
    """

    as_json: bool = False
    out: Path | None = None
    report: Path | None = None
    strict: bool = False


def score_all(
    predictor: Predictor, videos: Sequence[Video], *, workers: int = 0, memory: float = MEMORY, **options: Any
) -> Iterator[Result]:
    """Score the videos; reading starts with the call. File names that are not UTF-8 are escaped in the results.

    Args:
        predictor: Checkpoint to score with.
        videos: Videos to score.
        workers: Number of processes that read videos; 0 for one per core.
        memory: Memory limit of each of them, GiB.
        options: Further options of `Predictor.predict`.

    Raises:
        ValueError: As `Predictor.predict`.
    """
    count = min(workers or os.cpu_count() or 1, len(videos))
    return map(to_valid_unicode, predictor.predict(videos, workers=count, memory=int(memory * 2**30), **options))


def to_valid_unicode(result: Result) -> Result:
    """Return a result that can be written as UTF-8, whatever bytes its file's name has."""
    if isinstance(result, Failure):
        return replace(result, name=valid_unicode(result.name), message=valid_unicode(result.message))
    warnings = tuple(replace(warning, message=valid_unicode(warning.message)) for warning in result.warnings)
    return replace(result, name=valid_unicode(result.name), warnings=warnings)


def predict(predictor: Predictor, videos: Sequence[Video], level: float, output: OutputOptions, **options: Any) -> bool:
    """Score the videos and output the results.

    Results that are available are output even if scoring is interrupted, and to each output even if another one fails.

    Args:
        predictor: Checkpoint to score with.
        videos: Videos to score.
        level: Interval level.
        output: What to do with the results.
        options: Further options of `score_all`.

    Returns:
        Whether scoring succeeded, see `OutputOptions.strict`.

    Raises:
        ValueError: As `Predictor.predict`, or an output file is a folder.
        OSError: An output file cannot be written.
    """
    for path in (output.out, output.report):
        if path and path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file to write")
    results: list[Result] = []
    try:
        scored = score_all(predictor, videos, level=level, **options)
        results.extend(with_progress(scored, len(videos)))
    finally:
        if results:
            _output(results, predictor, level, output)
    failed = sum(isinstance(result, Failure) for result in results)
    return failed == 0 if output.strict else failed < len(results)


def _output(results: Sequence[Result], predictor: Predictor, level: float, output: OutputOptions) -> None:
    """Write the files, then print; an output that fails does not stop the others."""
    from flows.display.console import console

    rows = [result.to_dict() for result in results]
    document = to_document(predictor.description, str(predictor.folder), level, rows)
    outputs: list[Callable[[], object]] = []
    if output.out:
        outputs.append(partial(write_results, results, output.out))
    if output.report:
        outputs.append(partial(write_page, output.report, rows, document["model"], level))
    if output.as_json:
        outputs.append(lambda: print(printable_json(document)))
    else:
        outputs.append(partial(show, console, rows, document["model"]["label_range"]))
    errors = []
    for write in outputs:
        try:
            write()
        except Exception as error:
            errors.append(error)
    if len(errors) > 1:
        raise OSError("; ".join(map(str, errors))) from errors[0]
    if errors:
        raise errors[0]


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
        "generated": is_generated(dataset),
        "language": dataset["language"],
        "label_range": dataset["label_range"],
        "seed": description["seed"],
        "epoch": description["epoch"],
    }
    return {"schema_version": SCHEMA_VERSION, "model": model, "level": level, "results": list(results)}
