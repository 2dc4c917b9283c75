"""A split's Parquet columns as flat arrays: in memory, or mapped from files that hold them as they are.

Parquet is compressed and nested: no clip can be read without decoding its row group. So a split is decoded once, a
few clips at a time, into one `.npy` a modality; a batch then touches the pages of its own clips and nothing else.

Shapes: N clips of a split, S steps of all clips together, D features of a modality.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.files import atomic_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LAYOUT = 1
"""Of the mapped files; raise it when they change."""

_CLIPS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Sequences:
    """One modality of N clips, laid end to end.

    Attributes:
        values: [S, D] float16 or float32; [S] int32 where a step is a token's id.
        visible: [S] bool, True where the network may look.
        starts: [N] first row of each clip.
        lengths: [N] steps of each clip; 0 = the modality is missing.
    """

    values: np.ndarray
    visible: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def release(self) -> None:
        """Take mapped pages out of this process's memory once they were read; the system's page cache keeps them.

        Every page that is touched brings its neighbours along: without this a process comes to hold the whole file.
        """
        for array in (self.values, self.visible):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)


def fingerprint(files: Sequence[Path]) -> str:
    """Names, sizes and times of change, as 16 hex digits: another one wherever a file was written again."""
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def read_column(parts: Sequence[Path], name: str) -> pa.Array:
    """One column of all parts as one array."""
    tables = [pq.read_table(path, columns=[name], memory_map=True) for path in parts]
    return pa.concat_tables(tables)[name].combine_chunks()


def read_sequences(
    parts: Sequence[Path], dims: Mapping[str, int], clip_ids: np.ndarray, cache: Path | None
) -> dict[str, Sequences]:
    """The modalities of a split.

    Args:
        parts: the split's files, all of one folder.
        dims: modality -> D that is expected.
        clip_ids: [N], for messages.
        cache: folder for the mapped files. They are made where they are missing or where `parts` have changed, and
            then replace the older ones of this split. None: decode into memory.

    Raises:
        ValueError: another width than expected, masks that do not fit, or values that are NaN or infinite; the
            message names clip and modality.
    """
    if cache is None:
        return {m: _decode(parts, m, dim, clip_ids, None) for m, dim in dims.items()}
    split = parts[0].parent.resolve()
    kind = f"{split.name}-{hashlib.sha256(' '.join([str(split), *dims]).encode()).hexdigest()[:8]}"
    folder = Path(cache) / f"{kind}-{LAYOUT}-{fingerprint(parts)}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            for m, dim in dims.items():
                _decode(parts, m, dim, clip_ids, temporary)
        for older in folder.parent.glob(f"{kind}-*"):
            if older != folder:
                shutil.rmtree(older, ignore_errors=True)
    return {m: _open(folder, m) for m in dims}


def _open(folder: Path, modality: str) -> Sequences:
    offsets = np.load(folder / f"{modality}_offsets.npy")
    values = np.load(folder / f"{modality}_values.npy", mmap_mode="r")
    visible = np.load(folder / f"{modality}_visible.npy", mmap_mode="r")
    return Sequences(values, visible, offsets[:-1], np.diff(offsets))


def _decode(
    parts: Sequence[Path], modality: str, dim: int, clip_ids: np.ndarray, folder: Path | None
) -> Sequences | None:
    """One modality in memory; or written to `folder`, of which no more than a few clips are in memory at a time."""
    masks = read_column(parts, f"{modality}_mask")
    offsets = masks.offsets.to_numpy().astype(np.int64)
    visible_S = masks.values.to_numpy(zero_copy_only=False).astype(bool)
    field = pq.read_schema(parts[0]).field(f"{modality}_values").type.value_type
    if field.list_size != dim:
        raise ValueError(
            f"{parts[0].parent}: {modality} is {field.list_size} wide, dataset.json says {dim}; "
            "run the align stage again"
        )
    blocks = _checked_blocks(parts, modality, offsets, clip_ids)
    shape, dtype = (len(visible_S), dim), pa.array([], field.value_type).to_numpy(zero_copy_only=False).dtype
    if folder is None:
        values_SD, first = np.empty(shape, dtype), 0
        for block in blocks:
            values_SD[first : first + len(block)] = block
            first += len(block)
        return Sequences(values_SD, visible_S, offsets[:-1], np.diff(offsets))
    np.save(folder / f"{modality}_offsets.npy", offsets)
    np.save(folder / f"{modality}_visible.npy", visible_S)
    with open(folder / f"{modality}_values.npy", "wb") as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        for block in blocks:
            block.tofile(handle)
    return None


def _checked_blocks(
    parts: Sequence[Path], modality: str, offsets: np.ndarray, clip_ids: np.ndarray
) -> Iterator[np.ndarray]:
    """The clips' values [s, D], some clips at a time, lengths and values checked against the masks' offsets."""
    name, clip = f"{modality}_values", 0
    for part in parts:
        with pq.ParquetFile(part, memory_map=True) as file:
            for batch in file.iter_batches(_CLIPS_AT_ONCE, columns=[name]):
                column = batch.column(0)
                expected = offsets[clip : clip + len(column) + 1]
                if not np.array_equal(np.diff(column.offsets.to_numpy()), np.diff(expected)):
                    raise ValueError(f"{part}: {modality}_mask and {name} differ in length; run the align stage again")
                steps = column.flatten()
                values = steps.flatten().to_numpy(zero_copy_only=False).reshape(len(steps), steps.type.list_size)
                _check_finite(values, expected - expected[0], clip_ids[clip:], modality)
                yield values
                clip += len(column)


def _check_finite(values_SD: np.ndarray, offsets: np.ndarray, clip_ids: np.ndarray, modality: str) -> None:
    """Raise ValueError naming the first clip with a NaN or infinite value."""
    finite = np.isfinite(values_SD)
    if finite.all():
        return
    row, feature = (int(i) for i in np.argwhere(~finite)[0])
    clip = int(np.searchsorted(offsets, row, side="right")) - 1
    raise ValueError(
        f"clip {clip_ids[clip]}: {modality} holds {values_SD[row, feature]} at step {row - offsets[clip]}, "
        f"feature {feature}; features must be finite: extract {modality} again and run the align stage"
    )
