"""Reader of CMU-MultimodalSDK's computational sequences (`.csd`): single files, and a folder of them as a corpus.

A file is HDF5 with `/<name>/data/<key>/features` [n, D] and `/intervals` [n, 2], seconds in the video. The key is a
video, or `video[i]` in a file that was aligned to the labels. T steps of a clip, D features.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from corpora.manifest import MODALITIES, Clip, Manifest, split_name, straddling, validate
from corpora.problems import Problem
from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps, clean, not_finite
from corpora.readers.table import open_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LABELS, SPLITS, WORDS = "labels.csd", "splits.csv", "words.csd"

SUFFIX = ".csd"
SILENCES = ("", "sp", "sil", "spn", "<eps>", "<sil>", "<p:>")
"""Labels, in lower case, by which forced aligners mark what is not a word."""

MAX_WORD_BYTES = 64 << 20
MAX_FEATURE_BYTES = 1 << 30
"""Limits of a video's words or intervals (hundreds of hours of speech), and of its features (about ten hours)."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """Segment of a video that is one clip: its index among the video's segments, start and end in seconds."""

    clip_id: str
    video: str
    row: int
    start: float
    end: float


def read_csd(path: Path, *, corpus: str, language: str, label_range: tuple[float, float], root: str) -> ImportedCorpus:
    """Read a folder of computational sequences as a corpus of features.

    `labels.csd` defines the clips: row i of a video's intervals, or the key `video[i]`, is the clip numbered i + 1, and
    the first feature is its label. `splits.csv` has the columns video_id and split. `words.csd` (byte strings) holds
    the transcripts; `text.csd`, `audio.csd` and `vision.csd` hold the features. Each of these four may be absent. A
    word or step belongs to the clip that contains its midpoint; its times count from the clip's start and are clipped
    to the clip.

    Args:
        path: folder with files or links of these names.
        corpus: name of the corpus in reports.
        language: ISO 639-1 code of every clip.
        label_range: minimum and maximum label.
        root: corpus root to record in the manifest, as the parameters give it.

    Raises:
        FileNotFoundError: labels or splits are missing.
        ValueError: a file is damaged or has other content than its name says; the message names file and key.
    """
    path = Path(path)
    for name in (LABELS, SPLITS):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path / name}: no such file; set prepare.root to a folder with {LABELS}, {SPLITS} (video_id, split) "
                f"and any of {WORDS}, {', '.join(f'{m}.csd' for m in MODALITIES)}, or links so called: docs/mmsa.md"
            )
    # Files
    splits = _read_splits(path / SPLITS)
    present = {m: path / f"{m}.csd" for m in MODALITIES if (path / f"{m}.csd").is_file()}
    files = [path / LABELS, path / SPLITS, *present.values(), *[p for p in [path / WORDS] if p.is_file()]]
    sha256 = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    # Clips
    labels = _read_labels(path / LABELS)
    texts = _read_transcripts(path / WORDS, [segment for segment, _ in labels]) if (path / WORDS).is_file() else {}
    located, problems = [], []
    for segment, label in labels:
        if segment.video not in splits:
            message = f"{SPLITS}: video {segment.video} is not in it; add its row"
            problems.append(Problem(segment.clip_id, "prepare", "", "NoSplit", message))
            continue
        clip = Clip(
            segment.clip_id,
            segment.video,
            splits[segment.video],
            language,
            "",
            texts.get(segment.clip_id, ""),
            label,
            duration=segment.end - segment.start,
            sha256=sha256,
        )
        located.append((f"{LABELS}, {segment.video}, row {segment.row}", clip))
    clips, invalid = validate(located, label_range)

    # Features
    kept = {clip.clip_id for clip in clips}
    segments = [segment for segment, _ in labels if segment.clip_id in kept]
    names = {m: tuple(f"{m}_{i}" for i in range(_width(file))) for m, file in present.items()}
    remarks = [f"no {m}.csd: {m} is missing in every clip" for m in ("audio", "vision") if m not in present]
    if "text" not in present:
        remarks.append("no text.csd: the transcripts are encoded by the extractor of extract.text")

    def read(modality: str) -> Iterator[tuple[str, ImportedSteps, Problem | None]]:
        return _read_steps(present[modality], modality, segments, len(names[modality]))

    manifest = Manifest(corpus, root, label_range, tuple(clips))
    return ImportedCorpus(manifest, [*problems, *invalid, *straddling(clips)], sha256, remarks, names, read)


def _read_splits(path: Path) -> dict[str, str]:
    """Read the split of each video."""
    table = open_table(path, encoding_key="")
    if not {"video_id", "split"} <= set(table.header):
        raise ValueError(f"{path}: columns video_id and split are needed, found {', '.join(table.header)}")
    named = {row.values["video_id"]: row.values["split"].strip() for row in table.rows()}
    return {video: split_name(name) or name for video, name in named.items()}


def _read_labels(path: Path) -> list[tuple[_Segment, float | None]]:
    """Return the segment and label (None where it is NaN) of each clip, sorted by video and row.

    A key is a video with the intervals of all its clips, or `video[i]` with the interval of clip i alone.
    """
    labels = []
    with open_sequence(path) as data:
        all_videos = {key.partition("[")[0] for key in data}
        for key, video, index in sequence_keys(data, all_videos, path):
            where = f"{path}, key {key!r}"
            times = read_intervals(data[key], where)
            values = find_dataset(data[key], "features", where)
            is_consistent = values.shape[:1] == times.shape[:1] and values.dtype.kind in "fiu"
            if not is_consistent or (index is not None and len(times) > 1):
                raise ValueError(f"{where}: {len(times)} segments, but features {values.shape} of {values.dtype}")
            scores = values[:].reshape(len(times), -1)[:, 0].astype(float)
            for row, (start, end) in enumerate(times.tolist()):
                clip_row = row if index is None else index
                label = None if np.isnan(scores[row]) else float(scores[row])
                labels.append((_Segment(f"{video}/{clip_row + 1}", video, clip_row, start, end), label))
    return sorted(labels, key=lambda item: (item[0].video, item[0].row))


def _inside(times: np.ndarray, segment: _Segment) -> np.ndarray:
    """Return the indices of the intervals [n, 2] whose midpoint is in the segment."""
    middle = times.mean(axis=1)
    return np.flatnonzero((segment.start <= middle) & (middle < segment.end))


def _entry(data: Mapping[str, Any], segment: _Segment) -> tuple[str, Any] | None:
    """Return key and entry of a segment's video, or of the segment alone in an aligned file."""
    for key in (segment.video, f"{segment.video}[{segment.row}]"):
        if key in data:
            return key, data[key]
    return None


def _read_transcripts(path: Path, segments: list[_Segment]) -> dict[str, str]:
    """Read the text of each clip, without silences."""
    texts = {}
    with open_sequence(path) as data:
        for segment in segments:
            entry = _entry(data, segment)
            if entry is not None:
                where = f"{path}, key {entry[0]!r}"
                times = read_intervals(entry[1], where)
                words = read_texts(entry[1], len(times), where)
                spoken = [words[i].strip() for i in _inside(times, segment)]
                texts[segment.clip_id] = " ".join(word for word in spoken if word.lower() not in SILENCES)
    return texts


def _width(path: Path) -> int:
    """Return D of a file's first entry."""
    with open_sequence(path) as data:
        for key in data:
            dataset = find_dataset(data[key], "features", f"{path}, key {key!r}", MAX_FEATURE_BYTES)
            return dataset.shape[1] if dataset.ndim == 2 else 1
    raise ValueError(f"{path}: no video in it; leave the file out")


def _read_steps(
    path: Path, modality: str, segments: list[_Segment], width: int
) -> Iterator[tuple[str, ImportedSteps, Problem | None]]:
    """Yield the steps of each clip, cut out of its video. One video is in memory at a time."""
    absent = ("", np.empty((0, 2)), np.empty((0, width)))
    loaded: tuple[str, np.ndarray, np.ndarray] = absent  # key, intervals, values
    with open_sequence(path) as data:
        for segment in segments:
            entry = _entry(data, segment)
            if entry is None:
                loaded = absent
            elif entry[0] != loaded[0]:
                loaded = (entry[0], *_read_values(entry[1], f"{path}, key {entry[0]!r}", width))
            _, times, values = loaded
            rows = _inside(times, segment)
            cleaned, valid, replaced = clean(values[rows])
            edges = (np.clip(times[rows], segment.start, segment.end) - segment.start).astype(np.float32)
            ids = np.full(len(rows), -1, np.int32) if modality == "text" else None
            steps = ImportedSteps(cleaned, edges[:, 0], edges[:, 1], valid, replaced, ids)
            yield segment.clip_id, steps, not_finite(segment.clip_id, modality, steps)


def _read_values(entry: Any, where: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Read intervals [n, 2] and features [n, D] of one video, sorted by start."""
    times = read_intervals(entry, where)
    dataset = find_dataset(entry, "features", where, MAX_FEATURE_BYTES)
    if dataset.shape not in ((len(times), width), (len(times),)) or dataset.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: features must be numbers [{len(times)}, {width}], found {dataset.shape} of {dataset.dtype}"
        )
    order = np.argsort(times[:, 0], kind="stable")
    return times[order], dataset[:].reshape(len(times), width)[order]


@contextmanager
def open_sequence(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open a file and yield the `data` group of its one computational sequence.

    HDF5 can refer to other files in several ways, and so have any file of the user read. A file with a link other than
    a hard link is refused here, a dataset whose values are stored elsewhere by `find_dataset`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: h5py is not installed, or the file is damaged, has soft or external links, or holds no computational
            sequence.
    """
    if find_spec("h5py") is None:
        raise ValueError(f"{path}: a .csd needs the package h5py; pip install -e '.[words]'")
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            link = _indirect_link(file)
            if link is not None:
                raise ValueError(
                    f"{path}: refused: {link!r} is a link to another place or file, and a .csd holds its own data. "
                    "Nothing of it was read; if you trust its source, write it again without links"
                )
            names = [name for name in file if isinstance(file.get(name), h5py.Group) and "data" in file[name]]
            if len(names) != 1 or not isinstance(file[names[0]]["data"], h5py.Group):
                raise ValueError(
                    f"{path}: no computational sequence (/<name>/data) in it, or several: {list(file)[:5]}"
                )
            yield file[names[0]]["data"]
    except (OSError, KeyError, RuntimeError) as error:  # h5py raises these while a damaged file is read
        raise ValueError(f"{path}: not a whole .csd: {error}; get it again") from error


def _indirect_link(file: Any) -> str | None:
    """Return the name of the first soft, external or user-defined link of an HDF5 file, without following it."""
    from h5py import h5l

    def name_if_indirect(name: bytes) -> bytes | None:
        return None if file.id.links.get_info(name).type == h5l.TYPE_HARD else name

    name: bytes | None = file.id.links.visit(name_if_indirect)
    return None if name is None else name.decode("utf-8", "backslashreplace")


def sequence_keys(data: Mapping[str, Any], videos: set[str], path: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield the keys of the given videos as (key, video, index); the index is None unless the key is `video[i]`."""
    for key in data:
        video, _, index = key.partition("[")
        if video in videos:
            if index and not re.fullmatch(r"[0-9]{1,9}\]", index):
                raise ValueError(f"{path}, key {key!r}: neither a video nor video[number]")
            yield key, video, int(index[:-1]) if index else None


def find_dataset(entry: Any, name: str, where: str, max_bytes: int = MAX_WORD_BYTES) -> Any:
    """Return an entry's dataset, not yet read, after a check of its size and of where its values are stored.

    Raises:
        ValueError: there is none, its values are stored in other files, or it has more than `max_bytes`.
    """
    import h5py

    dataset = entry.get(name) if isinstance(entry, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{where}: no dataset {name!r}")
    if dataset.is_virtual or dataset.external:
        kind = "a virtual dataset" if dataset.is_virtual else "external storage"
        raise ValueError(
            f"{where}: refused: {name} is {kind}, whose values are in other files. None of them was read; if you trust "
            "its source, write it again with the values in it"
        )
    if dataset.size is None or dataset.size * dataset.dtype.itemsize > max_bytes:
        raise ValueError(f"{where}: {name} of shape {dataset.shape} and type {dataset.dtype} is too large for a video")
    return dataset


def read_intervals(entry: Any, where: str) -> np.ndarray:
    """Read start and end of segments, words or steps: [n, 2] float64, seconds in the video.

    Raises:
        ValueError: the intervals are not numbers [n, 2], or hold impossible times.
    """
    dataset = find_dataset(entry, "intervals", where)
    if dataset.ndim != 2 or dataset.shape[1] != 2 or dataset.dtype.kind not in "fiu":
        raise ValueError(f"{where}: intervals must be numbers [n, 2], found {dataset.shape} of {dataset.dtype}")
    times: np.ndarray = dataset[:].astype(np.float64)
    invalid = ~(np.isfinite(times).all(axis=1) & (times[:, 0] >= 0) & (times[:, 0] <= times[:, 1]))
    if invalid.any():
        start, end = times[invalid][0]
        raise ValueError(f"{where}: no time runs from {start:g} to {end:g} s")
    return times


def read_texts(entry: Any, count: int, where: str) -> list[str]:
    """Read words, which are features [count, 1] of byte strings.

    Raises:
        ValueError: the features are anything else.
    """
    dataset = find_dataset(entry, "features", where)
    if dataset.shape not in ((count, 1), (count,)) or dataset.dtype.kind not in "SO":
        raise ValueError(
            f"{where}: features must be {count} strings [n, 1], found {dataset.shape} of {dataset.dtype}; "
            "give the words, not their embeddings"
        )
    values = list(dataset[:].reshape(-1))
    if not all(isinstance(value, bytes) for value in values):
        raise ValueError(f"{where}: features are not byte strings; give the words, not their embeddings")
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: a word is not in UTF-8: {error}") from error
