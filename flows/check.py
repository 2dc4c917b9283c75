"""Stage `check`: refuse output paths with files that no stage has made.

DVC deletes a stage's outputs before it runs the stage's command. Every stage depends on this one, whose own output is a
file of its own, so that `dvc repro` after an edit of params.yaml stops here.
"""

from __future__ import annotations

from pathlib import Path

from flows.config.outputs import record_outputs
from flows.config.params import load_params
from flows.orchestration import engine

CHECKED = Path("data/outputs.txt")


def check() -> None:
    """Check the output paths, `paths` in params.yaml, and write a file on which all stages depend."""
    record_outputs(load_params())
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.write_text("The output paths hold nothing but what stages have made.\n", encoding="utf-8")


if __name__ == "__main__":
    engine.parse_command_line(check)
    with engine.plain_exit("check"):
        check()
