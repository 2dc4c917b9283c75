"""A built wheel with the pinned packages of `deploy/`, in its own environment and a folder with one checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from corpora.manifest import MODALITIES
from extractors.execution.reference import save_reference
from flows.orchestration import prefect_server

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
CODE = ("pyproject.toml", "README.md", "LICENSE", "media", "corpora", "extractors", "model", "flows")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder of the programs of an environment with the wheel and deploy/requirements-serve.txt alone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in CODE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")  # some 2.3 GB
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pins = ROOT / "deploy/requirements-serve.txt"
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    subprocess.run([*pip, "install", "-q", "--no-compile", "--no-deps", wheel, "-r", pins], check=True)
    return programs


@pytest.fixture(scope="module")
def folder(corpus, clip, tmp_path_factory) -> Path:
    """A folder with a clip and a checkpoint, which has a reference clip, and nothing else."""
    folder = tmp_path_factory.mktemp("product")
    shutil.copy(clip, folder / "clip.mp4")
    best = shutil.copytree(corpus / "models-unaligned/best", folder / "best")
    modalities = json.loads((best / "checkpoint.json").read_text())["dataset"]["modalities"]
    scratch = tmp_path_factory.mktemp("scratch")
    (best / "reference").mkdir()
    for m in MODALITIES:
        save_reference(modalities[m]["extractor"], modalities[m]["options"], scratch)
        (made,) = (scratch / "reference").iterdir()
        shutil.move(made, best / "reference" / f"{m}.safetensors")
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Variables without anything of this environment's."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    home = tmp_path_factory.mktemp("home")
    return kept | {"HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


@pytest.fixture
def run(installed, folder, environment) -> Callable[..., str]:
    def run(program: str, *arguments: str, code: int = 0) -> str:
        command = [installed / program, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_clip_is_scored_alike_by_the_command_from_python_and_by_a_watch(run, folder):
    printed = run("dashfusion", "predict", "clip.mp4", "--model", "best", "--text", "It was good.", "--json")
    result: dict[str, Any] = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["results"][0]
    assert sorted(result["used"]) == sorted(MODALITIES)
    assert "features_differ" not in {warning["code"] for warning in result["warnings"]}
    program = "from model.predict import Predictor; print(Predictor.load('best')('clip.mp4', 'It was good.').score.raw)"
    assert float(run("python", "-c", program)) == pytest.approx(result["raw_score"], abs=1e-3)
    (folder / "clip.txt").write_text("It was good.")
    assert "1 new, 0 of them failed" in run("dashfusion", "watch", ".", "--once", "--model", "best")


def test_the_file_and_the_checkpoint_are_examined_and_the_checkpoint_is_exported(run, folder):
    assert "100% with a face" in run("dashfusion", "doctor", "clip.mp4", "--model", "best")
    examined = run("dashfusion", "doctor", "best")
    assert "can be used here" in examined and "no reference clip" not in examined
    run("dashfusion", "export", "model", "out", "--model", "best")
    assert (folder / "out/README.md").is_file() and (folder / "out/reference/text.safetensors").is_file()


def test_a_clip_is_scored_over_http(installed, folder, environment):
    port = prefect_server.free_port()
    command = [installed / "dashfusion", "serve", "--model", "best", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        assert any("DashFusion is at" in line for line in server.stdout), "it ended before it was ready"
        with (folder / "clip.mp4").open("rb") as media:
            files, data = {"file": media}, {"text": "It was good."}
            answer = httpx.post(f"http://127.0.0.1:{port}/predict", files=files, data=data, timeout=120)
        assert answer.status_code == 200, answer.text
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_what_the_environment_lacks_is_named(run):
    assert "prefect is not installed" in run("dashfusion", "pipeline", code=1)
