from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from corpora.inspection import CorpusInspection, inspect_corpus, label_histogram

MakeCorpus = Callable[..., Path]


def look(root: Path) -> CorpusInspection:
    return inspect_corpus(root, language="en", label_range=(-3.0, 3.0))


def without(stream: str, path: Path) -> None:
    """Rewrite a media file without its audio or video stream."""
    whole = path.with_name("whole.mp4")
    shutil.move(path, whole)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        (kept,) = [s for s in source.streams if s.type != stream]
        copied = target.add_stream_from_template(kept)
        for packet in source.demux(kept):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    whole.unlink()


def test_a_sound_corpus_has_nothing_to_complain_of(demo: Path):
    found = look(demo)
    assert (found.rows, found.unusable, found.problems) == (5, 0, ())
    assert found.missing_modalities() == {"text": [], "audio": [], "vision": []}
    assert found.languages() == {"en": 5} and sum(map(len, found.splits().values())) == 5
    seconds = found.durations()
    assert len(seconds) == 5 and (seconds[1:] >= seconds[:-1]).all() and seconds[0] > 0.5
    formats = found.formats()
    assert formats["video codec"] == {"h264": 5} and formats["audio codec"] == {"aac": 5}
    assert formats["frames a second"] == {"25": 5} and formats["frame size"].total() == 5


def test_what_clips_lack_is_listed_by_modality(corpus: MakeCorpus):
    root = corpus({}, {"clip_id": "mute"}, {"clip_id": "blind"}, {"clip_id": "wordless", "text": ""})
    without("audio", root / "Raw/v/mute.mp4")
    without("video", root / "Raw/v/blind.mp4")
    found = look(root)
    assert found.missing_modalities() == {"text": ["v/wordless"], "audio": ["v/mute"], "vision": ["v/blind"]}
    assert found.formats()["audio codec"] == {"aac": 3, "none": 1}
    assert found.formats()["frame size"]["none"] == 1 and found.unusable == 0


@pytest.mark.parametrize(
    ("row", "error", "kept"),
    [
        ({"clip_id": "2", "mode": "eval"}, "UnknownSplit", 1),
        ({"clip_id": "2", "media": False}, "MissingMedia", 1),
        ({"clip_id": "1"}, "DuplicateClip", 1),
        ({"clip_id": "2", "label": "9"}, "LabelOutOfRange", 1),
    ],
)
def test_rows_that_are_left_out_count_as_unusable(corpus: MakeCorpus, row: dict, error: str, kept: int):
    found = look(corpus({}, row))
    assert [p.error for p in found.problems] == [error]
    assert (found.rows, found.unusable, len(found.manifest.clips)) == (2, 1, kept)


def test_media_that_cannot_be_read_is_unusable_but_a_video_in_two_splits_is_not(corpus: MakeCorpus):
    root = corpus({}, {"clip_id": "2", "mode": "test"}, {"clip_id": "3"})
    (root / "Raw/v/3.mp4").write_bytes(b"")
    found = look(root)
    assert {p.error for p in found.problems} == {"UnreadableMedia", "StraddlingVideo"}
    assert (found.rows, found.unusable) == (3, 1)
    assert set(found.media) == {"v/1", "v/2"} and len(found.durations()) == 2


def test_labels_fall_into_seven_parts_of_the_range(corpus: MakeCorpus):
    labels = ["-3", "-2.2", "0", "0.4", "3", ""]
    root = corpus(*({"clip_id": str(i), "label": label} for i, label in enumerate(labels)))
    with (root / "label.csv").open(encoding="utf-8") as table:
        assert len(list(csv.DictReader(table))) == 6
    assert label_histogram(look(root).manifest.clips, (-3.0, 3.0)).tolist() == [2, 0, 0, 2, 0, 0, 1]
