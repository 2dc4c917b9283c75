"""The commands and Python of README.md and docs/ run as they are written there, in a small finished project.

The blocks of a page run in its order. A block that needs more than a test may have is marked on its page, see
`tests.support.pages.REASONS`; `tests/docs/test_pages.py` checks the options of its commands all the same.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from flows.orchestration.prefect_server import free_port
from tests.support.features import write_csd_corpus, write_mmsa_pickle
from tests.support.models import write_bert, write_wav2vec2
from tests.support.pages import PAGES, Block, read_blocks
from tests.support.project import CLIPS, SMALL, Project, change_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PATIENCE = 900  # seconds a block, for what takes a minute on an idle machine

pytestmark = [pytest.mark.docs, pytest.mark.timeout(4 * PATIENCE)]

RUN = ("commands", "python")
WITH_BLOCKS = [page for page in PAGES if any(block.kind in RUN and not block.reason for block in read_blocks(page))]

PRELUDE = r"""
set -eo pipefail
if [ -f "$FILES/environment" ]; then . "$FILES/environment"; fi  # of the page's blocks before
trap 'export -p > "$FILES/environment"' EXIT
service() {  # start a command in the background and wait for a line that says that it is ready
  ready=$1; shift
  setsid "$@" > "$FILES/service.log" 2>&1 &
  echo $! >> "$FILES/services"
  for _ in $(seq 600); do
    if grep -q "$ready" "$FILES/service.log"; then return 0; fi
    if ! kill -0 $!; then cat "$FILES/service.log"; return 1; fi
    sleep 0.2
  done
  cat "$FILES/service.log"; return 1
}
stop_services() { while read -r pid; do kill -INT -- "-$pid" || true; done < "$FILES/services"; : > "$FILES/services"; }
experiment() { dvc exp list --name-only | head -1; }
task() { dvc queue status | awk 'NR == 2 {print $1}'; }
"""
SERVICES = {"dashfusion serve": "DashFusion is at", "dashfusion watch": "watching"}
"""Commands that go on until Ctrl-C, and what they print when they are ready."""

CLONE = "dashfusion/"
"""Folder that the README's first command makes, here in the project."""

WRAPPER = """#!/bin/sh
case "{name} $*" in pip*|"python -m pip "*) echo "a test installs nothing: $0 $*" >&2; exit 1;; esac
exec {python} {arguments} "$@"
"""
PROGRAMS = {"python": "", "pip": "-m pip", "dvc": "-m dvc", "dashfusion": "-m flows.cli"}


@dataclass
class Site:
    """A project in which the pages' commands run, and a folder of the files that the pages name."""

    project: Project
    files: Path
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)

    def replaced(self, text: str) -> str:
        """Fill in what the page leaves to the reader, and make small what would take long."""
        for before, after in (
            ("dashfusion doctor /videos/mine", "dashfusion doctor --sample 0 /videos/mine"),  # README.md's has a sample
            ("/videos/", f"{self.files}/videos/"),
            ("/data/", f"{self.files}/data/"),
            ("/models/", f"{self.files}/models/"),
            ("/mnt/store/", f"{self.files}/store/"),
            ("/projects/", f"{self.files}/projects/"),
            ("train.epochs=20", "train.epochs=3"),
            ("train.epochs=40", "train.epochs=3"),
            ("--seeds 0,1,2,3,4", "--seeds 0,1,2"),
            ("--trials 10", "--trials 2"),
            ("model.bottleneck_tokens=4,8,16", "model.bottleneck_tokens=4,8"),
            ("train.contrastive.scope=retrieved,in_batch", "train.contrastive.scope=in_batch"),
            ('(float("inf"), 20, 10, 0)', '(float("inf"), 0)'),
            ("git clone <this repository>", "git clone -q ."),
            ("dvc queue logs <name>", "dvc queue logs $(task)"),
            ("<name>", "$(experiment)"),
            ("--host 0.0.0.0", "--host 127.0.0.1"),
            ("http://SERVER:8000", f"http://127.0.0.1:{self.port}"),
            ("http://127.0.0.1:8000", f"http://127.0.0.1:{self.port}"),
        ):
            text = re.sub(rf"(?<![\w.]){re.escape(before)}", after.replace("\\", r"\\"), text)
        return text

    def script(self, block: Block) -> str:
        """The block as a script that notes each command before it runs it."""
        lines = [PRELUDE]
        for command in block.commands():
            text = self.replaced(command.text)
            for program, ready in SERVICES.items():
                if text.startswith(program) and "--once" not in command.programs()[0]:  # a comment may name it
                    options = f" --port {self.port}" if program == "dashfusion serve" else ""
                    stop = "stop_services; " if options else ""
                    text = f"{stop}service {shlex.quote(ready)} {program}{options}{text.removeprefix(program)}"
            lines += [f"printf '%s\\n' {shlex.quote(str(command))} > {self.files}/at", text]
        return "\n".join(lines)

    def run(self, block: Block) -> None:
        """Run a block of commands; a failure names page, line and command."""
        for name in ("params.yaml", "conf"):  # a block starts from the defaults
            self.project.git("checkout", "-q", "HEAD", "--", name)
        with (self.project.folder / "mine.yaml").open("a", encoding="utf-8") as file:
            file.write(f"# {block}\n")  # something to commit
        command = ["bash", "-c", self.script(block)]
        self.check(command, lambda: (self.files / "at").read_text(encoding="utf-8").strip())

    def run_python(self, blocks: list[Block]) -> None:
        """Run a page's Python as one script whose lines have the numbers of the page's."""
        lines: list[str] = []
        for block in blocks:
            lines += [""] * (block.line - 1 - len(lines)) + self.replaced(block.text).splitlines()
        script = self.project.folder / f"{Path(blocks[0].page).stem}.md.py"
        script.write_text("\n".join(lines), encoding="utf-8")
        self.check([sys.executable, script.name], lambda: f"{blocks[0].page}, Python (lines are the page's)")
        script.unlink()

    def check(self, command: list[str], where) -> None:
        said = self.files / "said"  # not a pipe, which what goes on in the background would keep open
        with said.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.project.folder, env=os.environ | self.environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            code: object = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = f"{process.wait()}, killed after {PATIENCE} s"
        if code:
            text = said.read_text(encoding="utf-8", errors="replace")
            pytest.fail(f"{where()}\nexit code {code}:\n{text[-6000:]}", pytrace=False)

    def stop(self) -> None:
        """Stop what the page has started."""
        for pid in map(int, (self.files / "services").read_text().split()):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        (self.files / "services").write_text("")
        if (self.project.folder / ".dvc/tmp/exps/celery").is_dir():
            self.project.run(sys.executable, "-m", "dvc", "queue", "stop", "--kill")


COMPARE = {"compare.models": ["text", "late_fusion"], "compare.seeds": [0, 1, 2], "compare.epochs": 1}


def write_defaults(conf: Path) -> None:
    """Make the defaults as small as the project's choices, since `dashfusion use` returns to them."""
    few = {"prepare.demo.clips": CLIPS, "prepare.demo.speakers": 6, "train.epochs": 2, "train.warmup_epochs": 1}
    change_yaml(conf / "config.yaml", SMALL | few | COMPARE)
    change_yaml(conf / "corpus/demo_zh.yaml", few | {"prepare.demo.clips": 8, "prepare.demo.speakers": 4})


def write_studies(studies: Path, mine: Path) -> None:
    """Leave of each study three seeds, two variants, those of `ablation`, and one level of one condition.

    Studies that share variants share their trainings.
    """
    ablation = yaml.safe_load((studies / "ablation.yaml").read_text(encoding="utf-8"))
    shared = {name: ablation[name] for name in ("base", "reference", "variants")}
    shared["variants"] = dict(list(shared["variants"].items())[:2])
    for file in studies.glob("*.yaml"):
        values = yaml.safe_load(file.read_text(encoding="utf-8")) | shared
        values["seeds"] = values["seeds"][:3]
        values["conditions"] = dict(list(values.get("conditions", {}).items())[-1:])
        for condition in values["conditions"].values():
            condition |= {"levels": condition["levels"][:1]} if "levels" in condition else {}
        file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    shutil.copy(studies / "ablation.yaml", mine)


def write_programs(folder: Path) -> None:
    """An environment as `make` installs it, of this interpreter's packages, with the project's own code."""
    (folder / "bin").mkdir(parents=True)
    for name, arguments in PROGRAMS.items():
        wrapper = WRAPPER.format(name=name, python=sys.executable, arguments=arguments)
        (folder / "bin" / name).write_text(wrapper, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    (folder / "bin/activate").touch()
    later = time.time() + 86400  # than the files of a clone that a page makes: make has nothing to install
    for mark in ("pyvenv.cfg", ".run", ".dev"):
        (folder / mark).touch()
        os.utime(folder / mark, (later, later))


def write_corpora(corpus: Path, files: Path) -> None:
    """Write corpora of the generated one's videos: one in Chinese like CH-SIMS, and two with tables of their own."""
    with (corpus / "label.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    chinese, mine, talks = [], [], []
    for row in rows:
        file = f"{row['video_id']}-{row['clip_id']}.mp4"
        for folder in ("videos/mine", "videos/talks"):
            (files / folder).mkdir(exist_ok=True)
            shutil.copy(corpus / f"Raw/{row['video_id']}/{row['clip_id']}.mp4", files / folder / file)
        ids, text = {"video_id": row["video_id"], "clip_id": row["clip_id"]}, row["text"]
        chinese.append(ids | {"text": "电影很好。我喜欢。", "label": float(row["label"]) / 3, "mode": row["mode"]})
        mine.append({"file": file, "score": row["label"], "text": text, "mode": row["mode"]})
        talks.append({"media": file, "label": row["label"], "text": text, "speaker": row["video_id"]})
    shutil.copytree(corpus / "Raw", files / "data/SIMS/Raw")
    tables = {"data/SIMS/label.csv": chinese, "videos/mine/ratings.csv": mine, "videos/talks/label.csv": talks}
    for name, lines in tables.items():
        with (files / name).open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)


def write_files(files: Path, corpus: Path, project: Path) -> None:
    """Files of the names that the pages use."""
    (files / "services").touch()
    clips = sorted((corpus / "Raw").glob("*/*.mp4"))
    for name in ("videos", "data", "models", "store"):
        (files / name).mkdir()
    shutil.copytree(corpus, files / "videos/mosi")
    write_corpora(corpus, files)
    write_bert(files / "models/bert-base-chinese", ["好", "坏"])
    write_wav2vec2(files / "models/wav2vec2")
    write_mmsa_pickle(files / "data/mine.pkl")
    (files / "data/mosi_csd").mkdir()
    write_csd_corpus(files / "data/mosi_csd")
    for name in ("mosi", "sims"):
        shutil.copytree(project / "data/dataset", files / "projects" / name / "data/dataset")
    for name in ("talk.mp4", "talks/one.mp4", "talks/two.mp4", "incoming/one.mp4"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(clips[0], project / name)
    shutil.copy(clips[0], files / "videos/talk.mp4")
    (project / "inbox").mkdir()
    (project / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nThe hotel was charming.\n", encoding="utf-8")
    for name in ("talk*", "inbox", "incoming"):
        with (project / ".git/info/exclude").open("a") as file:
            file.write(f"/{name}\n")


@pytest.fixture(scope="module")
def site(run_project, tmp_path_factory) -> Iterator[Site]:
    """A finished project of 12 clips with a Git remote, whose defaults are as small."""
    files = tmp_path_factory.mktemp("files")
    project = Project(
        shutil.copytree(run_project / "project", tmp_path_factory.mktemp("docs") / "project", symlinks=True)
    )
    write_defaults(project.folder / "conf")
    change_yaml(project.folder / "params.yaml", COMPARE)  # a page's commands start from these files
    write_studies(project.folder / "studies", project.folder / "mine.yaml")
    write_programs(files / "venv")
    write_files(files, project.folder / "data/generated", project.folder)
    subprocess.run(["git", "init", "-q", "--bare", str(files / "origin.git")], check=True)
    # A clone of the project takes the results of its stages from here
    project.dvc("cache", "dir", str(project.folder / ".dvc/cache"))
    project.commit()
    project.git("remote", "add", "origin", str(files / "origin.git"))
    project.git("push", "-q", "-u", "origin", "HEAD")
    path = os.pathsep.join([str(files / "venv/bin"), os.environ["PATH"]])
    environment = {"PATH": path, "FILES": str(files), "DASHFUSION_SERVER": "off", "MAKEFLAGS": f"VENV={files}/venv"}
    site = Site(project, files, free_port(), environment)
    yield site
    site.stop()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=str)
def test_the_commands_of_a_page_run(page, site):
    site.project.restore()
    site.project.git("clean", "-qffd")
    (site.files / "environment").unlink(missing_ok=True)
    blocks = [block for block in read_blocks(page) if block.kind in RUN and not block.reason]
    python = [block for block in blocks if block.kind == "python"]
    try:
        for block in blocks:
            if block.kind == "commands":
                site.run(block)
            elif block is python[-1]:
                site.run_python(python)
        status = site.project.run("git", "status", "--porcelain").stdout.splitlines()
        written = [line[3:] for line in status if line.startswith("?? ") and line[3:] != CLONE]
        assert not written, f"{page}: .gitignore does not have what its commands write: {written}"
    finally:
        site.stop()
