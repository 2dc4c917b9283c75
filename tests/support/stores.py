"""A corpus of three feature stores with made-up features, and its dataset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, write_manifest
from extractors.base import FeatureSequence
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.store import FeatureMeta, FeatureWriter
from extractors.transcripts.table import Transcript, write_transcripts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DIMS = {"text": 4, "audio": 3, "vision": 2}
TRANSCRIPT = "one three five"


def meta(modality: str) -> FeatureMeta:
    names = tuple(f"{modality[0]}{i}" for i in range(DIMS[modality]))
    return FeatureMeta(modality, f"fake.{modality}", {"rate": 2}, f"fake.{modality}-v1-abc", names)


def sequence(modality: str, steps: int, seed: int, duration: float = 2.0) -> FeatureSequence:
    rng = np.random.default_rng([seed, MODALITIES.index(modality)])
    values = rng.normal(3, 2, (steps, DIMS[modality])).astype(np.float32)
    if modality == "text":
        start, end = np.zeros(steps, np.float32), np.full(steps, duration, np.float32)
        index = np.r_[-1, np.arange(steps - 2), -1].astype(np.int32) if steps else np.empty(0, np.int32)
        return FeatureSequence(values, start, end, np.ones(steps, bool), index + 100, index)
    edges = np.linspace(0, duration, steps + 1).astype(np.float32)
    return FeatureSequence(values, edges[:-1], edges[1:], rng.random(steps) > 0.3)


class Corpus:
    """A manifest, transcripts and three feature stores on disk, and what is in them."""

    def __init__(
        self,
        root: Path,
        clips: list[Clip],
        rows: Mapping[str, Mapping[str, FeatureSequence]],
        transcripts: Mapping[str, Transcript] | None = None,
    ) -> None:
        self.clips, self.rows, self.root = clips, rows, root
        self.manifest = root / "manifest.parquet"
        self.folders = {m: root / "features" / m for m in MODALITIES}
        write_manifest(Manifest("fake", "raw", (-3.0, 3.0), tuple(clips)), self.manifest)
        self.transcripts = root / "transcripts.parquet"
        plain = {clip.clip_id: Transcript(clip.clip_id, clip.text, "corpus", clip.text.split()) for clip in clips}
        write_transcripts([*(plain | dict(transcripts or {})).values()], self.transcripts)
        for m in MODALITIES:
            with FeatureWriter(self.folders[m], meta(m), shard_clips=7) as writer:
                for clip_id, one in rows[m].items():
                    writer.write(clip_id, one)

    def align(self, out: str = "dataset", words: Path | None = None, progress=None, **config):
        tables, dataset = (self.manifest, self.transcripts), self.root / out
        return align(*tables, self.folders, dataset, AlignConfig(**config), words, progress=progress)

    def info(self, out: str = "dataset") -> dict:
        return json.loads((self.root / out / "dataset.json").read_text())

    def table(self, split: str, out: str = "dataset") -> dict[str, dict]:
        return {row["clip_id"]: row for row in pq.read_table(self.root / out / split).to_pylist()}


def make(root: Path, clips: int = 20, leave_out: Mapping[str, list[str]] | None = None, **steps: int) -> Corpus:
    """Clips whose splits alternate; text of 5 tokens (3 words), audio and vision of varying lengths."""
    listed = [
        Clip(f"v{i}/c", f"v{i}", SPLITS[i % 3], "en", f"{i}.mp4", TRANSCRIPT, label=i / 10, duration=2.0)
        for i in range(clips)
    ]
    rows: dict[str, dict[str, FeatureSequence]] = {m: {} for m in MODALITIES}
    for i, clip in enumerate(listed):
        for m, count in {"text": 5, "audio": 6 + i % 5, "vision": 3 + i % 4}.items():
            if clip.clip_id not in (leave_out or {}).get(m, []):
                rows[m][clip.clip_id] = sequence(m, steps.get(m, count), seed=i)
    return Corpus(root, listed, rows)
