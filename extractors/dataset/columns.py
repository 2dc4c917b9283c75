"""Selection of feature columns, by name or by a list that was published for a data set.

Lists are offered only where whoever made the features has published them, together with the files' own columns: a list
whose origin is a guess selects something else than its name says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from extractors.base import FeatureSequence
    from extractors.store import FeatureMeta

ALL = "all"


@dataclass(frozen=True, slots=True)
class ColumnList:
    """A published selection of columns.

    Attributes:
        modality: text, audio or vision.
        width: Number of columns of the features that the list is for.
        columns: Selected columns, counted from 0.
        names: What they are, in the tool's words.
        source: Where the list was published.
    """

    modality: str
    width: int
    columns: tuple[int, ...]
    names: tuple[str, ...]
    source: str


PUBLISHED = {
    "covarep_5": ColumnList(
        modality="audio",
        width=74,
        columns=(1, 3, 6, 25, 60),
        names=("VUV", "QOQ", "MDQ", "MCEP_14", "HMPDM_24"),
        source="A2Zadeh/CMU-MultimodalSDK on GitHub, issue 172 (columns) and issue 208 (names)",
    ),
}
"""Name -> list. `covarep_5`: the 5 of COVAREP's 74 columns that the processed CMU-MOSI files hold as audio."""


@dataclass(frozen=True, slots=True)
class ColumnsConfig:
    """Columns that the dataset keeps of each modality: `all`, the name of a published list, or names of features.

    Attributes:
        audio: Columns of audio.
        vision: Columns of vision.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    audio: str | tuple[str, ...] = ALL
    vision: str | tuple[str, ...] = ALL

    def __post_init__(self) -> None:
        for modality in ("audio", "vision"):
            chosen = getattr(self, modality)
            if isinstance(chosen, str):
                lists = [name for name, entry in PUBLISHED.items() if entry.modality == modality]
                if chosen not in (ALL, *lists):
                    raise ValueError(
                        f"align.columns.{modality} is {chosen!r}: choose {' or '.join([ALL, *lists])}, "
                        "or list names of features"
                    )
                continue
            object.__setattr__(self, modality, tuple(chosen))
            if not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"align.columns.{modality} must list at least one feature, each once; found {chosen}")


def selected_columns(meta: FeatureMeta, chosen: str | tuple[str, ...]) -> np.ndarray | None:
    """Return the indices of the chosen columns; None for all of them.

    Args:
        meta: Description of the features.
        chosen: As in `ColumnsConfig`.

    Raises:
        ValueError: No such feature, or features of another width than the published list is for.
    """
    if chosen == ALL:
        return None
    key, names = f"align.columns.{meta.modality}", meta.feature_names
    if isinstance(chosen, str):
        published = PUBLISHED[chosen]
        if len(names) != published.width:
            raise ValueError(
                f"{key}: {chosen} selects from {published.width} columns, {meta.extractor} has {len(names)}; "
                f"set {key}={ALL}, or use the features that the list is for: {published.source}"
            )
        return np.array(published.columns)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ValueError(f"{key}: {meta.extractor} has no feature {unknown[0]!r}; it has {shown}")
    return np.array([names.index(name) for name in chosen])


def select_columns(sequence: FeatureSequence, columns: np.ndarray | None) -> FeatureSequence:
    """Return the sequence with these columns of its values; None: as it is."""
    return sequence if columns is None else replace(sequence, values=np.ascontiguousarray(sequence.values[:, columns]))
