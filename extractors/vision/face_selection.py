"""Selection of the face to follow in a clip with several faces: the largest that is present consistently.

A detection box is [centre x, centre y, side] in pixels, x to the right, y down.
Shapes: H, W height and width of a frame; K faces in a frame; F frames of a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_GAP_SECONDS = 0.5
"""Longest time for which a track goes on without a detection."""

MAX_SIZE_RATIO = 1.3
"""Largest ratio of the sides of two boxes that may show the same face."""

MIN_PRESENCE = 0.25
"""Minimum number of detections of a track, relative to the track with most; faces that pass by have fewer."""

VIEW_SCALE = 2.5
"""Side of the visible region around the selected face, relative to its box; the landmarker reads one of about two."""

FACE_SCALE = 1.3
"""Side of the region that stays visible next to another face, relative to the box, which ends at the brows."""


@dataclass(slots=True)
class _Track:
    """Detections of one face in consecutive frames.

    Attributes:
        box: last box.
        first, last: times of the first and the last detection in seconds.
        count: number of detections.
        area: sum of the boxes' areas.
    """

    box: np.ndarray
    first: float
    last: float
    count: int = 0
    area: float = 0.0

    @property
    def side(self) -> float:
        return math.sqrt(self.area / self.count)


class FaceTracks:
    """Detections of a clip, linked over time into one track per face.

    A detection continues the nearest track whose last box is less than a box's side away, of similar size and at most
    `MAX_GAP_SECONDS` old; otherwise it starts a new track.

    Args:
        step: seconds between frames.

    Attributes:
        boxes: boxes [K, 3] of each frame.
    """

    def __init__(self, step: float) -> None:
        self.boxes: list[np.ndarray] = []
        self._times: list[float] = []
        self._track_indices: list[list[int]] = []  # of the boxes of each frame
        self._tracks: list[_Track] = []
        self._open: list[int] = []  # tracks that a new detection may continue
        self._max_gap = MAX_GAP_SECONDS + step

    def add(self, boxes: np.ndarray, time: float) -> None:
        """Add the boxes [K, 3] of the next frame."""
        self._open = [i for i in self._open if time - self._tracks[i].last <= self._max_gap]
        indices = self._assign(boxes)
        for position, box in enumerate(boxes):
            if indices[position] < 0:
                indices[position] = len(self._tracks)
                self._open.append(indices[position])
                self._tracks.append(_Track(box, time, time))
            track = self._tracks[indices[position]]
            track.box, track.last = box, time
            track.count += 1
            track.area += float(box[2]) ** 2
        self._times.append(time)
        self.boxes.append(boxes)
        self._track_indices.append(indices)

    def _assign(self, boxes: np.ndarray) -> list[int]:
        """Return the open track that each box continues, -1 for none; the closest pairs are matched first."""
        pairs = []
        for position, box in enumerate(boxes):
            for index in self._open:
                last = self._tracks[index].box
                distance = float(np.hypot(*(box[:2] - last[:2])) / max(box[2], last[2]))
                if distance < 1 and _similar_size(box[2], last[2]):
                    pairs.append((distance, position, index))
        indices, taken = [-1] * len(boxes), set()
        for _, position, index in sorted(pairs):
            if indices[position] < 0 and index not in taken:
                indices[position] = index
                taken.add(index)
        return indices

    def _select_tracks(self) -> set[int]:
        """Return the indices of the main track and of those that may show the same person at other times."""
        if not self._tracks:
            return set()
        min_count = MIN_PRESENCE * max(track.count for track in self._tracks)
        by_area = sorted(range(len(self._tracks)), key=lambda i: -self._tracks[i].area)
        main = next(i for i in by_area if self._tracks[i].count >= min_count)
        selected = [main]
        for i in by_area[by_area.index(main) + 1 :]:
            track, others = self._tracks[i], [self._tracks[other] for other in selected]
            disjoint = all(track.last < other.first or track.first > other.last for other in others)
            if disjoint and _similar_size(track.side, others[0].side):
                selected.append(i)
        return set(selected)

    def select(self) -> np.ndarray:
        """Return the box [F, 3] of the face to follow in each frame: the nearest in time, NaN if the face is absent.

        The face is that of the track with the largest sum of areas among those with at least `MIN_PRESENCE` of the
        detections of the most frequent one. After a cut or a turn of the head the same person starts a new track:
        tracks of similar size that never overlap in time with those selected are followed as well.
        """
        selected = self._select_tracks()
        boxes = np.full((len(self._times), 3), np.nan, np.float32)
        for frame, indices in enumerate(self._track_indices):
            for position, track in enumerate(indices):
                if track in selected:
                    boxes[frame] = self.boxes[frame][position]
        # Fill gaps with the nearest detection
        detected, times = np.flatnonzero(~np.isnan(boxes[:, 0])), np.array(self._times)
        if not len(detected):
            return boxes
        later = np.searchsorted(detected, np.arange(len(times))).clip(max=len(detected) - 1)
        before, after = detected[(later - 1).clip(min=0)], detected[later]
        nearest = np.where(abs(times - times[before]) < abs(times - times[after]), before, after)
        return np.where(abs(times - times[nearest])[:, None] <= MAX_GAP_SECONDS, boxes[nearest], np.nan)


def mask_other_faces(image: np.ndarray, own: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the frame with everything black except the region around the selected face.

    Args:
        image: [H, W, 3] frame.
        own: [3] box of the selected face; NaN gives a black frame.
        boxes: [K, 3] boxes of all faces; the other ones are black as well.
    """
    masked = np.zeros_like(image)
    if not np.isnan(own[0]):
        view, face = _region(own, VIEW_SCALE), _region(own, FACE_SCALE)
        masked[view] = image[view]
        for box in boxes:
            masked[_region(box, 1.0)] = 0
        masked[face] = image[face]
    masked.flags.writeable = False
    return masked


def _region(box: np.ndarray, scale: float) -> tuple[slice, slice]:
    """Return the rows and columns of a scaled box."""
    reach = box[2] * scale / 2
    starts = (max(0, int(centre - reach)) for centre in (box[1], box[0]))
    stops = (max(0, math.ceil(centre + reach)) for centre in (box[1], box[0]))
    rows, columns = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    return rows, columns


def _similar_size(side: float, other: float) -> bool:
    return max(side, other) < MAX_SIZE_RATIO * min(side, other)
