"""The presets of corpora: each is a valid set of parameters, and says what it is there for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corpora.splits import SplitConfig
from flows.config.params import Params, ParamsError, check_params
from flows.config.presets import compose
from flows.prepare import read_corpus

CONF = Path(__file__).parents[3] / "conf"
CORPORA = sorted(path.stem for path in (CONF / "corpus").glob("*.yaml"))
TEXTS = sorted(path.stem for path in (CONF / "text").glob("*.yaml"))

RECIPES = {  # of the authors: docs/reproduce.md
    "mosi": ("bert-base-uncased", 16, 5e-5, 100, 10, 2, 2),
    "mosei": ("bert-base-uncased", 8, 2e-5, 25, 1, 4, 3),
    "sims": ("bert-base-chinese", 16, 5e-5, 100, 10, 2, 2),
    "sims2": ("bert-base-chinese", 16, 5e-5, 100, 10, 2, 2),
}


def preset(*choices: str) -> Params:
    return check_params(compose(choices, CONF), " ".join(choices))


def test_every_corpus_and_every_text_is_there():
    assert {"demo_en", "demo_zh", "mosi", "mosei", "sims", "sims2", "folder"} <= set(CORPORA)
    assert {"minilm", "characters", "bert_base_uncased", "bert_base_chinese"} <= set(TEXTS)


@pytest.mark.parametrize("text", ["", *TEXTS])
@pytest.mark.parametrize("corpus", CORPORA)
def test_any_corpus_goes_with_any_text(corpus, text):
    preset(f"corpus={corpus}", *([f"text={text}"] if text else []))


@pytest.mark.parametrize("corpus", RECIPES)
def test_published_corpora_are_trained_as_the_authors_did(corpus):
    params = preset(f"corpus={corpus}")
    model, train, text = params.model, params.train, params.extract.text
    sizes = (model.encoder_layers, model.fusion_layers)
    rates = (train.batch_size, train.learning_rate, train.epochs, train.warmup_epochs)
    assert (text.options["model"], *rates, *sizes) == RECIPES[corpus]
    assert (model.text.mode, model.text.encoder, train.text_learning_rate) == ("finetune", "", None)
    assert train.patience == train.epochs
    assert (model.dim, model.heads, model.bottleneck_tokens, model.fusion, model.anchor) == (128, 8, 8, "hbf", "text")
    contrastive = train.contrastive
    assert (contrastive.weight, contrastive.temperature, contrastive.scope) == (0.2, 0.5, "retrieved")
    assert params.prepare.layout == "mmsa"
    chinese = corpus.startswith("sims")
    assert params.prepare.language == ("zh" if chinese else "en")
    assert params.prepare.label_range == ((-1, 1) if chinese else (-3, 3))


@pytest.mark.parametrize("corpus", RECIPES)
def test_a_pickle_of_a_corpus_is_trained_alike(corpus):
    """One command for who owns the file: encoder, seeds, padding, and the rest as from videos."""
    videos, pickled = preset(f"corpus={corpus}"), preset(f"corpus={corpus}_pickle")
    text = replace(videos.model.text, encoder=videos.extract.text.options["model"])
    assert pickled.model == replace(videos.model, text=text)
    assert pickled.train == replace(videos.train, seeds=(1111, 1112, 1113, 1114, 1115))
    assert pickled.prepare == replace(videos.prepare, layout="mmsa_pickle", root=pickled.prepare.root)
    assert (pickled.extract, pickled.align) == (videos.extract, videos.align)


PADDED = {"mosi": (375, 500), "mosei": (500, 500), "sims": (400, 55), "sims2": (0, 0)}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("corpus", RECIPES)
def test_the_published_recipe_is_that_of_the_authors_code(corpus, pickled):
    params = preset(f"corpus={corpus}{'_pickle' if pickled else ''}", "experiment=published")
    model, train = params.model, params.train
    assert (model.name, model.normalise) == ("dashfusion_published", False)
    assert (model.padding.audio, model.padding.vision) == PADDED[corpus]
    assert train.seeds == (1, 12, 123, 1234)
    assert (train.batching, train.clip_norm, train.best_epoch, train.precision) == ("shuffled", 0, "last", 32)
    assert (train.contrastive.semantic_negatives, train.contrastive.reduction) == ("anchor", "published")
    assert (train.mining.index, train.mining.class_rounding) == ("rank", "even")
    rates = (train.batch_size, train.learning_rate, train.epochs, train.warmup_epochs)
    assert (*rates, model.encoder_layers, model.fusion_layers) == RECIPES[corpus][1:]


def test_ch_sims_is_measured_at_the_rate_of_its_own_features():
    from extractors.audio.librosa import SAMPLE_RATE, LibrosaAudio

    audio = preset("corpus=sims").extract.audio
    assert audio.extractor == "audio.librosa" and SAMPLE_RATE == 22_050
    assert LibrosaAudio(**audio.options).hop == 512


def test_the_chinese_demo_needs_no_weights_and_differs_in_parameters_alone():
    english, chinese = preset(), preset("corpus=demo_zh")
    assert (chinese.prepare.layout, chinese.prepare.language, chinese.prepare.label_range) == ("demo", "zh", (-1, 1))
    assert (chinese.extract.text.extractor, chinese.extract.text.options) == ("text.words", {})
    assert (chinese.model.text.mode, chinese.model.text.tokenizer) == ("scratch", "character")
    assert (chinese.extract.audio, chinese.extract.vision) == (english.extract.audio, english.extract.vision)
    assert chinese.align == english.align


def difference(before: str, after: str) -> list[str]:
    """The rows of a Markdown table of what differs between two presets."""

    def flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for key, value in values.items():
            leaves |= flat(value, f"{place}{key}.") if isinstance(value, Mapping) else {f"{place}{key}": value}
        return leaves

    one, other = (flat(compose([f"corpus={name}"], CONF)) for name in (before, after))
    cells = {
        key: [str(side.get(key, "")) for side in (one, other)] for key in [*one, *(k for k in other if k not in one)]
    }
    rows = [f"| `{key}` | {a} | {b} |" for key, (a, b) in cells.items() if a != b]
    return [f"| | `corpus={before}` | `corpus={after}` |", "|---|---|---|", *rows]


@pytest.mark.parametrize(("before", "after"), [("demo_en", "demo_zh"), ("mosi", "sims")])
def test_the_page_about_chinese_shows_what_differs_as_it_is(before, after):
    page = (CONF.parent / "docs" / "chinese.md").read_text(encoding="utf-8")
    table = "\n".join(difference(before, after))
    assert f"\n\n{table}\n\n" in page, f"docs/chinese.md should show:\n{table}"


def test_own_columns_are_named_one_by_one_and_checked():
    params = preset("corpus=folder", "prepare.columns.media=file", "prepare.columns.label=score").prepare
    assert params.raw_columns == {"media": "file", "label": "score"}
    assert (params.raw_layout, preset("corpus=mmsa").prepare.raw_layout) == ("folder", "mmsa")
    with pytest.raises(ParamsError, match="prepare: columns: 'labels' is none of a table's columns; name among media"):
        preset("corpus=folder", "+prepare.columns.labels=score")
    with pytest.raises(ParamsError, match="columns: no effect with layout demo"):
        preset("+prepare.columns={text: words}")


def test_an_own_folder_is_read_as_the_parameters_say(tmp_path):
    (tmp_path / "ratings.csv").write_text("file,score,set\na.wav,9,train\n", encoding="utf-8")
    columns = [f"prepare.columns.{ours}={theirs}" for ours, theirs in (("media", "file"), ("label", "score"))]
    params = preset("corpus=folder", *columns, "prepare.columns.mode=set").prepare
    manifest, problems = read_corpus.fn(params, tmp_path)
    assert manifest.clips == ()
    assert [(p.clip_id, p.error) for p in problems] == [("a/a", "LabelOutOfRange")]


def test_how_splits_are_drawn_is_checked():
    drawn = preset("corpus=folder", "prepare.split={valid: 0.15, test: 0.2, by: speaker, seed: 7}").prepare
    assert drawn.split == SplitConfig(0.15, 0.2, "speaker", 7) and preset("corpus=folder").prepare.split is None
    for values, message in {
        "{valid: 0.5, test: 0.5}": "prepare.split: valid and test together",
        "{valid: -0.1, test: 0.5}": "prepare.split: valid is a share of the clips",
        "{valid: 0.1, test: nan}": "prepare.split: test is a share of the clips",
        "{valid: 0.1, test: 0.1, by: gender}": r"prepare.split.by: Input should be 'speaker', 'video' or 'clip'",
        "{valid: 0.1}": "prepare.split.test: missing",
        "{valid: 0.1, test: 0.1, sed: 7}": r"prepare.split.sed: no such key; did you mean 'seed'\?",
    }.items():
        with pytest.raises(ParamsError, match=message):
            preset("corpus=folder", f"prepare.split={values}")
    with pytest.raises(ParamsError, match="split: no effect with layout mmsa, which has its own"):
        preset("corpus=mmsa", "+prepare.split={valid: 0.15, test: 0.2}")


def test_the_encoding_of_a_table_is_checked():
    assert preset("corpus=mmsa", "prepare.encoding=gb18030").prepare.encoding == "gb18030"
    for name in ("utf-99", "rot13", "undefined"):
        with pytest.raises(ParamsError, match=f"prepare: encoding '{name}' is unknown"):
            preset("corpus=folder", f"prepare.encoding={name}")
    with pytest.raises(ParamsError, match="encoding: no effect with layout demo"):
        preset("+prepare.encoding=gb18030")


def test_a_folders_table_is_named_by_its_file_alone():
    assert preset("corpus=folder", "prepare.table=my ratings.csv").prepare.table == "my ratings.csv"
    for name in ("a/b.csv", "../b.csv", "/b.csv", "..", "''"):
        with pytest.raises(ValueError, match="must be the name of a file"):
            preset("corpus=folder", f"prepare.table={name}")
    with pytest.raises(ValueError, match="table: no effect with layout mmsa; corpus=folder"):
        preset("corpus=mmsa", "+prepare.table=b.csv")
