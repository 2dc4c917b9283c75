"""A copy of the project with a small demo corpus, run as a user runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Project:
    """A copy of the repository in which commands are run."""

    folder: Path

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command there; `environment` comes on top of ours."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    def repro(self) -> list[str]:
        """`dvc repro` without a Prefect server; the stages that it ran."""
        done = self.run(sys.executable, "-m", "dvc", "repro", DASHFUSION_SERVER="off")
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


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Project:
    """The files under version control, in a new Git repository, with 24 clips and 2 epochs."""
    folder = tmp_path_factory.mktemp("project")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    made = Project(folder)
    for key, value in {
        "prepare.demo.clips": 24,
        "prepare.demo.speakers": 8,
        "train.epochs": 2,
        "train.warmup_epochs": 1,
    }.items():
        made.set(key, value)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "copy"]):
        done = made.run("git", *command)
        assert done.returncode == 0, done.stderr
    return made
