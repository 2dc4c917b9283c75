"""Indices into the 468 points of mediapipe's face mesh, contours in drawing order, and the stored face geometry.

Left and right are the person's own, so `RIGHT_EYE` is on the viewer's left.

Provenance of `face.npz` (points [468, 3] float32, triangles [T, 3] int16), which a script computed once: mediapipe's
FaceMesh was applied to NASA's portrait of Eileen Collins (public domain, `skimage.data.astronaut()`). The points were
rotated upright, scaled to one unit from forehead to chin, and averaged with their mirror image, each point matched to
its counterpart. The smile was removed: the mouth's corners were lowered by 0.045, the mouth was closed and narrowed to
0.88 of its width, and the lips got a thickness of 0.050 (lower) and 0.040 (upper, with a dip of 0.007 in the middle).
What remains are proportions, not a likeness. The triangles are all triples of connected points in mediapipe's
`FACEMESH_TESSELATION` (Apache-2.0).
"""

from __future__ import annotations

from pathlib import Path

FACE_PATH = Path(__file__).with_name("face.npz")

OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
OVAL += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]

# Each eye from its outer corner along the lower lid to the inner corner, then back along the upper lid.
RIGHT_EYE = [33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246]
LEFT_EYE = [263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466]

# Each brow's lower edge from the outer end to the inner end, then its upper edge back.
RIGHT_BROW = [46, 53, 52, 65, 55, 107, 66, 105, 63, 70]
LEFT_BROW = [276, 283, 282, 295, 285, 336, 296, 334, 293, 300]

# Each lip contour from the right corner along the lower edge to the left corner (ten steps), then back above.
OUTER_LIP = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185]
INNER_LIP = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191]

NOSE_TIP = 1
NOSTRILS = [98, 327]
