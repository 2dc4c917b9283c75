"""Metrics of sentiment regression, as MMSA 2.2.1 defines them.

Rounding is half to even, as in MMSA's code: a label of 0.5 is class 0 and 1.5 is class 2, so that results are
comparable with published ones. F1 is weighted by the support of the true classes.

Shapes: N clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDE = (-3.0, 3.0)
UNIT = (-1.0, 1.0)
INNER_EDGES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""Edges inside [-1, 1] of CH-SIMS's bins, which are open on the left and closed on the right."""

ROUNDING = 1e-5
"""Predictions closer than this may differ by rounding only, such as that of differently padded batches."""

Metric = float | int | None


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Linear map of scores between two label ranges, end to end and 0 to 0: [-3, 3] -> [-1, 1] divides by 3.

    It equates the ends of two scales, not what annotators meant by them; errors are in units of the target's scale.

    Attributes:
        source: Label range of the scores.
        target: Label range to map to.
    """

    source: tuple[float, float]
    target: tuple[float, float]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores on the target's scale; of the same range they are returned as they are."""
        if self.source == self.target:
            return scores
        (low, high), (new_low, new_high) = self.source, self.target
        mapped: np.ndarray = new_low + (scores - low) * ((new_high - new_low) / (high - low))
        return mapped.astype(scores.dtype)


def evaluate_metrics(prediction: np.ndarray, label: np.ndarray, label_range: tuple[float, float]) -> dict[str, Metric]:
    """Compute all metrics of a set of clips.

    Args:
        prediction: [N].
        label: [N].
        label_range: (-3, 3) gives n, mae, corr, acc2_nn, f1_nn, acc2_np, f1_np, acc3, acc5 and acc7. (-1, 1) gives n,
            mae, corr, acc2, f1, acc3 and acc5, of values clipped to the range.

    Returns:
        Fractions between 0 and 1 (mae in label units, corr in [-1, 1]); None where undefined: without clips, without
        labels other than 0 (acc2_np, f1_np), or for a constant prediction or label (corr).

    Raises:
        ValueError: another label range, different shapes, or a prediction or label that is NaN or infinite.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    check_comparable(prediction, label, label_range)
    wide = tuple(label_range) == WIDE
    prediction, label = within(prediction, label_range), within(label, label_range)
    error = np.abs(prediction.astype(np.float64) - label.astype(np.float64))
    metrics: dict[str, Metric] = {
        "n": len(label),
        "mae": float(error.mean()) if len(error) else None,
        "corr": correlation(prediction, label),
    }
    if wide:
        metrics |= dict(zip(("acc2_nn", "f1_nn"), _binary(prediction >= 0, label >= 0), strict=True))
        polar = label != 0
        metrics |= dict(zip(("acc2_np", "f1_np"), _binary(prediction[polar] > 0, label[polar] > 0), strict=True))
    else:
        metrics |= dict(zip(("acc2", "f1"), _binary(prediction > 0, label > 0), strict=True))
    for count in (3, 5, 7) if wide else (3, 5):
        predicted, true = to_classes(prediction, label_range, count), to_classes(label, label_range, count)
        metrics[f"acc{count}"] = _accuracy(predicted, true)
    return metrics


def defined_metrics(
    prediction: np.ndarray, label: np.ndarray, label_range: tuple[float, float]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Compute `evaluate_metrics` for a report, where a figure that measures nothing is None.

    That is an accuracy or F1 of labels that are all of one class, which a constant prediction gets right.

    Returns:
        The metrics, and for each that is None the reason.
    """
    metrics = evaluate_metrics(prediction, label, label_range)
    reasons = {key: reason for key in metrics if (reason := _why_undefined(key, prediction, label, label_range))}
    return {key: None if key in reasons else value for key, value in metrics.items()}, reasons


def _why_undefined(key: str, prediction: np.ndarray, label: np.ndarray, label_range: tuple[float, float]) -> str | None:
    if key == "n":
        return None
    if not len(label):
        return "no labelled clip"
    if key == "mae":
        return None
    used = label[label != 0] if key.endswith("_np") else within(label, label_range)
    if len(used) < 2:
        return "one clip" if len(used) else "all labels are 0"
    if key == "corr":
        sides = {"labels": used, "predictions": within(prediction, label_range)}
        return next((f"all {name} are equal" for name, values in sides.items() if np.ptp(values) < ROUNDING), None)
    if key[:3] == "acc" and key[3:] in "357":
        true = to_classes(used, label_range, int(key[3:]))
    else:
        true = used >= 0 if key.endswith("_nn") else used > 0
    return None if np.ptp(true.astype(int)) else "all labels are of one class"


def check_comparable(prediction: np.ndarray, label: np.ndarray, label_range: tuple[float, float]) -> None:
    """Raise the ValueErrors of `evaluate_metrics`."""
    _check_range(label_range)
    if prediction.shape != label.shape or prediction.ndim != 1:
        raise ValueError(f"predictions {prediction.shape} and labels {label.shape} must be [N] both")
    for name, values in (("prediction", prediction), ("label", label)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(values)} {name}s are NaN or infinite, the first at row {bad[0]}; "
                "leave unlabelled clips out, and look for a diverged training"
            )


def within(values: np.ndarray, label_range: tuple[float, float]) -> np.ndarray:
    """Clip values to [-1, 1] for labels in that range; leave those for [-3, 3] unchanged."""
    return values if tuple(label_range) == WIDE else np.clip(values, *UNIT)


def correlation(prediction: np.ndarray, label: np.ndarray) -> float | None:
    """Compute Pearson's correlation; None for fewer than two clips, or if either side is constant up to rounding."""
    if len(label) < 2 or np.ptp(prediction) < ROUNDING or np.ptp(label) < ROUNDING:
        return None
    return float(np.corrcoef(prediction.astype(np.float64), label.astype(np.float64))[0, 1])


def weighted_f1(prediction: np.ndarray, label: np.ndarray) -> float | None:
    """Average the F1 of each class, weighted by its support (scikit-learn's `average="weighted"`); None without clips.

    A class that is never predicted has an F1 of 0.
    """
    if not len(label):
        return None
    total = 0.0
    for value in np.unique(label):
        true_positives = np.sum((prediction == value) & (label == value))
        support = np.sum(label == value)
        total += support * 2 * true_positives / (np.sum(prediction == value) + support)
    return float(total / len(label))


def to_classes(values: np.ndarray, label_range: tuple[float, float], count: int) -> np.ndarray:
    """Return the class of each value, 0 to `count` - 1.

    [-3, 3], count 3, 5 or 7: clip to [-1, 1], [-2, 2] or [-3, 3] and round half to even. [-1, 1], count 2, 3 or 5:
    CH-SIMS's bins.
    """
    _check_range(label_range)
    if tuple(label_range) == WIDE:
        limit = count // 2
        rounded: np.ndarray = np.round(np.clip(values, -limit, limit)).astype(np.int64)
        return rounded + limit
    # float32, like the labels: a label of 0.1 must not exceed the edge 0.1
    edges = np.asarray(INNER_EDGES[count], np.float32)
    indices: np.ndarray = np.searchsorted(edges, np.clip(values, *UNIT).astype(np.float32), side="left")
    return indices


def class_names(label_range: tuple[float, float], count: int) -> list[str]:
    """Return the names of the classes of `to_classes`: `-3` to `3`, or bins such as `(-0.1, 0.1]`."""
    _check_range(label_range)
    if tuple(label_range) == WIDE:
        return [str(value) for value in range(-(count // 2), count // 2 + 1)]
    edges = (-1, *(f"{edge:g}" for edge in INNER_EDGES[count]), 1)
    return [f"{'[' if i == 0 else '('}{edges[i]}, {edges[i + 1]}]" for i in range(count)]


def confusion(prediction: np.ndarray, label: np.ndarray, label_range: tuple[float, float], count: int) -> np.ndarray:
    """Count clips by true (rows) and predicted (columns) class of `to_classes`, [count, count] int64."""
    predicted, true = to_classes(prediction, label_range, count), to_classes(label, label_range, count)
    return np.bincount(true * count + predicted, minlength=count * count).reshape(count, count)


def _binary(prediction: np.ndarray, label: np.ndarray) -> tuple[float | None, float | None]:
    return _accuracy(prediction, label), weighted_f1(prediction, label)


def _accuracy(prediction: np.ndarray, label: np.ndarray) -> float | None:
    return float(np.mean(prediction == label)) if len(label) else None


def _check_range(label_range: tuple[float, float]) -> None:
    if tuple(label_range) not in (WIDE, UNIT):
        raise ValueError(f"label range {tuple(label_range)}: metrics are defined for [-3, 3] and [-1, 1] only")
