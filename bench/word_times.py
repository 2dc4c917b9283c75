"""Errors of each method's word times on a generated demo corpus with known word times.

Run:  python -m bench.word_times [--clips 96] [--aligner FOLDER]     (a wav2vec2 CTC model of English)
"evenly", the baseline, distributes the words over the whole clip without its audio. "file" reads the true times and
only matches words, so any error is one of the matching.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.results import write_result
from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.readers.raw import read_raw
from extractors.base import ExtractionError, Source
from extractors.registry import create
from extractors.transcripts.asr import SAMPLE_RATE
from extractors.transcripts.forced_alignment import CtcAligner
from extractors.transcripts.word_timings import read_word_files
from extractors.transcripts.words import match_words, split_words, timing_error, word_times
from media.audio import read_audio

if TYPE_CHECKING:
    from corpora.manifest import Clip, Manifest

AUDIO = ("audio.librosa", {"hop_seconds": 0.046})

Times = Iterator[np.ndarray | None]
"""Word times [W, 2] of each clip, or None if the method fails."""


def evenly(manifest: Manifest) -> Times:
    """Distribute each clip's words over the whole clip."""
    for clip in manifest.clips:
        yield word_times(split_words(clip.text), None, clip.duration or 0.0)


def proportional(manifest: Manifest) -> Times:
    """Distribute the words over the voiced part, as `align` does."""
    sources = [Source(c.clip_id, manifest.media_path(c), c.text, c.language, c.duration) for c in manifest.clips]
    for clip, audio in zip(manifest.clips, create(*AUDIO).extract(sources), strict=True):
        if isinstance(audio, ExtractionError):
            raise audio
        yield word_times(split_words(clip.text), audio, clip.duration or 0.0)


def from_file(manifest: Manifest, path: Path) -> Times:
    """Read a file of word times."""
    words = read_word_files(path, manifest.clips)
    for clip in manifest.clips:
        yield match_words(split_words(clip.text), words.get(clip.clip_id, ()))


def by_ctc(manifest: Manifest, model: str) -> Times:
    """Align words by forced alignment."""
    aligner = CtcAligner(model)
    for clip in manifest.clips:
        try:
            words = aligner.align(
                read_audio(manifest.media_path(clip), SAMPLE_RATE), split_words(clip.text), clip.language
            )
        except ExtractionError as error:
            print(f"{clip.clip_id}: {error}")
            yield None
        else:
            yield np.array([(word.start, word.end) for word in words])


def measure(clips: Sequence[Clip], true: Sequence[np.ndarray], estimated: Times) -> dict[str, float]:
    """Return the errors over the words of all clips for which the method succeeded."""
    pairs = [(a, b) for a, b in zip(true, estimated, strict=True) if b is not None]
    figures: dict[str, float] = {"failed_clips": len(clips) - len(pairs)}
    if pairs:
        error = timing_error(*map(np.concatenate, zip(*pairs, strict=True)))
        for edge in ("start", "end"):
            figures |= {f"{edge}_{kind}": value for kind, value in error[edge].items()}
        figures |= {"overlap": error["overlap"], "words": error["words"]}
    return figures


def main() -> None:
    """Run the benchmark, and write bench/results/word_times.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--aligner", help="folder or id of a wav2vec2 CTC model, to include forced alignment")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        generate(root, DemoConfig(clips=arguments.clips, speakers=12, seed=1))
        manifest, _ = read_raw(root, corpus="demo", language="en", label_range=(-3, 3))
        known = read_word_files(root / "words.csv", manifest.clips)
        true = [np.array([(word.start, word.end) for word in known[clip.clip_id]]) for clip in manifest.clips]
        methods = {
            "evenly": evenly(manifest),
            "proportional": proportional(manifest),
            "file": from_file(manifest, root / "words.csv"),
        }
        if arguments.aligner:
            methods["ctc"] = by_ctc(manifest, arguments.aligner)
        figures = {name: measure(manifest.clips, true, times) for name, times in methods.items()}
    columns = list(figures["evenly"])
    print(f"{'method':<14}" + "".join(f"{column:>14}" for column in columns) + "   seconds")
    for name, errors in figures.items():
        print(f"{name:<14}" + "".join(f"{errors.get(column, float('nan')):14.4g}" for column in columns))
    write_result("word_times", {f"{name}_{key}": v for name, errors in figures.items() for key, v in errors.items()})


if __name__ == "__main__":
    main()
