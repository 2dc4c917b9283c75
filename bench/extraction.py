"""Speed and memory of extraction: one core, two workers, the first clip, and memory by clip length.

Run:  python -m bench.extraction CLIPS_FOLDER     (a folder with a few real videos of faces, with sound)
The real-time factor is seconds of processing per second of video, for warm audio.librosa and vision.face_landmarker
together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bench.results import own_peak_megabytes, write_result
from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.manifest import Clip, Manifest, write_manifest
from corpora.readers.raw import read_raw
from extractors.base import Source
from extractors.execution.units import limit_threads, work_units
from extractors.execution.workers import WorkerPool
from extractors.registry import create
from media.container import probe

if TYPE_CHECKING:
    from collections.abc import Callable

AUDIO = ("audio.librosa", {"hop_seconds": 0.046})
SCALING_CLIPS = 96
UNITS = 4  # as in the stage with two workers


def sources(folder: Path) -> list[Source]:
    """Return the folder's videos that have both video and audio."""
    videos = []
    for path in sorted(folder.iterdir()):
        info = probe(path)
        if info.has_audio and info.has_video:
            videos.append(Source(path.name, path, "", "en", info.duration))
    return videos


def in_new_process(task: Callable[..., float], *arguments: object) -> float:
    """Run a task in a new process, so that measurements do not affect each other's memory and warm-up."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), limit_threads, (1,)) as pool:
        return pool.submit(task, *arguments).result()


def real_time_factor(clips: list[Source], fps: float, passes: int = 3) -> float:
    """Return seconds of processing per second of video on one core: the median of several passes after a warm-up."""
    os.sched_setaffinity(0, {0})
    extractors = [create(*AUDIO), create("vision.face_landmarker", {"fps": fps})]
    seconds = []
    for _ in range(passes + 1):
        began = time.perf_counter()
        for extractor in extractors:
            list(extractor.extract(clips))
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[passes // 2] / sum(clip.duration or 0 for clip in clips)


def wall_seconds(clips: list[Clip], root: Path, workers: int) -> float:
    """Time vision at 10 frames per second in warm worker processes, as in the extract stage."""
    job = (root, "vision.face_landmarker", {"fps": 10.0})
    with (
        tempfile.TemporaryDirectory() as scratch,
        WorkerPool(workers, 600.0) as pool,
        ThreadPoolExecutor(workers) as threads,
    ):
        first = [[clip] for clip in clips[:workers]]  # one per worker, so that all have started
        list(threads.map(lambda unit: pool.run(unit, *job, Path(scratch) / "warm"), first))
        units = work_units(clips, len(clips) // UNITS)
        began = time.perf_counter()
        list(threads.map(lambda unit: pool.run(unit, *job, Path(scratch) / "work"), units))
        return time.perf_counter() - began


def first_clip_seconds(manifest: Manifest, folder: Path) -> float:
    """Time the extract stage for vision from its process's start to the first clip in scratch."""
    write_manifest(manifest, folder / "data" / "manifest.parquet")
    shutil.copy("params.yaml", folder)
    scratch = folder / "scratch"
    environment = os.environ | {"DASHFUSION_SCRATCH": str(scratch), "PYTHONPATH": str(Path.cwd())}
    began = time.perf_counter()
    command = [sys.executable, "-m", "flows.extract", "vision"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as stage:
        while stage.poll() is None and not any(scratch.glob("*/*/*.npz")):
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if stage.poll() is not None:
            raise RuntimeError(f"the stage ended with status {stage.returncode} before its first clip was seen")
        stage.terminate()
    return seconds


def write_long_clip(source: Path, seconds: float, path: Path) -> Path:
    """Write a clip that repeats the source, as H.264 and AAC."""
    import av

    with av.open(str(source)) as reader:
        frames = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
    with av.open(str(source)) as reader:
        audio_frames = [frame.to_ndarray() for frame in reader.decode(audio=0)]
        layout, rate = reader.streams.audio[0].layout.name, reader.streams.audio[0].rate
        sample_format = reader.streams.audio[0].format.name
    with av.open(str(path), "w") as writer:
        video = writer.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = writer.add_stream("aac", rate=rate, layout=layout)
        for number in range(int(seconds * 25)):
            writer.mux(video.encode(av.VideoFrame.from_ndarray(frames[number % len(frames)], format="rgb24")))
        samples = 0
        while samples < seconds * rate:
            index = samples // audio_frames[0].shape[-1] % len(audio_frames)
            frame = av.AudioFrame.from_ndarray(audio_frames[index], sample_format, layout)
            frame.sample_rate, frame.pts = rate, samples
            samples += frame.samples
            writer.mux(audio.encode(frame))
        writer.mux(video.encode())
        writer.mux(audio.encode())
    return path


def peak_megabytes(name: str, options: dict[str, float], clip: Path) -> float:
    """Extract one clip, and return this process's peak resident memory."""
    outcome = next(iter(create(name, options).extract([Source("long", clip, "", "en", None)])))
    if isinstance(outcome, Exception):
        raise outcome
    return own_peak_megabytes()


def main() -> None:
    """Run the benchmark, and write bench/results/extraction.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    clips = sources(parser.parse_args().clips)
    figures = {f"real_time_factor_{fps}fps": in_new_process(real_time_factor, clips, fps) for fps in (25, 10)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        generate(root, DemoConfig(clips=SCALING_CLIPS, speakers=12, seed=1))
        manifest, _ = read_raw(root, corpus="demo", language="en", label_range=(-3, 3))
        seconds = {workers: wall_seconds(list(manifest.clips), root, workers) for workers in (1, 2)}
        figures["two_workers_over_one"] = seconds[1] / seconds[2]
        figures["first_clip_seconds"] = first_clip_seconds(manifest, Path(folder))
        for minutes in (1, 10):
            long = write_long_clip(clips[0].media, 60 * minutes, Path(folder) / f"{minutes}.mp4")
            for name, options in (AUDIO, ("vision.face_landmarker", {"fps": 10.0})):
                key = f"peak_megabytes_{name.split('.')[0]}_{minutes}_minutes"
                figures[key] = in_new_process(peak_megabytes, name, options, long)
    for name, value in figures.items():
        print(f"{name:<36} {value:10.3f}")
    write_result("extraction", figures)


if __name__ == "__main__":
    main()
