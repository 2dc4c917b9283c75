"""The results of `dashfusion predict` as one HTML page: nothing in it is fetched, and there is no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import atomic_file
from flows.display import COLOURS
from flows.display.metrics import format_clock, format_number

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, MARGIN = 640, 12
SCALE_HEIGHT, LINE_HEIGHT = 46, 150


def write_page(path: Path, results: Sequence[Mapping[str, Any]], model: Mapping[str, Any], level: float) -> None:
    """Write the page.

    Args:
        results: as `model.prediction.results.Prediction.to_dict` gives them.
        model: `corpus`, `seed`, `epoch` and `label_range` of the checkpoint.
        level: of the intervals.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", COLOURS.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    low, high = model["label_range"]
    page = environment.get_template("predict.html.j2").render(
        title="Scored videos" if len(results) != 1 else "A scored video",
        results=results,
        model=model,
        level=level,
        number=format_number,
        clock=format_clock,
        scale=lambda result: scale(result, low, high),
        time_line=lambda result: time_line(result["windows"], low, high),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _across(value: float, low: float, high: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)


def _svg(height: int, label: str, shapes: Sequence[str]) -> Markup:
    from markupsafe import Markup

    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'  # numbers and words of ours alone
    return Markup(head + "".join(shapes) + "</svg>")


def scale(result: Mapping[str, Any], low: float, high: float) -> Markup:
    """The score as a dot on the corpus's range, with its interval."""
    middle = 18
    shapes = [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{middle}" y2="{middle}" stroke="var(--line)" stroke-width="2"/>'
    ]
    for value in (low, (low + high) / 2, high):
        at = _across(value, low, high)
        shapes.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="12" y2="24" stroke="var(--line)" stroke-width="2"/>')
        shapes.append(f'<text x="{at:.1f}" y="42" text-anchor="middle">{format_number(value, 0)}</text>')
    if interval := result["interval"]:
        first, last = (_across(interval[name], low, high) for name in ("low", "high"))
        shapes.append(
            f'<rect x="{first:.1f}" y="{middle - 6}" width="{last - first:.1f}" height="12" rx="6" '
            'fill="var(--accent)" opacity="0.25"/>'
        )
    shapes.append(f'<circle cx="{_across(result["score"], low, high):.1f}" cy="{middle}" r="6" fill="var(--accent)"/>')
    return _svg(SCALE_HEIGHT, f"score {result['score']:.2f} of {low:g} to {high:g}", shapes)


def time_line(windows: Sequence[Mapping[str, Any]], low: float, high: float) -> Markup:
    """The windows' scores over time, each at its middle; a gap where there was nothing to go by."""
    end, bottom = max(window["end"] for window in windows), LINE_HEIGHT - 22

    def point(window: Mapping[str, Any]) -> str:
        at = MARGIN + 18 + (WIDTH - 2 * MARGIN - 18) * (window["start"] + window["end"]) / 2 / end
        return f"{at:.1f},{6 + (bottom - 6) * (high - window['score']) / (high - low):.1f}"

    shapes = []
    for value in (low, (low + high) / 2, high):
        height = 6 + (bottom - 6) * (high - value) / (high - low)
        shapes.append(
            f'<line x1="{MARGIN + 18}" x2="{WIDTH - MARGIN}" y1="{height:.1f}" y2="{height:.1f}" stroke="var(--line)"/>'
        )
        shapes.append(f'<text x="{MARGIN + 10}" y="{height + 4:.1f}" text-anchor="end">{format_number(value, 0)}</text>')
    run: list[str] = []
    for window in [*windows, {"score": None}]:
        if window["score"] is not None:
            run.append(point(window))
            continue
        if len(run) == 1:
            x, y = run[0].split(",")
            shapes.append(f'<circle cx="{x}" cy="{y}" r="3" fill="var(--accent)"/>')
        elif run:
            shapes.append(f'<polyline points="{" ".join(run)}" fill="none" stroke="var(--accent)" stroke-width="2"/>')
        run = []
    shapes.append(f'<text x="{MARGIN + 18}" y="{LINE_HEIGHT - 6}">0:00</text>')
    shapes.append(f'<text x="{WIDTH - MARGIN}" y="{LINE_HEIGHT - 6}" text-anchor="end">{format_clock(end)}</text>')
    return _svg(LINE_HEIGHT, "scores over time", shapes)
