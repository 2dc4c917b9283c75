"""Rendering of a talking avatar: 468 moving face points, shaded triangles, and eyes, brows, lips and hair on top.

Shapes: F frames, P = 468 points, T triangles, H = W = `SIZE`. Face coordinates: one unit from forehead to chin, x to
the viewer's right, y down, z away from the camera. Colours are BGR, 0 to 255, as in OpenCV.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np

from corpora.demo.landmarks import (
    FACE_PATH,
    INNER_LIP,
    LEFT_BROW,
    LEFT_EYE,
    NOSTRILS,
    OUTER_LIP,
    OVAL,
    RIGHT_BROW,
    RIGHT_EYE,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corpora.demo.appearance import Appearance, Colour, Motion

SIZE = 256
"""Pixels of a frame's width and height."""
FACE_HEIGHT = 118
"""Pixels from forehead to chin."""
CENTRE = (128.0, 124.0)
PIVOT = np.array([0.0, 0.35, 0.40], dtype=np.float32)
"""Centre of the head's rotation: the top of the neck."""
CAMERA_DISTANCE = 5.0
SUBPIXEL = 4
"""Fractional bits of positions in OpenCV's anti-aliased drawing."""
LIGHT = np.array([-0.35, -0.55, -0.76], dtype=np.float32)
SMILE_LIFT = 0.055
"""Lift of the mouth's corners in a full smile, in face heights; a full frown lowers them by the same."""


@functools.cache
def neutral_face() -> tuple[np.ndarray, np.ndarray]:
    """Load the stored geometry (see `landmarks.py`): points [P, 3] float32 and triangles [T, 3]."""
    with np.load(FACE_PATH) as stored:
        return stored["points"], stored["triangles"].astype(np.int32)


def _near(points: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return Gaussian weights [P] by distance from the centre in the image plane."""
    weights: np.ndarray = np.exp(-((np.linalg.norm((points - centre)[:, :2], axis=1) / radius) ** 2))
    return weights


def rest_points(look: Appearance) -> np.ndarray:
    """Return the points [P, 3] of the speaker's face at rest."""
    points = neutral_face()[0].copy()
    middle_of_mouth = points[OUTER_LIP].mean(axis=0)
    for contour in (LEFT_EYE, RIGHT_EYE):
        centre = points[contour].mean(axis=0)
        points += ((look.eyes - 1) * _near(points, centre, 0.09))[:, None] * (points - centre)
    mouth = _near(points, middle_of_mouth, 0.14)
    points[:, 0] *= 1 + (look.mouth - 1) * mouth
    nose = _near(points, points[NOSTRILS].mean(axis=0), 0.10)
    points[:, 0] *= 1 + (look.nose - 1) * nose
    below = np.clip((points[:, 1] - 0.05) / 0.45, 0, 1)
    points[:, 0] *= look.width * (1 + (look.jaw - 1) * below)
    return points


def _expression_basis(rest: np.ndarray) -> dict[str, np.ndarray]:
    """Return the displacements [P, 3] from the face at rest for one unit of each expression."""
    smile, jaw, brow, blink = (np.zeros_like(rest) for _ in range(4))
    for corner, side in ((OUTER_LIP[0], -1), (OUTER_LIP[10], 1)):
        weight = _near(rest, rest[corner], 0.085)
        smile[:, 1] -= SMILE_LIFT * weight
        smile[:, 0] += 0.022 * side * weight
        cheek = _near(rest, rest[corner] + np.array([0.04 * side, -0.16, 0]), 0.10)
        smile[:, 1] -= 0.012 * cheek
        smile[:, 2] -= 0.015 * cheek

    line = rest[INNER_LIP, 1].mean()
    jaw[:, 1] = 0.10 * np.clip((rest[:, 1] - line - 0.01) / 0.10, 0, 1)
    lower, upper = OUTER_LIP[1:10] + INNER_LIP[1:10], OUTER_LIP[11:] + INNER_LIP[11:]
    half = np.abs(rest[OUTER_LIP[10], 0])
    jaw[lower, 1] = 0.10 * np.clip(1 - (np.abs(rest[lower, 0]) / half) ** 2, 0, 1)
    jaw[upper, 1] = -0.012 * np.clip(1 - (np.abs(rest[upper, 0]) / half) ** 2, 0, 1)

    for contour, side in ((RIGHT_BROW, -1), (LEFT_BROW, 1)):
        whole, inner = rest[contour].mean(axis=0), rest[contour[4]]
        brow[:, 1] -= 0.022 * _near(rest, whole, 0.10) + 0.022 * _near(rest, inner, 0.07)
        brow[:, 0] += 0.008 * side * _near(rest, inner, 0.07)

    for contour in (RIGHT_EYE, LEFT_EYE):
        lids = zip(contour[1:8], contour[:8:-1], strict=True)
        for low, high in lids:
            gap = rest[low, 1] - rest[high, 1]
            blink[high, 1], blink[low, 1] = 0.85 * gap, -0.12 * gap
    return {"smile": smile, "jaw": jaw, "brow": brow, "blink": blink}


def posed_points(look: Appearance, motion: Motion) -> np.ndarray:
    """Return the points [F, P, 3] of the moving face, in face coordinates."""
    rest = rest_points(look)
    points = np.repeat(rest[None], len(motion.smile), axis=0)
    for name, displacement in _expression_basis(rest).items():
        points += getattr(motion, name)[:, None, None] * displacement
    return move_head(points, motion)


def move_head(points: np.ndarray, motion: Motion) -> np.ndarray:
    """Rotate the points [F, P, 3] about the neck, and shift them."""
    zero, one = np.zeros_like(motion.yaw), np.ones_like(motion.yaw)

    def rotation(angle: np.ndarray, first: int, second: int) -> np.ndarray:
        matrix: np.ndarray = np.stack([np.stack([one if i == j else zero for j in range(3)], -1) for i in range(3)], -2)
        matrix[:, first, first] = matrix[:, second, second] = np.cos(angle)
        matrix[:, first, second], matrix[:, second, first] = -np.sin(angle), np.sin(angle)
        return matrix

    total = rotation(motion.roll, 0, 1) @ rotation(motion.pitch, 1, 2) @ rotation(motion.yaw, 2, 0)
    moved: np.ndarray = np.einsum("fij,fpj->fpi", total, points - PIVOT) + PIVOT
    moved[..., :2] += motion.shift[:, None]
    return moved


def project(points: np.ndarray) -> np.ndarray:
    """Project points [..., 3] to pixels [..., 2] by perspective."""
    scale = CAMERA_DISTANCE / (CAMERA_DISTANCE + points[..., 2:3])
    pixels: np.ndarray = points[..., :2] * scale * FACE_HEIGHT + np.array(CENTRE)
    return pixels


def _shades(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return brightness factors [F, T] by Lambert's law on smoothed normals, plus ambient light."""
    a, b, c = (points[:, triangles[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    normals *= np.where(normals[..., 2:3] > 0, -1, 1)  # the triangles have no orientation
    vertex = np.zeros_like(points)
    for corner in range(3):
        for frame in range(len(points)):
            for axis in range(3):
                vertex[frame, :, axis] += np.bincount(
                    triangles[:, corner], weights=normals[frame, :, axis], minlength=points.shape[1]
                )
    vertex /= np.linalg.norm(vertex, axis=-1, keepdims=True) + 1e-9
    lambert = np.clip(vertex @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    shades: np.ndarray = (0.56 + 0.52 * lambert)[:, triangles].mean(axis=2)
    return shades


def _fixed(points: np.ndarray) -> np.ndarray:
    """Convert pixels to the fixed-point integers of OpenCV's sub-pixel drawing."""
    fixed: np.ndarray = np.round(points * (1 << SUBPIXEL)).astype(np.int32)
    return fixed


def _fill(image: np.ndarray, polygon: np.ndarray, colour: Sequence[float]) -> None:
    """Fill a polygon [N, 2]; `colour` has one value for each channel."""
    cv2.fillPoly(image, [_fixed(polygon)], colour, cv2.LINE_AA, SUBPIXEL)


def _tint(colour: Colour, factor: float) -> Colour:
    """Scale a colour's brightness."""
    blue, green, red = (float(np.clip(channel * factor, 0, 255)) for channel in colour)
    return blue, green, red


@functools.cache
def _corner_cutting(points: int, steps: int) -> np.ndarray:
    """Return the matrix [points * 2^steps, points] of Chaikin's corner cutting (1974) of a closed polygon."""
    matrix = np.eye(points)
    for _ in range(steps):
        following = np.roll(matrix, -1, axis=0)
        cut = np.stack([0.75 * matrix + 0.25 * following, 0.25 * matrix + 0.75 * following], axis=1)
        matrix = cut.reshape(-1, points)
    return matrix


def _smooth(polygon: np.ndarray, steps: int = 3) -> np.ndarray:
    """Smooth a closed polygon [N, 2], so that outlines do not look like a mesh."""
    smooth: np.ndarray = _corner_cutting(len(polygon), steps) @ polygon
    return smooth


def draw_backdrop(look: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """Draw the static parts: image [H, W, 3] of background and shoulders, and mask [H, W] of the shoulders."""
    ramp = np.linspace(0, 1, SIZE)
    weight = ((ramp[:, None] + ramp[None]) / 2)[..., None]
    image = np.array(look.background[0]) * (1 - weight) + np.array(look.background[1]) * weight
    distance = np.hypot(ramp[None] - 0.5, ramp[:, None] - 0.45)[..., None]
    image = (image * (1.10 - 0.45 * distance)).clip(0, 255).astype(np.uint8)
    # From the collar over the shoulder and down; mirrored for the other side
    side = np.array([(0.0, 0.66), (0.16, 0.66), (0.30, 0.74), (0.72, 0.86), (0.92, 1.05), (0.98, 1.4)])
    outline = np.concatenate([side, (side * [-1, 1])[::-1]]) * FACE_HEIGHT + np.array(CENTRE)
    _fill(image, _smooth(outline), look.shirt)
    collar = np.array([(0.0, 0.94), (0.22, 0.66), (-0.22, 0.66)]) * FACE_HEIGHT + np.array(CENTRE)
    _fill(image, collar, _tint(look.skin, 0.72))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    _fill(mask, _smooth(outline), (255,))
    return cv2.GaussianBlur(image, (0, 0), 1.5), mask


def _dome(oval: np.ndarray, margin: float, height: float) -> np.ndarray:
    """Return the skull's outline: the face's oval [36, 2] scaled by `margin` and arched upwards by `height`."""
    centre, up = oval.mean(axis=0), oval[0] - oval[18]
    along = (oval - centre) @ up / (up @ up)
    arch = np.clip(along * 2, 0, 1)[:, None] ** 2
    narrow = 1 - 0.10 * arch
    widened = (oval - centre) * margin * np.hstack([narrow, np.ones_like(narrow)])
    dome: np.ndarray = centre + widened + up * height * arch
    return dome


def _hair_behind(look: Appearance, oval: np.ndarray) -> list[np.ndarray]:
    """Return outlines [N, 2] of the hair behind the face, around the face's oval [36, 2] in pixels."""
    centre, up = oval.mean(axis=0), oval[0] - oval[18]
    if look.hair_style == "bald":
        return [_smooth(_dome(oval, 1.03, 0.10))]
    crown = _dome(oval, 1.16, 0.13)
    low = np.clip((oval - centre) @ -up / (up @ up), 0, 1)[:, None]
    if look.hair_style == "long":
        return [_smooth(crown - up * low * 0.6 + (oval - centre) * [0.3, 0] * low)]
    keep = np.clip(low * 2.2, 0, 0.95)
    outlines = [_smooth(crown * (1 - keep) + (centre + (oval - centre) * 0.96) * keep)]
    if look.hair_style == "bun":
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radius = np.linalg.norm(up) * 0.18
        outlines.append(oval[0] + up * 0.28 + radius * np.stack([np.cos(angle), np.sin(angle)], 1))
    return outlines


def _fringe(look: Appearance, oval: np.ndarray) -> np.ndarray | None:
    """Return the outline [N, 2] of the hair over the forehead, or None."""
    if look.hair_style == "bald":
        return None
    up = oval[0] - oval[18]
    top = np.r_[-6:7]  # from temple to temple
    outer = _dome(oval, 1.12, 0.115)[top]
    across = np.linspace(-1, 1, len(top))
    drop = look.fringe * (1 - 0.75 * np.abs(across + 0.25) ** 1.5)
    inner = oval[top] - up * drop[:, None].clip(0.0)
    return _smooth(np.concatenate([outer, inner[::-1]]), 2)


def _draw_neck(canvas: np.ndarray, look: Appearance, oval: np.ndarray) -> None:
    """Draw the neck from the chin to the collar, with the jaw's shadow."""
    half, bottom = 0.195 * FACE_HEIGHT, CENTRE[1] + 0.80 * FACE_HEIGHT
    chin = oval[18]
    corners = [(chin[0] - half, chin[1] - 35), (chin[0] + half, chin[1] - 35)]
    corners += [
        (CENTRE[0] + half * 1.2, bottom),
        (CENTRE[0], bottom + 0.1 * FACE_HEIGHT),
        (CENTRE[0] - half * 1.2, bottom),
    ]
    _fill(canvas, np.array(corners), _tint(look.skin, 0.72))
    shadow = oval[12:25] + np.array([0, 0.07 * FACE_HEIGHT])
    shadow[:, 0] = shadow[:, 0].clip(chin[0] - half * 1.02, chin[0] + half * 1.02)
    _fill(canvas, shadow, _tint(look.skin, 0.58))


def _draw_skin(canvas: np.ndarray, look: Appearance, pixels: np.ndarray, order: np.ndarray, shades: np.ndarray) -> None:
    """Paint the face's triangles, farthest first, and blur their edges within the oval."""
    skin = np.array(look.skin)
    triangles = neutral_face()[1]
    (left, top), (right, bottom) = pixels.min(axis=0).astype(int) - 9, pixels.max(axis=0).astype(int) + 10
    left, top = max(left, 0), max(top, 0)
    window = canvas[top:bottom, left:right]
    layer = np.empty_like(window)
    layer[:] = np.clip(skin * 0.86, 0, 255)
    corners = _fixed(pixels - [left, top])[triangles[order]]
    colours = np.clip(shades[order, None] * skin, 0, 255).tolist()
    for polygon, colour in zip(corners, colours, strict=True):
        cv2.fillConvexPoly(layer, polygon, colour, cv2.LINE_8, SUBPIXEL)
    layer = cv2.GaussianBlur(layer, (0, 0), 2.2)
    mask = np.zeros(window.shape[:2], np.uint8)
    _fill(mask, _smooth(pixels[OVAL] - [left, top], 2), (255,))
    weight = cv2.GaussianBlur(mask, (3, 3), 0).astype(np.float32) / 255
    window[:] = cv2.blendLinear(layer, np.ascontiguousarray(window), weight, 1 - weight)


def _draw_eye(canvas: np.ndarray, look: Appearance, contour: np.ndarray) -> None:
    """Draw the white, the iris clipped to the lids, and the lash lines."""
    opening = _smooth(contour, 2)
    centre = contour.mean(axis=0)
    width = np.linalg.norm(contour[8] - contour[0])
    (left, top), (right, bottom) = np.floor(contour.min(axis=0)) - 3, np.ceil(contour.max(axis=0)) + 4
    window = np.s_[int(top) : int(bottom), int(left) : int(right)]
    patch = canvas[window].copy()
    origin = np.array([int(left), int(top)])
    _fill(patch, opening - origin, (232, 236, 240))
    iris = tuple(int(v) for v in _fixed(centre - origin))
    scale = 1 << SUBPIXEL
    for radius, colour in ((0.215, _tint(look.iris, 0.7)), (0.175, look.iris), (0.095, (18, 16, 16))):
        cv2.circle(patch, iris, int(radius * width * scale), colour, -1, cv2.LINE_AA, SUBPIXEL)
    glint = tuple(int(v) for v in _fixed(centre - origin - width * 0.07))
    cv2.circle(patch, glint, int(0.035 * width * scale), (250, 250, 250), -1, cv2.LINE_AA, SUBPIXEL)
    mask = np.zeros(patch.shape[:2], np.uint8)
    _fill(mask, opening - origin, (255,))
    weight = mask.astype(np.float32) / 255
    canvas[window] = cv2.blendLinear(patch, np.ascontiguousarray(canvas[window]), weight, 1 - weight)
    upper = np.concatenate([contour[8:], contour[:1]])
    cv2.polylines(canvas, [_fixed(upper)], False, (35, 32, 36), 2, cv2.LINE_AA, SUBPIXEL)
    lower = contour[1:8]
    cv2.polylines(canvas, [_fixed(lower)], False, _tint(look.skin, 0.62), 1, cv2.LINE_AA, SUBPIXEL)


def _draw_mouth(canvas: np.ndarray, look: Appearance, outer: np.ndarray, inner: np.ndarray) -> None:
    """Draw the lips, the upper one darker, and the inside of an open mouth with the upper teeth."""
    _fill(canvas, _smooth(outer, 2), look.lips)
    upper = np.concatenate([outer[10:], outer[:1], inner[:1], inner[:9:-1]])
    _fill(canvas, upper, _tint(look.lips, 0.82))
    _fill(canvas, inner, (38, 26, 58))
    gap = inner[5, 1] - inner[15, 1]
    if gap > 2.5:
        teeth = inner[10:].copy()
        lower = teeth[::-1].copy()
        lower[:, 1] += min(0.45 * gap, 4.5)
        low_lip = np.interp(lower[:, 0], inner[:11, 0], inner[:11, 1])
        lower[:, 1] = np.minimum(lower[:, 1], low_lip)
        _fill(canvas, np.concatenate([teeth, lower]), (222, 228, 232))
    cv2.polylines(canvas, [_fixed(inner)], True, _tint(look.lips, 0.5), 1, cv2.LINE_AA, SUBPIXEL)


def _draw_frame(
    look: Appearance,
    base: tuple[np.ndarray, np.ndarray],
    pixels: np.ndarray,
    depth: np.ndarray,
    shades: np.ndarray,
) -> np.ndarray:
    """Draw one frame [H, W, 3] from pixels [P, 2], depths and shades [T], and the result of `draw_backdrop`."""
    background, shoulders = base
    canvas = background.copy()
    oval = pixels[OVAL]
    hair = _tint(look.skin, 0.84) if look.hair_style == "bald" else _tint(look.hair, 0.85)
    if look.hair_style != "long":
        _draw_neck(canvas, look, oval)
    for outline in _hair_behind(look, oval):
        _fill(canvas, outline, hair)
    if look.hair_style == "long":
        cv2.copyTo(background, shoulders, canvas)
        _draw_neck(canvas, look, oval)
    _draw_skin(canvas, look, pixels, np.argsort(-depth), shades)
    for contour in (RIGHT_EYE, LEFT_EYE):
        _draw_eye(canvas, look, pixels[contour])
    for contour in (RIGHT_BROW, LEFT_BROW):
        brow = pixels[contour]
        spine = (brow[:5] + brow[:4:-1]) / 2
        brow = np.concatenate(
            [spine + (brow[:5] - spine) * look.brow, (spine + (brow[:4:-1] - spine) * look.brow)[::-1]]
        )
        _fill(canvas, _smooth(brow, 2), _tint(look.hair, 0.75))
    for nostril in NOSTRILS:
        at = tuple(int(v) for v in _fixed(pixels[nostril] * [1, 1]))
        axes = (int(0.026 * FACE_HEIGHT * 16), int(0.013 * FACE_HEIGHT * 16))
        cv2.ellipse(canvas, at, axes, 0, 0, 360, _tint(look.skin, 0.45), -1, cv2.LINE_AA, SUBPIXEL)
    _draw_mouth(canvas, look, pixels[OUTER_LIP], pixels[INNER_LIP])
    fringe = _fringe(look, oval)
    if fringe is not None:
        _fill(canvas, fringe, look.hair)
    return cv2.GaussianBlur(canvas, (3, 3), 0.6)


def render(look: Appearance, motion: Motion) -> np.ndarray:
    """Render frames [F, H, W, 3] uint8, BGR."""
    points = posed_points(look, motion)
    triangles = neutral_face()[1]
    shades = _shades(points, triangles)
    depths = points[:, triangles, 2].mean(axis=2)
    pixels = project(points)
    base = draw_backdrop(look)
    return np.stack([_draw_frame(look, base, *frame) for frame in zip(pixels, depths, shades, strict=True)])
