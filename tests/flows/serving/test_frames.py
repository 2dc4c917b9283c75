"""Still frames for browsers that cannot play a clip: few, evenly spaced, and never an error."""

from __future__ import annotations

import base64
import io
from itertools import pairwise

import av
import pytest

from flows.serving.frames import MAX_FRAMES, MAX_SIDE, still_frames
from media.container import probe


def test_frames_are_jpegs_spread_over_the_clip(clip):
    duration = probe(clip).duration
    frames = still_frames(clip, duration)
    times = [frame["time"] for frame in frames]
    assert len(frames) == MAX_FRAMES and times[0] == 0
    assert all(b - a == pytest.approx(duration / MAX_FRAMES, abs=0.01) for a, b in pairwise(times))
    head, _, data = frames[-1]["image"].partition(",")
    assert head == "data:image/jpeg;base64"
    with av.open(io.BytesIO(base64.b64decode(data))) as image:
        frame = next(image.decode(video=0))
    assert 0 < max(frame.width, frame.height) <= MAX_SIDE


def test_of_what_has_no_picture_there_are_none(tmp_path, clip):
    (tmp_path / "letter.mp4").write_text("This is a letter.")
    assert still_frames(tmp_path / "letter.mp4", 3.0) == []
    (tmp_path / "torn.mp4").write_bytes(clip.read_bytes()[:2000])
    assert still_frames(tmp_path / "torn.mp4", 0.0) == []


def test_they_are_sent_on_request_only(new_client, clip):
    client = new_client()
    for data, count in (({}, None), ({"frames": "true"}, MAX_FRAMES)):
        with clip.open("rb") as file:
            (result,) = client.post("/predict", files={"file": file}, data=data).json()["results"]
        assert (None if count is None else len(result["frames"])) == count
        assert ("frames" in result) == (count is not None)
