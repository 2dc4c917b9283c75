"""How `face.npz` was made: a neutral, left-right symmetric face geometry of nobody in particular.

Run by hand (`python -m corpora.demo.derive_face`, needs scikit-image and scipy), never by the generator.
mediapipe's FaceMesh gives 468 points on NASA's portrait of Eileen Collins, which is in the public domain and
comes with scikit-image as `data.astronaut()`. The points are turned upright, averaged with their mirror
image, and the smile is taken out of the mouth, so that what remains is proportions, not a likeness. The
triangles are those of mediapipe's mesh topology (Apache-2.0).
"""

from __future__ import annotations

import numpy as np

from corpora.demo.landmarks import FACE_PATH, INNER_LIP, LEFT_EYE, OUTER_LIP, RIGHT_EYE

MOUTH_CORNER_DROP = 0.045
"""Lowering of the mouth's corners that turns the portrait's smile into a straight mouth, in face heights."""
MOUTH_NARROWING = 0.88
"""A smile widens the mouth; this takes it back."""
LOWER_LIP, UPPER_LIP, CUPID_BOW = 0.050, 0.040, 0.007
"""Thickness of the closed lips, and the dip in the middle of the upper one, in face heights."""


def triangles_from_edges(edges: frozenset[tuple[int, int]]) -> np.ndarray:
    """Triangles [N, 3] of a mesh given as its edges: every three points that are all joined."""
    joined: dict[int, set[int]] = {}
    for a, b in edges:
        joined.setdefault(a, set()).add(b)
        joined.setdefault(b, set()).add(a)
    found = {tuple(sorted((a, b, c))) for a, b in edges for c in joined[a] & joined[b]}
    return np.array(sorted(found), dtype=np.int16)


def upright(points: np.ndarray) -> np.ndarray:
    """Points [468, 3] with the eyes level, the forehead above the chin, one unit from forehead to chin."""
    across = points[LEFT_EYE].mean(axis=0) - points[RIGHT_EYE].mean(axis=0)
    down = points[152] - points[10]
    across /= np.linalg.norm(across)
    down -= across * (down @ across)
    height = np.linalg.norm(down)
    down /= height
    axes = np.stack([across, down, np.cross(across, down)])
    centre = (points[10] + points[152]) / 2
    return (points - centre) @ axes.T / height


def symmetric(points: np.ndarray) -> np.ndarray:
    """Average of the points and their mirror image, each matched to its counterpart."""
    from scipy.optimize import linear_sum_assignment

    mirrored = points * np.array([-1.0, 1.0, 1.0])
    distance = np.linalg.norm(points[:, None] - mirrored[None], axis=-1)
    _, partner = linear_sum_assignment(distance**2)
    return (points + mirrored[partner]) / 2


def without_smile(points: np.ndarray) -> np.ndarray:
    """Lower the corners of the mouth, close it, and give the stretched lips their thickness back."""
    points = points.copy()
    corners = points[[OUTER_LIP[0], OUTER_LIP[10]]]
    for corner in corners:
        distance = np.linalg.norm((points - corner)[:, :2], axis=1)
        points[:, 1] += MOUTH_CORNER_DROP * np.exp(-((distance / 0.10) ** 2))
    near_mouth = np.exp(-((np.abs(points[:, 1] - corners[0, 1]) / 0.12) ** 4))
    points[:, 0] *= 1 - (1 - MOUTH_NARROWING) * near_mouth * (np.abs(points[:, 0]) < 0.3)
    middle = corners[:, 1].mean() + MOUTH_CORNER_DROP
    for inner, outer, sign, thickness in (
        (INNER_LIP[:11], OUTER_LIP[:11], 1, LOWER_LIP),
        (
            [INNER_LIP[0], *INNER_LIP[:10:-1], INNER_LIP[10]],
            [OUTER_LIP[0], *OUTER_LIP[:10:-1], OUTER_LIP[10]],
            -1,
            UPPER_LIP,
        ),
    ):
        across = np.linspace(-1, 1, 11)
        points[inner, 1] = middle
        points[outer, 1] = middle + sign * thickness * (1 - across**2) ** 0.8
    points[OUTER_LIP[15], 1] += CUPID_BOW
    return points


def main() -> None:
    import mediapipe
    from skimage import data

    image = np.ascontiguousarray(data.astronaut())
    with mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True) as mesh:
        landmarks = mesh.process(image).multi_face_landmarks[0].landmark
    height, width = image.shape[:2]
    points = np.array([[p.x * width, p.y * height, p.z * width] for p in landmarks])
    points = without_smile(symmetric(upright(points)))
    triangles = triangles_from_edges(mediapipe.solutions.face_mesh.FACEMESH_TESSELATION)
    np.savez_compressed(FACE_PATH, points=points.astype(np.float32), triangles=triangles)
    size = FACE_PATH.stat().st_size
    print(f"{FACE_PATH}: {len(points)} points, {len(triangles)} triangles, {size} bytes")


if __name__ == "__main__":
    main()
