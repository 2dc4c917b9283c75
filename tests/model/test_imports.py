"""The model runs on a bare GPU machine: it may not pull in the rest of the house."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORBIDDEN = {
    "prefect", "dvc", "dvclive", "librosa", "cv2", "mediapipe", "typer", "rich", "pandas", "sklearn", "scipy",
    "pydantic", "corpora", "extractors", "flows",
}  # fmt: skip


def test_importing_the_model_pulls_in_nothing_foreign():
    root = Path(__file__).parents[2]
    modules = [f"model.{path.stem}" for path in sorted((root / "model").glob("*.py")) if path.stem != "__init__"]
    assert "model.train" in modules
    code = f"import sys, {', '.join(modules)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert FORBIDDEN & set(run.stdout.split()) == set()
    assert "torch" in run.stdout.split()
