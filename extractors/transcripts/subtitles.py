"""Transcripts in files next to a video: SubRip (`.srt`), WebVTT (`.vtt`), or plain text (`.txt`).

Times are seconds from the video's start. W words, K cues.
"""

from __future__ import annotations

import codecs
import html
import itertools
import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extractors.transcripts.table import Transcript
from extractors.transcripts.words import Word, place_words, split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

SUFFIXES = (".srt", ".vtt", ".txt")
"""Suffixes of transcripts, in order of preference."""

CUES = "cues"
"""Timing method of a transcript with cues: the words of a cue share its time in proportion to their length."""

MAX_BYTES = 16 << 20
"""Limit of a file's size: hundreds of hours of speech."""

MIN_CUE_SECONDS = 0.02
"""Shorter cues only scroll the lines of live captions; the next cue repeats their words."""

_STYLE = re.compile(r"\{\\[^{}]*\}|<[^<>]*>")  # SubStation's overrides, as used in SubRip, and tags


def read_transcript(path: Path, clip_id: str, language: str) -> Transcript:
    """Read a transcript from a file, with word times where it has cues.

    The encoding is UTF-8, or UTF-16 with a byte-order mark; styling is removed. Cues are sorted by start; where two
    overlap, so do their words' times. A line that a cue repeats from the one before is dropped.

    Args:
        path: the file.
        clip_id: clip id of the transcript.
        language: ISO 639-1, for splitting into words.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file type, too large, not text, or malformed; the message names the file.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: the name of a transcript ends in {', '.join(SUFFIXES)}; rename or convert it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no transcript here")
    content = _decode(path)
    if kind == ".txt":
        text = " ".join(content.split())
        return Transcript(clip_id, text, "file", split_words(text, language))
    cues = _without_repeats(_read_cues(content, kind, path)) if content.strip() else []
    words = [split_words(cue.text, language) for cue in cues]
    times = np.vstack(
        [np.empty((0, 2))]
        + [place_words(w, np.array([[cue.start, cue.end]])) for w, cue in zip(words, cues, strict=True) if w]
    )
    text = " ".join(cue.text for cue in cues)
    method = CUES if len(times) else ""
    flat = list(itertools.chain.from_iterable(words))
    return Transcript(clip_id, text, "file", flat, times[:, 0].tolist(), times[:, 1].tolist(), method)


def find_transcript(folder: Path, media: Path) -> Path | None:
    """Return the transcript in the folder for a media file, such as `talk.srt` for `talk.mp4`, or None.

    A link out of the folder is not followed: it could show any text file of the user as the transcript.
    """
    inside = Path(folder).resolve()
    for suffix in SUFFIXES:
        for name in (f"{media.stem}{suffix}", f"{media.stem}{suffix.upper()}", f"{media.name}{suffix}"):
            if (path := Path(folder) / name).is_file() and path.resolve().is_relative_to(inside):
                return path
    return None


def _decode(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size >> 20} MiB is too large for a transcript; give the text alone")
    raw = path.read_bytes()
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: holds zero bytes, so it is not text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_cues(content: str, kind: str, path: Path) -> list[Word]:
    """Read the cues with text, sorted by start; lines are separated by newlines."""
    import webvtt
    from webvtt.errors import MalformedFileError

    try:
        captions = webvtt.from_buffer(StringIO(content.lstrip("\n")), format=kind[1:])
    except MalformedFileError as error:
        expected = "cues such as `1`, `00:00:01,000 --> 00:00:02,500`, text" if kind == ".srt" else "`WEBVTT` on top"
        message = f"{path}: not a {kind} file ({error}; expected {expected}); save it again, or as .txt"
        raise ValueError(message) from error
    cues = []
    for caption in captions.captions:
        start, end = (
            time.hours * 3600 + time.minutes * 60 + time.seconds + time.milliseconds / 1000
            for time in (caption.start_time, caption.end_time)
        )
        lines = (" ".join(html.unescape(_STYLE.sub("", line)).split()) for line in caption.text.split("\n"))
        text = "\n".join(line for line in lines if line)
        if text and end - start >= MIN_CUE_SECONDS:
            cues.append(Word(text, start, end))
    return sorted(cues, key=lambda cue: cue.start)


def _without_repeats(cues: Sequence[Word]) -> list[Word]:
    """Join each cue's lines, without those that roll-up captions repeat from the cue before."""
    joined: list[Word] = []
    previous: list[str] = []
    for cue in cues:
        lines = cue.text.split("\n")
        repeated = next((n for n in range(len(lines) - 1, 0, -1) if lines[:n] == previous[-n:]), 0)
        previous = lines
        joined.append(Word(" ".join(lines[repeated:]), cue.start, cue.end))
    return joined
