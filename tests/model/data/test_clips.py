"""Reading the dataset on disk, and padding."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.config import MODALITIES
from model.data.clips import ClipTable
from model.data.info import read_info


@pytest.mark.parametrize("mapped", [False, True])
def test_a_batch_holds_each_clips_own_values_and_masks(dataset, tmp_path, mapped):
    table = ClipTable.read(dataset, "train", 100, tmp_path if mapped else None)
    raw = pq.read_table(dataset / "train" / "part-00000.parquet").to_pylist()
    rows = np.array([5, 0, 11])
    batch = table.batch(rows)
    assert batch.clip_ids == tuple(raw[i]["clip_id"] for i in rows)
    for m in ("text", "audio", "vision"):
        longest = max(len(raw[i][f"{m}_values"]) for i in rows)
        assert batch.values[m].shape[:2] == batch.masks[m].shape == (3, longest)
        for k, i in enumerate(rows):
            steps = len(raw[i][f"{m}_values"])
            if steps:
                np.testing.assert_array_equal(batch.values[m][k, :steps], np.float32(raw[i][f"{m}_values"]))
            assert batch.masks[m][k].tolist() == raw[i][f"{m}_mask"] + [False] * (longest - steps)
            assert not batch.values[m][k, steps:].any()
    np.testing.assert_array_equal(batch.labels, np.float32([raw[i]["label"] for i in rows]))


def test_a_modality_left_out_is_empty_like_a_missing_one(dataset):
    table = ClipTable.read(dataset, "train", 100)
    left_out = table.batch(np.array([3, 4]), ("text",))
    assert left_out.values["audio"].shape == (2, 0, 5)
    assert left_out.masks["vision"].shape == (2, 0)
    missing = table.batch(np.array([1]))  # clip 1 has no audio
    assert missing.values["audio"].shape == (1, 0, 5)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("clips_at_once", [1, 5, 256])
def test_several_parts_and_row_groups_read_as_one(dataset, tmp_path, monkeypatch, mapped, clips_at_once):
    monkeypatch.setattr("model.data.sequences._CLIPS_PER_BLOCK", clips_at_once)
    cache = tmp_path / "cache" if mapped else None
    whole = pq.read_table(dataset / "train" / "part-00000.parquet")
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset.json").write_bytes((dataset / "dataset.json").read_bytes())
    pq.write_table(whole.slice(0, 10), tmp_path / "train" / "part-00000.parquet", row_group_size=3)
    pq.write_table(whole.slice(10), tmp_path / "train" / "part-00001.parquet", row_group_size=4)
    one, many = ClipTable.read(dataset, "train", 100), ClipTable.read(tmp_path, "train", 100, cache)
    rows = np.arange(len(one))
    assert many.clip_ids.tolist() == one.clip_ids.tolist()
    for m in ("text", "audio", "vision"):
        assert (many.batch(rows).values[m] == one.batch(rows).values[m]).all()
        assert (many.batch(rows).masks[m] == one.batch(rows).masks[m]).all()


def test_longer_sequences_are_cut_and_counted(dataset):
    table, whole = ClipTable.read(dataset, "train", 6), ClipTable.read(dataset, "train", 100)
    lengths = whole.lengths()
    assert table.lengths().max() == 6
    assert [table.truncated[m] for m in ("text", "audio", "vision")] == (lengths > 6).sum(0).tolist()
    assert table.truncated["audio"] > 0


def test_mapped_values_are_not_read_into_memory_and_are_made_once(dataset, tmp_path):
    first = ClipTable.read(dataset, "train", 100, tmp_path)
    assert all(isinstance(s.values, np.memmap) for s in first.sequences.values())
    assert first.sequences["text"].values.dtype == np.float16
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    ClipTable.read(dataset, "train", 100, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == made


def test_a_dataset_that_was_written_again_is_mapped_again_and_the_old_files_go(dataset_writer, tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    before = ClipTable.read(dataset_writer(root), "test", 100, cache)
    ClipTable.read(root, "valid", 100, cache)
    after = ClipTable.read(dataset_writer(root, seed=1), "test", 100, cache)
    fresh = ClipTable.read(root, "test", 100)
    assert not np.array_equal(before.batch(np.arange(8)).labels, after.batch(np.arange(8)).labels)
    np.testing.assert_array_equal(after.batch(np.arange(8)).values["text"], fresh.batch(np.arange(8)).values["text"])
    assert len(list(cache.iterdir())) == 2  # the test split's and the valid split's


def test_a_modality_that_no_clip_has_is_mapped_as_nothing(dataset_writer, tmp_path):
    def silence(split: str, table: pa.Table) -> pa.Table:
        for name in ("audio_values", "audio_start", "audio_end", "audio_mask"):
            empty = pa.array([[]] * len(table), table.schema.field(name).type)
            table = table.set_column(table.column_names.index(name), name, empty)
        return table

    root = dataset_writer(tmp_path / "data", change=silence)
    batch = ClipTable.read(root, "test", 100, tmp_path / "cache").batch(np.arange(8))
    assert batch.values["audio"].shape == (8, 0, 5)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("bad", "modality"), [(np.nan, "audio"), (-np.inf, "vision"), (np.nan, "text")])
def test_values_that_are_not_finite_are_refused_naming_clip_and_modality(
    dataset_writer, tmp_path, bad, modality, mapped
):
    def spoil(split: str, table: pa.Table) -> pa.Table:
        name = f"{modality}_values"
        values = table[name].to_pylist()
        values[4][2][3] = bad
        return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))

    root, cache = dataset_writer(tmp_path / "data", change=spoil), tmp_path / "cache"
    with pytest.raises(ValueError, match=f"clip train/0004: {modality} holds .* at step 2, feature 3"):
        ClipTable.read(root, "train", 100, cache if mapped else None)
    assert not cache.is_dir() or not list(cache.iterdir())


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PAR1"])
def test_a_truncated_part_is_named(dataset_writer, tmp_path, damage, mapped):
    root = dataset_writer(tmp_path / "data")
    path = root / "test" / "part-00000.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"part-00000\.parquet: damaged .*; run the align stage again"):
        ClipTable.read(root, "test", 100, tmp_path / "cache" if mapped else None)


def test_flipped_bits_of_a_part_are_named_wherever_they_are(dataset_writer, tmp_path):
    root = dataset_writer(tmp_path / "data")
    path = root / "test" / "part-00000.parquet"
    pq.write_table(pq.read_table(path), path, compression="zstd", write_page_checksum=True)  # as align does
    content, chance, named = path.read_bytes(), np.random.default_rng(0), 0
    for position in chance.choice(len(content), 100, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        try:
            ClipTable.read(root, "test", 100)
        except ValueError as error:
            assert str(path.parent) in str(error) and "run the align stage again" in str(error)
            named += 1
    assert named > 50


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"schema_version": 2}'])
def test_a_damaged_description_is_named(dataset_writer, tmp_path, content):
    root = dataset_writer(tmp_path)
    (root / "dataset.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset\.json: .*run the align stage again"):
        ClipTable.read(root, "train", 100)


@pytest.mark.parametrize("file", ["audio_values.npy", "text_visible.npy", "vision_offsets.npy"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[4:], None])
def test_a_damaged_mapped_file_is_written_again(dataset, tmp_path, file, damage, caplog):
    ClipTable.read(dataset, "test", 100, tmp_path)
    (path,) = tmp_path.rglob(file)
    whole = path.read_bytes()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(whole))
    table = ClipTable.read(dataset, "test", 100, tmp_path)
    assert path.read_bytes() == whole and "will be written again" in caplog.text
    assert len(table.batch(np.arange(8)).labels) == 8


def test_clips_without_a_label_are_told_apart(dataset_writer, tmp_path):
    def unlabel(split: str, table: pa.Table) -> pa.Table:
        labels = [None, *table["label"].to_pylist()[1:]]
        return table.set_column(table.column_names.index("label"), "label", pa.array(labels, pa.float32()))

    table = ClipTable.read(dataset_writer(tmp_path, change=unlabel), "test", 100)
    assert table.labelled.tolist() == [False] + [True] * 7
    assert table.select(table.labelled).clip_ids[0] == "test/0001"


def test_clips_know_their_speakers_or_in_earlier_datasets_their_videos(dataset_writer, tmp_path):
    def with_speakers(split, table):
        return table.append_column("speaker", pa.array([f"{split} {i % 3}" for i in range(len(table))]))

    earlier = ClipTable.read(dataset_writer(tmp_path / "earlier"), "valid", 32)
    assert earlier.speakers.tolist() == ["valid"] * len(earlier)
    clips = ClipTable.read(dataset_writer(tmp_path / "now", change=with_speakers), "valid", 32)
    assert clips.speakers[:4].tolist() == ["valid 0", "valid 1", "valid 2", "valid 0"]
    assert clips.select(np.array([1, 5])).speakers.tolist() == ["valid 1", "valid 2"]


def test_what_is_missing_on_disk_is_named_with_the_stage_that_makes_it(dataset_writer, tmp_path):
    with pytest.raises(FileNotFoundError, match="dashfusion align"):
        read_info(tmp_path / "nowhere")
    root = dataset_writer(tmp_path)
    (root / "valid" / "part-00000.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="counts 8 clips"):
        ClipTable.read(root, "valid", 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=1), "dataset schema 1, this version reads 2"),
        (lambda d: d["modalities"].pop("vision"), "no entry for vision"),
        (lambda d: d["statistics"]["audio"]["std"].__setitem__(0, 0.0), "positive standard deviations"),
        (lambda d: d["modalities"]["text"].update(dim=13), "text is 12 wide, dataset.json says 13"),
    ],
)
def test_a_description_that_does_not_hold_is_refused(dataset_writer, tmp_path, change, message):
    root = dataset_writer(tmp_path)
    description = json.loads((root / "dataset.json").read_text())
    change(description)
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        ClipTable.read(root, "train", 100)


def test_a_clip_can_be_made_to_lack_a_modality(dataset):
    clips = ClipTable.read(dataset, "train", 32)
    rows = np.arange(len(clips)) % 2 == 0
    without = clips.drop_modality("audio", rows)
    lengths = without.lengths()
    assert not lengths[rows, 1].any() and np.array_equal(lengths[~rows], clips.lengths()[~rows])
    assert without.batch(np.arange(4)).incomplete >= {"audio"} and clips.lengths()[rows, 1].any()


def test_clips_in_memory_are_batched_as_those_on_disk(dataset):
    stored = ClipTable.read(dataset, "train", 10)
    whole = ClipTable.read(dataset, "train", 1000)
    clips = []
    for row in range(len(whole)):
        batch = whole.batch(np.array([row]))
        clips.append({m: (batch.values[m][0].numpy(), batch.masks[m][0].numpy()) for m in MODALITIES})
        for m in [m for m, (values, _) in clips[-1].items() if not len(values)]:
            del clips[-1][m]  # left out is missing
    given = ClipTable.from_clips(stored.info, stored.clip_ids.tolist(), clips, [""] * len(clips), 10)
    rows = np.arange(len(stored))
    a, b = stored.batch(rows), given.batch(rows)
    for m in MODALITIES:
        assert torch.equal(a.values[m], b.values[m]) and torch.equal(a.masks[m], b.masks[m])
    assert given.truncated == stored.truncated and given.truncated["audio"] > 0
    assert not given.labelled.any() and a.clip_ids == b.clip_ids
