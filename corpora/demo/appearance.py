"""Appearance and motion of a talking avatar, without OpenCV, which `corpora.demo.face` draws them with.

Shapes: F frames. Colours are BGR, 0 to 255, as in OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Colour = tuple[float, float, float]

HAIR_STYLES = ("short", "long", "bun", "bald")


@dataclass(frozen=True, slots=True)
class Appearance:
    """Appearance of a speaker. Factors are near 1.

    Attributes:
        width, jaw, eyes, nose, mouth: proportions relative to the neutral face.
        brow: thickness of the brows, a factor.
        skin, hair, lips, iris, shirt: colours.
        background: colours at the top left and at the bottom right.
        hair_style: one of `HAIR_STYLES`.
        fringe: length of the hair over the forehead, in face heights.
    """

    width: float
    jaw: float
    eyes: float
    nose: float
    mouth: float
    brow: float
    skin: Colour
    hair: Colour
    lips: Colour
    iris: Colour
    shirt: Colour
    background: tuple[Colour, Colour]
    hair_style: str
    fringe: float


@dataclass(frozen=True, slots=True)
class Motion:
    """Expression and pose, one value per frame [F].

    Attributes:
        smile: -1 (frown) to 1 (smile).
        jaw: 0 (closed) to 1 (wide open).
        brow: -1 (lowered, drawn together) to 1 (raised).
        blink: 0 (open) to 1 (closed).
        yaw, pitch, roll: radians.
        shift: [F, 2] displacement of the head, in face heights.
    """

    smile: np.ndarray
    jaw: np.ndarray
    brow: np.ndarray
    blink: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    roll: np.ndarray
    shift: np.ndarray
