"""A corpus with broken clips on its way to a dataset: what can be used is, the rest is listed with its reason."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from corpora.manifest import read_manifest
from corpora.problems import TooManyFailuresError, read_problems
from extractors.execution.cache import traceback_path
from extractors.store import FeatureReader
from flows.align import align
from flows.extract import extract
from flows.orchestration.settings import FORCE, scratch_folder
from flows.prepare import prepare
from flows.transcribe import transcribe

ROOT = Path(__file__).parents[2]
UNREADABLE = ("truncated", "empty", "text")
"""Clips whose files `prepare` cannot read; those of `damaged` have sound headers, and nothing that decodes."""


def write_corpus(root: Path, demo: Path, silent_clip: Path) -> None:
    """Write five generated clips; then truncated, empty, text, damaged, without transcript, without sound."""
    shutil.copytree(demo, root)
    with (root / "label.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    good = (root / "Raw" / rows[0]["video_id"] / f"{rows[0]['clip_id']}.mp4").read_bytes()
    folder = root / "Raw" / "odd"
    folder.mkdir()
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    media, index = good.index(b"mdat") + 4, good.index(b"moov") - 4
    (folder / "damaged.mp4").write_bytes(good[:media] + b"\xff" * (index - media) + good[index:])
    (folder / "wordless.mp4").write_bytes(good)
    shutil.copy(silent_clip, folder / "silent.mp4")
    for name in (*UNREADABLE, "damaged", "wordless", "silent"):
        text = "" if name == "wordless" else "Fine words."
        rows.append({"video_id": "odd", "clip_id": name, "text": text, "label": "1.0", "mode": "train"})
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, rows[0], restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_silent_clip(path: Path) -> Path:
    """One second of video without a sound stream."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 5 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory, demo) -> Path:
    """A folder with params.yaml for the broken corpus."""
    folder = tmp_path_factory.mktemp("broken")
    write_corpus(folder / "corpus", demo, write_silent_clip(folder / "silent.mp4"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"] |= {"corpus": "broken", "layout": "mmsa", "root": "corpus"}
    params["extract"] |= {"workers": 1, "max_failed_fraction": 0.5}
    params["extract"]["text"] = {"extractor": "text.words", "options": {}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.delenv("DASHFUSION_SCRATCH", raising=False)
    return project


def limited(max_failed_fraction: float) -> Path:
    """Write the project's parameters with another limit, and return their path."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["extract"]["max_failed_fraction"] = max_failed_fraction
    Path("limited.yaml").write_text(yaml.safe_dump(values))
    return Path("limited.yaml")


def test_more_unreadable_files_than_the_limit_stop_the_stage_that_finds_them(here):
    with pytest.raises(TooManyFailuresError, match=r"3 of 11 clips failed") as error:
        prepare.fn(limited(0.2))
    assert "UnreadableMedia 3" in str(error.value) and "odd/empty: UnreadableMedia" in str(error.value)
    assert len(read_problems([Path("data/problems/prepare.parquet")])) == 3


def test_unreadable_media_are_out_of_the_corpus_and_listed(here):
    prepare.fn()
    clips = {clip.clip_id for clip in read_manifest(Path("data/manifest.parquet")).clips}
    problems = read_problems([Path("data/problems/prepare.parquet")])
    assert {(p.clip_id, p.error) for p in problems} == {(f"odd/{name}", "UnreadableMedia") for name in UNREADABLE}
    assert len(clips) == 8 and not clips & {p.clip_id for p in problems}


def test_without_models_the_transcripts_are_the_corpuss_own(here):
    assert transcribe.fn() == {"texts": {"corpus": 7, "none": 1}, "methods": {"proportional": 7}}
    assert read_problems([Path("data/problems/transcribe.parquet")]) == []


@pytest.mark.parametrize("modality", ["audio", "vision", "text"])
def test_a_broken_file_fails_alone(here, modality):
    extract.fn(modality)
    reader = FeatureReader(Path("data/features") / modality, modality)
    problems = read_problems([Path(f"data/problems/extract-{modality}.parquet")])
    for problem in problems:
        trace = traceback_path(scratch_folder(), problem.traceback).read_text(encoding="utf-8")
        assert "MediaError" in trace and problem.message in trace
    failed = {problem.clip_id for problem in problems}
    assert failed == (set() if modality == "text" else {"odd/damaged"})
    assert len(reader) == 8 - len(failed)
    missing = {clip_id for clip_id, sequence in reader if not len(sequence)}
    assert missing == {"audio": {"odd/silent"}, "vision": set(), "text": {"odd/wordless"}}[modality]


def test_a_second_extraction_takes_what_is_done_and_tries_the_broken_again(here, capfd):
    before = {path.name: path.read_bytes() for path in Path("data/features/audio").iterdir()}
    shutil.rmtree("data/features/audio")  # as `dvc repro` does before it runs a stage
    extract.fn("audio")
    assert "7 from an earlier run" in " ".join(capfd.readouterr().out.split())
    assert {path.name: path.read_bytes() for path in Path("data/features/audio").iterdir()} == before


def test_a_forced_extraction_reuses_nothing(here, capfd, monkeypatch):
    before = {path.name: path.read_bytes() for path in Path("data/features/audio").iterdir()}
    scratch = {path: path.stat().st_mtime_ns for path in scratch_folder().glob("audio.*/*/*.npz")}
    monkeypatch.setenv(FORCE, "1")
    extract.fn("audio")
    capfd.readouterr()
    assert all(path.stat().st_mtime_ns > time for path, time in scratch.items()) and len(scratch) == 6
    assert {path.name: path.read_bytes() for path in Path("data/features/audio").iterdir()} == before
    monkeypatch.delenv(FORCE)
    extract.fn("audio")
    assert "7 from an earlier run" in " ".join(capfd.readouterr().out.split())


def test_a_later_stage_counts_the_clips_that_it_finds_itself(here):
    extract.fn("audio", limited(0.125))  # one of eight; those of `prepare` do not count again
    with pytest.raises(TooManyFailuresError) as error:
        extract.fn("audio", limited(0.12))
    message = str(error.value)
    assert "1 of 8 clips failed" in message and "odd/damaged" in message and "max_failed_fraction" in message


def test_a_clip_keeps_the_modalities_that_are_whole(here):
    extract.fn("audio")
    align.fn()
    rows = {row["clip_id"]: row for row in pq.read_table("data/dataset/train").to_pylist()}
    assert not rows["odd/silent"]["audio_values"] and rows["odd/silent"]["vision_values"]
    assert not rows["odd/wordless"]["text_values"] and rows["odd/wordless"]["audio_values"]
    assert rows["odd/wordless"]["word_times_method"] == "" and rows["odd/silent"]["word_times_method"] == "proportional"
    assert rows["odd/damaged"]["text_values"] and not rows["odd/damaged"]["vision_values"]
    assert not {f"odd/{name}" for name in UNREADABLE} & rows.keys()
    assert json.loads(Path("data/dataset/dataset.json").read_text())["clips"]["train"] == len(rows)
    stages = {(p.stage, p.modality) for p in read_problems([Path("data/problems.parquet")])}
    assert {("prepare", ""), ("extract", "audio"), ("extract", "vision")} <= stages
