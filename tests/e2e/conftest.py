"""A copy of the project with a small demo corpus, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from corpora.demo import DemoConfig, generate

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Project:
    """A copy of the repository in which commands are run."""

    folder: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, with this interpreter as `python`; `environment` comes on top of ours."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def repro(self) -> list[str]:
        """`dvc repro` without a Prefect server; the stages that it ran."""
        done = self.run(sys.executable, "-m", "dvc", "repro", DASHFUSION_SERVER="off")
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"^Running stage '(.+)'", done.stdout, re.MULTILINE)

    def experiment(self, *settings: str) -> list[str]:
        """`dvc exp run` with settings changed; the stages that it ran."""
        arguments = [part for setting in settings for part in ("-S", setting)]
        done = self.run(sys.executable, "-m", "dvc", "exp", "run", *arguments, DASHFUSION_SERVER="off")
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"^Running stage '(.+)'", done.stdout, re.MULTILINE)

    def set(self, key: str, value: object) -> None:
        """Change one value of params.yaml."""
        path = self.folder / "params.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        *blocks, last = key.split(".")
        place = values
        for block in blocks:
            place = place[block]
        place[last] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def new_project(folder: Path, settings: Mapping[str, object]) -> Project:
    """The files under version control, in a new Git repository, with some settings of params.yaml changed."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    made = Project(folder)
    for key, value in settings.items():
        made.set(key, value)
    identity = (["config", "user.name", "test"], ["config", "user.email", "test@example.org"])
    for command in (["init", "-q"], *identity, ["add", "-A"], ["commit", "-qm", "copy"]):
        done = made.run("git", *command)
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """A demo corpus of 24 clips, and 2 epochs."""
    small = {"prepare.demo.clips": 24, "prepare.demo.speakers": 8, "train.epochs": 2, "train.warmup_epochs": 1}
    return new_project(tmp_path_factory.mktemp("project"), small)


@pytest.fixture(scope="session")
def corpus_project(tmp_path_factory) -> tuple[Project, Path]:
    """A corpus of 24 clips as a user has it, in a folder beside the project; a small model and one epoch."""
    corpus = tmp_path_factory.mktemp("corpus")
    generate(corpus, DemoConfig(clips=24, speakers=8, seed=3), workers=2)
    settings = {"prepare.layout": "mmsa", "prepare.root": str(corpus), "prepare.corpus": "mine"}
    settings |= {"model.dim": 16, "model.heads": 2, "model.encoder_layers": 1, "model.fusion_layers": 1}
    settings |= {"train.epochs": 1, "train.warmup_epochs": 0}
    return new_project(tmp_path_factory.mktemp("own"), settings), corpus
