"""Dataset description: modalities, widths, normalisation statistics and schema version."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 2
NORMALISED = ("audio", "vision")
"""Modalities that are normalised by training-split statistics; text features are hidden states, used unchanged."""

REMEDY = "run the align stage again"
CREATE_HINT = "create it with `dashfusion align` (or `dvc repro align`)"


@dataclass(frozen=True, slots=True)
class ModalityInfo:
    """The features of a modality and the extractor that computed them.

    Attributes:
        dim: D, the number of features.
        extractor: registered name of the extractor.
        options: of the extractor.
        signature: hash of the extractor's name, version, options and model files.
        feature_names: D names, in column order.
        versions: of the libraries that computed the features; empty if unknown, as in earlier datasets, whose
            signatures covered one of them.
    """

    dim: int
    extractor: str
    options: Mapping[str, Any]
    signature: str
    feature_names: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    def matches(self, other: ModalityInfo) -> bool:
        """Return whether both are the same extractor's features, whatever the versions of its libraries.

        A signature of an earlier dataset says the same about name and version; then the options decide.
        """
        if self.dim != other.dim or self.feature_names != other.feature_names:
            return False
        if bool(self.versions) == bool(other.versions):
            return self.signature == other.signature
        stems = {info.signature.rpartition("-")[0] for info in (self, other)}
        return len(stems) == 1 and dict(self.options) == dict(other.options)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation [D] of each feature over the training split's `steps` visible steps."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: int


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """The content of dataset.json.

    Attributes:
        corpus: name in the manifest.
        generated: whether its clips are generated rather than recorded; None if unknown.
        language: ISO 639-1 code in the manifest.
        label_range: minimum and maximum label, (-3, 3) or (-1, 1).
        mode: unaligned (each modality at its own rate) or aligned (pooled onto the text's tokens).
        mask_invalid: modalities whose invalid steps are masked out.
        modalities: text, audio and vision -> their features.
        statistics: audio and vision -> normalisation statistics.
        clips: split -> number of clips.
        word_times: sources of the word timings, as recorded by the align stage.
        training: `seconds` (median and longest) of the training clips, `missing`, the number of training clips
            without each modality, and `videos`, the number of their videos; empty if unknown.
        recogniser: speech recogniser used for clips without a transcript; empty if none was.
        normalise_audio: none, or speaker: audio was standardised by the statistics of its speaker's clips.
    """

    corpus: str
    language: str
    label_range: tuple[float, float]
    mode: str
    mask_invalid: tuple[str, ...]
    modalities: Mapping[str, ModalityInfo]
    statistics: Mapping[str, Statistics]
    clips: Mapping[str, int] = field(default_factory=dict)
    word_times: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    recogniser: str = ""
    generated: bool | None = None
    normalise_audio: str = "none"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "dataset.json", remedy: str = REMEDY) -> DatasetInfo:
        """Build from the parsed JSON.

        Args:
            raw: the JSON object.
            where: prefix of error messages.
            remedy: what the user should do, for error messages.

        Raises:
            ValueError: unknown schema version, an entry that is missing or of another type, or statistics of the wrong
                width or with a standard deviation that is not positive.
        """
        try:
            return cls._from_dict(raw, where, remedy)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{where}: an entry is missing or of another type ({type(error).__name__}: {error}); {remedy}"
            ) from error

    @classmethod
    def _from_dict(cls, raw: Mapping[str, Any], where: str, remedy: str) -> DatasetInfo:
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"{where}: dataset schema {version}, this version reads {SCHEMA_VERSION}; {remedy}")
        missing = [m for m in MODALITIES if m not in raw["modalities"]]
        missing += [f"statistics of {m}" for m in NORMALISED if m not in raw["statistics"]]
        if missing:
            raise ValueError(f"{where}: no entry for {', '.join(missing)}; {remedy}")
        modalities = {
            m: ModalityInfo(
                dim=int(entry["dim"]),
                extractor=entry["extractor"],
                options=dict(entry["options"]),
                signature=entry["signature"],
                feature_names=tuple(entry["feature_names"]),
                versions=dict(entry.get("versions", {})),
            )
            for m, entry in raw["modalities"].items()
        }
        statistics = {
            m: Statistics(tuple(entry["mean"]), tuple(entry["std"]), int(entry["steps"]))
            for m, entry in raw["statistics"].items()
            if m in NORMALISED
        }
        for m, entry in statistics.items():
            dim = modalities[m].dim
            if len(entry.mean) != dim or len(entry.std) != dim or not all(value > 0 for value in entry.std):
                raise ValueError(
                    f"{where}: the statistics of {m} must be {dim} means and {dim} positive standard "
                    f"deviations, found {len(entry.mean)} and {len(entry.std)}, "
                    f"the least {min(entry.std, default=0.0)}; {remedy}"
                )
        low, high = raw["label_range"]
        return cls(
            corpus=raw["corpus"],
            language=raw["language"],
            label_range=(float(low), float(high)),
            mode=raw["mode"],
            mask_invalid=tuple(raw["mask_invalid"]),
            modalities=modalities,
            statistics=statistics,
            clips=dict(raw.get("clips", {})),
            word_times=dict(raw.get("word_times", {})),
            training=dict(raw.get("training", {})),
            recogniser=raw.get("recogniser", ""),
            generated=is_generated(raw),
            normalise_audio=raw.get("normalise_audio", "none"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `from_dict` reads."""
        return {
            "schema_version": SCHEMA_VERSION,
            "corpus": self.corpus,
            "generated": self.generated,
            "language": self.language,
            "label_range": list(self.label_range),
            "mode": self.mode,
            "mask_invalid": list(self.mask_invalid),
            **({"normalise_audio": self.normalise_audio} if self.normalise_audio != "none" else {}),
            "modalities": {
                m: {
                    "dim": info.dim,
                    "extractor": info.extractor,
                    "options": dict(info.options),
                    "signature": info.signature,
                    "feature_names": list(info.feature_names),
                    "versions": dict(info.versions),
                }
                for m, info in self.modalities.items()
            },
            "statistics": {
                m: {"mean": list(entry.mean), "std": list(entry.std), "steps": entry.steps}
                for m, entry in self.statistics.items()
            },
            "clips": dict(self.clips),
            "word_times": dict(self.word_times),
            "training": dict(self.training),
            "recogniser": self.recogniser,
        }


def format_versions(versions: Mapping[str, str]) -> str:
    """Return the versions of libraries as text."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "unknown versions"


def is_generated(dataset: Mapping[str, Any]) -> bool | None:
    """Return whether the clips of a dataset, as in dataset.json, are generated; None if it does not say.

    Datasets of earlier versions do not say; the demo's are known by their names.
    """
    generated: bool | None = dataset.get("generated")
    return True if generated is None and dataset["corpus"].startswith("demo_") else generated


def read_info(dataset: Path) -> DatasetInfo:
    """Read `dataset`/dataset.json.

    Raises:
        FileNotFoundError: no dataset there; the message names the stage that creates it.
        ValueError: see `DatasetInfo.from_dict`.
    """
    path = Path(dataset) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no dataset here; {CREATE_HINT}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {REMEDY}") from error
    return DatasetInfo.from_dict(raw, str(path))
