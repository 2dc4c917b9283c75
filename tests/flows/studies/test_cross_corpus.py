"""Models on other corpora: what is measured, mapped, noted and refused, and the matrix of models and datasets."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from rich.console import Console

from flows import compare as compare_flow
from flows import evaluate as evaluate_flow
from flows.config.checks import check_project
from flows.config.params import Params, load_params
from flows.orchestration import evaluations
from flows.studies.cross_corpus import MATRIX, cross_corpus_matrix, matrix_of, matrix_table, mean_intervals, read_matrix
from model.checkpoint.io import save_checkpoint
from model.config import ModelConfig, TrainConfig
from model.data.info import read_info
from model.evaluation.predictions import ClipPredictions
from model.network.dashfusion import DashFusion

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, fusion_layers=1, max_positions=32)


def untrained(dataset: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = DashFusion(SMALL, read_info(dataset)).eval()
    save_checkpoint(folder / "best", network, TrainConfig(), seed, epoch=1, metrics={"valid_mae": 1.5})
    return folder / "best"


def rename(dataset: Path, **changes: object) -> Path:
    path = dataset / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return dataset


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, dataset_writer) -> Mapping[str, Path]:
    """A wide corpus, one with labels in [-1, 1] in another language, and one whose audio is another extractor's."""
    root = tmp_path_factory.mktemp("corpora")
    wide = rename(dataset_writer(root / "wide", missing=False), corpus="wide")
    unit = dataset_writer(root / "unit", label_range=(-1, 1), missing=False, seed=5)
    rename(unit, corpus="unit", language="zh")
    other = dataset_writer(root / "other", missing=False, seed=6)
    modalities = read_info(other).to_dict()["modalities"]
    modalities["audio"]["signature"] = "audio.other-v1-111111111111"
    return {"wide": wide, "unit": unit, "other": rename(other, corpus="other", modalities=modalities)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, corpora) -> Mapping[str, list[Path]]:
    root = tmp_path_factory.mktemp("models")
    seeds = [untrained(corpora["wide"], root / f"wide-{seed}", seed) for seed in (0, 1)]
    return {"two seeds": seeds, "one seed": [untrained(corpora["unit"], root / "unit", 3)]}


def shown(table: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_the_matrix_has_a_cell_for_every_pair_and_the_reason_where_features_differ(corpora, checkpoints):
    results = cross_corpus_matrix(checkpoints, list(corpora.values()), device="cpu")
    assert [(r.model, r.trained_on, r.corpus) for r in results] == [
        *(("two seeds", "wide", name) for name in corpora),
        *(("one seed", "unit", name) for name in corpora),
    ]
    cells = {(r.trained_on, r.corpus): r for r in results}
    assert cells["wide", "unit"].mapping == "Scores in [-3, 3] were mapped linearly to [-1, 1]."
    assert cells["unit", "wide"].mapping == "Scores in [-1, 1] were mapped linearly to [-3, 3]."
    assert cells["wide", "wide"].mapping == "" and cells["wide", "wide"].notes == ()
    assert cells["wide", "unit"].notes == ("the transcripts are zh, those of the training en",)
    for pair in (("wide", "other"), ("unit", "other")):
        assert "audio.other-v1" in cells[pair].refusal and cells[pair].metrics == {}
    for result in (cells["wide", "wide"], cells["wide", "unit"], cells["unit", "wide"]):
        low, high = result.intervals["mae"]
        assert 0 <= low < result.metrics["mae"] < high
    assert "acc2_np" in cells["unit", "wide"].metrics and "acc2" in cells["wide", "unit"].metrics

    table = shown(matrix_table(results, "acc2_np"))
    lines = [line for line in table.splitlines() if "seed" in line and "│" in line]
    assert [line.count("%") for line in lines] == [2, 2] and all("\u2013" in line for line in lines)
    assert "mapped linearly to [-1, 1]" in table and "audio.other-v1" in table.replace("\n", "")
    assert all(len(line) <= 80 for line in shown(matrix_table(results, "mae"), 80).splitlines())


def test_two_datasets_of_one_name_stay_apart(corpora, checkpoints, tmp_path, dataset_writer):
    twin = rename(dataset_writer(tmp_path / "twin", missing=False, seed=9), corpus="wide")
    measured: list[tuple[str, int]] = []
    results = cross_corpus_matrix(
        {"m": checkpoints["two seeds"]},
        [corpora["wide"], twin],
        device="cpu",
        on_measured=lambda result, evaluation: measured.append((result.dataset, len(evaluation.predictions))),
    )
    assert measured == [(str(corpora["wide"]), 16), (str(twin), 16)], "two seeds of 8 clips"
    assert results[0].metrics["mae"] != results[1].metrics["mae"]
    table = shown(matrix_table(results, "mae"), 250)
    assert str(twin) in table and f"{results[1].metrics['mae']:.3f}" in table


def test_a_dataset_without_the_split_is_refused(checkpoints, tmp_path, dataset_writer):
    untested = dataset_writer(tmp_path / "untested", clips={"train": 8, "valid": 8}, missing=False)
    (result,) = cross_corpus_matrix({"m": checkpoints["two seeds"]}, [untested], device="cpu")
    assert result.refusal == "synthetic has no clips in its test split"


def test_what_is_missing_or_damaged_is_no_refusal(corpora, checkpoints, tmp_path):
    shutil.copytree(checkpoints["one seed"][0], tmp_path / "best")
    (tmp_path / "best" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged or replaced"):
        cross_corpus_matrix({"m": [tmp_path / "best"]}, [corpora["unit"]], device="cpu")
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        cross_corpus_matrix(checkpoints, [tmp_path / "nowhere"], device="cpu")


def test_intervals_are_for_other_speakers_and_other_seeds():
    rng = np.random.default_rng(0)
    label = rng.uniform(-3, 3, 60)
    speaker = np.repeat(np.arange(12), 5)
    ids = tuple(map(str, range(60)))

    def mae(offsets: list[float]) -> tuple[float, float]:
        prediction = np.stack([label + offset + rng.normal(0, 0.3, 60) for offset in offsets])
        return mean_intervals(ClipPredictions(ids, label, prediction, {}), (-3.0, 3.0), speaker)["mae"]

    one, alike, spread = mae([0.5]), mae([0.5, 0.5, 0.5]), mae([0.1, 0.5, 0.9])
    assert spread[1] - spread[0] > 1.5 * (alike[1] - alike[0]) and one[0] < 0.6 < one[1]
    assert mean_intervals(ClipPredictions((), np.zeros(0), np.zeros((1, 0)), {}), (-3.0, 3.0), np.zeros(0)) == {}


@pytest.fixture
def params(tmp_path, monkeypatch, corpora, checkpoints) -> Params:
    """A project with the wide corpus's model, measured on the unit corpus as well."""
    values = load_params(Path(__file__).parents[3] / "params.yaml")
    (tmp_path / "models/seed-0").mkdir(parents=True)
    (tmp_path / "models/seed-0/best").symlink_to(checkpoints["two seeds"][0])
    monkeypatch.chdir(tmp_path)
    evaluate = type(values.evaluate)(also_on=corpora["unit"])
    return type(values)(**(vars(values) | {"evaluate": evaluate}))


def test_another_corpus_is_measured_beside_the_own_one_and_counted_as_a_look(params, capsys):
    assert evaluate_flow.inputs(params)["other_dataset"] == params.evaluate.also_on
    found = evaluate_flow.measure_other_corpus.fn(params)
    stored = json.loads(Path("metrics/on.json").read_text())
    assert [path.name for path in Path("metrics").iterdir()] == ["on.json"], "the own metrics are another file"
    assert stored["corpus"] == "unit" and stored["trained_on"] == "wide" and stored["label_range"] == [-1, 1]
    assert stored["metrics"] == json.loads(json.dumps(found.metrics)) and stored["intervals"]["mae"]
    assert "mean_label" in stored["metrics"]["baselines"]
    assert found.looks == "with this model only"
    read = evaluations.read_other_corpus(params)
    assert read.mapping == found.mapping
    assert shown(evaluations.other_corpus_table(read)) == shown(evaluations.other_corpus_table(found))
    assert len((evaluate_flow.settings.STATE / evaluate_flow.LOOKS).read_text().splitlines()) == 1
    evaluations.print_other_corpus(found)
    printed = " ".join(capsys.readouterr().out.split())
    assert "unit, test split, by a model trained on wide" in printed
    assert "Scores in [-3, 3] were mapped linearly to [-1, 1]." in printed
    assert "unit: the transcripts are zh, those of the training en" in printed
    assert "the test split of unit has been evaluated with this model only" in printed


def test_a_comparison_on_other_corpora_writes_the_matrix_and_counts_every_look(params, corpora, checkpoints, capsys):
    own = type(params)(**(vars(params) | {"paths": replace(params.paths, dataset=corpora["wide"])}))
    compare_flow.measure_across(own, {"m": checkpoints["two seeds"]}, [corpora["unit"], corpora["other"]])
    cells = json.loads((params.paths.studies / MATRIX).read_text())
    read = read_matrix(params.paths.studies / MATRIX)
    assert [asdict(cell)["label_range"] for cell in read] == [cell["label_range"] for cell in cells]
    assert matrix_of(read, "mae").rows[0][1][0][0] == f"{cells[0]['metrics']['mae']:.3f}"
    assert read_matrix(params.paths.studies / "none.json") == []
    assert [cell["corpus"] for cell in cells] == ["wide", "unit", "other"]
    assert cells[0]["intervals"]["mae"] and "audio.other-v1" in cells[2]["refusal"] and cells[2]["metrics"] == {}
    assert len((evaluate_flow.settings.STATE / evaluate_flow.LOOKS).read_text().splitlines()) == 2
    printed = capsys.readouterr().out
    assert all(f"{name} across corpora, test split" in printed for name in ("MAE", "Acc-2", "Correlation"))


def test_without_another_corpus_the_file_is_empty(params):
    own = type(params.evaluate)(also_on=params.paths.dataset / ".." / "dataset")
    alone = type(params)(**(vars(params) | {"evaluate": own}))
    assert alone.other_dataset is None and "other_dataset" not in evaluate_flow.inputs(alone)
    assert evaluate_flow.measure_other_corpus.fn(alone) is None
    assert json.loads(Path("metrics/on.json").read_text()) == {} and evaluations.read_other_corpus(alone) is None


def test_a_folder_without_a_dataset_is_named_before_anything_runs(params, tmp_path):
    nowhere = type(params.evaluate)(also_on=tmp_path / "nowhere")
    found = [item.message for item in check_project(type(params)(**(vars(params) | {"evaluate": nowhere})))]
    assert any(
        message.startswith(f"evaluate.also_on: {tmp_path / 'nowhere'} holds no dataset.json") for message in found
    )


def test_a_file_that_is_no_matrix_is_named(tmp_path):
    (tmp_path / MATRIX).write_text('[{"model": "m"}]')
    with pytest.raises(ValueError, match=r"cross_corpus.json: not a matrix of `dashfusion compare --on`.*; remove it"):
        read_matrix(tmp_path / MATRIX)
