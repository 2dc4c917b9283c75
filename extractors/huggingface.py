"""Pre-trained Hugging Face models: finding, fingerprinting and loading them, and batches for their hidden states."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MODEL_LIBRARIES = ("transformers", "torch")
"""Distributions that compute a model's output."""

LAST_FOUR = "last_four"
"""Value of `layer` that selects the mean of the last four hidden states."""

_CONFIG_PATTERNS = ("*.json", "*.txt", "*.model")
_WEIGHT_PATTERNS = ("model*.safetensors", "pytorch_model*.bin")
_WIDTH_KEYS = ("hidden_size", "d_model", "dim", "n_embd")
_may_download = ContextVar("_may_download", default=True)
_LAYER_COUNT_KEYS = ("encoder_layers", "num_hidden_layers", "n_layers", "n_layer", "num_layers")


class ModelNotFoundError(ValueError):
    """A model is neither a folder nor in the local cache, and could not or may not be downloaded."""


@contextmanager
def downloads(allowed: bool) -> Iterator[None]:
    """Set whether `find_model` may download, as models that a checkpoint names are not the user's own choice."""
    token = _may_download.set(allowed)
    try:
        yield
    finally:
        _may_download.reset(token)


def find_model(model: str, installed: Mapping[str, Callable[[], Path]] | None = None) -> Path:
    """Return the folder with a model's configuration and weights.

    Args:
        model: key of `installed`, path of a local folder, or id on the Hugging Face hub (looked up in the local cache,
            then downloaded, unless `downloads` forbids it).
        installed: models that packages ship: name -> function that returns the folder.

    Raises:
        ModelNotFoundError: the model is neither a folder nor in the local cache, and cannot be downloaded.
        ValueError: the folder is not a model, or an installed one is damaged.
    """
    installed = installed or {}
    if not isinstance(model, str) or not model:
        choices = [*(repr(name) for name in installed), "a folder"]
        raise ValueError(f"model must be {', '.join(choices)} or a Hugging Face id, found {model!r}")
    if model in installed:
        return installed[model]()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not _weight_files(folder):
            raise ValueError(
                f"model {model!r}: the folder has no config.json with weights ({' or '.join(_WEIGHT_PATTERNS)}) "
                "beside it; give the folder that `save_pretrained` wrote"
            )
        return folder
    return _find_snapshot(model, "".join(f", or {name!r}, which is installed" for name in installed))


def _find_snapshot(model: str, alternative: str) -> Path:
    """Return the folder of a hub model in the local cache, downloading it if necessary and allowed.

    Safetensors take precedence over pickled weights.

    Args:
        model: id on the Hugging Face hub.
        alternative: end of the error message, naming models that need no download.
    """
    from huggingface_hub import snapshot_download

    cause: Exception | None = None
    for offline in (True, False) if _may_download.get() else (True,):  # the local cache first
        for weights in _WEIGHT_PATTERNS:
            patterns = [*_CONFIG_PATTERNS, weights]
            try:
                folder = Path(snapshot_download(model, allow_patterns=patterns, local_files_only=offline))
            except (OSError, ValueError) as error:
                cause = error
                continue
            if (folder / "config.json").is_file() and _weight_files(folder):
                return folder
    if _may_download.get():
        reason = "the Hugging Face hub could not be reached or does not have it; give the path of a local folder"
    else:
        reason = (
            "prediction downloads nothing unless told to; allow it with --allow-download (Predictor: "
            "allow_download=True), or give the path of a local folder"
        )
    raise ModelNotFoundError(
        f"model {model!r} is neither a folder nor in the local cache, and {reason}{alternative}"
    ) from cause


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files that transformers would load: safetensors if present, otherwise pickles."""
    return next((files for pattern in _WEIGHT_PATTERNS if (files := sorted(folder.glob(pattern)))), [])


def fingerprint(folder: Path) -> str:
    """Return a model's identifier for signatures: hash of weights, configuration and tokenizer."""
    files = {path for pattern in _CONFIG_PATTERNS for path in folder.glob(pattern)} | {*_weight_files(folder)}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Read the model's `config.json`."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def hidden_names(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the feature names `hidden_0`, `hidden_1`, ..., one for each column of the hidden states.

    Raises:
        ValueError: the configuration does not state the width of the hidden states.
    """
    width = next((config[key] for key in _WIDTH_KEYS if key in config), None)
    if width is None:
        raise ValueError(f"{folder / 'config.json'} names no hidden_size; choose an encoder")
    return tuple(f"hidden_{i}" for i in range(width))


def choose_layers(layer: int | str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the hidden states to average for the option `layer`, as negative indices; -1 is the model's output.

    Args:
        layer: index of a hidden state, 0 being the input of the first layer, or `last_four`.
        config: the model's configuration.

    Raises:
        ValueError: `layer` is neither `last_four` nor the index of a layer of this model.
    """
    count = next((config[key] for key in _LAYER_COUNT_KEYS if key in config), 0)
    if layer == LAST_FOUR and count >= 4:
        return (-4, -3, -2, -1)
    if isinstance(layer, int) and not isinstance(layer, bool) and (layer == -1 or -count - 1 <= layer <= count):
        return (layer if layer < 0 else layer - count - 1,)
    choices = f"-1, or between {-count - 1} and {count}"
    raise ValueError(
        f"layer must be a whole number ({choices} here) or {LAST_FOUR!r} (of four layers or more), found {layer!r}"
    )


def load_model(folder: Path, auto_class: str = "AutoModel") -> Any:
    """Load a model in float32 and evaluation mode, onto a GPU if there is one.

    Args:
        folder: from `find_model`.
        auto_class: name of the class in transformers; `AutoModel` gives only the encoder of an encoder-decoder.

    Raises:
        ValueError: the model needs its own Python code.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of the weights being loaded
    model = load_part(folder, auto_class, dtype=torch.float32)
    if auto_class == "AutoModel" and model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def load_part(folder: Path, auto_class: str, **options: Any) -> Any:
    """Load a model, tokenizer or feature extractor with a class of transformers, without the network.

    Python code in the folder is never run.

    Raises:
        ValueError: the part needs Python code of its own.
    """
    import transformers

    load = getattr(transformers, auto_class)
    try:
        return load.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{folder}: needs its own Python code to load, which is never run here; choose a model of a type that "
            "transformers itself supports"
        ) from error


def hidden_states(model: Any, layers: Sequence[int], **inputs: Any) -> Any:
    """Return the mean [B, T, D] of the hidden states `layers` (see `choose_layers`) for a batch of input tensors."""
    import torch

    only_last = tuple(layers) == (-1,)
    with torch.inference_mode():
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        output = model(**inputs, output_hidden_states=not only_last)
        if only_last:
            return output.last_hidden_state.cpu().numpy()
        return torch.stack([output.hidden_states[layer] for layer in layers]).mean(dim=0).cpu().numpy()


def batch_limit(model: Any, limit: int) -> int:
    """Return `limit` if the model is on a GPU, and 0, which means batches of one, on a CPU.

    On a CPU batches save little time and padding costs some. Encoded alone, a clip also gives the same bytes whichever
    other clips are left to do, whereas the last bits of a batched result depend on the batch.
    """
    return 0 if model.device.type == "cpu" else limit


def make_batches(lengths: Mapping[int, int], limit: int, only_equal: bool = False) -> list[list[int]]:
    """Group items of similar length into batches.

    Args:
        lengths: item -> length.
        limit: maximum padded size of a batch (items times the longest length); an item over it gets its own batch.
        only_equal: whether a batch may only hold items of one length, so that nothing is padded.
    """
    batches: list[list[int]] = []
    for key in sorted(lengths, key=lambda key: lengths[key]):
        fits = batches and (len(batches[-1]) + 1) * lengths[key] <= limit
        if fits and not (only_equal and lengths[batches[-1][0]] != lengths[key]):
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches
