"""A copy of the project with a small demo corpus, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate
from flows.config.presets import apply
from tests.support.corpora import make_once
from tests.support.only_packages import hide_others

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parents[2]
CLIPS = 12
SMALL = {"model.dim": 16, "model.heads": 2, "model.encoder_layers": 1, "model.fusion_layers": 1,
         "train.intervals.method": "split", "extract.workers": 1, "extract.vision.options.fps": 5}  # fmt: skip


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

    def dvc(self, *arguments: str, **environment: str) -> str:
        """What a command of DVC's prints; its stages run without a Prefect server."""
        environment |= {"DASHFUSION_SERVER": "off"}
        done = self.run(sys.executable, "-m", "dvc", *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self, **environment: str) -> list[str]:
        """`dvc repro`; the stages that it ran."""
        return _stages_run(self.dvc("repro", **environment))

    def experiment(self, *settings: str) -> list[str]:
        """`dvc exp run` with settings changed; the stages that it ran."""
        return _stages_run(self.dvc("exp", "run", *(part for setting in settings for part in ("-S", setting))))

    def git(self, *arguments: str) -> None:
        """A command of Git's."""
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(self) -> None:
        """Everything that Git does not ignore: DVC's experiments and comparisons start from a commit."""
        self.git("add", "-A")
        self.git("commit", "-qm", "as it is", "--allow-empty")

    def restore(self) -> None:
        """Everything as the last commit has it."""
        self.git("reset", "-q", "--hard")
        self.git("clean", "-qfd", "metrics")
        self.dvc("checkout", "--force")

    def set(self, key: str, value: object) -> None:
        """Change one value of params.yaml, as a hand does: `dvc exp run` drops it."""
        change_yaml(self.folder / "params.yaml", {key: value})


def change_yaml(path: Path, changes: Mapping[str, object]) -> None:
    """Set values of a YAML file by their dotted keys; of its comments, only Hydra's package line is kept."""
    text = path.read_text(encoding="utf-8")
    package = [line for line in text.splitlines() if line.startswith("# @package")]
    values = yaml.safe_load(text)
    for key, value in changes.items():
        *blocks, last = key.split(".")
        place = values
        for block in blocks:
            place = place[block]
        place[last] = value
    path.write_text("\n".join([*package, yaml.safe_dump(values, sort_keys=False)]), encoding="utf-8")


def _stages_run(said: str) -> list[str]:
    return re.findall(r"^Running stage '(.+)'", said, re.MULTILINE)


def new_project(folder: Path, settings: Mapping[str, object]) -> Project:
    """The files under version control, in a new Git repository, with some settings chosen as `dashfusion use` does."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    made = Project(folder)
    choices = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
    apply(choices, folder / "params.yaml", folder / "conf")
    made.git("init", "-q")
    made.git("config", "user.name", "test")
    made.git("config", "user.email", "test@example.org")
    made.commit()
    return made


def without_extras(folder: Path) -> dict[str, str]:
    """Environment for Python processes that can import only what `dashfusion[demo]` installs: no pandas, for one."""
    needed, waiting = set(), [Requirement("dashfusion[demo]")]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        try:
            more = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:  # of a platform, or an option of a requirement, that is not this one
            continue
        needed.add(name)
        for item in more:
            extras = "", *wanted.extras
            chosen = item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in extras)
            if chosen and canonicalize_name(item.name) not in needed:
                waiting.append(item)
    assert "pandas" in hide_others(folder, needed), "the tests' extras bring it; else this refuses too little"
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def make_project() -> Callable[[Path, Mapping[str, object]], Project]:
    """`new_project`."""
    return new_project


def _run_project(folder: Path) -> None:
    """Make a project with a demo corpus and 2 epochs, and run it with the `demo` extra alone; commit it."""
    small = SMALL | {"prepare.demo.clips": CLIPS, "prepare.demo.speakers": 6}
    small |= {"train.epochs": 2, "train.warmup_epochs": 1}
    (folder / "project").mkdir()
    (folder / "bare").mkdir()
    made = new_project(folder / "project", small)
    ran = made.repro(**without_extras(folder / "bare"))
    made.commit()
    (folder / "ran.json").write_text(json.dumps(ran), encoding="utf-8")


@pytest.fixture(scope="session")
def run_project(tmp_path_factory) -> Path:
    """Folder of a project after its first run, to be copied, and of the stages that the run ran."""
    return make_once(tmp_path_factory, "run-project", _run_project)


@pytest.fixture(scope="session")
def first_run(run_project) -> list[str]:
    """The stages that the project's first `dvc repro` ran."""
    return json.loads((run_project / "ran.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def project(run_project, tmp_path_factory) -> Project:
    """This process's copy of a project with a demo corpus of 12 clips, as its first run left it; committed."""
    return Project(shutil.copytree(run_project / "project", tmp_path_factory.mktemp("copy") / "project", symlinks=True))


@pytest.fixture
def reproduced(project, first_run) -> Iterator[Project]:
    """The project as the first run left it, whatever ran before; what a test changes in its files is undone."""
    project.restore()
    yield project
    project.restore()


@pytest.fixture(scope="session")
def corpus_project(tmp_path_factory) -> tuple[Project, Path]:
    """A corpus of 12 clips as a user has it, in a folder beside the project; a small model and one epoch."""
    corpus = tmp_path_factory.mktemp("corpus")
    generate(corpus, DemoConfig(clips=CLIPS, speakers=6, seed=3), workers=2)
    settings = {"prepare.layout": "mmsa", "prepare.root": str(corpus), "prepare.corpus": "mine"}
    settings |= SMALL | {"train.epochs": 1, "train.warmup_epochs": 0}
    return new_project(tmp_path_factory.mktemp("own"), settings), corpus
