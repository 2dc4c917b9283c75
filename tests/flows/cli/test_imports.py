"""What commands and stages import before they do anything: the time until a user sees something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

ORCHESTRATION = {"prefect", "dvc", "hydra"}
COMPUTING = {"torch", "transformers", "librosa", "mediapipe", "scipy", "cv2", "matplotlib", "sklearn", "pandas"}


def imported(code: str) -> set[str]:
    """Return the top-level modules of a process that has run the code."""
    program = f"import sys\n{code}\nprint('modules:', *{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.rpartition("modules:")[2].split())


def command(*words: str) -> str:
    return f"from flows.cli import app; app({list(words)}, standalone_mode=False)"


def test_the_help_needs_nothing_but_the_command_line():
    found = imported(command("--help"))
    assert "typer" in found
    assert (ORCHESTRATION | COMPUTING | {"pydantic", "pyarrow", "numpy", "av"}) & found == set()


@pytest.mark.parametrize(
    ("code", "used"),
    [
        (command("study"), "yaml"),
        (command("use", "--help"), "typer"),
        ("import flows.orchestration.evaluations, flows.config.params", "pydantic"),  # `results`
    ],
)
def test_a_command_that_only_shows_loads_no_orchestrator_and_no_library_that_computes(code, used):
    found = imported(code)
    assert used in found
    assert (ORCHESTRATION | COMPUTING) & found == set()


def test_a_stage_loads_what_computes_with_its_first_clip():
    stages = ", ".join(f"flows.{name}" for name in ("prepare", "transcribe", "extract", "align", "train", "evaluate"))
    assert (COMPUTING | {"dvc", "hydra"}) & imported(f"import {stages}") == set()


def test_training_on_extracted_features_loads_no_text_encoder():
    assert {"transformers", "scipy", "sympy"} & imported("import model.train, model.network.registry") == set()
