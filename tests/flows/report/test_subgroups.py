"""The tables of subgroups and of speakers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.report.subgroups import speaker_table, subgroup_table
from model.evaluation.calibration import Coverage
from model.evaluation.subgroups import SubgroupMetrics


def test_subgroups_stand_below_the_whole_split_on_one_scale(make):
    table = subgroup_table(make.subgroups())
    assert [row.name for row in table.rows] == ["all clips", "up to 3.2 s", "more than 3.2 s", "neutral (0)"]
    assert table.accuracy.label == "Acc-2 (negative / positive)"
    value, interval, mark = table.rows[1].cells[0]
    assert (value, interval) == ("85.0%", "77.0 to 91.0%")
    assert table.scales[0] == ("70%", "100%") and mark.value == 50.0 and mark.whole == pytest.approx(66.7)
    assert mark.low < mark.value < mark.high


def test_a_subgroup_of_few_clips_is_small_and_does_not_stretch_the_scale(make):
    rows = {row.name: row for row in subgroup_table(make.subgroups()).rows}
    assert rows["neutral (0)"].small and not rows["up to 3.2 s"].small
    assert rows["neutral (0)"].cells[0] == ("–", "", None)  # noqa: RUF001
    assert rows["neutral (0)"].cells[1][2].high == 100.0, "cut at the end of the scale"


def test_speakers_have_scales_of_their_own(make):
    analysis = make.subgroups()
    assert subgroup_table(analysis).scales[1] == ("0.3", "0.7")
    assert speaker_table(analysis).scales[1] == ("0.1", "1.0")


def test_a_video_is_measured_from_fewer_clips_than_a_subgroup(make):
    assert not any(row.small for row in speaker_table(make.subgroups()).rows)


def test_an_interval_without_width_is_not_drawn(make):
    sure = SubgroupMetrics("Polarity", "positive", 20, 1.0, (1.0, 1.0), 0.3, (0.2, 0.4))
    value, interval, mark = subgroup_table(make.subgroups(subgroups=[sure])).rows[1].cells[0]
    assert (value, interval, mark.low) == ("100.0%", "", None)


def test_the_page_has_a_group_a_heading_and_greys_what_is_small(render, make):
    _, page = render(subgroups=make.subgroups())
    assert ["Length"] in page.rows and ["Polarity"] in page.rows
    assert ["up to 3.2 s", "27", "85.0% 77.0 to 91.0%", "", "0.600 0.500 to 0.700", ""] in page.rows
    assert sum(attrs.get("class") == "small" for tag, attrs in page.elements if tag == "tr") == 1
    assert "Grey: fewer than 10 clips" in page.words
    assert ["v3", "8", "75.0% 67.0 to 81.0%", "", "0.900 0.800 to 1.000", ""] in page.rows


def test_the_page_says_of_how_many_speakers_it_shows_the_ends(render, make):
    _, page = render(subgroups=make.subgroups(speakers_measured=1234))
    assert (
        "Of 1,234 speakers (or videos, where the corpus names no speakers) with 5 labelled clips or more" in page.words
    )
    _, page = render(subgroups=make.subgroups(speakers=[], speakers_measured=0))
    assert "No speaker has 5 labelled clips or more" in page.words


def test_calibration_stands_with_coverage_and_widths(render, make):
    _, page = render(calibration=make.calibration())
    assert page.svgs()[2:] == ["Mean label by prediction", "Coverage of the intervals"]
    assert ["Clips inside", "45.0%", "75.0%", "85.0%", "90.0%", "80 of test"] in page.rows
    assert ["95\u00a0% interval of that", "40% to 50%", "70% to 80%", "80% to 90%", "85% to 95%", ""] in page.rows
    assert ["Intervals are", "consistent", "consistent", "consistent", "consistent", ""] in page.rows
    assert ["± with text, audio, vision", "0.300", "0.700", "0.800", "–", "48 of valid"] in page.rows  # noqa: RUF001


def test_intervals_that_hold_too_few_clips_are_called_too_narrow_and_never_a_little(render, make):
    coverage = [Coverage(0.9, 80, 0.775, (0.672, 0.853)), Coverage(0.95, 80, 0.9, (0.81, 0.95))]
    _, page = render(calibration=replace(make.calibration(), coverage=coverage))
    assert ["Intervals are", "too narrow", "consistent", ""] in page.rows
    assert "a little" not in page.words and "slightly" not in page.words
