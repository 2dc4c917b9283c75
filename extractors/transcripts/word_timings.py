"""Word times that come with a corpus: a CSV table, a folder of Praat TextGrids, or a CMU-MultimodalSDK `.csd`.

Times that are returned are seconds from the clip's start. N words of a video, S segments of a video.
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
"""Names of a TextGrid's word tier, in lower case: Montreal Forced Aligner's, P2FA's, WebMAUS's."""

TOLERANCE = 0.25
"""Seconds. A word may end so much after its clip, as rounding and the codecs' padding make it; it is cut."""
OTHER_SEGMENTS = 1.0
"""Seconds. Where clips and their segments differ by more (in the median), the segments are not these clips."""

LARGEST_GRID = 64 << 20
"""Bytes of a TextGrid: hundreds of hours of speech."""


def read_word_files(path: Path, clips: Sequence[Clip], segments: Path | None = None) -> dict[str, tuple[Word, ...]]:
    """Words and times of the clips that the files know, by clip_id.

    - A file `.csv`: see `read_word_table`.
    - A folder of TextGrids, text format, short or long, UTF-8 or UTF-16: `<clip_id>.TextGrid`, or in any folder
      below `<video_id>_<clip>.TextGrid` or `<video_id>$_$<clip>.TextGrid`. The words are the intervals of the
      tier `words` or `word`, of all tiers `<speaker> - words`, or of the only interval tier; silences are left out.
    - A file `.csd` of words, whose times are those of the whole video, and `segments`, a `.csd` with each clip's
      start and end in its video, such as the labels'. Row i of a video's segments, or the key `video[i]`, is the
      clip numbered i + 1, or i in a corpus that has a clip numbered 0. So CMU-MOSI is numbered; CMU-MOSEI's clips
      bear the numbers of transcript lines, of which some have no label, and are refused where it shows. A
      word belongs to the segment that its middle lies in, and is cut at its edges.

    Args:
        clips: of the manifest. Words of other clips are passed over.
        segments: for a `.csd` only.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: what is there cannot be read or mapped, lacks its reader's package, holds an impossible time
            or a time outside the clip, or knows none of the clips. The message names file, clip and line or key.
    """
    path = Path(path)
    kind = "folder" if path.is_dir() else path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no word times here; give a .csv, a .csd or a folder of TextGrids")
    if segments is not None and kind != ".csd":
        raise ValueError(f"{segments}: segments belong to a .csd of words, but {path} is none; leave them out")
    if kind == ".csv":
        found = read_word_table(path)
    elif kind == "folder":
        found = _read_textgrids(path, clips)
    elif kind == ".csd":
        found = _read_csd(path, clips, segments)
    else:
        raise ValueError(f"{path}: word times are read from a .csv, a .csd or a folder of TextGrids")
    known = {clip.clip_id: _inside(found[clip.clip_id], clip, path) for clip in clips if clip.clip_id in found}
    if clips and not known:
        raise ValueError(
            f"{path}: knows none of the {len(clips)} clips, such as {clips[0].clip_id}; "
            f"what it knows: {', '.join(sorted(found)[:3]) or 'nothing'}"
        )
    return known


def read_word_table(path: Path) -> dict[str, tuple[Word, ...]]:
    """Words by clip_id, from CSV columns clip_id, index, word, start, end (seconds from the clip's start), any order.

    Raises:
        ValueError: not a CSV in UTF-8, a column is absent, the words of a clip are not numbered 0, 1, 2, ... or
            not in the order of time, or a time is impossible.
    """
    clips: dict[str, list[Word]] = {}
    with open(path, encoding="utf-8-sig", newline="") as handle:
        rows = csv.DictReader(handle)
        try:
            absent = set(COLUMNS) - set(rows.fieldnames or ())
            if absent:
                raise ValueError(f"{path}: no column {', '.join(sorted(absent))}; has {rows.fieldnames}")
            for row in rows:
                words = clips.setdefault(row["clip_id"], [])
                where = f"{path}, line {rows.line_num}: clip {row['clip_id']}"
                if (row["index"] or "").strip() != str(len(words)):
                    raise ValueError(f"{where} has word {row['index']} where word {len(words)} is due")
                words.append(_word(row["word"] or "", row["start"], row["end"], where))
                if len(words) > 1 and words[-1].start < words[-2].start:
                    raise ValueError(f"{where}: {words[-1]} comes after {words[-2]}; sort them")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, near line {rows.line_num + 1}: not a CSV table in UTF-8: {error}") from error
    return {clip_id: tuple(words) for clip_id, words in clips.items()}


def _word(text: str, start: Any, end: Any, where: str) -> Word:
    """A word whose times can be true."""
    try:
        word = Word(text.strip(), float(start), float(end))
    except (TypeError, ValueError):
        raise ValueError(f"{where}, word {text!r}: its times are {start!r} and {end!r}, not two numbers") from None
    if not (math.isfinite(word.start) and math.isfinite(word.end) and 0 <= word.start <= word.end):
        raise ValueError(f"{where}, word {text!r}: no time runs from {word.start:g} to {word.end:g} s; correct it")
    return word


def _inside(words: Sequence[Word], clip: Clip, path: Path) -> tuple[Word, ...]:
    """The words, the last of them cut at the clip's end."""
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
    """Words of the TextGrids below the folder that belong to a clip."""
    if find_spec("praatio") is None:
        raise ValueError(f"{folder}: TextGrids need the package praatio; pip install -e '.[words]'")
    known = {clip.clip_id for clip in clips}
    flat: dict[str, set[str]] = {}
    for clip in clips:
        name = clip.clip_id.removeprefix(f"{clip.video_id}/")
        for joiner in ("_", "$_$"):
            flat.setdefault(f"{clip.video_id}{joiner}{name}", set()).add(clip.clip_id)
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".textgrid")
    if not paths:
        raise ValueError(f"{folder}: no .TextGrid in it; give a .csv, a .csd or a folder of TextGrids")
    files: dict[str, Path] = {}
    for path in paths:
        clip_id = path.relative_to(folder).with_name(path.stem).as_posix()
        if clip_id not in known:
            fitting = sorted(flat.get(path.stem, ()))
            if len(fitting) > 1:
                raise ValueError(f"{path}: may be clip {' or '.join(fitting)}; move it to {fitting[0]}.TextGrid")
            clip_id = fitting[0] if fitting else clip_id
        if clip_id in files:
            raise ValueError(f"{path} and {files[clip_id]} are both clip {clip_id}; remove one")
        files[clip_id] = path
    return {clip_id: _read_textgrid(path) if clip_id in known else () for clip_id, path in files.items()}


def _read_textgrid(path: Path) -> tuple[Word, ...]:
    """Words of one TextGrid, in the order of time."""
    from praatio import textgrid
    from praatio.utilities.errors import PraatioException

    if path.stat().st_size > LARGEST_GRID:
        raise ValueError(f"{path}: {path.stat().st_size >> 20} MiB are no TextGrid of a clip")
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="silence")
    except (PraatioException, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # It does not say itself what it reads; what it meets first in a damaged file shows in all of these.
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: not a TextGrid in Praat's text format: {said}; save it anew") from error
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
        # The reader takes what it understood of a file that was cut off; Praat's intervals fill the whole tier.
        if tier.entries and tier.entries[-1].end < tier.maxTimestamp - TOLERANCE:
            raise ValueError(
                f"{path}, tier {tier.name!r}: ends at {tier.entries[-1].end:g} s of {tier.maxTimestamp:g} s, so the "
                "file was cut off; save it anew"
            )
        spoken = [entry for entry in tier.entries if entry.label.strip().lower() not in SILENCES]
        words += [_word(entry.label, entry.start, entry.end, f"{path}, tier {tier.name!r}") for entry in spoken]
    return tuple(sorted(words, key=lambda word: (word.start, word.end)))


def _read_csd(path: Path, clips: Sequence[Clip], segments: Path | None) -> dict[str, tuple[Word, ...]]:
    """Words of the clips, cut out of their videos' by the segments."""
    if find_spec("h5py") is None:
        raise ValueError(f"{path}: a .csd needs the package h5py; pip install -e '.[words]'")
    if segments is None:
        raise ValueError(
            f"{path}: a .csd has the times of whole videos, aligned to segments or not; give also the .csd with the "
            "clips' starts and ends as segments, such as CMU_MOSI_Opinion_Labels.csd"
        )
    videos = {clip.video_id for clip in clips}
    rows = _read_segments(segments, videos)
    words = _read_video_words(path, videos)
    base = 0 if any(_number(clip, segments) == 0 for clip in clips if clip.video_id in rows) else 1
    found, differences = {}, []
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
        found[clip.clip_id] = tuple(
            Word(word.text, max(word.start - start, 0.0), min(word.end, end) - start)
            for word in words[clip.video_id]
            if start <= (word.start + word.end) / 2 < end
        )
    if differences and median(differences) > OTHER_SEGMENTS:
        raise ValueError(
            f"{segments}: its segments differ from the clips' durations by {median(differences):.1f} s in the median, "
            "so they are other clips; give the segments that the clips were cut by, or the word times as a .csv"
        )
    return found


def _number(clip: Clip, segments: Path) -> int:
    name = clip.clip_id.removeprefix(f"{clip.video_id}/")
    if not re.fullmatch(r"[0-9]{1,9}", name):
        raise ValueError(
            f"{segments}: clip {clip.clip_id} has no number, so its segment is unknown; give the word times as a .csv"
        )
    return int(name)


def _read_segments(path: Path, videos: set[str]) -> dict[str, dict[int, tuple[float, float]]]:
    """Start and end in the video, by video and number of the segment."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    with open_sequence(path) as data:
        for key, video, index in sequence_keys(data, videos, path):
            for row, (start, end) in enumerate(read_intervals(data[key], f"{path}, key {key!r}").tolist()):
                number = row if index is None else index
                if row and index is not None:
                    raise ValueError(
                        f"{path}, key {key!r}: several intervals; these are no segments, but what is in one"
                    )
                if number in found.setdefault(video, {}):
                    raise ValueError(f"{path}: segment {number} of video {video} is there twice")
                found[video][number] = start, end
    return found


def _read_video_words(path: Path, videos: set[str]) -> dict[str, list[Word]]:
    """Words of each video in its own time.

    The SDK's `align` names what it cuts `video[i]` and keeps the video's times, so the pieces are put together;
    a word in two overlapping pieces counts once.
    """
    found: dict[str, set[Word]] = {}
    with open_sequence(path) as data:
        for key, video, _ in sequence_keys(data, videos, path):
            where = f"{path}, key {key!r}"
            intervals = read_intervals(data[key], where).tolist()
            texts = read_texts(data[key], len(intervals), where)
            words = found.setdefault(video, set())
            for text, (start, end) in zip(texts, intervals, strict=True):
                if text.strip().lower() not in SILENCES:
                    words.add(Word(text.strip(), start, end))
    return {video: sorted(words, key=lambda word: (word.start, word.end)) for video, words in found.items()}
