"""Feature stores of corpora that are distributed as features.

The `prepare` stage writes them next to the manifest; the `extract` stage copies them instead of running an extractor.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpora.files import atomic_folder
from extractors.base import IMPORTED, FeatureSequence, make_signature
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter, Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from corpora.problems import Problem
    from corpora.readers.feature_corpus import ImportedCorpus

VERSION = 1

FOLDER = "features"
"""Subfolder of the manifest's root with one feature store per modality."""


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """Counts of one modality's imported features.

    Attributes:
        clips: clips that have the modality.
        steps: steps of all clips.
        invalid: steps that are not valid.
        replaced: NaN or infinite values, replaced by 0.
        replaced_clips: clips with such values.
    """

    clips: int
    steps: int
    invalid: int
    replaced: int
    replaced_clips: int


def write_imported(
    corpus: ImportedCorpus, root: Path, layout: str, progress: Callable[[int], None] | None = None
) -> tuple[dict[str, ImportCounts], list[Problem]]:
    """Write a feature store below `root` for each modality of a corpus, replacing those of an earlier import.

    Args:
        corpus: corpus of features.
        root: root of the manifest.
        layout: layout of the corpus, for the signature.
        progress: called with 1 after each clip of each modality.

    Returns:
        counts by modality; a problem for each clip and modality with replaced values.

    Raises:
        ValueError: the files of the corpus are invalid; the message names file and clip.
    """
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    problems: list[Problem] = []
    counts = {}
    for modality, names in corpus.feature_names.items():
        extractor, options = f"{modality}{IMPORTED}", {"layout": layout, "sha256": corpus.sha256}
        meta = FeatureMeta(modality, extractor, options, make_signature(extractor, VERSION, options), names)
        counter: Counter[str] = Counter()
        with FeatureWriter(root / FOLDER / modality, meta) as writer:
            for clip_id, steps, problem in corpus.read(modality):
                words = None if steps.token_ids is None else np.full_like(steps.token_ids, -1)  # unknown
                tokens = (steps.token_ids, words)
                writer.write(clip_id, FeatureSequence(steps.values, steps.start, steps.end, steps.valid, *tokens))
                counter["clips"] += bool(len(steps))
                counter["steps"] += len(steps)
                counter["invalid"] += int((~steps.valid).sum())
                counter["replaced"] += steps.replaced
                counter["replaced_clips"] += bool(steps.replaced)
                problems += [problem] if problem else []
                if progress is not None:
                    progress(1)
        counts[modality] = ImportCounts(**{field.name: counter[field.name] for field in fields(ImportCounts)})
    return counts, problems


def imported_folder(root: Path, modality: str) -> Path | None:
    """Return the store of a modality's imported features; None if there are none."""
    folder = Path(root) / FOLDER / modality
    return folder if folder.is_dir() else None


def copy_imported(folder: Path, modality: str, clip_ids: Collection[str], out: Path) -> tuple[FeatureMeta, Summary]:
    """Copy a store written by `write_imported`; the copy appears or is replaced as a whole.

    Args:
        folder: store to copy.
        modality: modality of the store.
        clip_ids: identifiers of the manifest's clips.
        out: folder of the copy.

    Raises:
        StoreError: the store is damaged.
        ValueError: its clips are not those of the manifest.
    """
    reader = FeatureReader(folder, modality)
    if set(reader.clip_ids) != set(clip_ids):
        raise ValueError(f"{folder}: its clips are not the manifest's; run the prepare stage again")
    steps = list(reader.steps().values())
    with atomic_folder(out) as temporary:
        for part in sorted(folder.glob("part-*.parquet")):
            shutil.copyfile(part, temporary / part.name)
    return reader.meta, Summary(len(steps), steps.count(0), sum(steps), 0)
