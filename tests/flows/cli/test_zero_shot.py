"""`dashfusion zero-shot`: what it asks about, what it prints, and when it fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from tests.support.chat import KEY, completion
from tests.support.stores import make

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Manifest and transcripts of 7 clips in each of train and valid, 6 in test."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(app, ["zero-shot", *arguments])


def test_the_clips_of_the_split_are_asked_once_with_the_key_of_the_variable(project, endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    done = run(endpoint.url, "--model", "tiny", "--key-variable", "MY_KEY")
    printed = " ".join(done.output.split())
    assert done.exit_code == 0, done.output
    assert "6 scores; 6 asked now -> studies/results/zero_shot/tiny-" in printed
    assert "cost: 600 tokens of prompts, 42 of answers" in printed
    assert {sent["headers"]["Authorization"] for sent in endpoint.requests} == {f"Bearer {KEY}"}
    assert KEY not in done.output and not any(KEY in f.read_text() for f in project.rglob("*.jsonl"))
    assert "0 asked now" in run(endpoint.url, "--model", "tiny").output and len(endpoint.requests) == 6
    assert "7 asked now" in " ".join(run(endpoint.url, "--model", "tiny", "--split", "valid").output.split())
    assert "Authorization" not in endpoint.requests[-1]["headers"]


def test_what_goes_wrong_is_a_line_and_an_exit_code(project, endpoint):
    endpoint.reply = lambda transcript: completion("1") if transcript else None
    unknown = run(endpoint.url, "--model", "tiny", "--split", "exam")
    assert unknown.exit_code == 1 and "--split exam: choose one of train, valid, test" in unknown.output
    endpoint.reply = lambda transcript: (401, {}, b"bad key")
    refused = run(endpoint.url, "--model", "tiny")
    assert refused.exit_code == 1 and "check the API key" in " ".join(refused.output.split())
    endpoint.reply = lambda transcript: (500, {}, b"")
    failed = run(endpoint.url, "--model", "tiny", "--tries", "1", "--workers", "1")
    printed = " ".join(failed.output.split())
    assert failed.exit_code == 1 and "5 clips got no answer" in printed and "the other clips were not asked" in printed
