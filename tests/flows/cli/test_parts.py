"""Scoring needs no more than deploy/requirements-predict.txt names, and serving no more than requirements-serve.txt."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.only_packages import run_with_only

DEPLOY = Path(__file__).parents[3] / "deploy"

SCORE = """
from typer.testing import CliRunner
from flows.cli.app import app
import flows.cli
from flows.cli import doctor_file, export, prediction
from flows.prediction import watched_folder

def run(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    print(result.output)
    assert result.exit_code == code, (arguments, result.output, result.exception)

for module in ("dvc", "prefect", "hydra", "dvclive", "fastapi", "espeakng_loader", "sklearn"):
    try:
        __import__(module)
    except ImportError:
        continue
    raise SystemExit(f"{module} can be imported")
run("predict", "clip.mp4", "--model", "best", "--text", "It was good.", "--workers", "1", "--report", "page.html")
run("export", "model", "exported", "--model", "best")
for command in (["pipeline"], ["serve", "--model", "best"], ["use"], ["ui"], ["train"]):
    run(*command, code=1)
"""

SERVE = """
from pathlib import Path
from flows.serving import server
from flows.serving.app import create_app
from flows.serving.security import LOOPBACK, Rules
from flows.serving.worker import Model
from flows.serving.worker_pool import Limits, ScoringPool
pool = ScoringPool(Model(Path("best")), Limits(size=1, length=1.0, scoring_seconds=1.0, waiting=1), 1, Path("pool"))
create_app(pool, Rules(hosts=LOOPBACK, names=(), token="", size=1, seconds=1.0), Path("uploads"))
"""


def test_scoring_works_with_its_packages_alone_and_the_rest_says_what_to_install(corpus, clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.mp4")
    shutil.copytree(corpus / "models-unaligned/best", tmp_path / "best")
    ran = run_with_only(DEPLOY / "requirements-predict.txt", SCORE, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    printed = " ".join((ran.stdout + ran.stderr).split())
    assert "ModuleNotFoundError" not in printed
    assert "serve those of deploy/requirements-serve.txt" in printed and "prefect is not installed" in printed


def test_serving_works_with_its_packages_alone(corpus, tmp_path):
    shutil.copytree(corpus / "models-unaligned/best", tmp_path / "best")
    ran = run_with_only(DEPLOY / "requirements-serve.txt", SERVE, tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
