"""A clip on its time axis, and what the network looks at in it: for pages and notebooks.

The attention of the temporal alignment says where the network looks, not what moves its prediction: how much a modality
moves it is what the prediction changes by without it (`model.evaluate`, `prediction_without_<modality>`).

Shapes: N clips of a split, T steps of a clip in a modality, D features, F features that are shown, W words, K tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES
from model.data.batching import sorted_batches
from model.data.clips import ClipTable
from model.data.info import NORMALISED
from model.data.sequences import read_column
from model.device import resolve_device
from model.evaluation.metrics import correlation
from model.network.alignment import AdaptiveAlignment, NoAlignment, SymmetricAlignment, TemporalAlignment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from model.data.batch import Batch
    from model.data.tokens import TextBackbone
    from model.network.dashfusion import DashFusion
    from model.network.layers import MaskedSequence

FEATURES = 3
"""Features of a modality that are shown."""

ALIKE = 0.8
"""Features whose clip means correlate by more than so much say the same: one of them is shown."""

NUMBERED = re.compile(r"_\d+(_|$)")
"""Names such as landmark_50_y, which tell a reader less than mouth_width: their correlation counts half."""

BATCH = 32

NO_ALIGNMENT = "the network has no temporal alignment (model.alignment: false)"
NO_TEXT = "the network was trained without text (train.modalities)"
NO_WORDS = "the text features came without the words that they are of"
"""Why there is no attention."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of audio or vision: its column, its name, and how its clip means correlate with the labels."""

    column: int
    name: str
    correlation: float | None


@dataclass(frozen=True, slots=True)
class Track:
    """One modality of a clip in time.

    Attributes:
        start_T, end_T: seconds from the clip's start.
        visible_T: the steps that the network sees.
        values_TF: of the features that are shown, in standard deviations from the mean over the training split.
    """

    start_T: np.ndarray
    end_T: np.ndarray
    visible_T: np.ndarray
    values_TF: np.ndarray


@dataclass(frozen=True, slots=True)
class Attention:
    """What the words of a clip look at in another modality; or, where that is the anchor, what of it looks at them.

    Attributes:
        steps_WT: weight of each step. Of a word as the anchor, a share: with `cls_W` they add up to 1.
        cls_W: weight of the modality's summary, [CLS], which stands for no moment.
    """

    steps_WT: np.ndarray
    cls_W: np.ndarray


@dataclass(frozen=True, slots=True)
class ClipView:
    """One clip as it can be drawn.

    Attributes:
        word_times_W2: start and end of each word of its transcript, NaN where unknown.
        tracks: modality -> its steps; without those that it lacks.
        attention: modality -> what the words look at in it; empty where there is none to be had.
        anchors: modality -> its share as the anchor of the alignment; of several anchors only.
    """

    word_times_W2: np.ndarray
    tracks: Mapping[str, Track] = field(default_factory=dict)
    attention: Mapping[str, Attention] = field(default_factory=dict)
    anchors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Some clips of a split, by id, and the features that their tracks have.

    Attributes:
        anchor: of the alignment, as in the checkpoint.
        no_attention_reason: why there is no attention at all; empty where there is.
    """

    views: Mapping[str, ClipView]
    features: Mapping[str, Sequence[Feature]]
    anchor: str
    no_attention_reason: str = ""


def explain(
    dataset: Path, folder: Path, split: str, words: Mapping[str, Sequence[str]], device: str = "auto"
) -> Explanation:
    """Views of some clips of a split by one checkpoint.

    Args:
        folder: the checkpoint.
        words: clip id -> the words of its transcript, in whose number the dataset's `text_word_index` counts.

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
    rows = np.array([row_of[clip_id] for clip_id in words], np.int64)
    features = {m: informative_features(table, m) for m in NORMALISED if m in info.train.modalities}
    clips = _StoredTimes(dataset, split, table)
    attention, anchors = {}, {}
    reason = _no_attention(network, info.train.modalities)
    if not reason:
        tokens = {row: clips.word_of_token(row, words[table.clip_ids[row]], network.text) for row in rows.tolist()}
        reason = "" if any((index_K >= 0).any() for index_K in tokens.values()) else NO_WORDS
        counts = {row: len(words[table.clip_ids[row]]) for row in rows.tolist()}
        attention, anchors = _attention(network, table, info.train.modalities, rows, tokens, counts)
    views = {
        table.clip_ids[row]: ClipView(
            word_times_W2=clips.word_times(row, len(words[table.clip_ids[row]])),
            tracks={m: clips.track(row, m, features[m]) for m in features if table.sequences[m].lengths[row]},
            attention=attention.get(row, {}) if not reason else {},
            anchors=anchors.get(row, {}),
        )
        for row in rows.tolist()
    }
    return Explanation(views, features, info.model.anchor, reason)


def _no_attention(network: DashFusion, modalities: Sequence[str]) -> str:
    """Why a network has no attention of words; empty where it may have."""
    if isinstance(network.alignment, NoAlignment):
        return NO_ALIGNMENT
    return "" if "text" in modalities else NO_TEXT


def informative_features(table: ClipTable, modality: str, most: int = FEATURES) -> list[Feature]:
    """The features whose clip means correlate most with the label, and do not say the same as one before.

    Of those with a number in place of a name the correlation counts half. Without labels, or where none correlates,
    those whose clip means vary most, by the training statistics.
    """
    info, statistics = table.info.modalities[modality], table.info.statistics[modality]
    mean_ND = (_clip_means(table, modality) - np.array(statistics.mean)) / np.array(statistics.std)
    has_N = np.isfinite(mean_ND).all(axis=1)
    if not has_N.any():
        return []
    labelled_N = has_N & table.labelled
    found_D = [correlation(column[labelled_N], table.labels[labelled_N]) for column in mean_ND.T]
    strength_D = np.array([0.0 if value is None else abs(value) for value in found_D])
    if not strength_D.any():
        strength_D = mean_ND[has_N].std(axis=0)
    strength_D *= [0.5 if NUMBERED.search(name) else 1.0 for name in info.feature_names]
    chosen: list[int] = []
    for column in np.argsort(-strength_D, kind="stable").tolist():
        alike = (correlation(mean_ND[has_N, column], mean_ND[has_N, other]) for other in chosen)
        if all(value is None or abs(value) <= ALIKE for value in alike):
            chosen.append(column)
        if len(chosen) == most:
            break
    return [Feature(column, info.feature_names[column], found_D[column]) for column in chosen]


def _clip_means(table: ClipTable, modality: str) -> np.ndarray:
    """[N, D] mean over a clip's visible steps, NaN where it has none."""
    sequences = table.sequences[modality]
    mean_ND = np.full((len(table), sequences.values.shape[1]), np.nan)
    for row, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=True)):
        steps = slice(start, start + length)
        if sequences.visible[steps].any():
            mean_ND[row] = sequences.values[steps][sequences.visible[steps]].mean(axis=0, dtype=np.float64)
    sequences.release()
    return mean_ND


class _StoredTimes:
    """What the dataset says of clips beside their features: times of steps, and which token is of which word."""

    def __init__(self, dataset: Path, split: str, table: ClipTable) -> None:
        self.table = table
        self._parts = sorted((Path(dataset) / split).glob("part-*.parquet"))
        self._columns: dict[str, Any] = {}

    def _of(self, row: int, column: str) -> Any:
        if column not in self._columns:
            self._columns[column] = read_column(self._parts, column)
        return self._columns[column][row]

    def _list(self, row: int, column: str) -> np.ndarray:
        return self._of(row, column).values.to_numpy(zero_copy_only=False)

    def word_times(self, row: int, words: int) -> np.ndarray:
        """[W, 2] the times of each word's first token."""
        index_K = self._list(row, "text_word_index")
        times_W2 = np.full((words, 2), np.nan)
        for token in np.flatnonzero((index_K >= 0) & (index_K < words))[::-1]:
            times_W2[index_K[token]] = [self._list(row, f"text_{edge}")[token] for edge in ("start", "end")]
        return times_W2

    def word_of_token(self, row: int, words: Sequence[str], text: TextBackbone | None) -> np.ndarray:
        """[K] the word of each token that the network reads, -1 for special ones."""
        length = self.table.sequences["text"].lengths[row]
        if text is None:
            return self._list(row, "text_word_index")[:length]
        return words_of_tokens(text, self._of(row, "text").as_py(), words) if length else np.zeros(0, np.int64)

    def track(self, row: int, modality: str, features: Sequence[Feature]) -> Track:
        sequences, statistics = self.table.sequences[modality], self.table.info.statistics[modality]
        length = int(sequences.lengths[row])
        steps = slice(sequences.starts[row], sequences.starts[row] + length)
        columns = [feature.column for feature in features]
        mean_F, std_F = (np.array(values)[columns] for values in (statistics.mean, statistics.std))
        return Track(
            start_T=self._list(row, f"{modality}_start")[:length],
            end_T=self._list(row, f"{modality}_end")[:length],
            visible_T=sequences.visible[steps] & self._has_a_time(row, length),
            values_TF=(sequences.values[steps][:, columns] - mean_F) / std_F,
        )

    def _has_a_time(self, row: int, length: int) -> np.ndarray:
        """[T] False for steps that are pooled onto a special token, which stands for the whole clip."""
        index_K = self._list(row, "text_word_index")
        pooled = self.table.info.mode == "aligned" and len(index_K) >= length and (index_K >= 0).any()
        return index_K[:length] >= 0 if pooled else np.ones(length, bool)


def words_of_tokens(text: TextBackbone, transcript: str, words: Sequence[str]) -> np.ndarray:
    """[K] the word in which each token of a transcript begins, -1 for special tokens and what is between words.

    Args:
        words: in their order in the transcript; one that is not found there has no tokens.
    """
    word_of = np.full(len(transcript) + 1, -1)
    at = 0
    for number, word in enumerate(words):
        found = transcript.find(word, at)
        if found >= 0:
            at = found + len(word)
            word_of[found:at] = number
    offsets = text.tokenizer.encode(transcript).offsets
    return np.array([_first_word(word_of[start:end]) for start, end in offsets], np.int64)


def _first_word(word_of: np.ndarray) -> int:
    """Of the characters of a token, which may begin with the space before a word."""
    inside = word_of[word_of >= 0]
    return int(inside[0]) if len(inside) else -1


@torch.inference_mode()
def _attention(
    network: DashFusion,
    table: ClipTable,
    modalities: Sequence[str],
    rows: np.ndarray,
    tokens: Mapping[int, np.ndarray],
    words: Mapping[int, int],
) -> tuple[dict[int, dict[str, Attention]], dict[int, dict[str, float]]]:
    """Of each row: modality -> its attention; and the anchors' shares, where there are several."""
    device = next(network.parameters()).device
    attention: dict[int, dict[str, Attention]] = {}
    anchors: dict[int, dict[str, float]] = {}
    for chosen in sorted_batches(table.lengths(modalities)[rows], BATCH):
        batch = table.batch(rows[chosen], modalities).to(device)
        weights, shares_BM = _weights(network.alignment, network.encode(batch), batch)
        for i, row in enumerate(rows[chosen].tolist()):
            lengths = {m: int(table.sequences[m].lengths[row]) if m in modalities else 0 for m in MODALITIES}
            found = {m: weight_BKT[i].cpu().numpy() for m, weight_BKT in weights.items()}
            attention[row] = {
                m: _by_word(weight_KT, tokens[row], words[row], lengths[m], shared=network.config.anchor != m)
                for m, weight_KT in found.items()
                if lengths[m] and (tokens[row] >= 0).any()
            }
            if shares_BM is not None:
                anchors[row] = {m: float(shares_BM[i, k]) for k, m in enumerate(MODALITIES) if m in modalities}
    return attention, anchors


def _weights(
    alignment: nn.Module, sequences: Mapping[str, MaskedSequence], batch: Batch
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Modality -> [B, K, T] between text's positions and its own, [CLS] first; of several anchors their shares [B, M].

    With text as the anchor, or one of several, what text looks at. With another anchor what of it looks at text: clips
    that lack that anchor have none.
    """
    if isinstance(alignment, SymmetricAlignment):
        adaptive = isinstance(alignment, AdaptiveAlignment)
        shares_BM = alignment.anchor_weights(sequences, batch.missing()) if adaptive else None
        of_text: TemporalAlignment = alignment.anchors[MODALITIES.index("text")]
        return of_text.weights(sequences, {}), shares_BM
    weights = alignment.weights(sequences, batch.missing())
    if alignment.anchor == "text":
        return weights, None
    anchor_T = sequences[alignment.anchor].values.shape[1]
    return {alignment.anchor: weights["text"][:, :anchor_T].mT}, None


def _by_word(weight_KT: np.ndarray, word_K: np.ndarray, words: int, steps: int, shared: bool) -> Attention:
    """Tokens merged into words: the mean of what they look at, the sum of what looks at them.

    Args:
        weight_KT: T counts [CLS], which comes first, and may be padded behind the clip's steps; so may K.
        shared: each token's weights add up to 1.
    """
    member_WK = (np.arange(words)[:, None] == word_K).astype(np.float64)
    if shared:
        member_WK /= np.maximum(member_WK.sum(axis=1, keepdims=True), 1)
    weight_WT = member_WK @ weight_KT[: len(word_K), : steps + 1]
    return Attention(weight_WT[:, 1:], weight_WT[:, 0])
