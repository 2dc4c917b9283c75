"""Reading checkpoint.json without torch, whose import takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.info import DatasetInfo, is_generated

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 2
DESCRIPTION = "checkpoint.json"
REFERENCE = "reference"
"""Folder of a dataset and a checkpoint: `<modality>.safetensors` with a reference clip and its features `values`."""
GENERATED_NOTICE = (
    "This model was trained on generated videos (animated faces, synthetic voices): "
    "its scores of real people mean nothing."
)
"""First statement of everything that shows scores of such a model."""

REMEDY = "copy the checkpoint again, or run the train stage again"

_REQUIRED = {
    "model": dict,
    "train": dict,
    "dataset": dict,
    "seed": int,
    "epoch": int,
    "metrics": dict,
    "versions": dict,
}


def first_notice(description: Mapping[str, Any]) -> str:
    """Return `GENERATED_NOTICE` if a checkpoint.json is of generated videos, else an empty string."""
    return GENERATED_NOTICE if is_generated(description["dataset"]) else ""


def read_description(folder: Path) -> dict[str, Any]:
    """Read `folder`/checkpoint.json.

    Raises:
        FileNotFoundError: No checkpoint there; the message says which stage makes it.
        ValueError: Not JSON, another schema version, or an entry that is missing or damaged.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint here; `dashfusion train` (or `dvc repro train`) makes it")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); {REMEDY}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: holds no JSON object; {REMEDY}")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: checkpoint schema {raw.get('schema_version')}, this version reads {SCHEMA_VERSION}; "
            "run the train stage again"
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(raw.get(key), kind):
            raise ValueError(f"{path}: {key!r} is missing or damaged; {REMEDY}")
    if not isinstance(raw["train"].get("modalities"), list):
        raise ValueError(f"{path}: 'train.modalities' is missing or damaged; {REMEDY}")
    DatasetInfo.from_dict(raw["dataset"], str(path), REMEDY)
    return raw
