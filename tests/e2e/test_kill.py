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
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from corpora.demo import DemoConfig, generate
from corpora.manifest import write_manifest
from corpora.problems import read_problems
from corpora.raw import read_raw
from extractors.store import FeatureReader

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CLIPS = 24
KILLS = 10
SLOW_HOP = 0.005  # seconds; so short that there is time to be killed in
PATIENCE = 120  # seconds, for what takes a few


@dataclass(frozen=True)
class Workplace:
    """A folder with params.yaml and a manifest, in which audio is extracted in processes of their own."""

    folder: Path

    def start(self) -> subprocess.Popen[str]:
        """Extraction in its own process group, without Prefect."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "DASHFUSION_SERVER": "off"}
        environment.pop("DASHFUSION_SCRATCH", None)
        with open(self.folder / "log.txt", "w", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.extract", "audio"],
                cwd=self.folder, env=environment, stdout=log, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip

    def finish(self) -> str:
        """Extraction to its end; what it said, in one line."""
        code = self.start().wait(PATIENCE)
        said = (self.folder / "log.txt").read_text(encoding="utf-8")
        assert code == 0, said
        return " ".join(said.split())

    def results(self) -> int:
        """Clips that are finished in scratch."""
        return sum(1 for _ in (self.folder / ".dashfusion").rglob("*.npz"))

    def outputs(self) -> dict[str, bytes]:
        """What the stage hands on, by path."""
        made = [*(self.folder / "data/features").rglob("*"), *(self.folder / "data/problems").rglob("*")]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in made if path.is_file()}

    def leftovers(self) -> list[str]:
        """Temporary files and folders."""
        return [str(path) for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def workplace(folder: Path, corpus: Path, hop_seconds: float, max_failed_fraction: float = 0.0) -> Workplace:
    """A new one, with two workers."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"layout": "mmsa", "root": str(corpus)}
    params["extract"] |= {"workers": 2, "max_failed_fraction": max_failed_fraction}
    params["extract"]["audio"]["options"] = {"hop_seconds": hop_seconds}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    manifest, _ = read_raw(corpus, corpus="hurt", language="en", label_range=(-3.0, 3.0))
    write_manifest(manifest, folder / "data/manifest.parquet")
    return Workplace(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    generate(root, DemoConfig(clips=CLIPS, speakers=6, seed=11), workers=2)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus) -> tuple[dict[str, bytes], float]:
    """What a run that nobody disturbs makes, and the seconds it takes."""
    place = workplace(tmp_path_factory.mktemp("calm") / "place", corpus, SLOW_HOP)
    start = time.monotonic()
    assert "(0 from an earlier run" in place.finish()
    return place.outputs(), time.monotonic() - start


def killed(place: Workplace, results: int, delay: float) -> bool:
    """Start extraction; kill its processes `delay` seconds after so many results are there. False: it ended before."""
    process = place.start()
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and place.results() < results:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    if process.poll() is None:  # else its process group's number may be another's by now
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(PATIENCE)
    assert code in (0, -signal.SIGKILL), (place.folder / "log.txt").read_text(encoding="utf-8")
    return code != 0


def test_ten_kills_change_no_byte_and_repeat_nothing(tmp_path, corpus, undisturbed):
    """Half of them strike soon after a new result, or at the end where none is to come; the others at any moment."""
    outputs, seconds = undisturbed
    place = workplace(tmp_path / "place", corpus, SLOW_HOP)
    chance = random.Random(5)
    done, kills = [0], 0
    while kills < KILLS:
        before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*.npz")}
        if kills % 2:
            kills += killed(place, min(len(before) + 1, CLIPS), chance.uniform(0, 0.1))
        else:
            kills += killed(place, 0, chance.uniform(0, seconds))
        after = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*.npz")}
        assert before.items() <= after.items(), "a finished clip was made again"
        done.append(len(after))
    assert {*done} - {0, CLIPS}, f"no moment fell between the first result and the last: {done}"
    assert f"({done[-1]} from an earlier run" in place.finish() and done[-1] > 0
    assert place.outputs() == outputs
    assert place.leftovers() == []


def large_corpus(root: Path, originals: list[Path]) -> None:
    """200 clips: copies of the originals under many ids, three of them broken."""
    root.mkdir()
    with open(root / "label.csv", "w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["video_id", "clip_id", "text", "label", "mode"])
        for i in range(200):
            writer.writerow([f"video_{i // 10:02}", f"{i:03}", "Some words.", (i % 7) - 3, "train"])
            path = root / f"Raw/video_{i // 10:02}/{i:03}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = originals[i % len(originals)].read_bytes()
            # an empty box at the end makes each file one of its own: equal ones would share their result
            path.write_bytes(content + struct.pack(">I4sI", 12, b"free", i))
    whole = originals[0].read_bytes()
    (root / "Raw/video_00/007.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "Raw/video_05/050.mp4").write_bytes(b"")
    (root / "Raw/video_09/099.mp4").write_text("this is no video\n" * 100)


def test_of_200_clips_the_five_broken_ones_are_listed_and_195_have_features(tmp_path, corpus):
    originals = sorted((corpus / "Raw").rglob("*.mp4"))[:8]
    root = tmp_path / "large"
    large_corpus(root, originals)
    place = workplace(tmp_path / "place", root, hop_seconds=0.064, max_failed_fraction=0.05)
    (root / "Raw/video_12/123.mp4").unlink()
    (root / "Raw/video_19/199.mp4").write_bytes(originals[0].read_bytes())  # a sound clip, but not the one prepared
    place.finish()
    found = {p.clip_id: p.message for p in read_problems([place.folder / "data/problems/extract-audio.parquet"])}
    expected = {
        "video_00/007": "cut off",
        "video_05/050": "zero bytes",
        "video_09/099": "not a media file",
        "video_12/123": "no such file",
        "video_19/199": "changed since the manifest was made",
    }
    assert found.keys() == expected.keys()
    for clip_id, words in expected.items():
        assert words in found[clip_id]
    reader = FeatureReader(place.folder / "data/features/audio", "audio")
    assert len(reader) == 195 and not found.keys() & set(reader.clip_ids)
    assert all(len(sequence) for _, sequence in reader)


def test_ctrl_c_says_in_a_line_that_nothing_is_lost(tmp_path, corpus):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a process that a script put aside ignores it
    place = workplace(tmp_path / "place", corpus, SLOW_HOP)
    process = place.start()
    deadline = time.monotonic() + PATIENCE
    while not place.results():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
    assert process.wait(PATIENCE) == 130
    said = (place.folder / "log.txt").read_text(encoding="utf-8")
    assert "extract interrupted: what was finished is kept" in said and "Traceback" not in said
