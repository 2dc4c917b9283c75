"""How far each method's word times are from the true ones, on a generated demo corpus whose words were timed.

Run:  python -m bench.word_times [--clips 96] [--aligner FOLDER]     (a wav2vec2 CTC model of English)
"evenly" shares the whole clip out, without its sound: what there is without any method. "file" reads the true times
themselves and only matches words, so that anything but 0 would be an error of the matching.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.results import write_result
from corpora.demo import DemoConfig, generate
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
"""[W, 2] a clip, None where the method fails."""


def evenly(manifest: Manifest) -> Times:
    """Each clip's words over the whole of it."""
    for clip in manifest.clips:
        yield word_times(split_words(clip.text), None, clip.duration or 0.0)


def proportional(manifest: Manifest) -> Times:
    """Over the voiced part, as `align` does it."""
    sources = [Source(c.clip_id, manifest.media_path(c), c.text, c.language, c.duration) for c in manifest.clips]
    for clip, sound in zip(manifest.clips, create(*AUDIO).extract(sources), strict=True):
        if isinstance(sound, ExtractionError):
            raise sound
        yield word_times(split_words(clip.text), sound, clip.duration or 0.0)


def from_file(manifest: Manifest, path: Path) -> Times:
    """From a file of word times."""
    found = read_word_files(path, manifest.clips)
    for clip in manifest.clips:
        yield match_words(split_words(clip.text), found.get(clip.clip_id, ()))


def by_ctc(manifest: Manifest, model: str) -> Times:
    """Forced alignment."""
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
    """Errors over the words of the clips that the method could time."""
    pairs = [(a, b) for a, b in zip(true, estimated, strict=True) if b is not None]
    figures: dict[str, float] = {"failed_clips": len(clips) - len(pairs)}
    if pairs:
        error = timing_error(*map(np.concatenate, zip(*pairs, strict=True)))
        for edge in ("start", "end"):
            figures |= {f"{edge}_{kind}": value for kind, value in error[edge].items()}
        figures |= {"overlap": error["overlap"], "words": error["words"]}
    return figures


def main() -> None:
    """Measure, print, write bench/results/word_times.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--aligner", help="folder or id of a wav2vec2 CTC model; without one, ctc is left out")
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
    for name, found in figures.items():
        print(f"{name:<14}" + "".join(f"{found.get(column, float('nan')):14.4g}" for column in columns))
    write_result("word_times", {f"{name}_{key}": v for name, found in figures.items() for key, v in found.items()})


if __name__ == "__main__":
    main()
