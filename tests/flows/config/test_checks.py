"""What would stop a stage is found in the parameters before any stage runs, all of it at once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from corpora.splits import SplitConfig
from extractors.text import transformer
from flows.config import checks
from flows.config.checks import check_project, require_usable
from flows.config.params import ExtractorParams, Params, load_params

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXTS = ("The hotel was charming and we had a good time.", "It was not what they would have wanted, and I left.")


@pytest.fixture
def params(project) -> Params:
    """The default parameters, in a folder of their own."""
    return load_params()


def write_corpus(root: Path, rows: Sequence[Mapping[str, object]] = (), count: int = 12) -> Path:
    """A corpus in MMSA's layout whose media are empty files; `rows` replace values of the first rows."""
    table = [
        {"video_id": "v", "clip_id": f"{i:02}", "text": TEXTS[i % 2], "label": (i % 5) - 2, "mode": mode}
        for i, mode in zip(range(count), ("train", "train", "valid", "test") * count, strict=False)
    ]
    for row, values in zip(table, rows, strict=False):
        row.update(values)
    (root / "Raw/v").mkdir(parents=True)
    with (root / "label.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, table[0])
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        (root / f"Raw/v/{row['clip_id']}.mp4").touch()
    return root


def of_corpus(params: Params, root: Path, layout: str = "mmsa", **values: object) -> Params:
    return replace(params, prepare=replace(params.prepare, layout=layout, root=str(root), **values))


def errors(params: Params) -> list[str]:
    return [finding.message for finding in check_project(params) if finding.error]


def test_the_default_and_a_sound_corpus_have_no_findings(params, tmp_path):
    assert check_project(params) == []
    assert check_project(of_corpus(params, write_corpus(tmp_path / "corpus"))) == []


def test_errors_are_listed_all_at_once_with_what_was_found(params, tmp_path):
    extract = replace(
        params.extract,
        text=ExtractorParams("audio.librosa"),
        audio=ExtractorParams("audio.opensmil"),
        vision=ExtractorParams("vision.face_landmarker", {"fsp": 10}),
    )
    transcribe = replace(params.transcribe, word_times="gone.csv", model="/gone/whisper")
    wrong = replace(of_corpus(params, tmp_path / "gone"), extract=extract, transcribe=transcribe)
    with pytest.raises(ValueError, match=r"not changed, because of 6 errors") as raised:
        require_usable(wrong)
    lines = str(raised.value).splitlines()[1:]
    expected = (
        "extract.text: audio.librosa extracts audio; choose an extractor of text",
        "extract.audio: no extractor is called 'audio.opensmil'; did you mean 'audio.opensmile'",
        "extract.vision: vision.face_landmarker has no option fsp; it has fps, min_confidence, blendshapes, model",
        "transcribe.model: '/gone/whisper' is not there",
        "transcribe.word_times: gone.csv is not there",
        f"prepare.root: {tmp_path / 'gone'} is not there",
    )
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.strip().startswith(start)


@pytest.mark.parametrize(
    ("modality", "chosen", "message"),
    [
        ("vision", ExtractorParams("vision.face_landmarker", {"fps": -1}), "fps must be"),
        ("vision", ExtractorParams("vision.face_landmarker", {"model": "/gone.task"}), "found '/gone.task'"),
        ("audio", ExtractorParams("audio.transformer"), "needs the option model: '[+]extract.audio.options.model="),
        ("text", ExtractorParams("text.transformer", {"model": "/gone/bert"}), "is not there: no such folder"),
    ],
)
def test_options_and_model_files_of_extractors_are_checked(params, modality, chosen, message):
    changed = replace(params, extract=replace(params.extract, **{modality: chosen}))
    (error,) = errors(changed)
    assert error.startswith(f"extract.{modality}: ")
    with pytest.raises(ValueError, match=message):
        require_usable(changed)


def test_damaged_weights_are_noticed(params, monkeypatch):
    monkeypatch.setattr(transformer, "MINILM_SHA256", "0" * 64)
    (error,) = errors(params)
    assert "model.safetensors has SHA-256" in error and "reinstall" in error


def test_an_encoder_that_is_not_there_is_one_error(params):
    model = replace(params.model, text=replace(params.model.text, mode="finetune"))
    text = ExtractorParams("text.transformer", {"model": "/gone/bert"})
    (error,) = errors(replace(params, model=model, extract=replace(params.extract, text=text)))
    assert error.startswith("the text encoder '/gone/bert' (model.text.mode finetune) is not there")


def test_a_package_that_is_not_installed_is_named_with_its_extra(params, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    (error,) = errors(replace(params, extract=replace(params.extract, runner="dask")))[1:]
    assert error == "extract.runner: dask needs the package prefect_dask; pip install -e '.[dask]'"


def test_paths_that_cannot_be_written_are_named(params, project, monkeypatch):
    (project / "results").touch()
    changed = replace(params, paths=replace(params.paths, report=Path("results/report")))
    assert [error.partition(",")[0] for error in errors(changed)] == ["paths.report: results/report cannot be created"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "paths.models: models cannot be written" in "\n".join(errors(params))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"mode": "held out"}] * 12, "12 of 12 rows cannot be used [(]UnknownSplit: v/00, v/01, v/02 and 9 more[)]"),
        ([{"label": 7}] * 2, "2 of 12 rows cannot be used [(]LabelOutOfRange: v/00, v/01[)].*set prepare.label_range"),
        ([{"mode": "train"}] * 12, "the split valid has no clip [(]clips with a label: train 12, valid 0, test 0[)]"),
        ([{"label": ""}] * 3, "the split valid has no clip with a label"),
        ([{"label": "good"}], "BadLabel: v/00"),
    ],
)
def test_a_table_that_no_model_can_be_trained_on_is_refused(params, tmp_path, rows, message):
    changed = of_corpus(
        params, write_corpus(tmp_path / "corpus", rows, count=4 if message.endswith("no clip with a label") else 12)
    )
    with pytest.raises(ValueError, match=f"(?s){message}"):
        require_usable(changed)


def test_drawn_splits_are_those_that_are_checked(params, tmp_path):
    own = write_corpus(tmp_path / "own", [{"mode": "test"}] * 12)
    assert len(errors(of_corpus(params, own, layout="folder"))) == 2
    drawn = write_corpus(tmp_path / "drawn", [{"mode": ""}] * 12)
    assert (
        check_project(of_corpus(params, drawn, layout="folder", split=SplitConfig(valid=0.2, test=0.2, by="clip")))
        == []
    )


def test_few_unusable_rows_are_a_warning(params, tmp_path):
    root = write_corpus(tmp_path / "corpus", [{"label": 7}])
    changed = replace(of_corpus(params, root), extract=replace(params.extract, max_failed_fraction=0.1))
    (warning,) = require_usable(changed)
    assert "1 of 12 rows cannot be used" in warning and "label 7 is outside [-3, 3]" in warning


def test_missing_media_are_counted_on_a_sample(params, tmp_path, monkeypatch):
    root = write_corpus(tmp_path / "corpus", count=40)
    monkeypatch.setattr(checks, "MAX_MEDIA", 10)
    (root / "Raw").rename(root / "raw")
    (error,) = errors(of_corpus(params, root))
    assert "10 of 10 clips that were looked for, of 40, have no media file (v/00, v/04, v/08 and 7 more)" in error


def test_what_may_be_meant_is_a_warning(params, tmp_path):
    german = [{"text": "Das Hotel war sehr schön, und ich habe gut geschlafen."}] * 3 + [{"text": "这家酒店很迷人。"}]
    (warning,) = require_usable(of_corpus(params, write_corpus(tmp_path / "a", german)))
    assert warning.startswith(
        "prepare.language: en, but 4 of 12 transcripts look like another language: "
        "3 like de (v/00, v/01, v/02); 1 like zh (v/03)"
    )
    small = write_corpus(tmp_path / "b", [{"label": 0.5}] * 12)
    (warning,) = require_usable(of_corpus(params, small))
    assert "all 12 labels are in [-1, 1]; set 'prepare.label_range=[-1,1]'" in warning
    unlabelled = write_corpus(tmp_path / "c", [{"label": "", "text": ""}] * 12)
    text, label = require_usable(of_corpus(params, unlabelled))[::-1]
    assert "no row has a label" in label and "no row has a text" in text
    model = require_usable(of_corpus(params, write_corpus(tmp_path / "d"), language="german"))[0]
    assert model.startswith("extract.text.options.model: minilm knows the language en only")


def test_errors_that_were_there_before_do_not_stop_a_change(params, tmp_path):
    before = of_corpus(params, tmp_path / "gone")
    after = replace(before, train=replace(before.train, epochs=3))
    (warning,) = require_usable(after, before)
    assert warning.startswith(f"prepare.root: {tmp_path / 'gone'} is not there")
    with pytest.raises(ValueError, match="elsewhere is not there"):
        require_usable(of_corpus(params, tmp_path / "elsewhere"), before)


def test_a_check_loads_no_framework_and_decodes_nothing(project, tmp_path):
    root = write_corpus(tmp_path / "corpus")
    code = f"""
import sys
from flows.cli import app
try:
    app(["use", "corpus=mmsa", "prepare.root={root}"])
except SystemExit as end:
    assert not end.code
slow = {{"torch", "mediapipe", "transformers", "librosa", "prefect", "dvc", "pandas"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
