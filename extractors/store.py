"""The feature store: a folder per modality with Parquet shards of one row per clip, in the manifest's order.

`FeatureWriter` and `FeatureReader` write and read the features of one modality; `ShardWriter` writes the shards of any
such table in bounded memory.
Shapes: T steps, D features.
"""

from __future__ import annotations

import functools
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_file, atomic_folder
from corpora.tables import check_version, versioned_schema
from extractors.base import ExtractionError, FeatureSequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SCHEMA_VERSION = 1
SHARD_CLIPS = 512

GROUP_CLIPS, GROUP_BYTES = 64, 1 << 19
"""Maximum size of a row group in clips and in bytes; small, because reading a clip decodes its whole group."""


class StoreError(ValueError):
    """A store on disk cannot be used. The message names the file and the stage to run again."""


def sequence_type(dim: int) -> pa.DataType:
    """Return the Arrow type of [T, dim] float32 values, without nulls."""
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    return pa.list_(pa.field("element", vector, nullable=False))


def list_type(item: pa.DataType) -> pa.DataType:
    """Return the Arrow type of a [T] array, without nulls."""
    return pa.list_(pa.field("element", item, nullable=False))


def _is_sequence(kind: pa.DataType) -> bool:
    """Return whether a type is a `sequence_type`, of any float width."""
    return bool(pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type))


def _to_arrow(items: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column with one item per row: numpy arrays for list types, plain values otherwise."""
    if pa.types.is_dictionary(kind):
        return pa.array(items, kind.value_type).dictionary_encode().cast(kind)
    if not pa.types.is_list(kind):
        return pa.array(items, kind)
    offsets = np.zeros(len(items) + 1, np.int32)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    element, flat = kind.value_type, np.concatenate(items)
    if pa.types.is_fixed_size_list(element):
        scalars = pa.array(flat.reshape(-1)).cast(element.value_type)
        child = pa.FixedSizeListArray.from_arrays(scalars, type=element)
    else:
        child = pa.array(flat).cast(element)
    return pa.ListArray.from_arrays(pa.array(offsets), child, type=kind)


def to_numpy(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets [rows + 1] and the flat items of a list column; row i is `flat[offsets[i]:offsets[i + 1]]`."""
    offsets = column.offsets.to_numpy()
    child = column.values
    if pa.types.is_fixed_size_list(child.type):
        flat = child.flatten().to_numpy(zero_copy_only=False)
        return offsets, flat.reshape(len(child), child.type.list_size)
    return offsets, child.to_numpy(zero_copy_only=False)


class ShardWriter:
    """Context manager that writes rows to the parts `part-00000.parquet`, `part-00001.parquet`, ... of a folder.

    The same rows in the same order give the same bytes. Without rows there is one part with the schema only. If the
    `with` block raises, the unfinished part is removed.
    """

    def __init__(self, folder: Path, schema: pa.Schema, shard_clips: int = SHARD_CLIPS) -> None:
        self.folder, self.schema, self.shard_clips = Path(folder), schema, shard_clips
        self.rows = 0
        self._group: list[Mapping[str, Any]] = []
        self._group_bytes = 0
        self._shards = 0
        self._in_shard = 0
        self._stack = ExitStack()
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is None:
            self._flush()
            if not self._shards:
                self._open()
            self._stack.close()
        else:
            self._stack.__exit__(kind, *details)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row: column name -> value, with numpy arrays for list columns."""
        self._group.append(row)
        self.rows += 1
        self._group_bytes += sum(value.nbytes for value in row.values() if isinstance(value, np.ndarray))
        full = len(self._group) == GROUP_CLIPS or self._group_bytes >= GROUP_BYTES
        if full or self._in_shard + len(self._group) == self.shard_clips:
            self._flush()

    def _open(self) -> pq.ParquetWriter:
        temporary = self._stack.enter_context(atomic_file(self.folder / f"part-{self._shards:05d}.parquet"))
        # Floats with their bytes split into streams are a tenth smaller and decode 1.5 times as fast
        split = [f"{field.name}.list.element.list.element" for field in self.schema if _is_sequence(field.type)]
        self._parquet = self._stack.enter_context(
            pq.ParquetWriter(
                temporary,
                self.schema,
                compression="zstd",
                use_dictionary=["extractor"],
                column_encoding=dict.fromkeys(split, "BYTE_STREAM_SPLIT"),
                write_page_checksum=True,
            )
        )
        self._shards += 1
        return self._parquet

    def _flush(self) -> None:
        if not self._group:
            return
        columns = [_to_arrow([row[field.name] for row in self._group], field.type) for field in self.schema]
        parquet = self._parquet or self._open()
        parquet.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self._in_shard += len(self._group)
        self._group.clear()
        self._group_bytes = 0
        if self._in_shard == self.shard_clips:
            self._stack.close()
            self._parquet, self._in_shard = None, 0


@dataclass(frozen=True, slots=True)
class FeatureMeta:
    """Metadata of a modality's store.

    Attributes:
        modality: text, audio or vision.
        extractor: registered name of the extractor.
        options: keyword arguments of the extractor.
        signature: signature of the extractor, see `extractors.base.Extractor`.
        feature_names: names of the D columns of the values, in order.
        versions: versions of the libraries that computed the values; empty in stores of earlier versions.
    """

    modality: str
    extractor: str
    options: Mapping[str, Any]
    signature: str
    feature_names: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)


def feature_schema(meta: FeatureMeta) -> pa.Schema:
    """Return the schema of a feature store, with `meta` and the schema version as metadata."""
    columns = {
        "clip_id": pa.string(),
        "values": sequence_type(len(meta.feature_names)),
        "start": list_type(pa.float32()),
        "end": list_type(pa.float32()),
        "valid": list_type(pa.bool_()),
        "extractor": pa.dictionary(pa.int32(), pa.string()),
    }
    if meta.modality == "text":
        columns |= {"token_ids": list_type(pa.int32()), "word_index": list_type(pa.int32())}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return versioned_schema(fields, SCHEMA_VERSION, asdict(meta), sort_keys=True)


def check_sequence(sequence: FeatureSequence, meta: FeatureMeta) -> None:
    """Check that a sequence has the columns that `meta` declares.

    Raises:
        ExtractionError: it does not.
    """
    width, dim = sequence.values.shape[1], len(meta.feature_names)
    if width != dim:
        raise ExtractionError(f"values are {width} wide, but {meta.extractor} names {dim} features")
    if meta.modality == "text" and (sequence.token_ids is None or sequence.word_index is None):
        raise ExtractionError(f"{meta.extractor} gave text features without token_ids and word_index")


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of a feature store: rows, rows with T = 0 (`missing`), steps of all rows, and failed clips."""

    rows: int
    missing: int
    steps: int
    failed: int


REFERENCE = "reference.safetensors"
"""File of a store with the features of the reference clip, see `extractors.execution.reference`; not in all stores."""


class FeatureWriter:
    """Context manager that writes a modality's store; the folder appears or is replaced when the block succeeds.

    Args:
        folder: folder of the store.
        meta: description of the features.
        shard_clips: maximum number of clips in a part.
        reference: file with the features of the reference clip, to copy; None if there is none.
    """

    def __init__(
        self, folder: Path, meta: FeatureMeta, shard_clips: int = SHARD_CLIPS, reference: Path | None = None
    ) -> None:
        self.meta = meta
        self._folder, self._shard_clips = Path(folder), shard_clips
        self._reference = reference
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(atomic_folder(self._folder))
        if self._reference is not None:
            shutil.copyfile(self._reference, temporary / REFERENCE)
        self._shards = self._stack.enter_context(ShardWriter(temporary, feature_schema(self.meta), self._shard_clips))
        return self

    def __exit__(self, *details: Any) -> None:
        self._stack.__exit__(*details)

    def write(self, clip_id: str, sequence: FeatureSequence) -> None:
        """Append a clip's features.

        Raises:
            ExtractionError: the sequence does not have the columns that the store declares.
        """
        check_sequence(sequence, self.meta)
        row = {name: getattr(sequence, name) for name in ("values", "start", "end", "valid")}
        row |= {"clip_id": clip_id, "extractor": self.meta.signature}
        row |= {"token_ids": sequence.token_ids, "word_index": sequence.word_index}
        self._shards.write(row)


class FeatureReader:
    """Reader of a modality's store, by clip or in stored order.

    Opening reads the `clip_id` columns only. Reading a clip decodes its row group, which is cached for the clips that
    follow.

    Attributes:
        meta: metadata of the store.
        clip_ids: identifiers of the clips, in stored order.

    Raises:
        FileNotFoundError: there is no store in the folder.
        StoreError: a part is damaged, missing, or of another schema version, modality or signature.
    """

    def __init__(self, folder: Path, modality: str) -> None:
        self.folder, self.modality = Path(folder), modality
        paths = sorted(self.folder.glob("part-*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{self.folder}: no {modality} features here; {self._remedy}")
        if [path.name for path in paths] != [f"part-{i:05d}.parquet" for i in range(len(paths))]:
            raise StoreError(f"{self.folder}: parts are missing before {paths[-1].name}; {self._remedy}")
        self._paths = paths
        self._footers: list[pq.FileMetaData] = []
        metas = [self._read_footer(path) for path in paths]
        self.meta = metas[0]
        for path, meta in zip(paths, metas, strict=True):
            if meta != self.meta:
                raise StoreError(
                    f"{path}: made by {meta.signature}, but {paths[0].name} by {self.meta.signature}; {self._remedy}"
                )
        self._index: dict[str, tuple[int, int, int]] = {}
        for shard, footer in enumerate(self._footers):
            with self._naming(paths[shard]):
                ids = iter(self._read(shard, range(footer.num_row_groups), ["clip_id"]).column("clip_id").to_pylist())
            for group in range(footer.num_row_groups):
                rows = range(footer.row_group(group).num_rows)
                self._index.update({clip_id: (shard, group, row) for row, clip_id in zip(rows, ids, strict=False)})
        if len(self._index) != sum(footer.num_rows for footer in self._footers):
            raise StoreError(f"{self.folder}: a clip_id is stored twice; {self._remedy}")
        self.clip_ids = tuple(self._index)
        self._group = functools.lru_cache(maxsize=2)(self._decode)

    @property
    def _remedy(self) -> str:
        return f"run the extract stage for {self.modality} again"

    @contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        """Raise StoreError naming the file, whatever Arrow or JSON raises when they read damaged bytes."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            cause = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise StoreError(f"{path}: damaged ({cause}); {self._remedy}") from error

    def _read_footer(self, path: Path) -> FeatureMeta:
        with self._naming(path):
            footer = pq.read_metadata(path)
            self._footers.append(footer)
            return self._read_meta(footer, path)

    def _read_meta(self, footer: pq.FileMetaData, path: Path) -> FeatureMeta:
        schema = footer.schema.to_arrow_schema()
        payload = check_version(
            schema, SCHEMA_VERSION, path, kind="feature store", remedy=self._remedy, error=StoreError
        )
        if payload["modality"] != self.modality:
            raise StoreError(
                f"{path}: {payload['modality']} features where {self.modality} features are expected; "
                f"correct the extractor under extract.{self.modality} and {self._remedy}"
            )
        meta = FeatureMeta(**(payload | {"feature_names": tuple(payload["feature_names"])}))
        if set(schema.names) != (expected := set(feature_schema(meta).names)):
            odd = ", ".join(sorted(set(schema.names) ^ expected))
            raise StoreError(f"{path}: not the columns of {self.modality} features ({odd}); {self._remedy}")
        if schema.field("clip_id").type != pa.string():
            raise StoreError(f"{path}: clip_id is {schema.field('clip_id').type}, not string; {self._remedy}")
        kind, dim = schema.field("values").type, len(meta.feature_names)
        vector = kind.value_type if pa.types.is_list(kind) else kind
        if not pa.types.is_fixed_size_list(vector) or vector.list_size != dim:
            raise StoreError(f"{path}: values are {kind}, not lists of {dim} floats per step; {self._remedy}")
        return meta

    def _read(self, shard: int, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        path = self._paths[shard]
        # Opened for each read, as a large store may have more parts than a process may have open files
        with (
            self._naming(path),
            pq.ParquetFile(path, metadata=self._footers[shard], page_checksum_verification=True) as file,
        ):
            return file.read_row_groups(groups, columns=columns)

    def _decode(self, shard: int, group: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        with self._naming(self._paths[shard]):
            table = self._read(shard, [group]).drop_columns(["clip_id", "extractor"])
            return {name: to_numpy(table.column(name).combine_chunks()) for name in table.column_names}

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._index

    def __iter__(self) -> Iterator[tuple[str, FeatureSequence]]:
        return ((clip_id, self[clip_id]) for clip_id in self.clip_ids)

    def valid_steps(self) -> dict[str, np.ndarray]:
        """Return the validity [T] bool of each clip's steps, in stored order, without reading the values.

        Raises:
            StoreError: a part is damaged.
        """
        columns = []
        for shard, footer in enumerate(self._footers):
            with self._naming(self._paths[shard]):
                table = self._read(shard, range(footer.num_row_groups), ["valid"])
                offsets, valid = to_numpy(table.column("valid").combine_chunks())
            columns += [valid[start:stop] for start, stop in pairwise(offsets)]
        return dict(zip(self.clip_ids, columns, strict=True))

    def steps(self) -> dict[str, int]:
        """Return the number of steps T of each clip, in stored order, without reading the values."""
        return {clip_id: len(valid) for clip_id, valid in self.valid_steps().items()}

    def __getitem__(self, clip_id: str) -> FeatureSequence:
        """Return a clip's features, with values as float32.

        Raises:
            KeyError: the clip is not in the store.
            StoreError: a value is not finite; the message names clip, modality and feature.
        """
        shard, group, row = self._index[clip_id]
        columns = self._group(shard, group)
        arrays = {name: flat[offsets[row] : offsets[row + 1]] for name, (offsets, flat) in columns.items()}
        arrays["values"] = arrays["values"].astype(np.float32, copy=False)
        try:
            return FeatureSequence(**arrays)
        except ExtractionError as error:
            bad = np.flatnonzero(~np.isfinite(arrays["values"]).all(axis=0))
            names = ", ".join(self.meta.feature_names[i] for i in bad[:5])
            raise StoreError(
                f"{self._paths[shard]}: clip {clip_id}, {self.modality}, feature {names}: {error}; "
                f"repair the source or {self._remedy}"
            ) from error
