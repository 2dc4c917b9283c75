"""Versioned Parquet tables: a schema version and other metadata as JSON in the file's schema metadata."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

METADATA_KEY = b"dashfusion"


def versioned_schema(
    fields: pa.Schema | Sequence[pa.Field], version: int, metadata: Mapping[str, Any], *, sort_keys: bool = False
) -> pa.Schema:
    """Return a schema with the version and the metadata attached."""
    payload = json.dumps({"schema_version": version, **metadata}, sort_keys=sort_keys)
    return pa.schema(fields, {METADATA_KEY: payload.encode()})


def write_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Write rows as Parquet (zstd); the file appears whole or not at all."""
    table = pa.Table.from_pylist(rows, schema=schema)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return a stored schema's metadata; empty where it has none of ours."""
    metadata: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    return metadata


def check_version(
    schema: pa.Schema, version: int, path: Path, *, kind: str, remedy: str, error: type[ValueError] = ValueError
) -> dict[str, Any]:
    """Return a stored schema's metadata without its schema version.

    Args:
        schema: the file's.
        version: the one expected.
        path: the file's path, for messages.
        kind: what the file should be, such as `manifest`, for messages.
        remedy: what the user should do, for messages.
        error: type of the exception.

    Raises:
        ValueError: there is no such metadata, or another version; of the type `error`.
    """
    metadata = read_metadata(schema)
    if not metadata:
        raise error(f"{path}: a Parquet file, but not a {kind} (no `dashfusion` metadata); {remedy}")
    found = metadata.pop("schema_version", None)
    if found != version:
        raise error(f"{path}: {kind} schema {found}, this version reads {version}; {remedy}")
    return metadata
