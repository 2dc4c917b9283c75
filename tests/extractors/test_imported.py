"""Features that came with a corpus become stores like any other, and go through align unchanged."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from corpora.manifest import MODALITIES, Clip, Manifest, write_manifest
from corpora.problems import Problem
from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps, clean, even_times
from corpora.readers.mmsa_pickle import read_mmsa
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.imported import copy_imported, imported_folder, write_imported
from extractors.store import FeatureReader
from extractors.transcripts.transcribe import TranscribeConfig, transcribe
from model.config import ModelConfig
from model.data.clips import ClipTable
from model.data.info import Statistics, read_info
from model.evaluation.inference import predict
from model.network.dashfusion import DashFusion

if TYPE_CHECKING:
    from pathlib import Path

CLIP_IDS = ("a/0", "a/1", "b/0")
DIMS = {"text": 4, "audio": 2, "vision": 3}
RAW = {m: Statistics((0.0,) * DIMS[m], (1.0,) * DIMS[m], 1) for m in ("audio", "vision")}


def make_steps(modality: str, row: int, steps: int) -> ImportedSteps:
    values = np.random.default_rng(row).uniform(1, 2, (steps, DIMS[modality]))
    if modality == "audio":
        values[0, 0] = -np.inf
    ids = np.arange(steps, dtype=np.int32) if modality == "text" else None
    return ImportedSteps(*(cleaned := clean(values))[:1], *even_times(steps), *cleaned[1:], ids)


def make_corpus(lengths: dict[str, tuple[int, ...]], sha256: str = "0" * 64) -> ImportedCorpus:
    splits = ("train", "train", "valid")
    clips = [
        Clip(clip_id, clip_id[0], split, "en", "", "some words here", label=0.5, sha256=sha256)
        for clip_id, split in zip(CLIP_IDS, splits, strict=True)
    ]

    def read(modality):
        for row, clip_id in enumerate(CLIP_IDS):
            found = make_steps(modality, row, lengths[modality][row])
            wrong = Problem(clip_id, "prepare", modality, "NotFinite", "one value") if found.replaced else None
            yield clip_id, found, wrong

    names = {m: tuple(f"{m}_{i}" for i in range(DIMS[m])) for m in lengths}
    return ImportedCorpus(Manifest("mine", "data", (-3.0, 3.0), tuple(clips)), (), sha256, (), names, read)


LENGTHS = {"text": (4, 5, 6), "audio": (8, 9, 10), "vision": (7, 6, 5)}


def test_what_is_written_is_what_came_and_is_counted(tmp_path):
    counts, problems = write_imported(make_corpus(LENGTHS), tmp_path, "mmsa_pickle")
    assert counts["audio"].steps == 27 and counts["audio"].invalid == counts["audio"].replaced_clips == 3
    assert counts["vision"].replaced == 0 and [problem.clip_id for problem in problems] == list(CLIP_IDS)
    for modality, dim in DIMS.items():
        reader = FeatureReader(tmp_path / "features" / modality, modality)
        assert reader.clip_ids == CLIP_IDS and len(reader.meta.feature_names) == dim
        for row, clip_id in enumerate(CLIP_IDS):
            expected = make_steps(modality, row, LENGTHS[modality][row])
            found = reader[clip_id]
            for name in ("values", "start", "end", "valid"):
                assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert set(reader["a/0"].valid) == {True}


def test_the_signature_follows_the_file(tmp_path):
    signatures = set()
    for sha256 in ("0" * 64, "1" * 64):
        write_imported(make_corpus(LENGTHS, sha256), tmp_path, "mmsa_pickle")
        signatures |= {FeatureReader(tmp_path / "features" / m, m).meta.signature for m in DIMS}
    assert len(signatures) == 6 and all(".imported-v1-" in signature for signature in signatures)


def test_a_modality_of_an_earlier_corpus_does_not_stay_behind(tmp_path):
    write_imported(make_corpus(LENGTHS), tmp_path, "mmsa_pickle")
    write_imported(make_corpus({"audio": (1, 2, 3)}), tmp_path, "mmsa_pickle")
    assert imported_folder(tmp_path, "text") is None
    assert imported_folder(tmp_path, "audio") == tmp_path / "features" / "audio"


def test_a_store_is_taken_over_whole_and_only_by_its_own_manifest(tmp_path):
    write_imported(make_corpus({"vision": (7, 0, 5)}), tmp_path, "mmsa_pickle")
    folder = tmp_path / "features" / "vision"
    meta, summary = copy_imported(folder, "vision", CLIP_IDS, tmp_path / "out")
    assert (summary.rows, summary.missing, summary.steps, summary.failed) == (3, 1, 12, 0)
    assert meta == FeatureReader(tmp_path / "out", "vision").meta
    parts = [folder / "part-00000.parquet", tmp_path / "out" / "part-00000.parquet"]
    assert parts[0].read_bytes() == parts[1].read_bytes()
    with pytest.raises(ValueError, match="run the prepare stage again"):
        copy_imported(folder, "vision", CLIP_IDS[:2], tmp_path / "out")


def aligned_dataset(folder: Path, lengths: dict[str, tuple[int, ...]], mode: str) -> Path:
    corpus = make_corpus(lengths)
    write_imported(corpus, folder, "mmsa_pickle")
    write_manifest(corpus.manifest, folder / "manifest.parquet")
    transcribe(folder / "manifest.parquet", folder / "words.parquet", TranscribeConfig(), folder / "scratch", 1.0)
    stores = {m: folder / "features" / m for m in DIMS}
    out = folder / "dataset"
    align(folder / "manifest.parquet", folder / "words.parquet", stores, out, AlignConfig(mode=mode, mask_invalid=()))
    return out


@pytest.mark.parametrize("mode", ["unaligned", "aligned"])
def test_aligned_features_stay_as_they_are_in_either_mode(tmp_path, mode):
    lengths = dict.fromkeys(DIMS, (4, 5, 60))
    table = ClipTable.read(aligned_dataset(tmp_path, lengths, mode), "train", 100)
    batch = table.batch(np.arange(2))
    for m in DIMS:
        for row, clip_id in enumerate(CLIP_IDS[:2]):
            assert batch.clip_ids[row] == clip_id
            assert np.allclose(batch.values[m][row, : lengths[m][row]], make_steps(m, row, lengths[m][row]).values)


def read_padded(folder: Path, where: str, mode: str = "unaligned") -> Path:
    """The dataset of a pickle whose audio and vision are padded at the front or back, or lists of the real steps."""
    rng = np.random.default_rng(0)
    content: dict[str, dict[str, Any]] = {}
    for split, count in {"train": 12, "valid": 4}.items():
        rows: dict[str, Any] = {
            m: [rng.normal(3, 1, (rng.integers(4, 9), DIMS[m])) for _ in range(count)] for m in DIMS
        }
        rows["audio"][1][3] = 0  # nothing was measured
        for m in ("audio", "vision") if where else ():
            padding = [np.zeros((12 - len(row), DIMS[m])) for row in rows[m]]
            pairs = zip(padding, rows[m], strict=True)
            rows[m] = np.stack([np.concatenate(pair if where == "front" else pair[::-1]) for pair in pairs])
        names = {"id": [f"{split}$_${i}" for i in range(count)], "raw_text": ["some words"] * count}
        content[split] = {**rows, **names, "regression_labels": np.linspace(-2, 2, count)}
    folder.mkdir()
    (folder / "features.pkl").write_bytes(pickle.dumps(content))
    corpus = read_mmsa(folder / "features.pkl", corpus="mine", language="en", label_range=(-3.0, 3.0), root=str(folder))
    write_imported(corpus, folder, "mmsa_pickle")
    write_manifest(corpus.manifest, folder / "manifest.parquet")
    transcribe(folder / "manifest.parquet", folder / "words.parquet", TranscribeConfig(), folder / "scratch", 1.0)
    stores = {m: folder / "features" / m for m in DIMS}
    config = AlignConfig(mode=mode, mask_invalid=())
    align(folder / "manifest.parquet", folder / "words.parquet", stores, folder / "dataset", config)
    return folder / "dataset"


@pytest.mark.parametrize("mode", ["unaligned", "aligned"])
def test_padding_counts_in_no_statistic_and_changes_no_prediction(tmp_path, mode):
    found = {}
    for where in ("", "back", "front"):
        dataset = read_padded(tmp_path / (where or "none"), where, mode)
        info = read_info(dataset)
        torch.manual_seed(0)
        network = DashFusion(ModelConfig(dim=16, heads=2), replace(info, statistics=RAW)).eval()
        predictions = [predict(network, ClipTable.read(dataset, s, 50), MODALITIES) for s in ("train", "valid")]
        found[where] = [*((s.steps, s.mean, s.std) for s in info.statistics.values()), np.concatenate(predictions)]
    *statistics, predictions = found.pop("")
    for *others, other in found.values():
        for (steps, mean, std), (expected, *rest) in zip(others, statistics, strict=True):
            assert steps == expected and np.allclose([mean, std], rest, rtol=1e-12)
        assert np.abs(other - predictions).max() < 1e-6
    if mode == "unaligned":
        assert np.allclose(statistics[0][1], 3, atol=0.3), "the mean of what was measured, not of zeros"


def test_features_at_their_own_rates_are_pooled_onto_the_texts_steps(tmp_path):
    dataset = aligned_dataset(tmp_path, {"text": (4, 4, 4), "audio": (8, 8, 8), "vision": (2, 2, 2)}, "aligned")
    batch = ClipTable.read(dataset, "train", 100).batch(np.arange(2))
    audio, vision = (make_steps(m, 1, steps).values for m, steps in (("audio", 8), ("vision", 2)))
    assert np.allclose(batch.values["audio"][1], audio.reshape(4, 2, 2).mean(axis=1), atol=1e-6)
    assert np.allclose(batch.values["vision"][1], np.repeat(vision, 2, axis=0))
