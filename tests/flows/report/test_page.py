"""The page as a whole: what it may load, what it escapes, and its sections from errors to how it was made."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from corpora.problems import Problem
from flows.report import Looks, PreviousEvaluation, metrics_rows, write_report
from flows.report.page import content_policy
from flows.studies.cross_corpus import CrossCorpusResult
from model.checkpoint.description import GENERATED_NOTICE

UNIT = (-1.0, 1.0)


def test_page_loads_nothing(render, make):
    html, page = render(
        curves=make.curves({0: 5}),
        subgroups=make.subgroups(),
        calibration=make.calibration(),
        studies=[make.study()],
        explorer=make.explorer(make.clips()),
    )
    assert "@import" not in html
    assert not re.search("https?:", html.replace('"http://www.w3.org/2000/svg"', "")), "but for the name of SVG"
    for tag, attrs in page.elements:
        assert "src" not in attrs and "srcset" not in attrs, (tag, attrs)
        for name in ("href", "xlink:href"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    references = html.split("url(")[1:]
    assert references and all(part.startswith("#") for part in references)


def test_the_content_policy_allows_one_style_and_one_script_by_their_hashes(render, make):
    html, page = render(curves=make.curves({0: 5}), studies=[make.study()], explorer=make.explorer(make.clips()))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(part.split(" ", 1) for part in policy.split("; "))
    assert allowed.pop("default-src") == "'none'" and allowed.pop("img-src") == "data:"
    for tag in ("style", "script"):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert allowed == {"base-uri": "'none'", "form-action": "'none'"}
    assert not any("style" in attrs or any(name.startswith("on") for name in attrs) for _, attrs in page.elements)
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "clip-data"}, {}
    ]  # fmt: skip


def test_a_script_that_would_end_its_own_element_is_refused():
    with pytest.raises(ValueError, match="would end its element early"):
        content_policy("", "let text = '</SCRIPT>'")


def test_ids_are_unique_and_every_reference_finds_its_target(render, make):
    html, page = render(curves=make.curves({0: 5, 1: 3}))
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = {(attrs.get("href") or "")[1:] for tag, attrs in page.elements if tag == "use"}
    targets |= {part.split(")")[0][1:] for part in html.split("url(")[1:]}
    assert targets and targets <= set(ids)


HOSTILE = "<script>alert(1)</script> </script><!-- ]]> \"quoted\" & 'single' \u2028 \u2029 {{ 7 * 7 }} `${1}`"


def test_transcripts_ids_and_messages_are_escaped(render, make):
    clips = {HOSTILE: replace(make.clips(1, text=HOSTILE)["v0/0001"], clip_id=HOSTILE, language='en" onclick="x')}
    study = make.study(title=HOSTILE, question=HOSTILE, corpus=HOSTILE, notes=[HOSTILE])
    html, page = render(
        corpus=HOSTILE,
        clips=clips,
        predictions=make.predictions(clips, {0: 1.0}),
        problems=[make.problem(HOSTILE)],
        provenance=make.record(params={"prepare": {"root": HOSTILE}}),
        explorer=make.explorer(clips),
        subgroups=make.subgroups(speakers=[make.subgroup("Speaker", HOSTILE, 8, 0.5, 0.5)]),
        studies=[study],
    )
    assert "<script>alert" not in html and "]]>" not in html.replace("]]&gt;", "") and "49" not in page.words
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert not any(tag == "b" for tag, _ in page.elements)
    assert not any("onclick" in attrs for _, attrs in page.elements)
    assert "\u2028" not in html.split('id="clip-data">')[1].split("</script>")[0]
    assert page.words.count(" ".join(HOSTILE.split())) >= 9


def whole(make, **changes):
    """A report with every section."""
    return make.report(
        curves=make.curves({0: 5, 1: 3}),
        card=make.card(),
        subgroups=make.subgroups(),
        calibration=make.calibration(),
        studies=[make.study()],
        explorer=make.explorer(make.clips()),
        intervals={"mae": (0.4, 0.6)},
        previous=PreviousEvaluation("2026-11-24T02:57:14+00:00", {"mae": 0.6}),
        **changes,
    )


def test_same_input_gives_the_same_bytes(tmp_path, make):
    for name in ("first", "second"):
        write_report(tmp_path / name, whole(make))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_links_to_sections_find_them(tmp_path, make):
    write_report(tmp_path / "index.html", whole(make))
    page = make.page((tmp_path / "index.html").read_text(encoding="utf-8"))
    ids = {attrs.get("id") for _, attrs in page.elements}
    links = {attrs["href"][1:] for tag, attrs in page.elements if tag == "a" and attrs["href"].startswith("#")}
    assert len(links) == 10 and links <= ids


def test_another_corpus_has_a_section_of_its_own_that_says_how_labels_were_mapped(render):
    other = CrossCorpusResult(
        model="model",
        trained_on=HOSTILE,
        dataset="../unit",
        corpus=HOSTILE,
        split="test",
        trained_range=(-3.0, 3.0),
        label_range=(-1.0, 1.0),
        metrics={"n": 8, "mae": 0.321, "acc2": 0.75, "baselines": {"undefined": {"mean_label": "no training split"}}},
        intervals={"mae": (0.2, 0.4)},
        notes=["the transcripts are zh, those of the training en"],
        looks="with 3 different models since 2026-11-24",
    )
    html, page = render(other=other)
    assert "<script>alert" not in html and "0.321" in page.words and "0.200 to 0.400" in page.words
    assert "Scores in [-3, 3] were mapped linearly to [-1, 1]." in page.words
    assert "The transcripts are zh, those of the training en." in page.words
    assert "evaluated with 3 different models since 2026-11-24 in this project" in page.words
    assert "could not be compared with baselines: no training split" in page.words
    assert any(attrs.get("id") == "other-corpus" for _, attrs in page.elements)


def test_sections_without_content_are_left_out_with_their_links(render):
    _, page = render(provenance={})
    for name in ("Calibration", "Subgroups", "Studies", "Corpus", "Provenance"):
        assert name not in page.words
    assert "Clips" in page.words


def test_a_users_matplotlibrc_changes_nothing(tmp_path, make):
    from matplotlib import rc_context

    write_report(tmp_path / "plain", make.report())
    with rc_context({"axes.linewidth": 5.0, "xtick.direction": "in", "svg.fonttype": "path"}):
        write_report(tmp_path / "odd", make.report())
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "odd").read_bytes()


def test_plots_take_their_colours_from_the_page(render, make):
    html, _ = render(curves=make.curves({0: 5, 1: 3}))
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


def test_metrics_stand_with_their_intervals_and_the_change_since_the_last_run(render):
    before = PreviousEvaluation("2026-11-24T02:57:14+00:00", {"mae": 0.6, "acc2_np": 0.95, "corr": 0.9104})
    intervals = {"mae": (0.4, 0.61), "acc2_np": (0.85, 0.97), "acc7": None, "acc5": (1.0, 1.0)}
    _, page = render(intervals=intervals, previous=before)
    rows = {row[0]: row[1:] for row in page.rows if len(row) == 6}
    meaning = "in units of the label, less is better"
    assert rows["Mean absolute error"] == [meaning, "0.507", "0.400 to 0.610", "0.600", "\u22120.093"]
    assert rows["Acc-2 (negative / positive)"][1:] == ["91.7%", "85.0 to 97.0%", "95.0%", "\u22123.3 points"]
    assert rows["Pearson correlation"][4] == "same"
    assert rows["Acc-7"][2:] == ["–", "–", "–"]  # noqa: RUF001
    assert rows["Acc-5"][2] == "–", "an interval without width says nothing"  # noqa: RUF001
    assert "Changes are since the run of 2026-11-24 02:57 UTC." in page.words


def test_a_model_that_is_no_better_than_a_baseline_is_marked_as_such(render):
    ridge = {"features": "text.words", "mae": 0.6, "mae_difference": -0.1, "mae_interval": [-0.3, 0.1]}
    found = {"verdict": "undecided", "hardest": "ridge_text", "ridge_text": ridge}
    html, page = render(metrics={"n": 12, "mae": 0.5, "baselines": found})
    verdict = "The model is not shown to be better than the baseline ridge on text: MAE 0.500 against 0.600"
    assert verdict in page.words and f'class="notice bad">{verdict}' in html
    meaning = "linear regression on the mean of a clip's text features (text.words)"
    assert ["Ridge on text", meaning, "0.600", "\u22120.100 [\u22120.300, +0.100]"] in page.rows
    assert "baselines" not in {row[0] for row in page.rows}
    better = found | {"verdict": "better", "ridge_text": ridge | {"mae_interval": [-0.2, -0.01]}}
    html, page = render(metrics={"n": 12, "mae": 0.5, "baselines": better})
    assert "The model is better than every baseline" in page.words and "notice bad" not in html.split("</style>")[1]


def test_a_first_run_has_neither_changes_nor_their_columns(render):
    _, page = render()
    assert "Last run" not in page.words and "Changes are since" not in page.words


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
    assert any(row[0] == "Pearson correlation" and row[2] == "–" for row in page.rows)  # noqa: RUF001
    assert "None" not in html and not re.search(r"\bnan\b", page.words)


def test_the_reason_stands_beside_the_dash_of_an_undefined_metric(render):
    metrics = {"n": 1, "mae": 0.5, "corr": None, "undefined": {"corr": "one clip"}}
    assert dict(metrics_rows(metrics))["Pearson correlation"] == "– (one clip)"  # noqa: RUF001
    _, page = render(metrics=metrics, intervals={"corr": (0.1, 0.2)})
    (row,) = (row for row in page.rows if row[0] == "Pearson correlation")
    assert row[2] == "– one clip" and "0.1" not in row[3]  # noqa: RUF001
    assert "undefined" not in {row[0] for row in page.rows}


def test_a_generated_corpus_is_stated_first(render):
    html, _ = render(generated=True)
    assert html.split("<header>")[1].strip().startswith(f'<p class="notice">{GENERATED_NOTICE}</p>')
    assert GENERATED_NOTICE not in render()[1].words


def test_confusion_matrix_has_seven_classes_or_five_bins(render, make):
    _, wide = render()
    assert wide.svgs()[:2] == ["Confusion matrix", "Predicted against true"]
    assert "(\u22120.1, 0.1]" not in wide.words
    clips = make.clips(high=1.0)
    predictions = make.predictions(clips, {0: 0.1})
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


def test_the_corpus_stands_on_the_page_with_its_gaps_and_their_reasons(render, make):
    html, page = render(card=make.card())
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


def test_an_undefined_value_within_a_curve_leaves_a_gap(render, make):
    curves = make.curves({0: 4, 1: 4})
    curves[1]["valid_corr"] = None
    del curves[6]["valid_corr"]
    assert "Validation correlation" in render(curves=curves)[1].svgs()


def test_a_split_without_labels_has_no_error_plots(render, make):
    clips = {name: replace(clip, label=None) for name, clip in make.clips().items()}
    metrics = {"n": 0, "mae": None, "corr": None, "acc2_np": None}
    _, page = render(clips=clips, predictions=make.predictions(clips, {0: 0.1}), metrics=metrics)
    assert page.svgs() == []
    assert "No clip of this split has a label, so nothing is measured" in page.words
    assert not any("errors" in (a.get("id"), (a.get("href") or "")[1:]) for _, a in page.elements)
    assert len(page.clips()) == 12


def test_a_diverged_model_still_gets_a_report(render, make):
    assert "Predicted against true" in render(predictions=make.predictions(make.clips(), {0: 1e6}))[1].svgs()


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
    assert ["Started", "2026-11-24 02:57:14 UTC"] in page.rows


def test_what_training_and_evaluation_do_not_share_stands_side_by_side(render, make):
    dirty = {"revision": "fedcba9876543210", "dirty": True, "changed": ["model/train.py", "params.yaml"]}
    trained = make.record(seed=0, code=dirty, versions={"python": "3.12.1", "torch": "2.12.0"})
    trained["machine"] = trained["machine"] | {"device": "cuda", "gpu": "NVIDIA H200", "processes": 4}
    _, page = render(provenance=make.record(train=[trained], code=None))
    changes = "fedcba987654, with uncommitted changes in model/train.py, params.yaml"
    assert ["Code", changes, "not under version control"] in page.rows
    assert ["Device", "NVIDIA H200, 4 processes", "cpu"] in page.rows
    assert ["torch", "2.13.0 (training: 2.12.0)"] in page.rows


def test_a_model_whose_training_left_no_record_still_gets_a_report(render, make):
    assert ["Code", "–", "0123456789ab"] in render(provenance=make.record(train=[]))[1].rows  # noqa: RUF001
    assert "Provenance" not in render(provenance={})[1].words


def test_a_long_list_of_changed_files_is_cut_and_says_so(render, make):
    changed = [f"model/{i}.py" for i in range(9)]
    _, page = render(provenance=make.record(code={"revision": "0" * 40, "dirty": True, "changed": changed}))
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


def test_another_label_range_is_refused_and_leaves_no_file(tmp_path, make):
    with pytest.raises(ValueError, match="label range"):
        write_report(tmp_path / "index.html", make.report(label_range=(0.0, 5.0)))
    assert not (tmp_path / "index.html").exists()


def test_importing_the_module_loads_no_heavy_package():
    heavy = "{'torch', 'matplotlib', 'jinja2', 'prefect', 'transformers'}"
    code = f"import sys, flows.report; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_says_how_often_the_test_split_was_looked_at(render):
    _, page = render(looks=Looks(1, "2026-11-24T02:57:00+00:00"))
    assert "has been evaluated with this model only in this project" in page.words
    _, page = render(looks=Looks(12, "2026-11-24T02:57:00+00:00"))
    assert "with 12 different models since 2026-11-24 in this project" in page.words
    _, page = render()
    assert "has been evaluated" not in page.words
