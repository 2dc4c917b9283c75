from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.manifest import MODALITIES, SPLITS
from extractors.base import FeatureSequence
from extractors.dataset.align import align
from extractors.dataset.align_clip import MODES, AlignConfig, Steps, pool
from extractors.dataset.statistics import RunningStatistics
from extractors.store import FeatureReader, StoreError
from extractors.transcripts.table import Transcript, read_transcripts, write_transcripts
from tests.support.stores import DIMS, TRANSCRIPT, Corpus, make


def test_clips_keep_their_split_order_labels_and_values(tmp_path):
    corpus = make(tmp_path)
    summary = corpus.align()
    assert summary.clips == {"train": 7, "valid": 7, "test": 6} and summary.problems == ()
    for split in SPLITS:
        rows = corpus.table(split)
        assert list(rows) == [clip.clip_id for clip in corpus.clips if clip.split == split]
        for clip_id, row in rows.items():
            for m in MODALITIES:
                np.testing.assert_array_equal(np.float32(row[f"{m}_values"]), corpus.rows[m][clip_id].values)
            np.testing.assert_array_equal(row["text_token_ids"], corpus.rows["text"][clip_id].token_ids)
            np.testing.assert_array_equal(np.float32(row["audio_end"]), corpus.rows["audio"][clip_id].end)
    first = corpus.table("valid")["v1/c"]
    assert first["label"] == pytest.approx(0.1) and first["label_text"] is None
    assert first["video_id"] == "v1" and first["text"] == TRANSCRIPT


def test_columns_on_disk(tmp_path):
    make(tmp_path).align()
    schema = pq.read_schema(tmp_path / "dataset" / "train" / "part-00000.parquet")
    names = ["clip_id", "video_id", "speaker", "text", "label", "label_text", "label_audio", "label_vision"]
    names += [f"{m}_{name}" for m in MODALITIES for name in ("values", "start", "end", "mask")]
    assert schema.names == [*names, "text_token_ids", "text_word_index", "word_times_method"]
    assert all(schema.field(f"{m}_values").type.value_type.list_size == DIMS[m] for m in MODALITIES)


def test_dataset_json_says_what_is_inside(tmp_path):
    corpus = make(tmp_path)
    corpus.align()
    info = corpus.info()
    assert info["schema_version"] == 2 and info["corpus"] == "fake" and info["language"] == "en"
    assert info["label_range"] == [-3, 3] and info["mode"] == "unaligned" and info["mask_invalid"] == ["vision"]
    assert info["modalities"]["vision"] == {
        "dim": 2,
        "extractor": "fake.vision",
        "options": {"rate": 2},
        "signature": "fake.vision-v1-abc",
        "feature_names": ["v0", "v1"],
        "versions": {},
    }
    assert info["clips"] == {"train": 7, "valid": 7, "test": 6}
    assert info["word_times"] == {"methods": {"proportional": {"clips": 20, "words": 60}}}


def test_only_the_named_modalities_hide_their_invalid_steps(tmp_path):
    corpus = make(tmp_path)
    corpus.align("default")
    corpus.align("both", mask_invalid=["audio", "vision"])
    for clip_id, row in corpus.table("train", "default").items():
        assert row["vision_mask"] == corpus.rows["vision"][clip_id].valid.tolist()
        assert all(row["audio_mask"]) and all(row["text_mask"])
    for clip_id, row in corpus.table("train", "both").items():
        assert row["audio_mask"] == corpus.rows["audio"][clip_id].valid.tolist()


@pytest.mark.parametrize("masked", [(), ("audio", "vision")])
def test_statistics_are_of_visible_training_steps_alone(tmp_path, masked):
    corpus = make(tmp_path)
    corpus.align(mask_invalid=masked)
    statistics = corpus.info()["statistics"]
    assert list(statistics) == ["audio", "vision"]
    for m in ("audio", "vision"):
        train = [corpus.rows[m][c.clip_id] for c in corpus.clips if c.split == "train"]
        seen = np.concatenate([s.values[s.valid] if masked else s.values for s in train]).astype(np.float64)
        assert statistics[m]["steps"] == len(seen)
        np.testing.assert_allclose(statistics[m]["mean"], seen.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(statistics[m]["std"], seen.std(axis=0), rtol=1e-12)


def test_statistics_of_large_offsets_and_of_constants():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(1e6, 1, 999), np.full(999, 0.1), np.zeros(999)], 1).astype(np.float32)
    running = RunningStatistics(3)
    for chunk in np.split(values, [0, 1, 10, 400]):
        running.update(chunk)
    result = running.to_json()
    np.testing.assert_allclose(result["std"], [values[:, 0].astype(np.float64).std(), 1, 1], rtol=1e-6)
    assert result["mean"][1] == pytest.approx(0.1)
    assert RunningStatistics(2).to_json() == {"mean": [0, 0], "std": [1, 1], "steps": 0}


def test_a_modality_without_a_row_is_missing_and_a_clip_without_any_is_dropped(tmp_path):
    gone = {"text": ["v3/c"], "audio": ["v3/c", "v6/c"], "vision": ["v3/c", "v9/c"]}
    corpus = make(tmp_path, leave_out=gone)
    summary = corpus.align()
    (problem,) = summary.problems
    assert (problem.clip_id, problem.stage, problem.error) == ("v3/c", "align", "NoModality")
    assert summary.missing == {"text": 0, "audio": 1, "vision": 1}
    rows = corpus.table("train")
    assert "v3/c" not in rows and corpus.info()["clips"]["train"] == 6 == len(rows)
    assert rows["v6/c"]["audio_values"] == rows["v6/c"]["audio_mask"] == []
    assert len(rows["v6/c"]["vision_values"]) > 0


def test_a_clip_with_only_empty_rows_is_dropped_but_counts_as_done(tmp_path):
    corpus = make(tmp_path, clips=3, text=0, audio=0, vision=0)
    done: list[int] = []
    assert len(corpus.align(progress=done.append).problems) == 3 and sum(done) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_with_nothing_stays_where_that_is_asked_for(tmp_path, mode):
    corpus = make(tmp_path, leave_out={m: ["v3/c"] for m in MODALITIES})
    config = AlignConfig(mode=mode)
    out = tmp_path / "dataset"
    summary = align(corpus.manifest, corpus.transcripts, corpus.folders, out, config, keep_empty=True)
    (problem,) = summary.problems
    assert problem.clip_id == "v3/c" and "stays in the dataset, empty" in problem.message
    rows = corpus.table("train")
    assert corpus.info()["clips"]["train"] == len(rows) == 7
    assert not any(rows["v3/c"][f"{m}_values"] for m in MODALITIES)


def test_an_empty_split_has_a_readable_file(tmp_path):
    corpus = make(tmp_path, clips=2)
    assert corpus.align().clips == {"train": 1, "valid": 1, "test": 0}
    table = pq.read_table(tmp_path / "dataset" / "test" / "part-00000.parquet")
    assert len(table) == 0 and "text_values" in table.column_names


def test_the_same_inputs_give_the_same_bytes_in_place_of_the_old(tmp_path):
    corpus = make(tmp_path)
    corpus.align("a", mode="aligned")
    (tmp_path / "b" / "train").mkdir(parents=True)
    (tmp_path / "b" / "train" / "part-00005.parquet").write_bytes(b"old")
    corpus.align("b", mode="aligned")
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert files == [path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").rglob("*.*"))]
    assert len(files) == 4
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_tokens_get_their_words_times_within_the_voiced_part(tmp_path):
    corpus = make(tmp_path, clips=1)
    audio = corpus.rows["audio"]["v0/c"]
    valid = np.array([False, True, True, True, True, False])
    corpus.rows["audio"]["v0/c"] = FeatureSequence(audio.values, audio.start, audio.end, valid)
    corpus = Corpus(tmp_path, corpus.clips, corpus.rows)
    corpus.align()
    row = corpus.table("train")["v0/c"]
    speech = (1 / 3, 5 / 3)
    cuts = [speech[0] + (speech[1] - speech[0]) * letters / 12 for letters in (0, 3, 8, 12)]
    np.testing.assert_allclose(row["text_start"], [0, *cuts[:3], 0], atol=1e-6)
    np.testing.assert_allclose(row["text_end"], [2, *cuts[1:], 2], atol=1e-6)


def test_known_word_times_give_the_estimates_error(tmp_path):
    corpus = make(tmp_path, clips=3, audio=0)
    lines = ["clip_id,index,word,start,end"]
    edges = np.array([0, 3, 8, 12]) / 12 * 2
    for clip_id, late in (("v0/c", 0.0), ("v1/c", 0.2)):
        words = TRANSCRIPT.split()
        lines += [f"{clip_id},{i},{words[i]},{edges[i] + late},{edges[i + 1] + late}" for i in range(3)]
    lines.append("v2/c,0,word,0.0,1.0")
    (tmp_path / "words.csv").write_text("\n".join(lines))
    summary = corpus.align(words=tmp_path / "words.csv")
    found = corpus.info()["word_times"]
    assert found == summary.word_times
    assert list(found["methods"]) == ["proportional"]
    assert (found["methods"]["proportional"]["clips"], found["methods"]["proportional"]["words"]) == (3, 9)
    error = found["methods"]["proportional"]["error"]
    assert (error["words"], error["clips"], error["clips_with_other_words"]) == (6, 2, 1)
    assert error["start"]["mean"] == pytest.approx(0.1) and error["overlap"] == 1
    corpus.align("other", words=tmp_path / "nowhere.csv")
    assert "error" not in corpus.info("other")["word_times"]["methods"]["proportional"]


def test_each_row_holds_the_transcript_with_its_times_and_says_who_timed_it(tmp_path):
    corpus = make(tmp_path, clips=4, leave_out={"text": ["v3/c"]}, audio=0)
    words = ["heard", "by", "machine"]
    heard = Transcript("v0/c", "heard by machine", "asr", words, [0.5, 1.0, 1.25], [0.75, 1.25, 2.0], "asr")
    corpus = Corpus(tmp_path, corpus.clips, corpus.rows, {"v0/c": heard})
    lines = ["clip_id,index,word,start,end"]
    for clip_id, true in (("v0/c", words), ("v1/c", TRANSCRIPT.split())):
        lines += [f"{clip_id},{i},{word},{i * 0.6},{i * 0.6 + 0.5}" for i, word in enumerate(true)]
    (tmp_path / "words.csv").write_text("\n".join(lines))
    corpus.align(words=tmp_path / "words.csv")
    rows = corpus.table("train") | corpus.table("valid")
    assert rows["v0/c"]["text"] == "heard by machine" and rows["v1/c"]["text"] == TRANSCRIPT
    assert rows["v0/c"]["text_start"] == [0, 0.5, 1.0, 1.25, 0] and rows["v0/c"]["text_end"] == [2, 0.75, 1.25, 2, 2]
    methods = {clip_id: row["word_times_method"] for clip_id, row in rows.items()}
    assert methods == {"v0/c": "asr", "v3/c": "", "v1/c": "proportional"}
    found = corpus.info()["word_times"]["methods"]
    assert found["asr"]["clips"] == 1 and found["proportional"]["clips"] == 2
    assert found["asr"]["error"]["words"] == found["proportional"]["error"]["words"] == 3
    assert found["asr"]["error"]["start"]["mean"] == pytest.approx((0.5 + 0.4 + 0.05) / 3)


def test_without_any_text_there_is_no_method(tmp_path):
    corpus = make(tmp_path, clips=2, text=0)
    corpus.align()
    assert corpus.info()["word_times"] == {"methods": {}}


def test_text_of_other_words_than_the_manifest_is_refused(tmp_path):
    corpus = make(tmp_path, clips=2, text=7)
    with pytest.raises(ValueError, match=r"clip v0/c, text: a token belongs to word 4, .*run the extract stage"):
        corpus.align()
    assert not (tmp_path / "dataset").exists()


def test_nan_in_features_is_refused_and_nothing_is_written(tmp_path):
    corpus = make(tmp_path, clips=4)
    path = corpus.folders["vision"] / "part-00000.parquet"
    table = pq.read_table(path)
    column = table.column("values").combine_chunks()
    flat = column.values.flatten().to_numpy().copy()
    flat[2 * column.offsets[2].as_py() + 1] = np.nan
    spoiled = pa.ListArray.from_arrays(column.offsets, pa.FixedSizeListArray.from_arrays(pa.array(flat), 2))
    pq.write_table(table.set_column(1, "values", spoiled), path)
    with pytest.raises(StoreError, match="clip v2/c, vision, feature v1"):
        corpus.align()
    assert not (tmp_path / "dataset").exists()


def test_a_store_of_another_modality_or_none_is_refused(tmp_path):
    corpus = make(tmp_path, clips=2)
    with pytest.raises(StoreError, match="vision features where audio features are expected"):
        align(
            corpus.manifest,
            corpus.transcripts,
            corpus.folders | {"audio": corpus.folders["vision"]},
            tmp_path / "d",
            AlignConfig(),
        )
    with pytest.raises(FileNotFoundError, match="run the extract stage for audio"):
        align(
            corpus.manifest,
            corpus.transcripts,
            corpus.folders | {"audio": tmp_path / "none"},
            tmp_path / "d",
            AlignConfig(),
        )
    with pytest.raises(ValueError, match="no feature folder is given for vision"):
        align(
            corpus.manifest,
            corpus.transcripts,
            {m: corpus.folders[m] for m in ("text", "audio")},
            tmp_path / "d",
            AlignConfig(),
        )


@pytest.mark.parametrize("options", [{"mode": "pooled"}, {"mask_invalid": ("video",)}])
def test_settings_that_do_not_exist_are_refused(options):
    with pytest.raises(ValueError, match="choose"):
        AlignConfig(**options)


def slow_pool(steps: Steps, times: np.ndarray) -> np.ndarray:
    rows = []
    for a, b in times:
        seen = [i for i in range(len(steps.mask)) if steps.mask[i]]
        inside = [i for i in seen if steps.end[i] > a and steps.start[i] < b]
        if not inside:
            inside = [min(seen, key=lambda i: max(a - steps.end[i], steps.start[i] - b))]
        rows.append(steps.values[inside].astype(np.float64).mean(axis=0))
    return np.array(rows)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.booleans()), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_pooling_is_the_mean_over_overlapping_visible_steps_or_the_nearest(shape, tokens, seed):
    gaps, lengths, mask = (np.array(column) for column in zip(*shape, strict=True))
    start = np.cumsum(gaps + lengths) - lengths
    values = np.random.default_rng(seed).normal(size=(len(mask), 3)).astype(np.float32)
    steps = Steps(values, start.astype(np.float32), (start + lengths).astype(np.float32), mask)
    times = np.array([(a, a + length) for a, length in tokens], float)
    pooled = pool(steps, times)
    np.testing.assert_array_equal(pooled.start, times[:, 0])
    assert pooled.mask.tolist() == [bool(mask.any())] * len(times)
    if mask.any():
        np.testing.assert_allclose(pooled.values, slow_pool(steps, times), atol=1e-6)
    else:
        assert not pooled.values.any()


def test_steps_out_of_time_order_cannot_be_pooled():
    start = np.array([1, 0], np.float32)
    with pytest.raises(ValueError, match="time order"):
        pool(Steps(np.zeros((2, 1), np.float32), start, start + 1, np.ones(2, bool)), np.array([[0.0, 1.0]]))


def test_aligned_modalities_have_one_step_a_token(tmp_path):
    corpus = make(tmp_path, leave_out={"audio": ["v6/c"], "text": ["v9/c"]})
    corpus.align(mode="aligned")
    rows = corpus.table("train")
    for clip_id, row in rows.items():
        tokens = max(1, len(row["text_mask"]))
        for m in ("audio", "vision"):
            assert len(row[f"{m}_mask"]) == (0 if (clip_id, m) == ("v6/c", "audio") else tokens)
            if clip_id not in ("v6/c", "v9/c"):
                assert row[f"{m}_start"] == row["text_start"] and row[f"{m}_end"] == row["text_end"]
    without_text = rows["v9/c"]
    assert without_text["text_values"] == [] and without_text["vision_end"] == [2.0]
    vision = corpus.rows["vision"]["v9/c"]
    np.testing.assert_allclose(without_text["vision_values"][0], vision.values[vision.valid].mean(axis=0), rtol=1e-5)
    special = corpus.rows["audio"]["v0/c"].values.mean(axis=0)
    np.testing.assert_allclose(rows["v0/c"]["audio_values"][0], special, rtol=1e-5)
    steps = sum(len(row["audio_mask"]) for row in rows.values())
    assert corpus.info()["statistics"]["audio"]["steps"] == steps


def test_aligned_vision_without_a_valid_step_is_hidden(tmp_path):
    corpus = make(tmp_path, clips=1)
    vision = corpus.rows["vision"]["v0/c"]
    unseen = FeatureSequence(vision.values, vision.start, vision.end, np.zeros(len(vision), bool))
    corpus = Corpus(tmp_path, corpus.clips, {**corpus.rows, "vision": {"v0/c": unseen}})
    summary = corpus.align(mode="aligned")
    row = corpus.table("train")["v0/c"]
    assert row["vision_mask"] == [False] * 5 and not np.any(row["vision_values"])
    assert summary.hidden["vision"] == 1 and corpus.info()["statistics"]["vision"]["steps"] == 0


def test_features_are_read_by_id_whatever_their_order(tmp_path):
    corpus = make(tmp_path)
    corpus.align("a")
    backwards = {m: dict(reversed(rows.items())) for m, rows in corpus.rows.items()}
    again = Corpus(tmp_path, corpus.clips, backwards)
    assert FeatureReader(again.folders["audio"], "audio").clip_ids[0] == corpus.clips[-1].clip_id
    again.align("b")
    assert corpus.table("train", "a") == again.table("train", "b")


def test_the_dataset_tells_what_a_new_video_is_compared_with(tmp_path):
    corpus = make(tmp_path, leave_out={"audio": ["v0/c", "v1/c"]})  # one of the training split, one of validation
    corpus.align()
    assert corpus.info()["training"] == {
        "seconds": {"median": 2.0, "longest": 2.0},
        "missing": {"text": 0, "audio": 1, "vision": 0},
        "videos": 7,
    }
    assert corpus.info()["recogniser"] == ""


def test_the_dataset_names_what_recognised_its_speech(tmp_path):
    corpus = make(tmp_path)
    rows = [*read_transcripts(corpus.transcripts).values()]
    write_transcripts(rows, corpus.transcripts, {"asr": "transcribe.asr-v1-0"}, "", "openai/whisper-small")
    corpus.align()
    assert corpus.info()["recogniser"] == "openai/whisper-small"
