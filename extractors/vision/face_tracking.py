"""The one face of a clip that is followed, and mediapipe's FaceMesh on it, for the extractors that look at faces.

Coordinates are x to the right of the picture, y up, z towards the camera. H, W are a picture's height and width.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from extractors.base import ExtractionError, FeatureSequence
from extractors.vision.face_selection import Tracks, show_only
from media.video import read_frames

if TYPE_CHECKING:
    from pathlib import Path

_NOISE = (
    b"Created TensorFlow Lite XNNPACK delegate",
    b"absl::InitializeLog()",
    b"inference_feedback_manager.cc",
    b"landmark_projection_calculator.cc",
)

PROBE_SECONDS = 1.0
"""How often a clip is looked over for a second face."""

TOGETHER = 16
"""Pictures that are decoded before FaceMesh looks at them: in turns each would find the cache full of the other's."""

Seen = tuple[float, np.ndarray, np.ndarray]
"""Time, RGB picture [H, W, 3], and the same picture with no face in it but the one to follow."""

Found = tuple[float, np.ndarray, Sequence[Any] | None]
"""Time, RGB picture [H, W, 3], mediapipe's landmarks in it (None without a face)."""

Made = TypeVar("Made")


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


class SeveralFaces(Exception):
    """There is a second face in a clip that was taken to have one."""


class FaceChooser:
    """Shows each clip with one face in it, the same from beginning to end. mediapipe is loaded at the first clip.

    A clip is looked over for a second face once in `PROBE_SECONDS`. Only where there is one are all its faces
    detected and tied together over time, in a decoding pass of its own, and the one to follow is chosen as told in
    `extractors.vision.face_selection.Tracks.follow`; where it is away nobody is to be seen. Faces that follow each other
    and are never in the picture together are not told apart.

    Args:
        min_confidence: below this score a detected face does not count.
    """

    def __init__(self, min_confidence: float) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        self._min_confidence = min_confidence
        self._detector: Any = None

    def watch(self, media: Path, fps: float, collect: Callable[[Iterator[Seen]], Made]) -> Made:
        """What `collect` makes of the clip's pictures, `fps` a second.

        `collect` is called a second time, from the beginning, where a second face turns up on the way. As in
        `read_frames`, a picture that stays on the screen is the same array again.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: as `media.video.read_frames`.
        """
        try:
            return collect(self._while_alone(media, fps))
        except SeveralFaces:
            return collect(self._chosen(media, fps))

    def _while_alone(self, media: Path, fps: float) -> Iterator[Seen]:
        shown, due, suspected = None, 0.0, False
        for time, image in read_frames(media, fps):
            if image is not shown and (time >= due or suspected):
                several = len(self._detect(image)) > 1
                if several and suspected:  # once may be a mistake
                    raise SeveralFaces
                suspected, due = several, time + PROBE_SECONDS
            shown = image
            yield time, image, image

    def _chosen(self, media: Path, fps: float) -> Iterator[Seen]:
        tracks, shown = Tracks(1 / fps), None
        for time, image in read_frames(media, fps):
            if image is not shown:
                shown = image
                tracks.add(self._detect(image), time)
        own, number = tracks.follow(), -1
        for time, image in read_frames(media, fps):
            if image is not shown:
                shown, number = image, number + 1
                view = show_only(image, own[number], tracks.faces[number])
            yield time, image, view

    def _detect(self, image: np.ndarray) -> np.ndarray:
        """[K, 3] float32 boxes of the faces in a picture, of FaceMesh's own detector."""
        try:
            with without_noise() if self._detector is None else nullcontext():
                if self._detector is None:
                    from mediapipe.python.solutions.face_detection import FaceDetection

                    self._detector = FaceDetection(min_detection_confidence=self._min_confidence)
                found = self._detector.process(image).detections or ()
        except RuntimeError as error:
            self._detector = None
            raise _failed(error) from error
        height, width = image.shape[:2]
        relative = [face.location_data.relative_bounding_box for face in found]
        boxes = [
            (
                (box.xmin + box.width / 2) * width,
                (box.ymin + box.height / 2) * height,
                math.sqrt(max(box.width * width * box.height * height, 1.0)),
            )
            for box in relative
        ]
        return np.array(boxes, np.float32).reshape(-1, 3)


class FaceTracker:
    """FaceMesh on the face that is followed, each clip from its own beginning. mediapipe is loaded at the first clip.

    Args:
        min_confidence: below this score a detected or tracked face does not count.
    """

    def __init__(self, min_confidence: float) -> None:
        self._min_confidence = min_confidence
        self._chooser = FaceChooser(min_confidence)
        self._mesh: Any = None
        self._following = False  # a face of the last picture, where the next one's is looked for
        self._met_a_face = False

    def follow(self, media: Path, fps: float, collect: Callable[[Iterator[Found]], Made]) -> Made:
        """What `collect` makes of the clip's steps, `fps` a second; it may be called twice, see `FaceChooser.watch`.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: as `media.video.read_frames`.
        """
        return self._chooser.watch(media, fps, lambda seen: collect(self._landmarks(seen)))

    def _landmarks(self, seen: Iterator[Seen]) -> Iterator[Found]:
        self._forget()
        image = landmarks = None
        while some := list(islice(seen, TOGETHER)):
            for time, shown, view in some:
                if shown is not image:  # the same frame again, where the video has fewer than fps
                    image, landmarks = shown, self._find(view)
                yield time, shown, landmarks

    def _forget(self) -> None:
        """Follow no face of another clip: show a picture without one, for starting the graph again takes 50 ms."""
        if self._following:
            self._find(np.zeros((64, 64, 3), np.uint8))
        if self._following:  # a face in the dark, at a confidence near 0
            self._mesh.reset()
            self._following = False

    def _start(self) -> None:
        from mediapipe.python.solutions.face_mesh import FaceMesh

        self._mesh = FaceMesh(
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=self._min_confidence,
            min_tracking_confidence=self._min_confidence,
        )
        self._met_a_face = False

    def _find(self, image: np.ndarray) -> Sequence[Any] | None:
        try:
            with nullcontext() if self._met_a_face else without_noise():
                if self._mesh is None:
                    self._start()
                found = self._mesh.process(image).multi_face_landmarks
        except RuntimeError as error:
            self._mesh, self._following = None, False  # a graph that failed stays failed; the next clip gets a new one
            raise _failed(error) from error
        self._following = bool(found)
        self._met_a_face |= self._following
        return found[0].landmark if found else None


def _failed(error: RuntimeError) -> ExtractionError:
    return ExtractionError(f"mediapipe failed: {error}; try another min_confidence or fps")


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
