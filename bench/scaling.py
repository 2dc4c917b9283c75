"""How the cost of features grows with the clips, on a local Dask cluster, and what more workers would gain.

Run:  python -m bench.scaling  [--clips 64 128 256 512] [--workers 2]      (about six minutes on two cores)

Measured: the stages `extract` (text, audio, vision) and `align` as processes of their own, with `extract.runner: dask`,
over copies of eight generated clips of about three seconds. A copy has another end and another transcript, so that
nothing is found in scratch. Peak memory is that of a stage with all its workers, shared pages counted once. The last
size also gives what a clip, a worker's start and a stage's start cost, and from these
simulated: 22,856 clips (CMU-MOSEI's number, the demo's length) on more workers, each work unit going to the worker that
is free first. It is arithmetic: network, shared disk and server are taken to keep up.
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
from corpora.demo import DemoConfig, generate
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
SERVER_STORES = 6.0  # seconds after which a Prefect server has stored what it was told


@dataclass(frozen=True, slots=True)
class Cost:
    """What one modality's stage costs, in seconds.

    Attributes:
        stage: its start and end, whatever it does.
        worker: a worker's start, its models loaded.
        clip: a clip on a worker.
        assemble: a clip when the one process of the stage puts the results together.
    """

    stage: float
    worker: float
    clip: float
    assemble: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A stage's wall seconds and peak memory.

    Attributes:
        units: of an extraction, the seconds of its work units in the order of their start.
        span: from the start of the first of them to the end of the last.
    """

    seconds: float
    megabytes: float
    units: tuple[float, ...] = ()
    span: float = 0.0


def make_copies(folder: Path, count: int) -> Manifest:
    """So many clips of a few generated ones, each with a content of its own."""
    generate(folder / "originals", DemoConfig(clips=ORIGINALS, speakers=ORIGINALS, seed=1))
    found, _ = read_raw(folder / "originals", corpus="copies", language="en", label_range=(-3.0, 3.0))
    contents = {clip.clip_id: (folder / "originals" / clip.media).read_bytes() for clip in found.clips}
    (folder / "Raw").mkdir()
    copies = []
    for number in range(count):
        clip = found.clips[number % ORIGINALS]
        path = folder / "Raw" / f"{number:05}.mp4"
        path.write_bytes(contents[clip.clip_id] + struct.pack(">I4sI", 12, b"free", number))  # which players skip
        named = {"clip_id": f"{clip.video_id}/{number:05}", "media": f"Raw/{path.name}", "sha256": sha256_of(path)}
        copies.append(replace(clip, **named, text=f"{clip.text} {number}", split=SPLITS[number % ORIGINALS]))
    return Manifest("copies", str(folder), (-3.0, 3.0), tuple(copies))


def workplace(folder: Path, manifest: Manifest, workers: int) -> Path:
    """A folder in which the stages from `transcribe` on can run."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"layout": "mmsa", "root": manifest.root}
    params["extract"] |= {"runner": "dask", "workers": workers}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    write_manifest(manifest, folder / params["paths"]["manifest"])
    write_problems([], folder / params["paths"]["problems"] / "prepare.parquet")
    return folder


def run_stage(folder: Path, *arguments: str) -> Measured:
    """Run a stage there, watching the memory of its processes."""
    peak, over = [0.0], threading.Event()
    began = time.perf_counter()
    with open(folder / "log.txt", "w+", encoding="utf-8") as log:
        command = [sys.executable, "-m", *arguments]
        stage = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        watcher = threading.Thread(target=_watch, args=(stage.pid, peak, over))
        watcher.start()
        code = stage.wait()
        seconds = time.perf_counter() - began
        over.set()
        watcher.join()
        log.seek(0)
        if code:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{log.read()[-3000:]}")
    return Measured(seconds, peak[0])


def _watch(pid: int, peak: list[float], over: threading.Event) -> None:
    """Proportional set size: a page that n processes share counts 1/n in each."""
    while not over.wait(1.0):  # a look costs some milliseconds a process
        total = 0
        try:
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                total += process.memory_full_info().pss
        except psutil.Error:  # one has ended meanwhile
            continue
        peak[0] = max(peak[0], total / 2**20)


@contextmanager
def prefect_server(folder: Path) -> Iterator[Path]:
    """A server for the stages to report to; the path of its database."""
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
    """Of the pages in use, those in the write-ahead log included."""
    with sqlite3.connect(path) as database:
        return int(np.prod([database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")]))


def task_runs() -> list[Any]:
    """All that the server knows, in the order of their start."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    found: list[Any] = []
    with get_client(sync_client=True) as client:
        while page := client.read_task_runs(sort=TaskRunSort.ID_DESC, limit=200, offset=len(found)):
            found += page
    return sorted(found, key=lambda run: run.start_time)


def extract(folder: Path, modality: str) -> Measured:
    """The stage, and from its task runs the work units'."""
    known = {run.id for run in task_runs()}
    stage = run_stage(folder, "flows.extract", modality)
    time.sleep(SERVER_STORES)
    units = [run for run in task_runs() if run.id not in known]
    seconds = tuple((run.end_time - run.start_time).total_seconds() for run in units)
    span = (max(run.end_time for run in units) - units[0].start_time).total_seconds()
    return replace(stage, units=seconds, span=span)


def cost_of(stage: Measured, clips: int, workers: int, assembling: float) -> Cost:
    """Taken apart: the first unit of each worker starts it, the others are work alone."""
    size = clips / len(stage.units)
    first, others = stage.units[:workers], stage.units[workers:]
    if not others:
        raise SystemExit(f"{clips} clips are {len(stage.units)} work units for {workers} workers: measure more clips")
    clip = float(np.mean(others)) / size
    worker = max(0.0, float(np.mean(first)) - size * clip)
    return Cost(max(0.0, stage.seconds - stage.span - assembling), worker, clip, assembling / clips)


def simulated_seconds(clips: int, workers: int, cost: Cost, size: int = 0) -> float:
    """Of a stage: units of about the same duration, each to the worker that is free first, then one process assembles.

    Args:
        size: clips of a unit; 0: as many as the stage would take.
    """
    from flows.extract import UNIT_CLIPS

    size = size or max(UNIT_CLIPS[0], min(UNIT_CLIPS[1], -(-clips // (2 * workers))))
    units = np.diff(np.append(np.arange(0, clips, size), clips))
    free = np.full(min(workers, len(units)), cost.worker, float)
    for unit in units:
        free[free.argmin()] += unit * cost.clip
    return float(cost.stage + free.max() + clips * cost.assemble)


def simulate(costs: Sequence[Cost], align: tuple[float, float]) -> dict[str, float]:
    """Seconds and speed-up of the three extractions, one after the other, and align (seconds a clip, fixed seconds)."""
    serial = LARGE * align[0] + align[1]

    def whole(workers: int, size: int = 0) -> float:
        return serial + sum(simulated_seconds(LARGE, workers, cost, size) for cost in costs)

    figures = {"simulated_clips": float(LARGE)}
    alone = whole(1)
    for workers in WORKERS:
        seconds = whole(workers)
        figures[f"simulated_{workers}_workers_seconds"] = seconds
        figures[f"simulated_{workers}_workers_times_faster"] = alone / seconds
    for size in (4, 16, 64, 256, 1024):
        figures[f"simulated_64_workers_units_of_{size}_seconds"] = whole(64, size)
    rest = serial + sum(cost.stage + cost.worker + LARGE * cost.assemble for cost in costs)
    return figures | {"simulated_no_less_than_seconds": rest, "simulated_most_times_faster": alone / rest}


def megabytes(*folders: Path) -> float:
    """Of all files there."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / 2**20


def measure(sizes: Sequence[int], workers: int) -> dict[str, float]:
    """All figures."""
    figures: dict[str, float] = {"workers": float(workers)}
    extract_seconds, align_seconds = [], []
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        manifest = make_copies(Path(temporary).resolve() / "corpus", max(sizes))
        with prefect_server(Path(temporary).resolve()) as database:
            empty = database_bytes(database)
            for size in sizes:
                place = workplace(Path(f"clips-{size}"), replace(manifest, clips=manifest.clips[:size]), workers)
                run_stage(place, "flows.transcribe")
                stages = {modality: extract(place, modality) for modality in MODALITIES}
                aligned = run_stage(place, "flows.align")
                extract_seconds.append(sum(stage.seconds for stage in stages.values()))
                align_seconds.append(aligned.seconds)
                seconds = extract_seconds[-1] + aligned.seconds
                figures |= {
                    f"clips_{size}_extract_seconds": extract_seconds[-1],
                    f"clips_{size}_align_seconds": aligned.seconds,
                    f"clips_{size}_clips_per_second": size / seconds,
                    f"clips_{size}_peak_megabytes": max(s.megabytes for s in (*stages.values(), aligned)),
                    f"clips_{size}_scratch_megabytes": megabytes(place / ".dashfusion" / "scratch"),
                    f"clips_{size}_output_megabytes": megabytes(place / "data"),
                }
                print(f"{size} clips: {seconds:.1f} s", flush=True)
            time.sleep(SERVER_STORES)
            figures["prefect_kilobytes_a_task"] = (database_bytes(database) - empty) / 1024 / len(task_runs())
        figures |= _beyond(place, stages, sizes, workers, extract_seconds, align_seconds)
        os.chdir(ROOT)
    return figures


def _beyond(
    place: Path,
    stages: dict[str, Measured],
    sizes: Sequence[int],
    workers: int,
    extract_seconds: Sequence[float],
    align_seconds: Sequence[float],
) -> dict[str, float]:
    """From the measurements of the largest size, the last one: what things cost, and the simulation."""
    slope, fixed = np.polyfit(sizes, np.add(extract_seconds, align_seconds), 1)
    figures = {"fixed_seconds": float(fixed), "milliseconds_a_clip": 1000 * float(slope)}
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    manifest = read_manifest(place / params["paths"]["manifest"])
    costs = {}
    for modality, stage in stages.items():
        chosen = params["extract"][modality]
        meta = describe(chosen["extractor"], chosen["options"])
        began = time.perf_counter()
        assemble(manifest.clips, Path(manifest.root), meta, place / ".dashfusion" / "scratch", place / "again")
        costs[modality] = cost = cost_of(stage, max(sizes), workers, time.perf_counter() - began)
        figures |= {
            f"{modality}_stage_start_seconds": cost.stage,
            f"{modality}_worker_start_seconds": cost.worker,
            f"{modality}_milliseconds_a_clip": 1000 * cost.clip,
            f"{modality}_assemble_milliseconds_a_clip": 1000 * cost.assemble,
        }
    again = sum(simulated_seconds(max(sizes), workers, cost) for cost in costs.values())
    figures["simulated_over_measured"] = again / extract_seconds[-1]
    align = np.polyfit(sizes, align_seconds, 1)
    return figures | simulate(list(costs.values()), (max(0.0, float(align[0])), max(0.0, float(align[1]))))


def page_tables(figures: dict[str, float], sizes: Sequence[int]) -> str:
    """The two tables of docs/scaling.md."""
    columns = ("extract_seconds", "align_seconds", "clips_per_second", "peak_megabytes", "scratch_megabytes")
    lines = ["| clips | extract, s | align, s | clips a second | peak MB | scratch MB | features and dataset MB |"]
    lines.append("|---|" + "---|" * (len(columns) + 1))
    for size in sizes:
        row = [figures[f"clips_{size}_{column}"] for column in (*columns, "output_megabytes")]
        lines.append(f"| {size} | " + " | ".join(f"{value:.1f}" for value in row) + " |")
    lines += ["", "| workers | hours | times faster |", "|---|---|---|"]
    for workers in WORKERS:
        seconds, faster = (figures[f"simulated_{workers}_workers_{name}"] for name in ("seconds", "times_faster"))
        lines.append(f"| {workers} | {seconds / 3600:.2f} | {faster:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print (the tables as docs/scaling.md has them), write bench/results/scaling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    sizes = sorted(options.clips)
    figures = measure(sizes, options.workers)
    for name, value in figures.items():
        print(f"{name:<44} {value:12.3f}")
    print(page_tables(figures, sizes))
    words = " ".join(map(str, options.clips))
    same = options.clips == parser.get_default("clips") and options.workers == parser.get_default("workers")
    write_result("scaling", figures, "scaling" if same else f"scaling --clips {words} --workers {options.workers}")


if __name__ == "__main__":
    main()
