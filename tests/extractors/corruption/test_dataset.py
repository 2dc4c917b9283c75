"""Corrupted copies of a split: what changes in them, what does not, and what is kept between runs."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpora.files import sha256_of
from corpora.manifest import MODALITIES, Clip, Manifest, read_manifest, write_manifest
from corpora.problems import TooManyFailuresError
from corpora.readers.raw import read_raw
from extractors.corruption.conditions import Condition
from extractors.corruption.dataset import (
    FOLDER,
    CorruptedSplit,
    Original,
    corrupt_split,
    corrupted_folders,
    read_original,
)
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.execution.units import assemble, extract_unit
from extractors.execution.workers import WorkerPool
from extractors.registry import ENTRY_POINT_GROUP
from extractors.transcripts.transcribe import TranscribeConfig, transcribe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

EXTRACTORS = {
    "text": ("text.words", {}),
    "audio": ("audio.librosa", {"hop_seconds": 0.1}),
    "vision": ("vision.face_landmarker", {"fps": 3}),
}
MUTE, MUTE_TEXT = "extra/mute", "I liked it."
ONLY_TEXT = "extra/text"
TIMEOUT = 120.0


@dataclass(frozen=True)
class Corpus:
    """A corpus that went through extraction and alignment: where its tables are."""

    root: Path
    features: Mapping[str, Path]

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.parquet"

    @property
    def transcripts(self) -> Path:
        return self.root / "transcripts.parquet"

    def original(self, split: str = "test", **config: Any) -> Original:
        return read_original(self.manifest, self.transcripts, self.features, split, AlignConfig(**config))

    def rows(self, **config: Any) -> dict[str, dict]:
        """The test split as it is."""
        out = self.root / f"dataset-{config.get('mode', 'unaligned')}"
        if not out.exists():
            align(self.manifest, self.transcripts, self.features, out, AlignConfig(**config))
        return rows_of(out)


def rows_of(dataset: Path, split: str = "test") -> dict[str, dict]:
    return {row["clip_id"]: row for row in pq.read_table(dataset / split).to_pylist()}


def build(root: Path, manifest: Manifest, extractors: Mapping[str, tuple[str, dict]] = EXTRACTORS) -> Corpus:
    """Run the clips through the stages up to extraction."""
    corpus = Corpus(root, {m: root / "features" / m for m in MODALITIES})
    write_manifest(manifest, corpus.manifest)
    manifest = read_manifest(corpus.manifest)  # durations are rounded there
    transcribe(corpus.manifest, corpus.transcripts, TranscribeConfig(), root / "scratch", TIMEOUT)
    for m, (name, options) in extractors.items():
        report = extract_unit(manifest.clips, Path(manifest.root), name, options, root / "scratch")
        assemble(
            manifest.clips, Path(manifest.root), report.meta, root / "scratch", corpus.features[m], report.problems
        )
    return corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, demo, make_clip) -> Corpus:
    """Five generated clips, one without sound, one of which there is only text; all but the first in the test split."""
    root = tmp_path_factory.mktemp("corpus")
    media = root / "media"
    shutil.copytree(demo, media)
    manifest, _ = read_raw(media, corpus="demo", language="en", label_range=(-3.0, 3.0))
    make_clip(media / "mute.mp4", "v", seconds=1)
    mute = Clip(
        MUTE, "extra", "test", "en", "mute.mp4", MUTE_TEXT, 1.0, duration=1.0, sha256=sha256_of(media / "mute.mp4")
    )
    only_text = Clip(ONLY_TEXT, "extra", "test", "en", "", "It is good.", 1.0)
    splits = ["train"] + ["test"] * 4
    clips = [replace(clip, split=split) for clip, split in zip(manifest.clips, splits, strict=True)]
    return build(root, replace(manifest, clips=(*clips, mute, only_text)))


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, TIMEOUT) as workers:
        yield workers


def differing(one: Mapping[str, dict], other: Mapping[str, dict]) -> set[str]:
    """Columns in which the clips differ."""
    assert list(one) == list(other)
    return {
        column
        for clip_id, row in one.items()
        for column, value in row.items()
        if not np.array_equal(np.array(value, object), np.array(other[clip_id][column], object))
    }


CONDITIONS = {
    "audio.noise": 0, "audio.spans": 0.5, "vision.blur": 0.05, "vision.occlusion": 0.5, "vision.frames": 0.7,
    "vision.rate": 1, "text.words": 0.5, "text.recogniser": 0.5, "text.negation": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONS)
def test_only_the_corrupted_modality_changes(corpus, pool, name):
    condition = Condition(name, CONDITIONS[name])
    made = corrupt_split(corpus.original(), condition, corpus.root / "scratch", pool)
    clean, corrupted = corpus.rows(), rows_of(made.dataset)
    changed = differing(clean, corrupted)
    modality = condition.modality
    assert f"{modality}_values" in changed
    assert changed <= {"text"} | {
        f"{modality}_{name}" for name in ("values", "start", "end", "mask", "token_ids", "word_index")
    }
    assert ("text" in changed) == (modality == "text")
    assert not made.problems or modality == "text"
    if modality != "text":
        assert corrupted[ONLY_TEXT] == clean[ONLY_TEXT]
        assert {len(row[f"{modality}_mask"]) for row in corrupted.values()} == {
            len(row[f"{modality}_mask"]) for row in clean.values()
        }
    if modality == "audio":
        assert corrupted[MUTE]["audio_values"] == []


@pytest.mark.parametrize("name", ["audio.noise", "vision.rate", "text.words"])
def test_the_level_of_no_corruption_gives_the_split_as_it_is(corpus, pool, name):
    condition = Condition(name, 0 if name.startswith("text") else float("inf"))
    made = corrupt_split(corpus.original(), condition, corpus.root / "scratch", pool)
    assert not differing(rows_of(made.dataset), corpus.rows()) and not made.problems


def test_aligned_datasets_keep_their_words_where_they_were(corpus, pool):
    """Words are placed by the sound as it was: noise moves none of them, and no step of the picture."""
    made = corrupt_split(corpus.original(mode="aligned"), Condition("audio.noise", -20), corpus.root / "scratch", pool)
    changed = differing(corpus.rows(mode="aligned"), rows_of(made.dataset))
    assert changed == {"audio_values"}


def test_words_with_times_keep_them(corpus, pool, tmp_path):
    from extractors.transcripts.table import read_transcripts, write_transcripts

    rows = []
    for row in read_transcripts(corpus.transcripts).values():
        edges = np.linspace(0.5, 1.5, len(row.words) + 1).astype(np.float32).tolist()
        rows.append(replace(row, start=edges[:-1], end=edges[1:], times_method="file"))
    write_transcripts(rows, tmp_path / "transcripts.parquet")
    timed = read_original(
        corpus.manifest, tmp_path / "transcripts.parquet", corpus.features, "test", AlignConfig(mode="aligned")
    )
    made = corrupt_split(timed, Condition("text.recogniser", 0.4), tmp_path / "scratch", pool)
    times = {row.clip_id: set(row.start) | set(row.end) for row in rows}
    for clip_id, row in rows_of(made.dataset).items():
        if row["text_start"]:
            assert row["word_times_method"] == "file"
            assert min(row["text_start"]) >= 0.5 and max(row["text_end"]) <= 1.5 + 1e-6
            assert len(row["text_values"]) == len(row["text"].split())
            assert set(row["text_start"]) & times[clip_id]
            assert len(row["audio_values"]) in (0, len(row["text_values"]))


def random_network(folder: Path, dataset: Path, mode: str = "frozen") -> Path:
    """A checkpoint of an untrained network that fits the dataset."""
    import torch

    from model.checkpoint.io import save_checkpoint
    from model.config import ModelConfig, TextConfig, TrainConfig
    from model.data.info import read_info
    from model.data.tokens import prepare_text
    from model.network.dashfusion import DashFusion

    torch.manual_seed(0)
    text = TextConfig(mode=mode, width=16, heads=2, vocabulary=64) if mode == "scratch" else TextConfig()
    config, info = ModelConfig(dim=16, heads=2, encoder_layers=1, fusion_layers=1, text=text), read_info(dataset)
    save_checkpoint(folder, DashFusion(config, info, prepare_text(config, dataset)), TrainConfig(), 0, 1, {"mae": 1.0})
    return folder


@pytest.mark.parametrize("mode", ["frozen", "scratch"])
def test_trained_networks_take_the_copy_for_their_dataset(corpus, pool, tmp_path, mode):
    from model.evaluate import evaluate

    corpus.rows()
    network = random_network(tmp_path / "network", corpus.root / "dataset-unaligned", mode)
    clean = evaluate(corpus.root / "dataset-unaligned", [network]).predictions.to_pydict()
    for name in ("audio.spans", "text.words"):
        condition = Condition(name, 1)
        made = corrupt_split(corpus.original(), condition, corpus.root / "scratch", pool)
        found = evaluate(made.dataset, [network]).predictions.to_pydict()
        assert found["clip_id"] == clean["clip_id"] and found["label"] == clean["label"]
        assert np.isfinite(found["prediction"]).all()
        assert found["prediction"] != clean["prediction"]


def test_a_clip_with_nothing_left_stays_and_is_listed(corpus, pool):
    made = corrupt_split(corpus.original(), Condition("text.words", 1), corpus.root / "scratch", pool)
    rows = rows_of(made.dataset)
    assert list(rows) == list(corpus.rows())
    assert not any(rows[ONLY_TEXT][f"{m}_values"] for m in MODALITIES) and rows[ONLY_TEXT]["text"] == ""
    (problem,) = made.problems
    assert (problem.clip_id, problem.error) == (ONLY_TEXT, "NoModality") and "stays in the dataset" in problem.message


def test_what_was_made_before_is_there_at_once(corpus, tmp_path):
    reports: list[Any] = []
    condition = Condition("text.negation", 1, seed=5)
    with WorkerPool(1, TIMEOUT, each=reports.append) as counted:
        first = corrupt_split(corpus.original(), condition, tmp_path, counted)
        work = len(reports)
        again = corrupt_split(corpus.original(), condition, tmp_path, counted)
        assert work and len(reports) == work
        assert again == replace(first, reused=True) and not first.reused
        others = [Condition("text.negation", 0.9, seed=5), Condition("text.negation", 1, seed=6)]
        folders = {corrupt_split(corpus.original(), other, tmp_path, counted).dataset for other in others}
        folders.add(corrupt_split(corpus.original(mode="aligned"), condition, tmp_path, counted).dataset)
    assert len(folders | {first.dataset}) == 4
    assert sorted(tmp_path.glob(f"{FOLDER}*")) == sorted(folders | {first.dataset})  # nothing else is left behind


def test_other_inputs_make_another_copy(corpus, tmp_path):
    first = corpus.original().fingerprint
    assert corpus.original().fingerprint == first
    moved = tmp_path / "moved"
    shutil.copytree(corpus.root, moved)
    copy = Corpus(moved, {m: moved / "features" / m for m in MODALITIES})
    assert copy.original().fingerprint == first  # where it lies does not matter
    manifest = read_manifest(copy.manifest)
    clips = [replace(clip, label=0.5) if clip.clip_id == MUTE else clip for clip in manifest.clips]
    write_manifest(replace(manifest, clips=clips), copy.manifest)
    assert copy.original().fingerprint != first
    shutil.copy(corpus.manifest, copy.manifest)
    extract = extract_unit(
        manifest.clips, Path(manifest.root), "audio.librosa", {"hop_seconds": 0.2}, moved / "scratch"
    )
    assemble(manifest.clips, Path(manifest.root), extract.meta, moved / "scratch", copy.features["audio"])
    assert copy.original().fingerprint != first


def test_a_run_that_was_stopped_goes_on_where_it_was(corpus, tmp_path):
    condition = Condition("vision.frames", 0.5, seed=1)
    seen: list[int] = []

    def stop(report: Any) -> None:
        seen.append(report.extracted)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), WorkerPool(1, TIMEOUT, each=stop) as interrupted:
        corrupt_split(corpus.original(), condition, tmp_path, interrupted)
    (part,) = tmp_path.glob(f"{FOLDER}*")
    assert part.suffix == ".part" and not list(tmp_path.rglob("*.mov"))
    (part / ".corrupted-killed").mkdir()
    (part / ".corrupted-killed" / "large.mov").touch()
    reports: list[Any] = []
    with WorkerPool(1, TIMEOUT, each=reports.append) as pool:
        made = corrupt_split(corpus.original(), condition, tmp_path, pool)
    assert sum(report.reused for report in reports) == 2
    assert sum(report.extracted for report in reports) == len(corpus.rows()) - 2
    assert list(tmp_path.glob(f"{FOLDER}*")) == [made.dataset]
    assert {path.name for path in made.dataset.iterdir()} == {
        "checksums.json",
        "dataset.json",
        "problems.parquet",
        "test",
        "train",
        "valid",
    }


def test_a_damaged_dataset_is_built_again(corpus, tmp_path, pool, caplog):
    condition = Condition("text.words", 0.3, seed=2)
    first = corrupt_split(corpus.original(), condition, tmp_path, pool)
    (path,) = (first.dataset / "test").glob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    again = corrupt_split(corpus.original(), condition, tmp_path, pool)
    assert not again.reused and path.read_bytes() == whole and "will be built again" in caplog.text
    (first.dataset / "checksums.json").unlink()  # as of an earlier version
    assert corrupt_split(corpus.original(), condition, tmp_path, pool).reused


def test_two_that_want_the_same_make_it_once(corpus, tmp_path, pool):
    found: list[CorruptedSplit] = []
    condition = Condition("audio.spans", 0.3, seed=2)

    def want() -> None:
        found.append(corrupt_split(corpus.original(), condition, tmp_path, pool))

    threads = [threading.Thread(target=want) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.reused for one in found) == [False, True]
    assert found[0].dataset == found[1].dataset
    assert list(tmp_path.glob(f"{FOLDER}*")) == [found[0].dataset]


FRAGILE = '''
import numpy as np
from extractors.base import ExtractionError, FeatureSequence, MissingModalityError
from media.audio import read_audio
from media.container import MissingStreamError

class Fragile:
    """The sound's level, of sound that is not silent."""
    modality, feature_names, signature = "audio", ("level",), "fragile-v1"

    def extract(self, sources):
        for source in sources:
            if source.media is None:
                yield MissingModalityError("no media")
                continue
            try:
                sound = read_audio(source.media, 8000)
            except MissingStreamError as error:
                yield MissingModalityError(str(error))
                continue
            if not sound.any():
                yield ExtractionError(f"{source.media}: silence cannot be measured; record it again")
                continue
            one = np.ones(1, np.float32)
            yield FeatureSequence(one[:, None] * np.abs(sound).max(), one * 0, one, one > 0)
'''


@pytest.fixture
def fragile(corpus, tmp_path, monkeypatch) -> Corpus:
    """The corpus with an extractor of somebody else's for the sound."""
    site = tmp_path / "site"
    (site / "fragile-1.dist-info").mkdir(parents=True)
    (site / "fragile_extractor.py").write_text(FRAGILE)
    (site / "fragile-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1\n")
    (site / "fragile-1.dist-info" / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\naudio.fragile = fragile_extractor:Fragile\n"
    )
    monkeypatch.syspath_prepend(str(site))
    shutil.copytree(corpus.root / "scratch", tmp_path / "corpus" / "scratch")
    return build(tmp_path / "corpus", read_manifest(corpus.manifest), EXTRACTORS | {"audio": ("audio.fragile", {})})


def test_clips_that_fail_are_listed_and_stay_without_the_modality(fragile, tmp_path):
    original, condition = fragile.original(), Condition("audio.spans", 1)
    with WorkerPool(1, TIMEOUT) as pool:
        with pytest.raises(TooManyFailuresError, match="4 of 6 clips failed"):
            corrupt_split(original, condition, tmp_path / "scratch", pool, max_failed_fraction=0.5)
        made = corrupt_split(original, condition, tmp_path / "scratch", pool)
    clean, rows = fragile.rows(), rows_of(made.dataset)
    assert list(rows) == list(clean)
    failed = [clip_id for clip_id, row in clean.items() if row["audio_values"]]
    assert [(p.clip_id, p.stage, p.modality, p.error) for p in made.problems] == [
        (clip_id, "extract", "audio", "ExtractionError") for clip_id in failed
    ]
    assert all(not row["audio_values"] for row in rows.values())
    assert all(rows[clip_id]["vision_values"] == clean[clip_id]["vision_values"] for clip_id in clean)
    again = corrupt_split(original, condition, tmp_path / "scratch", pool)
    assert again.reused and again.problems == made.problems


def test_extractors_of_others_see_the_corrupted_sound(fragile, tmp_path):
    with WorkerPool(1, TIMEOUT) as pool:
        made = corrupt_split(fragile.original(), Condition("audio.noise", -20), tmp_path / "scratch", pool)
    clean = fragile.rows()
    for clip_id, row in rows_of(made.dataset).items():
        if row["audio_values"]:
            assert row["audio_values"][0][0] > 3 * clean[clip_id]["audio_values"][0][0]


def test_the_same_media_under_two_ids_are_corrupted_as_two_clips(corpus, tmp_path, pool):
    manifest = read_manifest(corpus.manifest)
    twin = replace(manifest.clips[1], clip_id="extra/twin", video_id="extra")
    twins = build(tmp_path, replace(manifest, clips=(manifest.clips[1], twin)))
    made = corrupt_split(twins.original(), Condition("audio.spans", 0.5), tmp_path / "scratch", pool)
    one, other = rows_of(made.dataset).values()
    assert one["audio_values"] != other["audio_values"] and one["vision_values"] == other["vision_values"]


def test_the_chosen_split_is_the_one_that_is_copied(corpus, pool, tmp_path):
    made = corrupt_split(corpus.original("train"), Condition("text.words", 0.5), tmp_path, pool)
    assert len(rows_of(made.dataset, "train")) == 1 and not rows_of(made.dataset, "test")
    assert json.loads((made.dataset / "dataset.json").read_text())["clips"] == {"train": 1, "valid": 0, "test": 0}
    with pytest.raises(ValueError, match="the valid split has no clips with features"):
        corpus.original("valid")
    with pytest.raises(ValueError, match="no split 'tset'; choose one of train, valid, test"):
        corpus.original("tset")


def test_datasets_are_known_by_the_signatures_of_their_features(corpus, pool, tmp_path):
    made = corrupt_split(corpus.original(), Condition("text.words", 0.5), tmp_path, pool)
    modalities = json.loads((made.dataset / "dataset.json").read_text())["modalities"]
    signatures = {entry["signature"] for entry in modalities.values()}
    assert corrupted_folders(tmp_path, signatures | {"another"}) == {made.dataset.name}
    assert not corrupted_folders(tmp_path, signatures - {modalities["audio"]["signature"]})


def without_media(original: Original) -> Original:
    clips = [replace(clip, media="", sha256="") for clip in original.manifest.clips]
    return replace(original, manifest=replace(original.manifest, clips=clips))


def test_a_corpus_of_features_alone_names_what_can_be_corrupted_without_media(corpus, pool, tmp_path):
    original = without_media(corpus.original())
    with pytest.raises(
        ValueError, match=r"audio\.noise corrupts media files, and demo has none.*text\.words, text\.rec"
    ):
        corrupt_split(original, Condition("audio.noise", 0), tmp_path, pool)
    assert corrupt_split(original, Condition("text.words", 0.5), tmp_path, pool).dataset.is_dir()


def test_features_that_came_with_the_corpus_are_refused(corpus, pool, tmp_path):
    from extractors.base import FeatureSequence
    from extractors.store import FeatureMeta, FeatureWriter

    one, zero = np.ones(1, np.float32), np.zeros(1, np.int32)
    with FeatureWriter(
        tmp_path / "text", FeatureMeta("text", "text.imported", {}, "text.imported-v1", ("a",))
    ) as writer:
        for clip in read_manifest(corpus.manifest).clips:
            writer.write(clip.clip_id, FeatureSequence(one[:, None], one, one, one > 0, zero, zero - 1))
    brought = Corpus(corpus.root, {**corpus.features, "text": tmp_path / "text"})
    with pytest.raises(ValueError, match=r"text to be extracted again, but its features came with the corpus"):
        corrupt_split(brought.original(), Condition("text.words", 0.5), tmp_path / "scratch", pool)


def test_features_of_an_older_extractor_are_refused(corpus, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("extractors.corruption.dataset.made_by", lambda extractor, signature: False)
    with pytest.raises(
        ValueError, match=r"made by text\.words-v2-\w+, but this version of text\.words is text\.words-v2"
    ):
        corrupt_split(corpus.original(), Condition("text.words", 0.5), tmp_path, pool)


def test_a_split_without_transcripts_has_no_text_to_corrupt(corpus, pool, tmp_path):
    original = corpus.original()
    silent = [replace(clip, text="") for clip in original.manifest.clips]
    original = replace(original, manifest=replace(original.manifest, clips=silent))
    with pytest.raises(ValueError, match=r"no clip of the split has one; set a speech recogniser"):
        corrupt_split(original, Condition("text.words", 0.5), tmp_path, pool)
