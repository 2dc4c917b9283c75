"""The comparison of networks on the page, and its picture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.report.leaderboard import cost_picture, leaderboard_view, save_leaderboard

DATA = {"dataset": "da7a" * 16}


def test_networks_stand_in_their_order_with_both_differences_and_their_cost(render, make):
    _, page = render(studies=[make.comparison()])
    for text in ("Networks compared", "demo_en, test split, 80 clips", "published settings, at most 30 epochs"):
        assert text in page.words
    head = page.rows.index(next(row for row in page.rows if row[:1] == ["Network"]))
    assert page.rows[head][:5] == ["Network", "MAE", "to dashfusion", "to text", "MAE on valid"]
    rows = page.rows[head + 1 : head + 4]
    published = "train.learning_rate: 0.001"
    assert [row[0].removesuffix(published) for row in rows] == ["dashfusion (best)", "text", "tfn"]
    assert rows[0][1] == "0.600 ± 0.012" and rows[0][2] == ""
    assert rows[0][3] == "\u22120.200 [\u22120.240, \u22120.160]p 0.001, adjusted 0.003better"
    assert rows[1][2].endswith("worse") and rows[1][3] == "" and rows[1][4] == "0.600"
    assert "25.0 M" in rows[1] and "0.125 s" in rows[1]


def test_what_has_learned_nothing_and_what_was_left_out_are_told_with_the_reason(render, make):
    html, page = render(studies=[make.comparison()])
    view = leaderboard_view(make.comparison(), "demo_en", DATA)
    assert {cell.verdict for cell in view.tables[0].rows[2].cells if cell.difference} == {"no verdict"}
    assert "No verdict: The network tfn is not shown to be better than the baseline mean label" in page.words
    assert ["<i>mine</i>", "it reads tokens: set model.text.mode to finetune"] in page.rows and "<i>mine" not in html


def test_a_comparison_is_a_section_of_its_own_beside_studies(render, make):
    html, _ = render(studies=[make.comparison(), make.study()])
    assert html.index('id="networks"') < html.index('id="studies"')
    assert html.count("Networks compared") == 1 and 'href="#networks"' in html
    html, _ = render(studies=[make.study()])
    assert 'id="networks"' not in html


def test_quality_is_pictured_against_costs_with_every_network(render, make):
    html, page = render(studies=[make.comparison()])
    titles = ["Mean absolute error against multiply-adds", "Mean absolute error against training step"]
    assert set(titles) <= set(page.svgs())
    svg = html.split(f'aria-label="{titles[0]}"')[1].split("</svg>")[0]
    assert all(f">{name}<" in svg for name in ("dashfusion", "text", "tfn"))
    without = replace(make.comparison(), rows=[row for row in make.comparison().rows if row.metric != "madds"])
    assert [plot.title for plot in leaderboard_view(without, "demo_en", DATA).pictures] == titles[1:]


def test_results_of_other_data_are_marked(make):
    def marks(corpus="demo_en", data=DATA):
        return leaderboard_view(make.comparison(), corpus, data).mismatches

    assert marks() == []
    assert marks(corpus="mosi") == ["another corpus, demo_en"]
    assert "another dataset" in marks(data={"dataset": "other"})[0]


@pytest.mark.parametrize(("name", "start"), [("board.csv", b"rank,network,mae"), ("board.png", b"\x89PNG")])
def test_the_leaderboard_is_saved_as_table_or_picture(make, tmp_path, name, start):
    save_leaderboard(make.comparison(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert cost_picture(make.comparison()).startswith(b"\x89PNG")
