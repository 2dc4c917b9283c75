"""The one face of a clip that mediapipe's FaceMesh follows, for the extractors that look at faces.

Coordinates are x to the right of the picture, y up, z towards the camera. H, W are a picture's height and width.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from extractors.base import ExtractionError, FeatureSequence
from extractors.media import read_frames

_NOISE = (
    b"Created TensorFlow Lite XNNPACK delegate",
    b"absl::InitializeLog()",
    b"inference_feedback_manager.cc",
    b"landmark_projection_calculator.cc",
)


@contextmanager
def without_noise() -> Iterator[None]:
    """Keep the lines that mediapipe's C++ always writes to standard error from it; pass all others on.

    No setting turns them off. They come when a graph starts and at the first face, and tell nothing of it.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            caught.seek(0)
            for line in caught:
                if not any(noise in line for noise in _NOISE):
                    os.write(2, line)


class FaceTracker:
    """FaceMesh, one face, each clip followed from its own beginning. mediapipe is loaded at the first clip.

    Args:
        min_confidence: below this score a detected or tracked face does not count.
    """

    def __init__(self, min_confidence: float) -> None:
        self._min_confidence = min_confidence
        self._mesh: Any = None
        self._met_a_face = False

    def follow(self, media: Path, fps: float) -> Iterator[tuple[float, np.ndarray, Sequence[Any] | None]]:
        """Time, RGB picture [H, W, 3] and mediapipe's landmarks (None without a face), `fps` times a second.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: as `extractors.media.read_frames`.
        """
        image = landmarks = None
        for time, shown in read_frames(media, fps):
            if shown is not image:  # the same frame again, where the video has fewer than fps
                first, image = image is None, shown
                landmarks = self._find(image, first)
            yield time, shown, landmarks

    def _start(self) -> None:
        """A graph without memory of another clip."""
        if self._mesh is not None:
            self._mesh.reset()
            return
        os.environ.setdefault("GLOG_minloglevel", "2")
        from mediapipe.python.solutions.face_mesh import FaceMesh

        self._mesh = FaceMesh(
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=self._min_confidence,
            min_tracking_confidence=self._min_confidence,
        )

    def _find(self, image: np.ndarray, first: bool) -> Sequence[Any] | None:
        try:
            with nullcontext() if self._met_a_face and not first else without_noise():
                if first:
                    self._start()
                found = self._mesh.process(image).multi_face_landmarks
        except RuntimeError as error:
            self._mesh = None  # a graph that failed stays failed; the next clip gets a new one
            raise ExtractionError(f"mediapipe failed: {error}; try another min_confidence or fps") from error
        if not found:
            return None
        self._met_a_face = True
        return found[0].landmark


def to_pixels(landmarks: Sequence[Any], indices: Sequence[int], image: np.ndarray) -> np.ndarray:
    """[P, 3] of mediapipe's landmarks `indices`, in pixels of the picture [H, W, 3] they were found in."""
    height, width = image.shape[:2]
    points = [(landmarks[i].x, landmarks[i].y, landmarks[i].z) for i in indices]
    return np.array(points) * (width, -height, -width)  # z is in units of the width


def frame_steps(values: np.ndarray, times: Sequence[float], valid: np.ndarray, fps: float) -> FeatureSequence:
    """Features [T, D] of frames that each last until the next one, 1 / `fps` later."""
    start = np.array(times)
    return FeatureSequence(
        values=values,
        start=start.astype(np.float32),
        end=(start + 1 / fps).astype(np.float32),
        valid=valid,
    )


def check_face_options(*, fps: float, min_confidence: float, **others: tuple[float, float, float]) -> None:
    """Refuse options out of their range; `others` are (value, least, greatest).

    Raises:
        ValueError: which one, and what it may be.
    """
    ranges = {"fps": (fps, 0.1, 120), "min_confidence": (min_confidence, 0, 1), **others}
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number between {low} and {high}, found {value!r}")
