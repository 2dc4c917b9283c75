"""The table of transcripts with word times: one row per clip, in the manifest's order.

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
"""Timing method of words without times in this table: `align` spreads them over the voiced part of the clip."""

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
    """The words of one clip, with their times where known.

    Attributes:
        text: the transcript; empty if nothing is said or there is no transcript.
        text_source: corpus or asr; empty without text.
        words: the text's words, by `split_words`.
        start, end: [W] seconds; empty if unknown, in which case `align` estimates them.
        times_method: file (from the corpus), ctc (forced alignment) or asr (the recogniser's); empty without times.
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
    """Write the table atomically.

    Args:
        rows: transcripts in the manifest's order.
        path: the Parquet file.
        models: signatures of the models that were used, by `asr` and `ctc`.
        manifest: hash of the manifest.
        recogniser: folder or id of the speech recogniser for clips without a transcript; empty for none.
    """
    meta = {"models": dict(models or {}), "manifest": manifest, "recogniser": recogniser}
    schema = versioned_schema(TRANSCRIPTS_SCHEMA, SCHEMA_VERSION, meta)
    write_table([asdict(row) for row in rows], schema, path)


def read_transcripts(path: Path) -> dict[str, Transcript]:
    """Read the transcripts, by clip id.

    Raises:
        FileNotFoundError: no such file; the message names the stage that writes it.
        ValueError: the file has another schema version, or is not a table of transcripts.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no transcripts here; `dashfusion transcribe` (or `dvc repro transcribe`) writes them"
        )
    table = pq.read_table(path)
    remedy = "run the transcribe stage again"
    check_version(table.schema, SCHEMA_VERSION, path, kind="transcripts table", remedy=remedy)
    if table.schema.names != TRANSCRIPTS_SCHEMA.names:
        raise ValueError(f"{path}: columns {table.schema.names}, expected {TRANSCRIPTS_SCHEMA.names}; {remedy}")
    return {row["clip_id"]: Transcript(**row) for row in table.to_pylist()}


def read_recogniser(path: Path) -> str:
    """Return folder or id of the speech recogniser for clips without a transcript; empty for none."""
    recogniser: str = read_metadata(pq.read_schema(path)).get("recogniser", "")
    return recogniser


def with_transcripts(manifest: Manifest, transcripts: Mapping[str, Transcript]) -> Manifest:
    """Return the manifest with each clip's text replaced by its transcript's.

    Raises:
        ValueError: a clip has no transcript, as the transcripts are of another manifest.
    """
    absent = [clip.clip_id for clip in manifest.clips if clip.clip_id not in transcripts]
    if absent:
        raise ValueError(
            f"{len(absent)} clips, {absent[0]} the first, have no transcript; run the transcribe stage again"
        )
    return replace(manifest, clips=tuple(replace(clip, text=transcripts[clip.clip_id].text) for clip in manifest.clips))
