"""Stage `check`: refuse output paths with files that no stage has made, and name system libraries to install.

DVC deletes a stage's outputs before it runs the stage's command. Every stage depends on this one, whose own output is a
file of its own, so that `dvc repro` after an edit of params.yaml stops here.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from flows.config.outputs import record_outputs
from flows.config.params import IMPORTED_LAYOUTS, Params, load_params
from flows.orchestration import engine

CHECKED = Path("data/outputs.txt")


LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libEGL.so.1": "libegl1",
    "libGLESv2.so.2": "libgles2",
}
"""Libraries that the wheels of OpenCV and MediaPipe load but do not contain, and Debian's packages of them."""


def check() -> None:
    """Check the output paths, `paths` in params.yaml, and write a file on which all stages depend."""
    params = load_params()
    check_libraries(params)
    record_outputs(params)
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.write_text("The output paths hold nothing but what stages have made.\n", encoding="utf-8")


def check_libraries(params: Params) -> None:
    """Check that the system has the libraries with which faces are drawn and found.

    Raises:
        ValueError: Libraries are missing; the message says what to install.
    """
    needed = (
        params.prepare.layout not in IMPORTED_LAYOUTS and params.extract.vision.extractor == "vision.face_landmarker"
    )
    missing = [name for name in LIBRARIES if not _loads(name)] if needed and sys.platform == "linux" else []
    if missing:
        raise ValueError(
            f"OpenCV and MediaPipe need {', '.join(missing)} of the system: install "
            f"{' '.join(LIBRARIES[name] for name in missing)} (Debian, Ubuntu: as root, apt-get install; elsewhere the "
            "packages that contain these files)"
        )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    engine.parse_command_line(check)
    with engine.plain_exit("check"):
        check()
