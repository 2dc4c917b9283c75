"""The manifest: one row per clip, the only description of a corpus that later stages read."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.problems import Problem
from corpora.tables import check_version, versioned_schema, write_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "development"),
    "test": ("test", "testing"),
}
"""Names that tables give the splits, in any case."""
MODALITIES = ("text", "audio", "vision")
MAX_ID_BYTES = 200
"""Limit of a video's or clip's id: ids become file names, which most systems limit to 255 bytes."""

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
        pa.field("speaker", pa.string()),
        pa.field("gender", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of the manifest.

    Attributes:
        clip_id: `<video_id>/<clip>`, unique in the corpus.
        video_id: the recording that the clip was cut from.
        split: train, valid or test.
        language: ISO 639-1 code, such as en or zh.
        media: path of the media file relative to the corpus root; empty where there are only features.
        text: transcript; empty where the text modality is missing.
        label, label_text, label_audio, label_vision: sentiment in the corpus's range, None where unlabelled.
        duration: seconds, probed; None where there are only features, or the file does not say.
        sha256: of the media file; empty where there is none.
        speaker: who speaks; empty where the corpus does not say.
        gender: of the speaker, in the corpus's words; empty where it does not say.
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
    speaker: str = ""
    gender: str = ""

    @property
    def speaker_or_video(self) -> str:
        """The speaker, or where unknown the video: what clips have in common that resemble each other."""
        return self.speaker or self.video_id


@dataclass(frozen=True, slots=True)
class Manifest:
    """The clips of a corpus and the properties that they share.

    Attributes:
        corpus: name of the corpus, such as demo_en or mosi.
        root: folder that the clips' `media` paths are relative to, as the parameters give it.
        label_range: minimum and maximum label, (-3, 3) or (-1, 1).
        clips: in the order of the corpus's own table.
        generated: whether its clips are generated rather than recorded; None where unknown.
        drawn: how the splits were drawn (fields of `corpora.splits.SplitConfig`); None: the corpus's own.
    """

    corpus: str
    root: str
    label_range: tuple[float, float]
    clips: Sequence[Clip] = field(default_factory=tuple)
    generated: bool | None = None
    drawn: Mapping[str, Any] | None = None

    def media_path(self, clip: Clip) -> Path | None:
        """Return the path of the clip's media file, or None where it has none."""
        return Path(self.root) / clip.media if clip.media else None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest as Parquet (zstd); the file appears whole or not at all."""
    metadata = {
        "corpus": manifest.corpus,
        "root": manifest.root,
        "label_range": list(manifest.label_range),
        "generated": manifest.generated,
        "drawn": manifest.drawn,
    }
    schema = versioned_schema(MANIFEST_SCHEMA, SCHEMA_VERSION, metadata)
    write_table([asdict(clip) for clip in manifest.clips], schema, path)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; earlier versions wrote none of the columns `speaker` and `gender`.

    Raises:
        FileNotFoundError: there is none; the message names the stage that writes it.
        ValueError: the file is not a manifest, or has another schema version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no manifest here; `dashfusion prepare` (or `dvc repro prepare`) writes it")
    table = pq.read_table(path)
    metadata = check_version(table.schema, SCHEMA_VERSION, path, kind="manifest", remedy="run the prepare stage again")
    low, high = metadata["label_range"]
    clips = tuple(Clip(**row) for row in table.to_pylist())
    shared = {name: metadata.get(name) for name in ("generated", "drawn")}
    return Manifest(metadata["corpus"], metadata["root"], (low, high), clips, **shared)


def split_name(value: str) -> str | None:
    """Return the split that a table's value names, such as valid for `Dev`, or None if it is none of `SPLIT_NAMES`."""
    value = value.strip().casefold()
    return next((split for split, names in SPLIT_NAMES.items() if value in names), None)


def by_split(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """Group clips by split. Every split has an entry."""
    groups: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        groups[clip.split].append(clip)
    return groups


def unsafe_id(value: str) -> str | None:
    """Return why an id of a video or clip cannot be part of a path inside the corpus, or None where it can."""
    if not value.strip():
        return "is empty"
    if value in (".", "..") or "/" in value or "\\" in value or PureWindowsPath(value).drive:
        return "is a path, not a name"
    if any(ord(character) < 32 for character in value):
        return "holds a control character"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "is not in UTF-8"
    if len(value.encode()) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    return None


def check_clip(clip: Clip, label_range: tuple[float, float]) -> tuple[str, str] | None:
    """Return the first error of a row as (error class, message), or None."""
    parts = {"video_id": clip.video_id, "clip_id": clip.clip_id.removeprefix(f"{clip.video_id}/")}
    for name, value in parts.items():
        reason = unsafe_id(value)
        if reason:
            return "UnsafeId", f"{name} {value!r} {reason}; rename it and its media"
    if clip.split not in SPLITS:
        names = ", ".join(name for split in SPLITS for name in SPLIT_NAMES[split])
        return "UnknownSplit", f"mode {clip.split!r} is not a split; write one of {names}"
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
    """Return the valid clips and the problems of the others.

    Clips are left out for unsafe ids, unknown splits, labels out of range, and as repetitions of an earlier clip.

    Args:
        located: the place that each clip was read from, such as `label.csv row 7`, for messages; and the clip.
        label_range: minimum and maximum label.
    """
    clips: list[Clip] = []
    problems: list[Problem] = []
    first_seen: dict[str, str] = {}
    for where, clip in located:
        error = check_clip(clip, label_range)
        if error is None and clip.clip_id in first_seen:
            error = ("DuplicateClip", f"{clip.clip_id} is at {first_seen[clip.clip_id]} already; delete one of the two")
        if error is not None:
            problems.append(Problem(clip.clip_id, "prepare", "", error[0], f"{where}: {error[1]}"))
            continue
        first_seen[clip.clip_id] = where
        clips.append(clip)
    return clips, problems


def straddling(clips: Sequence[Clip]) -> list[Problem]:
    """Return one problem for each video (`StraddlingVideo`) and each known speaker in more than one split."""
    return _straddling(clips, "video_id") + _straddling(clips, "speaker")


def _straddling(clips: Iterable[Clip], kind: Literal["video_id", "speaker"]) -> list[Problem]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        counts[getattr(clip, kind)][clip.split] += 1
    name = kind.removesuffix("_id")
    return [
        Problem(
            value,
            "prepare",
            "",
            f"Straddling{name.capitalize()}",
            f"{name} {value} has clips in {', '.join(f'{split} ({n})' for split, n in splits.items())}; "
            "its clips stay, but the test score may flatter: move them into one split, unless the corpus was "
            "published so",
        )
        for value, splits in counts.items()
        if value and len(splits) > 1
    ]
