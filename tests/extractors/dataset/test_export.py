"""What is exported reads back as it was: by MMSA's names and shapes, and by our own import."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora.manifest import MODALITIES, Clip, Manifest, write_manifest
from corpora.readers.mmsa_pickle import read_mmsa
from extractors.base import FeatureSequence
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.dataset.export import export_datasets, export_mmsa
from extractors.imported import write_imported
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter
from extractors.transcripts.transcribe import TranscribeConfig, transcribe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DIMS = {"text": 4, "audio": 5, "vision": 3}
SPLITS = ("train", "train", "train", "valid", "test", "test")


def make_clips() -> list[Clip]:
    return [
        Clip(f"{split}$a/{i}", f"{split}$a", split, "en", "", f"clip {i} 你好", label=0.5 * i - 1, label_text=0.2)
        for i, split in enumerate(SPLITS)
    ]


def make_sequence(modality: str, row: int) -> FeatureSequence:
    """3 + row steps of text, twice and three times as many of audio and vision; some of these show nothing."""
    steps = (3 + row) * (1 + MODALITIES.index(modality))
    rng = np.random.default_rng(row)
    values = rng.uniform(-2, 2, (steps, DIMS[modality])).astype(np.float32)
    valid = np.ones(steps, bool)
    if modality == "vision":
        values[1], values[-1] = 0, 0
        valid[[1, -1]] = False
    start = np.arange(steps, dtype=np.float32) / steps
    tokens = [np.arange(steps, dtype=np.int32), np.arange(steps, dtype=np.int32) % 2] if modality == "text" else []
    return FeatureSequence(values, start, start + np.float32(1 / steps), valid, *tokens)


def make_dataset(
    folder: Path, clips: Sequence[Clip], mode: str = "unaligned", missing: tuple[str, int] = ("", 0)
) -> Path:
    """A dataset as the stages make it; `missing` is a modality that one clip lacks."""
    write_manifest(Manifest("mine", "data", (-3.0, 3.0), tuple(clips)), folder / "manifest.parquet")
    transcribe(folder / "manifest.parquet", folder / "words.parquet", TranscribeConfig(), folder / "scratch", 1.0)
    for m in MODALITIES:
        meta = FeatureMeta(m, f"{m}.made_up", {}, f"{m}-v1", tuple(f"{m}_{i}" for i in range(DIMS[m])))
        with FeatureWriter(folder / "features" / m, meta) as writer:
            for row, clip in enumerate(clips):
                if (m, row) != missing:
                    writer.write(clip.clip_id, make_sequence(m, row))
    stores = {m: folder / "features" / m for m in MODALITIES}
    align(folder / "manifest.parquet", folder / "words.parquet", stores, folder / "dataset", AlignConfig(mode=mode))
    return folder / "dataset"


def test_the_pickle_has_mmsas_names_types_and_padding(tmp_path):
    written = export_mmsa(make_dataset(tmp_path, make_clips()), tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert written.clips == {"train": 3, "valid": 1, "test": 2} and written.unlabelled == 0 and written.tokens
    assert written.shapes == {"text": (8, 4), "audio": (16, 5), "vision": (24, 3)}  # the longest of all splits
    train = content["train"]
    assert train["id"] == ["train$a$_$0", "train$a$_$1", "train$a$_$2"] and train["raw_text"][0] == "clip 0 你好"
    assert train["annotations"] == ["Negative", "Negative", "Neutral"]
    assert train["regression_labels"].tolist() == [-1, -0.5, 0]
    assert train["audio_lengths"] == [6, 8, 10] and train["vision_lengths"] == [9, 12, 15]
    for m in MODALITIES:
        assert train[m].dtype == np.float32 and train[m].shape == (3, *written.shapes[m])
        for row in range(3):
            values = make_sequence(m, row).values
            assert np.array_equal(train[m][row, : len(values)], values) and not train[m][row, len(values) :].any()
    assert train["text_bert"].shape == (3, 3, 8)
    assert train["text_bert"][1].tolist() == [[0, 1, 2, 3, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [0] * 8]


def test_labels_of_single_modalities_are_written_where_every_clip_has_them(tmp_path):
    clips = make_clips()
    export_mmsa(make_dataset(tmp_path, clips), tmp_path / "out.pkl")
    train = pickle.loads((tmp_path / "out.pkl").read_bytes())["train"]
    assert train["regression_labels_T"].tolist() == pytest.approx([0.2] * 3)
    assert "regression_labels_A" not in train
    clips[1] = replace(clips[1], label_text=None)
    export_mmsa(make_dataset(tmp_path, clips), tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert not any("regression_labels_T" in split for split in content.values())


@pytest.mark.parametrize("mode", ["unaligned", "aligned"])
def test_our_import_of_our_export_gives_the_same_arrays_and_labels(tmp_path, mode):
    clips = make_clips()
    dataset = make_dataset(tmp_path, clips, mode, missing=("audio", 1))
    export_mmsa(dataset, tmp_path / "out.pkl")
    corpus = read_mmsa(tmp_path / "out.pkl", corpus="mine", language="en", label_range=(-3.0, 3.0), root="r")
    assert not corpus.problems
    write_imported(corpus, tmp_path / "back", "mmsa_pickle")
    for before, after in zip(clips, corpus.manifest.clips, strict=True):
        assert replace(after, sha256="", label_text=before.label_text) == before
        assert after.label_text == pytest.approx(before.label_text)
    stored = {row["clip_id"]: row for s in set(SPLITS) for row in pq.read_table(dataset / s).to_pylist()}
    for m in MODALITIES:
        back = FeatureReader(tmp_path / "back" / "features" / m, m)
        assert back.clip_ids == tuple(clip.clip_id for clip in clips)
        for clip_id, found in back:
            assert found.values.tolist() == stored[clip_id][f"{m}_values"]
            if m == "text":
                assert found.token_ids.tolist() == stored[clip_id]["text_token_ids"]
            if m == "vision" and mode == "unaligned":
                assert found.valid.tolist() == stored[clip_id]["vision_mask"]
    assert len(FeatureReader(tmp_path / "back" / "features" / "audio", "audio")[clips[1].clip_id]) == 0


def test_what_was_imported_without_token_ids_is_exported_without_text_bert(tmp_path):
    export_mmsa(make_dataset(tmp_path, make_clips()), tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    for split in content.values():
        del split["text_bert"]
    (tmp_path / "out.pkl").write_bytes(pickle.dumps(content))
    corpus = read_mmsa(tmp_path / "out.pkl", corpus="mine", language="en", label_range=(-3.0, 3.0), root="r")
    write_imported(corpus, tmp_path / "back", "mmsa_pickle")
    write_manifest(corpus.manifest, tmp_path / "manifest.parquet")
    transcribe(tmp_path / "manifest.parquet", tmp_path / "words.parquet", TranscribeConfig(), tmp_path / "s", 1.0)
    stores = {m: tmp_path / "back" / "features" / m for m in MODALITIES}
    align(tmp_path / "manifest.parquet", tmp_path / "words.parquet", stores, tmp_path / "again", AlignConfig())
    assert not export_mmsa(tmp_path / "again", tmp_path / "again.pkl").tokens
    again = pickle.loads((tmp_path / "again.pkl").read_bytes())
    assert "text_bert" not in again["test"] and np.array_equal(again["test"]["text"], content["test"]["text"])


def test_clips_without_a_label_are_left_out_and_counted(tmp_path):
    clips = [replace(clip, label=None) if i in (1, 3) else clip for i, clip in enumerate(make_clips())]
    written = export_mmsa(make_dataset(tmp_path, clips), tmp_path / "out.pkl")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert written.unlabelled == 2 and written.clips == {"train": 2, "valid": 0, "test": 2}
    assert content["valid"]["audio"].shape == (0, 16, 5) and content["train"]["id"] == ["train$a$_$0", "train$a$_$2"]
    with pytest.raises(ValueError, match="no clip has a label"):
        nothing = make_dataset(tmp_path, [replace(clip, label=None) for clip in clips])
        export_mmsa(nothing, tmp_path / "none.pkl")
    assert not (tmp_path / "none.pkl").exists()


def test_the_folder_for_datasets_has_a_card_and_a_file_a_split(tmp_path):
    dataset = make_dataset(tmp_path, [clip for clip in make_clips() if clip.split != "valid"])
    assert export_datasets(dataset, tmp_path / "out") == {"train": 3, "test": 2}
    assert export_datasets(dataset, tmp_path / "out") == {"train": 3, "test": 2}  # an export may be replaced
    files = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert files == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    table = pq.read_table(tmp_path / "out" / "data" / files[1])
    assert table.column("audio_values")[1].as_py() == make_sequence("audio", 1).values.tolist()
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: [en]\n") and "path: data/train-*.parquet" in card and "valid-*" not in card


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path):
    dataset = make_dataset(tmp_path, make_clips())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all of it")
    with pytest.raises(ValueError, match="something else"):
        export_datasets(dataset, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


@pytest.mark.parametrize("export", [export_mmsa, export_datasets])
def test_without_a_dataset_the_stage_that_makes_it_is_named(tmp_path, export):
    with pytest.raises(FileNotFoundError, match="dashfusion align"):
        export(tmp_path / "dataset", tmp_path / "out")
