"""A split's Parquet columns as flat arrays, in memory or memory-mapped.

Parquet is compressed and nested: reading one clip decodes its whole row group. For memory mapping, a split is therefore
decoded once, a few clips at a time, into one `.npy` per modality; a batch then touches the pages of its clips only.

Shapes: N clips of a split, S steps of all clips together, D features of a modality.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import shutil
from contextlib import contextmanager
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
"""Version of the mapped files' layout."""

_CLIPS_PER_BLOCK = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sequences:
    """One modality of N clips, concatenated in time.

    Attributes:
        values: [S, D] float16 or float32 features, or [S] int32 token ids.
        visible: [S] bool, True where a step is visible to the network.
        starts: [N] first row of each clip.
        lengths: [N] steps of each clip; 0 = the modality is missing.
    """

    values: np.ndarray
    visible: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def release(self) -> None:
        """Unmap pages from this process after reading; they stay in the system's page cache.

        Read-ahead maps neighbouring pages too, so without this the process would end up holding the whole file.
        """
        for array in (self.values, self.visible):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # not in NumPy's stubs


def fingerprint(files: Sequence[Path]) -> str:
    """Hash names, sizes and modification times to 16 hex digits, which change when a file is written again."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def read_column(parts: Sequence[Path], name: str) -> pa.Array:
    """Read one column of all parts as one array.

    Raises:
        ValueError: a part is damaged, or lacks the column.
    """
    tables = []
    for path in parts:
        with _reading(path), pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            tables.append(file.read([name]).select([name]))
    return pa.concat_tables(tables)[name].combine_chunks()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ValueError naming the file, whatever Arrow raises when it reads damaged bytes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: damaged ({cause}); run the align stage again") from error


def read_sequences(
    parts: Sequence[Path], dims: Mapping[str, int], clip_ids: np.ndarray, cache: Path | None
) -> dict[str, Sequences]:
    """Read the modalities of a split.

    Args:
        parts: the files of a split, or of several.
        dims: modality -> expected D.
        clip_ids: [N], for error messages.
        cache: folder for the mapped files. They are written if missing, unreadable, or if `parts` have changed, and
            then replace the older ones of this split. None: decode into memory.

    Raises:
        ValueError: a damaged file, unexpected width, masks that do not match the values, or values that are NaN or
            infinite; the message names the file, or clip and modality.
    """
    if cache is None:
        return {m: _Column(parts, m, dim, clip_ids).decode() for m, dim in dims.items()}
    splits = list(dict.fromkeys(part.parent.resolve() for part in parts))
    name = "+".join(split.name for split in splits)
    prefix = f"{name}-{hashlib.sha256(' '.join([*map(str, splits), *dims]).encode()).hexdigest()[:8]}"
    folder = Path(cache) / f"{prefix}-{LAYOUT}-{fingerprint(parts)}"
    mapped = _open_mapped(folder, dims)
    if mapped is None:
        with atomic_folder(folder) as temporary:
            for m, dim in dims.items():
                _Column(parts, m, dim, clip_ids).write(temporary)
        for older in folder.parent.glob(f"{prefix}-*"):
            if older != folder:
                shutil.rmtree(older, ignore_errors=True)
        mapped = _open_mapped(folder, dims)
        if mapped is None:
            raise OSError(f"{folder}: cannot be read after it was written; check the disk")
    return mapped


def _open_mapped(folder: Path, dims: Mapping[str, int]) -> dict[str, Sequences] | None:
    """Open the mapped files; None if there are none, or only damaged ones."""
    if not folder.is_dir():
        return None
    mapped = {}
    try:
        for m, dim in dims.items():
            offsets = np.load(folder / f"{m}_offsets.npy")
            values = np.load(folder / f"{m}_values.npy", mmap_mode="r")
            visible = np.load(folder / f"{m}_visible.npy", mmap_mode="r")
            if values.shape != (offsets[-1], dim) or visible.shape != values.shape[:1]:
                raise ValueError(f"{m} has {values.shape} values and {visible.shape} flags for {offsets[-1]} steps")
            mapped[m] = Sequences(values, visible, offsets[:-1], np.diff(offsets))
    except (OSError, ValueError, EOFError) as error:
        _log.warning("%s is damaged (%s) and will be written again", folder, error)
        return None
    return mapped


class _Column:
    """One modality's column of a split: offsets and visibility in memory, values decoded a few clips at a time."""

    def __init__(self, parts: Sequence[Path], modality: str, dim: int, clip_ids: np.ndarray) -> None:
        masks = read_column(parts, f"{modality}_mask")
        with _reading(parts[0]):
            field = pq.read_schema(parts[0]).field(f"{modality}_values").type.value_type
            self.dtype: np.dtype = pa.array([], field.value_type).to_numpy(zero_copy_only=False).dtype
            self.offsets = masks.offsets.to_numpy().astype(np.int64)
            self.visible_S = masks.values.to_numpy(zero_copy_only=False).astype(bool)
            width = field.list_size
        if width != dim:
            raise ValueError(
                f"{parts[0].parent}: {modality} is {width} wide, dataset.json says {dim}; run the align stage again"
            )
        self.parts, self.modality, self.clip_ids = parts, modality, clip_ids
        self.shape = len(self.visible_S), dim

    def decode(self) -> Sequences:
        """Decode the values into memory."""
        values_SD, first = np.empty(self.shape, self.dtype), 0
        for block in self._blocks():
            values_SD[first : first + len(block)] = block
            first += len(block)
        return Sequences(values_SD, self.visible_S, self.offsets[:-1], np.diff(self.offsets))

    def write(self, folder: Path) -> None:
        """Write offsets, visibility and values as .npy files, with one block of values in memory at a time."""
        np.save(folder / f"{self.modality}_offsets.npy", self.offsets)
        np.save(folder / f"{self.modality}_visible.npy", self.visible_S)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        with (folder / f"{self.modality}_values.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in self._blocks():
                block.tofile(file)

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yield the values [s, D] of a few clips at a time, after checking them against the masks."""
        name, clip = f"{self.modality}_values", 0
        for part in self.parts:
            with _reading(part), pq.ParquetFile(part, memory_map=True, page_checksum_verification=True) as file:
                for batch in file.iter_batches(_CLIPS_PER_BLOCK, columns=[name]):
                    column = batch.column(0)
                    expected = self.offsets[clip : clip + len(column) + 1]
                    if not np.array_equal(np.diff(column.offsets.to_numpy()), np.diff(expected)):
                        raise ValueError(
                            f"{part}: {self.modality}_mask and {name} differ in length; run the align stage again"
                        )
                    steps = column.flatten()
                    values = steps.flatten().to_numpy(zero_copy_only=False).reshape(len(steps), steps.type.list_size)
                    _check_finite(values, expected - expected[0], self.clip_ids[clip:], self.modality)
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
