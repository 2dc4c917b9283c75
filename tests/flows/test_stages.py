"""What dvc.yaml says about the stages: their order, and which of them a changed parameter reaches."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

from flows.orchestration.dvc import stage_order
from flows.orchestration.settings import scratch_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """dvc.yaml and params.yaml in a repository of their own."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


def reached_by(repository: Path, key: str) -> set[str]:
    """Stages that read the parameter `key`, and all that hang on them."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        graph = repo.index.graph
        readers = [
            stage
            for stage in graph
            for dep in stage.deps
            if isinstance(dep, ParamsDependency)
            and any(key == param or key.startswith(f"{param}.") for param in dep.params)
        ]
        return {s.addressing.split(":")[-1] for r in readers for s in {r, *nx.ancestors(graph, r)}}  # path:name


AFTER_EXTRACTION = {"align", "train", "evaluate"}


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("extract.vision.options.fps", {"extract@vision"} | AFTER_EXTRACTION),
        ("extract.audio.extractor", {"extract@audio"} | AFTER_EXTRACTION),
        ("extract.text.options.model", {"extract@text"} | AFTER_EXTRACTION),
        ("transcribe.aligner", {"transcribe", "extract@text"} | AFTER_EXTRACTION),
        ("align.mode", AFTER_EXTRACTION),
        ("train.epochs", {"train", "evaluate"}),
        ("model.bottleneck_tokens", {"train", "evaluate"}),
        ("evaluate.split", {"evaluate"}),
        ("extract.workers", set()),
        ("extract.clip_timeout", set()),
        ("extract.runner", set()),
        ("extract.address", set()),
    ],
)
def test_a_changed_parameter_reruns_what_hangs_on_it_and_nothing_else(repository, key, stages):
    assert reached_by(repository, key) == stages


def test_every_stage_comes_after_what_it_needs(repository, monkeypatch):
    monkeypatch.chdir(repository)
    order = stage_order()
    assert order[0] == "prepare" and order[-3:] == ["align", "train", "evaluate"]
    assert {"transcribe", "extract@text", "extract@audio", "extract@vision"} == set(order[1:5])
    assert order.index("transcribe") < order.index("extract@text")


def test_a_target_brings_what_it_needs_and_no_more(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert stage_order(["extract@audio"]) == ["prepare", "extract@audio"]
    assert set(stage_order(["extract"])) == {
        "prepare", "transcribe", "extract@text", "extract@audio", "extract@vision",
    }  # fmt: skip


def test_an_unknown_target_is_refused_with_the_stages_there_are(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(ValueError, match=r"no stage is called extrac; dvc.yaml has .*extract@audio"):
        stage_order(["extrac"])


@pytest.mark.parametrize("copy", ["standalone/tmpa1", "temp/tmpb2/nested"])
def test_an_experiments_copy_of_the_project_shares_the_projects_scratch(tmp_path, monkeypatch, copy):
    folder = tmp_path / ".dvc/tmp/exps" / copy
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DASHFUSION_SCRATCH", raising=False)
    assert scratch_folder() == tmp_path / ".dashfusion/scratch"
    monkeypatch.setenv("DASHFUSION_SCRATCH", str(tmp_path / "elsewhere"))
    assert scratch_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("DASHFUSION_SCRATCH")
    monkeypatch.chdir(tmp_path)
    assert scratch_folder() == tmp_path / ".dashfusion/scratch"
