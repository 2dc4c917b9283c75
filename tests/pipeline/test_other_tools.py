"""The tools that an export is for take it: MMSA trains on it, `datasets` loads it.

Each is tried with a Python of its own, in which it is installed (docs/mmsa.md says how), and skipped without:
`DASHFUSION_MMSA_PYTHON` and `DASHFUSION_DATASETS_PYTHON` name them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from corpora.manifest import MODALITIES, write_manifest
from corpora.readers.mmsa_pickle import read_mmsa
from extractors.dataset.align import align
from extractors.dataset.align_clip import AlignConfig
from extractors.dataset.export import export_datasets, export_mmsa
from extractors.imported import write_imported
from extractors.transcripts.transcribe import TranscribeConfig, transcribe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

CLIPS = {"train": 96, "valid": 32, "test": 32}

TRAIN = """
import json, sys
import torch
from MMSA.config import get_config_regression
from MMSA.run import _run

model, corpus, features, weights = sys.argv[1:]
args = get_config_regression(model, corpus)
args.update(featurePath=features, custom_feature=None, feature_T="", feature_A="", feature_V="", cur_seed=1)
args.update(train_mode="regression", model_save_path=weights, device=torch.device("cpu"), early_stop=4, batch_size=16)
torch.manual_seed(0)
print(json.dumps({name: float(value) for name, value in _run(args, num_workers=0).items()}))
"""
"""MMSA's own loader, model and training; its `MMSA_run` asks for a GPU before all else."""

LOAD = """
import json, sys
import datasets

datasets.disable_progress_bars()
loaded = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
row = loaded["test"][3]
print(json.dumps([{split: len(rows) for split, rows in loaded.items()}, row["clip_id"], row["audio_values"]]))
"""


def run(variable: str, script: str, *arguments: str) -> str:
    """Last line of what the script prints in the Python that the variable names."""
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"{variable} names no Python")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [interpreter, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """A dataset whose audio and vision show the label, with labels of single modalities as CH-SIMS has them."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    content = {}
    for split, count in CLIPS.items():
        labels = rng.uniform(-1, 1, count).round(1)
        shown = rng.normal(labels[:, None, None], 0.5, (count, 12, 6)).astype(np.float32)
        content[split] = {m: shown[:, : 8 + 2 * i] for i, m in enumerate(MODALITIES)} | {
            "regression_labels": labels,
            "id": [f"{split}{i // 4}$_${i}" for i in range(count)],
            "raw_text": [f"words of clip {i}" for i in range(count)],
            "text_bert": np.ones((count, 3, 8)),
        }
        content[split] |= {f"regression_labels_{m}": labels for m in "TAV"}
    (folder / "made.pkl").write_bytes(pickle.dumps(content))
    corpus = read_mmsa(folder / "made.pkl", corpus="made", language="en", label_range=(-1.0, 1.0), root=str(folder))
    write_imported(corpus, folder, "mmsa_pickle")
    write_manifest(corpus.manifest, folder / "manifest.parquet")
    transcribe(folder / "manifest.parquet", folder / "words.parquet", TranscribeConfig(), folder / "scratch", 1.0)
    stores = {m: folder / "features" / m for m in MODALITIES}
    align(folder / "manifest.parquet", folder / "words.parquet", stores, folder / "dataset", AlignConfig())
    return folder / "dataset"


@pytest.mark.parametrize(("model", "corpus"), [("lf_dnn", "mosi"), ("tfn", "sims")])
def test_mmsa_trains_on_an_export(dataset, tmp_path, model, corpus):
    export_mmsa(dataset, tmp_path / "out.pkl")
    said = run("DASHFUSION_MMSA_PYTHON", TRAIN, model, corpus, str(tmp_path / "out.pkl"), str(tmp_path / "m.pth"))
    assert json.loads(said)["Corr"] > 0.7


def test_datasets_loads_an_export(dataset, tmp_path):
    export_datasets(dataset, tmp_path / "out")
    said = run("DASHFUSION_DATASETS_PYTHON", LOAD, str(tmp_path / "out"), str(tmp_path / "cache"))
    clips, clip_id, values = json.loads(said)
    assert clips == CLIPS and clip_id == "test0/3" and np.shape(values) == (10, 6)
