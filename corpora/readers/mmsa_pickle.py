"""Reading features in MMSA's format: a pickle of splits, or a folder of such pickles with a modality each.

`{"train": {...}, "valid": {...}, "test": {...}}`, each with `id`, `raw_text`, `regression_labels` (and `_T`, `_A`,
`_V`), and for each modality an array [N, T, D] (or [N, D], or a list of N arrays [T, D]) with `<modality>_lengths`;
`text_bert` [N, 3, T] holds token ids, their mask and segment ids. N clips, T steps, D features, L real steps.
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
from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest, validate
from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps, clean, even_times, not_finite
from corpora.readers.restricted_pickle import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from corpora.problems import Problem

LARGEST_LIST = 1 << 25
"""Values of a clip that come as lists, not as an array."""

LABELS = {
    "label": "regression_labels",
    "label_text": "regression_labels_T",
    "label_audio": "regression_labels_A",
    "label_vision": "regression_labels_V",
}
"""The manifest's name of each label, and MMSA's."""


@dataclass(frozen=True, slots=True)
class Published:
    """A file that MMSA publishes, by its SHA-256."""

    name: str
    language: str
    label_range: tuple[float, float]


PUBLISHED = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": Published(
        "MOSI unaligned_50", "en", (-3.0, 3.0)
    ),
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": Published("MOSI aligned_50", "en", (-3.0, 3.0)),
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": Published(
        "MOSEI unaligned_50", "en", (-3.0, 3.0)
    ),
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": Published(
        "MOSEI aligned_50", "en", (-3.0, 3.0)
    ),
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": Published(
        "SIMS unaligned_39", "zh", (-1.0, 1.0)
    ),
}


@dataclass(frozen=True, slots=True)
class _Split:
    """One split of one file, checked.

    Attributes:
        where: file and split, for messages.
        keys: [N] of `_keys`, by which the files of a folder are brought together.
        content: the split's dict.
        row_of: a key's first row.
    """

    where: str
    keys: Sequence[str]
    content: Mapping[str, Any]
    row_of: Mapping[str, int]

    def rows(self, name: str) -> Any:
        """The column `name`: N rows, or None where there is none.

        Raises:
            ValueError: it has another number of rows.
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

    def of(self, name: str, key: str) -> np.ndarray | None:
        """One clip's value in the column `name`; None where the column or the clip is not there."""
        column, row = self.rows(name), self.row_of.get(key)
        return None if column is None or row is None else _array(column[row], f"{self.where}, {key}: {name}")


def read_mmsa(path: Path, *, corpus: str, language: str, label_range: tuple[float, float], root: str) -> ImportedCorpus:
    """Read a pickle, or a folder of pickles with a modality each, whose clips are matched by their ids.

    The values are views of the files until `ImportedCorpus.read` goes through them. Real lengths are those of
    `<modality>_lengths`; of text, the mask of `text_bert`; of audio and vision as long as their text (an aligned
    file), the text's; else the clip ends with its last step that is not all zeros, as it does where that lies beyond
    a length of audio or vision. A clip whose steps are all zeros lacks the modality.

    Args:
        path: the file or folder.
        corpus: its name in reports.
        language: ISO 639-1 code of every clip.
        label_range: least and greatest label.
        root: what the manifest says of where its features lie.

    Raises:
        FileNotFoundError: nothing there, or no pickle in the folder.
        ValueError: a pickle that is refused (`RefusedPickleError`), or not in MMSA's format; a published file whose
            language or labels are not those of the parameters.
    """
    paths = _pickles(Path(path))
    digests = [sha256_of(file) for file in paths]
    remarks = [_known(file, digest, language, label_range) for file, digest in zip(paths, digests, strict=True)]
    files = [_read_splits(file) for file in paths]
    sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    homes = {m: _home(m, files, paths) for m in (*MODALITIES, "text_bert")}
    located = [row for split in SPLITS for row in _clips(split, files, language, sha256)]
    if not located:
        raise ValueError(f"{path}: no clip in any of its splits; get it again")
    clips, problems = validate([(where, clip) for where, _, clip in located], label_range)
    keys = {(clip.clip_id, clip.split): key for _, key, clip in located}
    source = _Source(homes, {clip.clip_id: (clip.split, keys[clip.clip_id, clip.split]) for clip in clips})
    names = {m: tuple(f"{m}_{i}" for i in range(source.width(m))) for m in MODALITIES if homes[m]}
    absent = [m for m in MODALITIES if not homes[m]]
    if "text" in absent:
        remarks.append("no text features in it: the transcripts are encoded by the extractor of extract.text")
    remarks += [f"no {m} features in it: {m} is missing in every clip" for m in absent if m != "text"]
    manifest = Manifest(corpus, root, label_range, tuple(clips))
    return ImportedCorpus(manifest, problems, sha256, remarks, names, source.read)


def _pickles(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted([*path.glob("*.pkl"), *path.glob("*.pickle")]) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"{path}: no .pkl file here; set prepare.root to MMSA's pickle, or to a folder with one for each modality"
        )
    return found


def _known(path: Path, digest: str, language: str, label_range: tuple[float, float]) -> str:
    """What is known of a file by its hash."""
    known = PUBLISHED.get(digest)
    if known is None:
        return f"{path.name}: SHA-256 {digest} is none that MMSA publishes (your own features have another, of course)"
    if (known.language, known.label_range) != (language, label_range):
        low, high = known.label_range
        raise ValueError(
            f"{path}: this is MMSA's {known.name}, in {known.language} with labels in [{low:g}, {high:g}], but the "
            f"parameters say {language} and {list(label_range)}; set prepare.language={known.language} and "
            f"prepare.label_range=[{low:g},{high:g}]"
        )
    return f"{path.name}: MMSA's {known.name}, unchanged (SHA-256 {digest[:12]}...)"


def _read_splits(path: Path) -> dict[str, _Split]:
    """The splits of a file that hold clips."""
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
    """A key for each clip: its id, `video$_$clip` in MMSA's writing; numbers only number a split's rows."""
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
    """Text, also where an array had it as bytes; nothing where there is none (None, or a table's NaN)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else ""


def _array(value: Any, where: str) -> np.ndarray:
    """An array; also of a list of numbers, or of a list of lists or arrays of them.

    Raises:
        ValueError: lists in lists of lists, or more than `LARGEST_LIST` values: what stands in a pickle once can be
            named in it many times over.
    """
    if isinstance(value, (list, tuple)):
        rows = [part for part in value if isinstance(part, (list, tuple, np.ndarray))]
        size = len(value) + sum(part.size if isinstance(part, np.ndarray) else len(part) for part in rows)
        if size > LARGEST_LIST:
            raise ValueError(f"{where}: a list of {size:,} values; save it as an array")
        flat = (part.ravel() if isinstance(part, np.ndarray) else part for part in rows)
        if any(isinstance(item, (list, tuple, dict, set, np.ndarray)) for part in flat for item in part):
            raise ValueError(f"{where}: lists in lists of lists; save it as an array")
    return np.asarray(value)


def _ids(key: str) -> tuple[str, str]:
    """Video and clip of `video$_$clip` or `video[clip]`; of any other key, it and `0`."""
    if "$_$" in key:
        video, _, clip = key.rpartition("$_$")
        return video, clip
    segment = re.fullmatch(r"(.+)\[([0-9]+)\]", key)
    return (segment[1], segment[2]) if segment else (key, "0")


def _home(name: str, files: Sequence[Mapping[str, _Split]], paths: Sequence[Path]) -> Mapping[str, _Split]:
    """The splits of the one file that holds a column; none where no file does."""
    holders = [i for i, file in enumerate(files) if any(name in split.content for split in file.values())]
    if len(holders) > 1:
        raise ValueError(
            f"{paths[holders[0]].name} and {paths[holders[1]].name} both hold {name}; set prepare.root to one of "
            "them, or leave in the folder one file for each modality"
        )
    return {s: split for s, split in files[holders[0]].items() if name in split.content} if holders else {}


def _clips(
    name: str, files: Sequence[Mapping[str, _Split]], language: str, sha256: str
) -> Iterator[tuple[str, str, Clip]]:
    """Where each clip of a split stands, its key, and the clip; text and labels from the first file with them."""
    splits = [file[name] for file in files if name in file]
    if not splits:
        return
    texts, labels = _first(splits, "raw_text"), {field: _first(splits, column) for field, column in LABELS.items()}
    for row, key in enumerate(splits[0].keys):
        where = f"{splits[0].where}, row {row}"
        video, clip = _ids(key)
        values = {
            field: _label(column[key], f"{where}: {LABELS[field]}") for field, column in labels.items() if key in column
        }
        text = _string(texts.get(key)).strip()
        yield where, key, Clip(f"{video}/{clip}", video, name, language, "", text, **values, sha256=sha256)


def _first(splits: Sequence[_Split], name: str) -> dict[str, Any]:
    """A column by key, from the first file that has it; of a repeated key, the first row."""
    for split in splits:
        column = split.rows(name)
        if column is not None:
            return {key: column[row] for key, row in split.row_of.items()}
    return {}


def _label(value: Any, where: str) -> float | None:
    """A label; None where there is none, or NaN."""
    if value is None:
        return None
    array = _array(value, where).reshape(-1)
    if len(array) != 1 or array.dtype.kind not in "fiub":
        raise ValueError(f"{where} is {reprlib.repr(value)}, not a number")
    return None if math.isnan(array[0]) else float(array[0])


class _Source:
    """The values of all modalities, read clip by clip.

    Args:
        homes: by modality, and for `text_bert`, the splits that hold it.
        keys: clip_id -> split and key, in the manifest's order.
    """

    def __init__(self, homes: Mapping[str, Mapping[str, _Split]], keys: Mapping[str, tuple[str, str]]) -> None:
        self._homes, self._keys = homes, keys

    def width(self, modality: str) -> int:
        """D, the same in all splits; 0 where no split holds a clip.

        Raises:
            ValueError: it is not.
        """
        widths = {}
        for split in self._homes[modality].values():
            if split.keys:
                widths[split.where] = _sequence(split.of(modality, split.keys[0]), split.where, modality).shape[1]
        if len(set(widths.values())) > 1:
            found = "; ".join(f"{where}: {width}" for where, width in widths.items())
            raise ValueError(f"{modality} is not of one width in all splits ({found}); import them as corpora apart")
        return next(iter(widths.values()), 0)

    def read(self, modality: str) -> Iterator[tuple[str, ImportedSteps, Problem | None]]:
        """The steps of each clip, in the manifest's order, and what is wrong with them."""
        width = self.width(modality)
        for clip_id, (split, key) in self._keys.items():
            home = self._homes[modality].get(split)
            value = home.of(modality, key) if home else None
            row = np.empty((0, width)) if value is None else _sequence(value, f"{home.where}, {key}", modality)
            if row.shape[1] != width:
                raise ValueError(f"{home.where}, {key}: {modality} is {row.shape[1]} wide, in other clips {width}")
            length = extent = _extent(row)
            if extent:  # else there is nothing but padding: the clip lacks the modality, whatever its length
                length = self._length(modality, split, key, row)
            values, valid, replaced = clean(row[:length])
            ids = self._token_ids(split, key, len(row))[:length] if modality == "text" else None
            steps = ImportedSteps(values, *even_times(length), valid, replaced, ids)
            yield clip_id, steps, not_finite(clip_id, modality, steps)

    def _length(self, modality: str, split: str, key: str, row: np.ndarray) -> int:
        """L of a clip's row [T, D] in which not all is zero."""
        extent = _extent(row)
        declared = self._homes[modality][split].of(f"{modality}_lengths", key)
        if declared is not None:
            return min(max(int(declared.reshape(-1)[0]), extent), len(row))
        bert = self._bert(split, key)
        if bert is None or bert.shape[1] != len(row):
            return extent
        real = int(np.count_nonzero(bert[1]))
        if modality == "text":
            return real or extent
        text = self._homes["text"].get(split)  # as long as its text: the file is aligned
        aligned = text is not None and len(np.atleast_2d(text.of("text", key))) == len(row)
        return max(real, extent) if aligned else extent

    def _token_ids(self, split: str, key: str, steps: int) -> np.ndarray:
        """[T] int32, -1 where the file does not have them."""
        bert = self._bert(split, key)
        if bert is None or bert.shape[1] != steps:
            return np.full(steps, -1, np.int32)
        return bert[0].astype(np.int32)

    def _bert(self, split: str, key: str) -> np.ndarray | None:
        """[3, T] token ids, mask and segment ids of a clip."""
        home = self._homes["text_bert"].get(split)
        bert = home.of("text_bert", key) if home else None
        if bert is not None and (bert.ndim != 2 or len(bert) != 3):
            raise ValueError(f"{home.where}, {key}: text_bert is {bert.shape}, not [3, T]")
        return bert


def _sequence(value: np.ndarray, where: str, modality: str) -> np.ndarray:
    """A clip's [T, D], of numbers."""
    if value.ndim not in (1, 2) or value.dtype.kind not in "fiu":
        raise ValueError(f"{where}: {modality} of a clip is {value.shape} of {value.dtype}, not numbers [T, D] or [D]")
    return np.atleast_2d(value)


def _extent(row: np.ndarray) -> int:
    """Steps up to the last that is not all zeros; NaN is not zero."""
    filled = np.flatnonzero(row.any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else 0
