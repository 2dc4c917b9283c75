"""Results of studies on the page."""

from __future__ import annotations

import re
from dataclasses import replace

from flows.report.studies import pareto_front, study_views

DATA = {"dataset": "da7a" * 16}


def view_of(study, corpus="demo_en", split="test", data=DATA):
    return study_views([study], corpus, split, data)[0]


def test_a_study_shows_its_question_and_notes(render, make):
    _, page = render(studies=[make.study()])
    for text in ("What noise costs", "How fast do metrics fall?", "demo_en, test split, 80 clips", "2 seeds"):
        assert text in page.words
    assert "vision blur was left out: no media" in page.words


def test_variants_stand_with_their_spread_their_paired_difference_and_their_cost(render, make):
    _, page = render(studies=[make.study()])
    head = ["Variant", "Acc-2", "MAE", "Correlation", "Multiply-adds", "of the fusion", "A step"]
    assert head in page.rows
    rows = page.rows[page.rows.index(head) + 1 :][:3]
    assert rows[0][0] == "full (reference)" and rows[0][1:3] == ["90.0% ± 1.2", "0.500 ± 0.012"]
    assert rows[1][0] == "no alignmentmodel.alignment: false"
    assert rows[1][1] == "87.0% ± 1.2\u22123.0 [\u22127.0, +1.0]p 0.20, adjusted 0.60undecided"
    assert rows[1][3:] == ["–", "30.0 M", "30.0 M", "0.125 s"]  # noqa: RUF001
    assert rows[2][0].startswith("<b>wide</b>")


def test_the_verdict_stands_in_words_and_in_colour_only_where_the_interval_excludes_0(render, make):
    rows = view_of(make.study()).tables[0].rows
    assert [[cell.verdict for cell in row.cells] for row in rows] == [
        ["", "", ""], ["undecided", "undecided", ""], ["worse", "worse", ""]
    ]  # fmt: skip
    assert rows[0].cells[0].difference == "", "the reference differs from nothing"
    html, _ = render(studies=[make.study()])
    table = html.split('id="study-1"')[1].split("</table>")[0]
    assert table.count('class="bad">') == 2 == table.count("<br>worse</small>")
    assert table.count('class="">') == 2 == table.count("<br>undecided</small>")


def test_a_reference_that_has_learned_nothing_is_named_in_place_of_verdicts(render, make):
    worse = {"mae": 0.8, "mae_difference": 0.1, "mae_interval": [0.05, 0.2]}
    study = make.study(baselines={"verdict": "worse", "hardest": "mean_label", "mean_label": worse})
    _, page = render(studies=[study])
    assert "No verdicts. The reference, full, is worse than the baseline mean label: MAE 0.900" in page.words
    verdicts = {cell.verdict for table in view_of(study).tables for row in table.rows for cell in row.cells}
    assert verdicts == {"", "no verdict"}


def test_less_error_is_better(make):
    study = make.study()
    rows = [
        replace(row, value=-0.06, low=-0.1, high=-0.01, p_adjusted=0.02)
        if (row.metric, row.statistic) == ("mae", "difference")
        else row
        for row in study.rows
    ]
    cells = view_of(replace(study, rows=rows)).tables[0].rows[1].cells
    assert cells[1].verdict == "better"


def test_slices_and_conditions_without_levels_have_tables_of_their_own(make):
    tables = {table.caption: table for table in view_of(make.study()).tables}
    slices = tables["Acc-2 (negative / positive) on slices"]
    assert slices.columns == ["text misleads"] and slices.rows[0].cells[0].value == "70.0%"
    conditions = tables["Acc-2 (negative / positive) under conditions"]
    assert conditions.columns == ["text only"] and conditions.rows[2].cells[0].value == "60.0%"


def test_curves_are_drawn_over_the_levels_with_the_area_under_them(render, make):
    found = view_of(make.study())
    assert [plot.title for plot in found.curves] == ["Acc-2 (negative / positive), audio noise"]
    area = found.tables[-1]
    assert area.columns == ["audio noise"] and [row.cells[0].value for row in area.rows] == ["70.0%", "69.0%", "68.0%"]
    assert [row.cells[0].verdict for row in area.rows] == ["", "undecided", "worse"]
    html, _ = render(studies=[make.study()])
    svg = html.split('aria-label="Acc-2 (negative / positive), audio noise"')[1].split("</svg>")[0]
    for colour in ("--series-1", "--series-2", "--series-3"):
        assert svg.count(f"var({colour})") >= 2, "a line and its band"
    assert "audio noise (dB)" in svg


def test_the_front_of_the_best_trade_offs_is_marked(render, make):
    assert pareto_front([(1, 0.8), (2, 0.9), (3, 0.85), (2, 0.7)], less_is_better=False) == [0, 1]
    assert pareto_front([(1, 0.8), (2, 0.9), (3, 0.5)], less_is_better=True) == [0, 2]
    assert pareto_front([(1, 0.8), (1, 0.8)], less_is_better=False) == [0, 1]
    _, page = render(studies=[make.study()])
    assert "Acc-2 (negative / positive) against multiply-adds of the fusion" in page.svgs()
    assert view_of(make.study(pareto=None)).pareto is None
    assert view_of(make.study(pareto=("parameters", "acc2_np"))).pareto is None, "none has such a cost"


def test_results_of_other_data_are_marked(render, make):
    assert view_of(make.study()).mismatches == []
    assert view_of(make.study(corpus="mosi")).mismatches == ["another corpus, mosi"]
    assert view_of(make.study(split="valid")).mismatches == [], "studies measure valid"
    assert view_of(make.study(), split="train").mismatches == ["another split, test"]
    earlier = [replace(row, p=None, p_adjusted=None) for row in make.study().rows]
    assert "intervals of an earlier version" in view_of(make.study(rows=earlier)).mismatches[0]
    assert "did not compare the reference" in view_of(make.study(baselines={})).mismatches[0]
    assert "another dataset" in view_of(make.study(provenance={"data": {"dataset": "other"}})).mismatches[0]
    assert "perhaps another dataset" in view_of(make.study(provenance={})).mismatches[0]
    _, page = render(studies=[make.study(corpus="mosi")])
    assert "another corpus, mosi" in page.words


def test_what_was_not_measured_is_an_en_dash_and_draws_nothing(render, make):
    study = make.study(rows=[row for row in make.study().rows if row.variant != "full"])
    rows = [replace(row, value=None, low=None, high=None) for row in study.rows]
    for changed in (study, replace(study, rows=rows), replace(study, rows=[], metrics=[])):
        html, page = render(studies=[changed])
        assert "None" not in html and not re.search(r"\bnan\b", page.words)
    found = view_of(study).tables[0].rows[0]
    assert [cell.value for cell in found.cells] == ["–"] * 3  # noqa: RUF001


def test_more_variants_than_colours_are_told_apart_by_dashes(render, make):
    study = make.study()
    names = {f"variant {i}": {} for i in range(12)}
    rows = [replace(row, variant=name) for name in names for row in study.rows if row.variant == "full"]
    html, _ = render(studies=[replace(study, variants=names, rows=rows, reference="variant 0")])
    swatches = html.split('class="swatch"')[1:13]
    assert len({piece.split("/>")[0] for piece in swatches}) == 12


def test_two_studies_of_one_shape_have_ids_of_their_own(render, make):
    _, page = render(studies=[make.study(), make.study(study="again")])
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
