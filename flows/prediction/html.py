"""Prediction results as one self-contained HTML page, which needs no script to display.

Its charts are drawn here and not by the server's charts.js, which needs a browser: those follow the video and the
window's width, and this page must display anywhere, including where scripts are blocked. Several results come as a
table first, whose only script sorts it; the content security policy allows that script by its hash and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from corpora.files import atomic_file
from flows.display import COLOURS, SORTABLE
from flows.display.metrics import class_words, format_clock, format_number
from model.checkpoint.description import GENERATED_NOTICE
from model.prediction.results import GENERATED_TRAINING

WIDTH, MARGIN = 640, 12
SCALE_HEIGHT, TIME_LINE_HEIGHT = 46, 150


def write_page(path: Path, results: Sequence[Mapping[str, Any]], model: Mapping[str, Any], level: float) -> None:
    """Write the page.

    Args:
        path: HTML file.
        results: Results as returned by `Result.to_dict()`.
        model: `corpus`, `seed`, `epoch`, `label_range` and optionally `generated` of the checkpoint.
        level: Interval level.
    """
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", COLOURS.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    low, high = model["label_range"]
    script = SORTABLE.read_text(encoding="utf-8") if len(results) > 1 else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("predict.html.j2").render(
        title="Scored videos" if len(results) != 1 else "A scored video",
        notice=GENERATED_NOTICE if model.get("generated") else "",
        generated_code=GENERATED_TRAINING,
        results=results,
        model=model,
        classes=class_words(model["label_range"]),
        script=Markup(script),
        script_source=f"'sha256-{digest}'" if script else "'none'",
        level=level,
        number=format_number,
        clock=format_clock,
        scale=lambda result: draw_scale(result, low, high),
        time_line=lambda result: draw_time_line(result["windows"], low, high),
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _svg(height: int, label: str, shapes: Sequence[str]) -> Markup:
    """Return an SVG element. Neither label nor shapes may contain text from outside, as nothing is escaped."""
    start = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
    return Markup(start + "".join(shapes) + "</svg>")


def draw_scale(result: Mapping[str, Any], low: float, high: float) -> Markup:
    """Draw the score as a dot on the label range, with its interval."""

    def x(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)

    y = 18
    shapes = [f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="var(--line)" stroke-width="2"/>']
    for value in (low, (low + high) / 2, high):
        shapes += [
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="12" y2="24" stroke="var(--line)" stroke-width="2"/>',
            f'<text x="{x(value):.1f}" y="42" text-anchor="middle">{format_number(value, 0)}</text>',
        ]
    if interval := result["interval"]:
        left, right = x(interval["low"]), x(interval["high"])
        shapes.append(
            f'<rect x="{left:.1f}" y="{y - 6}" width="{right - left:.1f}" height="12" rx="6" '
            'fill="var(--accent)" opacity="0.25"/>'
        )
    shapes.append(f'<circle cx="{x(result["score"]):.1f}" cy="{y}" r="6" fill="var(--accent)"/>')
    return _svg(SCALE_HEIGHT, f"score {result['score']:.2f} of {low:g} to {high:g}", shapes)


def draw_time_line(windows: Sequence[Mapping[str, Any]], low: float, high: float) -> Markup:
    """Draw the windows' scores over time, each at its window's centre, with gaps for windows without a score."""
    end: float = max(window["end"] for window in windows)
    top, bottom, left, right = 6, TIME_LINE_HEIGHT - 22, MARGIN + 18, WIDTH - MARGIN

    def x(window: Mapping[str, Any]) -> float:
        centre: float = (window["start"] + window["end"]) / 2
        return left + (right - left) * centre / end

    def y(score: float) -> float:
        return top + (bottom - top) * (high - score) / (high - low)

    # Axes
    shapes = []
    for value in (low, (low + high) / 2, high):
        shapes += [
            f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--line)"/>',
            f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{format_number(value, 0)}</text>',
        ]
    shapes += [
        f'<text x="{left}" y="{TIME_LINE_HEIGHT - 6}">0:00</text>',
        f'<text x="{right}" y="{TIME_LINE_HEIGHT - 6}" text-anchor="end">{format_clock(end)}</text>',
    ]

    # Scores: a line for each run of windows that have one, a dot for a single window
    for has_score, run in itertools.groupby(windows, lambda window: window["score"] is not None):
        if not has_score:
            continue
        points = [(x(window), y(window["score"])) for window in run]
        if len(points) == 1:
            shapes.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" fill="var(--accent)"/>')
        else:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            shapes.append(f'<polyline points="{line}" fill="none" stroke="var(--accent)" stroke-width="2"/>')
    return _svg(TIME_LINE_HEIGHT, "scores over time", shapes)
