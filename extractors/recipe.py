"""How an extractor says what it measures: the rows that `docs/features.md` is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """Features of one meaning.

    Attributes:
        names: as in the extractor's `feature_names`; one `*` stands for the numbers of a model's columns.
        meaning: what is measured, and which way is up.
        unit: of the values.
    """

    names: tuple[str, ...]
    meaning: str
    unit: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an extractor's features are made.

    Attributes:
        source: library and method.
        rate: steps a second, and where a step lies.
        window: what one step sees.
        valid: when a step is.
        features: every feature, in the order of the columns.
        extra: the optional dependency that the extractor needs, empty for none.
    """

    source: str
    rate: str
    window: str
    valid: str
    features: tuple[Feature, ...]
    extra: str = ""


def numbered(prefix: str, count: int, first: int = 0) -> tuple[str, ...]:
    """`count` names: `prefix` with the numbers from `first` on."""
    return tuple(f"{prefix}{i}" for i in range(first, first + count))
