"""Cost of feature extraction by number of clips on a local Dask cluster, and simulated speed-up with more workers.

Run:  python -m bench.scaling  [--clips 64 128 256 512] [--workers 2]      (about six minutes on two cores)

Measured: the stages `extract` (text, audio, vision) and `align` in separate processes, with `extract.runner: dask`,
over copies of eight generated clips of about three seconds. Copies differ in their last bytes and their transcripts, so
that none is found in scratch. Peak memory is that of a stage with all its workers, shared pages counted once.

Simulated: 22,856 clips (as many as CMU-MOSEI, as long as the demo's) on more workers, each work unit assigned to the
first free worker, with the costs of a clip, a worker's start and a stage's start from the largest measured size. It
assumes that network, shared disk and server are not bottlenecks.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import yaml

from bench.results import write_result
from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.files import sha256_of
from corpora.manifest import MODALITIES, Manifest, read_manifest, write_manifest
from corpora.problems import write_problems
from corpora.readers.raw import read_raw
from extractors.execution.units import assemble, describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
ORIGINALS = 8
SPLITS = ("train",) * 6 + ("valid", "test")
LARGE = 22_856
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SERVER_DELAY = 6.0  # seconds after which a Prefect server has stored all events


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one modality's stage in seconds.

    Attributes:
        stage: Start and end of the stage, independent of its work.
        worker: Start of a worker, including its models.
        clip: Extraction of one clip on a worker.
        assemble: Assembly of one clip's results in the stage's own process.
    """

    stage: float
    worker: float
    clip: float
    assemble: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Wall time and peak memory of a stage.

    Attributes:
        seconds: Wall time.
        megabytes: Peak memory of the stage with its workers.
        units: Seconds of an extraction's work units in the order of their start.
        span: Seconds from the start of the first work unit to the end of the last.
    """

    seconds: float
    megabytes: float
    units: tuple[float, ...] = ()
    span: float = 0.0


def make_copies(folder: Path, count: int) -> Manifest:
    """Make copies of a few generated clips, each with a different content."""
    generate(folder / "originals", DemoConfig(clips=ORIGINALS, speakers=ORIGINALS, seed=1))
    originals, _ = read_raw(folder / "originals", corpus="copies", language="en", label_range=(-3.0, 3.0))
    contents = {clip.clip_id: (folder / "originals" / clip.media).read_bytes() for clip in originals.clips}
    (folder / "Raw").mkdir()
    copies = []
    for number in range(count):
        clip = originals.clips[number % ORIGINALS]
        path = folder / "Raw" / f"{number:05}.mp4"
        path.write_bytes(contents[clip.clip_id] + struct.pack(">I4sI", 12, b"free", number))  # players skip this box
        fields = {"clip_id": f"{clip.video_id}/{number:05}", "media": f"Raw/{path.name}", "sha256": sha256_of(path)}
        copies.append(replace(clip, **fields, text=f"{clip.text} {number}", split=SPLITS[number % ORIGINALS]))
    return Manifest("copies", str(folder), (-3.0, 3.0), tuple(copies))


def make_workspace(folder: Path, manifest: Manifest, workers: int) -> Path:
    """Make a folder in which the stages from `transcribe` on can run."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"layout": "mmsa", "root": manifest.root}
    params["extract"] |= {"runner": "dask", "workers": workers}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    write_manifest(manifest, folder / params["paths"]["manifest"])
    write_problems([], folder / params["paths"]["problems"] / "prepare.parquet")
    return folder


def run_stage(folder: Path, *arguments: str) -> Measured:
    """Run a stage in the folder, and measure its time and the memory of its processes."""
    peak, done = [0.0], threading.Event()
    began = time.perf_counter()
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        command = [sys.executable, "-m", *arguments]
        stage = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=_watch_memory, args=(stage.pid, peak, done))
        watcher.start()
        code = stage.wait()
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
        log.seek(0)
        if code:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{log.read()[-3000:]}")
    return Measured(seconds, peak[0])


def _watch_memory(pid: int, peak: list[float], done: threading.Event) -> None:
    """Record the peak proportional set size, in which a page shared by n processes counts as 1/n in each."""
    while not done.wait(1.0):  # a measurement takes some milliseconds per process
        total = 0
        try:
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                total += process.memory_full_info().pss
        except psutil.Error:  # a process has just ended
            continue
        peak[0] = max(peak[0], total / 2**20)


@contextmanager
def prefect_server(folder: Path) -> Iterator[Path]:
    """Run a Prefect server for the stages, and yield the path of its database."""
    from flows.orchestration import prefect_server

    os.environ |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect"), "HF_HUB_OFFLINE": "1"}
    os.environ.pop("DASHFUSION_SERVER", None)
    port = prefect_server.free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    supervisor = prefect_server.start(psutil.Process(), port)
    try:
        if not prefect_server.wait_until_healthy(api_url, supervisor):
            raise SystemExit("no Prefect server could be started")
        os.environ["PREFECT_API_URL"] = api_url
        yield folder / "prefect" / "prefect.db"
    finally:
        supervisor.terminate()
        supervisor.wait()


def database_bytes(path: Path) -> int:
    """Return the size of the pages in use, including those in the write-ahead log."""
    with sqlite3.connect(path) as database:
        return int(np.prod([database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")]))


def task_runs() -> list[Any]:
    """Return all task runs in the order of their start."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    runs: list[Any] = []
    with get_client(sync_client=True) as client:
        while page := client.read_task_runs(sort=TaskRunSort.ID_DESC, limit=200, offset=len(runs)):
            runs += page
    return sorted(runs, key=lambda run: run.start_time)


def extract(folder: Path, modality: str) -> Measured:
    """Run an extraction stage, and read its work units' times from Prefect's task runs."""
    known = {run.id for run in task_runs()}
    stage = run_stage(folder, "flows.extract", modality)
    time.sleep(SERVER_DELAY)
    units = [run for run in task_runs() if run.id not in known]
    seconds = tuple((run.end_time - run.start_time).total_seconds() for run in units)
    span = (max(run.end_time for run in units) - units[0].start_time).total_seconds()
    return replace(stage, units=seconds, span=span)


def cost_of(stage: Measured, clips: int, workers: int, assemble_seconds: float) -> Cost:
    """Derive the costs of a stage. The first unit of each worker includes the worker's start, the others do not."""
    size = clips / len(stage.units)
    first, others = stage.units[:workers], stage.units[workers:]
    if not others:
        raise SystemExit(f"{clips} clips are {len(stage.units)} work units for {workers} workers: measure more clips")
    clip = float(np.mean(others)) / size
    worker = max(0.0, float(np.mean(first)) - size * clip)
    return Cost(max(0.0, stage.seconds - stage.span - assemble_seconds), worker, clip, assemble_seconds / clips)


def simulated_seconds(clips: int, workers: int, cost: Cost, size: int = 0) -> float:
    """Simulate a stage: each work unit goes to the first free worker, then one process assembles the results.

    Args:
        clips: Number of clips.
        workers: Number of workers.
        cost: Measured costs.
        size: Clips per work unit; 0 for the stage's own choice.
    """
    from flows.extract import unit_size

    size = size or unit_size(clips, workers)
    units = np.diff(np.append(np.arange(0, clips, size), clips))
    free = np.full(min(workers, len(units)), cost.worker, float)
    for unit in units:
        free[free.argmin()] += unit * cost.clip
    return float(cost.stage + free.max() + clips * cost.assemble)


def simulate(costs: Sequence[Cost], align: tuple[float, float]) -> dict[str, float]:
    """Simulate the three extractions and align, given as (seconds per clip, fixed seconds), one after the other."""
    align_seconds = LARGE * align[0] + align[1]

    def total(workers: int, size: int = 0) -> float:
        return align_seconds + sum(simulated_seconds(LARGE, workers, cost, size) for cost in costs)

    figures = {"simulated_clips": float(LARGE)}
    one_worker = total(1)
    for workers in WORKERS:
        seconds = total(workers)
        figures[f"simulated_{workers}_workers_seconds"] = seconds
        figures[f"simulated_{workers}_workers_times_faster"] = one_worker / seconds
    for size in (4, 16, 64, 256, 1024):
        figures[f"simulated_64_workers_units_of_{size}_seconds"] = total(64, size)
    minimum = align_seconds + sum(cost.stage + cost.worker + LARGE * cost.assemble for cost in costs)
    return figures | {"simulated_no_less_than_seconds": minimum, "simulated_most_times_faster": one_worker / minimum}


def megabytes(*folders: Path) -> float:
    """Return the size of all files in the folders."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / 2**20


def measure(sizes: Sequence[int], workers: int) -> dict[str, float]:
    """Measure all sizes, and simulate more workers."""
    figures: dict[str, float] = {"workers": float(workers)}
    extract_seconds, align_seconds = [], []
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        manifest = make_copies(Path(temporary).resolve() / "corpus", max(sizes))
        with prefect_server(Path(temporary).resolve()) as database:
            empty = database_bytes(database)
            for size in sizes:
                workspace = make_workspace(
                    Path(f"clips-{size}"), replace(manifest, clips=manifest.clips[:size]), workers
                )
                run_stage(workspace, "flows.transcribe")
                stages = {modality: extract(workspace, modality) for modality in MODALITIES}
                aligned = run_stage(workspace, "flows.align")
                extract_seconds.append(sum(stage.seconds for stage in stages.values()))
                align_seconds.append(aligned.seconds)
                seconds = extract_seconds[-1] + aligned.seconds
                figures |= {
                    f"clips_{size}_extract_seconds": extract_seconds[-1],
                    f"clips_{size}_align_seconds": aligned.seconds,
                    f"clips_{size}_clips_per_second": size / seconds,
                    f"clips_{size}_peak_megabytes": max(s.megabytes for s in (*stages.values(), aligned)),
                    f"clips_{size}_scratch_megabytes": megabytes(workspace / ".dashfusion" / "scratch"),
                    f"clips_{size}_output_megabytes": megabytes(workspace / "data"),
                }
                print(f"{size} clips: {seconds:.1f} s", flush=True)
            time.sleep(SERVER_DELAY)
            figures["prefect_kilobytes_a_task"] = (database_bytes(database) - empty) / 1024 / len(task_runs())
        figures |= _extrapolate(workspace, stages, sizes, workers, extract_seconds, align_seconds)
        os.chdir(ROOT)
    return figures


def _extrapolate(
    workspace: Path,
    stages: dict[str, Measured],
    sizes: Sequence[int],
    workers: int,
    extract_seconds: Sequence[float],
    align_seconds: Sequence[float],
) -> dict[str, float]:
    """Derive costs from the measurements of the largest size, and simulate more workers with them."""
    slope, fixed = np.polyfit(sizes, np.add(extract_seconds, align_seconds), 1)
    figures = {"fixed_seconds": float(fixed), "milliseconds_a_clip": 1000 * float(slope)}
    params = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    manifest = read_manifest(workspace / params["paths"]["manifest"])
    costs = {}
    for modality, stage in stages.items():
        chosen = params["extract"][modality]
        meta = describe(chosen["extractor"], chosen["options"])
        began = time.perf_counter()
        assemble(manifest.clips, Path(manifest.root), meta, workspace / ".dashfusion" / "scratch", workspace / "again")
        costs[modality] = cost = cost_of(stage, max(sizes), workers, time.perf_counter() - began)
        figures |= {
            f"{modality}_stage_start_seconds": cost.stage,
            f"{modality}_worker_start_seconds": cost.worker,
            f"{modality}_milliseconds_a_clip": 1000 * cost.clip,
            f"{modality}_assemble_milliseconds_a_clip": 1000 * cost.assemble,
        }
    simulated = sum(simulated_seconds(max(sizes), workers, cost) for cost in costs.values())
    figures["simulated_over_measured"] = simulated / extract_seconds[-1]
    align = np.polyfit(sizes, align_seconds, 1)
    return figures | simulate(list(costs.values()), (max(0.0, float(align[0])), max(0.0, float(align[1]))))


def page_tables(figures: dict[str, float], sizes: Sequence[int]) -> str:
    """Format the two tables of docs/scaling.md."""
    columns = ("extract_seconds", "align_seconds", "clips_per_second", "peak_megabytes", "scratch_megabytes")
    lines = ["| clips | extract, s | align, s | clips per second | peak MB | scratch MB | features and dataset MB |"]
    lines.append("|---|" + "---|" * (len(columns) + 1))
    for size in sizes:
        row = [figures[f"clips_{size}_{column}"] for column in (*columns, "output_megabytes")]
        lines.append(f"| {size} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    lines += ["", "| workers | hours | speed-up |", "|---|---|---|"]
    for workers in WORKERS:
        seconds, faster = (figures[f"simulated_{workers}_workers_{name}"] for name in ("seconds", "times_faster"))
        lines.append(f"| {workers} | {seconds / 3600:.2f} | {faster:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark, print the tables of docs/scaling.md, and write bench/results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sizes = sorted(options.clips)
    figures = measure(sizes, options.workers)
    for name, value in figures.items():
        print(f"{name:<44} {value:12.3f}")
    print(page_tables(figures, sizes))
    counts = " ".join(map(str, options.clips))
    is_default = options.clips == parser.get_default("clips") and options.workers == parser.get_default("workers")
    write_result(
        "scaling", figures, "scaling" if is_default else f"scaling --clips {counts} --workers {options.workers}"
    )


if __name__ == "__main__":
    main()
