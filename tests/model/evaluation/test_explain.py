"""What the network looks at in a clip, and the clip on its time axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.checkpoint.io import save_checkpoint
from model.config import MODALITIES, ModelConfig, TextConfig, TrainConfig
from model.data.clips import ClipTable
from model.data.info import read_info
from model.data.tokens import prepare_text
from model.evaluation.explain import (
    MAX_CORRELATION,
    NO_TEXT,
    NO_WORDS,
    explain,
    informative_features,
    words_of_tokens,
)
from model.network.dashfusion import DashFusion

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=32)


def save(dataset, folder, config=SMALL, train=TrainConfig()):  # noqa: B008  (frozen)
    torch.manual_seed(0)
    network = DashFusion(config, read_info(dataset), prepare_text(config, dataset)).eval()
    save_checkpoint(folder, network, train, seed=0, epoch=1, metrics={})
    return network


def words_of(dataset, split="test") -> dict[str, list[str]]:
    """As many words as the synthetic clips have tokens; every clip's text has one step a word."""
    table = ClipTable.read(dataset, split, 32)
    return {i: [f"w{k}" for k in range(n)] for i, n in zip(table.clip_ids, table.lengths(("text",))[:, 0], strict=True)}


def test_each_word_looks_at_the_moments_of_the_other_modalities(dataset, tmp_path):
    network = save(dataset, tmp_path)
    table, words = ClipTable.read(dataset, "test", 32), words_of(dataset)
    found = explain(dataset, tmp_path, "test", words)
    assert list(found.views) == list(table.clip_ids) and found.no_attention_reason == "" and found.anchor == "text"
    for row, clip_id in enumerate(table.clip_ids):
        view, lengths = found.views[clip_id], {m: table.sequences[m].lengths[row] for m in MODALITIES}
        wanted = {m for m in ("audio", "vision") if lengths["text"] and lengths[m]}
        assert set(view.attention) == wanted
        batch = table.batch(np.array([row]))
        with torch.inference_mode():
            weights = network.alignment.weights(network.encode(batch), batch.missing())
        for m in wanted:
            attention = view.attention[m]
            assert attention.steps_WT.shape == (lengths["text"], lengths[m])
            np.testing.assert_allclose(attention.cls_W, weights[m][0, :, 0], atol=1e-6)
            np.testing.assert_allclose(attention.steps_WT, weights[m][0, :, 1:], atol=1e-6)
            np.testing.assert_allclose(attention.steps_WT.sum(1) + attention.cls_W, 1, atol=1e-5)
            start = table.sequences[m].starts[row]
            hidden = ~table.sequences[m].visible[start : start + lengths[m]]
            assert (attention.steps_WT[:, hidden] == 0).all()


def test_the_tokens_of_a_word_are_one_and_special_ones_are_none(dataset_writer, tmp_path):
    def two_tokens_a_word(split, table):
        index = [
            [-1, *[k // 2 for k in range(len(steps) - 1)]] if steps else [] for steps in table["text_mask"].to_pylist()
        ]
        return table.set_column(
            table.column_names.index("text_word_index"), "text_word_index", pa.array(index, pa.list_(pa.int32()))
        )

    dataset = dataset_writer(tmp_path / "data", missing=False, change=two_tokens_a_word)
    network = save(dataset, tmp_path / "best")
    table = ClipTable.read(dataset, "test", 32)
    row = int(np.argmax(table.lengths(("text",))[:, 0] >= 5))
    view = explain(dataset, tmp_path / "best", "test", {table.clip_ids[row]: ["a", "b", "c"]}).views[
        table.clip_ids[row]
    ]
    batch = table.batch(np.array([row]))
    with torch.inference_mode():
        whole = network.alignment.weights(network.encode(batch), batch.missing())["audio"][0].numpy()
    np.testing.assert_allclose(view.attention["audio"].steps_WT[0], whole[1:3, 1:].mean(axis=0), atol=1e-6)
    assert view.word_times_W2[0] == pytest.approx([0.1, 0.2]) and view.word_times_W2[1] == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize("anchor", ["audio", "vision"])
def test_with_another_anchor_its_moments_look_at_the_words(dataset, tmp_path, anchor):
    network = save(dataset, tmp_path, replace(SMALL, anchor=anchor))
    table, words = ClipTable.read(dataset, "test", 32), words_of(dataset)
    found = explain(dataset, tmp_path, "test", words)
    row = int(np.argmax((table.lengths() > 0).all(axis=1)))
    view = found.views[table.clip_ids[row]]
    assert set(view.attention) == {anchor} and found.anchor == anchor
    batch = table.batch(np.array([row]))
    with torch.inference_mode():
        looks = network.alignment.weights(network.encode(batch), batch.missing())["text"][0].numpy()
    np.testing.assert_allclose(view.attention[anchor].steps_WT, looks[1:].T, atol=1e-6)
    lacking = int(np.argmax(table.lengths((anchor,))[:, 0] == 0))
    assert found.views[table.clip_ids[lacking]].attention == {}, "another modality took the anchor's place"


@pytest.mark.parametrize("anchor", ["symmetric", "adaptive"])
def test_of_several_anchors_texts_own_is_shown_and_the_shares_where_they_are_learned(dataset, tmp_path, anchor):
    network = save(dataset, tmp_path, replace(SMALL, anchor=anchor))
    table = ClipTable.read(dataset, "test", 32)
    row = int(np.argmax((table.lengths() > 0).all(axis=1)))
    view = explain(dataset, tmp_path, "test", words_of(dataset)).views[table.clip_ids[row]]
    batch = table.batch(np.array([row]))
    with torch.inference_mode():
        looks = network.alignment.anchors[0].weights(network.encode(batch), {})["audio"][0].numpy()
    np.testing.assert_allclose(view.attention["audio"].steps_WT, looks[:, 1:], atol=1e-6)
    assert bool(view.anchors) == (anchor == "adaptive")
    if view.anchors:
        assert sum(view.anchors.values()) == pytest.approx(1)


def test_without_alignment_there_is_no_attention_and_the_reason_is_said(dataset, tmp_path):
    save(dataset, tmp_path, replace(SMALL, alignment=False))
    found = explain(dataset, tmp_path, "test", words_of(dataset))
    assert "no temporal alignment" in found.no_attention_reason
    assert not any(view.attention for view in found.views.values()) and any(v.tracks for v in found.views.values())


def test_tokens_without_words_leave_attention_out(dataset_writer, tmp_path):
    def no_words(split, table):
        place = table.column_names.index("text_word_index")
        index = [[-1] * len(steps) for steps in table["text_mask"].to_pylist()]
        return table.set_column(place, "text_word_index", pa.array(index, pa.list_(pa.int32())))

    dataset = dataset_writer(tmp_path / "data", change=no_words)
    save(dataset, tmp_path / "best")
    found = explain(dataset, tmp_path / "best", "test", words_of(dataset))
    assert found.no_attention_reason == NO_WORDS and not any(view.attention for view in found.views.values())
    assert all(np.isnan(view.word_times_W2).all() for view in found.views.values())


def test_a_network_of_one_modality_shows_that_one(dataset, tmp_path):
    save(dataset, tmp_path, train=TrainConfig(modalities=("vision",)))
    found = explain(dataset, tmp_path, "test", words_of(dataset))
    assert list(found.features) == ["vision"] and found.no_attention_reason == NO_TEXT
    assert not any(view.attention for view in found.views.values())
    assert all(set(view.tracks) <= {"vision"} for view in found.views.values())


def test_a_text_encoder_of_its_own_cuts_words_where_its_tokenizer_does(dataset_writer, tmp_path):
    texts = ["It was, all in all, wonderful!", "", "Not wonderful at all."]

    def with_texts(split, table):
        column = pa.array([texts[i % 3] for i in range(len(table))])
        return table.set_column(table.column_names.index("text"), "text", column)

    dataset = dataset_writer(tmp_path / "data", missing=False, change=with_texts)
    config = replace(SMALL, text=TextConfig(mode="scratch", vocabulary=64, width=16, heads=2, max_tokens=32))
    save(dataset, tmp_path / "best", config)
    clips = ClipTable.read(dataset, "test", 32).clip_ids
    words = {clips[0]: texts[0].split(), clips[1]: [], clips[2]: texts[2].split()}
    found = explain(dataset, tmp_path / "best", "test", words)
    attention = found.views[clips[0]].attention["audio"]
    np.testing.assert_allclose(attention.steps_WT.sum(axis=1) + attention.cls_W, 1, atol=1e-5)
    assert len(attention.cls_W) == 6 and found.views[clips[1]].attention == {}


def test_tokens_belong_to_the_word_they_begin_in(dataset_writer, tmp_path):
    dataset = dataset_writer(tmp_path / "data")
    config = replace(SMALL, text=TextConfig(mode="scratch", tokenizer="character", vocabulary=64))
    text = prepare_text(config, dataset)
    assert words_of_tokens(text, "so  is it.", ["so", "is", "it."]).tolist() == [-1, 0, 0, 1, 1, 2, 2, 2, -1]
    assert words_of_tokens(text, "so is", ["so", "gone", "is"]).tolist() == [-1, 0, 0, 2, 2, -1]


def test_tracks_are_standardised_by_the_training_statistics(dataset, tmp_path):
    save(dataset, tmp_path)
    table = ClipTable.read(dataset, "test", 32)
    found = explain(dataset, tmp_path, "test", words_of(dataset))
    row = int(np.argmax(table.lengths(("vision",))[:, 0] > 0))
    track, sequences = found.views[table.clip_ids[row]].tracks["vision"], table.sequences["vision"]
    steps = slice(sequences.starts[row], sequences.starts[row] + sequences.lengths[row])
    column = found.features["vision"][0].column
    statistics = table.info.statistics["vision"]
    expected = (sequences.values[steps][:, column] - statistics.mean[column]) / statistics.std[column]
    np.testing.assert_allclose(track.values_TF[:, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(track.visible_T, sequences.visible[steps])
    np.testing.assert_allclose(track.start_T, np.arange(len(expected)) * 0.1, atol=1e-6)


def test_features_are_chosen_by_their_correlation_and_none_twice_over(dataset_writer, tmp_path):
    def change(split, table):
        """Feature 3 is the label, 4 the same with a little noise, 1 the label with much; the others are noise."""
        rng = np.random.default_rng(len(table))
        labels = table["label"].to_pylist()
        noise = rng.normal(size=len(table))
        values = [
            [[rng.normal(), label + 3 * off, rng.normal(), label, label + 0.1 * off] for _ in steps]
            for label, off, steps in zip(labels, noise, table["audio_values"].to_pylist(), strict=True)
        ]
        place = table.column_names.index("audio_values")
        return table.set_column(place, "audio_values", pa.array(values, table["audio_values"].type))

    dataset = dataset_writer(tmp_path, clips={"train": 8, "valid": 0, "test": 60}, missing=False, change=change)
    table = ClipTable.read(dataset, "test", 32)
    chosen = informative_features(table, "audio", count=2)
    assert [feature.name for feature in chosen] == ["audio3", "audio1"]
    assert chosen[0].correlation == pytest.approx(1) and MAX_CORRELATION < 1
    unlabelled = replace(table, labels=np.full(len(table), np.nan, np.float32))
    assert len(informative_features(unlabelled, "audio", count=2)) == 2
    assert informative_features(unlabelled, "audio", count=2)[0].correlation is None


def test_a_feature_with_a_name_goes_before_a_numbered_one_that_tells_little_more(dataset):
    table = ClipTable.read(dataset, "train", 32)
    plain = informative_features(table, "vision", count=1)[0]
    info = table.info.modalities["vision"]
    names = tuple(f"part_{i}" if i == plain.column else name for i, name in enumerate(info.feature_names))
    renamed = replace(table.info, modalities={**table.info.modalities, "vision": replace(info, feature_names=names)})
    found = informative_features(replace(table, info=renamed), "vision", count=1)[0]
    assert found.column != plain.column and abs(found.correlation) > abs(plain.correlation) / 2


def test_steps_that_are_pooled_onto_special_tokens_have_no_moment(dataset_writer, tmp_path):
    def one_step_a_token(split, table):
        for m, dim in (("audio", 5), ("vision", 7)):
            lengths = [len(steps) for steps in table["text_mask"].to_pylist()]
            values = {
                "values": [[[0.5] * dim] * n for n in lengths],
                "mask": [[True] * n for n in lengths],
                "start": [[0.1 * k for k in range(n)] for n in lengths],
                "end": [[0.1 * k + 0.1 for k in range(n)] for n in lengths],
            }
            for name, column in values.items():
                place = table.column_names.index(f"{m}_{name}")
                table = table.set_column(place, f"{m}_{name}", pa.array(column, table[f"{m}_{name}"].type))
        index = [[-1, *range(n - 2), -1] for n in lengths]
        place = table.column_names.index("text_word_index")
        return table.set_column(place, "text_word_index", pa.array(index, pa.list_(pa.int32())))

    dataset = dataset_writer(tmp_path / "data", missing=False, change=one_step_a_token)
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"unaligned"', '"aligned"'))
    save(dataset, tmp_path / "best")
    words = {clip_id: names[:-2] for clip_id, names in words_of(dataset).items()}
    for view in explain(dataset, tmp_path / "best", "test", words).views.values():
        assert view.tracks["audio"].visible_T.tolist() == [False, *[True] * len(view.word_times_W2), False]


def test_a_clip_of_another_split_is_refused_by_name(dataset, tmp_path):
    save(dataset, tmp_path)
    with pytest.raises(ValueError, match="the test split has no clip train/0000; name clips of that split"):
        explain(dataset, tmp_path, "test", {"train/0000": []})
