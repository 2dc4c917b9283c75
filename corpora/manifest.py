"""The manifest: one row a clip, the only description of a corpus that later stages read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_path
from corpora.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")
LONGEST_ID = 200
"""Bytes of a video's or clip's id: they become file names, which most systems end at 255."""

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.float32()),
        pa.field("label_text", pa.float32()),
        pa.field("label_audio", pa.float32()),
        pa.field("label_vision", pa.float32()),
        pa.field("duration", pa.float32()),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of the manifest.

    Attributes:
        clip_id: `<video_id>/<clip>`, unique in the corpus.
        video_id: the recording it was cut from; a video never straddles splits.
        split: train, valid or test.
        language: ISO 639-1 code, such as en or zh.
        media: path of the media file relative to the corpus root; empty where only features exist.
        text: transcript; empty where the text modality is missing.
        label, label_text, label_audio, label_vision: sentiment in the corpus's range, None where unlabelled.
        duration: seconds, probed; None where the file cannot be read.
        sha256: of the media file; empty where there is none.
    """

    clip_id: str
    video_id: str
    split: str
    language: str
    media: str
    text: str
    label: float | None = None
    label_text: float | None = None
    label_audio: float | None = None
    label_vision: float | None = None
    duration: float | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The clips of a corpus with what holds for all of them.

    Attributes:
        corpus: its name, such as demo_en or mosi.
        root: folder that the clips' `media` paths start from, as the parameters gave it.
        label_range: least and greatest label, (-3, 3) or (-1, 1).
        clips: in the order of the corpus's own table.
    """

    corpus: str
    root: str
    label_range: tuple[float, float]
    clips: Sequence[Clip] = field(default_factory=tuple)

    def media_path(self, clip: Clip) -> Path | None:
        """Path of the clip's media file, or None where the clip has none."""
        return Path(self.root) / clip.media if clip.media else None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest as Parquet (zstd); the file appears whole or not at all."""
    meta = {
        "schema_version": SCHEMA_VERSION,
        "corpus": manifest.corpus,
        "root": manifest.root,
        "label_range": list(manifest.label_range),
    }
    schema = MANIFEST_SCHEMA.with_metadata({"dashfusion": json.dumps(meta)})
    table = pa.Table.from_pylist([asdict(clip) for clip in manifest.clips], schema=schema)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: there is none; the message says which stage makes it.
        ValueError: the file is not a manifest, or of another schema version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no manifest here; `dashfusion prepare` (or `dvc repro prepare`) makes it")
    table = pq.read_table(path)
    raw = (table.schema.metadata or {}).get(b"dashfusion")
    if raw is None:
        raise ValueError(f"{path}: a Parquet file, but not a manifest of ours (no `dashfusion` metadata)")
    meta = json.loads(raw)
    if meta["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: manifest schema {meta['schema_version']}, this version reads {SCHEMA_VERSION}; "
            "run the prepare stage again"
        )
    low, high = meta["label_range"]
    return Manifest(meta["corpus"], meta["root"], (low, high), tuple(Clip(**row) for row in table.to_pylist()))


def by_split(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Clips grouped by split, every split present."""
    groups: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        groups[clip.split].append(clip)
    return groups


def unsafe_id(value: str) -> str | None:
    """Why a video's or clip's id cannot be part of a path inside the corpus, or None where it can."""
    if not value.strip():
        return "is empty"
    if value in (".", "..") or "/" in value or "\\" in value or PureWindowsPath(value).drive:
        return "is a path, not a name"
    if any(ord(character) < 32 for character in value):
        return "holds a control character"
    if len(value.encode()) > LONGEST_ID:
        return f"is longer than {LONGEST_ID} bytes"
    return None


def check_clip(clip: Clip, label_range: tuple[float, float]) -> tuple[str, str] | None:
    """What is wrong with a row of the manifest, as error class and message; None where nothing is."""
    parts = {"video_id": clip.video_id, "clip_id": clip.clip_id.removeprefix(f"{clip.video_id}/")}
    for name, value in parts.items():
        reason = unsafe_id(value)
        if reason:
            return "UnsafeId", f"{name} {value!r} {reason}; rename it and its media"
    if clip.split not in SPLITS:
        return "UnknownSplit", f"mode {clip.split!r} is no split; write one of {', '.join(SPLITS)}"
    low, high = label_range
    for name in ("label", "label_text", "label_audio", "label_vision"):
        value = getattr(clip, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            return (
                "LabelOutOfRange",
                f"{name} {value:g} is outside [{low:g}, {high:g}]; correct it, leave it empty, or set label_range",
            )
    return None


def validate(located: Iterable[tuple[str, Clip]], label_range: tuple[float, float]) -> tuple[list[Clip], list[Problem]]:
    """The clips that may enter a manifest, and what is wrong with the others.

    Left out: unsafe ids, unknown splits, labels out of range, repeated clips (the first one stays). Kept,
    with one problem a video: videos in more than one split (`StraddlingVideo`).

    Args:
        located: each clip with where it was read, such as `label.csv row 7`, for the messages.
        label_range: least and greatest label.
    """
    clips: list[Clip] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, clip in located:
        wrong = check_clip(clip, label_range)
        if wrong is None and clip.clip_id in first_seen:
            wrong = (
                "DuplicateClip",
                f"{clip.clip_id} is at {first_seen[clip.clip_id]} already; delete one of the two",
            )
        if wrong is not None:
            problems.append(Problem(clip.clip_id, "prepare", "", wrong[0], f"{where}: {wrong[1]}"))
            continue
        first_seen[clip.clip_id] = where
        clips.append(clip)
    return clips, problems + straddling_videos(clips)


def straddling_videos(clips: Iterable[Clip]) -> list[Problem]:
    """One problem for each video with clips in more than one split."""
    counts: dict[str, dict[str, int]] = {}
    for clip in clips:
        splits = counts.setdefault(clip.video_id, {})
        splits[clip.split] = splits.get(clip.split, 0) + 1
    return [
        Problem(
            video,
            "prepare",
            "",
            "StraddlingVideo",
            f"video {video} has clips in {', '.join(f'{split} ({n})' for split, n in splits.items())}; "
            "its clips stay, but the test score may flatter: move them into one split, unless the corpus was "
            "published so",
        )
        for video, splits in counts.items()
        if len(splits) > 1
    ]
