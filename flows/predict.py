"""`dashfusion predict`: which files, and how their scores are shown. The scores are `model.predict`'s.

Neither Prefect nor DVC takes part, nor is the parameters' schema built: the command should answer soon.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.predict_page import clock, number, write_page

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from model.features import Video
    from model.predict import Predictor
    from model.results import Result

BLOCKS = "▁▂▃▄▅▆▇█"
LINE_WIDTH = 60  # characters of a time line


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


def default_model(params: Path = Path("params.yaml")) -> Path:
    """The checkpoint of the first seed that the parameters name.

    Raises:
        FileNotFoundError: no parameters here; the message says the way out.
        ValueError: they name no models or no seed.
    """
    import yaml

    if not params.is_file():
        raise FileNotFoundError(f"no {params} in {Path.cwd()}: name a checkpoint with --model, or run from the project")
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    try:
        return Path(values["paths"]["models"]) / f"seed-{values['train']['seeds'][0]}" / "best"
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{params} names no paths.models or train.seeds; name a checkpoint with --model") from error


def find_media(paths: Iterable[str]) -> list[Path]:
    """Media files that are meant by files, folders (with all below them) and patterns such as `talks/**/*.mp4`.

    Each file once, in the order of the paths, a folder's by name. A file is taken whatever it is called, and what does
    not exist stays in the list, so that it is told of.

    Raises:
        ValueError: nothing is there at all.
    """
    from corpora.raw import MEDIA_SUFFIXES

    found: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in MEDIA_SUFFIXES and p.is_file())
            found += [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
        elif not path.exists() and glob.has_magic(name):
            matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
            found += [match for match in matches if match.is_file()]
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no media file in {', '.join(map(str, paths))}; it can hold {', '.join(MEDIA_SUFFIXES)}")
    return list(dict.fromkeys(found))


def to_videos(media: Sequence[Path], text: str | None, transcript: Path | None) -> list[Video]:
    """The files with what is said in them.

    Args:
        text: of the only file.
        transcript: of the only file, or a folder of transcripts with the files' names.

    Raises:
        ValueError: a text or a transcript for several files, or both.
        FileNotFoundError: no such transcript.
    """
    from extractors.subtitles import find_transcript
    from model.features import Video

    if text is not None and transcript is not None:
        raise ValueError("--text and --transcript say the same thing: give one of them")
    if transcript is not None and not transcript.exists():
        raise FileNotFoundError(f"{transcript}: no such transcript; check the path")
    folder = transcript is not None and transcript.is_dir()
    if len(media) > 1 and (text is not None or (transcript is not None and not folder)):
        option = "--text" if text is not None else "--transcript"
        raise ValueError(
            f"{option} is of one file, and {len(media)} are given; "
            "give --transcript a folder of .srt, .vtt or .txt files with their names"
        )
    if folder:
        return [Video(path, transcript=find_transcript(transcript, path)) for path in media]
    return [Video(path, text, transcript) for path in media]


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
    from flows.runtime import console

    count = min(workers or os.cpu_count() or 1, len(videos))
    results = list(_watched(predictor.predict(videos, level=level, workers=count, **options), len(videos)))
    plain = [result.to_dict() for result in results]
    content = document(predictor.description, str(predictor.folder), level, plain)
    if wishes.as_json:
        print(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        show(console, plain, content["model"]["label_range"])
    if wishes.out:
        from model.results import write_results

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
    from model.results import SCHEMA_VERSION

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


def _watched(results: Iterator[Result], total: int) -> Iterator[Result]:
    """The same, with a bar on the terminal's standard error."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=total < 2 or not console.is_terminal) as progress:
        yield from progress.track(results, total=total, description="scoring")


def show(console: Console, results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> None:
    """The results as a table, then what is to be known of each video, and the time lines."""
    from rich.text import Text

    console.print(results_table(results, label_range))
    for result in results:
        lines = [result["error"]["message"]] if result["error"] else [w["message"] for w in result["warnings"]]
        if lines:
            console.print(Text.assemble((Path(result["file"]).name, "bold"), ": ", "; ".join(lines)))
    for result in results:
        if result["windows"]:
            name, end = Path(result["file"]).name, clock(result["windows"][-1]["end"])
            line = time_line(result["windows"], label_range)
            console.print(Text.assemble((name, "bold"), f"  0:00 {line} {end}"))


def results_table(results: Sequence[dict[str, Any]], label_range: Sequence[float]) -> Table:
    """One row a video: score, sentiment, interval, modalities with what they change, seconds."""
    from rich.table import Table
    from rich.text import Text

    low, high = label_range
    levels = [f"{result['interval']['level']:.0%} interval" for result in results if result["interval"]]
    table = Table(title=f"sentiment from {low:g} (negative) to {high:g} (positive)", title_justify="left")
    for column, justify in (
        ("file", "left"), ("score", "right"), ("", "left"), ("class", "right"),
        (levels[0] if levels else "interval", "right"),
        ("from (change by each)", "left"), ("seconds", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, overflow="fold")
    names = [Path(result["file"]).name for result in results]
    for result, short in zip(results, names, strict=True):
        name = Text(short if len({*names}) == len(names) else result["file"])  # what a file is called is no markup
        if result["error"]:
            table.add_row(name, "", Text(result["error"]["class"], "red"), "", "", "", "")
            continue
        interval, shares = result["interval"], result["contributions"]
        table.add_row(
            name,
            number(result["score"]),
            result["sentiment"],
            result["class"],
            f"{number(interval['low'])} to {number(interval['high'])}" if interval else "not known",
            ", ".join(f"{m} {number(shares[m], sign=True)}" if shares else m for m in result["used"]),
            f"{sum(result['seconds'].values()):.1f}",
        )
    return table


def time_line(windows: Sequence[dict[str, Any]], label_range: Sequence[float]) -> str:
    """The windows' scores as blocks, low for negative and high for positive; a space where there is none."""
    low, high = label_range
    scores = [window["score"] for window in windows]
    columns = min(len(scores), LINE_WIDTH)
    edges = [round(i * len(scores) / columns) for i in range(columns + 1)]
    line = ""
    for first, stop in itertools.pairwise(edges):
        known = [score for score in scores[first:stop] if score is not None]
        share = (sum(known) / len(known) - low) / (high - low) if known else -1.0
        line += BLOCKS[min(int(share * len(BLOCKS)), len(BLOCKS) - 1)] if known else " "
    return line
