"""The table of transcripts: who says what when, one row a clip, in the manifest's order.

W words of a clip; times are seconds from the clip's start.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from corpora.tables import check_version, read_metadata, versioned_schema, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corpora.manifest import Manifest

SCHEMA_VERSION = 1

PROPORTIONAL = "proportional"
"""How `align` times words that have no times here."""

TRANSCRIPTS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_source", pa.string(), nullable=False),
        pa.field("words", pa.list_(pa.string()), nullable=False),
        pa.field("start", pa.list_(pa.float32()), nullable=False),
        pa.field("end", pa.list_(pa.float32()), nullable=False),
        pa.field("times_method", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in one clip, and when.

    Attributes:
        text: empty where nothing is said, or nobody knows what.
        text_source: corpus or asr; empty where there is no text.
        words: those of `split_words`.
        start, end: [W] seconds; empty where the words have no times, and `align` estimates them.
        times_method: file (they came with the corpus), ctc (forced alignment) or asr (the recogniser's own); empty
            where there are no times.
    """

    clip_id: str
    text: str
    text_source: str
    words: Sequence[str]
    start: Sequence[float] = ()
    end: Sequence[float] = ()
    times_method: str = ""


def write_transcripts(
    rows: Sequence[Transcript],
    path: Path,
    models: Mapping[str, str] | None = None,
    manifest: str = "",
    recogniser: str = "",
) -> None:
    """Write the table, whole or not at all.

    Args:
        models: signatures of the models that were listened with, by `asr` and `ctc`.
        manifest: hash of the manifest that the rows are of.
        recogniser: folder or id of the model that clips without a transcript were given to; empty where there was none.
    """
    meta = {"models": dict(models or {}), "manifest": manifest, "recogniser": recogniser}
    schema = versioned_schema(TRANSCRIPTS_SCHEMA, SCHEMA_VERSION, meta)
    write_table([asdict(row) for row in rows], schema, path)


def read_transcripts(path: Path) -> dict[str, Transcript]:
    """Transcripts by clip id.

    Raises:
        FileNotFoundError: there are none; the message says which stage makes them.
        ValueError: the file is of another schema version, or no transcripts at all.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no transcripts here; `dashfusion transcribe` (or `dvc repro transcribe`) makes them"
        )
    table = pq.read_table(path)
    remedy = "run the transcribe stage again"
    check_version(table.schema, SCHEMA_VERSION, path, kind="transcripts table", remedy=remedy)
    if table.schema.names != TRANSCRIPTS_SCHEMA.names:
        raise ValueError(f"{path}: columns {table.schema.names}, expected {TRANSCRIPTS_SCHEMA.names}; {remedy}")
    return {row["clip_id"]: Transcript(**row) for row in table.to_pylist()}


def read_recogniser(path: Path) -> str:
    """Folder or id of the speech recogniser that the transcripts of silent clips are from; empty for none."""
    recogniser: str = read_metadata(pq.read_schema(path)).get("recogniser", "")
    return recogniser


def with_transcripts(manifest: Manifest, transcripts: Mapping[str, Transcript]) -> Manifest:
    """The manifest with the text that is taken for what its clips say, which may be a recogniser's.

    Raises:
        ValueError: a clip is not in the transcripts: they were made of another manifest.
    """
    absent = [clip.clip_id for clip in manifest.clips if clip.clip_id not in transcripts]
    if absent:
        raise ValueError(
            f"{len(absent)} clips, {absent[0]} the first, have no transcript; run the transcribe stage again"
        )
    return replace(manifest, clips=tuple(replace(clip, text=transcripts[clip.clip_id].text) for clip in manifest.clips))
