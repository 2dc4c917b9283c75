"""Comparison of an environment with that of a training, by the features of a reference clip in the checkpoint.

Extractors of the same version, options and model files are accepted with any version of their libraries. So the clip is
extracted once in each environment, and its features are compared with those of the training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.checkpoint.description import REFERENCE
from model.data.info import format_versions
from model.files import atomic_file, sha256_of
from model.prediction.protocol import Note

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

TOLERANCE = 0.01
"""Difference up to which features count as equal; see `difference`. Rounding causes less than 0.001."""

LIMIT = 0.5
"""Difference above which features are not those that the network was trained on."""

MAX_STEPS_CHANGED = 0.1
"""Largest relative difference of the numbers of steps, at which times merely round differently."""


def check_reference(folder: Path, description: Mapping[str, Any], maker: Any, allow: bool) -> Note | None:
    """Compare the features of the reference clip here with those of the training.

    Args:
        folder: Checkpoint folder.
        description: Content of its checkpoint.json.
        maker: A `FeatureMaker`; one of another package may not support this and is not checked.
        allow: Whether to accept any difference.

    Returns:
        A warning for every prediction if the features differ; None if they are equal or cannot be compared.

    Raises:
        ValueError: The features differ by more than `LIMIT`, or a file is damaged.
    """
    if not hasattr(maker, "reproduce_reference"):
        return None
    if not (Path(folder) / REFERENCE).is_dir():
        log.warning(
            "%s: this checkpoint has no reference clip, by which the extractors here could be compared with those of "
            "its training; checkpoints that are trained now have one",
            folder,
        )
        return None
    found = compare(folder, description, maker)
    modality = max(found, key=lambda m: found[m], default="")
    if not modality or found[modality] <= TOLERANCE:
        return None
    trained = description["dataset"]["modalities"][modality].get("versions", {})
    message = (
        f"{modality} features of the checkpoint's reference clip differ by {found[modality]:.2g} standard deviations "
        f"from those of the training, which had {format_versions(trained)}; "
        f"here are {format_versions(maker.versions.get(modality, {}))}"
    )
    if found[modality] > LIMIT and not allow:
        raise ValueError(
            f"{message}; install the versions of the training, train again, or accept the difference with "
            "--allow-different-features (Predictor: allow_different_features=True)"
        )
    log.warning(message)
    return Note("features_differ", message)


def compare(folder: Path, description: Mapping[str, Any], maker: Any) -> dict[str, float]:
    """Return the `difference` of each modality, from the user's cache if this environment was compared before."""
    paths = sorted((Path(folder) / REFERENCE).glob("*.safetensors"))
    environment = [maker.versions, platform.python_version(), platform.platform(), platform.processor()]
    key = json.dumps([[(path.name, sha256_of(path)) for path in paths], environment], sort_keys=True)
    cached = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        known: dict[str, float] = json.loads(cached.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    else:
        return known
    here = maker.reproduce_reference(Path(folder) / REFERENCE)
    found = {
        path.stem: difference(_values(path), here[path.stem], _scale(path, description))
        for path in paths
        if path.stem in here
    }
    try:
        with atomic_file(cached) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    except OSError:  # no home, or read-only: compared again next time
        log.debug("%s cannot be written", cached)
    return found


def difference(trained: np.ndarray, here: np.ndarray, scale: np.ndarray) -> float:
    """Return the largest mean absolute difference of a feature [T, D], in units of `scale` [D]; inf for other shapes.

    The mean over the steps, because one step more or less that counts as voiced, or as a face, is no other feature.
    """
    steps = min(len(trained), len(here))
    if trained.shape[1] != here.shape[1] or not steps:
        return float("inf")
    if abs(len(trained) - len(here)) > max(1.0, MAX_STEPS_CHANGED * len(trained)):
        return float("inf")
    return float((np.abs(trained[:steps] - here[:steps]).mean(axis=0) / scale).max())


def _scale(path: Path, description: Mapping[str, Any]) -> np.ndarray:
    """Return each feature's standard deviation over the training clips; for text, that of all its features here.

    The training clips' audio may have been standardised, which the clip's is not: then it is that of the feature here.
    """
    values = _values(path)
    statistics = description["dataset"]["statistics"].get(path.stem)
    if path.stem == "audio" and description["dataset"].get("normalise_audio", "none") != "none":
        statistics = {"std": values.std(axis=0)}
    spread = np.full(values.shape[1], values.std()) if statistics is None else np.asarray(statistics["std"])
    nearly_constant = np.maximum(0.01 * np.abs(values).max(axis=0), 1e-6)
    scale: np.ndarray = np.maximum(spread, nearly_constant)
    return scale


def _values(path: Path) -> np.ndarray:
    import safetensors.numpy
    from safetensors import SafetensorError

    try:
        values: np.ndarray = safetensors.numpy.load_file(path)["values"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error}); copy the checkpoint again") from error
    return values


def _cache_folder() -> Path:
    """Return the user's cache folder, or a path that cannot be written if the user has no home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a container's user without an entry in the table of users
        base = Path(os.devnull)
    return base / "dashfusion" / REFERENCE
