"""Finding extractors by name: ours, those of other packages, and what is said when there is none."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from corpora.files import sha256_of
from corpora.manifest import Clip
from extractors import registry
from extractors.base import Extractor
from extractors.execution import units
from extractors.registry import BUILT_IN, ENTRY_POINT_GROUP, available, create
from extractors.store import FeatureReader

VARIANTS = {
    "text.transformer": [{}, {"max_tokens": 64}, {"layer": -2}, {"layer": "last_four"}, {"pooling": "words"}],
    "audio.librosa": [{}, {"hop_seconds": 0.023}],
    "vision.face_landmarker": [{}, {"fps": 12.5}, {"min_confidence": 0.7}, {"fps": 12.5, "min_confidence": 0.7}],
}


@pytest.fixture(scope="session")
def models(speech_models, image_models):
    """A model for each extractor that has none of its own."""
    return {
        "audio.transformer": str(speech_models / "hubert"),
        "vision.transformer": str(image_models / "vit"),
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_extractor_keeps_the_protocol(name, models):
    if name == "audio.opensmile":
        pytest.importorskip("opensmile", reason="opensmile, an optional extra, is not installed")
    extractor = create(name, {"model": models[name]} if name in models else {})
    assert isinstance(extractor, Extractor)
    assert extractor.modality == name.partition(".")[0]
    assert len(set(extractor.feature_names)) == len(extractor.feature_names) > 5
    assert extractor.signature.startswith(f"{name}-v")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("text.transformer", {"pooling": "words", "layer": "last_four"}),
        ("text.words", {}),
        ("audio.transformer", {"layer": 2}),
        ("vision.transformer", {"fps": 5}),
    ],
)
def test_another_extractor_fills_the_store_by_name_and_options_alone(name, options, models, make_clip, tmp_path):
    path = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    clip = Clip("v/1", "v", "train", "en", path.name, "not so good a film", duration=1.0, sha256=sha256_of(path))
    options = options | ({"model": models[name]} if name in models else {})
    report = units.extract_unit([clip], tmp_path, name, options, tmp_path / "scratch")
    assert report.problems == ()
    units.assemble([clip], tmp_path, report.meta, tmp_path / "scratch", tmp_path / "features")
    sequence = FeatureReader(tmp_path / "features", report.meta.modality)["v/1"]
    steps = {"text": 5, "audio": 49, "vision": 5}[report.meta.modality]
    assert len(sequence) == pytest.approx(steps, abs=report.meta.modality == "audio")  # AAC ends late
    assert (sequence.word_index is not None) == (report.meta.modality == "text")


@pytest.mark.parametrize("name", ["audio.transformer", "vision.transformer"])
def test_an_extractor_without_weights_of_its_own_asks_for_a_model(name):
    with pytest.raises(ValueError, match=f"'{name}'.*'model'"):
        create(name, {})


@pytest.mark.parametrize("name", VARIANTS)
def test_signature_changes_with_each_option_and_not_otherwise(name):
    signatures = [create(name, options).signature for options in VARIANTS[name]]
    assert len(set(signatures)) == len(signatures)
    assert [create(name, options).signature for options in VARIANTS[name]] == signatures


def test_writing_a_default_out_keeps_the_signature():
    assert create("vision.face_landmarker", {"fps": 25}).signature == create("vision.face_landmarker", {}).signature
    assert create("audio.librosa", {"hop_seconds": 0.046}).signature == create("audio.librosa", {}).signature
    assert create("text.transformer", {"model": "minilm"}).signature == create("text.transformer", {}).signature


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"'face_landmarker'; did you mean 'vision\.face_landmarker'\? Known: audio"):
        create("face_landmarker", {})


def test_an_extractor_that_is_gone_names_the_one_that_replaces_it():
    with pytest.raises(ValueError, match=r"replaced by 'vision\.face_landmarker'.*set extract\.vision\.extractor to"):
        create("vision.face_mesh", {"fps": 10})


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_option_that_an_extractor_does_not_take_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}'.*'colour'"):
        create(name, {"colour": 1})


@pytest.fixture
def other_package(monkeypatch):
    """A package that registers `audio.loudness`, as its metadata would."""

    class Loudness:
        modality, feature_names = "audio", ("loudness",)

        def __init__(self, window: float = 0.1) -> None:
            self.signature = f"audio.loudness-v1-{window}"

        def extract(self, sources):
            return iter(())

    module = types.ModuleType("loudness_package")
    module.Loudness = Loudness
    monkeypatch.setitem(sys.modules, "loudness_package", module)
    points = [EntryPoint("audio.loudness", "loudness_package:Loudness", ENTRY_POINT_GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == ENTRY_POINT_GROUP else [])


def test_another_packages_extractor_is_found_and_built(other_package):
    assert available()["audio.loudness"] == "loudness_package:Loudness"
    assert set(BUILT_IN) < set(available())
    extractor = create("audio.loudness", {"window": 0.2})
    assert isinstance(extractor, Extractor)
    assert extractor.signature == "audio.loudness-v1-0.2"
