"""Tables carry their schema version, and others are refused by name."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.manifest import MANIFEST_SCHEMA, Clip, Manifest, read_manifest, write_manifest
from corpora.tables import check_version, read_metadata, versioned_schema, write_table


def test_metadata_come_back_without_the_version(tmp_path):
    schema = versioned_schema(pa.schema([("a", pa.int32())]), 3, {"corpus": "ünïcode"})
    write_table([{"a": 1}], schema, tmp_path / "new" / "table.parquet")
    table = pq.read_table(tmp_path / "new" / "table.parquet")
    assert table.to_pylist() == [{"a": 1}]
    assert read_metadata(table.schema) == {"schema_version": 3, "corpus": "ünïcode"}
    assert check_version(table.schema, 3, tmp_path, kind="table", remedy="") == {"corpus": "ünïcode"}


def test_a_manifest_of_another_version_or_none_is_refused(tmp_path):
    path = tmp_path / "manifest.parquet"
    manifest = Manifest("mine", "data", (-3.0, 3.0), (Clip("v/1", "v", "train", "en", "", "fine", 1.0),))
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest
    earlier = pq.read_table(path).drop(["speaker", "gender"])  # columns that earlier versions did not have
    pq.write_table(earlier, path)
    assert read_manifest(path) == manifest
    write_table([], versioned_schema(MANIFEST_SCHEMA, 99, {}), path)
    with pytest.raises(ValueError, match=r"manifest schema 99, this version reads 1; run the prepare stage again"):
        read_manifest(path)
    write_table([], MANIFEST_SCHEMA, path)
    with pytest.raises(ValueError, match=r"not a manifest .*; run the prepare stage again"):
        read_manifest(path)
