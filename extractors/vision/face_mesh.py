"""Facial features with mediapipe's FaceMesh: head pose, gaze, expression, and landmarks without the pose.

F frames with a face, P landmarks that are used. Coordinates are x to the right of the picture, y up, z
towards the camera. Left and right are the person's own. Indices are those of the face mesh: 468 points, then
irises.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Source,
    extract_each,
    make_signature,
)
from extractors.vision.face_tracking import FaceTracker, LandmarkFrame, check_face_options, frame_steps, to_pixels
from media.video import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 2

BATCH_FRAMES = 512
"""Faces that are measured at once."""

# Points that hardly move with the expression, in a face that looks at the camera; the unit is the distance of
# the eyes' centres, the origin lies between them. Measured with FaceMesh: the mean of four people, superposed
# and averaged with its mirror image; pitch 0 is that of two who read to a camera at the height of their eyes.
_MIDLINE = {
    10: (0.929, 0.244),
    151: (0.666, 0.296),
    168: (0.107, 0.305),
    6: (-0.031, 0.373),
    197: (-0.151, 0.452),
    195: (-0.260, 0.536),
    5: (-0.377, 0.623),
    4: (-0.522, 0.660),
    1: (-0.635, 0.627),
    2: (-0.745, 0.377),
}
_PAIRS = {
    (33, 263): (0.721, 0.010, -0.043),
    (133, 362): (0.279, -0.010, 0.043),
    (127, 356): (1.093, -0.074, -0.823),
    (234, 454): (1.084, -0.317, -0.901),
    (54, 284): (0.939, 0.600, -0.260),
    (21, 251): (1.029, 0.400, -0.453),
}
RIGID = {
    **{index: (0.0, y, z) for index, (y, z) in _MIDLINE.items()},
    **{right: (-x, y, z) for (right, _), (x, y, z) in _PAIRS.items()},
    **{left: (x, y, z) for (_, left), (x, y, z) in _PAIRS.items()},
}
"""Landmark -> its place in the reference face."""

LANDMARK_GROUPS = {
    "lips: corners, outer and inner middle, between": (61, 291, 0, 17, 13, 14, 39, 269, 91, 321, 84, 314),
    "brows": (70, 105, 107, 336, 334, 300),
    "eyes: corners and the lids' middles": (33, 159, 133, 145, 362, 386, 263, 374),
    "nose tip and nostrils, chin and jaw, cheeks": (1, 98, 327, 152, 172, 397, 50, 280),
}
LANDMARKS = tuple(index for group in LANDMARK_GROUPS.values() for index in group)
"""Landmarks that become features themselves."""

_MEASURED = (55, 65, 285, 295, 46, 276, 52, 282, 129, 358, 205, 425, 2)
_LIDS = (160, 144, 158, 153, 385, 380, 387, 373)
_IRISES = (468, 473)
USED = tuple(sorted({*RIGID, *LANDMARKS, *_MEASURED, *_LIDS, *_IRISES}))
_AT = {index: place for place, index in enumerate(USED)}


def head_pose(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the reference face must go to lie over the rigid points of each face.

    The similarity transform of least squares (Umeyama 1991, equations 39 to 43), points ~ scale * rotation @
    reference + shift; mediapipe's own face geometry module works the same way on another reference.

    Args:
        points: [F, P, 3].

    Returns:
        rotation [F, 3, 3]; scale [F], the eyes' distance in the points' unit; shift [F, 3], between the eyes.
    """
    reference = np.array(list(RIGID.values()))
    rigid = points[:, [_AT[index] for index in RIGID]]
    centre, reference_centre = rigid.mean(axis=1), reference.mean(axis=0)
    centred = reference - reference_centre
    u, s, vt = np.linalg.svd(np.swapaxes(rigid - centre[:, None], 1, 2) @ centred)
    s[:, 2] *= np.sign(np.linalg.det(u @ vt))  # a rotation, never a mirror image
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation, scale = u @ vt, s.sum(axis=1) / (centred**2).sum()
    return rotation, scale, centre - scale[:, None] * (rotation @ reference_centre)


def head_angles(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitch, yaw and roll [F] in radians of rotations [F, 3, 3], applied in the order pitch, yaw, roll.

    Pitch is positive when the person looks up, yaw when they turn to their own left (the picture's right),
    roll when the head leans towards their own right (counter-clockwise in the picture).
    """
    pitch = -np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2])
    yaw = np.arcsin(np.clip(-rotation[:, 2, 0], -1, 1))
    roll = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return pitch, yaw, roll


def face_measures(face: np.ndarray) -> dict[str, np.ndarray]:
    """Gaze and expression of faces without pose, [F, P, 3]: name -> [F].

    Gaze is the iris's distance from the middle of the eye's corners in eye widths, x towards the picture's
    right, y up. Eye opening is the lids' distance in eye widths (the eye aspect ratio of Soukupova and Cech
    2016, equation 1). All else is in units of the eyes' distance, heights and distances seen from the front.
    """

    def at(index: int) -> np.ndarray:
        return face[:, _AT[index], :2]

    def height(above: int, below: int) -> np.ndarray:
        return (at(above) - at(below))[:, 1]

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(at(a) - at(b), axis=1)

    width_left, width_right = distance(263, 362), distance(33, 133)
    gaze_left = (at(473) - (at(263) + at(362)) / 2) / width_left[:, None]
    gaze_right = (at(468) - (at(33) + at(133)) / 2) / width_right[:, None]
    lips = (at(13) + at(14))[:, 1] / 2
    measures = {
        "gaze_left_x": gaze_left[:, 0],
        "gaze_left_y": gaze_left[:, 1],
        "gaze_right_x": gaze_right[:, 0],
        "gaze_right_y": gaze_right[:, 1],
        "mouth_corner_left": at(291)[:, 1] - lips,  # above the middle of the mouth: smile
        "mouth_corner_right": at(61)[:, 1] - lips,
        "mouth_corner_rise_left": height(291, 2),  # and against the nose, which stays put
        "mouth_corner_rise_right": height(61, 2),
        "mouth_width": distance(61, 291),
        "mouth_open": height(13, 14),
        "upper_lip_thickness": height(0, 13),  # both thin: lips pressed
        "lower_lip_thickness": height(14, 17),
        "upper_lip_raise": height(0, 2),
        "jaw_open": height(2, 152),
        "brow_inner_left": (at(285) + at(336))[:, 1] / 2 - at(362)[:, 1],
        "brow_inner_right": (at(55) + at(107))[:, 1] / 2 - at(133)[:, 1],
        "brow_middle_left": (at(282) + at(334))[:, 1] / 2 - (at(263) + at(362))[:, 1] / 2,
        "brow_middle_right": (at(52) + at(105))[:, 1] / 2 - (at(33) + at(133))[:, 1] / 2,
        "brow_outer_left": (at(276) + at(300))[:, 1] / 2 - at(263)[:, 1],
        "brow_outer_right": (at(46) + at(70))[:, 1] / 2 - at(33)[:, 1],
        "brow_distance": distance(55, 285),  # small: frown
        "eye_open_left": (height(385, 380) + height(387, 373)) / (2 * width_left),
        "eye_open_right": (height(160, 144) + height(158, 153)) / (2 * width_right),
        "cheek_raise_left": height(425, 374),  # towards the lower lid
        "cheek_raise_right": height(205, 145),
        "nose_wrinkle_left": height(358, 362),  # towards the inner corner of the eye
        "nose_wrinkle_right": height(129, 133),
        "nostril_width": distance(98, 327),
    }
    for part in ("mouth_corner", "brow_middle", "eye_open"):
        measures[f"{part}_asymmetry"] = measures[f"{part}_left"] - measures[f"{part}_right"]
    return measures


def face_features(points: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """All features of faces: name -> [F].

    Args:
        points: [F, P, 3] the landmarks `USED`, in pixels.
        size: [F, 2] width and height of the picture in pixels.
    """
    rotation, scale, shift = head_pose(points)
    pitch, yaw, roll = head_angles(rotation)
    face = (points - shift[:, None]) @ rotation / scale[:, None, None]
    longer = size.max(axis=1)
    features = {
        "head_pitch": pitch,
        "head_yaw": yaw,
        "head_roll": roll,
        "head_x": (shift[:, 0] - size[:, 0] / 2) / longer,
        "head_y": (shift[:, 1] + size[:, 1] / 2) / longer,
        "head_scale": scale / longer,
    }
    features |= face_measures(face)
    for index in LANDMARKS:
        features[f"landmark_{index}_x"] = face[:, _AT[index], 0]
        features[f"landmark_{index}_y"] = face[:, _AT[index], 1]
    return features


_ANY_FACE = np.arange(len(USED) * 3.0).reshape(1, -1, 3)
FEATURE_NAMES = tuple(face_features(_ANY_FACE, np.ones((1, 2))))

_EYES = "distance of the eyes"
_FEATURES = (
    Feature(("head_pitch",), "rotation of the head about the ears' axis, positive looking up", "rad"),
    Feature(("head_yaw",), "rotation about the neck, positive towards the person's left (the picture's right)", "rad"),
    Feature(("head_roll",), "leaning, positive towards the person's right (counter-clockwise in the picture)", "rad"),
    Feature(
        (
            "head_x",
            "head_y",
        ),
        "place between the eyes, from the picture's centre, x to the right, y up",
        "picture's longer side",
    ),
    Feature(("head_scale",), "distance of the eyes' centres, with the rotation taken out", "picture's longer side"),
    Feature(
        (
            "gaze_left_x",
            "gaze_left_y",
            "gaze_right_x",
            "gaze_right_y",
        ),
        "iris from the middle of its eye's corners, x to the picture's right, y up",
        "eye width",
    ),
    Feature(
        (
            "mouth_corner_left",
            "mouth_corner_right",
        ),
        "height of the corner above the middle of the mouth: smile",
        _EYES,
    ),
    Feature(
        (
            "mouth_corner_rise_left",
            "mouth_corner_rise_right",
        ),
        "height of the corner against the base of the nose",
        _EYES,
    ),
    Feature(("mouth_width",), "distance of the corners", _EYES),
    Feature(("mouth_open",), "height between the lips' inner edges", _EYES),
    Feature(
        (
            "upper_lip_thickness",
            "lower_lip_thickness",
        ),
        "height of a lip, both small: pressed",
        _EYES,
    ),
    Feature(("upper_lip_raise",), "height of the upper lip's edge against the base of the nose", _EYES),
    Feature(("jaw_open",), "height from the base of the nose to the chin", _EYES),
    Feature(
        (
            "brow_inner_left",
            "brow_inner_right",
        ),
        "height of the brow's inner end above the eye's inner corner",
        _EYES,
    ),
    Feature(
        (
            "brow_middle_left",
            "brow_middle_right",
        ),
        "height of the brow's middle above the middle of the eye's corners",
        _EYES,
    ),
    Feature(
        (
            "brow_outer_left",
            "brow_outer_right",
        ),
        "height of the brow's outer end above the eye's outer corner",
        _EYES,
    ),
    Feature(("brow_distance",), "distance of the brows' inner ends, small: frown", _EYES),
    Feature(
        (
            "eye_open_left",
            "eye_open_right",
        ),
        "eye aspect ratio: mean distance of the lids",
        "eye width",
    ),
    Feature(
        (
            "cheek_raise_left",
            "cheek_raise_right",
        ),
        "height of the cheek against the lower lid",
        _EYES,
    ),
    Feature(
        (
            "nose_wrinkle_left",
            "nose_wrinkle_right",
        ),
        "height of the nostril's wing against the eye's inner corner",
        _EYES,
    ),
    Feature(("nostril_width",), "distance of the nostrils' wings", _EYES),
    Feature(
        (
            "mouth_corner_asymmetry",
            "brow_middle_asymmetry",
        ),
        "left less right",
        _EYES,
    ),
    Feature(("eye_open_asymmetry",), "left less right", "eye width"),
    *(
        Feature(
            tuple(f"landmark_{index}_{axis}" for index in indices for axis in "xy"),
            f"landmarks by their number in the face mesh, x to the right, y up from between the eyes; {group}",
            _EYES,
        )
        for group, indices in LANDMARK_GROUPS.items()
    ),
)


class FaceMeshVision:
    """`vision.face_mesh`: pose, gaze, expression and landmarks of one face, see `FaceSelector`.

    `feature_names` begins with the head: `head_pitch`, `head_yaw`, `head_roll` in radians; `head_x`, `head_y`
    (from the picture's centre) and `head_scale` (the eyes' distance) in parts of the picture's longer side.
    Then come gaze and expression (see `face_measures`) and `landmark_<index>_x` and `_y` for `LANDMARKS`, in
    units of the eyes' distance. Both are measured after the head's rotation, scale and place are taken out.

    A frame without a face is a step of zeros that is not valid. Each clip is tracked from its own beginning.
    mediapipe is loaded at the first clip.

    Args:
        fps: frames looked at a second; steps are exactly 1 / fps apart.
        min_confidence: below this score a detected or tracked face does not count.

    Raises:
        ValueError: an option is out of its range.
    """

    modality = "vision"
    feature_names = FEATURE_NAMES
    description = FeatureDescription(
        source="mediapipe's FaceMesh (`refine_landmarks`, of several faces the largest that is there consistently), of "
        f"frames scaled down to at most {MAX_SIDE} pixels; pose by a similarity transform onto a reference face. Of "
        "gaze, expression and landmarks, pose and scale are taken out; left and right are the person's own",
        rate="`fps`; where the video has fewer frames, they repeat; a step lasts 1 / `fps` from its frame's time",
        window="one frame; FaceMesh follows the face from frame to frame",
        valid="where a face is found; zeros elsewhere",
        features=_FEATURES,
    )

    def __init__(self, fps: float = 25.0, min_confidence: float = 0.5) -> None:
        check_face_options(fps=fps, min_confidence=min_confidence)
        self.fps, self.min_confidence = float(fps), float(min_confidence)
        options = {"fps": self.fps, "min_confidence": self.min_confidence, "max_side": MAX_SIDE}
        self.signature = make_signature("vision.face_mesh", VERSION, options, f"mediapipe {version('mediapipe')}")
        self._tracker = FaceTracker(self.min_confidence)

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        return self._tracker.track(media, self.fps, self._collect)

    def _collect(self, found: Iterator[LandmarkFrame]) -> FeatureSequence:
        times: list[float] = []
        valid: list[bool] = []
        rows: list[np.ndarray] = []
        points: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []

        def measure() -> None:  # not of all frames at once: landmarks take more memory than features
            features = face_features(np.stack(points), np.array(sizes))
            rows.append(np.column_stack([*features.values()]).astype(np.float32))
            points.clear()
            sizes.clear()

        for time, image, landmarks in found:
            times.append(time)
            valid.append(landmarks is not None)
            if landmarks is not None:
                points.append(to_pixels(landmarks, USED, image))
                sizes.append((image.shape[1], image.shape[0]))
            if len(points) == BATCH_FRAMES:
                measure()
        if points:
            measure()
        values = np.zeros((len(times), len(FEATURE_NAMES)), np.float32)
        if rows:
            values[valid] = np.concatenate(rows)
        return frame_steps(values, times, np.array(valid), self.fps)
