"""Facial features from a pre-trained image encoder: one vector for the face of each frame.

F frames with a face, S the side of the model's input in pixels, D the model's width. H, W are a picture's.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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
from extractors.huggingface import find_model, fingerprint, hidden_names, load_model, read_config
from extractors.vision.face_tracking import FaceTracker, LandmarkFrame, check_face_options, frame_steps, to_pixels
from media.video import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 2

KINDS = ("vit", "dinov2", "clip", "clip_vision_model")

CLIP_WIDTH = 768
"""Of CLIP's image encoder, where its configuration leaves out what is the library's default."""

BATCH_FRAMES = 32
"""Most faces that are encoded at once."""

FACE_POINTS = range(468)
"""Landmarks that the face's box is drawn around: all but the irises."""


class TransformerVision:
    """`vision.transformer`: a CLIP, DINOv2 or ViT encoder's vector of the face that mediapipe tracks, in float32.

    The face is cut out as the square around its FaceMesh landmarks, widened by `margin`, black where it reaches over
    the picture's edge, scaled to the model's input (bicubic, antialiased) and normalised with the mean and deviation
    of the model's `preprocessor_config.json`. The vector is the class token's: of the model's output for ViT and
    DINOv2, after the last normalisation for CLIP.

    A frame without a face is a step of zeros that is not valid. mediapipe and the weights are loaded at the
    first clip, the weights onto a GPU where there is one.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.
        fps: frames looked at a second; steps are exactly 1 / fps apart.
        margin: what is added on each side of the face's box, in parts of its longer side.
        min_confidence: below this score a detected or tracked face does not count.

    Raises:
        ValueError: an option is out of its range, or the model cannot be had or used.
    """

    modality = "vision"
    description = FeatureDescription(
        source="transformers: CLIP's image encoder, DINOv2 or ViT, of the face that mediapipe's FaceMesh finds (of "
        "several the largest that is there consistently) in "
        f"frames scaled down to at most {MAX_SIDE} pixels: its square box widened by `margin`, scaled to the model's "
        "input, normalised with the mean and deviation of the model's `preprocessor_config.json`",
        rate="`fps`; where the video has fewer frames, they repeat; a step lasts 1 / `fps` from its frame's time",
        window="one frame",
        valid="where a face is found; zeros elsewhere",
        features=(
            Feature(
                ("hidden_*",),
                "class token of the model's output (of CLIP: after its last normalisation), one feature a column",
                "none",
            ),
        ),
    )

    def __init__(self, model: str, fps: float = 10.0, margin: float = 0.2, min_confidence: float = 0.5) -> None:
        check_face_options(fps=fps, min_confidence=min_confidence, margin=(margin, 0, 2))
        self.folder = find_model(model)
        config = read_config(self.folder)
        kind = config.get("model_type")
        if kind not in KINDS:
            raise ValueError(f"model {model!r} is {kind!r}; vision.transformer takes {', '.join(KINDS)}")
        self._clip = kind.startswith("clip")
        if "vision_config" in config:
            config = {"hidden_size": CLIP_WIDTH} | config["vision_config"]
        self.feature_names = hidden_names(config, self.folder)
        self.side, self._mean, self._deviation = read_preprocessor(self.folder)
        self.fps, self.margin = float(fps), float(margin)
        self._tracker = FaceTracker(float(min_confidence))
        options = {"model": model, "fps": self.fps, "margin": self.margin, "min_confidence": float(min_confidence)}
        weights = f"{fingerprint(self.folder)} mediapipe {version('mediapipe')} {MAX_SIDE}"
        self.signature = make_signature("vision.transformer", VERSION, options, weights)
        self._loaded: Any = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        return self._tracker.track(media, self.fps, self._collect)

    def _collect(self, followed: Iterator[LandmarkFrame]) -> FeatureSequence:
        times: list[float] = []
        rows: list[int] = []  # of each step its vector's, -1 without a face
        vectors: list[np.ndarray] = []
        crops: list[np.ndarray] = []
        image, found = None, 0
        for time, shown, landmarks in followed:
            if shown is not image:  # a frame that repeats is encoded once
                image = shown
                if landmarks is not None:
                    crops.append(self._prepare(shown, to_pixels(landmarks, FACE_POINTS, shown)[:, :2] * (1, -1)))
                    found += 1
            times.append(time)
            rows.append(found - 1 if landmarks is not None else -1)
            if len(crops) == BATCH_FRAMES:
                vectors.append(self._encode(crops))
                crops.clear()
        if crops:
            vectors.append(self._encode(crops))
        valid = np.array(rows) >= 0
        values = np.zeros((len(rows), len(self.feature_names)), np.float32)
        if vectors:
            values[valid] = np.concatenate(vectors)[np.array(rows)[valid]]
        return frame_steps(values, times, valid, self.fps)

    def _prepare(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        """[3, S, S] float32, the model's input for the face at `points` [P, 2], x and y down, in pixels."""
        import torch

        crop = torch.from_numpy(crop_square(image, points, self.margin)).permute(2, 0, 1)[None].float()
        size = (self.side, self.side)
        scaled = torch.nn.functional.interpolate(crop, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = scaled[0].clamp(0, 255).numpy() / 255
        return (pixels - self._mean[:, None, None]) / self._deviation[:, None, None]

    def _encode(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """[F, D] of the crops [3, S, S]."""
        import torch

        if self._loaded is None:
            model = load_model(self.folder)
            self._loaded = getattr(model, "vision_model", model)
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(crops)).to(next(self._loaded.parameters()).device)
            output = self._loaded(pixel_values=pixels)
            vectors = output.pooler_output if self._clip else output.last_hidden_state[:, 0]
        return vectors.cpu().numpy()


def crop_square(image: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """[N, N, 3] square of an RGB image [H, W, 3] around `points` [P, 2], x and y down, black outside the image.

    N is the longer side of the points' box, plus `margin` times that on either side.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(1, math.ceil((high - low).max() * (1 + 2 * margin)))
    left, top = np.floor((low + high - side) / 2).astype(int)
    square = np.zeros((side, side, 3), np.uint8)
    rows = slice(max(top, 0), min(top + side, image.shape[0]))
    columns = slice(max(left, 0), min(left + side, image.shape[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        square[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = image[rows, columns]
    return square


def read_preprocessor(folder: Path) -> tuple[int, np.ndarray, np.ndarray]:
    """Side of the model's input in pixels, mean and deviation [3] of its colours, from `preprocessor_config.json`.

    Raises:
        ValueError: no such file, or it does not say.
    """
    path = folder / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = (said.get("crop_size") if said.get("do_center_crop", True) else None) or said.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not size or "image_mean" not in said or "image_std" not in said:
        raise ValueError(
            f"{path} must give crop_size or size, image_mean and image_std; copy the file of the model's hub page"
        )
    return int(size), np.array(said["image_mean"], np.float32), np.array(said["image_std"], np.float32)
