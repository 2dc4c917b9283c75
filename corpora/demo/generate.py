"""Generation of the demo corpus: videos of talking avatars, `label.csv`, and true word times in `words.csv`."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corpora.demo.plan import (
    FPS,
    LIMIT,
    SPEECH_START,
    SPEECH_TAIL,
    draw_motion,
    draw_prosody,
    format_labels,
    plan_clip,
    split_of_speakers,
)
from corpora.demo.script import load_script
from corpora.demo.voice import synthesize
from corpora.files import atomic_file
from corpora.processes import exit_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from corpora.demo.config import DemoConfig

WORD_COLUMNS = ("clip_id", "index", "word", "start", "end")
AUDIO_BLOCK = 1024
"""Samples per frame of the AAC encoder."""
X264_OPTIONS = {"preset": "superfast", "crf": "21", "threads": "1"}

Word = tuple[str, int, str, float, float]
"""A row of `words.csv`."""


def generate(
    root: Path,
    config: DemoConfig,
    language: str = "en",
    progress: Callable[[int], None] | None = None,
    workers: int = 0,
    limit: float = LIMIT,
) -> None:
    """Write the corpus under `root`: `Raw/<video_id>/<clip_id>.mp4`, `words.csv`, `label.csv`.

    The same seed gives the same labels, sentences and word times everywhere, and the same media with the same version
    of the encoders, whatever the number of workers. `label.csv` is written last: where it exists, the corpus is
    complete.

    Args:
        root: the folder; created if missing.
        config: size and seed.
        language: a language that has a script.
        progress: called with 1 after each clip.
        workers: number of processes; 0: one per core, 1: this process.
        limit: labels are in [-limit, limit], in steps of 0.2.

    Raises:
        ValueError: there is no script for the language.
        RuntimeError: espeak-ng does not start.
    """
    root = Path(root)
    script = load_script(language)
    splits = split_of_speakers(config)
    plans = [plan_clip(config, index, script, splits) for index in range(config.clips)]
    words: list[Word] = []
    for clip_words in _map(partial(make_clip, root, config, language), config.clips, workers):
        words += clip_words
        if progress is not None:
            progress(1)
    with (
        atomic_file(root / "words.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as out,
    ):
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(WORD_COLUMNS)
        for clip_id, index, word, start, end in sorted(words):
            writer.writerow([clip_id, index, word, f"{start:.3f}", f"{end:.3f}"])
    with atomic_file(root / "label.csv") as temporary:
        temporary.write_text(format_labels(plans, limit), encoding="utf-8", newline="")


def _map(make: Callable[[int], list[Word]], clips: int, workers: int) -> Iterator[list[Word]]:
    """Yield the results of `make` for 0, 1, ... in order."""
    workers = min(workers or os.cpu_count() or 1, clips)
    if workers == 1:
        yield from map(make, range(clips))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        yield from pool.map(make, range(clips), chunksize=2)


def _start_worker() -> None:
    """Initialize a worker process, with one OpenCV thread instead of one per core."""
    import cv2

    exit_with_parent()
    cv2.setNumThreads(1)


def make_clip(root: Path, config: DemoConfig, language: str, index: int) -> list[Word]:
    """Write one clip's media, and return its words with times in seconds from the clip's start."""
    from corpora.demo.face import render  # loads OpenCV, which `DemoConfig` does not need

    script = load_script(language)
    plan = plan_clip(config, index, script, split_of_speakers(config))
    rng = np.random.default_rng((config.seed, 3, index))
    speech = synthesize(
        plan.sentence.words,
        f"{script.voice}+{plan.speaker.voice}",
        draw_prosody(plan.speaker, script.rate, plan.shown["audio"], rng),
        plan.sentence.emphasised,
        script.joiner,
    )

    # Audio with silence on either side, as long as a whole number of frames
    seconds = SPEECH_START + len(speech.samples) / speech.sample_rate + SPEECH_TAIL
    frames = math.ceil(seconds * FPS)
    samples = np.zeros(frames * speech.sample_rate // FPS, np.float32)
    lead = round(SPEECH_START * speech.sample_rate)
    samples[lead : lead + len(speech.samples)] = speech.samples

    # Video
    images = render(plan.speaker.look, draw_motion(plan.speaker, plan.shown["vision"], speech, frames, rng))
    write_mp4(root / "Raw" / plan.video_id / f"{plan.clip_id}.mp4", images, samples, speech.sample_rate)
    clip_id = f"{plan.video_id}/{plan.clip_id}"
    return [
        (clip_id, i, word, SPEECH_START + start, SPEECH_START + end)
        for i, (word, start, end) in enumerate(zip(plan.sentence.words, speech.starts, speech.ends, strict=True))
    ]


def write_mp4(path: Path, images: np.ndarray, samples: np.ndarray, sample_rate: int) -> None:
    """Write a video with H.264 and AAC; the file appears whole or not at all.

    Args:
        path: the file.
        images: [F, H, W, 3] uint8, BGR, at `FPS`.
        samples: [N] float32 in [-1, 1], mono.
        sample_rate: Hz.
    """
    import av

    with (
        atomic_file(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        video = container.add_stream("libx264", rate=FPS, options=X264_OPTIONS)
        video.height, video.width, video.pix_fmt = *images.shape[1:3], "yuv420p"
        audio = container.add_stream("aac", rate=sample_rate, layout="mono")
        audio.bit_rate = 96_000
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(video.encode())
        for start in range(0, len(samples), AUDIO_BLOCK):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + AUDIO_BLOCK], "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
