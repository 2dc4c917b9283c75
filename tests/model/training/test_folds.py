"""Folds: every clip in one, every speaker in one, of about equal size."""

from __future__ import annotations

import numpy as np
import pytest

from model.training.folds import Fold, assign_folds, fold_count


def test_all_clips_of_a_speaker_are_in_one_fold_and_folds_are_of_about_equal_size():
    rng = np.random.default_rng(0)
    speaker = rng.integers(30, size=240).astype(str).astype(object)
    fold = assign_folds(speaker, 5, seed=0)
    assert all(len(set(fold[speaker == name])) == 1 for name in set(speaker))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.sum() == 240 and sizes.max() - sizes.min() <= 8
    assert (fold == assign_folds(speaker, 5, seed=0)).all() and (fold != assign_folds(speaker, 5, seed=1)).any()
    parts = [Fold(number, 5, 0).contains(speaker) for number in range(5)]
    assert (np.sum(parts, axis=0) == 1).all()


@pytest.mark.parametrize(
    ("speakers", "count", "expected"),
    [
        (["a", "b", "c", "d", "e", "f"], 5, 5),
        (["a", "a", "b", "c"], 5, 3),  # fewer speakers than folds
        (["a", "b"], 5, 2),
        (["a", "a", "a"], 5, 3),  # one speaker: its clips
        (["a"] * 9, 5, 5),
        (["a"], 5, 0),
        ([], 5, 0),
    ],
)
def test_few_speakers_or_clips_give_fewer_folds_and_none_is_empty(speakers, count, expected):
    speaker = np.array(speakers, object)
    found = fold_count(speaker, count)
    assert found == expected
    if found:
        assert set(assign_folds(speaker, found, 0)) == set(range(found))
