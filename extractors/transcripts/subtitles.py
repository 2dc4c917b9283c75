"""Transcripts that lie beside a video: SubRip (`.srt`), WebVTT (`.vtt`), or plain text (`.txt`).

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
"""What a transcript's name may end in, the first that exists being taken."""

CUES = "cues"
"""What timed the words of a transcript with cues: each cue's words share its time in proportion."""

LARGEST = 16 << 20
"""Bytes: hundreds of hours of speech."""

SHORTEST_CUE = 0.02
"""Seconds. Shorter ones are how a live captioner's lines are moved up; their words come in the next cue too."""

_STYLE = re.compile(r"\{\\[^{}]*\}|<[^<>]*>")  # SubStation's overrides, which players allow in SubRip; tags


def read_transcript(path: Path, clip_id: str, language: str) -> Transcript:
    """The transcript in a file, with the times of its words where it has cues.

    Encoded in UTF-8, or UTF-16 with its byte-order mark; styling is taken out. Cues come in the order of time; where
    two overlap, their words' times do. A line that stays on the screen from the cue before is not said again.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, too large, not text, or without a cue that can be read; the message names it.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: a transcript ends in {', '.join(SUFFIXES)}; rename or convert it")
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
    """The transcript in the folder with the media file's name, such as `talk.srt` for `talk.mp4`; None without one."""
    for suffix in SUFFIXES:
        for name in (f"{media.stem}{suffix}", f"{media.stem}{suffix.upper()}", f"{media.name}{suffix}"):
            if (path := Path(folder) / name).is_file():
                return path
    return None


def _decode(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path}: {size >> 20} MiB are no transcript; give the text alone")
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path}: holds zero bytes, so it is no text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_cues(content: str, kind: str, path: Path) -> list[Word]:
    """Cues that last and say something, by their start; their lines stay apart."""
    import webvtt
    from webvtt.errors import MalformedFileError

    try:
        found = webvtt.from_buffer(StringIO(content.lstrip("\n")), format=kind[1:])
    except MalformedFileError as error:
        wanted = "cues such as `1`, `00:00:01,000 --> 00:00:02,500`, text" if kind == ".srt" else "`WEBVTT` on top"
        raise ValueError(f"{path}: not a {kind} file ({error}; expected {wanted}); save it anew, or as .txt") from error
    cues = []
    for caption in found:
        start, end = (
            time.hours * 3600 + time.minutes * 60 + time.seconds + time.milliseconds / 1000
            for time in (caption.start_time, caption.end_time)
        )
        lines = (" ".join(html.unescape(_STYLE.sub("", line)).split()) for line in caption.text.split("\n"))
        text = "\n".join(line for line in lines if line)
        if text and end - start >= SHORTEST_CUE:
            cues.append(Word(text, start, end))
    return sorted(cues, key=lambda cue: cue.start)


def _without_repeats(cues: Sequence[Word]) -> list[Word]:
    """The cues as one line each, without the lines that the one before has shown: captions that roll up."""
    kept: list[Word] = []
    shown: list[str] = []
    for cue in cues:
        lines = cue.text.split("\n")
        old = next((n for n in range(len(lines) - 1, 0, -1) if lines[:n] == shown[-n:]), 0)
        shown = lines
        kept.append(Word(" ".join(lines[old:]), cue.start, cue.end))
    return kept
