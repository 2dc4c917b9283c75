from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows.config.params import ExtractorParams, Params, load_params
from flows.report import provenance
from flows.report.provenance import (
    TIMES,
    RunProvenance,
    code_state,
    content_hash,
    plain_params,
    read_training_provenance,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder under Git with one committed file; records are as if their code lay there."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "code.py").write_text("a = 1\n")
    git(folder, "init", "-q")
    commit(folder)
    monkeypatch.setattr(provenance, "__file__", str(folder / "flows/report/provenance.py"))
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a commit")


def write_inputs(folder: Path, value: str = "the same") -> Path:
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text("{}")
    (folder / "train" / "part-00000.parquet").write_text(value)
    return folder


def test_another_run_of_the_same_gives_the_same_record_but_for_its_times(tmp_path, params, repository):
    written = []
    for name in ("first", "second"):
        data = write_inputs(tmp_path / name)
        run = RunProvenance(params, {"dataset": data}, seed=3)
        assert run.write(tmp_path / f"{name}.json", resumed=None)["seed"] == 3
        written.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert set(TIMES) < set(written[0])
    first, second = ({key: value for key, value in one.items() if key not in TIMES} for one in written)
    assert first == second
    other = RunProvenance(params, {"dataset": write_inputs(tmp_path / "other", "another")}, seed=3)
    assert other.write(tmp_path / "other.json")["data"] != first["data"]


def test_a_record_says_code_parameters_data_packages_and_machine(tmp_path, params, repository):
    run = RunProvenance(params, {"dataset": write_inputs(tmp_path / "data")}).write(tmp_path / "run.json")
    assert run["code"] == {"revision": git(repository, "rev-parse", "HEAD"), "dirty": False, "changed": []}
    assert run["params"]["train"]["seeds"] == list(params.train.seeds) and "paths" not in run["params"]
    assert len(run["data"]["dataset"]) == 64
    assert {"python", "dashfusion", "torch", "pyarrow", "mediapipe", "dvc"} <= set(run["versions"])
    assert "pytest" not in run["versions"]
    told = {"device", "processes", "cpu", "cores", "threads", "platform"}  # neither host nor user
    assert set(run["machine"]) - {"gpu", "cuda"} == told
    assert run["started"].endswith("+00:00") and run["seconds"] >= 0


def test_what_the_parameters_file_leaves_out_is_recorded_as_its_default(tmp_path, params):
    assert plain_params(params)["transcribe"]["aligner"] is None
    assert plain_params(params)["align"]["mask_invalid"] == ["vision"]


def test_a_home_folder_and_a_clusters_address_are_not_recorded(params, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    text = ExtractorParams("text.transformer", {"model": "/home/somebody/models/bert", "layer": [1, "/opt/x"]})
    extract = replace(params.extract, text=text, runner="dask", address="tcp://a-host:8786")
    prepare = replace(params.prepare, root="/home/somebody")
    plain = plain_params(replace(params, extract=extract, prepare=prepare))
    assert plain["extract"]["text"]["options"] == {"model": "~/models/bert", "layer": [1, "/opt/x"]}
    assert plain["prepare"]["root"] == "~"
    assert "somebody" not in json.dumps(plain) and "a-host" not in json.dumps(plain)


def test_a_clean_tree_is_its_revision(repository):
    revision = git(repository, "rev-parse", "HEAD")
    assert code_state(repository, []) == {"revision": revision, "dirty": False, "changed": []}


def test_a_dirty_tree_is_said_with_the_files_that_differ(repository):
    (repository / "code.py").write_text("a = 2\n")
    (repository / "new file.py").write_text("b = 1\n")
    state = code_state(repository, [])
    assert state["dirty"] and state["changed"] == ["code.py", "new file.py"]


def test_a_record_says_that_the_tree_was_dirty(tmp_path, params, repository):
    (repository / "code.py").write_text("a = 2\n")
    run = RunProvenance(params, {})
    commit(repository)  # what was edited before is what runs
    assert run.write(tmp_path / "run.json")["code"]["changed"] == ["code.py"]


def test_what_the_pipeline_writes_makes_no_tree_dirty(repository):
    (repository / "metrics").mkdir()
    (repository / "metrics" / "test.json").write_text("{}")
    commit(repository)
    for name in ("metrics/test.json", "metrics/run.json", "dvc.lock", "predictions.parquet"):
        (repository / name).write_text("new")
    written = [Path("metrics"), repository / "predictions.parquet", Path("/elsewhere"), Path("../beside"), Path()]
    assert code_state(repository, written)["changed"] == []
    (repository / "code.py").write_text("a = 2\n")
    assert code_state(repository, written)["changed"] == ["code.py"]
    git(repository, "checkout", "-q", "code.py")
    assert len(code_state(repository, [])["changed"]) == 3


def test_a_project_inside_a_larger_repository_has_only_its_own_changes(repository):
    (repository / "part").mkdir()
    (repository / "part" / "code.py").write_text("a = 1\n")
    commit(repository)
    (repository / "code.py").write_text("a = 2\n")
    assert not code_state(repository / "part", [])["dirty"]
    (repository / "part" / "code.py").write_text("a = 2\n")
    assert code_state(repository / "part", [])["changed"] == ["part/code.py"]


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert code_state(tmp_path, []) is None
    git(tmp_path, "init", "-q")
    assert code_state(tmp_path, []) is None  # nothing is committed
    monkeypatch.setenv("PATH", "")
    assert code_state(ROOT, []) is None


def test_a_record_is_written_without_git(tmp_path, params, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert RunProvenance(params, {}).write(tmp_path / "run.json")["code"] is None


def test_a_folders_hash_is_of_names_and_contents(tmp_path):
    first = content_hash(write_inputs(tmp_path / "a"))
    assert content_hash(write_inputs(tmp_path / "b")) == first
    (tmp_path / "b" / "train").rename(tmp_path / "b" / "valid")
    assert content_hash(tmp_path / "b") != first
    assert content_hash(write_inputs(tmp_path / "c", "another")) != first
    assert content_hash(tmp_path / "a" / "dataset.json") == provenance.sha256_of(tmp_path / "a" / "dataset.json")
    assert content_hash(tmp_path / "nothing") is None


def test_the_records_of_all_seeds_are_taken_and_a_missing_one_is_none(tmp_path, params):
    for seed in (0, 2):
        RunProvenance(params, {}, seed=seed).write(tmp_path / f"seed-{seed}" / provenance.PROVENANCE_FILE)
    assert [run["seed"] for run in read_training_provenance(tmp_path, (0, 1, 2))] == [0, 2]


def test_a_gpu_is_named_and_torchruns_processes_are_counted(monkeypatch):
    monkeypatch.setattr("model.device.resolve_device", torch.device)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a GPU of type {device.type}")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = provenance.machine("cuda")
    assert (found["device"], found["gpu"], found["processes"]) == ("cuda", "a GPU of type cuda", 4)
    monkeypatch.delenv("WORLD_SIZE")
    found = provenance.machine("cpu")
    assert "gpu" not in found and found["processes"] == 1
