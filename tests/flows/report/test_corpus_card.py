from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.manifest import MODALITIES, SPLITS, Clip, Manifest
from corpora.problems import Problem
from extractors.dataset.align import dataset_schema
from extractors.store import ShardWriter
from extractors.transcripts.table import Transcript
from flows.display.metrics import NOTHING
from flows.report import ReportInput, write_report
from flows.report.corpus_card import corpus_card

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WIDE = (-3.0, 3.0)
HOSTILE = '<script>alert(1)</script> & "q"'


def make_clip(name: str, split: str, label: float | None, **values: object) -> Clip:
    video, _, _ = name.partition("/")
    return Clip(name, video, split, "en", "", "", label, **{"duration": 3.0} | values)


CLIPS = (
    make_clip("a/1", "train", -3.0, duration=2.0, label_text=-3.0, label_audio=1.0),
    make_clip("a/2", "train", 0.0, duration=4.0, label_text=0.0),
    make_clip("b/1", "train", None, duration=12.0, label_text=1.0),
    make_clip("c/1", "test", 3.0, duration=None, label_text=3.0),
    make_clip("c/2", "test", 2.6, duration=6.0),
)
VALID = {
    "a/1": {"text": [1, 1], "audio": [1, 1, 0, 1], "vision": [1, 0]},
    "a/2": {"text": [1], "audio": [1], "vision": []},
    "b/1": {"text": [], "audio": [1] * 5, "vision": [0, 0, 0]},
    "c/1": {"text": [1], "audio": [0, 0], "vision": [1, 1, 1, 0]},
}
"""Steps by clip and modality, 1 where the mask shows them; c/2 is not in the dataset."""


def write_dataset(folder: Path, clips: Sequence[Clip], valid: Mapping[str, Mapping[str, list[int]]], **content: object):
    """The clips that `valid` has, in parts of two; a split without any has a part without rows."""
    schema = dataset_schema(dict.fromkeys(MODALITIES, 2))
    for split in SPLITS:
        with ShardWriter(folder / split, schema, shard_clips=2) as writer:
            for clip in clips:
                if clip.split == split and clip.clip_id in valid:
                    writer.write(make_row(clip, valid[clip.clip_id]))
    modalities = {m: {"signature": f"{m}.tiny-v1-0"} for m in MODALITIES}
    (folder / "dataset.json").write_text(json.dumps({"mode": "unaligned", "modalities": modalities} | content))
    return folder


def make_row(clip: Clip, valid: Mapping[str, list[int]]) -> dict[str, object]:
    row = {name: getattr(clip, name) for name in ("clip_id", "video_id", "speaker", "text", "label")}
    row |= {f"label_{m}": getattr(clip, f"label_{m}") for m in MODALITIES}
    for m, mask in valid.items():
        row |= {f"{m}_values": np.ones((len(mask), 2), np.float32), f"{m}_mask": np.array(mask, bool)}
        row |= {f"{m}_{edge}": np.zeros(len(mask), np.float32) for edge in ("start", "end")}
    tokens = np.zeros(len(valid["text"]), np.int32)
    return row | {"text_token_ids": tokens, "text_word_index": tokens, "word_times_method": ""}


def make_transcripts(clips: Sequence[Clip], words: Mapping[str, int]) -> dict[str, Transcript]:
    return {
        clip.clip_id: Transcript(clip.clip_id, "", "corpus", ["word"] * words.get(clip.clip_id, 0)) for clip in clips
    }


@pytest.fixture
def make_card(tmp_path: Path):
    """The card of the small corpus, or of another one."""

    def make(
        clips: Sequence[Clip] = CLIPS,
        valid: Mapping[str, Mapping[str, list[int]]] = VALID,
        problems: Sequence[Problem] = (),
        mask_invalid: Sequence[str] = ("vision",),
        label_range: tuple[float, float] = WIDE,
        drawn: Mapping[str, object] | None = None,
        **content: object,
    ):
        dataset = write_dataset(tmp_path / "dataset", clips, valid, **content)
        transcripts = make_transcripts(clips, {"a/1": 2, "a/2": 5, "c/1": 7})
        manifest = Manifest("tiny", "", label_range, clips, drawn=drawn)
        return corpus_card(manifest, transcripts, dataset, problems, mask_invalid)

    return make


@pytest.fixture
def render(tmp_path: Path):
    """HTML of a report that has this card."""

    def write(card, corpus: str = "tiny", problems: Sequence[Problem] = ()) -> str:
        clips = {clip.clip_id: clip for clip in CLIPS}
        predictions = pa.table(
            {"clip_id": ["c/1"], "label": pa.array([3.0], pa.float32()), "prediction": pa.array([2.5], pa.float32())}
        )
        path = tmp_path / "index.html"
        write_report(
            path, ReportInput(corpus, "test", WIDE, {"mae": 0.5}, predictions, clips, problems=problems, card=card)
        )
        return path.read_text(encoding="utf-8")

    return write


def test_clips_videos_lengths_and_words_are_counted_by_split_and_in_all(make_card):
    card = make_card()
    rows = dict(card.rows)
    assert card.groups == ["train", "test", "all"]  # valid has no clip
    assert rows["Clips"] == ["3", "2", "5"]
    assert rows["Videos"] == ["2", "1", "3"]
    assert rows["Minutes"] == ["0.3", "0.1", "0.4"]
    assert rows["Median (s)"] == ["4.0", "6.0", "5.0"]
    assert (rows["Shortest (s)"], rows["Longest (s)"]) == (["2.0", "6.0", "2.0"], ["12.0", "6.0", "12.0"])
    assert rows["Median words"] == ["3.5", "7", "5"]  # of the clips in which any is said
    assert rows["Length unknown"] == ["0", "1", "1"]


def test_a_video_in_two_splits_counts_once_in_all(make_card):
    clips = (make_clip("a/1", "train", 1.0), make_clip("a/2", "test", 1.0))
    assert dict(make_card(clips, {}).rows)["Videos"] == ["1", "1", "1"]


def test_what_is_missing_is_counted_by_split(make_card):
    rows = dict(make_card().rows)
    assert rows["Without label"] == ["1", "0", "1"]
    assert rows["Without text"] == ["1", "0", "1"]
    assert rows["Without audio"] == ["0", "0", "0"]
    assert rows["Without vision"] == ["1", "0", "1"]
    assert rows["Not in dataset"] == ["0", "1", "1"]


def test_a_modality_of_which_nothing_is_missing_says_so_while_rarer_rows_are_left_out(make_card):
    clips = (make_clip("a/1", "train", 1.0),)
    rows = dict(make_card(clips, {"a/1": {m: [1] for m in MODALITIES}}).rows)
    assert rows["Without vision"] == ["0", "0"]
    assert "Not in dataset" not in rows and "Length unknown" not in rows


def test_valid_steps_are_told_where_the_mask_tells_them(make_card):
    rows = dict(make_card().rows)
    assert rows["Valid vision"] == ["20.0%", "75.0%", "44.4%"]
    assert "Valid audio" not in rows
    both = dict(make_card(mask_invalid=("audio", "vision")).rows)
    assert both["Valid audio"] == ["90.0%", "0.0%", "75.0%"]
    assert not any(name.startswith("Valid") for name, _ in make_card(mode="aligned").rows)


def test_a_corpus_of_hours_is_told_in_hours(make_card):
    clips = tuple(make_clip(f"v/{i}", "train", 1.0, duration=1800.0) for i in range(5))
    rows = dict(make_card(clips, {}).rows)
    assert rows["Hours"] == ["2.5", "2.5"]
    assert "Minutes" not in rows


def test_clips_without_any_known_length_leave_dashes(make_card):
    rows = dict(make_card((make_clip("v/1", "train", 1.0, duration=None),), {}).rows)
    for name in ("Minutes", "Median (s)", "Shortest (s)", "Longest (s)", "Median words", "Valid vision"):
        assert rows[name] == [NOTHING, NOTHING], name


def test_labels_are_counted_in_the_classes_of_the_confusion_matrix(make_card):
    card = make_card()
    assert dict(card.classes) == {
        "-3": [1, 0, 1],
        "-2": [0, 0, 0],
        "-1": [0, 0, 0],
        "0": [1, 0, 1],
        "1": [0, 0, 0],
        "2": [0, 0, 0],
        "3": [0, 2, 2],
    }
    svg = str(card.histogram.svg)
    assert "train" in svg and "test" in svg and "valid" not in svg
    narrow = make_card((make_clip("v/1", "valid", -0.1),), {}, label_range=(-1.0, 1.0))
    assert dict(narrow.classes)["(-0.7, -0.1]"] == [1, 1]


def test_without_a_label_there_is_no_histogram(make_card, render):
    card = make_card((make_clip("v/1", "train", None),), {})
    assert card.histogram is None
    assert "No clip has a label." in render(card)


def test_labels_of_one_modality_are_counted_and_compared_with_the_clips_label(make_card):
    text, audio = make_card().by_modality
    assert text == ("text", 4, pytest.approx(1.0))
    assert audio == ("audio", 1, None)  # of one clip there is no correlation


def test_why_clips_are_not_in_the_dataset_is_counted_by_clip(make_card, render):
    problems = [
        Problem("c/2", "extract", "vision", "NoFace", "first"),
        Problem("c/2", "extract", "vision", "NoFace", "again"),
        Problem("c/2", "align", "", "NoModality", ""),
        Problem("a/2", "extract", "vision", "NoFace", "in the dataset all the same"),
    ]
    card = make_card(problems=problems)
    assert card.absent == 1
    assert card.reasons == [(("align", "", "NoModality"), 1), (("extract", "vision", "NoFace"), 1)]
    page = " ".join(render(card, problems=problems).split())
    assert "1 clip is not in the dataset: <strong>NoModality</strong> in align, 1; <strong>NoFace</strong> in" in page
    assert 'href="#problems"' in page and page.count('id="problems"') == 1
    assert "no problem was recorded for it" in render(make_card())


def test_splits_that_were_drawn_are_told_from_the_corpuss_own(make_card, render):
    page = render(make_card(drawn={"valid": 0.15, "test": 0.2, "by": "speaker", "seed": 7}))
    assert "drawn at random by speaker" in page and "0.15 of the clips for valid, 0.2 for test, seed 7" in page
    assert "drawn at random" not in render(make_card())


def test_what_comes_from_outside_is_escaped(make_card, render):
    problems = [Problem("c/2", HOSTILE, HOSTILE, HOSTILE, "")]
    card = make_card(problems=problems, modalities={m: {"signature": HOSTILE} for m in MODALITIES})
    html = render(card, corpus=HOSTILE, problems=problems)
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;q&#34;") >= 6


def test_an_empty_corpus_has_a_card(make_card, render):
    card = make_card((), {})
    assert card.groups == ["all"] and dict(card.rows)["Clips"] == ["0"]
    assert "The corpus" in render(card)


def test_no_features_are_read(make_card, monkeypatch):
    read = []
    original = pq.ParquetFile.iter_batches

    def watched(self, *args, columns, **options):
        read.extend(columns)
        return original(self, *args, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    make_card()
    assert set(read) == {"clip_id", "text_mask", "audio_mask", "vision_mask"}
