"""Audio standardised by its speaker, and columns that a dataset keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from extractors.base import FeatureSequence
from extractors.dataset.align_clip import AlignConfig
from extractors.dataset.columns import PUBLISHED, ColumnsConfig, select_columns, selected_columns
from extractors.dataset.statistics import standardise_alone
from extractors.store import REFERENCE, FeatureMeta
from tests.support.stores import Corpus, make


def speaking(tmp_path, name="corpus", change=None) -> Corpus:
    """20 clips in all splits: three speakers, the last of whom the manifest does not know.

    Args:
        tmp_path: folder.
        name: of the corpus's folder.
        change: clip whose audio is ten times as loud.
    """
    (tmp_path / name).mkdir()
    made = make(tmp_path / name)
    clips = [replace(clip, speaker=("ann", "bob", "")[i // 3 % 3]) for i, clip in enumerate(made.clips)]
    if change:
        one = made.rows["audio"][change]
        made.rows["audio"][change] = replace(one, values=one.values * 10 + 5)
    return Corpus(tmp_path / name, clips, made.rows)


def audio(corpus: Corpus, split: str, out: str = "dataset") -> dict[str, np.ndarray]:
    return {clip_id: np.array(row["audio_values"]) for clip_id, row in corpus.table(split, out).items()}


def test_a_speakers_clips_are_standardised_together_and_an_unknown_speakers_by_video(tmp_path):
    corpus = speaking(tmp_path)
    corpus.align(normalise_audio="speaker")
    assert corpus.info()["normalise_audio"] == "speaker"
    for split in ("train", "valid", "test"):
        found = audio(corpus, split)
        for speaker in ("ann", "bob"):
            ids = [c.clip_id for c in corpus.clips if (c.split, c.speaker) == (split, speaker)]
            assert len(ids) > 1
            raw = np.concatenate([corpus.rows["audio"][i].values for i in ids]).astype(float)
            expected = (raw - raw.mean(axis=0)) / raw.std(axis=0)
            np.testing.assert_allclose(np.concatenate([found[i] for i in ids]), expected, atol=1e-5)
        for clip in (c for c in corpus.clips if c.split == split and not c.speaker):
            np.testing.assert_allclose(found[clip.clip_id].mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(found[clip.clip_id].std(axis=0), 1, atol=1e-5)


def test_no_clip_of_another_split_changes_a_value(tmp_path):
    """Ann speaks in every split; her test clip is changed."""
    before, after = speaking(tmp_path), speaking(tmp_path, "changed", change="v2/c")
    for corpus in (before, after):
        corpus.align(normalise_audio="speaker")
    assert [c.speaker for c in before.clips if c.clip_id == "v2/c"] == ["ann"]
    for split in ("train", "valid"):
        for clip_id, values in audio(before, split).items():
            np.testing.assert_array_equal(values, audio(after, split)[clip_id])
    first, second = audio(before, "test"), audio(after, "test")
    ann, others = ["v2/c", "v11/c"], ["v5/c", "v8/c", "v14/c"]
    assert all(not np.array_equal(first[i], second[i]) for i in ann)  # that clip, and her other one there
    assert all(np.array_equal(first[i], second[i]) for i in others)
    assert before.info()["statistics"] == after.info()["statistics"]


def test_a_video_with_the_name_of_a_speaker_keeps_its_own_statistics(tmp_path):
    made = make(tmp_path, clips=6)
    clips = [replace(clip, speaker="v3" if i == 0 else "") for i, clip in enumerate(made.clips)]
    corpus = Corpus(tmp_path, clips, made.rows)
    corpus.align(normalise_audio="speaker")
    np.testing.assert_allclose(audio(corpus, "train")["v3/c"].mean(axis=0), 0, atol=1e-5)


def test_masked_steps_take_no_part_and_other_modalities_and_masks_stay(tmp_path):
    corpus = speaking(tmp_path)
    corpus.align("raw", mask_invalid=["audio"])
    corpus.align(mask_invalid=["audio"], normalise_audio="speaker")
    raw, found = corpus.table("train", "raw"), corpus.table("train")
    for clip_id, row in found.items():
        assert all(row[key] == raw[clip_id][key] for key in row if key != "audio_values")
    ids = [c.clip_id for c in corpus.clips if (c.split, c.speaker) == ("train", "bob")]
    seen = np.concatenate([np.array(found[i]["audio_values"])[found[i]["audio_mask"]] for i in ids])
    np.testing.assert_allclose([seen.mean(axis=0), seen.std(axis=0)], [[0] * 3, [1] * 3], atol=1e-5)


def test_pooled_steps_are_means_of_standardised_ones(tmp_path):
    corpus = speaking(tmp_path)
    corpus.align("raw", mode="aligned")
    corpus.align(mode="aligned", normalise_audio="speaker")
    ids = [c.clip_id for c in corpus.clips if (c.split, c.speaker) == ("train", "ann")]
    values = np.concatenate([corpus.rows["audio"][i].values for i in ids]).astype(float)
    raw = (audio(corpus, "train", "raw")[ids[0]] - values.mean(axis=0)) / values.std(axis=0)
    np.testing.assert_allclose(audio(corpus, "train")[ids[0]], raw, atol=1e-5)


def test_a_clip_without_audio_and_constant_features_are_no_trouble(tmp_path):
    made = make(tmp_path, clips=6, leave_out={"audio": ["v3/c"]})
    one = made.rows["audio"]["v0/c"]
    made.rows["audio"]["v0/c"] = replace(one, values=np.full_like(one.values, 7.3))
    corpus = Corpus(tmp_path, made.clips, made.rows)
    corpus.align(normalise_audio="speaker")
    assert audio(corpus, "train")["v3/c"].size == 0
    np.testing.assert_allclose(audio(corpus, "train")["v0/c"], 0, atol=1e-5)


def test_a_sequence_alone_is_standardised_by_its_visible_steps():
    rng = np.random.default_rng(0)
    times = np.arange(9, dtype=np.float32)
    sequence = FeatureSequence(rng.normal(5, 3, (9, 2)).astype(np.float32), times, times + 1, np.ones(9, bool))
    visible = times < 7
    found = standardise_alone(sequence, visible)
    np.testing.assert_allclose(found.values[visible].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(found.values[~visible], sequence.values[~visible])
    np.testing.assert_array_equal(standardise_alone(sequence, times > 99).values, sequence.values)


def test_named_columns_are_kept_in_the_given_order_with_their_reference(tmp_path):
    corpus = make(tmp_path, clips=6)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_file({"values": values, "clip": np.zeros(3, np.uint8)}, corpus.folders["audio"] / REFERENCE)
    corpus.align(columns=ColumnsConfig(audio=("a2", "a0")))
    info = corpus.info()
    assert info["modalities"]["audio"]["feature_names"] == ["a2", "a0"] and info["modalities"]["audio"]["dim"] == 2
    assert info["columns"] == {"audio": ["a2", "a0"], "vision": "all"}
    assert len(info["statistics"]["audio"]["mean"]) == 2
    for clip_id, found in audio(corpus, "train").items():
        np.testing.assert_array_equal(found, corpus.rows["audio"][clip_id].values[:, [2, 0]])
    reference = load_file(tmp_path / "dataset" / "reference" / "audio.safetensors")
    np.testing.assert_array_equal(reference["values"], values[:, [2, 0]])
    assert len(reference["clip"]) == 3


def test_a_dataset_with_the_defaults_says_nothing_of_them(tmp_path):
    corpus = make(tmp_path, clips=6)
    corpus.align()
    assert not {"normalise_audio", "columns"} & set(corpus.info())


def covarep(width: int) -> FeatureMeta:
    return FeatureMeta("audio", "audio.imported", {}, "x", tuple(f"audio_{i}" for i in range(width)))


def test_covarep_5_is_the_published_selection_and_refuses_other_widths():
    columns = selected_columns(covarep(74), "covarep_5")
    assert columns.tolist() == [1, 3, 6, 25, 60] and len(PUBLISHED["covarep_5"].names) == 5
    times = np.arange(2, dtype=np.float32)
    values = np.tile(np.arange(74, dtype=np.float32), (2, 1))
    kept = select_columns(FeatureSequence(values, times, times + 1, np.ones(2, bool)), columns)
    assert kept.values.tolist() == [[1, 3, 6, 25, 60]] * 2
    with pytest.raises(ValueError, match=r"align.columns.audio: covarep_5 selects from 74 columns, .* has 43"):
        selected_columns(covarep(43), "covarep_5")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": "covarep_6"}, "align.columns.audio is 'covarep_6': choose all or covarep_5"),
        ({"vision": "covarep_5"}, "align.columns.vision is 'covarep_5': choose all, or list"),
        ({"audio": ()}, "at least one feature"),
        ({"audio": ("a0", "a0")}, "each once"),
    ],
)
def test_wrong_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        ColumnsConfig(**columns)


def test_an_unknown_column_or_normalisation_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"align.columns.audio: fake.audio has no feature 'a9'; it has a0, a1, a2"):
        make(tmp_path, clips=3).align(columns=ColumnsConfig(audio=("a9",)))
    with pytest.raises(ValueError, match=r"align.normalise_audio is 'video': choose one of none, speaker"):
        AlignConfig(normalise_audio="video")
