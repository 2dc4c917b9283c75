"""Face detection and tracking with mediapipe, shared by the vision extractors.

`FaceSelector` reads a clip's frames and masks all faces but one; `FaceTracker` runs the face landmarker on the result.
Coordinates are x to the right of the frame, y up, z towards the camera.
Shapes: H, W height and width of a frame; K faces in a frame; P landmarks.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import tempfile
import weakref
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from extractors.base import ExtractionError, FeatureSequence
from extractors.vision.face_bundle import read_detector
from extractors.vision.face_selection import FaceTracks, mask_other_faces
from media.video import read_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_LOG_LINES = (
    b"Created TensorFlow Lite XNNPACK delegate",
    b"absl::InitializeLog()",
    b"inference_feedback_manager.cc",
    b"face_landmarker_graph.cc",
)

DETECTION_SECONDS = 1.0
"""Interval at which a clip with a single face is searched for a second one."""

DECODED_FRAMES = 16
"""Frames to decode before they are processed; alternating frame by frame would thrash the CPU's caches."""

CLIP_GAP = 1000
"""Milliseconds between two clips in the landmarker's time."""

MaskedFrame = tuple[float, np.ndarray, np.ndarray]
"""Time, RGB frame [H, W, 3], and the same frame with all faces masked except the selected one."""


class Face(NamedTuple):
    """The landmarker's result for one face.

    Attributes:
        points: landmarks [478, 3] in pixels of the frame.
        blendshapes: category name -> score, 0 to 1; empty unless requested.
    """

    points: np.ndarray
    blendshapes: Mapping[str, float]


TrackedFrame = tuple[float, np.ndarray, Face | None]
"""Time, RGB frame [H, W, 3], and its face; None without a face."""

Result = TypeVar("Result")


@contextmanager
def suppress_mediapipe_log() -> Iterator[None]:
    """Remove the lines that mediapipe's C++ code always logs from standard error, and pass on all others.

    No setting turns them off. They are written when a graph starts.
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
        bundle: from `face_bundle.find_bundle`.
        min_confidence: minimum score of a detected face.
    """

    def __init__(self, bundle: Path, min_confidence: float) -> None:
        self._bundle, self._min_confidence = bundle, min_confidence
        self._detector: Any = None
        self._tasks = _open_tasks(self)

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
        """Return the boxes [K, 3] float32 of the faces in a frame, by the detector that the landmarker uses."""
        try:
            if self._detector is None:
                self._detector = self._start()
            detections = self._detector.detect(to_mediapipe(image)).detections
        except (RuntimeError, ValueError) as error:
            self._tasks.close()
            self._detector = None
            raise mediapipe_error(error, self._bundle) from error
        boxes = [
            (box.origin_x + box.width / 2, box.origin_y + box.height / 2, math.sqrt(max(box.width * box.height, 1)))
            for box in (detection.bounding_box for detection in detections)
        ]
        return np.array(boxes, np.float32).reshape(-1, 3)

    def _start(self) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_buffer=read_detector(self._bundle)),
            min_detection_confidence=self._min_confidence,
        )
        with suppress_mediapipe_log():
            return self._tasks.enter_context(vision.FaceDetector.create_from_options(options))


class FaceTracker:
    """The face landmarker on the selected face of each clip. mediapipe is loaded with the first clip.

    It tracks one face in video mode: its own detector runs only while no face is tracked.

    Args:
        bundle: from `face_bundle.find_bundle`.
        min_confidence: minimum score of a detected or tracked face.
        blendshapes: whether to return blendshapes as well.
    """

    def __init__(self, bundle: Path, min_confidence: float, blendshapes: bool = False) -> None:
        self._bundle, self._min_confidence, self._blendshapes = bundle, min_confidence, blendshapes
        self._selector = FaceSelector(bundle, min_confidence)
        self._landmarker: Any = None
        self._tracking = False  # whether the landmarker searches the next frame near the last face
        self._now = 0  # milliseconds; must increase over the landmarker's life
        self._tasks = _open_tasks(self)

    def track(self, media: Path, fps: float, collect: Callable[[Iterator[TrackedFrame]], Result]) -> Result:
        """Return `collect(frames)` for the frames of a clip with their face, `fps` per second.

        `collect` may be called twice, see `FaceSelector.process`.

        Raises:
            ExtractionError: mediapipe failed.
            MediaError: see `media.video.read_frames`.
        """
        return self._selector.process(media, fps, lambda frames: collect(self._add_faces(frames)))

    def _add_faces(self, frames: Iterator[MaskedFrame]) -> Iterator[TrackedFrame]:
        self._reset()
        began = self._now + CLIP_GAP  # not 0, which the landmarker's smoothing takes for unknown
        previous = face = None
        while decoded := list(islice(frames, DECODED_FRAMES)):
            for time, image, masked in decoded:
                if image is not previous:  # not a repeated frame
                    previous, face = image, self._find_face(masked, began + round(1000 * time))
                yield time, image, face

    def _reset(self) -> None:
        """Stop tracking the face of the previous clip, by a black frame, as a new landmarker would take 30 ms."""
        if self._tracking:
            self._find_face(_BLACK, self._now + CLIP_GAP)
        if self._tracking:  # still, which happens at confidences near 0
            self._close()

    def _close(self) -> None:
        self._tasks.close()
        self._landmarker, self._tracking = None, False

    def _start(self) -> Any:
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self._bundle)),
            running_mode=vision.RunningMode.VIDEO,
            min_face_detection_confidence=self._min_confidence,
            min_face_presence_confidence=self._min_confidence,
            min_tracking_confidence=self._min_confidence,
            output_face_blendshapes=self._blendshapes,
        )
        with suppress_mediapipe_log():
            return self._tasks.enter_context(vision.FaceLandmarker.create_from_options(options))

    def _find_face(self, image: np.ndarray, now: int) -> Face | None:
        """Return the face in the frame at `now` milliseconds."""
        try:
            if self._landmarker is None:
                self._landmarker = self._start()
            self._now = now
            relative, blendshapes = detect_landmarks(self._landmarker, image, now)
        except (RuntimeError, ValueError) as error:
            self._close()  # a graph that failed cannot be used again
            raise mediapipe_error(error, self._bundle) from error
        self._tracking = relative is not None
        if relative is None:
            return None
        height, width = image.shape[:2]
        return Face(relative * (width, -height, -width), blendshapes)  # z is in units of the width


_BLACK = np.zeros((64, 64, 3), np.uint8)


def detect_landmarks(landmarker: Any, image: np.ndarray, now: int) -> tuple[np.ndarray | None, dict[str, float]]:
    """Return the first face's landmarks [478, 3] relative to the frame's sides, None without a face, and blendshapes.

    As `landmarker.detect_for_video`, but reads the landmarks as one array, where that makes 478 objects, which takes
    almost a millisecond a frame.
    """
    from mediapipe.tasks.python.vision import face_landmarker

    result, data = face_landmarker.FaceLandmarkerResultC(), to_mediapipe(image)
    landmarker._lib.MpFaceLandmarkerDetectForVideo(landmarker._handle, data._image_ptr, None, now, ctypes.byref(result))
    try:
        if not result.face_landmarks_count:
            return None, {}
        points = result.face_landmarks[0]
        memory = ctypes.string_at(points.landmarks, points.landmarks_count * ctypes.sizeof(points.landmarks[0]))
        scores = result.face_blendshapes[0] if result.face_blendshapes_count else None
        categories = scores.categories[: scores.categories_count] if scores else ()
        return (
            np.frombuffer(memory, np.float32).reshape(points.landmarks_count, -1)[:, :3].astype(float),
            {category.category_name.decode(): category.score for category in categories},
        )
    finally:
        landmarker._lib.MpFaceLandmarkerCloseResult(ctypes.byref(result))


def _open_tasks(owner: object) -> ExitStack:
    """Return a stack for the owner's mediapipe tasks that closes them with the owner, or when the process ends.

    Tasks that are still open when the interpreter is taken down print an error.
    """
    tasks = ExitStack()
    weakref.finalize(owner, tasks.close)
    return tasks


def to_mediapipe(image: np.ndarray) -> Any:
    """Return a copy of an RGB image [H, W, 3] as mediapipe's type, which reads arrays as if they were contiguous."""
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))


def mediapipe_error(error: Exception, bundle: Path) -> ExtractionError:
    """Return the error of a clip for which mediapipe failed."""
    return ExtractionError(f"mediapipe failed: {error}; is {bundle} complete? If so, try another min_confidence or fps")


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
