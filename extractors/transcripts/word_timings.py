"""Readers of a corpus's word times: a CSV table, a folder of Praat TextGrids, or a CMU-MultimodalSDK `.csd`.

Returned times are seconds from the clip's start.
"""

from __future__ import annotations

import csv
import math
import re
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from corpora.readers.csd import SILENCES, open_sequence, read_intervals, read_texts, sequence_keys
from extractors.transcripts.words import Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corpora.manifest import Clip

COLUMNS = ("clip_id", "index", "word", "start", "end")

WORD_TIERS = ("words", "word", "ort-mau")
"""Lower-case names of a TextGrid's word tier: those of Montreal Forced Aligner, P2FA and WebMAUS."""

TOLERANCE = 0.25
"""Seconds by which a word may end after its clip, due to rounding and codec padding; it is cut."""

MAX_SEGMENT_MISMATCH = 1.0
"""Largest median difference in seconds between the durations of clips and segments; beyond it, they are different."""

MAX_TEXTGRID_BYTES = 64 << 20
"""Limit of a TextGrid's size: hundreds of hours of speech."""


def read_word_files(path: Path, clips: Sequence[Clip], segments: Path | None = None) -> dict[str, tuple[Word, ...]]:
    """Read the timed words of clips, by clip id.

    - `.csv` file: see `read_word_table`.
    - Folder of TextGrids in Praat's long or short text format, UTF-8 or UTF-16: `<clip_id>.TextGrid`, or
      `<video_id>_<clip>.TextGrid` or `<video_id>$_$<clip>.TextGrid` in any subfolder. The words are the intervals of
      the tier `words` or `word`, of all tiers `<speaker> - words`, or of the only interval tier, without silences.
    - `.csd` file of words, whose times are relative to the video, with `segments`, a `.csd` of each clip's start and
      end in its video, such as the labels'. Row i of a video's segments, or the key `video[i]`, is the clip numbered
      i + 1, or i in a corpus with a clip numbered 0. This is CMU-MOSI's numbering. CMU-MOSEI's clips have the numbers
      of transcript lines, some of which have no label; such clips are rejected where that can be detected. A word
      belongs to the segment that contains its middle, and is cut at the segment's edges.

    Args:
        path: the file or folder.
        clips: clips of the manifest; words of other clips are ignored.
        segments: for a `.csd` only.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: unreadable or ambiguous content, a missing package, an invalid time or one outside the clip, or none
            of the clips in the file. The message names file, clip, and line or key.
    """
    path = Path(path)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no word times here; give a .csv, a .csd or a folder of TextGrids")
    if segments is not None and kind != ".csd":
        raise ValueError(f"{segments}: segments belong to a .csd of words, but {path} is none; leave them out")
    if kind == ".csv":
        words = read_word_table(path)
    elif kind == "folder":
        words = _read_textgrids(path, clips)
    elif kind == ".csd":
        words = _read_csd(path, clips, segments)
    else:
        raise ValueError(f"{path}: word times are read from a .csv, a .csd or a folder of TextGrids")
    cut = {clip.clip_id: _cut_at_end(words[clip.clip_id], clip, path) for clip in clips if clip.clip_id in words}
    if clips and not cut:
        raise ValueError(
            f"{path}: has none of the {len(clips)} clips, such as {clips[0].clip_id}; "
            f"it has: {', '.join(sorted(words)[:3]) or 'nothing'}"
        )
    return cut


def read_word_table(path: Path) -> dict[str, tuple[Word, ...]]:
    """Read words by clip id from a CSV with the columns clip_id, index, word, start, end (seconds in the clip).

    Raises:
        ValueError: not a CSV in UTF-8, a missing column, words of a clip that are not numbered 0, 1, 2, ... in the
            order of time, or an invalid time.
    """
    clips: dict[str, list[Word]] = {}
    with Path(path).open(encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        try:
            missing = set(COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; has {rows.fieldnames}")
            for row in rows:
                words = clips.setdefault(row["clip_id"], [])
                where = f"{path}, line {rows.line_num}: clip {row['clip_id']}"
                if (row["index"] or "").strip() != str(len(words)):
                    raise ValueError(f"{where} has word {row['index']} where word {len(words)} is expected")
                words.append(_check_word(row["word"] or "", row["start"], row["end"], where))
                if len(words) > 1 and words[-1].start < words[-2].start:
                    raise ValueError(f"{where}: {words[-1]} comes after {words[-2]}; sort them")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, near line {rows.line_num + 1}: not a CSV table in UTF-8: {error}") from error
    return {clip_id: tuple(words) for clip_id, words in clips.items()}


def _check_word(text: str, start: Any, end: Any, where: str) -> Word:
    """Return a word after checking its times."""
    try:
        word = Word(text.strip(), float(start), float(end))
    except (TypeError, ValueError):
        raise ValueError(f"{where}, word {text!r}: its times are {start!r} and {end!r}, not two numbers") from None
    if not (math.isfinite(word.start) and math.isfinite(word.end) and 0 <= word.start <= word.end):
        raise ValueError(f"{where}, word {text!r}: {word.start:g} to {word.end:g} s is not a valid time; correct it")
    return word


def _cut_at_end(words: Sequence[Word], clip: Clip, path: Path) -> tuple[Word, ...]:
    """Cut words at the clip's end, within `TOLERANCE`."""
    if clip.duration is None:
        return tuple(words)
    end = float(clip.duration)
    for word in words:
        if word.end > end + TOLERANCE:
            raise ValueError(
                f"{path}: clip {clip.clip_id}, word {word.text!r} ends at {word.end:g} s, but the clip lasts "
                f"{end:.2f} s; times must count from the clip's start, and file and clip be the same recording"
            )
    return tuple(Word(word.text, min(word.start, end), min(word.end, end)) for word in words)


def _read_textgrids(folder: Path, clips: Sequence[Clip]) -> dict[str, tuple[Word, ...]]:
    """Read the TextGrids below the folder, by clip id; those of unknown clips are empty."""
    if find_spec("praatio") is None:
        raise ValueError(f"{folder}: TextGrids need the package praatio; pip install -e '.[words]'")
    # Clip ids by the flat names of their files
    known = {clip.clip_id for clip in clips}
    flat: dict[str, set[str]] = {}
    for clip in clips:
        name = clip.clip_id.removeprefix(f"{clip.video_id}/")
        for joiner in ("_", "$_$"):
            flat.setdefault(f"{clip.video_id}{joiner}{name}", set()).add(clip.clip_id)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".textgrid")
    if not paths:
        raise ValueError(f"{folder}: no .TextGrid in it; give a .csv, a .csd or a folder of TextGrids")
    # Files by clip id
    files: dict[str, Path] = {}
    for path in paths:
        clip_id = path.relative_to(folder).with_name(path.stem).as_posix()
        if clip_id not in known:
            candidates = sorted(flat.get(path.stem, ()))
            if len(candidates) > 1:
                raise ValueError(f"{path}: may be clip {' or '.join(candidates)}; move it to {candidates[0]}.TextGrid")
            clip_id = candidates[0] if candidates else clip_id
        if clip_id in files:
            raise ValueError(f"{path} and {files[clip_id]} are both clip {clip_id}; remove one")
        files[clip_id] = path
    return {clip_id: _read_textgrid(path) if clip_id in known else () for clip_id, path in files.items()}


def _read_textgrid(path: Path) -> tuple[Word, ...]:
    """Read the words of one TextGrid, sorted by time."""
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    if path.stat().st_size > MAX_TEXTGRID_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size >> 20} MiB are too large for a TextGrid of a clip")
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
    except (PraatioException, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # praatio does not validate the file: damage shows in any of these
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a TextGrid in Praat's text format: {reason}; save it again") from error
    tiers = {tier.name: tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)}
    chosen = [tier for name, tier in tiers.items() if name.lower() in WORD_TIERS]
    chosen = chosen or [tier for name, tier in tiers.items() if name.lower().endswith(" - words")]
    chosen = chosen or list(tiers.values())
    if not chosen or (len(chosen) > 1 and not all(tier.name.lower().endswith(" - words") for tier in chosen)):
        raise ValueError(
            f"{path}: which of the interval tiers {', '.join(map(repr, tiers)) or '(none)'} holds the words? "
            "name it 'words'"
        )
    words = []
    for tier in chosen:
        # praatio accepts truncated files, but Praat's intervals always fill the whole tier
        if tier.entries and tier.entries[-1].end < tier.maxTimestamp - TOLERANCE:
            raise ValueError(
                f"{path}, tier {tier.name!r}: ends at {tier.entries[-1].end:g} s of {tier.maxTimestamp:g} s, so the "
                "file was truncated; save it again"
            )
        spoken = [entry for entry in tier.entries if entry.label.strip().lower() not in SILENCES]
        words += [_check_word(entry.label, entry.start, entry.end, f"{path}, tier {tier.name!r}") for entry in spoken]
    return tuple(sorted(words, key=lambda word: (word.start, word.end)))


def _read_csd(path: Path, clips: Sequence[Clip], segments: Path | None) -> dict[str, tuple[Word, ...]]:
    """Read the words of videos, and assign them to clips by the segments."""
    if find_spec("h5py") is None:
        raise ValueError(f"{path}: a .csd needs the package h5py; pip install -e '.[words]'")
    if segments is None:
        raise ValueError(
            f"{path}: the times of a .csd are relative to the video; give also the .csd with the clips' starts and "
            "ends as segments, such as CMU_MOSI_Opinion_Labels.csd"
        )
    videos = {clip.video_id for clip in clips}
    rows = _read_segments(segments, videos)
    words = _read_video_words(path, videos)
    base = 0 if any(_number(clip, segments) == 0 for clip in clips if clip.video_id in rows) else 1
    clip_words, differences = {}, []
    for clip in clips:
        if clip.video_id not in rows or clip.video_id not in words:
            continue
        row = _number(clip, segments) - base
        if row not in rows[clip.video_id]:
            raise ValueError(
                f"{segments}: clip {clip.clip_id} would be segment {row} (clips count from {base}), but its video "
                f"has {len(rows[clip.video_id])} of them; where clips are not numbered by these rows, as in CMU-MOSEI, "
                "give the word times as a .csv"
            )
        start, end = rows[clip.video_id][row]
        if clip.duration is not None:
            differences.append(abs(clip.duration - (end - start)))
            end = min(end, start + float(clip.duration))
        clip_words[clip.clip_id] = tuple(
            Word(word.text, max(word.start - start, 0.0), min(word.end, end) - start)
            for word in words[clip.video_id]
            if start <= (word.start + word.end) / 2 < end
        )
    if differences and median(differences) > MAX_SEGMENT_MISMATCH:
        raise ValueError(
            f"{segments}: its segments differ from the clips' durations by {median(differences):.1f} s in the median, "
            "so they are other clips; give the segments that the clips were cut by, or the word times as a .csv"
        )
    return clip_words


def _number(clip: Clip, segments: Path) -> int:
    name = clip.clip_id.removeprefix(f"{clip.video_id}/")
    if not re.fullmatch(r"[0-9]{1,9}", name):
        raise ValueError(
            f"{segments}: clip {clip.clip_id} has no number, so its segment is unknown; give the word times as a .csv"
        )
    return int(name)


def _read_segments(path: Path, videos: set[str]) -> dict[str, dict[int, tuple[float, float]]]:
    """Read segments' start and end in the video, by video and segment number."""
    segments: dict[str, dict[int, tuple[float, float]]] = {}
    with open_sequence(path) as data:
        for key, video, index in sequence_keys(data, videos, path):
            for row, (start, end) in enumerate(read_intervals(data[key], f"{path}, key {key!r}").tolist()):
                number = row if index is None else index
                if row and index is not None:
                    raise ValueError(
                        f"{path}, key {key!r}: several intervals, so these are not segments, but data of one"
                    )
                if number in segments.setdefault(video, {}):
                    raise ValueError(f"{path}: segment {number} of video {video} occurs twice")
                segments[video][number] = start, end
    return segments


def _read_video_words(path: Path, videos: set[str]) -> dict[str, list[Word]]:
    """Read the words of each video, with times relative to the video.

    The SDK's `align` cuts a video into keys `video[i]` and keeps the video's times, so these pieces are joined; a word
    in two overlapping pieces counts once.
    """
    video_words: dict[str, set[Word]] = {}
    with open_sequence(path) as data:
        for key, video, _ in sequence_keys(data, videos, path):
            where = f"{path}, key {key!r}"
            intervals = read_intervals(data[key], where).tolist()
            texts = read_texts(data[key], len(intervals), where)
            words = video_words.setdefault(video, set())
            for text, (start, end) in zip(texts, intervals, strict=True):
                if text.strip().lower() not in SILENCES:
                    words.add(Word(text.strip(), start, end))
    return {video: sorted(words, key=lambda word: (word.start, word.end)) for video, words in video_words.items()}
