"""What dvc.yaml says about the stages: their order, and which of them a changed parameter or module reaches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import networkx as nx
import pytest

from extractors.registry import BUILT_IN
from flows.orchestration.dvc import stage_order
from flows.orchestration.settings import scratch_folder
from model.training.resume import TRAINING_CODE

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
        ("evaluate.also_on", {"evaluate"}),
        ("extract.workers", set()),
        ("extract.clip_timeout", set()),
        ("extract.runner", set()),
        ("extract.address", set()),
    ],
)
def test_a_changed_parameter_reruns_what_hangs_on_it_and_nothing_else(repository, key, stages):
    assert reached_by(repository, key) == stages


def test_another_corpus_is_a_dependency_of_the_evaluation_alone(repository, tmp_path):
    from dvc.repo import Repo

    folder = tmp_path / "project"
    shutil.copytree(repository, folder)
    params = (folder / "params.yaml").read_text(encoding="utf-8")
    changed = params.replace("also_on: data/dataset", "also_on: ../mosi/data")
    (folder / "params.yaml").write_text(changed, encoding="utf-8")
    with Repo(str(folder)) as repo:
        readers = [
            stage.addressing for stage in repo.index.stages for dep in stage.deps if dep.def_path == "../mosi/data"
        ]
    assert [name.split(":")[-1] for name in readers] == ["evaluate"]


PACKAGES = ("media", "corpora", "extractors", "model", "flows")
STAGES = ["prepare", "transcribe", "extract@text", "extract@audio", "extract@vision", "align", "train", "evaluate"]
NOT_COMPUTING = dict.fromkeys(STAGES, ("flows.config", "flows.orchestration", "flows.display")) | {
    "train": ("flows.config", "flows.orchestration", "flows.display", "flows.report"),  # its record of the run
    "evaluate": ("flows.config", "flows.orchestration"),  # the report is one of its outputs
}
"""Rooms that decide none of a stage's outputs: parameters are dependencies of their own, the others run and show."""


@pytest.fixture(scope="module")
def code_dependencies(repository) -> dict[str, list[str]]:
    """The paths of the project's own code among each stage's dependencies."""
    from dvc.repo import Repo

    with Repo(str(repository)) as repo:
        return {
            stage.addressing.split(":")[-1]: [
                dep.def_path for dep in stage.deps if Path(dep.def_path).parts[0] in PACKAGES
            ]
            for stage in repo.index.stages
        }


def computing_modules(stage: str) -> dict[str, Path]:
    """The modules, with their files, that a stage's module imports, in functions too, but for `NOT_COMPUTING`."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    for module in list(graph.modules):
        if any(module == room or module.startswith(f"{room}.") for room in NOT_COMPUTING[stage]):
            graph.remove_module(module)
    name, _, modality = stage.partition("@")
    started = {f"flows.{name}"}
    if modality:  # found by name, at run time
        started |= {target.partition(":")[0] for key, target in BUILT_IN.items() if key.startswith(f"{modality}.")}
    found = started.union(*(graph.find_upstream_modules(module) for module in started)) - {f"flows.{name}"}
    paths = {module: Path(module.replace(".", "/")) for module in found}
    return {m: p / "__init__.py" if (ROOT / p).is_dir() else p.with_suffix(".py") for m, p in paths.items()}


def covers(dependency: str, path: Path) -> bool:
    """Whether a change to the file changes the dependency."""
    return os.path.commonpath([dependency, path]) == dependency


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_computes_with_is_among_its_dependencies(code_dependencies, stage):
    deps = code_dependencies[stage]
    missing = [module for module, path in computing_modules(stage).items() if not any(covers(d, path) for d in deps)]
    assert missing == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_never_imports(code_dependencies, stage):
    paths = computing_modules(stage).values()
    root = "corpora/demo"  # the demo's `prepare.root`, in which transcribe looks for word times
    idle = [dep for dep in code_dependencies[stage] if not any(covers(dep, path) for path in paths)]
    assert idle == ([root] if stage == "transcribe" else [])


def test_a_kept_training_is_bound_to_the_code_that_computes_it(code_dependencies):
    """Not to how checkpoints are written, or to how files take their names: neither changes a number."""
    computing = {f"model/{name}" for name in TRAINING_CODE}
    assert {
        dep for dep in code_dependencies["train"] if not dep.startswith(("model/checkpoint/", "model/files"))
    } == computing


EXTRACT = {"extract@text", "extract@audio", "extract@vision"}


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("media/container.py", {"prepare", "transcribe", "align", "evaluate"} | EXTRACT),
        ("media/audio.py", {"transcribe", "extract@audio"}),
        ("media/video.py", {"extract@vision"}),
        ("corpora/readers/raw.py", {"prepare"}),
        ("corpora/demo/voice.py", {"prepare", "transcribe"}),  # its folder is the demo's `prepare.root`
        ("extractors/vision/face_landmarker.py", {"extract@vision"}),
        ("extractors/dataset/align_clip.py", {"align"}),
        ("model/network/fusion.py", {"train", "evaluate"}),
        ("model/training/mining.py", {"train"}),
        ("model/evaluation/metrics.py", {"train", "evaluate"}),
        ("model/evaluation/explain.py", {"evaluate"}),
        ("flows/report/page.py", {"evaluate"}),
        ("flows/report/templates/page.html.j2", {"evaluate"}),
        ("flows/serving/app.py", set()),
        ("flows/prediction/score.py", set()),
        ("flows/orchestration/engine.py", set()),
        ("extractors/inference/feature_maker.py", set()),
        ("extractors/corruption/audio.py", set()),
        ("model/predict.py", set()),
        ("model/prediction/scoring.py", set()),
        ("model/checkpoint/onnx.py", set()),
    ],
)
def test_an_edit_makes_exactly_those_stages_stale_that_compute_with_it(code_dependencies, path, stages):
    assert (ROOT / path).is_file()
    assert {s for s, deps in code_dependencies.items() if any(covers(d, Path(path)) for d in deps)} == stages


def test_every_stage_comes_after_what_it_needs(repository, monkeypatch):
    monkeypatch.chdir(repository)
    order = stage_order()
    assert order[:2] == ["check", "prepare"] and order[-3:] == ["align", "train", "evaluate"]
    assert {"transcribe", "extract@text", "extract@audio", "extract@vision"} == set(order[2:6])
    assert order.index("transcribe") < order.index("extract@text")


def test_dvc_deletes_no_files_that_are_not_its_stages_own(repository, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(repository, folder)
    (folder / "videos").mkdir()
    (folder / "videos/holiday.mp4").write_text("precious")
    params = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(params.replace("data/generated", "videos"), encoding="utf-8")
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    path["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for stage in ([], ["evaluate"]):
        command = [sys.executable, "-m", "dvc", "repro", *stage]
        done = subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True)
        assert done.returncode != 0
        assert "check stopped: ValueError: params.yaml:\n  paths.media: videos" in done.stdout, done.stdout
        assert "no stage has made videos/holiday.mp4" in done.stdout
        assert (folder / "videos/holiday.mp4").read_text() == "precious"


def test_a_target_brings_what_it_needs_and_no_more(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert stage_order(["extract@audio"]) == ["check", "prepare", "extract@audio"]
    assert set(stage_order(["extract"])) == {
        "check", "prepare", "transcribe", "extract@text", "extract@audio", "extract@vision",
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
