from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpora.manifest import Clip
from corpora.problems import Problem
from flows.corpus_card import CorpusCard, _histogram
from flows.report import ReportInput, mean_over_seeds, metrics_rows, write_plot_data, write_report

WIDE, UNIT = (-3.0, 3.0), (-1.0, 1.0)
WIDE_METRICS = {
    "n": 12,
    "mae": 0.5074,
    "corr": 0.9104,
    "acc2_nn": 0.9,
    "f1_nn": 0.89,
    "acc2_np": 0.9168,
    "f1_np": 0.915,
    "acc3": 0.8,
    "acc5": 0.6,
    "acc7": 0.5,
}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, the text of the page, and the text of each table cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == [], f"elements left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] == "style":
            return
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def svgs(self) -> list[str | None]:
        return [attrs["aria-label"] for tag, attrs in self.elements if tag == "svg"]


def make_clips(count: int = 12, text: str = "It was fine.", high: float = 3.0) -> dict[str, Clip]:
    labels = np.linspace(-high, high, count)
    return {
        f"v{i}/0001": Clip(f"v{i}/0001", f"v{i}", "test", "en", "", text, float(labels[i]), duration=3.0)
        for i in range(count)
    }


def make_predictions(clips: dict[str, Clip], offsets: dict[int, float]) -> pa.Table:
    """Each seed predicts every label plus its own offset."""
    rows = [
        {
            "clip_id": clip.clip_id,
            "split": "test",
            "seed": seed,
            "label": clip.label,
            "prediction": (clip.label or 0.0) + offset,
        }
        for seed, offset in offsets.items()
        for clip in clips.values()
    ]
    types = {"clip_id": pa.string(), "split": pa.string(), "seed": pa.int64()}
    types |= {"label": pa.float32(), "prediction": pa.float32()}
    return pa.Table.from_pylist(rows, schema=pa.schema(types))


def make_curves(epochs: dict[int, int]) -> list[dict[str, float]]:
    return [
        {
            "seed": seed,
            "epoch": epoch,
            "train_loss": 3 / epoch,
            "train_regression": 1 / epoch,
            "train_semantic": 1.5 / epoch,
            "train_supervised": 2 / epoch,
            "valid_mae": 1 / epoch + seed * 0.1,
            "valid_corr": 1 - 1 / epoch,
        }
        for seed, count in epochs.items()
        for epoch in range(1, count + 1)
    ]


def make_record(**changes: Any) -> dict[str, Any]:
    """What a run on a CPU at a clean revision records of itself."""
    return {
        "started": "2026-11-24T02:57:14+00:00",
        "code": {"revision": "0123456789abcdef", "dirty": False, "changed": []},
        "params": {
            "extract": {"workers": 0, "text": {"options": {"model": "minilm"}}},
            "train": {"seeds": [0, 1]},
        },
        "data": {"dataset": "da7a" * 16},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "machine": {
            "device": "cpu", "processes": 1, "cpu": "AMD EPYC", "cores": 16, "threads": 8, "platform": "Linux-6.1",
        },
        "seconds": 12.5,
    } | changes  # fmt: skip


def make_report(**changes: object) -> ReportInput:
    clips = make_clips()
    whole = ReportInput(
        corpus="demo_en",
        split="test",
        label_range=WIDE,
        metrics=WIDE_METRICS,
        predictions=make_predictions(clips, {0: 0.25}),
        clips=clips,
        problems=[Problem("v3/0001", "extract", "vision", "NoFace", "no face in 38 frames")],
        word_times={
            "methods": {
                "ctc": {"clips": 3, "words": 20},
                "proportional": {
                    "clips": 77,
                    "words": 1300,
                    "error": {
                        "clips": 70,
                        "words": 1234,
                        "clips_with_other_words": 7,
                        "overlap": 0.934,
                        "start": {"mean": 0.0712, "median": 0.0642, "p90": 0.2},
                        "end": {"mean": 0.1, "median": 0.1, "p90": 0.1},
                    },
                },
            }
        },
        record=make_record(train=[make_record(seed=0), make_record(seed=1)]),
    )
    return replace(whole, **changes)


def make_card() -> CorpusCard:
    """Of a corpus as large as they come, with everything that a card can hold."""
    names = [str(value) for value in range(-3, 4)]
    counts = {split: np.arange(1, 8) for split in ("train", "valid", "test")}
    return CorpusCard(
        groups=["train", "valid", "test", "all"],
        rows=[
            ("Clips", ["16,326", "1,871", "4,659", "22,856"]),
            ("Valid vision", ["100.0%"] * 4),
            ("Length unknown", ["0", "0", "1", "1"]),
        ],
        absent=2,
        reasons=[(("extract", "vision", "NoFace"), 1), (("align", "", "NoModality"), 2)],
        histogram=_histogram(counts, names),
        classes=[(name, [16_326, 1_871, 4_659, 22_856]) for name in names],
        by_modality=[("text", 22_856, 0.75), ("audio", 1, None)],
        signatures=[(m, f"{m}.extractor-v2-0123456789ab") for m in ("text", "audio", "vision")],
    )


@pytest.fixture
def render(tmp_path: Path):
    """Write a report of `make_report(**changes)`; returns its HTML and the parsed page."""

    def write(**changes: object) -> tuple[str, Page]:
        path = tmp_path / "report" / "index.html"
        write_report(path, make_report(**changes))
        html = path.read_text(encoding="utf-8")
        return html, Page(html)

    return write


def test_page_loads_nothing(render):
    html, page = render(curves=make_curves({0: 5}))
    assert "<script" not in html
    assert "@import" not in html
    assert "http:" not in html and "https:" not in html
    for tag, attrs in page.elements:
        assert "src" not in attrs and "srcset" not in attrs, (tag, attrs)
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    references = html.split("url(")[1:]
    assert references and all(part.startswith("#") for part in references)


def test_ids_are_unique_and_every_reference_finds_its_target(render):
    html, page = render(curves=make_curves({0: 5, 1: 3}))
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = {(attrs.get("href") or "")[1:] for tag, attrs in page.elements if tag == "use"}
    targets |= {part.split(")")[0][1:] for part in html.split("url(")[1:]}
    assert targets and targets <= set(ids)


def test_transcripts_ids_and_messages_are_escaped(render):
    hostile = "<script>alert(1)</script> \"quoted\" & 'single'"
    clips = {hostile: Clip(hostile, "v", "test", 'en" onclick="x', "", hostile, 1.0)}
    html, page = render(
        corpus=hostile,
        clips=clips,
        predictions=make_predictions(clips, {0: 1.0}),
        problems=[Problem(hostile, "prepare", "", "Bad<b>", hostile)],
        record=make_record(params={"prepare": {"root": hostile}}),
    )
    assert "<script" not in html
    assert not any(tag in ("script", "b") for tag, _ in page.elements)
    assert not any("onclick" in attrs for _, attrs in page.elements)
    assert page.words.count(hostile) >= 5


def test_same_input_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        write_report(tmp_path / name, make_report(curves=make_curves({0: 5, 1: 3})))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_users_matplotlibrc_changes_nothing(tmp_path):
    from matplotlib import rc_context

    write_report(tmp_path / "plain", make_report())
    with rc_context({"axes.linewidth": 5.0, "xtick.direction": "in", "svg.fonttype": "path"}):
        write_report(tmp_path / "odd", make_report())
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "odd").read_bytes()


def test_plots_take_their_colours_from_the_page(render):
    html, _ = render(curves=make_curves({0: 5, 1: 3}))
    assert "#0101" not in html
    for name in ("--ink", "--muted", "--line", "--accent", "--series-1", "--series-4"):
        assert f"var({name})" in html and f"{name}:" in html


def test_no_problem_is_said_in_words(render):
    assert "No clip was skipped." in render(problems=[])[1].words


def test_problems_are_counted_by_kind_and_listed(render):
    problems = [Problem(f"v{i}/1", "extract", "vision", "NoFace", f"frames {i}") for i in range(3)]
    problems.append(Problem("v0/1", "prepare", "", "MissingMedia", "row 4"))
    _, page = render(problems=problems)
    assert "No clip was skipped." not in page.words
    assert "4 problems, clips concerned: 3." in page.words
    assert ["NoFace", "extract", "vision", "3"] in page.rows
    assert ["MissingMedia", "prepare", "–", "1"] in page.rows  # noqa: RUF001
    assert ["v2/1", "extract", "vision", "NoFace", "frames 2"] in page.rows


def test_a_long_list_of_problems_is_cut_and_says_so(render):
    problems = [Problem(f"v{i}/1", "extract", "audio", "Truncated", "") for i in range(1234)]
    _, page = render(problems=problems)
    assert ["Truncated", "extract", "audio", "1,234"] in page.rows
    assert "The first 200 of 1,234" in page.words
    assert sum(row[0].startswith("v") and row[-2] == "Truncated" for row in page.rows if len(row) == 5) == 200


def test_what_a_modality_says_alone_is_named_so():
    rows = metrics_rows({"mae": 0.5, "acc2_text": 0.91, "mae_text": 0.3, "corr_vision": None})
    assert rows == [
        ("Mean absolute error", "0.500"),
        ("Acc-2, text alone", "91.0%"),
        ("Mean absolute error, text alone", "0.300"),
        ("Pearson correlation, vision alone", "–"),  # noqa: RUF001
    ]


def test_metrics_are_named_in_plain_language():
    rows = dict(metrics_rows(WIDE_METRICS))
    assert rows["Acc-2 (negative / positive)"] == "91.7%"
    assert rows["F1 (negative / non-negative)"] == "89.0%"
    assert rows["Mean absolute error"] == "0.507"
    assert rows["Pearson correlation"] == "0.910"
    assert rows["Clips"] == "12"
    assert len(rows) == len(WIDE_METRICS)


def test_several_seeds_show_their_spread_and_number(render):
    metrics = {"n": 12, "seeds": 3, "mae": 0.5, "mae_std": 0.0214, "acc2_np": 0.9, "acc2_np_std": 0.0123}
    rows = dict(metrics_rows(metrics))
    assert rows == {
        "Acc-2 (negative / positive)": "90.0% ± 1.2",
        "Mean absolute error": "0.500 ± 0.021",
        "Clips": "12",
        "Seeds": "3",
    }
    assert "means of 3 seeds" in render(metrics=metrics)[1].words


def test_an_undefined_metric_is_an_en_dash(render):
    metrics = {"n": 12, "mae": 0.5, "corr": None, "corr_std": None, "acc2_np": None}
    assert dict(metrics_rows(metrics))["Pearson correlation"] == "–"  # noqa: RUF001
    html, page = render(metrics=metrics)
    assert any(row[0].startswith("Pearson correlation") and row[1] == "–" for row in page.rows)  # noqa: RUF001
    assert "None" not in html and "nan" not in page.words


def test_an_unknown_metric_is_shown_under_its_key():
    assert metrics_rows({"rank_corr": 0.25, "rank_corr_std": 0.01}) == [("rank_corr", "0.250 ± 0.010")]


def test_plots_and_tables_use_the_mean_over_seeds(render):
    clips = make_clips()
    predictions = make_predictions(clips, {0: 0.3, 1: -0.6, 2: 0.9})
    ids, label, prediction = mean_over_seeds(predictions)
    assert ids == list(clips)
    np.testing.assert_allclose(prediction - label, 0.2, atol=1e-6)
    _, page = render(predictions=predictions)
    worst = [row for row in page.rows if row[0].startswith("v") and len(row) == 5 and row[4] == "It was fine."]
    assert len(worst) == 12
    assert {row[3] for row in worst} == {"+0.200"}


def test_worst_clips_come_worst_first(render):
    clips = make_clips(40)
    table = make_predictions(clips, {0: 0.0})
    errors = np.linspace(0, 2, 40) * np.resize([1, -1], 40)
    wrong = pa.array(np.asarray(table["label"]) + errors, pa.float32())
    _, page = render(clips=clips, predictions=table.set_column(4, "prediction", wrong))
    rows = [row for row in page.rows if row[-1] == "It was fine."]
    assert [row[0] for row in rows] == [f"v{i}/0001" for i in range(39, 24, -1)]
    assert rows[0][1:4] == ["+3.000", "+1.000", "\u22122.000"]


def test_labels_of_single_modalities_stand_beside_the_worst_clips(render):
    clip = Clip("v/1", "v", "test", "zh", "", "很好", 0.6, label_text=-0.2, label_audio=0.4)
    clips = {"v/1": clip}
    _, page = render(clips=clips, predictions=make_predictions(clips, {0: 0.1}), label_range=UNIT)
    expected = ["v/1", "+0.600", "+0.700", "+0.100", "很好", "\u22120.200", "+0.400", "–"]  # noqa: RUF001
    assert expected in page.rows
    assert any(tag == "span" and attrs.get("lang") == "zh" for tag, attrs in page.elements)


def test_confusion_matrix_has_seven_classes_or_five_bins(render):
    _, wide = render()
    assert wide.svgs()[:2] == ["Confusion matrix", "Predicted against true"]
    assert "(\u22120.1, 0.1]" not in wide.words
    clips = make_clips(high=1.0)
    predictions = make_predictions(clips, {0: 0.1})
    _, unit = render(label_range=UNIT, clips=clips, predictions=predictions, metrics={"n": 12, "acc2": 0.9})
    for name in (
        "[\u22121, \u22120.7]",
        "(\u22120.7, \u22120.1]",
        "(\u22120.1, 0.1]",
        "(0.1, 0.7]",
        "(0.7, 1]",
    ):
        assert name in unit.words
    assert "Acc-2 (non-positive / positive)" in unit.words


def test_the_corpus_stands_on_the_page_with_its_gaps_and_their_reasons(render):
    html, page = render(card=make_card())
    assert ["Clips", "16,326", "1,871", "4,659", "22,856"] in page.rows
    assert ["\u22123", "16,326", "1,871", "4,659", "22,856"] in page.rows
    assert ["text", "22,856", "0.750"] in page.rows and ["audio", "1", "–"] in page.rows  # noqa: RUF001
    assert "2 clips are not in the dataset: NoFace in extract of vision, 1; NoModality in align, 2. All" in page.words
    assert page.svgs()[2:] == ["Labels by split"] and "#0101" not in html
    assert "audio by audio.extractor-v2-0123456789ab, vision by" in page.words
    assert "The corpus" not in render()[1].words


def test_absent_curves_are_said_in_words(render):
    _, page = render(curves=[])
    assert "No training curves were recorded." in page.words
    assert len(page.svgs()) == 2


def test_curves_without_a_series_draw_the_others(render):
    curves = [{"seed": 0, "epoch": 1, "train_loss": 1.0, "valid_mae": None, "learning_rate": 0.1}]
    _, page = render(curves=curves)
    assert page.svgs()[2:] == ["Training loss"]
    assert "semantic" not in page.words


def test_an_undefined_value_within_a_curve_leaves_a_gap(render):
    curves = make_curves({0: 4, 1: 4})
    curves[1]["valid_corr"] = None
    del curves[6]["valid_corr"]
    assert "Validation correlation" in render(curves=curves)[1].svgs()


def test_a_split_without_labels_has_no_error_plots(render):
    clips = {name: replace(clip, label=None) for name, clip in make_clips().items()}
    _, page = render(clips=clips, predictions=make_predictions(clips, {0: 0.1}))
    assert page.svgs() == []
    assert "No clip of this split has a label" in page.words


def test_a_diverged_model_still_gets_a_report(render):
    assert "Predicted against true" in render(predictions=make_predictions(make_clips(), {0: 1e6}))[1].svgs()


def test_settings_are_listed_by_stage_with_dotted_keys(render):
    _, page = render()
    assert ["text.options.model", "minilm"] in page.rows
    assert ["seeds", "0, 1"] in page.rows
    assert ["torch", "2.13.0"] in page.rows


def test_what_training_and_evaluation_share_is_said_once(render):
    _, page = render()
    assert ["Code", "0123456789ab"] in page.rows
    assert ["Dataset", "da7ada7ada7a"] in page.rows
    assert ["Processor", "AMD EPYC, 16 cores, 8 threads used"] in page.rows
    assert ["Seed", "0; 1", "–"] in page.rows  # noqa: RUF001
    assert ["Began", "2026-11-24 02:57:14 UTC"] in page.rows


def test_what_training_and_evaluation_do_not_share_stands_side_by_side(render):
    dirty = {"revision": "fedcba9876543210", "dirty": True, "changed": ["model/train.py", "params.yaml"]}
    trained = make_record(seed=0, code=dirty, versions={"python": "3.12.1", "torch": "2.12.0"})
    trained["machine"] = trained["machine"] | {"device": "cuda", "gpu": "NVIDIA H200", "processes": 4}
    _, page = render(record=make_record(train=[trained], code=None))
    changes = "fedcba987654, with uncommitted changes in model/train.py, params.yaml"
    assert ["Code", changes, "not under version control"] in page.rows
    assert ["Device", "NVIDIA H200, 4 processes", "cpu"] in page.rows
    assert ["torch", "2.13.0 (training: 2.12.0)"] in page.rows


def test_a_model_whose_training_left_no_record_still_gets_a_report(render):
    assert ["Code", "–", "0123456789ab"] in render(record=make_record(train=[]))[1].rows  # noqa: RUF001
    assert "How this was made" not in render(record={})[1].words


def test_a_long_list_of_changed_files_is_cut_and_says_so(render):
    changed = [f"model/{i}.py" for i in range(9)]
    _, page = render(record=make_record(code={"revision": "0" * 40, "dirty": True, "changed": changed}))
    assert "model/4.py and 4 more" in page.words and "model/5.py" not in page.words


def test_word_times_show_each_methods_share_and_its_error_where_it_is_known(render):
    _, page = render()
    assert ["Word's start, proportional", "0.071", "0.064", "0.200"] in page.rows
    assert "Method proportional: 1,300 words of 77 clips." in page.words
    assert "1,234 words; 93.4% of its times" in page.words
    assert "than the true times: 7 clips." in page.words
    assert "Method ctc: 20 words of 3 clips. True times are not known" in page.words
    assert not any(row[0].endswith(", ctc") for row in page.rows)
    assert "No clip has a text" in render(word_times={"methods": {}})[1].words
    assert "Word times" not in render(word_times=None)[1].words


def test_another_label_range_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="label range"):
        write_report(tmp_path / "index.html", make_report(label_range=(0.0, 5.0)))
    assert not (tmp_path / "index.html").exists()


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_plot_data_has_one_row_a_labelled_clip(tmp_path):
    clips = {
        "a/1": Clip("a/1", "a", "test", "en", "", "", -3.0),
        "a/2": Clip("a/2", "a", "test", "en", "", "", 2.4),
        "a/3": Clip("a/3", "a", "test", "en", "", "", None),
    }
    write_plot_data(tmp_path, make_predictions(clips, {0: 0.0, 1: 1.0}), WIDE)
    assert read_csv(tmp_path / "confusion.csv") == [
        {"actual": "a: -3", "predicted": "b: -2"},  # -2.5 rounds to even
        {"actual": "f: 2", "predicted": "g: 3"},
    ]
    assert read_csv(tmp_path / "scatter.csv") == [
        {"label": "-3", "prediction": "-2.5"},
        {"label": "2.4", "prediction": "2.9"},
    ]


@pytest.mark.parametrize(("label_range", "count"), [(WIDE, 7), (UNIT, 5)])
def test_classes_of_the_plot_data_sort_from_negative_to_positive(tmp_path, label_range, count):
    clips = make_clips(61, high=label_range[1])
    write_plot_data(tmp_path, make_predictions(clips, {0: 0.0}), label_range)
    names = [row["actual"] for row in read_csv(tmp_path / "confusion.csv")]
    assert names == sorted(names)
    assert len(set(names)) == count


def test_importing_the_module_loads_no_heavy_package():
    heavy = "{'torch', 'matplotlib', 'jinja2', 'prefect', 'transformers'}"
    code = f"import sys, flows.report; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_the_page_whole_without_errors_or_requests(render, tmp_path, browser, width, scheme):
    clips = make_clips(text="<script>document.title = 'taken'</script> \"quoted\" " + "long" * 40)
    render(clips=clips, predictions=make_predictions(clips, {0: 0.5}), card=make_card())
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble, requests = [], []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report" / "index.html").as_uri())
    assert trouble == [] and len(requests) == 1
    assert page.title() != "taken" and "document.title = 'taken'" in page.inner_text("body")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = "[...document.querySelectorAll('.figures')].map(table => [table, table.closest('.scroll')])"
    wide = f"{figures}.map(([t, p]) => [t.scrollWidth, p.clientWidth]).filter(([t, p]) => p && t > p)"
    assert page.evaluate(wide) == [], "tables of the corpus that must be scrolled sideways: width, width shown"
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]")
    assert (luminance < 80) == (scheme == "dark")
    page.close()
