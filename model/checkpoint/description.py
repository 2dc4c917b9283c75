"""Reading checkpoint.json without torch, whose import takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
DESCRIPTION = "checkpoint.json"


def read_description(folder: Path) -> dict[str, Any]:
    """Read `folder`/checkpoint.json.

    Raises:
        FileNotFoundError: No checkpoint there; the message says which stage makes it.
        ValueError: Not JSON, or another schema version.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint here; `dashfusion train` (or `dvc repro train`) makes it")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); copy the checkpoint again") from error
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: checkpoint schema {raw.get('schema_version')}, this version reads {SCHEMA_VERSION}; "
            "run the train stage again"
        )
    return raw
