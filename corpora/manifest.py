"""The manifest: one row a clip, the only description of a corpus that later stages read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.files import atomic_path

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")

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
