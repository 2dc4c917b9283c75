"""Completion in the shell: names and values of the project in this folder, and nothing where there is none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app

ROOT = Path(__file__).parents[3]


def complete(words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is offered for the last of these words, which it splits at spaces and at `=`."""
    monkeypatch.setenv("_DASHFUSION_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"dashfusion {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
    shown = CliRunner().invoke(app, [], prog_name="dashfusion")
    assert shown.exception is None or isinstance(shown.exception, SystemExit)
    return shown.output.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("use corpus = mm", ["mmsa", "mmsa_pickle"]),
        ("use experiment=f", ["experiment=fast", "experiment=finetune"]),  # zsh and fish do not split
        ("use extract.audio.extractor = audio.o", ["audio.opensmile"]),
        ("use extract.vision.extractor=vision.t", ["extract.vision.extractor=vision.transformer"]),
        ("use model.name=tf", ["model.name=tfn"]),
        ("use train.epo", ["train.epochs=16"]),
        ("use corpus = mmsa text = pickled_bert_e", ["pickled_bert_en"]),
        ("use corpus = mmsa train.epo", ["train.epochs=16"]),
        ("use corpus=mmsa text=min", ["text=minilm"]),
        ("study ab", ["ablation"]),
        ("study ablation --set train.epo", ["train.epochs=16"]),
        ("study ablation --set prepare.ro", []),
        ("compare late", ["late_fusion"]),
        ("compare text tex", ["text"]),
        ("extract v", ["vision"]),
        ("use nothing", []),
    ],
)
def test_names_and_values_are_offered(project, monkeypatch, words, offered):
    (project / "studies").mkdir(exist_ok=True)
    (project / "studies/ablation.yaml").write_text("question: What helps?", encoding="utf-8")
    assert complete(words, monkeypatch) == offered


@pytest.mark.parametrize(("shell", "line"), [("zsh", r'"(.+?)":"(.+)"'), ("fish", r"(.+?)\t(.+)")])
def test_zsh_and_fish_are_offered_names_with_a_line_of_help_each(project, monkeypatch, shell, line):
    shutil.copytree(ROOT / "studies", project / "studies", ignore=shutil.ignore_patterns("results"))
    monkeypatch.setenv("_DASHFUSION_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    names = sorted(path.stem for path in (project / "studies").glob("*.yaml"))
    for words, offered in (("study ", names), ("use corpus=mmsa", ["corpus=mmsa", "corpus=mmsa_pickle"])):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"dashfusion {words}")
        shown = CliRunner().invoke(app, [], prog_name="dashfusion").output
        found = [re.search(line, candidate) for candidate in shown.splitlines()]
        assert [match and match[1] for match in found] == offered, shown


def test_after_the_equals_sign_bash_is_offered_values_alone(project, monkeypatch):
    offered = complete("use corpus =", monkeypatch)
    assert "demo_en" in offered and not [word for word in offered if "=" in word]


def test_before_any_letter_the_presets_are_offered(project, monkeypatch):
    offered = complete("use ", monkeypatch)
    assert "corpus=mmsa" in offered
    assert all(word.startswith(("corpus=", "experiment=", "recipe=", "text=")) for word in offered)
    assert complete("use corpus = mmsa ", monkeypatch) == offered


def test_what_a_shell_would_split_or_run_is_not_offered(project, monkeypatch):
    (project / "params.yaml").write_text("train: {a: $(id), b: 'x y', c: [1], d: true, e: null}", encoding="utf-8")
    assert complete("use train.", monkeypatch) == ["train.d=true", "train.e="]


@pytest.mark.parametrize("words", ["use corpus =", "use train.", "study ", "use "])
def test_outside_of_a_project_and_in_a_damaged_one_nothing_is_offered(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert complete(words, monkeypatch) == []
    (tmp_path / "params.yaml").write_bytes(b"\xff{")
    assert complete(words, monkeypatch) == []
