"""Signatures outlive the releases of libraries, and results with the signatures of earlier versions are reused."""

from __future__ import annotations

import os
from importlib import metadata

import pytest

from corpora.manifest import Clip
from extractors.base import Identity, made_by, make_signature
from extractors.execution import cache, units
from extractors.execution.units import feature_meta
from extractors.registry import create


@pytest.mark.parametrize(("name", "library"), [("audio.librosa", "librosa"), ("text.transformer", "transformers")])
def test_a_librarys_version_is_recorded_beside_the_signature(name, library, monkeypatch):
    before = feature_meta(create(name, {}), name, {})
    assert before.versions[library] == metadata.version(library)
    monkeypatch.setattr("extractors.base.metadata.version", lambda package: "99.0")
    after = feature_meta(create(name, {}), name, {})
    assert after.signature == before.signature and after.versions[library] == "99.0"


@pytest.mark.parametrize(
    ("name", "covered"), [("audio.librosa", "librosa 0.11.0"), ("audio.opensmile", "opensmile 2.6.0")]
)
def test_signatures_that_covered_a_librarys_version_are_known(name, covered):
    extractor = create(name, {})
    options = extractor.identity.options
    number = extractor.identity.version
    assert made_by(extractor, make_signature(name, number, options, covered))
    assert not made_by(extractor, make_signature(name, number + 1, options, covered))
    assert not made_by(extractor, make_signature(name, number, {**options, "other": 1}, covered))


def test_a_models_signature_covered_transformers_version():
    identity = create("text.transformer", {}).identity
    earlier = make_signature(
        identity.name, identity.version, identity.options, f"{identity.weights} transformers 5.23.0"
    )
    assert identity.earlier_signatures[earlier] == "transformers 5.23.0"


IDENTITY = Identity("audio.fake", 1, {"a": 1}, libraries=("librosa",), covered="librosa")
OLD, OLDER = (make_signature("audio.fake", 1, {"a": 1}, f"librosa 0.11.{patch}") for patch in (1, 0))
OTHER = make_signature("audio.fake", 1, {"a": 2}, "librosa 0.11.0")


def test_results_of_earlier_signatures_are_adopted_the_newest_first(tmp_path):
    for age, (folder, names) in enumerate([(OLD, "ab"), (OLDER, "bc"), (OTHER, "d")]):
        for name in names:
            path = tmp_path / folder / name / f"{name}.npz"
            path.parent.mkdir(parents=True)
            path.write_text(folder)
        os.utime(tmp_path / folder, (1000 - age, 1000 - age))
    cache.adopt_results(tmp_path, IDENTITY)
    adopted = {path.stem: path.read_text() for path in (tmp_path / IDENTITY.signature).glob("*/*.npz")}
    assert adopted == {"a": OLD, "b": OLD, "c": OLDER}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([IDENTITY.signature, OTHER])
    cache.adopt_results(tmp_path, IDENTITY)  # nothing is left to do
    cache.adopt_results(tmp_path / "absent", IDENTITY)


def test_what_was_extracted_under_an_earlier_signature_is_not_extracted_again(tmp_path, make_clip, librosa_audio):
    make_clip(tmp_path / "a.mp4", "a", seconds=0.5)
    job = (
        [Clip("a", "v", "train", "en", "a.mp4", "", duration=0.5)],
        tmp_path,
        "audio.librosa",
        {},
        tmp_path / "scratch",
    )
    signature = units.extract_unit(*job).meta.signature
    earlier = next(iter(librosa_audio.identity.earlier_signatures))
    (tmp_path / "scratch" / signature).rename(tmp_path / "scratch" / earlier)
    units.adopt_results(*job[2:])
    assert units.extract_unit(*job).reused == 1
