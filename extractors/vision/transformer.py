"""Facial features from a pre-trained image encoder: one vector for the face in each frame.

Shapes: F frames with a face, H, W height and width of a frame, S side of the model's input in pixels, D width of the
model.
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Identity,
    Source,
    extract_each,
)
from extractors.huggingface import MODEL_LIBRARIES, find_model, fingerprint, hidden_names, load_model, read_config
from extractors.vision.face_bundle import find_bundle
from extractors.vision.face_tracking import FaceTracker, TrackedFrame, check_face_options, frame_steps
from media.video import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 3

KINDS = ("vit", "dinov2", "clip", "clip_vision_model")

CLIP_WIDTH = 768
"""Width of CLIP's image encoder, which its configuration omits if it is the library's default."""

BATCH_FRAMES = 32
"""Maximum number of faces that are encoded at once."""

FACE_POINTS = 468
"""Number of landmarks that determine the face's box: all except the irises, which come last."""


class TransformerVision:
    """`vision.transformer`: output of a CLIP, DINOv2 or ViT encoder for the face tracked by mediapipe, in float32.

    The face is cropped to the square around its landmarks, enlarged by `margin` and black outside the frame,
    then scaled to the model's input (bicubic, antialiased) and normalised with the mean and deviation of the model's
    `preprocessor_config.json`. The feature vector is the class token of the output for ViT and DINOv2, and the class
    token after the final normalisation for CLIP.

    A frame without a face is an invalid step of zeros. mediapipe and the weights are loaded with the first clip, the
    weights onto a GPU if there is one.

    Args:
        model: a folder with a Hugging Face model, or an id on its hub.
        fps: frames to process per second; steps are exactly 1 / fps apart.
        margin: width added on each side of the face's box, as a fraction of its longer side.
        min_confidence: minimum score of a detected or tracked face.

    Raises:
        ValueError: an option is out of range, or the model cannot be found or used.
    """

    modality = "vision"
    description = FeatureDescription(
        source="transformers: CLIP's image encoder, DINOv2 or ViT, on the face that MediaPipe's landmarker finds (of "
        f"several the largest that is present consistently) in frames scaled down to at most {MAX_SIDE} pixels: its "
        "square box enlarged by `margin`, scaled to the model's input, and normalised with the mean and deviation of "
        "the model's `preprocessor_config.json`",
        rate="`fps`; frames are repeated if the video has fewer; a step starts at its frame's time and lasts 1 / `fps`",
        window="one frame",
        valid="a face is detected; other steps are zeros",
        features=(
            Feature(
                ("hidden_*",),
                "class token of the model's output (CLIP: after the final normalisation), one feature per dimension",
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
        self._bundle = find_bundle()
        self._tracker = FaceTracker(self._bundle, float(min_confidence))
        self._options = {
            "model": model,
            "fps": self.fps,
            "margin": self.margin,
            "min_confidence": float(min_confidence),
        }

    @cached_property
    def identity(self) -> Identity:
        """What decides the output; the first access reads the weights."""
        weights = f"{fingerprint(self.folder)} {sha256_of(self._bundle)} {MAX_SIDE}"
        libraries = (*MODEL_LIBRARIES, "mediapipe", "av", "numpy")
        return Identity("vision.transformer", VERSION, self._options, weights, libraries)

    @property
    def signature(self) -> str:
        """Signature of the output."""
        return self.identity.signature

    @cached_property
    def _model(self) -> Any:
        model = load_model(self.folder)
        return getattr(model, "vision_model", model)

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Yield one result per source, in order."""
        return extract_each(sources, self._extract)

    def _extract(self, media: Path) -> FeatureSequence:
        return self._tracker.track(media, self.fps, self._collect)

    def _collect(self, frames: Iterator[TrackedFrame]) -> FeatureSequence:
        times: list[float] = []
        rows: list[int] = []  # index of each step's vector, -1 without a face
        vectors: list[np.ndarray] = []
        crops: list[np.ndarray] = []
        previous, count = None, 0
        for time, image, face in frames:
            if image is not previous:  # a repeated frame is encoded once
                previous = image
                if face is not None:
                    crops.append(self._prepare(image, face.points[:FACE_POINTS, :2] * (1, -1)))
                    count += 1
            times.append(time)
            rows.append(count - 1 if face is not None else -1)
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
        """Return the model's input [3, S, S] float32 for the face at `points` [P, 2] in pixels, x right and y down."""
        import torch

        crop = torch.from_numpy(crop_square(image, points, self.margin)).permute(2, 0, 1)[None].float()
        size = (self.side, self.side)
        scaled = torch.nn.functional.interpolate(crop, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = scaled[0].clamp(0, 255).numpy() / 255
        normalised: np.ndarray = (pixels - self._mean[:, None, None]) / self._deviation[:, None, None]
        return normalised

    def _encode(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Return the feature vectors [F, D] of the crops [3, S, S]."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(crops)).to(next(self._model.parameters()).device)
            output = self._model(pixel_values=pixels)
            vectors = output.pooler_output if self._clip else output.last_hidden_state[:, 0]
        array: np.ndarray = vectors.cpu().numpy()
        return array


def crop_square(image: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Crop the square [N, N, 3] around points from an RGB image, black outside the image.

    Args:
        image: [H, W, 3].
        points: [P, 2] in pixels, x right and y down.
        margin: width added on either side of the points' box, as a fraction of its longer side.
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
    """Read the side of the model's input in pixels and its mean and deviation [3] from `preprocessor_config.json`.

    Raises:
        ValueError: the file is missing or incomplete.
    """
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    size = (config.get("crop_size") if config.get("do_center_crop", True) else None) or config.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not size or "image_mean" not in config or "image_std" not in config:
        raise ValueError(
            f"{path} must give crop_size or size, image_mean and image_std; copy the file from the model's hub page"
        )
    return int(size), np.array(config["image_mean"], np.float32), np.array(config["image_std"], np.float32)
