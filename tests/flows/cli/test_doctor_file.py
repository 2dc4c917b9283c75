"""`dashfusion doctor FILE` and `export model` outside a project: no params.yaml is needed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from extractors.execution.reference import save_reference
from flows.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty folder as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, capfd: pytest.CaptureFixture) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments])
    return result.exit_code, " ".join((result.output + capfd.readouterr().out).split())


def test_a_media_file_is_decoded_without_a_project(empty, make_clip, capfd):
    clip = make_clip(empty / "clip.mp4", seconds=1.0)
    code, output = run("doctor", str(clip), capfd=capfd)
    assert code == 0, output
    assert "h264, 64 x 48 pixels, 25 frames per second" in output and "aac, 44100 Hz" in output
    assert "audio decoded 1.0 s" in output and "video decoded 1.0 s" in output
    assert [path.name for path in empty.iterdir()] == ["clip.mp4"]


def test_a_file_without_audio_and_one_that_is_no_media(empty, make_clip, capfd):
    code, output = run("doctor", str(make_clip(empty / "silent.mp4", "v", seconds=1.0)), capfd=capfd)
    assert code == 0 and "audio decoded no such stream" in output
    (empty / "text.mp4").write_text("this is no video\n" * 100)
    code, output = run("doctor", "text.mp4", capfd=capfd)
    assert code == 1 and "not a media file" in output and "Traceback" not in output


def test_a_checkpoints_extractors_look_at_the_file(empty, corpus, clip, capfd):
    code, output = run("doctor", str(clip), "--model", str(corpus / "models-unaligned/best"), capfd=capfd)
    assert code == 0, output
    assert "100% with a face" in output and "% voiced" in output


def test_a_checkpoint_is_exported_without_a_project(empty, corpus, capfd):
    best = shutil.copytree(corpus / "models-unaligned/best", empty / "best")
    code, output = run("export", "model", "out", "--model", str(best), capfd=capfd)
    assert code == 0 and output == "out: no params.yaml here: its card has the validation metrics"
    assert "On the validation clips" in (empty / "out/README.md").read_text()
    code, output = run("export", "model", "out2", capfd=capfd)
    assert code == 1 and "--model" in output


def test_a_checkpoint_is_compared_with_this_environment(empty, corpus, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty / "cache"))
    best = shutil.copytree(corpus / "models-unaligned/best", empty / "best")
    code, output = run("doctor", "best", capfd=capfd)
    assert code == 0 and "no reference clip" in output and "librosa" in output, output
    audio = json.loads((best / "checkpoint.json").read_text())["dataset"]["modalities"]["audio"]
    save_reference(audio["extractor"], audio["options"], empty)
    (made,) = (empty / "reference").iterdir()
    (best / "reference").mkdir()
    content = load_file(made)
    for by, expected, verdict in ((0.0, 0, "can be used here"), (1000.0, 1, "would be given other features")):
        save_file(content | {"values": content["values"] + np.float32(by)}, best / "reference/audio.safetensors")
        code, output = run("doctor", "best", capfd=capfd)
        assert code == expected and verdict in output, output
