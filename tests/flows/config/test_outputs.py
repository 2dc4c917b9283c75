"""Output paths whose files are not the stages' own are refused, since DVC deletes outputs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from flows.config.outputs import check_outputs, record_outputs
from flows.config.params import ParamsError, load_params
from flows.config.presets import apply


def change(**paths: str) -> None:
    """Change output paths in params.yaml as a hand does."""
    values = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    values["paths"] |= paths
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def write(path: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("precious", encoding="utf-8")
    return Path(path)


def test_the_default_paths_are_valid_before_and_after_stages_have_written_there(project):
    record_outputs(load_params())
    for path in (
        "data/generated/Raw/a/1.mp4",
        "data/features/.text.tmp/shard",
        "metrics/test.json",
        "report/index.html",
    ):
        write(path)
    check_outputs(load_params())  # a stage that failed leaves files that dvc.lock does not list


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ({"media": "../videos"}, "paths.media: ../videos is not in the project's folder"),
        ({"media": "/videos"}, "paths.media: /videos is not in the project's folder"),
        ({"report": "."}, "paths.report: . is not in the project's folder"),
        ({"report": "data/../models"}, "paths.models: models and paths.report: data/../models overlap"),
        ({"models": "data/features/models"}, "paths.features: data/features and paths.models"),
        ({"media": "data"}, "paths.media: data and paths.manifest: data/manifest.parquet overlap"),
    ],
)
def test_paths_outside_the_project_or_in_each_other_are_refused(project, paths, expected):
    change(**paths)
    with pytest.raises(ParamsError) as refused:
        load_params()
    assert expected in str(refused.value)


@pytest.mark.parametrize("root", ["corpora/mine", "corpora/mine/videos", "corpora", "linked"])
def test_the_corpus_is_no_place_for_outputs(project, root):
    write("corpora/mine/videos/1.mp4")
    Path("linked").symlink_to("corpora/mine")
    with pytest.raises(ParamsError, match=r"paths.media: corpora/mine overlaps with the corpus \(prepare.root"):
        apply(["corpus=mmsa", f"prepare.root={root}", "paths.media=corpora/mine"])
    assert load_params().prepare.layout == "demo", "params.yaml was written all the same"


def test_a_folder_with_files_of_the_users_is_refused_by_use_and_by_the_check(project):
    video = write("videos/holiday/1.mp4")
    with pytest.raises(ValueError, match=r"paths.media: videos .* no stage has made videos/holiday/1.mp4"):
        apply(["paths.media=videos"], check=check_outputs)
    assert load_params().paths.media == Path("data/generated")
    change(media="videos", predictions="thesis.docx")
    write("thesis.docx")
    for check in (check_outputs, record_outputs, record_outputs):
        with pytest.raises(ValueError, match=r"videos/holiday/1.mp4(.|\n)*paths.predictions: thesis.docx"):
            check(load_params())
    video.unlink()
    Path("thesis.docx").unlink()
    check_outputs(load_params())  # empty folders are free


def test_outputs_that_dvc_lists_are_the_stages_own_and_files_beside_them_are_not(project):
    lock = {"stages": {"extract@text": {"outs": [{"path": "features/text", "md5": "0.dir"}]}}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    write("features/text/shard.parquet")
    write("features/.gitignore")
    change(features="features")
    check_outputs(load_params())
    write("features/notes.txt")
    with pytest.raises(ValueError, match="no stage has made features/notes"):
        check_outputs(load_params())


def test_what_git_tracks_is_refused(project):
    write("docs/thesis.tex")
    write("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate": {"outs": [{"path": "docs"}]}}}))
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "docs"], check=True)
    change(report="docs")
    with pytest.raises(ValueError, match=r"paths.report: docs would be deleted, but Git tracks docs/thesis\.tex"):
        check_outputs(load_params())


def test_a_data_folder_may_be_a_link_to_another_disk(project, tmp_path_factory):
    Path("data").symlink_to(tmp_path_factory.mktemp("disk"))
    record_outputs(load_params())
    write("data/generated/1.mp4")
    check_outputs(load_params())
