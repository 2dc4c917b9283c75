"""Clips on their time axis with the network's attention, for reports and notebooks.

The attention of the temporal alignment shows where the network looks, not what moves its prediction. The effect of a
modality is the change of the prediction without it (`prediction_without_<modality>` of `model.evaluate`).

Shapes: N clips of a split, B clips of a batch, T steps of a clip in a modality, D features, F selected features, W
words, K tokens, M modalities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES
from model.data.batching import sorted_batches
from model.data.clips import ClipTable
from model.data.info import NORMALISED
from model.data.sequences import read_column
from model.device import resolve_device
from model.evaluation.metrics import correlation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.data.tokens import TextBackbone
    from model.network.base import Network

MAX_FEATURES = 3
"""Selected features of a modality."""

MAX_CORRELATION = 0.8
"""Correlation of clip means above which two features are redundant, so that only one is selected."""

NUMBERED = re.compile(r"_\d+(_|$)")
"""Names such as landmark_50_y, which tell a reader less than mouth_width; their correlation counts half."""

BATCH_SIZE = 32

NO_TEXT = "the network was trained without text (train.modalities)"
NO_WORDS = "the text features came without the words that they are of"
"""Reasons why there is no attention to show."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of audio or vision.

    Attributes:
        column: of the feature values.
        name: of the feature.
        correlation: of its clip means with the labels; None if undefined.
    """

    column: int
    name: str
    correlation: float | None


@dataclass(frozen=True, slots=True)
class Track:
    """One modality of a clip in time.

    Attributes:
        start_T: start of each step, seconds from the clip's start.
        end_T: end of each step, seconds from the clip's start.
        visible_T: bool, True where the step is visible to the network.
        values_TF: the selected features, in standard deviations from the mean of the training split.
    """

    start_T: np.ndarray
    end_T: np.ndarray
    visible_T: np.ndarray
    values_TF: np.ndarray


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention weights between the words of a clip and the steps of another modality.

    With text as the anchor, the words attend to the steps, and each row with its `cls_W` sums to 1. With the other
    modality as the anchor, its steps attend to the words.

    Attributes:
        steps_WT: weight of each step.
        cls_W: weight of the modality's [CLS], which has no time.
    """

    steps_WT: np.ndarray
    cls_W: np.ndarray


@dataclass(frozen=True, slots=True)
class ClipView:
    """One clip, ready to be drawn.

    Attributes:
        word_times_W2: start and end of each word of the transcript, NaN where unknown.
        tracks: modality -> its steps; modalities that the clip lacks are left out.
        attention: modality -> attention between the words and its steps; empty if there is none.
        anchors: modality -> its weight as the anchor; only for an adaptive alignment.
    """

    word_times_W2: np.ndarray
    tracks: Mapping[str, Track] = field(default_factory=dict)
    attention: Mapping[str, Attention] = field(default_factory=dict)
    anchors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Clips of a split as seen by one checkpoint.

    Attributes:
        views: clip id -> the clip.
        features: modality -> the features in the tracks.
        anchor: of the alignment, `model.anchor`.
        no_attention_reason: why no clip has attention; empty if clips have it.
    """

    views: Mapping[str, ClipView]
    features: Mapping[str, Sequence[Feature]]
    anchor: str
    no_attention_reason: str = ""


def explain(
    dataset: Path, folder: Path, split: str, words: Mapping[str, Sequence[str]], device: str = "auto"
) -> Explanation:
    """Explain clips of a split by one checkpoint.

    Args:
        dataset: folder of the dataset.
        folder: the checkpoint.
        split: of the dataset.
        words: clip id -> the words of its transcript, which the dataset's `text_word_index` refers to.
        device: of the network, see `TrainConfig`.

    Raises:
        FileNotFoundError: no dataset or no checkpoint there.
        ValueError: a clip that the split does not have, or a checkpoint that does not fit the dataset.
    """
    network, info = load_checkpoint(folder, resolve_device(device))
    table = ClipTable.read(dataset, split, info.model.max_positions, text=network.text)
    info.check_compatible(table.info)
    row_of = {clip_id: row for row, clip_id in enumerate(table.clip_ids)}
    unknown = [clip_id for clip_id in words if clip_id not in row_of]
    if unknown:
        raise ValueError(f"{dataset}: the {split} split has no clip {unknown[0]}; name clips of that split")
    rows = [row_of[clip_id] for clip_id in words]
    features: dict[str, list[Feature]] = {
        m: informative_features(table, m) for m in NORMALISED if m in info.train.modalities
    }
    times = _StoredTimes(dataset, split, table)
    attention: dict[int, dict[str, Attention]] = {}
    anchors: dict[int, dict[str, float]] = {}
    reason = _no_attention_reason(network, info.train.modalities)
    if not reason:
        tokens = {row: times.word_of_token(row, words[table.clip_ids[row]], network.text) for row in rows}
        reason = "" if any((index_K >= 0).any() for index_K in tokens.values()) else NO_WORDS
        counts = {row: len(words[table.clip_ids[row]]) for row in rows}
        attention, anchors = _attention(network, table, info.train.modalities, tokens, counts)
    views = {
        table.clip_ids[row]: ClipView(
            word_times_W2=times.word_times(row, len(words[table.clip_ids[row]])),
            tracks={m: times.track(row, m, features[m]) for m in features if table.sequences[m].lengths[row]},
            attention=attention.get(row, {}) if not reason else {},
            anchors=anchors.get(row, {}),
        )
        for row in rows
    }
    return Explanation(views, features, info.model.anchor, reason)


def _no_attention_reason(network: Network, modalities: Sequence[str]) -> str:
    """Return why a network cannot have attention between words and steps; empty if it can."""
    return network.no_attention_reason or ("" if "text" in modalities else NO_TEXT)


def informative_features(table: ClipTable, modality: str, count: int = MAX_FEATURES) -> list[Feature]:
    """Select up to `count` features whose clip means correlate most with the label, without redundant ones.

    The correlation of features with `NUMBERED` names counts half. Without labels, or if nothing correlates, features
    are ranked by the variation of their clip means, in units of the training statistics.
    """
    info, statistics = table.info.modalities[modality], table.info.statistics[modality]
    mean_ND = (_clip_means(table, modality) - np.array(statistics.mean)) / np.array(statistics.std)
    has_N = np.isfinite(mean_ND).all(axis=1)
    if not has_N.any():
        return []
    labelled_N = has_N & table.labelled
    correlation_D = [correlation(column[labelled_N], table.labels[labelled_N]) for column in mean_ND.T]
    strength_D = np.array([0.0 if value is None else abs(value) for value in correlation_D])
    if not strength_D.any():
        strength_D = mean_ND[has_N].std(axis=0)
    strength_D *= [0.5 if NUMBERED.search(name) else 1.0 for name in info.feature_names]
    chosen: list[int] = []
    for column in np.argsort(-strength_D, kind="stable").tolist():
        with_chosen = (correlation(mean_ND[has_N, column], mean_ND[has_N, other]) for other in chosen)
        if all(value is None or abs(value) <= MAX_CORRELATION for value in with_chosen):
            chosen.append(column)
        if len(chosen) == count:
            break
    return [Feature(column, info.feature_names[column], correlation_D[column]) for column in chosen]


def _clip_means(table: ClipTable, modality: str) -> np.ndarray:
    """Average each clip over its visible steps, [N, D]; NaN for a clip without any."""
    sequences = table.sequences[modality]
    mean_ND = np.full((len(table), sequences.values.shape[1]), np.nan)
    for row, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=True)):
        steps = slice(start, start + length)
        if sequences.visible[steps].any():
            mean_ND[row] = sequences.values[steps][sequences.visible[steps]].mean(axis=0, dtype=np.float64)
    sequences.release()
    return mean_ND


class _StoredTimes:
    """The dataset's columns beside the features: times of the steps, and the word of each token."""

    def __init__(self, dataset: Path, split: str, table: ClipTable) -> None:
        self.table = table
        self._parts = sorted((Path(dataset) / split).glob("part-*.parquet"))
        self._columns: dict[str, Any] = {}

    def _value(self, row: int, column: str) -> Any:
        if column not in self._columns:
            self._columns[column] = read_column(self._parts, column)
        return self._columns[column][row]

    def _list(self, row: int, column: str) -> np.ndarray:
        values: np.ndarray = self._value(row, column).values.to_numpy(zero_copy_only=False)
        return values

    def word_times(self, row: int, words: int) -> np.ndarray:
        """Return start and end of each word's first token, [W, 2]."""
        index_K = self._list(row, "text_word_index")
        times_W2 = np.full((words, 2), np.nan)
        for token in np.flatnonzero((index_K >= 0) & (index_K < words))[::-1]:
            times_W2[index_K[token]] = [self._list(row, f"text_{edge}")[token] for edge in ("start", "end")]
        return times_W2

    def word_of_token(self, row: int, words: Sequence[str], text: TextBackbone | None) -> np.ndarray:
        """Return the word of each token that the network reads, [K], -1 for special tokens."""
        length = self.table.sequences["text"].lengths[row]
        if text is None or text.stored:
            return self._list(row, "text_word_index")[:length]
        return words_of_tokens(text, self._value(row, "text").as_py(), words) if length else np.zeros(0, np.int64)

    def track(self, row: int, modality: str, features: Sequence[Feature]) -> Track:
        """Return the steps of a clip with the given features."""
        sequences, statistics = self.table.sequences[modality], self.table.info.statistics[modality]
        length = int(sequences.lengths[row])
        steps = slice(sequences.starts[row], sequences.starts[row] + length)
        columns = [feature.column for feature in features]
        mean_F, std_F = (np.array(values)[columns] for values in (statistics.mean, statistics.std))
        return Track(
            start_T=self._list(row, f"{modality}_start")[:length],
            end_T=self._list(row, f"{modality}_end")[:length],
            visible_T=sequences.visible[steps] & self._has_time(row, length),
            values_TF=(sequences.values[steps][:, columns] - mean_F) / std_F,
        )

    def _has_time(self, row: int, length: int) -> np.ndarray:
        """Return [T] bool, False for steps pooled onto a special token, which represents the whole clip."""
        index_K = self._list(row, "text_word_index")
        pooled = self.table.info.mode == "aligned" and len(index_K) >= length and (index_K >= 0).any()
        return index_K[:length] >= 0 if pooled else np.ones(length, bool)


def words_of_tokens(text: TextBackbone, transcript: str, words: Sequence[str]) -> np.ndarray:
    """Return the word in which each token of a transcript begins, [K], -1 for special tokens and text between words.

    Args:
        text: with the tokenizer.
        transcript: to tokenise.
        words: in the order of the transcript; a word that is not found there has no tokens.
    """
    # Match words to characters
    word_of_character = np.full(len(transcript) + 1, -1)
    end = 0
    for number, word in enumerate(words):
        start = transcript.find(word, end)
        if start >= 0:
            end = start + len(word)
            word_of_character[start:end] = number

    # Match tokens to words; a token may begin with the space before its word
    offsets = text.tokenizer.encode(transcript).offsets
    return np.array([next((w for w in word_of_character[a:b] if w >= 0), -1) for a, b in offsets], np.int64)


@torch.inference_mode()
def _attention(
    network: Network,
    table: ClipTable,
    modalities: Sequence[str],
    tokens: Mapping[int, np.ndarray],
    words: Mapping[int, int],
) -> tuple[dict[int, dict[str, Attention]], dict[int, dict[str, float]]]:
    """Compute the attention and the adaptive anchor weights of some rows of the table.

    Args:
        network: in eval mode.
        table: of the split.
        modalities: those that the network is shown.
        tokens: row -> the word of each token [K].
        words: row -> W.

    Returns:
        Row -> modality -> attention; row -> modality -> anchor weight, empty unless the alignment is adaptive.
    """
    device, rows = next(network.parameters()).device, np.array(list(tokens), np.int64)
    attention: dict[int, dict[str, Attention]] = {}
    anchors: dict[int, dict[str, float]] = {}
    for chosen in sorted_batches(table.lengths(modalities)[rows], BATCH_SIZE):
        batch = table.batch(rows[chosen], modalities).to(device)
        shown = network.attention(batch)
        for i, row in enumerate(rows[chosen].tolist()):
            lengths = {m: int(table.sequences[m].lengths[row]) if m in modalities else 0 for m in MODALITIES}
            attention[row] = {
                m: _merge_tokens(
                    weight_BKT[i].cpu().numpy(),
                    tokens[row],
                    words[row],
                    lengths[m],
                    average=network.config.anchor != m,
                )
                for m, weight_BKT in shown.weights.items()
                if lengths[m] and (tokens[row] >= 0).any()
            }
            if shown.anchors is not None:
                anchors[row] = {m: float(shown.anchors[i, k]) for k, m in enumerate(MODALITIES) if m in modalities}
    return attention, anchors


def _merge_tokens(weight_KT: np.ndarray, word_K: np.ndarray, words: int, steps: int, average: bool) -> Attention:
    """Merge the weights of the tokens of each word.

    Args:
        weight_KT: T includes [CLS], which is first; K and T may be padded.
        word_K: word of each token, -1 for special tokens.
        words: W.
        steps: of the clip, without [CLS].
        average: average the tokens' weights, for words that attend; False sums them, for words that are attended to.
    """
    member_WK = (np.arange(words)[:, None] == word_K).astype(np.float64)
    if average:
        member_WK /= np.maximum(member_WK.sum(axis=1, keepdims=True), 1)
    weight_WT = member_WK @ weight_KT[: len(word_K), : steps + 1]
    return Attention(weight_WT[:, 1:], weight_WT[:, 0])
