"""Facial features with MediaPipe's face landmarker: head pose, gaze, expression, landmarks, and blendshapes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from corpora.files import sha256_of
from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Identity,
    Source,
    extract_each,
)
from extractors.vision.face_bundle import find_bundle
from extractors.vision.face_geometry import FEATURE_NAMES, FEATURES, USED_LANDMARKS, face_features
from extractors.vision.face_tracking import Face, FaceTracker, TrackedFrame, check_face_options, frame_steps
from media.video import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

VERSION = 3

BATCH_FRAMES = 512
"""Faces that are measured at once."""

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

BLENDSHAPE_NAMES = tuple(f"blendshape_{name}" for name in BLENDSHAPES)


class FaceLandmarkerVision:
    """`vision.face_landmarker`: pose, gaze, expression and landmarks of one face per clip, see `FaceSelector`.

    Gaze, expression (see `face_geometry.face_measures`) and the coordinates of `face_geometry.LANDMARKS` are measured
    after the rotation, scale and position of the head have been removed. Blendshapes are the landmarker's own scores. A
    frame without a face is an invalid step of zeros. Each clip is tracked independently of the others. mediapipe is
    loaded with the first clip.

    Args:
        fps: frames to process per second; steps are exactly 1 / fps apart.
        min_confidence: minimum score of a detected or tracked face.
        blendshapes: whether to append the 52 blendshapes to the features.
        model: path of another `face_landmarker.task` than the installed one.

    Raises:
        ValueError: an option is out of range, or `model` is not a face landmarker bundle.
    """

    modality = "vision"
    description = FeatureDescription(
        source="MediaPipe's face landmarker (video mode; of several faces the largest that is present consistently) on "
        f"frames scaled down to at most {MAX_SIDE} pixels; pose by a similarity transform to a reference face. Gaze, "
        "expression and landmarks are independent of pose and scale; left and right are the person's own",
        rate="`fps`; frames are repeated if the video has fewer; a step starts at its frame's time and lasts 1 / `fps`",
        window="one frame; the landmarker tracks the face from frame to frame and smooths its landmarks",
        valid="a face is detected; other steps are zeros",
        features=(
            *FEATURES,
            Feature(
                BLENDSHAPE_NAMES,
                "with `blendshapes` only: scores of expressions as in ARKit; left and right are the person's own",
                "0 to 1",
            ),
        ),
    )

    def __init__(
        self, fps: float = 25.0, min_confidence: float = 0.5, blendshapes: bool = False, model: str | None = None
    ) -> None:
        check_face_options(fps=fps, min_confidence=min_confidence)
        if not isinstance(blendshapes, bool):
            raise ValueError(f"blendshapes must be true or false, found {blendshapes!r}")
        bundle = find_bundle(model)
        self.fps, self._blendshapes = float(fps), blendshapes
        self.feature_names = FEATURE_NAMES + BLENDSHAPE_NAMES * blendshapes
        self._tracker = FaceTracker(bundle, float(min_confidence), blendshapes)
        options = {"fps": self.fps, "min_confidence": float(min_confidence), "max_side": MAX_SIDE}
        options |= {"blendshapes": True} if blendshapes else {}
        libraries = ("mediapipe", "av", "numpy")
        self.identity = Identity("vision.face_landmarker", VERSION, options, sha256_of(bundle), libraries)
        self.signature = self.identity.signature

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        return self._tracker.track(media, self.fps, self._collect)

    def _collect(self, frames: Iterator[TrackedFrame]) -> FeatureSequence:
        times: list[float] = []
        valid: list[bool] = []
        batches: list[np.ndarray] = []
        faces: list[Face] = []
        sizes: list[tuple[int, int]] = []

        def measure() -> None:
            """Measure the faces collected so far, since landmarks take more memory than features."""
            points = np.stack([face.points[USED_LANDMARKS, :] for face in faces])
            columns = [*face_features(points, np.array(sizes)).values()]
            if self._blendshapes:
                columns += [*np.array([blendshape_scores(face.blendshapes) for face in faces]).T]
            batches.append(np.column_stack(columns).astype(np.float32))
            faces.clear()
            sizes.clear()

        for time, image, face in frames:
            times.append(time)
            valid.append(face is not None)
            if face is not None:
                faces.append(face)
                sizes.append((image.shape[1], image.shape[0]))
            if len(faces) == BATCH_FRAMES:
                measure()
        if faces:
            measure()
        values = np.zeros((len(times), len(self.feature_names)), np.float32)
        if batches:
            values[valid] = np.concatenate(batches)
        return frame_steps(values, times, np.array(valid), self.fps)


def blendshape_scores(categories: Mapping[str, float]) -> list[float]:
    """Return the scores of the 52 blendshapes in the order of `BLENDSHAPES`.

    Raises:
        ExtractionError: the categories are not the 52 known ones.
    """
    scores = {to_snake(name): score for name, score in categories.items()}
    if tuple(scores) != BLENDSHAPES:
        difference = sorted({*scores} ^ {*BLENDSHAPES}) or "another order"
        raise ExtractionError(
            f"the model's blendshapes are not the 52 known ones: {difference}; use MediaPipe's own bundle"
        )
    return [*scores.values()]


def to_snake(name: str) -> str:
    """Convert a category name to snake case: `browDownLeft` -> `brow_down_left`; `_neutral` -> `neutral`."""
    return re.sub(r"(?=[A-Z])", "_", name).lower().lstrip("_")
