"""Features that come with a corpus, into feature stores of ours: the `prepare` stage writes them beside the manifest,
the `extract` stage takes them over in place of an extractor.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpora.files import atomic_folder
from extractors.base import FeatureSequence, make_signature
from extractors.execution.units import Summary
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter

if TYPE_CHECKING:
    from collections.abc import Collection

    from corpora.problems import Problem
    from corpora.readers.feature_corpus import ImportedCorpus

VERSION = 1

FOLDER = "features"
"""Below the manifest's root: one feature store for each modality that the corpus brings."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written of one modality.

    Attributes:
        clips: that have it.
        steps: of all of them.
        invalid: steps that are not valid.
        replaced: values that were NaN or infinite and are 0 now.
        replaced_clips: clips that had any.
    """

    clips: int
    steps: int
    invalid: int
    replaced: int
    replaced_clips: int


def write_imported(corpus: ImportedCorpus, root: Path, layout: str) -> tuple[dict[str, Imported], list[Problem]]:
    """Write a feature store below `root` for each modality that the corpus brings, clip by clip.

    Args:
        layout: how the corpus came, for the signature.

    Returns:
        What was written, by modality; one problem for each clip and modality whose values had to be changed.

    Raises:
        ValueError: the corpus's files do not hold what they should; the message names file and clip.
    """
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    problems: list[Problem] = []
    counts = {}
    for modality, names in corpus.feature_names.items():
        extractor, options = f"{modality}.imported", {"layout": layout, "sha256": corpus.sha256}
        meta = FeatureMeta(modality, extractor, options, make_signature(extractor, VERSION, options), names)
        counted: Counter[str] = Counter()
        with FeatureWriter(root / FOLDER / modality, meta) as writer:
            for clip_id, found, problem in corpus.read(modality):
                words = None if found.token_ids is None else np.full_like(found.token_ids, -1)  # unknown
                tokens = (found.token_ids, words)
                writer.write(clip_id, FeatureSequence(found.values, found.start, found.end, found.valid, *tokens))
                counted["clips"] += bool(len(found))
                counted["steps"] += len(found)
                counted["invalid"] += int((~found.valid).sum())
                counted["replaced"] += found.replaced
                counted["replaced_clips"] += bool(found.replaced)
                problems += [problem] if problem else []
        counts[modality] = Imported(**{name: counted[name] for name in Imported.__dataclass_fields__})
    return counts, problems


def imported_folder(root: Path, modality: str) -> Path | None:
    """Where a modality's features lie that came with the corpus; None where it brought none."""
    folder = Path(root) / FOLDER / modality
    return folder if folder.is_dir() else None


def copy_imported(folder: Path, modality: str, clip_ids: Collection[str], out: Path) -> tuple[FeatureMeta, Summary]:
    """Copy a store that `write_imported` wrote to `out`, which appears, or is replaced, whole.

    Raises:
        StoreError: the store is damaged.
        ValueError: it is of another manifest.
    """
    reader = FeatureReader(folder, modality)
    if set(reader.clip_ids) != set(clip_ids):
        raise ValueError(f"{folder}: its clips are not the manifest's; run the prepare stage again")
    parts = sorted(folder.glob("part-*.parquet"))
    columns = [pq.read_table(part, columns=["valid"]).column("valid") for part in parts]
    lengths = np.concatenate([pc.list_value_length(column).to_numpy() for column in columns])
    with atomic_folder(out) as temporary:
        for part in parts:
            shutil.copyfile(part, temporary / part.name)
    return reader.meta, Summary(len(lengths), int((lengths == 0).sum()), int(lengths.sum()), 0)
