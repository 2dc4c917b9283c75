"""`docs/features.md` says all that the extractors say, and the extractors say it of every feature."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from extractors.base import Feature, FeatureDescription
from extractors.feature_docs import extractor_class, features_page
from extractors.registry import BUILT_IN

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_page_is_what_the_extractors_say():
    assert PAGE.read_text(encoding="utf-8") == features_page(), (
        "run: python -m extractors.feature_docs > docs/features.md"
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_feature_has_a_meaning_and_a_unit(name):
    made = extractor_class(name)
    names = made.description.names
    if name == "vision.face_landmarker":
        assert names == made(blendshapes=True).feature_names
    else:
        assert names == getattr(made, "feature_names", ("hidden_*",))  # known before the model is: no `*`
    assert all(feature.meaning and feature.unit for feature in made.description.features)
    assert all((made.description.source, made.description.rate, made.description.window, made.description.valid))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_is_in_the_page_with_its_default(name):
    section = features_page().split(f"## {name}\n")[1].split("\n## ")[0]
    for option, parameter in inspect.signature(extractor_class(name)).parameters.items():
        default = "required" if parameter.default is parameter.empty else f"`{parameter.default}`"
        assert f"| `{option}` | {default} | " in section


def test_runs_of_numbers_are_shown_by_their_ends(monkeypatch):
    class Loudness:
        """`audio.loudness`.

        Args:
            window: seconds;
                any | none.

        Raises:
            ValueError: never.
        """

        features = (Feature(("peak", "band_8", "band_9", "band_10", "low_1", "low_3"), "level", "dB"),)
        description = FeatureDescription("here", "1", "all", "always", features, extra="loud")

        def __init__(self, window: float = 0.1) -> None:
            self.window = window

    monkeypatch.setattr("extractors.feature_docs.BUILT_IN", {"audio.loudness": "nowhere:Loudness"})
    monkeypatch.setattr("extractors.feature_docs.extractor_class", lambda name: Loudness)
    page = features_page()
    assert "| `peak`, `band_8` to `band_10`, `low_1`, `low_3` | level | dB |" in page
    assert "| `window` | `0.1` | seconds; any \\| none. |" in page
    assert "| needs | `pip install 'dashfusion[loud]'` |" in page
