"""Numbers, plots, colours and terminal output that several rooms share."""

from pathlib import Path

COLOURS = Path(__file__).with_name("colours.css")
"""Colour variables, light and dark, that every page includes."""
