"""Facial features with mediapipe's face landmarker task: head pose and 52 blendshapes."""

from __future__ import annotations

import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Source,
    extract_each,
    make_signature,
)
from extractors.vision.face_mesh import head_angles
from extractors.vision.face_tracking import (
    FaceSelector,
    MaskedFrame,
    check_face_options,
    frame_steps,
    suppress_mediapipe_log,
)
from media.video import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 2

BUNDLED = "face_blendshapes.tflite"
"""File that identifies a face landmarker bundle; bundles of other tasks do not contain it."""

_SIDES = ("left", "right")
_BLENDSHAPES = (
    ("neutral",),
    ("brow_down", *_SIDES),
    ("brow_inner_up",),
    ("brow_outer_up", *_SIDES),
    ("cheek_puff",),
    ("cheek_squint", *_SIDES),
    ("eye_blink", *_SIDES),
    ("eye_look_down", *_SIDES),
    ("eye_look_in", *_SIDES),
    ("eye_look_out", *_SIDES),
    ("eye_look_up", *_SIDES),
    ("eye_squint", *_SIDES),
    ("eye_wide", *_SIDES),
    ("jaw", "forward", "left", "open", "right"),
    ("mouth_close",),
    ("mouth_dimple", *_SIDES),
    ("mouth_frown", *_SIDES),
    ("mouth_funnel",),
    ("mouth_left",),
    ("mouth_lower_down", *_SIDES),
    ("mouth_press", *_SIDES),
    ("mouth_pucker",),
    ("mouth_right",),
    ("mouth_roll", "lower", "upper"),
    ("mouth_shrug", "lower", "upper"),
    ("mouth_smile", *_SIDES),
    ("mouth_stretch", *_SIDES),
    ("mouth_upper_up", *_SIDES),
    ("nose_sneer", *_SIDES),
)
BLENDSHAPES = tuple(f"{stem}_{end}" if end else stem for stem, *ends in _BLENDSHAPES for end in (ends or ("",)))
"""The task's 52 categories in its order, in snake case."""


class FaceLandmarkerVision:
    """`vision.face_landmarker`: head pose and 52 blendshapes of one face per clip, see `FaceSelector`.

    Blendshapes are the task's scores, 0 to 1. The pose is the task's transformation of a canonical face to camera
    space, x to the right of the frame, y up, z towards the camera; angles have the signs of
    `extractors.vision.face_mesh.head_angles`. A frame without a face is an invalid step of zeros. Each clip is tracked
    independently of the others.

    Args:
        model: path of `face_landmarker.task`, as published by MediaPipe.
        fps: frames to process per second; steps are exactly 1 / fps apart.
        min_confidence: minimum score of a detected or tracked face.

    Raises:
        ValueError: an option is out of range, or `model` is not a face landmarker bundle.
    """

    modality = "vision"
    description = FeatureDescription(
        source="mediapipe's face landmarker task (video mode; of several faces the largest that is present "
        f"consistently), on frames scaled down to at most {MAX_SIDE} pixels",
        rate="`fps`; frames are repeated if the video has fewer; a step starts at its frame's time and lasts 1 / `fps`",
        window="one frame; the task tracks the face from frame to frame",
        valid="a face is detected; other steps are zeros",
        features=(
            Feature(("head_pitch",), "rotation of the head, positive looking up", "rad"),
            Feature(("head_yaw",), "rotation of the head, positive to the person's left (right of the frame)", "rad"),
            Feature(
                ("head_roll",),
                "tilt of the head, positive to the person's right (counter-clockwise in the frame)",
                "rad",
            ),
            Feature(
                ("head_x", "head_y", "head_z"),
                "position of the canonical face's origin relative to the camera, assuming a face of average size; x to "
                "the right of the frame, y up, z towards the camera",
                "cm",
            ),
            Feature(BLENDSHAPES, "scores of expressions as in ARKit; left and right are the person's own", "0 to 1"),
        ),
    )
    feature_names = description.names

    def __init__(self, model: str, fps: float = 10.0, min_confidence: float = 0.5) -> None:
        check_face_options(fps=fps, min_confidence=min_confidence)
        self._bundle = check_bundle(model)
        self.fps, self.min_confidence = float(fps), float(min_confidence)
        self._selector = FaceSelector(self.min_confidence)
        options = {"fps": self.fps, "min_confidence": self.min_confidence, "max_side": MAX_SIDE}
        weights = f"{sha256_of(self._bundle)} mediapipe {version('mediapipe')}"
        self.signature = make_signature("vision.face_landmarker", VERSION, options, weights)

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        return self._selector.process(media, self.fps, self._collect)

    def _collect(self, frames: Iterator[MaskedFrame]) -> FeatureSequence:
        times: list[float] = []
        faces: list[np.ndarray | None] = []
        previous = face = None
        try:
            with suppress_mediapipe_log(), self._open() as landmarker:
                for time, image, masked in frames:
                    if image is not previous:  # not a repeated frame
                        previous, face = image, self._detect(landmarker, masked, time)
                    times.append(time)
                    faces.append(face)
        except RuntimeError as error:
            raise ExtractionError(f"mediapipe failed: {error}; is {self._bundle} complete?") from error
        valid = np.array([face is not None for face in faces])
        zeros = np.zeros(len(self.feature_names), np.float32)
        values = np.stack([zeros if face is None else face for face in faces])
        return frame_steps(values, times, valid, self.fps)

    def _open(self) -> Any:
        """Return a landmarker without tracking state from other clips."""
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(self._bundle)),
            running_mode=vision.RunningMode.VIDEO,
            min_face_detection_confidence=self.min_confidence,
            min_face_presence_confidence=self.min_confidence,
            min_tracking_confidence=self.min_confidence,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        return vision.FaceLandmarker.create_from_options(options)

    def _detect(self, landmarker: Any, image: np.ndarray, time: float) -> np.ndarray | None:
        import mediapipe

        frame = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
        return to_features(landmarker.detect_for_video(frame, round(time * 1000)))


def to_features(result: Any) -> np.ndarray | None:
    """Return pose and blendshapes [58] float32 of the first face in a `FaceLandmarkerResult`, None without a face.

    Raises:
        ExtractionError: its blendshapes are not the 52 known ones.
    """
    if not result.face_blendshapes:
        return None
    scores = {to_snake(category.category_name): category.score for category in result.face_blendshapes[0]}
    if tuple(scores) != BLENDSHAPES:
        difference = sorted({*scores} ^ {*BLENDSHAPES}) or "another order"
        raise ExtractionError(
            f"the task's blendshapes are not the 52 known ones: {difference}; use mediapipe's own bundle"
        )
    matrix = np.asarray(result.facial_transformation_matrixes[0], float)
    linear = matrix[:3, :3]
    rotation = linear / np.cbrt(np.linalg.det(linear))  # remove the scale
    angles = [angle[0] for angle in head_angles(rotation[None])]
    return np.array([*angles, *matrix[:3, 3], *scores.values()], np.float32)


def to_snake(name: str) -> str:
    """Convert a category name to snake case: `browDownLeft` -> `brow_down_left`; `_neutral` -> `neutral`."""
    return re.sub(r"(?=[A-Z])", "_", name).lower().lstrip("_")


def check_bundle(model: str) -> Path:
    """Return the path of the face landmarker bundle `model`.

    Raises:
        ValueError: the file does not exist, or is not a face landmarker bundle.
    """
    path = Path(model).expanduser() if isinstance(model, str) and model else None
    if path is None or not path.is_file():
        raise ValueError(
            f"model must be the path of MediaPipe's face_landmarker.task, found {model!r}; download it from "
            "MediaPipe's page on face landmark detection"
        )
    if not zipfile.is_zipfile(path) or BUNDLED not in zipfile.ZipFile(path).namelist():
        raise ValueError(f"model {model!r} is not a face landmarker bundle ({BUNDLED} is not in it); download it again")
    return path
