"""Matplotlib figures as inline SVG in the page's colours, or as PNG.

The SVG has neither styles nor links, so that the page's content security policy can forbid both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib has no CSS variables: it draws with these placeholder colours, which `to_svg` replaces by the page's
# variables, so that plots follow the reader's light or dark scheme.
INK, MUTED, LINE, ACCENT = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010111", "#010112", "#010113", "#010114", "#010115", "#010116", "#010117", "#010118")
PAGE_COLOURS = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ACCENT: "--accent",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)},
}
PNG_COLOURS = {
    INK: "#1a1f26",
    MUTED: "#5d6774",
    LINE: "#dfe3e8",
    ACCENT: "#2a5bd0",
    **dict(
        zip(
            SERIES,
            ("#2a5bd0", "#c2571a", "#0d8a72", "#8b4bb8", "#b3365b", "#6b7a0f", "#0b7ea8", "#7a5a3a"),
            strict=True,
        )
    ),
}
"""Colours of the page's light scheme."""

PLOT_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dashfusion",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "font.size": 9.0,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
}

_FONT = re.compile(r"font: ((?:\d+ )?)([\d.]+)px [^;\"]*")


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot of the page: its title and its `<svg>` element."""

    title: str
    svg: Markup


@contextmanager
def plotting(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Provide a figure with one pair of axes, in the report's style for the duration of the context.

    The style starts from Matplotlib's own defaults, so that a user's matplotlibrc does not change the report. Figures
    are made without pyplot, which would keep them alive.

    Args:
        width: In inches.
        height: In inches.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", PLOT_STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, title: str, name: str = "") -> Markup:
    """Return the figure as an `<svg>` element with the page's colours, unique ids, no styles and nothing to fetch.

    Args:
        figure: The figure.
        title: Its accessible name.
        name: Prefix of the ids; needed where the title is not unique in the page.
    """
    from markupsafe import Markup, escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # line joins and caps: set by the page's CSS
    svg = re.sub(r'\sstyle="([^"]*)"', lambda match: _attributes(match[1]), svg)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    prefix = re.sub(r"\W+", "-", (name or title).lower())
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1).strip())


def _attributes(declarations: str) -> str:
    """Return CSS declarations as presentation attributes; of a font only weight and size, the family is the page's."""
    declarations = _FONT.sub(lambda m: (f"font-weight: {m[1]};" if m[1] else "") + f"font-size: {m[2]}px", declarations)
    pairs = (part.split(":", 1) for part in declarations.split(";") if part.strip())
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG on white."""
    figure.canvas.draw()  # ticks are created when drawn
    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            read, write = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if read and write and (colour := _png_colour(read())) is not None:
                write(colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def _png_colour(colour: Any) -> Any:
    """Return the PNG's colour for a placeholder, or the colours for those of a collection; None for other colours."""
    from matplotlib.colors import is_color_like, to_hex, to_rgba

    if is_color_like(colour):
        return PNG_COLOURS.get(to_hex(colour))
    if getattr(colour, "ndim", 0) == 2 and len(colour) and to_hex(colour[0]) in PNG_COLOURS:
        return [to_rgba(PNG_COLOURS[to_hex(one)], one[3]) for one in colour]
    return None
