"""The command line: help that teaches, and messages that say the way out."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.app import PANELS, app

ROOT = Path(__file__).parents[3]
runner = CliRunner()


@pytest.mark.parametrize(
    "command",
    [
        "prepare",
        "transcribe",
        "extract",
        "align",
        "train",
        "evaluate",
        "pipeline",
        "predict",
        "serve",
        "watch",
        "results",
        "problems",
        "use",
    ],
)
def test_every_command_says_what_it_makes(command):
    shown = runner.invoke(app, [command, "--help"])
    assert shown.exit_code == 0 and len(shown.output.splitlines()) > 5
    assert command in runner.invoke(app, ["--help"]).output


def test_results_before_an_evaluation_name_the_command_that_makes_them(project):
    shown = runner.invoke(app, ["results"])
    assert shown.exit_code == 1 and "dashfusion evaluate" in shown.output


def test_results_print_the_metrics_and_the_reports_path(project):
    (project / "metrics").mkdir()
    (project / "metrics/test.json").write_text(json.dumps({"n": 3, "mae": 0.5, "corr": None, "acc2_np": 2 / 3}))
    shown = runner.invoke(app, ["results"])
    assert shown.exit_code == 0
    assert "66.7" in shown.output and "0.500" in shown.output and "report/index.html" in shown.output


def test_use_says_what_it_changed(project):
    shown = runner.invoke(app, ["use", "train.epochs=3"])
    assert shown.exit_code == 0 and "train.epochs: 16 -> 3\nparams.yaml: 1 value changed" in shown.output
    shown = runner.invoke(app, ["use", "experiment=fast", "train.seeds=[1,2]"])
    assert "dropped: train.epochs=3 (set by experiment=fast)" in shown.output
    assert "train.seeds: [0] -> [1, 2]" in shown.output
    assert "train.seeds: [1, 2] -> [0]" in runner.invoke(app, ["use", "--undo"]).output
    assert "nothing changed" in runner.invoke(app, ["use", "train.epochs=3"]).output
    assert "train.epochs: 3 -> 16\n" in runner.invoke(app, ["use", "--reset"]).output


def test_use_lists_edits_that_it_keeps_and_comments_that_it_drops(project):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("epochs: 16", "epochs: 40  # long"), encoding="utf-8")
    shown = runner.invoke(app, ["use", "model.dim=64"]).output
    assert "kept: train.epochs=40 (edited by hand, was 16)\ncomments in params.yaml were dropped\n" in shown


def test_use_and_doctor_refuse_and_list_what_would_stop_a_stage(project):
    wrong = ["corpus=mmsa", "prepare.root=/nowhere", "extract.audio.extractor=audio.no"]
    before = (project / "params.yaml").read_bytes()
    shown = runner.invoke(app, ["use", *wrong])
    assert shown.exit_code == 1 and (project / "params.yaml").read_bytes() == before
    assert "not changed, because of 2 errors" in shown.output
    assert "prepare.root: /nowhere is not there" in shown.output and "'audio.no'" in shown.output
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code == 0 and "params.yaml: 0 errors, 0 warnings" in shown.output
    values = before.decode().replace("audio.librosa", "audio.no").replace("language: en", "language: zh")
    (project / "params.yaml").write_text(values, encoding="utf-8")
    shown = runner.invoke(app, ["doctor"])
    assert shown.exit_code == 1 and "error: extract.audio: no extractor is called 'audio.no'" in shown.output
    assert "warning: extract.text.options.model: minilm knows the language en only" in shown.output
    shown = runner.invoke(app, ["use", "train.epochs=3"])  # it changes nothing about the error
    assert shown.exit_code == 0 and "warning: extract.audio: no extractor is called 'audio.no'" in shown.output


def test_use_without_arguments_tells_hand_edits_choices_and_presets(project):
    shown = runner.invoke(app, ["use"])
    assert "dvc repro and dvc exp run start alike" in shown.output and "chosen: nothing" in shown.output
    assert "corpus=mmsa " in shown.output and "experiment=fast " in shown.output
    runner.invoke(app, ["use", "experiment=in_batch", "train.seeds=[1,2]"])
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("epochs: 16", "epochs: 40"), encoding="utf-8")
    shown = runner.invoke(app, ["use"])
    assert "train.epochs: 16 -> 40" in shown.output and "dashfusion use --save" in shown.output
    assert "chosen: experiment=in_batch 'train.seeds=[1, 2]'\n" in shown.output
    assert "1 value kept" in runner.invoke(app, ["use", "--save"]).output
    assert "start alike" in runner.invoke(app, ["use"]).output


@pytest.mark.parametrize("options", [["train.epochs=3", "--save"], ["--undo", "--reset"], ["--undo", "--save"]])
def test_options_of_use_that_stand_alone(project, options):
    shown = runner.invoke(app, ["use", *options])
    assert shown.exit_code == 2 and "stand alone" in shown.output


def test_use_leaves_the_file_alone_when_a_choice_is_wrong(project):
    before = (project / "params.yaml").read_bytes()
    shown = runner.invoke(app, ["use", "train.epochs=-3"])
    assert shown.exit_code == 1 and "train.epochs" in shown.output
    assert (project / "params.yaml").read_bytes() == before


def test_the_version_is_that_of_the_package():
    shown = runner.invoke(app, ["--version"])
    assert shown.exit_code == 0 and shown.output == f"dashfusion {version('dashfusion')}\n"


def test_help_has_every_command_in_a_panel_of_its_task():
    assert sorted(name for names in PANELS.values() for name in names) == sorted(typer.main.get_command(app).commands)
    lines = runner.invoke(app, ["--help"]).output.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("╭─")]
    for panel, names in PANELS.items():
        start = next(number for number in heads if lines[number].startswith(f"╭─ {panel} ─"))
        shown = [line.split()[1] for line in lines[start + 1 :] if line.startswith("│ ") and line[2] != " "]
        assert shown[: len(names)] == list(names)


@pytest.mark.parametrize(
    "command",
    [
        "pipeline", "results", "train", "use", "use train.epochs=3", "use --save", "use --undo", "doctor", "problems",
        "study", "study ablation", "compare", "deploy", "ui", "cache prune", "export mmsa data.pkl",
        "export datasets data",
    ],
)  # fmt: skip
def test_outside_of_a_project_a_line_says_where_to_run(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    shown = runner.invoke(app, command.split())
    assert shown.exit_code == 1 and "run from the project's folder" in " ".join(shown.output.split())
    assert "Traceback" not in shown.output and list(tmp_path.iterdir()) == []


def test_cache_prune_keeps_what_the_parameters_name(project, monkeypatch):
    from corpora import files
    from extractors.execution import units

    monkeypatch.delenv("DASHFUSION_SCRATCH", raising=False)
    kept = units.describe("audio.librosa", {"hop_seconds": 0.064}).signature
    scratch = project / ".dashfusion/scratch"
    for name in (kept, "audio.librosa-v0-old", "mapped", "training-0123"):
        (scratch / name).mkdir(parents=True)
    (scratch / files.CACHE_TAG).write_text(files.CACHE_TAG_TEXT)
    for name, signature in (("corrupted-ours", kept), ("corrupted-others", "audio.librosa-v0-old")):
        (scratch / name).mkdir()
        modalities = {"modalities": {"audio": {"signature": signature}}}
        (scratch / name / "dataset.json").write_text(json.dumps(modalities))
    shown = runner.invoke(app, ["cache", "prune"])
    assert shown.exit_code == 0 and "3 folders removed" in shown.output
    assert {path.name for path in scratch.iterdir() if path.is_dir()} == {kept, "mapped", "corrupted-ours"}
