"""Baselines that read the labels of the training split or its pooled text features, and nothing else.

A model that is not better than these has learned nothing for which audio, vision, alignment or fusion were needed. They
are fitted on the dataset alone: models of earlier versions are compared in the same way.

Shapes: N clips of the evaluated split, n labelled training clips, D text features, S seeds, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.data.info import read_info
from model.data.sequences import read_column, read_sequences
from model.evaluation.bootstrap import percentile_interval, resampled_groups, resampled_mean
from model.evaluation.crossed import crossed_draws, speaker_draws
from model.evaluation.metrics import WIDE, defined_metrics, within

if TYPE_CHECKING:
    from collections.abc import Mapping

Verdict = Literal["better", "worse", "undecided"]

MAJORITY = "majority_class"
MEAN = "mean_label"
MEDIAN = "median_label"
RIDGE = "ridge_text"

DECIDING = "mae"
"""Metric by which the verdict is given: the labels are scores, and every clip counts."""

_STRENGTHS = np.logspace(-3, 6, 37)
"""Candidates for the ridge's penalty, on standardised features."""

_MIN_STD = 1e-6
"""Standard deviation below which a feature is constant, and left out."""


@dataclass(frozen=True)
class Baselines:
    """Predictions of the baselines for a split.

    Attributes:
        prediction: Baseline -> [N]. That of `MAJORITY` is a polarity, 1 or -1, and no score.
        missing: Baseline that could not be fitted -> why.
        text_extractor: Extractor of the text features that the ridge reads: those of the dataset, also where the
            network reads tokens in their place.
    """

    prediction: Mapping[str, np.ndarray]
    missing: Mapping[str, str]
    text_extractor: str = ""


def polarity_metric(label_range: tuple[float, float]) -> str:
    """Return the key of Acc-2 that is shown beside the mean absolute error."""
    return "acc2_np" if tuple(label_range) == WIDE else "acc2"


def fit_baselines(dataset: Path, split: str, text: bool = True) -> Baselines:
    """Fit the baselines on the training split and predict a split.

    Args:
        dataset: Folder of the dataset.
        split: Split to predict.
        text: Whether the model to compare with reads text: otherwise there is no ridge on text.

    Raises:
        FileNotFoundError: No dataset there.
        ValueError: A damaged file.
    """
    info = read_info(dataset)
    parts = {name: sorted((Path(dataset) / name).glob("part-*.parquet")) for name in ("train", split)}
    label_n = _labels(parts["train"])
    known_n = np.isfinite(label_n)
    clips = sum(len(read_column([part], "clip_id")) for part in parts[split])
    if not known_n.any():
        reason = "the training split has no labelled clip"
        return Baselines({}, dict.fromkeys((MAJORITY, MEAN, MEDIAN, RIDGE), reason))
    fitted_n = within(label_n[known_n].astype(np.float64), info.label_range)
    constants = {MAJORITY: _majority(fitted_n, info.label_range), MEAN: fitted_n.mean(), MEDIAN: np.median(fitted_n)}
    prediction = {name: np.full(clips, value) for name, value in constants.items()}
    if not text:
        return Baselines(prediction, {RIDGE: "the model does not use text"})
    dim = info.modalities["text"].dim
    train_nD = pool_text(parts["train"], dim)[known_n]
    with_text_n = np.isfinite(train_nD).all(axis=1)
    if with_text_n.sum() < 2:
        return Baselines(prediction, {RIDGE: "fewer than two labelled training clips have text features"})
    ridge = Ridge.fit(train_nD[with_text_n], fitted_n[with_text_n])
    prediction[RIDGE] = np.nan_to_num(ridge.predict(pool_text(parts[split], dim)), nan=constants[MEAN])
    return Baselines(prediction, {}, info.modalities["text"].extractor)


def pool_text(parts: list[Path], dim: int) -> np.ndarray:
    """Return the mean of each clip's visible text steps, [N, D] float64; NaN for a clip without any."""
    pooled = [np.zeros((0, dim))]
    for part in parts:  # one at a time: a split's text features need not fit into memory
        clip_ids = read_column([part], "clip_id").to_numpy(zero_copy_only=False)
        text = read_sequences([part], {"text": dim}, clip_ids, None)["text"]
        clip_S = np.repeat(np.arange(len(clip_ids)), text.lengths)[text.visible]
        visible_N = np.bincount(clip_S, minlength=len(clip_ids))
        mean_ND, has_text_N = np.full((len(clip_ids), dim), np.nan), visible_N > 0
        if has_text_N.any():
            first_N = np.cumsum(visible_N) - visible_N
            values_SD = text.values[text.visible].astype(np.float64)
            mean_ND[has_text_N] = np.add.reduceat(values_SD, first_N[has_text_N]) / visible_N[has_text_N, None]
        pooled.append(mean_ND)
    return np.concatenate(pooled)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on standardised features.

    Attributes:
        weight_D: Weights of the features as they are given.
        bias: Intercept, which is not penalised.
        strength: Penalty, with the lowest mean absolute error of all `_STRENGTHS` when each training clip is predicted
            by the others.
    """

    weight_D: np.ndarray
    bias: float
    strength: float

    @classmethod
    def fit(cls, feature_nD: np.ndarray, label_n: np.ndarray) -> Ridge:
        """Fit in closed form.

        The leave-one-out error of clip i is e_i / (1 - h_i) with its residual e_i and its diagonal element h_i of the
        hat matrix (Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", section 7.10).
        """
        mean_D, std_D = feature_nD.mean(axis=0), feature_nD.std(axis=0)
        scale_D = np.divide(1, std_D, out=np.zeros_like(std_D), where=std_D > _MIN_STD)
        left_nk, size_k, right_kD = np.linalg.svd((feature_nD - mean_D) * scale_D, full_matrices=False)
        bias = label_n.mean()
        centred_n = label_n - bias
        target_k = left_nk.T @ centred_n
        errors = []
        for strength in _STRENGTHS:
            shrink_k = size_k**2 / (size_k**2 + strength)
            residual_n = centred_n - left_nk @ (shrink_k * target_k)
            leverage_n = left_nk**2 @ shrink_k + 1 / len(label_n)
            errors.append(np.abs(residual_n / np.maximum(1 - leverage_n, 1e-12)).mean())
        strength = float(_STRENGTHS[int(np.argmin(errors))])
        weight_D = scale_D * (right_kD.T @ (size_k / (size_k**2 + strength) * target_k))
        return cls(weight_D, float(bias - mean_D @ weight_D), strength)

    def predict(self, feature_ND: np.ndarray) -> np.ndarray:
        """Return predictions [N]; NaN where a feature is."""
        predicted_N: np.ndarray = feature_ND @ self.weight_D + self.bias
        return predicted_N


def compare_with_baselines(
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    speaker_N: np.ndarray,
    label_range: tuple[float, float],
    baselines: Baselines,
) -> dict[str, Any]:
    """Compare a model with the baselines on the same clips.

    Intervals are of the paired difference and for other speakers (videos, where speakers are unknown) and, of several
    seeds, for other seeds: `model.evaluation.crossed`.

    Args:
        prediction_SN: Predictions of each seed's network.
        label_N: Labels, NaN where unlabelled.
        speaker_N: Speaker of each clip.
        label_range: (-3, 3) or (-1, 1).
        baselines: Their predictions for these clips.

    Returns:
        A JSON object: baseline -> `mae`, and `acc2_np` or `acc2`, each with `<key>_difference`, that of the model to it
        (the mean over the seeds), and `<key>_interval`, its 95 % interval [low, high] or None. A metric that is
        undefined is left out, as is the majority class's `mae`: it predicts no score. `RIDGE` has `features`, the
        extractor of its features.

        `verdict`, by `DECIDING`: `better` if the model is better than every baseline with an interval that excludes 0,
        `worse` if it is worse than any with such an interval, else `undecided`. `hardest`: the baseline that the
        verdict is about, the best one of those that are not beaten, or of all. Both are left out if nothing could be
        compared. `undefined`: baseline that could not be computed -> why.
    """
    known_N = np.isfinite(label_N)
    if not known_N.any():
        reasons = dict.fromkeys((*baselines.prediction, *baselines.missing), "no labelled clip")
        return {"undefined": reasons}
    prediction_SN, label_N, speaker_N = prediction_SN[:, known_N], label_N[known_N], speaker_N[known_N]
    _, undefined = defined_metrics(prediction_SN[0], label_N, label_range)
    found: dict[str, Any] = {}
    for name, prediction_N in baselines.prediction.items():
        found[name] = {"features": baselines.text_extractor} if name == RIDGE else {}
        for key in (DECIDING, polarity_metric(label_range)):
            if key not in undefined and (name, key) != (MAJORITY, DECIDING):
                both_SN = np.concatenate([prediction_SN, prediction_N[None, known_N]])
                found[name] |= _compare(key, both_SN, label_N, speaker_N, label_range)
    scored = {name: values for name, values in found.items() if DECIDING in values}
    if scored:
        verdicts = {name: _verdict(values[f"{DECIDING}_interval"]) for name, values in scored.items()}
        rank: tuple[Verdict, ...] = ("worse", "undecided", "better")
        hardest = min(scored, key=lambda name: (rank.index(verdicts[name]), scored[name][DECIDING]))
        found = {"verdict": verdicts[hardest], "hardest": hardest} | found
    return found | ({"undefined": dict(baselines.missing)} if baselines.missing else {})


def _compare(
    key: str, prediction_SN: np.ndarray, label_N: np.ndarray, speaker_N: np.ndarray, label_range: tuple[float, float]
) -> dict[str, Any]:
    """Return the baseline's metric, the model's difference to it and its interval; the baseline comes last."""
    used_N = label_N != 0 if key == "acc2_np" else np.ones(len(label_N), bool)
    prediction_SN = within(prediction_SN[:, used_N], label_range).astype(np.float64)
    label_N, speaker_N = within(label_N[used_N], label_range).astype(np.float64), speaker_N[used_N]
    score_SN = np.abs(prediction_SN - label_N) if key == DECIDING else (prediction_SN > 0) == (label_N > 0)
    difference_SN = score_SN[:-1].astype(np.float64) - score_SN[-1]  # metrics are means over clips: so are differences
    difference_S, groups = difference_SN.mean(axis=1), resampled_groups(speaker_N)
    resampled_SR = np.stack([resampled_mean(value_N, speaker_N=speaker_N) for value_N in difference_SN])
    draws_R = (
        crossed_draws(difference_S, resampled_SR, groups)
        if len(difference_S) > 1
        else speaker_draws(float(difference_S[0]), resampled_SR[0], groups)
    )
    interval = None if draws_R is None else percentile_interval(draws_R)
    if interval and interval[0] == interval[1]:  # all clips differ alike, which tells nothing about others
        interval = None
    if interval and key != DECIDING:  # widened draws may leave the range of a difference of accuracies
        interval = max(-1.0, interval[0]), min(1.0, interval[1])
    return {
        key: float(score_SN[-1].mean()),
        f"{key}_difference": float(difference_S.mean()),
        f"{key}_interval": list(interval) if interval else None,
    }


def _verdict(interval: list[float] | None) -> Verdict:
    """Return the verdict on an interval of a difference of `DECIDING`, of which less is better."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if interval[1] < 0 else "worse"


def _labels(parts: list[Path]) -> np.ndarray:
    labels = [read_column([part], "label").to_numpy(zero_copy_only=False).astype(np.float32) for part in parts]
    return np.concatenate([np.zeros(0, np.float32), *labels])


def _majority(label_n: np.ndarray, label_range: tuple[float, float]) -> float:
    """Return 1 if positive labels are the majority, else -1; labels of 0 do not count where Acc-2 leaves them out."""
    used_n = label_n[label_n != 0] if polarity_metric(label_range) == "acc2_np" else label_n
    return 1.0 if 2 * (used_n > 0).sum() > len(used_n) else -1.0
