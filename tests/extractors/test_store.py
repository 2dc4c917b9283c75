from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.files import atomic_folder
from corpora.tables import METADATA_KEY
from extractors import store
from extractors.base import ExtractionError, FeatureSequence
from extractors.store import FeatureMeta, FeatureReader, FeatureWriter, StoreError, feature_schema

AUDIO = FeatureMeta("audio", "fake.audio", {"hop": 0.5}, "fake.audio-v1-abc", ("loud", "pitch", "tone"))
TEXT = FeatureMeta("text", "fake.text", {}, "fake.text-v1-abc", ("h0", "h1"))
FIELDS = ("values", "start", "end", "valid", "token_ids", "word_index")


def sequence(steps: int, meta: FeatureMeta = AUDIO, seed: int = 0) -> FeatureSequence:
    rng = np.random.default_rng([seed, steps])
    values = rng.normal(size=(steps, len(meta.feature_names))).astype(np.float32)
    start = np.arange(steps, dtype=np.float32) / 2
    tokens = (None, None)
    if meta.modality == "text":
        tokens = (rng.integers(0, 99, steps, dtype=np.int32), np.arange(-1, steps - 1, dtype=np.int32))
    return FeatureSequence(values, start, start + np.float32(0.5), rng.random(steps) > 0.5, *tokens)


def fill(folder: Path, meta: FeatureMeta = AUDIO, clips: int = 150, **options: int) -> dict[str, FeatureSequence]:
    written = {f"v{i // 10}/{i:04d}": sequence(i % 7, meta, seed=i) for i in range(clips)}
    with FeatureWriter(folder, meta, **options) as writer:
        for clip_id, one in written.items():
            writer.write(clip_id, one)
    return written


def assert_same(found: FeatureSequence, expected: FeatureSequence) -> None:
    for name in FIELDS:
        left, right = getattr(found, name), getattr(expected, name)
        if right is None:
            assert left is None
        else:
            np.testing.assert_array_equal(left, right, err_msg=name)
            assert left.dtype == right.dtype, name


def test_valid_steps_of_all_clips_are_read_without_their_values(tmp_path):
    written = fill(tmp_path / "f", clips=30, shard_clips=12)
    found = FeatureReader(tmp_path / "f", "audio").valid_steps()
    assert list(found) == list(written)
    for clip_id, one in written.items():
        np.testing.assert_array_equal(found[clip_id], one.valid)


@pytest.mark.parametrize("meta", [AUDIO, TEXT])
def test_what_is_written_is_read_in_the_same_order(tmp_path, meta):
    written = fill(tmp_path / "f", meta)
    reader = FeatureReader(tmp_path / "f", meta.modality)
    assert reader.meta == meta
    assert reader.clip_ids == tuple(written)
    assert len(reader) == len(written)
    for clip_id, found in reader:
        assert_same(found, written[clip_id])


def test_any_clip_can_be_read_by_its_id_across_shards_and_row_groups(tmp_path):
    written = fill(tmp_path / "f", shard_clips=100)
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert pq.ParquetFile(tmp_path / "f" / "part-00000.parquet").num_row_groups == 2
    reader = FeatureReader(tmp_path / "f", "audio")
    for clip_id in np.random.default_rng(0).permutation(list(written)):
        assert_same(reader[clip_id], written[clip_id])
    assert "nobody/0" not in reader
    with pytest.raises(KeyError):
        reader["nobody/0"]


def test_the_steps_of_all_clips_are_known_without_their_values(tmp_path):
    written = fill(tmp_path / "f", shard_clips=100)
    steps = FeatureReader(tmp_path / "f", "audio").steps()
    assert steps == {clip_id: len(sequence) for clip_id, sequence in written.items()} and len(set(steps.values())) > 1


def test_row_groups_are_small_in_bytes_so_that_one_clip_is_read_quickly(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "GROUP_BYTES", 200)
    written = fill(tmp_path / "f")
    file = pq.ParquetFile(tmp_path / "f" / "part-00000.parquet")
    rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sum(rows) == 150 and max(rows) < 10
    reader = FeatureReader(tmp_path / "f", "audio")
    for clip_id in np.random.default_rng(0).permutation(list(written)):
        assert_same(reader[clip_id], written[clip_id])


def test_a_reader_holds_no_file_open(tmp_path):
    fill(tmp_path / "f", shard_clips=10)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = FeatureReader(tmp_path / "f", "audio")
    assert len(list(reader)) == 150
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_values_are_stored_with_their_bytes_taken_apart(tmp_path):
    fill(tmp_path / "f", clips=3)
    columns = pq.ParquetFile(tmp_path / "f" / "part-00000.parquet").metadata.row_group(0)
    assert "BYTE_STREAM_SPLIT" in columns.column(1).encodings


def test_the_same_rows_give_the_same_bytes(tmp_path):
    fill(tmp_path / "a", shard_clips=100)
    fill(tmp_path / "b", shard_clips=100)
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_columns_and_metadata_on_disk(tmp_path):
    fill(tmp_path / "f", TEXT, clips=3)
    schema = pq.read_schema(tmp_path / "f" / "part-00000.parquet")
    assert schema.names == [
        "clip_id",
        "values",
        "start",
        "end",
        "valid",
        "extractor",
        "token_ids",
        "word_index",
    ]
    assert schema.field("values").type.value_type.list_size == 2
    assert pa.types.is_dictionary(schema.field("extractor").type)
    assert json.loads(schema.metadata[METADATA_KEY]) == {
        "schema_version": 1,
        "modality": "text",
        "extractor": "fake.text",
        "options": {},
        "signature": "fake.text-v1-abc",
        "versions": {},
        "feature_names": ["h0", "h1"],
    }


def test_a_store_of_no_clips_can_be_read(tmp_path):
    fill(tmp_path / "f", clips=0)
    reader = FeatureReader(tmp_path / "f", "audio")
    assert len(reader) == 0 and list(reader) == [] and reader.meta == AUDIO


def test_a_new_store_replaces_the_old_one_whole(tmp_path):
    fill(tmp_path / "f", clips=150, shard_clips=50)
    fill(tmp_path / "f", clips=3)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert len(FeatureReader(tmp_path / "f", "audio")) == 3


def test_a_writer_that_fails_leaves_the_old_store(tmp_path):
    fill(tmp_path / "f", clips=3)
    with pytest.raises(OSError, match="disk"), FeatureWriter(tmp_path / "f", AUDIO) as writer:
        for i in range(100):
            writer.write(f"x/{i}", sequence(3))
        raise OSError("disk is full")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert len(FeatureReader(tmp_path / "f", "audio")) == 3


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    (tmp_path / ".f.tmp").mkdir()
    (tmp_path / ".f.tmp" / "part-00007.parquet").write_bytes(b"half")
    with atomic_folder(tmp_path / "f") as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_sequence_of_another_width_is_refused(tmp_path):
    refusal = pytest.raises(ExtractionError, match=r"2 wide, but fake\.audio names 3")
    with refusal, FeatureWriter(tmp_path / "f", AUDIO) as writer:
        writer.write("a/1", sequence(4, TEXT))
    assert not (tmp_path / "f").exists()


def test_float16_values_are_read_as_float32(tmp_path):
    written = fill(tmp_path / "f", clips=5)
    rewrite(tmp_path / "f", values=lambda column: column.cast(pa.list_(pa.list_(pa.float16(), 3))))
    for clip_id, found in FeatureReader(tmp_path / "f", "audio"):
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.values, written[clip_id].values.astype(np.float16).astype(np.float32))


def rewrite(folder: Path, metadata: dict | None = None, **columns) -> None:
    """Write a store's first part again with other metadata or columns, as other software would."""
    path = folder / "part-00000.parquet"
    table = pq.read_table(path)
    meta = table.schema.metadata if metadata is None else metadata
    for name, change in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, change(table.column(name).combine_chunks()))
    pq.write_table(table.replace_schema_metadata(meta), path)


def test_no_store_says_which_stage_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vision features here; run the extract stage for vision"):
        FeatureReader(tmp_path / "nowhere", "vision")


def test_another_schema_version_is_refused(tmp_path):
    fill(tmp_path / "f", clips=2)
    payload = json.loads(feature_schema(AUDIO).metadata[METADATA_KEY]) | {"schema_version": 99}
    rewrite(tmp_path / "f", {METADATA_KEY: json.dumps(payload)})
    with pytest.raises(
        StoreError, match=r"part-00000.parquet: feature store schema 99, .* run the extract stage for audio"
    ):
        FeatureReader(tmp_path / "f", "audio")


def test_features_of_another_modality_are_refused(tmp_path):
    fill(tmp_path / "f", clips=2)
    with pytest.raises(StoreError, match="audio features where vision features are expected"):
        FeatureReader(tmp_path / "f", "vision")


def test_a_parquet_file_that_is_no_store_is_refused(tmp_path):
    fill(tmp_path / "f", clips=2)
    rewrite(tmp_path / "f", {})
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureReader(tmp_path / "f", "audio")


def test_values_of_another_width_than_the_names_are_refused(tmp_path):
    fill(tmp_path / "f", clips=2)
    payload = json.loads(feature_schema(AUDIO).metadata[METADATA_KEY]) | {"feature_names": ["a", "b"]}
    rewrite(tmp_path / "f", {METADATA_KEY: json.dumps(payload)})
    with pytest.raises(StoreError, match="not lists of 2 floats"):
        FeatureReader(tmp_path / "f", "audio")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_part_is_named(tmp_path, keep):
    fill(tmp_path / "f", clips=20)
    path = tmp_path / "f" / "part-00000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(StoreError, match=r"part-00000.parquet: .*run the extract stage for audio again"):
        FeatureReader(tmp_path / "f", "audio")


def test_a_part_damaged_inside_is_named_when_it_is_read(tmp_path):
    fill(tmp_path / "f", clips=60)
    path = tmp_path / "f" / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    begin = pq.ParquetFile(path).metadata.row_group(0).column(1).dictionary_page_offset
    begin = begin or pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    content[begin : begin + 400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-00000.parquet: damaged"):
        list(FeatureReader(tmp_path / "f", "audio"))


@pytest.mark.parametrize("meta", [AUDIO, TEXT])
def test_flipped_bits_are_named_wherever_they_are(tmp_path, meta):
    written = fill(tmp_path / "f", meta, clips=12)
    path = tmp_path / "f" / "part-00000.parquet"
    content, chance = path.read_bytes(), np.random.default_rng(0)
    named = 0
    for position in chance.choice(len(content), 300, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        try:
            read = dict(FeatureReader(tmp_path / "f", meta.modality))
        except StoreError as error:
            assert str(path.parent) in str(error) and "run the extract stage" in str(error)
            assert "\n" not in str(error)
            named += 1
        else:
            assert list(read) == list(written)
    assert named > 150


def test_a_flipped_bit_in_the_values_is_noticed_by_the_pages_checksums(tmp_path):
    fill(tmp_path / "f", clips=60)
    path = tmp_path / "f" / "part-00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert column.path_in_schema.startswith("values")
    content = path.read_bytes()
    for position in range(column.data_page_offset + 100, column.data_page_offset + column.total_compressed_size, 50):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"part-00000.parquet: damaged"):
            list(FeatureReader(tmp_path / "f", "audio"))


def test_a_missing_part_is_noticed(tmp_path):
    fill(tmp_path / "f", clips=30, shard_clips=10)
    (tmp_path / "f" / "part-00001.parquet").unlink()
    with pytest.raises(StoreError, match=r"parts are missing before part-00002"):
        FeatureReader(tmp_path / "f", "audio")


def test_parts_of_two_extractors_are_refused(tmp_path):
    fill(tmp_path / "f", clips=10)
    other = FeatureMeta("audio", "fake.audio", {"hop": 1}, "fake.audio-v1-def", AUDIO.feature_names)
    with FeatureWriter(tmp_path / "g", other) as writer:
        writer.write("z/1", sequence(1))
    (tmp_path / "g" / "part-00000.parquet").rename(tmp_path / "f" / "part-00001.parquet")
    with pytest.raises(StoreError, match=r"made by fake.audio-v1-def, but part-00000.parquet by fake.audio-v1-abc"):
        FeatureReader(tmp_path / "f", "audio")


def test_a_clip_stored_twice_is_refused(tmp_path):
    with FeatureWriter(tmp_path / "f", AUDIO) as writer:
        for _ in range(2):
            writer.write("a/1", sequence(2))
    with pytest.raises(StoreError, match="stored twice"):
        FeatureReader(tmp_path / "f", "audio")


def test_nan_is_refused_with_clip_modality_and_feature(tmp_path):
    fill(tmp_path / "f", clips=9)

    def spoil(column: pa.ListArray) -> pa.ListArray:
        flat = column.values.flatten().to_numpy().copy()
        flat[3 * column.offsets[5].as_py() + 1] = np.nan
        child = pa.FixedSizeListArray.from_arrays(pa.array(flat), 3)
        return pa.ListArray.from_arrays(column.offsets, child)

    rewrite(tmp_path / "f", values=spoil)
    reader = FeatureReader(tmp_path / "f", "audio")
    reader["v0/0004"]
    with pytest.raises(StoreError, match=r"clip v0/0005, audio, feature pitch: .*step 0"):
        reader["v0/0005"]
