"""Facial features from landmarks: head pose, gaze, expression, and landmarks in a head-fixed frame.

Coordinates are x to the right of the frame, y up, z towards the camera; left and right are the person's own. Landmarks
are numbered as in MediaPipe's face mesh: 468 points, then the irises.
Shapes: F frames with a face, P landmarks in use.
"""

from __future__ import annotations

import numpy as np

from extractors.base import Feature

# Landmarks that hardly move with the expression, as in a face that looks at the camera. The unit is the distance
# between the centres of the eyes, the origin is midway between them. Measured with MediaPipe: the mean of four people,
# superimposed and averaged with its mirror image; pitch 0 is that of two people who read to a camera at eye level.
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
REFERENCE_FACE = {
    **{index: (0.0, y, z) for index, (y, z) in _MIDLINE.items()},
    **{right: (-x, y, z) for (right, _), (x, y, z) in _PAIRS.items()},
    **{left: (x, y, z) for (_, left), (x, y, z) in _PAIRS.items()},
}
"""Landmark -> its position [x, y, z] in the reference face."""

LANDMARK_GROUPS = {
    "lips: corners, outer and inner midpoints, and points between": (61, 291, 0, 17, 13, 14, 39, 269, 91, 321, 84, 314),
    "brows": (70, 105, 107, 336, 334, 300),
    "eyes: corners and midpoints of the lids": (33, 159, 133, 145, 362, 386, 263, 374),
    "nose tip and nostrils, chin and jaw, cheeks": (1, 98, 327, 152, 172, 397, 50, 280),
}
LANDMARKS = tuple(index for group in LANDMARK_GROUPS.values() for index in group)
"""Landmarks whose coordinates are features."""

_MEASURED = (55, 65, 285, 295, 46, 276, 52, 282, 129, 358, 205, 425, 2)
_LIDS = (160, 144, 158, 153, 385, 380, 387, 373)
_IRISES = (468, 473)
USED_LANDMARKS = tuple(sorted({*REFERENCE_FACE, *LANDMARKS, *_MEASURED, *_LIDS, *_IRISES}))
_POSITION = {index: position for position, index in enumerate(USED_LANDMARKS)}


def head_pose(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the similarity transform that fits the reference face to each face.

    Least squares (Umeyama 1991, equations 39 to 43): points ~ scale * rotation @ reference + shift. mediapipe's face
    geometry module works the same way with another reference.

    Args:
        points: [F, P, 3].

    Returns:
        rotation [F, 3, 3]; scale [F], the distance between the eyes in the points' unit; shift [F, 3], the point midway
        between the eyes.
    """
    reference = np.array(list(REFERENCE_FACE.values()))
    rigid = points[:, [_POSITION[index] for index in REFERENCE_FACE]]
    centre, reference_centre = rigid.mean(axis=1), reference.mean(axis=0)
    centred = reference - reference_centre
    u, s, vt = np.linalg.svd(np.swapaxes(rigid - centre[:, None], 1, 2) @ centred)
    s[:, 2] *= np.sign(np.linalg.det(u @ vt))  # a rotation, not a reflection
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation, scale = u @ vt, s.sum(axis=1) / (centred**2).sum()
    return rotation, scale, centre - scale[:, None] * (rotation @ reference_centre)


def head_angles(rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pitch, yaw and roll [F] in radians of rotations [F, 3, 3], applied in this order.

    Pitch is positive when the person looks up, yaw when they turn to their own left (the right of the frame), roll when
    the head tilts to their own right (counter-clockwise in the frame).
    """
    pitch = -np.arctan2(rotation[:, 2, 1], rotation[:, 2, 2])
    yaw = np.arcsin(np.clip(-rotation[:, 2, 0], -1, 1))
    roll = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return pitch, yaw, roll


def face_measures(face: np.ndarray) -> dict[str, np.ndarray]:
    """Return gaze and expression, name -> [F], of faces [F, P, 3] from which the pose has been removed.

    Gaze is the position of the iris relative to the midpoint of the eye's corners in eye widths, x to the right of the
    frame, y up. Eye opening is the distance between the lids in eye widths (the eye aspect ratio of Soukupova and Cech
    2016, equation 1). Everything else is in units of the distance between the eyes; heights and distances are those of
    the frontal view.
    """
    points = {index: face[:, position, :2] for index, position in _POSITION.items()}

    def height(above: int, below: int) -> np.ndarray:
        """Return the vertical distance [F] between two landmarks."""
        vertical: np.ndarray = points[above][:, 1] - points[below][:, 1]
        return vertical

    def distance(a: int, b: int) -> np.ndarray:
        length: np.ndarray = np.linalg.norm(points[a] - points[b], axis=1)
        return length

    width_left, width_right = distance(263, 362), distance(33, 133)
    gaze_left = (points[473] - (points[263] + points[362]) / 2) / width_left[:, None]
    gaze_right = (points[468] - (points[33] + points[133]) / 2) / width_right[:, None]
    lips = (points[13] + points[14])[:, 1] / 2
    measures = {
        "gaze_left_x": gaze_left[:, 0],
        "gaze_left_y": gaze_left[:, 1],
        "gaze_right_x": gaze_right[:, 0],
        "gaze_right_y": gaze_right[:, 1],
        "mouth_corner_left": points[291][:, 1] - lips,  # above the middle of the mouth: smile
        "mouth_corner_right": points[61][:, 1] - lips,
        "mouth_corner_rise_left": height(291, 2),  # above the nose, which does not move
        "mouth_corner_rise_right": height(61, 2),
        "mouth_width": distance(61, 291),
        "mouth_open": height(13, 14),
        "upper_lip_thickness": height(0, 13),  # both small: lips pressed
        "lower_lip_thickness": height(14, 17),
        "upper_lip_raise": height(0, 2),
        "jaw_open": height(2, 152),
        "brow_inner_left": (points[285] + points[336])[:, 1] / 2 - points[362][:, 1],
        "brow_inner_right": (points[55] + points[107])[:, 1] / 2 - points[133][:, 1],
        "brow_middle_left": (points[282] + points[334])[:, 1] / 2 - (points[263] + points[362])[:, 1] / 2,
        "brow_middle_right": (points[52] + points[105])[:, 1] / 2 - (points[33] + points[133])[:, 1] / 2,
        "brow_outer_left": (points[276] + points[300])[:, 1] / 2 - points[263][:, 1],
        "brow_outer_right": (points[46] + points[70])[:, 1] / 2 - points[33][:, 1],
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
    """Return all features of faces: name -> [F].

    Args:
        points: [F, P, 3] the landmarks `USED_LANDMARKS` in pixels.
        size: [F, 2] width and height of the frame in pixels.
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
        features[f"landmark_{index}_x"] = face[:, _POSITION[index], 0]
        features[f"landmark_{index}_y"] = face[:, _POSITION[index], 1]
    return features


_DUMMY_FACE = np.arange(len(USED_LANDMARKS) * 3.0).reshape(1, -1, 3)
FEATURE_NAMES = tuple(face_features(_DUMMY_FACE, np.ones((1, 2))))


def _left_right(name: str) -> tuple[str, str]:
    return f"{name}_left", f"{name}_right"


_EYES = "distance between the eyes"
_SIDE = "longer side of the frame"
FEATURES = (
    Feature(("head_pitch",), "rotation about the axis through the ears, positive looking up", "rad"),
    Feature(("head_yaw",), "rotation about the neck, positive to the person's left (right of the frame)", "rad"),
    Feature(("head_roll",), "tilt, positive to the person's right (counter-clockwise in the frame)", "rad"),
    Feature(
        ("head_x", "head_y"),
        "point midway between the eyes, relative to the frame's centre, x to the right, y up",
        _SIDE,
    ),
    Feature(("head_scale",), "distance between the centres of the eyes, corrected for rotation", _SIDE),
    Feature(
        ("gaze_left_x", "gaze_left_y", "gaze_right_x", "gaze_right_y"),
        "iris relative to the midpoint of the eye's corners, x to the right of the frame, y up",
        "eye width",
    ),
    Feature(_left_right("mouth_corner"), "height of the corner above the middle of the mouth (smile)", _EYES),
    Feature(_left_right("mouth_corner_rise"), "height of the corner relative to the base of the nose", _EYES),
    Feature(("mouth_width",), "distance between the corners", _EYES),
    Feature(("mouth_open",), "vertical distance between the inner edges of the lips", _EYES),
    Feature(("upper_lip_thickness", "lower_lip_thickness"), "height of the lip; both small: lips pressed", _EYES),
    Feature(("upper_lip_raise",), "height of the upper lip's edge relative to the base of the nose", _EYES),
    Feature(("jaw_open",), "vertical distance from the base of the nose to the chin", _EYES),
    Feature(_left_right("brow_inner"), "height of the brow's inner end above the eye's inner corner", _EYES),
    Feature(_left_right("brow_middle"), "height of the brow's middle above the midpoint of the eye's corners", _EYES),
    Feature(_left_right("brow_outer"), "height of the brow's outer end above the eye's outer corner", _EYES),
    Feature(("brow_distance",), "distance between the brows' inner ends (small: frown)", _EYES),
    Feature(_left_right("eye_open"), "eye aspect ratio: mean distance between the lids", "eye width"),
    Feature(_left_right("cheek_raise"), "height of the cheek relative to the lower lid", _EYES),
    Feature(_left_right("nose_wrinkle"), "height of the nostril relative to the eye's inner corner", _EYES),
    Feature(("nostril_width",), "distance between the nostrils", _EYES),
    Feature(("mouth_corner_asymmetry", "brow_middle_asymmetry"), "left minus right", _EYES),
    Feature(("eye_open_asymmetry",), "left minus right", "eye width"),
    *(
        Feature(
            tuple(f"landmark_{index}_{axis}" for index in indices for axis in "xy"),
            "landmarks by their number in the face mesh, from the point midway between the eyes, x to the right, y up; "
            f"{group}",
            _EYES,
        )
        for group, indices in LANDMARK_GROUPS.items()
    ),
)
