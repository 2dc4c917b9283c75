"""Formatting, plots, colours and terminal output shared by all flows."""

from pathlib import Path

COLOURS = Path(__file__).with_name("colours.css")
"""CSS variables of the light and the dark colour scheme, included by every page."""

SORTABLE = Path(__file__).with_name("sortable.js")
"""Script that makes the tables of class `sortable` sortable by a click on a column's head."""
