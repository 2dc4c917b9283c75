"""Pre-trained transformers from a folder or the Hugging Face hub: finding, identifying and loading them."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpora.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LAST_FOUR = "last_four"
"""Choice of `layer`: the mean of the last four hidden states."""

_CONFIG_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")
_COUNTS = ("encoder_layers", "num_hidden_layers", "n_layers", "n_layer", "num_layers")


def find_model(model: str, installed: Mapping[str, Callable[[], Path]] | None = None) -> Path:
    """Folder of a model with its weights: one that a package brought, a local folder, or a snapshot of a hub's id.

    Args:
        installed: names of models that come with packages, and what finds them.

    Raises:
        ValueError: nothing there, or the installed model is not the one that it should be.
    """
    installed = installed or {}
    if not isinstance(model, str) or not model:
        ways = [*(repr(name) for name in installed), "a folder"]
        raise ValueError(f"model must be {', '.join(ways)} or a Hugging Face id, found {model!r}")
    if model in installed:
        return installed[model]()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not _weight_files(folder):
            raise ValueError(
                f"model {model!r}: the folder has no config.json with weights ({' or '.join(_WEIGHTS)}) "
                "beside it; give the folder that `save_pretrained` wrote"
            )
        return folder
    return _find_snapshot(model, "".join(f", or {name!r}, which is installed" for name in installed))


def _find_snapshot(model: str, other_way: str) -> Path:
    """What the hub's cache has already, else a download; safetensors where the hub has them."""
    from huggingface_hub import snapshot_download

    reason: Exception | None = None
    for offline in (True, False):
        for weights in _WEIGHTS:
            wanted = [*_CONFIG_FILES, weights]
            try:
                folder = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=offline))
            except (OSError, ValueError) as error:
                reason = error
                continue
            if (folder / "config.json").is_file() and _weight_files(folder):
                return folder
    raise ValueError(
        f"model {model!r} is neither a folder nor in the local cache, and the Hugging Face hub could not be "
        f"reached or does not have it; give the path of a local folder{other_way}"
    ) from reason


def _weight_files(folder: Path) -> list[Path]:
    """The files that would be loaded: safetensors before pickles."""
    return next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def fingerprint(folder: Path) -> str:
    """What a signature says of a model: hash over weights, configuration and tokenizer; the library's version."""
    files = {path for pattern in _CONFIG_FILES for path in folder.glob(pattern)} | {*_weight_files(folder)}
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return f"{whole.hexdigest()} transformers {version('transformers')}"


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def hidden_names(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """`hidden_0` and on, one name for each column of the hidden states.

    Raises:
        ValueError: the configuration names no width.
    """
    width = next((config[key] for key in _WIDTHS if key in config), None)
    if width is None:
        raise ValueError(f"{folder / 'config.json'} names no hidden_size; choose an encoder")
    return tuple(f"hidden_{i}" for i in range(width))


def choose_layers(layer: int | str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Indices from the end, -1 the last, of the hidden states whose mean is taken; 0 is what enters layer 1.

    Raises:
        ValueError: `layer` is neither `last_four` nor a layer that the model has.
    """
    count = next((config[key] for key in _COUNTS if key in config), 0)
    if layer == LAST_FOUR and count >= 4:
        return (-4, -3, -2, -1)
    whole = isinstance(layer, int) and not isinstance(layer, bool)
    if not whole or not (layer == -1 or -count - 1 <= layer <= count):
        choices = f"-1, or between {-count - 1} and {count}"
        raise ValueError(
            f"layer must be a whole number ({choices} here) or {LAST_FOUR!r} (of four layers or more), found {layer!r}"
        )
    return (layer if layer < 0 else layer - count - 1,)


def load_model(folder: Path) -> Any:
    """The encoder, in float32 and evaluation mode, on a GPU where there is one."""
    import torch
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its own, of every weight that is copied
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    return encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def hidden_states(model: Any, layers: Sequence[int], **inputs: Any) -> Any:
    """[B, T, D] numpy array: the mean of the hidden states `layers` (see `choose_layers`) of a batch of tensors."""
    import torch

    only_last = tuple(layers) == (-1,)
    with torch.inference_mode():
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        output = model(**inputs, output_hidden_states=not only_last)
        if only_last:
            return output.last_hidden_state.cpu().numpy()
        return torch.stack([output.hidden_states[layer] for layer in layers]).mean(dim=0).cpu().numpy()


def batch_limit(model: Any, limit: int) -> int:
    """`limit` where the model is on a GPU; 0 on a CPU, where batches save little and cost what they are padded with.

    What is encoded alone has the same bytes whatever is left to do; on a GPU the last bits hang on its batch.
    """
    return 0 if model.device.type == "cpu" else limit


def make_batches(lengths: Mapping[int, int], limit: int, only_equal: bool = False) -> list[list[int]]:
    """Keys of `lengths` in batches of like length, none over `limit` in sum once padded, except one alone.

    Args:
        only_equal: nothing may be padded, so that a batch holds one length.
    """
    batches: list[list[int]] = []
    for key in sorted(lengths, key=lambda key: lengths[key]):
        fits = batches and (len(batches[-1]) + 1) * lengths[key] <= limit
        if fits and not (only_equal and lengths[batches[-1][0]] != lengths[key]):
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches
