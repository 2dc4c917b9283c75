"""Shell completion of presets, settings, extractors, studies and modalities, from the files of the current project.

It runs at every press of Tab: only names are read, and neither Hydra nor Prefect is imported.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

MAX_HELP = 76
"""Characters of a help text; typer wraps it at 80."""

Candidates = list[tuple[str, str]]
"""Words to offer, with their help."""


def complete_choice(context: typer.Context, incomplete: str) -> Candidates:
    """Complete an argument of `dashfusion use`: `group=preset`, or `key=value` with the value that it has now.

    bash takes `corpus=mm` for three words and replaces the last one only; other shells for a single one.
    """
    earlier = re.sub(r"\s=\s?", "=", " ".join(context.params.get("choices") or ())).split()
    key, _, value = earlier[-1].partition("=") if earlier else ("", "", "")
    split = bool(key) and not value
    typed = f"{key}={incomplete}" if split else incomplete
    prefix = f"{key}=" if split else ""
    return [(word.removeprefix(prefix), text) for word, text in _choices(typed) if word.startswith(typed)]


def complete_setting(incomplete: str) -> Candidates:
    """Complete a value of `dashfusion study --set`: the keys of `model` and `train`, with the values they have now."""
    blocks = ("model.", "train.")
    return [(word, "") for word in _settings() if word.startswith(incomplete) and word.startswith(blocks)]


def complete_study(incomplete: str) -> Candidates:
    """Complete the name of a study in studies/."""
    studies = ((path.stem, _shorten(_read(path).get("question"))) for path in sorted(Path("studies").glob("*.yaml")))
    return [(name, question) for name, question in studies if name.startswith(incomplete)]


def complete_network(incomplete: str) -> list[str]:
    """Complete the name of a network."""
    from model.network.registry import network_names

    return [name for name in network_names() if name.startswith(incomplete)]


def complete_modality(incomplete: str) -> list[str]:
    """Complete a modality."""
    return [name for name in ("text", "audio", "vision") if name.startswith(incomplete)]


def _choices(typed: str) -> Iterator[tuple[str, str]]:
    for path in sorted(Path("conf").glob("*/*.yaml")):
        yield f"{path.parent.name}={path.stem}", _comment(path)
    if extractor := re.match(r"extract\.(\w+)\.extractor=", typed):
        from extractors.registry import available

        yield from ((f"{extractor[0]}{name}", "") for name in sorted(available()) if name.startswith(extractor[1]))
    elif typed.startswith("model.name="):
        from model.network.registry import network_names

        yield from ((f"model.name={name}", "") for name in network_names())
    elif typed:  # without a beginning, the many keys would hide the presets
        yield from ((word, "") for word in _settings())


def _settings() -> Iterator[str]:
    """Yield `key=value` for every single value of params.yaml, whose name and value a shell takes as they are."""
    for key, value in _leaves(_read(Path("params.yaml"))):
        word = f"{key}={'' if value is None else str(value).lower() if isinstance(value, bool) else value}"
        if re.fullmatch(r"[\w./:=-]+", word, re.ASCII):
            yield word


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def _read(path: Path) -> Mapping[str, Any]:
    """Return a YAML file's values; none of a file that is missing or damaged, since Tab is no place for its errors."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, Mapping) else {}


def _comment(path: Path) -> str:
    """Return the first phrase of a preset's comment."""
    lines = (line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    comment = " ".join(line for line in lines if not line.startswith("@"))
    return _shorten(re.split(r"[.:;](?:\s|$)", comment)[0])


def _shorten(text: object) -> str:
    """Return a help text that fits in a line: fish takes every further line for a candidate."""
    return textwrap.shorten(str(text or ""), MAX_HELP, placeholder=" ...")
