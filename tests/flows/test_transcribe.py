"""The transcribe stage on a small demo corpus, whose word times lie beside its table."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from corpora.problems import Problem, TooManyFailuresError, read_problems
from extractors.transcripts.table import read_transcripts
from extractors.transcripts.transcribe import TranscribeSummary
from flows import transcribe as stage
from flows.orchestration.settings import FORCE
from flows.prepare import prepare
from flows.transcribe import transcribe

ROOT = Path(__file__).parents[2]
WORDS = Path("data/generated/words.csv")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A demo corpus of three clips, prepared, its word times named in params.yaml; to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["prepare"]["demo"] |= {"clips": 3, "speakers": 3}
    params["extract"] |= {"workers": 1}
    params["transcribe"]["word_times"] = str(WORDS)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DASHFUSION_SCRATCH", raising=False)
        prepare.fn()
    return folder


@pytest.fixture
def here(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the prepared corpus as the working directory."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "copy"))
    monkeypatch.delenv("DASHFUSION_SCRATCH", raising=False)
    return Path.cwd()


def test_the_corpuss_own_word_times_time_the_clips_that_they_know(here):
    lines = WORDS.read_text().splitlines(keepends=True)
    last = lines[-1].split(",")[0]
    WORDS.write_text("".join(line for line in lines if not line.startswith(last)))  # of two clips of three
    assert transcribe.fn() == {"texts": {"corpus": 3}, "methods": {"file": 2, "proportional": 1}}
    transcripts = read_transcripts(Path("data/transcripts.parquet"))
    assert transcripts[last].times_method == "" and len(transcripts) == 3
    first = lines[1].rstrip().split(",")
    assert transcripts[first[0]].start[0] == pytest.approx(float(first[3]))
    assert transcripts[first[0]].end[0] == pytest.approx(float(first[4]))


@pytest.mark.parametrize(("force", "fresh"), [("0", False), ("1", True)])
def test_a_forced_stage_processes_clips_with_a_kept_result_again(here, monkeypatch, force, fresh):
    calls = []

    def fake(*arguments: object) -> TranscribeSummary:
        calls.append(arguments)
        return TranscribeSummary({"corpus": 3}, {}, 0, ())

    monkeypatch.setattr(stage, "transcribe_clips", fake)
    monkeypatch.setenv(FORCE, force)
    transcribe.fn()
    assert calls[0][-1] is fresh


def test_more_failures_than_allowed_stop_the_stage(here, monkeypatch):
    listed = [Problem(f"v/{i}", "transcribe", "text", "MediaError", "torn") for i in range(2)]
    notes = [Problem(f"v/{i}", "transcribe", "text", "OtherWords", "other") for i in range(100)]

    def fake(*_arguments: object) -> TranscribeSummary:
        return TranscribeSummary({"corpus": 60}, {}, 0, (*notes, *listed))

    monkeypatch.setattr(stage, "transcribe_clips", fake)
    with pytest.raises(TooManyFailuresError, match="2 of 60 clips failed"):
        transcribe.fn()
    assert len(read_problems([Path("data/problems/transcribe.parquet")])) == 102
    monkeypatch.setattr(stage, "transcribe_clips", lambda *_: TranscribeSummary({"corpus": 60}, {}, 0, tuple(notes)))
    assert transcribe.fn()["texts"] == {"corpus": 60}
