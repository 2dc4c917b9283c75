"""The comparison of networks on the page, and its picture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows.report.leaderboard import cost_picture, leaderboard_view, save_leaderboard
from flows.studies.cross_corpus import CrossCorpusResult

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


def test_the_best_stands_beside_the_baselines_and_chat_models(render, make):
    study = make.comparison()
    chat = {"model": "<b>chat", "clips": 80, "answered": 78, "refused": 2, "unparsable": 0, "out_of_range": 0}
    chat |= {"not_asked": 0, "prompt_tokens": 9000, "completion_tokens": 560}
    chat |= {"mae": 0.512, "mae_difference": 0.3, "mae_interval": [0.1, 0.5]}
    best = study.comparison.references[0]
    mean_label = {"mae": 1.2, "mae_difference": -0.6, "mae_interval": [-0.8, -0.4]}
    learned = {"verdict": "better", "hardest": "mean_label", "mean_label": mean_label, "zero_shot": [chat]}
    found = {**study.comparison.baselines, best: learned}
    html, page = render(studies=[replace(study, comparison=replace(study.comparison, baselines=found))])
    head = next(row for row in page.rows if row[:1] == ["Baseline"] and row[-1] == f"{best}\u2019s difference")
    rows = page.rows[page.rows.index(head) + 1 :]
    row = next(row for row in rows if row[0] == "Zero-shot: <b>chat")
    assert row[2] == "0.512" and row[3].startswith("+0.300") and "<b>chat" not in html
    assert "78 of 80 clips; 2 refused" in row[1]


def test_networks_on_several_corpora_are_a_section_with_a_table_a_metric(render):
    place = {"trained_on": "demo_en", "split": "test", "trained_range": (-3.0, 3.0)}
    own = CrossCorpusResult(
        model="text", dataset="a", corpus="demo_en", label_range=(-3.0, 3.0), metrics={"mae": 0.5, "corr": 0.8},
        intervals={"mae": (0.4, 0.6)}, **place,
    )  # fmt: skip
    other = CrossCorpusResult(
        model="text", dataset="b", corpus="<i>zh", label_range=(-1.0, 1.0), metrics={"mae": 0.321}, **place
    )
    refused = replace(own, model="mult", metrics={}, refusal="its features are others")
    html, page = render(matrix=[own, other, refused])
    head = page.rows.index(["Trained on", "demo_en", "95\xa0% interval", "<i>zh", "95\xa0% interval"])
    assert page.rows[head + 1] == ["demo_en: text", "0.500", "0.400 to 0.600", "0.321", ""]
    assert page.rows[head + 2][0] == "demo_en: mult" and "<i>zh" not in html
    assert "Scores in [-3, 3] were mapped linearly to [-1, 1]." in page.words
    assert "demo_en: mult on demo_en: its features are others." in page.words and 'href="#across-corpora"' in html
    html, _ = render(matrix=[replace(own, trained_on="mosi")])
    assert "across-corpora" not in html, "of another corpus"


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
