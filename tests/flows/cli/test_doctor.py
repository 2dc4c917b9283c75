"""`dashfusion doctor` on small corpora."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from corpora.inspection import inspect_corpus
from flows.cli import doctor
from flows.cli.app import app
from flows.display.metrics import format_duration

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the parameters as they are shipped; the quickest extractor stands for all three."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "MODALITIES", ("audio",))
    return tmp_path


def run(*arguments: str, capfd: pytest.CaptureFixture) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, " ".join((result.output + capfd.readouterr().out).split())


def test_a_sound_corpus_passes_and_its_time_is_estimated(here, demo, capfd):
    code, said = run(str(demo), "--sample", "2", capfd=capfd)
    assert code == 0
    for part in ("usable rows 5 of 5", "video codec h264 5", "without audio 0", "going by 2 clips", "audio.librosa"):
        assert part in said
    assert "0 of 5 rows cannot be used" in said
    assert f"dashfusion use corpus=mmsa prepare.root={demo} prepare.corpus={demo.name}" in said
    assert sorted(path.name for path in here.iterdir()) == ["params.yaml"]  # nothing is written


def test_too_many_unusable_rows_end_in_exit_code_1_with_reasons(here, demo, capfd):
    broken = here / "broken"
    shutil.copytree(demo, broken)
    victim = sorted((broken / "Raw").rglob("*.mp4"))[0]
    victim.write_text("this is no video\n" * 100)
    code, said = run(str(broken), "--sample", "0", capfd=capfd)
    assert code == 1
    assert "UnreadableMedia 1" in said
    unbroken = said.replace(" ", "")  # long lines are broken anywhere
    assert f"{victim.name}:1700bytes,butnotamediafile" in unbroken
    assert "1 of 5 rows cannot be used (20.0%; extract.max_failed_fraction allows 2.0%)" in said
    assert "dashfusion use extract.max_failed_fraction=0.2 To use" in said
    assert "Extraction by" not in said


def test_a_folder_that_is_no_corpus_says_so(here, capfd):
    code, said = run(str(here), capfd=capfd)
    assert code == 1 and "label.csv" in said and "Traceback" not in said


def test_a_folder_of_features_is_recognised_and_counted(here, capfd):
    steps = np.ones((4, 2, 3), np.float32)
    split = {"text": steps, "audio": steps, "vision": steps, "regression_labels": np.linspace(-0.8, 0.8, 4)}
    split |= {"raw_text": ["那部电影很好。"] * 4}
    (here / "features").mkdir()
    content = {name: split | {"id": [f"{name}$_${i}" for i in range(4)]} for name in ("train", "valid", "test")}
    (here / "features/mine.pkl").write_bytes(pickle.dumps(content))
    code, said = run("features", capfd=capfd)
    assert code == 0 and "usable rows 12 of 12" in said and "without audio" not in said
    line = "prepare.root=features/mine.pkl prepare.corpus=mine 'prepare.label_range=[-1,1]' prepare.language=zh"
    assert f"dashfusion use corpus=mmsa_pickle {line}" in said
    again = run("features/mine.pkl", capfd=capfd)
    assert again == (code, said.replace("features: 0 of", "features/mine.pkl: 0 of")), "the file instead of its folder"


def test_a_folder_of_other_csd_files_says_what_they_must_be_called(here, capfd):
    (here / "CMU_MOSI_COVAREP.csd").touch()
    for name in ("CMU_MOSI_COVAREP.csd", "."):
        code, said = run(name, capfd=capfd)
        assert code == 1 and "labels.csd: no such file" in said and "or links so called: docs/mmsa.md" in said


def test_several_tables_are_listed_with_the_one_that_is_read(here, demo, capfd):
    shutil.copytree(demo, here / "several")
    (here / "several/label.csv").rename(here / "several/ratings.csv")
    (here / "several/speakers.csv").write_text("who,age\nann,30\n")
    for path in ("several", "several/ratings.csv"):
        code, said = run(path, "--sample", "0", capfd=capfd)
        assert code == 0 and "table ratings.csv, comma" in said
        assert "not read speakers.csv: no column media (the clip's file); found who, age;" in said
        assert "words.csv: videos that its rows lead to: 5; with a label: 0" in said
        assert "prepare.table=ratings.csv" in said


def test_the_sample_spans_the_durations_and_takes_readable_clips_only(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "c")
    clips = inspect_corpus(demo, language="en", label_range=(-3, 3)).manifest.clips
    shortest, *_, longest = sorted(clips, key=lambda clip: clip.duration)
    found = inspect_corpus(demo, language="en", label_range=(-3, 3))
    assert doctor.sample_clips(found, 2) == [shortest, longest]
    assert len(doctor.sample_clips(found, 99)) == 5 and doctor.sample_clips(found, 0) == []
    (tmp_path / "c" / longest.media).write_bytes(b"")
    found = inspect_corpus(tmp_path / "c", language="en", label_range=(-3, 3))
    assert longest.clip_id not in {clip.clip_id for clip in doctor.sample_clips(found, 99)}


@pytest.mark.parametrize(("seconds", "words"), [(11.6, "12 s"), (245, "4 min 05 s"), (12_000, "3 h 20 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert format_duration(seconds) == words
