"""A folder of computational sequences becomes a corpus: clips cut out of their videos, with true times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from corpora.readers.csd import read_csd
from extractors.imported import write_imported
from extractors.store import FeatureReader
from tests.support.features import write_csd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from corpora.readers.feature_corpus import ImportedCorpus, ImportedSteps

h5py = pytest.importorskip("h5py")


def steps_of(count: int, hop: float, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that say which step they are, and times."""
    start = np.arange(count) * hop
    values = np.arange(1, count + 1)[:, None] + np.arange(width) / 10
    return values.astype(np.float32), np.column_stack([start, start + hop])


WORDS = (np.array([["sp"], ["one"], ["two"], ["sp"], ["three"]], "S8"), [(0, 1), (1, 2), (2, 4), (4, 5), (5, 9)])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Video v with clips at [1, 4) and [5, 9) s, video w with one at [0, 2) s."""
    write_csd(
        tmp_path / "labels.csd",
        {"v": ([[3.0, 9.0], [-1.0, 9.0]], [(1, 4), (5, 9)]), "w": ([[0.5, 9.0]], [(0, 2)])},
    )
    write_csd(tmp_path / "words.csd", {"v": WORDS})
    write_csd(tmp_path / "text.csd", {"v": (np.ones((5, 4)) * np.arange(1, 6)[:, None], WORDS[1])})
    write_csd(tmp_path / "audio.csd", {"v": steps_of(100, 0.1, 3), "w": steps_of(30, 0.1, 3)})
    write_csd(tmp_path / "vision.csd", {"v": steps_of(20, 0.5, 2), "w": steps_of(6, 0.5, 2)})
    (tmp_path / "splits.csv").write_text("video_id,split\nv,train\nw,test\n")
    return tmp_path


@pytest.fixture
def read(folder) -> Callable[[], ImportedCorpus]:
    return lambda: read_csd(folder, corpus="mosi", language="en", label_range=(-3.0, 3.0), root="data")


def steps(corpus: ImportedCorpus, modality: str) -> dict[str, ImportedSteps]:
    return {clip_id: found for clip_id, found, _ in corpus.read(modality)}


def test_clips_have_the_labels_words_and_durations_of_their_segments(read):
    corpus = read()
    clips = [(c.clip_id, c.split, c.label, c.text, c.duration, c.media) for c in corpus.manifest.clips]
    assert clips == [
        ("v/1", "train", 3.0, "one two", 3.0, ""),
        ("v/2", "train", -1.0, "three", 4.0, ""),
        ("w/1", "test", 0.5, "", 2.0, ""),
    ]
    assert not corpus.problems and not corpus.remarks
    assert {m: len(names) for m, names in corpus.feature_names.items()} == {"text": 4, "audio": 3, "vision": 2}


def test_steps_are_cut_out_by_their_middle_and_count_from_the_clips_start(read):
    audio, vision = steps(read(), "audio"), steps(read(), "vision")
    assert {clip_id: len(one) for clip_id, one in audio.items()} == {"v/1": 30, "v/2": 40, "w/1": 20}
    assert audio["v/2"].values[0, 0] == 51 and audio["v/2"].start[0] == 0
    assert np.allclose(audio["v/2"].end, (np.arange(40) + 1) / 10) and audio["v/1"].valid.all()
    assert vision["w/1"].values[:, 0].tolist() == [1, 2, 3, 4]


def test_word_vectors_keep_the_times_of_their_words_cut_at_the_clips_edges(read):
    text = steps(read(), "text")
    assert text["v/1"].values[:, 0].tolist() == [2, 3]
    assert [text["v/1"].start.tolist(), text["v/1"].end.tolist()] == [[0, 1], [1, 3]]
    assert len(text["w/1"]) == 0 and text["v/2"].token_ids.tolist() == [-1]


def test_a_step_that_reaches_over_the_edge_is_cut(folder, read):
    write_csd(folder / "vision.csd", {"v": ([[1.0], [2.0], [3.0]], [(0.5, 2), (3, 4.75), (8, 12)])})
    vision = steps(read(), "vision")
    assert [vision["v/1"].start.tolist(), vision["v/1"].end.tolist()] == [[0, 2], [1, 3]]
    assert vision["v/2"].values.tolist() == []


def test_steps_out_of_order_are_put_in_order(folder, read):
    values, times = steps_of(100, 0.1, 3)
    write_csd(folder / "audio.csd", {"v": (values[::-1], times[::-1])})
    assert (np.diff(steps(read(), "audio")["v/1"].start) > 0).all()


def test_files_aligned_to_the_labels_give_the_same_clips(folder, read):
    before = read()
    values, times = steps_of(100, 0.1, 3)
    pieces = {"v[0]": slice(10, 40), "v[1]": slice(50, 90)}
    audio = steps(before, "audio")
    write_csd(folder / "audio.csd", {key: (values[rows], times[rows]) for key, rows in pieces.items()})
    labels = {"v[0]": ([[3.0]], [(1, 4)]), "v[1]": ([[-1.0]], [(5, 9)]), "w[0]": ([[0.5]], [(0, 2)])}
    write_csd(folder / "labels.csd", labels)
    after = read()
    assert [(c.clip_id, c.label, c.duration) for c in after.manifest.clips] == [
        (c.clip_id, c.label, c.duration) for c in before.manifest.clips
    ]
    for clip_id in ("v/1", "v/2"):
        assert np.array_equal(steps(after, "audio")[clip_id].values, audio[clip_id].values)


def test_values_that_are_not_finite_are_counted_and_written_as_zero(folder, read, tmp_path):
    values, times = steps_of(100, 0.1, 3)
    values[12, 1], values[60] = -np.inf, np.nan
    write_csd(folder / "audio.csd", {"v": (values, times)})
    counts, problems = write_imported(read(), tmp_path / "out", "csd")
    assert counts["audio"].replaced == 4 and counts["audio"].clips == 2
    assert [(p.clip_id, p.error) for p in problems] == [("v/1", "NotFinite"), ("v/2", "NotFinite")]
    stored = FeatureReader(tmp_path / "out" / "features" / "audio", "audio")["v/1"]
    assert np.flatnonzero(~stored.valid).tolist() == [2] and stored.values[2, 1] == 0


def test_a_video_without_a_split_is_left_out_and_listed(folder, read):
    (folder / "splits.csv").write_text("video_id,split\nv,train\n")
    corpus = read()
    assert [clip.clip_id for clip in corpus.manifest.clips] == ["v/1", "v/2"]
    assert [(p.clip_id, p.error) for p in corpus.problems] == [("w/1", "NoSplit")]
    assert list(steps(corpus, "audio")) == ["v/1", "v/2"]


def test_what_is_absent_is_said_and_the_rest_is_read(folder, read):
    for name in ("text", "vision", "words"):
        (folder / f"{name}.csd").unlink()
    corpus = read()
    assert set(corpus.feature_names) == {"audio"} and len(corpus.remarks) == 2
    assert {clip.text for clip in corpus.manifest.clips} == {""}
    for name in ("splits.csv", "labels.csd"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{name}.*prepare\.root"):
            read()


@pytest.mark.parametrize(
    ("name", "entries", "said"),
    [
        ("labels", {"v": ([[1.0]], [(1, 4), (5, 9)])}, "2 segments, but features"),
        ("labels", {"v": (np.array([[b"good"]]), [(1, 4)])}, "1 segments, but features"),
        ("labels", {"v[x]": ([[1.0]], [(1, 4)])}, "neither a video nor"),
        ("audio", {"v": ([[1.0]], [(4, 1)])}, "no time runs from 4 to 1 s"),
        ("audio", {"v": ([[1.0]], [(np.nan, 1)])}, "no time runs from nan"),
        ("audio", {"v": ([[1.0], [2.0]], [(0, 1)])}, "features must be numbers"),
        ("audio", {"v": (np.array([[b"loud"]]), [(0, 1)])}, "features must be numbers"),
        ("audio", {"v": ([[1.0]], [(0, 1)]), "w": ([[1.0, 2.0]], [(0, 1)])}, "features must be numbers"),
        ("words", {"v": ([[1.0]], [(1, 2)])}, "give the words"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused_with_file_and_key(folder, read, name, entries, said):
    write_csd(folder / f"{name}.csd", entries)
    with pytest.raises(ValueError, match=rf"{name}\.csd") as refused:
        steps(read(), "audio")
    assert said in str(refused.value)


def test_a_damaged_file_is_refused(folder, read):
    whole = (folder / "audio.csd").read_bytes()
    (folder / "audio.csd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"audio\.csd: not a whole \.csd"):
        read()


def external_storage(file: Any, secret: Path) -> None:
    file.create_dataset("sequence/data/v/features", (1, 1), "S16", external=[(str(secret), 0, 16)])


def external_link(file: Any, secret: Path) -> None:
    file["sequence/data/v/features"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "secret")


def soft_link(file: Any, secret: Path) -> None:
    external_link(file, secret)
    file["sequence/data/w"] = h5py.SoftLink("/sequence/data/v")


def link_of_a_group(file: Any, secret: Path) -> None:
    del file["sequence/data"]
    file["sequence/data"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "group")


def link_of_the_sequence(file: Any, secret: Path) -> None:
    del file["sequence"]
    file["sequence"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")


def virtual(file: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((1, 1), "S16")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "secret", (1, 1))
    file.create_virtual_dataset("sequence/data/v/features", layout)


HOSTILE = [external_storage, external_link, soft_link, link_of_a_group, link_of_the_sequence, virtual]


@pytest.mark.parametrize("name", ["words", "text", "audio", "labels"])
@pytest.mark.parametrize("hide", HOSTILE)
def test_a_file_that_would_have_other_files_read_is_refused(folder, read, tmp_path, hide, name):
    secret = tmp_path / "secret"
    secret.write_text("the user's token")
    with h5py.File(secret.with_suffix(".h5"), "w") as other:
        other["secret"] = np.array([[b"the user's token"]])
        other["group/v/features"], other["group/v/intervals"] = other["secret"][:], [(1.0, 2.0)]
        other["data"] = other["group"]
    with h5py.File(folder / f"{name}.csd", "w") as file:
        file["sequence/data/v/intervals"] = [(1.0, 2.0)]
        hide(file, secret)
    with pytest.raises(ValueError, match=rf"{name}\.csd.*refused: ") as refused:
        steps(read(), name)
    assert "token" not in str(refused.value)


def test_an_intervals_dataset_in_another_file_is_refused(folder, read, tmp_path):
    with h5py.File(folder / "words.csd", "w") as file:
        file.create_dataset("sequence/data/v/intervals", (1, 2), "f8", external=[(str(folder / "splits.csv"), 0, 16)])
        file["sequence/data/v/features"] = np.array([[b"word"]])
    with pytest.raises(ValueError, match=r"words\.csd, key 'v': refused: intervals is external storage"):
        read()
