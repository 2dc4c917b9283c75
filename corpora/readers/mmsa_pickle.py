"""Reader of features in MMSA's format: a pickle of splits, or a folder of such pickles with one modality each.

A pickle is `{"train": {...}, "valid": {...}, "test": {...}}`. Each split has `id`, `raw_text`, `regression_labels` (and
`_T`, `_A`, `_V`), and for each modality an array [N, T, D] (or [N, D], or a list of N arrays [T, D]) with
`<modality>_lengths`. `text_bert` [N, 3, T] holds token ids, attention mask and segment ids.

N clips, T steps including padding, D features.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, straddling, validate
from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps, clean, even_times, not_finite
from corpora.readers.restricted_pickle import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from corpora.problems import Problem

SUFFIXES = (".pkl", ".pickle")

MAX_LIST_VALUES = 1 << 25
"""Limit of a clip's values that are stored as lists and not as an array."""

LABELS = {
    "label": "regression_labels",
    "label_text": "regression_labels_T",
    "label_audio": "regression_labels_A",
    "label_vision": "regression_labels_V",
}
"""MMSA's name of each of the manifest's labels."""


@dataclass(frozen=True, slots=True)
class Published:
    """A file that MMSA publishes."""

    name: str
    language: str
    label_range: tuple[float, float]


_EN, _ZH = ("en", (-3.0, 3.0)), ("zh", (-1.0, 1.0))

PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": Published("MOSI unaligned_50", *_EN),
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": Published("MOSI aligned_50", *_EN),
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": Published("MOSEI unaligned_50", *_EN),
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": Published("MOSEI aligned_50", *_EN),
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": Published("SIMS unaligned_39", *_ZH),
}
"""The published files by their SHA-256."""


@dataclass(frozen=True, slots=True)
class _Split:
    """One split of one file.

    Attributes:
        where: file and split, for messages.
        keys: N keys (see `_keys`), by which the clips of several files are matched.
        content: the split's dict.
        row_of: first row of each key.
    """

    where: str
    keys: Sequence[str]
    content: Mapping[str, Any]
    row_of: Mapping[str, int]

    def rows(self, name: str) -> Any:
        """Return the column `name` with its N rows, or None where there is none.

        Raises:
            ValueError: it does not have N rows.
        """
        column = self.content.get(name)
        if column is None:
            return None
        if not isinstance(column, (list, tuple, np.ndarray)) or (isinstance(column, np.ndarray) and not column.ndim):
            raise ValueError(f"{self.where}: {name} is a {type(column).__name__}, not an array or list of clips")
        if len(column) != len(self.keys):
            raise ValueError(
                f"{self.where}: {name} has {len(column)} rows for {len(self.keys)} clips; the file is damaged or was "
                "put together wrongly"
            )
        return column

    def value(self, name: str, key: str) -> np.ndarray | None:
        """Return one clip's value in the column `name`; None where there is no such column or clip."""
        column, row = self.rows(name), self.row_of.get(key)
        return None if column is None or row is None else _array(column[row], f"{self.where}, {key}: {name}")


def read_mmsa(path: Path, *, corpus: str, language: str, label_range: tuple[float, float], root: str) -> ImportedCorpus:
    """Read a pickle, or a folder of pickles with one modality each, whose clips are matched by their ids.

    The features are not copied until `ImportedCorpus.read` iterates over them.

    The number of steps of a clip without padding is the first of these that the file provides:

    - `<modality>_lengths`;
    - the sum of `text_bert`'s attention mask: for text, and for audio and vision that are aligned with the text (equal
      number of steps including padding);
    - the position of the last step that is not all zeros.

    A step that is not all zeros counts as padding only if it is text and outside the attention mask. Some files are
    padded at the front: all-zero steps at the start of audio and vision are padding too, unless they are aligned with
    the text. If all steps are zero, the modality is missing.

    Args:
        path: the file or folder.
        corpus: name of the corpus in reports.
        language: ISO 639-1 code of every clip.
        label_range: minimum and maximum label.
        root: corpus root to record in the manifest, as the parameters give it.

    Raises:
        FileNotFoundError: there is no such file, or no pickle in the folder.
        ValueError: a pickle is refused (`RefusedPickleError`) or not in MMSA's format, or a published file has another
            language or label range than the parameters.
    """
    # Files
    paths = _pickles(Path(path))
    digests = [sha256_of(file) for file in paths]
    remarks = [_identify(file, digest, language, label_range) for file, digest in zip(paths, digests, strict=True)]
    files = [_read_splits(file) for file in paths]
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    splits_with = {column: _splits_with(column, files, paths) for column in (*MODALITIES, "text_bert")}

    # Clips
    rows = [row for split in SPLITS for row in _clips(split, files, language, sha256)]
    if not rows:
        raise ValueError(f"{path}: no clip in any of its splits; get it again")
    clips, problems = validate([(where, clip) for where, _, clip in rows], label_range)
    keys = {(clip.clip_id, clip.split): key for _, key, clip in rows}

    # Features
    source = _Source(splits_with, {clip.clip_id: (clip.split, keys[clip.clip_id, clip.split]) for clip in clips})
    names = {m: tuple(f"{m}_{i}" for i in range(source.width(m))) for m in MODALITIES if splits_with[m]}
    absent = [m for m in MODALITIES if not splits_with[m]]
    if "text" in absent:
        remarks.append("no text features in it: the transcripts are encoded by the extractor of extract.text")
    remarks += [f"no {m} features in it: {m} is missing in every clip" for m in absent if m != "text"]
    manifest = Manifest(corpus, root, label_range, tuple(clips))
    return ImportedCorpus(manifest, [*problems, *straddling(clips)], sha256, remarks, names, source.read)


def _pickles(path: Path) -> list[Path]:
    """List the pickles at a path."""
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"{path}: no .pkl file here; set prepare.root to MMSA's pickle, or to a folder with one for each modality"
        )
    return found


def _identify(path: Path, digest: str, language: str, label_range: tuple[float, float]) -> str:
    """Return a remark on whether MMSA publishes the file.

    Raises:
        ValueError: MMSA does, with another language or label range.
    """
    known = PUBLISHED.get(digest)
    if known is None:
        return f"{path.name}: SHA-256 {digest} is not one that MMSA publishes (as expected for your own features)"
    if (known.language, known.label_range) != (language, label_range):
        low, high = known.label_range
        raise ValueError(
            f"{path}: this is MMSA's {known.name}, in {known.language} with labels in [{low:g}, {high:g}], but the "
            f"parameters say {language} and {list(label_range)}; set prepare.language={known.language} and "
            f"prepare.label_range=[{low:g},{high:g}]"
        )
    return f"{path.name}: MMSA's {known.name}, unchanged (SHA-256 {digest[:12]}...)"


def _read_splits(path: Path) -> dict[str, _Split]:
    """Load a file and return its splits."""
    content = load(path)
    if not isinstance(content, dict) or not any(isinstance(content.get(split), dict) for split in SPLITS):
        found = ", ".join(map(reprlib.repr, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: a pickle, but not in MMSA's format: a dict of {', '.join(SPLITS)} is needed, found {found}"
        )
    splits = {}
    for name in SPLITS:
        split, where = content.get(name), f"{path.name}, {name}"
        if split is None:
            continue
        if not isinstance(split, dict):
            raise ValueError(f"{where}: a {type(split).__name__}, not a dict of id, raw_text, audio, ...")
        keys = _keys(name, split)
        splits[name] = _Split(where, keys, split, {key: row for row, key in reversed([*enumerate(keys)])})
    return splits


def _keys(split: str, content: Mapping[str, Any]) -> list[str]:
    """Return a key for each clip: its id, such as `video$_$clip`; numbers are prefixed with their split."""
    ids = content.get("id")
    if ids is None:
        sizes = [len(column) for column in content.values() if isinstance(column, (list, np.ndarray))]
        return [f"{split}_{row}" for row in range(sizes[0] if sizes else 0)]
    keys = []
    for value in ids:
        if isinstance(value, (list, tuple, np.ndarray)) and len(value):  # [id], or [id, start, end] in older files
            value = value[0]
        if not isinstance(value, (str, bytes, int, float, np.number)):
            raise ValueError(f"{split}: an id is a {type(value).__name__}; write strings, such as video$_$clip")
        keys.append(_string(value) if isinstance(value, (str, bytes)) else f"{split}_{value}")
    return keys


def _string(value: Any) -> str:
    """Return a string that UTF-8 can encode, or decoded bytes; an empty string for anything else (None, NaN)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _array(value: Any, where: str) -> np.ndarray:
    """Convert an array, a list of numbers, or a list of lists or arrays of numbers to an array.

    Raises:
        ValueError: the value is nested deeper, or has more than `MAX_LIST_VALUES` values. A small pickle can refer to
            one list many times.
    """
    if isinstance(value, (list, tuple)):
        rows = [part for part in value if isinstance(part, (list, tuple, np.ndarray))]
        size = len(value) + sum(part.size if isinstance(part, np.ndarray) else len(part) for part in rows)
        if size > MAX_LIST_VALUES:
            raise ValueError(f"{where}: a list of {size:,} values; save it as an array")
        flat = (part.ravel() if isinstance(part, np.ndarray) else part for part in rows)
        if any(isinstance(item, (list, tuple, dict, set, np.ndarray)) for part in flat for item in part):
            raise ValueError(f"{where}: lists in lists of lists; save it as an array")
    return np.asarray(value)


def _ids(key: str) -> tuple[str, str]:
    """Split `video$_$clip` or `video[clip]` into video and clip; any other key is the clip `0` of a video."""
    if "$_$" in key:
        video, _, clip = key.rpartition("$_$")
        return video, clip
    segment = re.fullmatch(r"(.+)\[([0-9]+)\]", key)
    return (segment[1], segment[2]) if segment else (key, "0")


def _splits_with(name: str, files: Sequence[Mapping[str, _Split]], paths: Sequence[Path]) -> Mapping[str, _Split]:
    """Return the splits of the only file that has the column `name`; an empty mapping if no file has it."""
    owners = [i for i, file in enumerate(files) if any(name in split.content for split in file.values())]
    if len(owners) > 1:
        raise ValueError(
            f"{paths[owners[0]].name} and {paths[owners[1]].name} both hold {name}; set prepare.root to one of "
            "them, or leave in the folder one file for each modality"
        )
    return {s: split for s, split in files[owners[0]].items() if name in split.content} if owners else {}


def _clips(
    name: str, files: Sequence[Mapping[str, _Split]], language: str, sha256: str
) -> Iterator[tuple[str, str, Clip]]:
    """Yield (place for messages, key, clip) for each clip of a split.

    Text and labels are those of the first file that has them.
    """
    splits = [file[name] for file in files if name in file]
    if not splits:
        return
    texts, labels = _first(splits, "raw_text"), {field: _first(splits, column) for field, column in LABELS.items()}
    for row, key in enumerate(splits[0].keys):
        where = f"{splits[0].where}, row {row}"
        video, clip = _ids(key)
        values: dict[str, Any] = {
            field: _label(column[key], f"{where}: {LABELS[field]}") for field, column in labels.items() if key in column
        }
        text = _string(texts.get(key)).strip()
        yield where, key, Clip(f"{video}/{clip}", video, name, language, "", text, **values, sha256=sha256)


def _first(splits: Sequence[_Split], name: str) -> dict[str, Any]:
    """Return a column by key from the first file that has it; a repeated key has the value of its first row."""
    for split in splits:
        column = split.rows(name)
        if column is not None:
            return {key: column[row] for key, row in split.row_of.items()}
    return {}


def _label(value: Any, where: str) -> float | None:
    """Convert a label; None or NaN gives None."""
    if value is None:
        return None
    array = _array(value, where).reshape(-1)
    if len(array) != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"{where} is {reprlib.repr(value)}, not a number")
    return None if math.isnan(array[0]) else float(array[0])


class _Source:
    """The values of all modalities, read clip by clip.

    Args:
        splits_with: for each modality, and `text_bert`, the splits that have this column.
        keys: clip_id -> split and key, in the manifest's order.
    """

    def __init__(self, splits_with: Mapping[str, Mapping[str, _Split]], keys: Mapping[str, tuple[str, str]]) -> None:
        self._splits_with, self._keys = splits_with, keys

    def width(self, modality: str) -> int:
        """Return D; 0 where no split has a clip.

        Raises:
            ValueError: it is not the same in all splits.
        """
        widths = {}
        for split in self._splits_with[modality].values():
            value = split.value(modality, split.keys[0]) if split.keys else None
            if value is not None:
                widths[split.where] = _sequence(value, split.where, modality).shape[1]
        if len(set(widths.values())) > 1:
            found = "; ".join(f"{where}: {width}" for where, width in widths.items())
            raise ValueError(f"{modality} is not of one width in all splits ({found}); import them as separate corpora")
        return next(iter(widths.values()), 0)

    def read(self, modality: str) -> Iterator[tuple[str, ImportedSteps, Problem | None]]:
        """Yield (clip_id, steps, problem or None) for each clip, in the manifest's order."""
        width = self.width(modality)
        for clip_id, (split, key) in self._keys.items():
            row, where = np.empty((0, width)), ""
            owner = self._splits_with[modality].get(split)
            value = owner.value(modality, key) if owner else None
            if owner and value is not None:
                where = f"{owner.where}, {key}"
                row = _sequence(value, where, modality)
            if row.shape[1] != width:
                raise ValueError(f"{where}: {modality} is {row.shape[1]} wide, in other clips {width}")
            start, length = self._start(modality, split, key, row), self._length(modality, split, key, row)
            values, valid, replaced = clean(row[start:length])
            ids = self._token_ids(split, key, len(row))[:length] if modality == "text" else None
            steps = ImportedSteps(values, *even_times(len(values)), valid, replaced, ids)
            yield clip_id, steps, not_finite(clip_id, modality, steps)

    def _length(self, modality: str, split: str, key: str, row: np.ndarray) -> int:
        """Return the number of steps without padding of a clip's row [T, D] (see `read_mmsa`)."""
        extent = _extent(row)
        if not extent:  # only padding: the modality is missing, whatever the declared length
            return 0
        declared = self._splits_with[modality][split].value(f"{modality}_lengths", key)
        if declared is not None:
            return min(max(int(declared.reshape(-1)[0]), extent), len(row))
        bert = self._bert(split, key)
        if bert is None or bert.shape[1] != len(row):
            return extent
        tokens = int(np.count_nonzero(bert[1]))
        if modality == "text":
            return tokens or extent
        return max(tokens, extent) if self._is_aligned(split, key, row) else extent

    def _start(self, modality: str, split: str, key: str, row: np.ndarray) -> int:
        """Return the number of steps of padding at the front of a clip's row [T, D] (see `read_mmsa`)."""
        filled = row.any(axis=1)
        return (
            0 if modality == "text" or not filled.any() or self._is_aligned(split, key, row) else int(filled.argmax())
        )

    def _is_aligned(self, split: str, key: str, row: np.ndarray) -> bool:
        """Return whether the clip's text has as many steps, with padding, as this row."""
        owner = self._splits_with["text"].get(split)
        text = owner.value("text", key) if owner else None
        return text is not None and len(np.atleast_2d(text)) == len(row)

    def _token_ids(self, split: str, key: str, steps: int) -> np.ndarray:
        """Return token ids [T] int32; -1 where the file has none."""
        bert = self._bert(split, key)
        if bert is None or bert.shape[1] != steps:
            return np.full(steps, -1, np.int32)
        token_ids: np.ndarray = bert[0].astype(np.int32)
        return token_ids

    def _bert(self, split: str, key: str) -> np.ndarray | None:
        """Return a clip's token ids, mask and segment ids [3, T]; None where the file has none."""
        owner = self._splits_with["text_bert"].get(split)
        bert = owner.value("text_bert", key) if owner else None
        if owner and bert is not None and (bert.ndim != 2 or len(bert) != 3):
            raise ValueError(f"{owner.where}, {key}: text_bert is {bert.shape}, not [3, T]")
        return bert


def _sequence(value: np.ndarray, where: str, modality: str) -> np.ndarray:
    """Return a clip's values as [T, D], after a check that they are numbers."""
    if value.ndim not in (1, 2) or value.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {modality} of a clip is {value.shape} of {value.dtype}, not numbers [T, D] or [D]")
    return value if value.ndim == 2 else value[None]


def _extent(row: np.ndarray) -> int:
    """Return the number of steps up to the last that is not all zeros; NaN is not zero."""
    filled = np.flatnonzero(row.any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else 0
