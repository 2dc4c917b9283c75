"""Pose and measures of a face's landmarks; real faces are in test_real_clips.py."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.vision.face_geometry import (
    _POSITION,
    FEATURE_NAMES,
    LANDMARKS,
    REFERENCE_FACE,
    USED_LANDMARKS,
    face_features,
    face_measures,
    head_angles,
    head_pose,
)


def rotation(pitch, yaw, roll):
    """Looking up, turned to the picture's right, leaning counter-clockwise."""
    cx, sx, cy, sy, cz, sz = (
        np.cos(-pitch),
        np.sin(-pitch),
        np.cos(yaw),
        np.sin(yaw),
        np.cos(roll),
        np.sin(roll),
    )
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@pytest.fixture
def face():
    """[P, 3] a face in the reference's place: rigid points exact, the others anywhere."""
    points = np.random.default_rng(0).uniform(-1, 1, (len(USED_LANDMARKS), 3))
    points[[_POSITION[index] for index in REFERENCE_FACE]] = list(REFERENCE_FACE.values())
    return points


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, 0, 0), (0, 0.5, 0), (0, 0, -0.4), (0.2, -0.6, 0.3)])
def test_head_pose_is_recovered(face, angles):
    turned = 90.0 * face @ rotation(*angles).T + (200, -150, 30)
    found, scale, shift = head_pose(turned[None])
    assert np.concatenate(head_angles(found)) == pytest.approx(angles, abs=1e-9)
    assert scale == pytest.approx(90)
    assert shift[0] == pytest.approx((200, -150, 30))


def test_head_pose_is_never_a_mirror_image(face):
    found, _, _ = head_pose((face * (-1, 1, 1))[None])
    assert np.linalg.det(found[0]) == pytest.approx(1)


def test_angles_have_the_signs_that_are_documented():
    nose, crown = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    assert (rotation(0.3, 0, 0) @ nose)[1] > 0  # pitch: the nose goes up
    assert (rotation(0, 0.3, 0) @ nose)[0] > 0  # yaw: to the picture's right
    assert (rotation(0, 0, 0.3) @ crown)[0] < 0  # roll: the crown to the picture's left


def test_pose_scale_and_place_do_not_change_expression_and_landmarks(face):
    moved = 70.0 * face @ rotation(0.3, -0.4, 0.2).T + (300, -100, 5)
    size = np.array([[640, 360]])
    still = face_features(50 * face[None] + (320, -180, 0), size)
    other = face_features(moved[None], size)
    for name in FEATURE_NAMES:
        if not name.startswith("head_"):
            assert other[name] == pytest.approx(still[name], abs=1e-9), name
    assert still["head_x"] == pytest.approx(0)
    assert still["head_y"] == pytest.approx(0)
    assert still["head_scale"] == pytest.approx(50 / 640)
    assert other["head_x"] < 0 < other["head_y"]  # left of the middle, above it


@pytest.mark.parametrize(
    ("moved", "by", "grows"),
    [
        ((291,), (0, 0.1), ["mouth_corner_left", "mouth_corner_rise_left", "mouth_corner_asymmetry"]),
        ((61,), (0, 0.1), ["mouth_corner_right", "mouth_corner_rise_right"]),
        ((14, 17, 152), (0, -0.2), ["mouth_open", "jaw_open"]),
        ((285, 336), (0, 0.1), ["brow_inner_left"]),
        ((46, 70), (0, 0.1), ["brow_outer_right"]),
        ((385, 387), (0, 0.05), ["eye_open_left", "eye_open_asymmetry"]),
        ((160, 158), (0, 0.05), ["eye_open_right"]),
        ((473,), (0.1, 0), ["gaze_left_x"]),
        ((468,), (0, 0.1), ["gaze_right_y"]),
        ((129,), (0, 0.1), ["nose_wrinkle_right"]),
        ((425,), (0, 0.1), ["cheek_raise_left"]),
    ],
)
def test_measures_follow_the_face(face, moved, by, grows):
    before = face_measures(face[None])
    face[[_POSITION[index] for index in moved], :2] += by
    after = face_measures(face[None])
    for name in grows:
        assert after[name] > before[name], name
    assert not any(after[n] != before[n] for n in ("nostril_width", "brow_distance") if 285 not in moved)


def test_every_feature_has_its_own_name():
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    assert FEATURE_NAMES[:3] == ("head_pitch", "head_yaw", "head_roll")
    assert FEATURE_NAMES[-2 * len(LANDMARKS) :][0] == f"landmark_{LANDMARKS[0]}_x"
