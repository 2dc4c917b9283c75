"""Deployments `predict` and `watch`: new videos scored from Prefect's pages, by API, or on a schedule."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows.display.metrics import format_clock, format_number
from flows.display.plots import ACCENT, PNG_COLOURS, plotting, to_png
from flows.orchestration import engine
from flows.prediction.inputs import default_model, find_media, to_videos
from flows.prediction.score import MEMORY, score_all
from flows.prediction.watched_folder import DEFAULT_OUT, FolderBusyError, Watch, format_result, score_new
from model.checkpoint.description import first_notice
from model.prediction.results import Result, generated_notice, write_results

if TYPE_CHECKING:
    from model.predict import Predictor


@flow(name="predict", flow_run_name="predict {path}")
def predict(
    path: str,
    text: str | None = None,
    transcript: Path | None = None,
    model: Path | None = None,
    recogniser: str | None = None,
    language: str | None = None,
    level: float = 0.9,
    window: float | None = None,
    hop: float | None = None,
    out: Path | None = None,
    workers: int = 0,
    timeout: float = 300.0,
    memory: float = MEMORY,
    allow_download: bool = False,
) -> list[dict[str, Any]]:
    """Score video or audio files. The run's artifacts hold the scores.

    Args:
        path: File, folder (with its subfolders) or pattern, as the worker's machine sees it.
        text: Transcript of a single file.
        transcript: Transcript file (.srt, .vtt, .txt) of a single file, or folder of such files with the videos' names.
        model: Checkpoint folder; by default the best checkpoint of the first seed.
        recogniser: Speech recogniser for files without a transcript: folder or Hugging Face id.
        language: Spoken language, such as en; by default the training corpus's.
        level: Interval level: 0.5, 0.8, 0.9 or 0.95.
        window: Length of the time line's windows, seconds; by default that of a training clip.
        hop: Distance between windows, seconds; by default half a window.
        out: File for the results: CSV if its name ends in .csv, else Parquet.
        workers: Processes that read videos; 0: one per core.
        timeout: Time limit for reading one video, seconds.
        memory: Memory limit of each of these processes, GiB.
        allow_download: Download missing models from the Hugging Face hub.
    """
    from model.predict import Predictor

    videos = to_videos(find_media([path]), text, transcript)
    predictor = Predictor(
        model or default_model(), language=language, recogniser=recogniser, allow_download=allow_download
    )
    _log_notice(predictor)
    scored = score_all(
        predictor, videos, workers=workers, memory=memory, level=level, window=window, hop=hop, timeout=timeout
    )
    results: list[Result] = []
    try:
        for result in scored:
            engine.log(format_result(result))
            results.append(result)
    finally:
        if out and results:
            write_results(results, out)
    plain = [result.to_dict() for result in results]
    publish(plain, predictor.description["dataset"]["label_range"])
    failed = [row["error"]["message"] for row in plain if row["error"]]
    if len(failed) == len(plain):
        others = f" (and {len(failed) - 1} more, each with its reason in the artifact)" if len(failed) > 1 else ""
        raise ValueError(failed[0] + others)
    return plain


@flow(name="watch", flow_run_name="watch {folder}")
def watch(
    folder: Path,
    pattern: str = "**/*",
    model: Path | None = None,
    out: Path | None = None,
    recogniser: str | None = None,
    language: str | None = None,
    level: float = 0.9,
    settle: float = 10.0,
    attempts: int = 2,
    workers: int = 0,
    timeout: float = 300.0,
    memory: float = MEMORY,
    allow_download: bool = False,
) -> int:
    """Score the new files in a folder, each once.

    Args:
        folder: Folder to watch, as the worker's machine sees it.
        pattern: Pattern of file names, such as **/*.mp4.
        model: Checkpoint folder; by default the best checkpoint of the first seed.
        out: Parquet file for the predictions; by default predictions.parquet in the folder.
        recogniser: Speech recogniser for files without a transcript beside them: folder or Hugging Face id.
        language: Spoken language, such as en; by default the training corpus's.
        level: Interval level: 0.5, 0.8, 0.9 or 0.95.
        settle: Time without changes after which a file counts as complete, seconds.
        attempts: Attempts at a file that cannot be scored; after them it is retried only if it changes.
        workers: Processes that read videos; 0: one per core.
        timeout: Time limit for reading one video, seconds.
        memory: Memory limit of each of these processes, GiB.
        allow_download: Download missing models from the Hugging Face hub.
    """
    from model.predict import Predictor

    chosen = Watch(folder, out or folder / DEFAULT_OUT, pattern, settle, attempts)

    def predictor() -> Predictor:
        made = Predictor(
            model or default_model(), language=language, recogniser=recogniser, allow_download=allow_download
        )
        _log_notice(made)
        return made

    try:
        report = score_new(
            chosen,
            predictor,
            on_result=lambda result: engine.log(format_result(result)),
            level=level,
            workers=workers,
            timeout=timeout,
            memory=memory,
        )
    except FolderBusyError as busy:
        engine.log(str(busy))
        return 0
    engine.log(f"{len(report.results)} new, {len(report.failed)} of them failed; {report.pending} may be incomplete")
    if report.results:
        plain = [result.to_dict() for result in report.results]
        title = f"{generated_notice(plain)} New in {folder}; all are in {chosen.out}".strip()
        engine.publish_table("watched", table_rows(plain), title)
    return len(report.results)


def _log_notice(predictor: Predictor) -> None:
    if notice := first_notice(predictor.description):
        engine.log(notice)


def publish(results: Sequence[Mapping[str, Any]], label_range: Sequence[float]) -> None:
    """Publish several results as a table artifact, a single one in full with its time line."""
    if len(results) > 1:
        notice = generated_notice(results)
        engine.publish_table("predictions", table_rows(results), f"{notice} {len(results)} files".strip())
    elif results and not results[0]["error"]:
        engine.publish_markdown("prediction", to_markdown(results[0], label_range), results[0]["file"])


def table_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the rows of a table artifact, one per file."""
    return [
        {
            "file": row["file"],
            "score": format_number(row["score"]),
            "sentiment": row["sentiment"] or "",
            "from": ", ".join(row["used"]),
            "to know": row["error"]["message"] if row["error"] else "; ".join(w["message"] for w in row["warnings"]),
        }
        for row in results
    ]


def to_markdown(result: Mapping[str, Any], label_range: Sequence[float]) -> str:
    """Format a scored video as markdown, with its time line as an embedded image."""
    low, high = label_range
    interval, shares = result["interval"], result["contributions"]
    notice = generated_notice([result])
    lines = [
        *([f"**{notice}**", ""] if notice else []),
        f"## {format_number(result['score'])}, {result['sentiment']}",
        f"on a scale from {format_number(low, 0)} (negative) to {format_number(high, 0)} (positive), "
        f"class {result['class']}",
        "",
        "| | |",
        "|---|---|",
        f"| file | {_plain(Path(result['file']).name)} |",
    ]
    if interval:
        bounds = f"{format_number(interval['low'])} to {format_number(interval['high'])}"
        lines.append(f"| {interval['level']:.0%} interval | {bounds} |")
    lines.append(f"| from | {', '.join(result['used'])} |")
    lines += [f"| change by {m} | {format_number(value, sign=True)} |" for m, value in shares.items()]
    if result["duration"] is not None:
        lines.append(f"| length | {format_clock(result['duration'])} |")
    if result["text"]:
        lines.append(f"| said | {_plain(result['text'])} |")
    if result["warnings"]:
        lines += ["", "Warnings:", ""]
        lines += [f"- {_plain(warning['message'])}" for warning in result["warnings"]]
    if any(window["score"] is not None for window in result["windows"]):
        picture = base64.b64encode(draw(result["windows"], label_range)).decode()
        lines += ["", "**Over time**", "", f"![scores over time](data:image/png;base64,{picture})"]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Escape text for markdown and put it in one line: file names and transcripts are not markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+-.!|~" else c for c in " ".join(text.split()))


def draw(windows: Sequence[Mapping[str, Any]], label_range: Sequence[float]) -> bytes:
    """Draw the windows' scores and intervals over time, with a gap for a window without a score, as a PNG."""
    low, high = label_range
    middle = [(window["start"] + window["end"]) / 2 for window in windows]

    def values(name: str) -> list[float]:
        sources = (window["interval"] if name in ("low", "high") else window for window in windows)
        return [float("nan") if source is None or source[name] is None else source[name] for source in sources]

    with plotting(7.0, 2.6) as (figure, axes):
        colour = PNG_COLOURS[ACCENT]
        axes.fill_between(middle, values("low"), values("high"), color=colour, alpha=0.18, linewidth=0)
        axes.plot(middle, values("score"), color=colour, marker="o", markersize=3)
        axes.set(xlim=(0, max(window["end"] for window in windows)), ylim=(low, high))
        axes.set(xlabel="seconds", ylabel="sentiment")
        return to_png(figure)
