"""`vision.transformer` on small models of random weights, on a real face and on drawn boxes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel

from extractors.base import ExtractionError, MissingModalityError, Source
from extractors.vision import transformer
from extractors.vision.face_tracking import Face
from extractors.vision.transformer import TransformerVision, crop_square, read_preprocessor
from media.container import probe

MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]  # of `image_models`
KINDS = ("vit", "dinov2", "clip", "clip_vision_model")


def source(path, name="clip"):
    return Source(clip_id=name, media=path, text="", language="en", duration=None)


@pytest.fixture(scope="session")
def face():
    """A face in a picture, where the landmarks would be: a box of 30 by 40 pixels."""
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    corners = np.array([[16, 4.8], [46, 44.8]])
    return image, corners


def face_at(corners):
    """A face with these two corners [2, 2] in pixels, x right and y down."""
    points = np.array([(x, -y, 0.0) for x, y in [*corners] * 239])
    return Face(points, {})


@pytest.fixture
def follow(monkeypatch, face):
    """Make the tracker see so many frames at 10 fps, with a face where told."""

    def make(seen):
        image, corners = face
        frames = [image, *(np.roll(image, i + 1, axis=1) for i in range(len(seen)))]

        def frames_of(self, media, fps, collect):
            return collect((i / fps, frames[i], face_at(corners) if there else None) for i, there in enumerate(seen))

        monkeypatch.setattr(transformer.FaceTracker, "track", frames_of)
        return frames

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_image_models_class_token_of_each_face(image_models, follow, face, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "BATCH_FRAMES", 2)  # two batches and a rest
    frames = follow([True, False, True, True, True, True])
    extractor = TransformerVision(str(image_models / kind), margin=0.1)
    (result,) = extractor.extract([source(tmp_path)])
    assert extractor.feature_names == tuple(f"hidden_{i}" for i in range(16))
    assert result.values.shape == (6, 16)
    assert result.values.dtype == np.float32
    assert result.valid.tolist() == [True, False, True, True, True, True]
    assert not result.values[1].any()
    assert result.start == pytest.approx(np.arange(6) / 10)
    assert result.end == pytest.approx(np.arange(1, 7) / 10)
    model = AutoModel.from_pretrained(image_models / kind).eval()
    for step in (0, 2, 5):
        crop = crop_square(frames[step], face[1], 0.1)
        pixels = torch.nn.functional.interpolate(
            torch.from_numpy(crop).permute(2, 0, 1)[None].float(), (32, 32), mode="bicubic", antialias=True
        ).clamp(0, 255)
        pixels = (pixels / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
        with torch.inference_mode():
            output = (model.vision_model if kind == "clip" else model)(pixel_values=pixels)
        expected = output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output
        assert result.values[step] == pytest.approx(expected[0].numpy(), abs=1e-5)


def test_a_frame_that_repeats_is_encoded_once(image_models, follow, face, tmp_path, monkeypatch):
    image, corners = face
    there = face_at(corners)
    shown = [(0.0, image, there), (0.1, image, there), (0.2, np.roll(image, 9), there), (0.3, image.copy(), None)]
    monkeypatch.setattr(transformer.FaceTracker, "track", lambda self, media, fps, collect: collect(iter(shown)))
    extractor = TransformerVision(str(image_models / "vit"))
    sizes = []
    encode = extractor._encode
    monkeypatch.setattr(extractor, "_encode", lambda crops: sizes.append(len(crops)) or encode(crops))
    (result,) = extractor.extract([source(tmp_path)])
    assert sizes == [2]
    assert result.valid.tolist() == [True, True, True, False]
    assert np.array_equal(result.values[0], result.values[1])
    assert not np.array_equal(result.values[0], result.values[2])


def test_a_real_face_is_cut_out_and_encoded(image_models, real_clips):
    extractor = TransformerVision(str(image_models / "clip"))
    clips = [real_clips / "face_then_none.mov", real_clips / "no_face.mp4"]
    found, none = extractor.extract([source(path) for path in clips])
    assert len(found) == pytest.approx(probe(clips[0]).duration * 10, abs=1.5)
    left = np.flatnonzero(~found.valid)[0]
    assert found.valid[:left].all() and not found.valid[left:].any()
    assert 2.0 < found.start[left] < 3.0
    assert found.values[:left].std(axis=0).min() > 0
    assert not found.values[left:].any()
    assert not none.valid.any() and not none.values.any()


def test_what_is_missing_and_what_fails(image_models, tmp_path, make_clip):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no media")
    sound = make_clip(tmp_path / "sound.m4a", "a")
    good = make_clip(tmp_path / "good.mp4", "v", seconds=0.4)
    extractor = TransformerVision(str(image_models / "vit"))
    results = list(extractor.extract([source(p) for p in (sound, broken, None, good)]))
    assert [type(r) for r in results[:3]] == [MissingModalityError, ExtractionError, MissingModalityError]
    assert len(results[3]) == 4
    assert not results[3].valid.any()


def test_the_crop_is_the_box_widened_to_a_square():
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:60, 30:50] = 200
    box = np.array([[30, 20], [50, 60]])
    square = crop_square(image, box, 0)
    assert square.shape == (40, 40, 3)
    assert (square[:, 10:30] == 200).all()
    assert not square[:, :10].any() and not square[:, 30:].any()
    assert crop_square(image, box, 0.25).shape == (60, 60, 3)


def test_the_crop_is_black_over_the_pictures_edge():
    image = np.full((40, 60, 3), 90, np.uint8)
    square = crop_square(image, np.array([[-10, 10], [20, 40]]), 0)
    assert square.shape == (30, 30, 3)
    assert not square[:, :10].any()
    assert (square[:, 10:] == 90).all()
    assert not crop_square(image, np.array([[-90, -90], [-50, -50]]), 0).any()


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ({"size": 30}, 30),
        ({"size": {"height": 20, "width": 20}}, 20),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, 32),
        ({"size": {"shortest_edge": 40}, "crop_size": 32, "do_center_crop": False}, 40),
    ],
)
def test_the_input_size_is_what_the_model_was_given(tmp_path, said, side):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**said, "image_mean": MEAN, "image_std": DEVIATION}))
    assert read_preprocessor(tmp_path)[0] == side


def test_a_model_without_its_preprocessor_or_of_another_kind_is_refused(image_models, tmp_path):
    shutil.copytree(image_models / "vit", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="must give crop_size or size, image_mean and image_std"):
        TransformerVision(str(tmp_path / "m"))
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"is 'bert'; vision\.transformer takes vit, dinov2, clip"):
        TransformerVision(str(tmp_path / "m"))


def test_signature_follows_every_option(image_models):
    variants = [{}, {"fps": 5}, {"margin": 0.3}, {"min_confidence": 0.6}]
    made = [TransformerVision(str(image_models / "vit"), **options).signature for options in variants]
    assert len({*made, TransformerVision(str(image_models / "clip")).signature}) == 5
    assert TransformerVision(str(image_models / "vit"), fps=10).signature == made[0]


@pytest.mark.parametrize("options", [{"fps": 0}, {"margin": -0.1}, {"margin": "0.2"}, {"min_confidence": 1.5}])
def test_options_are_validated(image_models, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be a number between"):
        TransformerVision(str(image_models / "vit"), **options)
