"""What `vision.face_landmarker` makes of the task's results, and what it says of a file that is no bundle."""

from __future__ import annotations

import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from extractors.base import ExtractionError, MissingModalityError, Source
from extractors.vision.face_landmarker import BLENDSHAPES, BUNDLED, FaceLandmarkerVision, to_features, to_snake
from extractors.vision.face_tracking import FaceSelector


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


def camel(name):
    first, *others = name.split("_")
    return "_neutral" if name == "neutral" else first + "".join(part.title() for part in others)


def result(scores, matrix=None):
    """What the task gives for one face."""
    from mediapipe.tasks.python.components.containers.category import Category
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarkerResult

    categories = [Category(i, score, "", camel(name)) for i, (name, score) in enumerate(scores.items())]
    return FaceLandmarkerResult([[]], [categories], [np.eye(4) if matrix is None else matrix])


@pytest.fixture
def bundle(tmp_path):
    """A file that looks like a bundle, and holds no model."""
    path = tmp_path / "face_landmarker.task"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(BUNDLED, b"nothing")
    return path


@pytest.fixture
def followed(bundle, monkeypatch):
    """The extractor, on a task that answers with the results given, one a frame."""

    def make(results, **options):
        extractor = FaceLandmarkerVision(str(bundle), **options)
        asked = []

        def detect_for_video(picture, milliseconds):
            asked.append((picture.numpy_view().shape, milliseconds))
            return results[len(asked) - 1]

        monkeypatch.setattr(extractor, "_open", lambda: nullcontext(SimpleNamespace(detect_for_video=detect_for_video)))
        return extractor, asked

    return make


def test_the_names_are_the_tasks_own_in_its_order():
    from mediapipe.tasks.python.vision.face_landmarker import Blendshapes

    assert tuple(shape.name.lower() for shape in Blendshapes) == BLENDSHAPES
    assert [to_snake(name) for name in ("_neutral", "browDownLeft", "jawOpen")] == [
        "neutral",
        "brow_down_left",
        "jaw_open",
    ]
    assert FaceLandmarkerVision.feature_names == (
        *("head_pitch", "head_yaw", "head_roll", "head_x", "head_y", "head_z"),
        *BLENDSHAPES,
    )


def test_pose_and_scores_are_taken_over():
    scores = {name: i / 100 for i, name in enumerate(BLENDSHAPES)}
    yaw = 0.3
    turned = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 1.1 * turned, (2, -3, -40)
    values = to_features(result(scores, matrix))
    assert values.dtype == np.float32
    assert values[:6] == pytest.approx([0, yaw, 0, 2, -3, -40], abs=1e-6)
    assert (turned @ [0, 0, 1])[0] > 0  # the nose goes to the picture's right
    assert values[6:] == pytest.approx(np.arange(52) / 100)


def test_other_blendshapes_are_refused():
    scores = dict.fromkeys(BLENDSHAPES[:-1], 0.5)
    with pytest.raises(ExtractionError, match=r"not the 52 known ones: \['nose_sneer_right'\]"):
        to_features(result(scores))
    swapped = dict.fromkeys((*BLENDSHAPES[1:], BLENDSHAPES[0]), 0.5)
    with pytest.raises(ExtractionError, match="another order"):
        to_features(result(swapped))


def test_every_frame_is_a_step_and_those_without_a_face_are_invalid_zeros(followed, make_clip, tmp_path):
    from mediapipe.tasks.python.vision.face_landmarker import FaceLandmarkerResult

    face, none = result(dict.fromkeys(BLENDSHAPES, 0.25)), FaceLandmarkerResult([], [], [])
    extractor, asked = followed([face, none, face, face])
    (found,) = extractor.extract([source(make_clip(tmp_path / "clip.mp4", "v", seconds=0.4))])
    assert found.values.shape == (4, 58)
    assert found.valid.tolist() == [True, False, True, True]
    assert not found.values[1].any()
    assert found.values[[0, 2, 3], 6:] == pytest.approx(0.25)
    assert found.start == pytest.approx(np.arange(4) / 10)
    assert found.end == pytest.approx(np.arange(1, 5) / 10)
    assert asked == [((48, 64, 3), milliseconds) for milliseconds in (0, 100, 200, 300)]


def test_frames_that_repeat_are_looked_at_once(followed, make_clip, tmp_path):
    extractor, asked = followed([result(dict.fromkeys(BLENDSHAPES, i / 10)) for i in range(4)], fps=20)
    (found,) = extractor.extract([source(make_clip(tmp_path / "clip.mp4", "v", fps=10, seconds=0.4))])
    assert len(asked) == 4
    assert found.values[:, -1] == pytest.approx(np.repeat(np.arange(4) / 10, 2))


def test_the_task_is_shown_the_face_to_follow_alone(followed, tmp_path, monkeypatch):
    image, view = np.ones((48, 64, 3), np.uint8), np.zeros((24, 32, 3), np.uint8)
    monkeypatch.setattr(FaceSelector, "process", lambda self, media, fps, collect: collect(iter([(0.0, image, view)])))
    extractor, asked = followed([result(dict.fromkeys(BLENDSHAPES, 0.25))])
    (found,) = extractor.extract([source(tmp_path)])
    assert found.valid.tolist() == [True]
    assert asked == [(view.shape, 0)]


def test_what_is_missing_and_what_fails(followed, tmp_path, make_clip):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    sound = make_clip(tmp_path / "sound.m4a", "a")
    extractor, _ = followed([])
    results = list(extractor.extract([source(p) for p in (sound, broken, None)]))
    assert [type(r) for r in results] == [MissingModalityError, ExtractionError, MissingModalityError]


def test_a_bundle_that_mediapipe_cannot_load_fails_the_clip(bundle, tmp_path, make_clip):
    (result,) = FaceLandmarkerVision(str(bundle)).extract([source(make_clip(tmp_path / "clip.mp4", "v"))])
    assert isinstance(result, ExtractionError)
    assert "mediapipe failed" in str(result)
    assert f"is {bundle} complete?" in str(result)


@pytest.mark.parametrize("model", ["", None, "nowhere/face_landmarker.task"])
def test_a_file_that_is_not_there_is_asked_for(model):
    with pytest.raises(ValueError, match=r"model must be the path of MediaPipe's face_landmarker\.task.*download it"):
        FaceLandmarkerVision(model)


def test_a_file_that_is_no_bundle_is_refused(tmp_path):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="not a face landmarker bundle"):
        FaceLandmarkerVision(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hand_detector.tflite", b"")
    with pytest.raises(ValueError, match="not a face landmarker bundle"):
        FaceLandmarkerVision(str(path))


def test_signature_follows_every_option_and_the_bundle(bundle):
    variants = [{}, {"fps": 5}, {"min_confidence": 0.6}]
    made = [FaceLandmarkerVision(str(bundle), **options).signature for options in variants]
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr("more", b"")
    assert len({*made, FaceLandmarkerVision(str(bundle)).signature}) == 4


@pytest.mark.parametrize("options", [{"fps": 0}, {"min_confidence": None}])
def test_options_are_validated(bundle, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a number between"):
        FaceLandmarkerVision(str(bundle), **options)
