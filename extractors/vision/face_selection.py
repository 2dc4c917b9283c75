"""Which face of a clip to follow where there are several: the largest of those that are there consistently.

Boxes are a face's centre x, centre y and side in pixels, x to the right, y down. H, W are a picture's height and
width, K counts the faces in one picture, F the pictures of a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PATIENCE = 0.5
"""Seconds. A face that the detector does not see for longer has left the picture."""

ALIKE = 1.3
"""Largest quotient of two boxes' sides that may be the same face."""

BRIEF = 0.25
"""A face that is there for less than this part of the longest one's time passes by, however large it is."""

VIEW = 2.5
"""Side of what is left of the picture around the face, in sides of its box: FaceMesh looks at about two."""

FACE = 1.3
"""Side of what stays visible of the face beside another one, in sides of its box: the detector's ends at the brows."""


@dataclass(slots=True)
class _Track:
    """One face from picture to picture: its last box, first and last time seen, count of pictures, sum of areas."""

    box: np.ndarray
    first: float
    last: float
    count: int = 0
    area: float = 0.0

    @property
    def side(self) -> float:
        return math.sqrt(self.area / self.count)


class Tracks:
    """The faces of a clip, tied together from picture to picture.

    A face goes on as the one that was nearest, less than its side away and of about its size, at most `PATIENCE`
    ago; otherwise it is a new one.

    Args:
        step: seconds from one picture to the next.
    """

    def __init__(self, step: float) -> None:
        self.faces: list[np.ndarray] = []
        """Boxes [K, 3] in each picture."""
        self._times: list[float] = []
        self._owners: list[list[int]] = []  # of each picture's faces the number of their track
        self._tracks: list[_Track] = []
        self._open: list[int] = []
        self._patience = PATIENCE + step

    def add(self, faces: np.ndarray, time: float) -> None:
        """The next picture's boxes [K, 3]."""
        self._open = [i for i in self._open if time - self._tracks[i].last <= self._patience]
        owners = self._assign(faces)
        for place, box in enumerate(faces):
            if owners[place] < 0:
                owners[place] = len(self._tracks)
                self._open.append(owners[place])
                self._tracks.append(_Track(box, time, time))
            track = self._tracks[owners[place]]
            track.box, track.last = box, time
            track.count += 1
            track.area += float(box[2]) ** 2
        self._times.append(time)
        self.faces.append(faces)
        self._owners.append(owners)

    def _assign(self, faces: np.ndarray) -> list[int]:
        """Of each face the track that it continues, -1 for none; the nearest first."""
        pairs = []
        for place, face in enumerate(faces):
            for index in self._open:
                box = self._tracks[index].box
                away = float(np.hypot(*(face[:2] - box[:2])) / max(face[2], box[2]))
                if away < 1 and _alike(face[2], box[2]):
                    pairs.append((away, place, index))
        owners, taken = [-1] * len(faces), set()
        for _, place, index in sorted(pairs):
            if owners[place] < 0 and index not in taken:
                owners[place] = index
                taken.add(index)
        return owners

    def _chosen(self) -> set[int]:
        """The track with the greatest sum of areas that is no brief one, and those that may be the same person."""
        longest = max((track.count for track in self._tracks), default=0)
        by_area = sorted(range(len(self._tracks)), key=lambda i: -self._tracks[i].area)
        fit = [self._tracks[i] for i in by_area if self._tracks[i].count >= BRIEF * longest]
        chosen: dict[int, _Track] = {}
        for i in by_area:
            track = self._tracks[i]
            apart = all(track.last < other.first or track.first > other.last for other in chosen.values())
            if track is fit[0] or (chosen and apart and _alike(track.side, fit[0].side)):
                chosen[i] = track
        return set(chosen)

    def follow(self) -> np.ndarray:
        """Box [F, 3] of the face to follow in each picture, the nearest within `PATIENCE`, NaN where it is away.

        Of the faces that are there at least `BRIEF` of the longest one's time it is that with the greatest sum of
        areas. After a cut or a turned head the same person is a new face: those of about its size that never share
        the picture with it are followed as well.
        """
        chosen = self._chosen()
        boxes = np.full((len(self._times), 3), np.nan, np.float32)
        for number, owners in enumerate(self._owners):
            for place, track in enumerate(owners):
                if track in chosen:
                    boxes[number] = self.faces[number][place]
        seen, clock = np.flatnonzero(~np.isnan(boxes[:, 0])), np.array(self._times)
        if not len(seen):
            return boxes
        later = np.searchsorted(seen, np.arange(len(clock))).clip(max=len(seen) - 1)
        before, after = seen[(later - 1).clip(min=0)], seen[later]
        nearest = np.where(abs(clock - clock[before]) < abs(clock - clock[after]), before, after)
        return np.where(abs(clock - clock[nearest])[:, None] <= PATIENCE, boxes[nearest], np.nan)


def show_only(image: np.ndarray, own: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3], black but for the surroundings of the box `own` [3], and without the other `faces`."""
    view = np.zeros_like(image)
    if not np.isnan(own[0]):
        around, inner = _area(own, VIEW, image), _area(own, FACE, image)
        view[around] = image[around]
        for face in faces:
            view[_area(face, 1.0, image)] = 0
        view[inner] = image[inner]
    view.flags.writeable = False
    return view


def _area(box: np.ndarray, widened: float, image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a box, widened."""
    reach = box[2] * widened / 2
    starts = (max(0, int(centre - reach)) for centre in (box[1], box[0]))
    stops = (max(0, math.ceil(centre + reach)) for centre in (box[1], box[0]))
    rows, columns = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    return rows, columns


def _alike(side: float, other: float) -> bool:
    return max(side, other) < ALIKE * min(side, other)
