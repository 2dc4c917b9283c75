"""Answers of chat models beside the baselines of an evaluation.

Shapes: N clips, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.zero_shot.answers import NOT_ANSWERED, Answer, Request, answer_files, read_answers, text_hash
from model.evaluation.baselines import Baselines, compare_with_baselines

NAME = "zero_shot"


def zero_shot_rows(
    studies: Path,
    corpus: str,
    split: str,
    clip_ids: Sequence[str],
    texts: Mapping[str, str],
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    speaker_N: np.ndarray,
    label_range: tuple[float, float],
) -> list[dict[str, Any]]:
    """Compare a model with each chat model that was asked about the split, by name.

    Metrics are over the labelled clips with a usable score, and the difference to the model is on the same clips. A
    refusal or an unparsable answer gets no score in its place: any would be a choice of ours. How many clips a row
    leaves out stands in it, because a model that answers the easy clips only looks better than it is.

    Args:
        studies: Folder of the studies' results, which has that of the answers.
        corpus: Name of the corpus.
        split: Split of the clips.
        clip_ids: Ids [N].
        texts: Clip id -> transcript. An answer on another transcript of the clip does not count.
        prediction_SN: Predictions of each seed's network.
        label_N: Labels, NaN where unlabelled.
        speaker_N: Speaker of each clip.
        label_range: (-3, 3) or (-1, 1).

    Returns:
        JSON objects with `model`, `clips` (labelled), `answered`, `refused`, `unparsable`, `out_of_range`, `not_asked`,
        `prompt_tokens` and `completion_tokens` (of the clips' answers; None where the endpoint did not count all), and
        the metrics as in `compare_with_baselines`.

    Raises:
        ValueError: A file that is none of answers.
    """
    rows = []
    labelled = np.flatnonzero(np.isfinite(label_N))
    for path in answer_files(studies):
        request, answers = read_answers(path)
        if (request.corpus, request.split, request.label_range) != (corpus, split, tuple(label_range)):
            continue
        asked = [clip_ids[int(n)] for n in labelled]
        found = [answers.get((clip_id, text_hash(texts[clip_id]))) for clip_id in asked]
        if any(found):
            rows.append(_row(request, found, labelled, prediction_SN, label_N, speaker_N))
    return sorted(rows, key=lambda row: str(row["model"]))


def _row(
    request: Request,
    answers: Sequence[Answer | None],
    labelled: np.ndarray,
    prediction_SN: np.ndarray,
    label_N: np.ndarray,
    speaker_N: np.ndarray,
) -> dict[str, Any]:
    score_n = np.array([np.nan if a is None or a.score is None else a.score for a in answers])
    answered = np.isfinite(score_n)
    given = [answer for answer in answers if answer is not None]
    row: dict[str, Any] = {"model": request.model, "clips": len(labelled), "answered": int(answered.sum())}
    row |= {status: sum(answer.status == status for answer in given) for status in NOT_ANSWERED}
    row["not_asked"] = len(answers) - len(given)
    for kind in ("prompt_tokens", "completion_tokens"):
        counted = [getattr(answer, kind) for answer in given]
        row[kind] = None if None in counted else sum(counted)
    if answered.any():
        rows = labelled[answered]
        baselines = Baselines({NAME: score_n[answered]}, {})
        clips = prediction_SN[:, rows], label_N[rows], speaker_N[rows]
        row |= compare_with_baselines(*clips, request.label_range, baselines)[NAME]
    return row
