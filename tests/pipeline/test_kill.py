"""Extraction that is killed, or meets broken media, on a small demo corpus: nothing is lost, nothing is done twice."""

from __future__ import annotations

import csv
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from corpora.manifest import write_manifest
from corpora.problems import read_problems
from corpora.readers.raw import read_raw
from extractors.execution.cache import traceback_path
from extractors.store import FeatureReader
from extractors.transcripts.transcribe import TranscribeConfig, transcribe

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIPS = 48
PATIENCE = 120  # seconds, for what takes a few


@dataclass(frozen=True)
class Workplace:
    """A folder with params.yaml and a manifest, in which a modality is extracted in processes of their own."""

    folder: Path
    modality: str

    def start(self) -> subprocess.Popen[str]:
        """Extraction in its own process group, without Prefect."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DASHFUSION_SERVER": "off"}
        environment.pop("DASHFUSION_SCRATCH", None)
        with (self.folder / "log.txt").open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.extract", self.modality],
                cwd=self.folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

    def finish(self) -> str:
        """Extraction to its end; what it said, in one line."""
        code = self.start().wait(PATIENCE)
        said = (self.folder / "log.txt").read_text(encoding="utf-8")
        assert code == 0, said
        return " ".join(said.split())

    def killed(self, results: int, delay: float) -> bool:
        """Start it, and kill its processes `delay` seconds after so many results are there. False: it ended before."""
        process = self.start()
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and len(self.results()) < results:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is None:  # else its process group's number may be another's by now
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait(PATIENCE)
        assert code in (0, -signal.SIGKILL), (self.folder / "log.txt").read_text(encoding="utf-8")
        return code != 0

    def results(self) -> dict[Path, int]:
        """Clips that are finished in scratch, and when they were."""
        return {path: path.stat().st_mtime_ns for path in (self.folder / ".dashfusion").rglob("*.npz")}

    def outputs(self) -> dict[str, bytes]:
        """What the stage hands on, by path."""
        made = [*(self.folder / "data/features").rglob("*"), *(self.folder / "data/problems").rglob("*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in made if path.is_file()}

    def leftovers(self) -> list[str]:
        """Temporary files and folders."""
        return [str(path) for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def workplace(folder: Path, corpus: Path, modality: str, vision_fps: float = 5) -> Workplace:
    """A new one, with two workers, but one for text, which takes seconds to load its model."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"layout": "mmsa", "root": str(corpus)}
    params["extract"] |= {"workers": 1 if modality == "text" else 2, "max_failed_fraction": 0.05}
    params["extract"]["vision"]["options"]["fps"] = vision_fps
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    manifest, _ = read_raw(corpus, corpus="hurt", language="en", label_range=(-3.0, 3.0))
    write_manifest(manifest, folder / "data/manifest.parquet")
    scratch = folder / ".dashfusion/scratch"
    transcribe(
        folder / "data/manifest.parquet", folder / "data/transcripts.parquet", TranscribeConfig(), scratch, PATIENCE
    )
    return Workplace(folder, modality)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[bytes]:
    """Eight small videos."""
    root = tmp_path_factory.mktemp("originals")
    generate(root, DemoConfig(clips=8, speakers=4, seed=11), workers=2)
    return [path.read_bytes() for path in sorted((root / "Raw").rglob("*.mp4"))]


def copies(root: Path, originals: list[bytes], count: int) -> Path:
    """A corpus of so many clips: the originals under many ids, each with words of its own."""
    root.mkdir()
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["video_id", "clip_id", "text", "label", "mode"])
        for i in range(count):
            writer.writerow([f"video_{i // 10:02}", f"{i:03}", f"Some words, the {i}th time.", (i % 7) - 3, "train"])
            path = root / f"Raw/video_{i // 10:02}/{i:03}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            # an empty box at the end makes each file one of its own: equal ones would share their result
            path.write_bytes(originals[i % len(originals)] + struct.pack(">I4sI", 12, b"free", i))
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, originals) -> Path:
    """One of its clips is broken: what is said of it is as steady as the features are."""
    root = copies(tmp_path_factory.mktemp("corpus") / "root", originals, CLIPS)
    broken = root / "Raw/video_04/040.mp4"
    broken.write_bytes(originals[0][: len(originals[0]) // 2])
    return root


@pytest.mark.parametrize(("modality", "kills"), [("audio", 3), ("text", 2), ("vision", 2)])
def test_kills_change_no_byte_and_repeat_nothing(tmp_path, corpus, modality, kills):
    """One in three strikes while the processes come up, the others soon after a new result."""
    calm = workplace(tmp_path / "calm", corpus, modality)
    start = time.monotonic()
    assert "(0 from an earlier run" in calm.finish()
    coming_up = (time.monotonic() - start) / 2
    place = workplace(tmp_path / "place", corpus, modality)
    chance = random.Random(5)
    done, struck = [0], 0
    while struck < kills:
        before = place.results()
        if struck % 3 == 2 or len(before) == len(calm.results()):
            struck += place.killed(0, chance.uniform(0, coming_up))
        else:
            struck += place.killed(len(before) + 1, chance.uniform(0, 0.1))
        after = place.results()
        assert before.items() <= after.items(), "a finished clip was made again"
        done.append(len(after))
    assert {*done} - {0, len(calm.results())}, f"no moment fell between the first result and the last: {done}"
    assert f"({done[-1]} from an earlier run" in place.finish() and done[-1] > 0
    assert place.outputs() == calm.outputs() != {}
    assert place.leftovers() == []


def test_of_50_clips_the_five_broken_ones_are_listed_and_45_have_features(tmp_path, originals):
    root = copies(tmp_path / "large", originals, 50)
    (root / "Raw/video_00/007.mp4").write_bytes(originals[0][: len(originals[0]) // 2])
    (root / "Raw/video_02/020.mp4").write_bytes(b"")
    (root / "Raw/video_04/049.mp4").write_text("this is no video\n" * 100)
    manifest, unreadable = read_raw(root, corpus="hurt", language="en", label_range=(-3.0, 3.0))
    found = {problem.clip_id: problem.message for problem in unreadable}
    expected = {"video_00/007": "cut off", "video_02/020": "zero bytes", "video_04/049": "not a media file"}
    assert found.keys() == expected.keys() and all(expected[clip_id] in found[clip_id] for clip_id in found)
    assert len(manifest.clips) == 47 and not found.keys() & {clip.clip_id for clip in manifest.clips}
    place = workplace(tmp_path / "place", root, "audio", vision_fps=2)
    (root / "Raw/video_03/033.mp4").unlink()
    (root / "Raw/video_04/040.mp4").write_bytes(originals[1])  # a sound clip, but not the one prepared
    expected = {
        "video_03/033": "no such file",
        "video_04/040": "changed since the manifest was made",
    }
    for modality, broken in (("audio", expected), ("vision", expected), ("text", {})):
        replace(place, modality=modality).finish()
        problems = read_problems([place.folder / f"data/problems/extract-{modality}.parquet"])
        assert sorted(problem.clip_id for problem in problems) == sorted(broken)
        for problem in problems:
            assert broken[problem.clip_id] in problem.message
            trace = traceback_path(place.folder / ".dashfusion/scratch", problem.traceback)
            assert problem.message in trace.read_text(encoding="utf-8")
        reader = FeatureReader(place.folder / "data/features" / modality, modality)
        assert len(reader) == 47 - len(broken) and not broken.keys() & set(reader.clip_ids)
        assert all(len(sequence) for _, sequence in reader)


def test_ctrl_c_says_in_a_line_that_nothing_is_lost(tmp_path, corpus):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a process that a script put aside ignores it
    place = workplace(tmp_path / "place", corpus, "audio")
    process = place.start()
    deadline = time.monotonic() + PATIENCE
    while not place.results():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
    assert process.wait(PATIENCE) == 130
    said = (place.folder / "log.txt").read_text(encoding="utf-8")
    assert "extract interrupted: finished work is kept" in said and "Traceback" not in said
