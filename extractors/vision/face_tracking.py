"""Face detection and tracking with mediapipe, shared by the vision extractors.

`FaceSelector` reads a clip's frames and masks all faces but one; `FaceTracker` runs FaceMesh on the result.
Coordinates are x to the right of the frame, y up, z towards the camera.
Shapes: H, W height and width of a frame; K faces in a frame; P landmarks.
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
from extractors.vision.face_selection import FaceTracks, mask_other_faces
from media.video import read_frames

if TYPE_CHECKING:
    from pathlib import Path

_LOG_LINES = (
    b"Created TensorFlow Lite XNNPACK delegate",
    b"absl::InitializeLog()",
    b"inference_feedback_manager.cc",
    b"landmark_projection_calculator.cc",
)

DETECTION_SECONDS = 1.0
"""Interval at which a clip with a single face is searched for a second one."""

DECODED_FRAMES = 16
"""Frames to decode before FaceMesh processes them; alternating frame by frame would thrash the CPU's caches."""

MaskedFrame = tuple[float, np.ndarray, np.ndarray]
"""Time, RGB frame [H, W, 3], and the same frame with all faces masked except the selected one."""

LandmarkFrame = tuple[float, np.ndarray, Sequence[Any] | None]
"""Time, RGB frame [H, W, 3], and mediapipe's landmarks of the face; None without a face."""

Result = TypeVar("Result")


@contextmanager
def suppress_mediapipe_log() -> Iterator[None]:
    """Remove the lines that mediapipe's C++ code always logs from standard error, and pass on all others.

    No setting turns them off. They are written when a graph starts and at the first face.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                if not any(known in line for known in _LOG_LINES):
                    os.write(2, line)


class _SecondFaceError(Exception):
    """A second face appeared in a clip that was read on the assumption of a single one."""


class FaceSelector:
    """Reader of a clip's frames that masks all faces except the one to follow.

    A clip is searched for a second face every `DETECTION_SECONDS`. Only if there is one, all faces are detected and
    tracked in an additional decoding pass, and one is selected by `face_selection.FaceTracks.select`; frames without it
    are black. People who appear one after the other, never in the same frame, are not told apart. mediapipe is loaded
    with the first clip.

    Args:
        min_confidence: minimum score of a detected face.
    """

    def __init__(self, min_confidence: float) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        self._min_confidence = min_confidence
        self._detector: Any = None

    def process(self, media: Path, fps: float, collect: Callable[[Iterator[MaskedFrame]], Result]) -> Result:
        """Return `collect(frames)` for the masked frames of a clip, `fps` per second.

        `collect` is called again with all frames if a second face appears on the way. As in `read_frames`, a frame that
        is repeated is the same array again.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: see `media.video.read_frames`.
        """
        try:
            return collect(self._read_single_face(media, fps))
        except _SecondFaceError:
            return collect(self._read_selected_face(media, fps))

    def _read_single_face(self, media: Path, fps: float) -> Iterator[MaskedFrame]:
        previous, next_detection, suspected = None, 0.0, False
        for time, image in read_frames(media, fps):
            if image is not previous and (time >= next_detection or suspected):
                several = len(self._detect(image)) > 1
                if several and suspected:  # in two consecutive frames, as a single detection may be false
                    raise _SecondFaceError
                suspected, next_detection = several, time + DETECTION_SECONDS
            previous = image
            yield time, image, image

    def _read_selected_face(self, media: Path, fps: float) -> Iterator[MaskedFrame]:
        # Detect all faces
        tracks, previous = FaceTracks(1 / fps), None
        for time, image in read_frames(media, fps):
            if image is not previous:
                previous = image
                tracks.add(self._detect(image), time)
        # Mask all but the selected one
        own, number = tracks.select(), -1
        for time, image in read_frames(media, fps):
            if image is not previous:
                previous, number = image, number + 1
                masked = mask_other_faces(image, own[number], tracks.boxes[number])
            yield time, image, masked

    def _detect(self, image: np.ndarray) -> np.ndarray:
        """Return the boxes [K, 3] float32 of the faces in a frame, by the detector that FaceMesh uses."""
        try:
            with suppress_mediapipe_log() if self._detector is None else nullcontext():
                if self._detector is None:
                    from mediapipe.python.solutions.face_detection import FaceDetection

                    self._detector = FaceDetection(min_detection_confidence=self._min_confidence)
                detections = self._detector.process(image).detections or ()
        except RuntimeError as error:
            self._detector = None
            raise _mediapipe_error(error) from error
        height, width = image.shape[:2]
        relative = [detection.location_data.relative_bounding_box for detection in detections]
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
    """FaceMesh on the selected face of each clip. mediapipe is loaded with the first clip.

    Args:
        min_confidence: minimum score of a detected or tracked face.
    """

    def __init__(self, min_confidence: float) -> None:
        self._min_confidence = min_confidence
        self._selector = FaceSelector(min_confidence)
        self._mesh: Any = None
        self._tracking = False  # whether FaceMesh searches the next frame near the last face
        self._log_complete = False  # whether mediapipe has written its lines at the first face

    def track(self, media: Path, fps: float, collect: Callable[[Iterator[LandmarkFrame]], Result]) -> Result:
        """Return `collect(frames)` for the frames of a clip with their landmarks, `fps` per second.

        `collect` may be called twice, see `FaceSelector.process`.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: see `media.video.read_frames`.
        """
        return self._selector.process(media, fps, lambda frames: collect(self._add_landmarks(frames)))

    def _add_landmarks(self, frames: Iterator[MaskedFrame]) -> Iterator[LandmarkFrame]:
        self._reset()
        previous = landmarks = None
        while decoded := list(islice(frames, DECODED_FRAMES)):
            for time, image, masked in decoded:
                if image is not previous:  # not a repeated frame
                    previous, landmarks = image, self._find_landmarks(masked)
                yield time, image, landmarks

    def _reset(self) -> None:
        """Stop tracking the face of the previous clip, by a black frame, since restarting the graph takes 50 ms."""
        if self._tracking:
            self._find_landmarks(np.zeros((64, 64, 3), np.uint8))
        if self._tracking:  # still, which happens at confidences near 0
            self._mesh.reset()
            self._tracking = False

    def _start(self) -> None:
        from mediapipe.python.solutions.face_mesh import FaceMesh

        self._mesh = FaceMesh(
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=self._min_confidence,
            min_tracking_confidence=self._min_confidence,
        )
        self._log_complete = False

    def _find_landmarks(self, image: np.ndarray) -> Sequence[Any] | None:
        try:
            with nullcontext() if self._log_complete else suppress_mediapipe_log():
                if self._mesh is None:
                    self._start()
                faces = self._mesh.process(image).multi_face_landmarks
        except RuntimeError as error:
            self._mesh, self._tracking = None, False  # a graph that failed cannot be used again
            raise _mediapipe_error(error) from error
        self._tracking = bool(faces)
        self._log_complete |= self._tracking
        return faces[0].landmark if faces else None


def _mediapipe_error(error: RuntimeError) -> ExtractionError:
    return ExtractionError(f"mediapipe failed: {error}; try another min_confidence or fps")


def to_pixels(landmarks: Sequence[Any], indices: Sequence[int], image: np.ndarray) -> np.ndarray:
    """Return mediapipe's landmarks `indices` as points [P, 3] in pixels of the frame [H, W, 3] they were found in."""
    height, width = image.shape[:2]
    points = [(landmarks[i].x, landmarks[i].y, landmarks[i].z) for i in indices]
    return np.array(points) * (width, -height, -width)  # z is in units of the width


def frame_steps(values: np.ndarray, times: Sequence[float], valid: np.ndarray, fps: float) -> FeatureSequence:
    """Return features [T, D] of frames as steps that each last until the next one, 1 / `fps` later."""
    start = np.array(times)
    return FeatureSequence(
        values=values,
        start=start.astype(np.float32),
        end=(start + 1 / fps).astype(np.float32),
        valid=valid,
    )


def check_face_options(*, fps: float, min_confidence: float, **others: tuple[float, float, float]) -> None:
    """Check that options are within their ranges.

    Args:
        fps: frames per second.
        min_confidence: minimum score of a face.
        others: name -> (value, minimum, maximum) of further options.

    Raises:
        ValueError: an option is not a number or out of range; the message names it and the range.
    """
    ranges = {"fps": (fps, 0.1, 120), "min_confidence": (min_confidence, 0, 1), **others}
    for name, (value, low, high) in ranges.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number between {low} and {high}, found {value!r}")
