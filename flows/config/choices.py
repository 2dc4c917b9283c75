"""Choices: keys of params.yaml whose values are not those of the presets, and which of them a change keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from corpora.manifest import MODALITIES

Key = tuple[str, ...]
"""Path of a key: ("train", "epochs")."""

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> its value before and after; None for an absent one."""

OF_CORPUS = (("prepare",), ("transcribe",))
"""Blocks that describe one corpus."""

WITH_OPTIONS: dict[Key, str] = {("extract", m): "extractor" for m in MODALITIES} | {("model",): "name"}
"""Blocks with `options` of what one of their keys names -> that key."""

OF_LANGUAGE = (("extract", "text"), ("model", "text"), ("train", "text_learning_rate"))
"""Keys that are chosen for a language."""


class Choices:
    """The choices among the values of params.yaml; a change drops some, and keeps the others over its presets.

    Args:
        presets: Values of the presets.
        current: Values of params.yaml.

    Attributes:
        dropped: Dotted key of a dropped choice -> reason.
    """

    def __init__(self, presets: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        self._presets, self._current = presets, current
        self._keys = list(_differing(presets, current))
        self.dropped: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def drop(self, places: Iterable[Key], reason: str) -> None:
        """Drop the choices at, below and above these keys."""
        for key in [key for key in self._keys if any(_related(key, place) for place in places)]:
            self._drop(key, reason)

    def drop_options(self, presets: Mapping[str, Any]) -> None:
        """Drop the options of extractors and networks that are not the new presets', unless chosen themselves."""
        for place, key in WITH_OPTIONS.items():
            before, after = (_find(values, (*place, key)) for values in (self._current, presets))
            if before != after and (*place, key) not in self._keys:
                self.drop([(*place, "options")], f"an option of {before}")

    def drop_unfit(self, check: Callable[[], str]) -> None:
        """Drop the choices with which `check` returns an error, as a line; none if it returns one without choices."""
        waiting, self._keys = self._keys, []
        if check():
            self._keys = waiting
            return
        for _ in range(2):  # a choice may need another one that comes later
            for key in [key for key in waiting if key not in self._keys]:
                self._keys.append(key)
                error = check()
                if error:
                    self._drop(key, f"does not fit: {error}")
                else:
                    self.dropped.pop(".".join(map(str, key)), None)

    def over(self, presets: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of presets with the choices in their place."""
        values = deepcopy(dict(presets))
        extractors = {key[:2] for key in self._keys if key[0] == "extract" and key[2:] == ("extractor",)}
        for key in [key for key in self._keys if key[:2] not in extractors] + sorted(extractors):
            _set(values, key, _find(self._current, key, _ABSENT))  # a chosen extractor comes with its options
        return values

    def _drop(self, key: Key, reason: str) -> None:
        self._keys.remove(key)
        self.dropped[".".join(map(str, key))] = reason


def differences(before: Any, after: Any) -> Changes:
    """Return the keys whose values differ; a block that is absent has none."""
    return {".".join(map(str, key)): (_find(before, key), _find(after, key)) for key in _differing(before, after)}


def look_up(values: Mapping[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key; None if it is absent."""
    return _find(values, dotted.split("."))


def merge(base: Any, over: Any) -> Any:
    """Return `base` with the values of `over` in their place, block by block."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}


def set_keys(values: Mapping[str, Any]) -> list[Key]:
    """Return the paths of the values and empty blocks in a nested mapping."""
    keys: list[Key] = []
    for key, value in values.items():
        below = set_keys(value) if isinstance(value, Mapping) else []
        keys += [(str(key), *path) for path in below] or [(str(key),)]
    return keys


_ABSENT = object()


def _differing(before: Any, after: Any, place: Key = ()) -> Iterator[Key]:
    if isinstance(after, Mapping) and isinstance(before or {}, Mapping):
        before = before or {}
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _differing(before.get(key), after.get(key), (*place, key))
    elif before != after:
        yield place


def _find(values: Any, key: Sequence[str], default: Any = None) -> Any:
    for name in key:
        if not isinstance(values, Mapping) or name not in values:
            return default
        values = values[name]
    return values


def _set(values: dict[str, Any], key: Key, value: Any) -> None:
    """Set a value in nested mappings, or remove it if it is `_ABSENT`."""
    *blocks, last = key
    for name in blocks:
        if not isinstance(values.get(name), dict):
            if value is _ABSENT:
                return
            values[name] = {}
        values = values[name]
    if value is _ABSENT:
        values.pop(last, None)
    else:
        values[last] = deepcopy(value)


def _related(a: Key, b: Key) -> bool:
    """Return whether two keys are the same, or one is a block with the other in it."""
    return all(x == y for x, y in zip(a, b, strict=False))
