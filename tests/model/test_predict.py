"""Scores of new clips: the same as evaluate's, what they mean, and what is said of them."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoint.io import load_checkpoint
from model.config import MODALITIES, ModelConfig, TextConfig, TrainConfig
from model.data.clips import ClipTable
from model.evaluate import evaluate
from model.predict import PredictionError, Predictor
from model.prediction.protocol import FeatureFailure, Note, Segment, Steps, Video, VideoFeatures
from model.prediction.results import RESULTS_SCHEMA, Failure, Prediction, write_results
from model.prediction.scoring import WINDOWED_FROM
from model.train import train

SMALL = ModelConfig(dim=16, heads=4, encoder_layers=1, max_positions=12)
SHORT = TrainConfig(epochs=1, warmup_epochs=0, batch_size=8, device="cpu")
TRAINING = {"seconds": {"median": 2.0, "longest": 4.0}, "missing": {"text": 0, "audio": 3, "vision": 0}}


@pytest.fixture(scope="module")
def data(dataset_writer, tmp_path_factory) -> Path:
    folder = dataset_writer(tmp_path_factory.mktemp("data"), clips={"train": 24, "valid": 40, "test": 8})
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": TRAINING}))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    return train(data, tmp_path_factory.mktemp("out"), SMALL, SHORT, seed=0).best


@pytest.fixture(scope="module")
def predictor(trained) -> Predictor:
    return Predictor.load(trained, device="cpu")


def clips(data: Path, split: str = "test") -> list[dict[str, Steps]]:
    """The split's clips as a maker gives them."""
    rows = pq.read_table(data / split).to_pylist()
    dims = {"text": 12, "audio": 5, "vision": 7}
    return [
        {m: Steps(np.float32(row[f"{m}_values"]).reshape(-1, dims[m]), np.array(row[f"{m}_mask"], bool)) for m in dims}
        for row in rows
    ]


def segment(steps: dict[str, Steps], text: str = "words", start: float = 0.0, end: float = 2.0) -> Segment:
    return Segment(start, end, text, steps)


class FakeMaker:
    """Gives what it was told to, and remembers how it was asked."""

    def __init__(self, results):
        self.results, self.asked = results, {}

    def prepare(self):
        self.asked["prepared"] = True

    def make(self, items, **options):
        self.asked |= options
        return iter(self.results)


def with_maker(trained: Path, monkeypatch, results, **options) -> tuple[Predictor, FakeMaker]:
    maker = FakeMaker(results)
    monkeypatch.setattr("model.predict.find_maker", lambda: lambda *args, **kwargs: maker)
    return Predictor(trained, device="cpu", **options), maker


def test_scores_are_evaluates_of_the_same_clips(data, trained, monkeypatch):
    expected = evaluate(data, [trained], "test", device="cpu").predictions.to_pylist()
    made = [VideoFeatures(2.0, "given", segment(steps)) for steps in clips(data)]
    predictor, _ = with_maker(trained, monkeypatch, made)
    results = list(predictor.predict([Video(Path(row["clip_id"])) for row in expected]))
    for row, result in zip(expected, results, strict=True):
        assert result.name == row["clip_id"]
        assert result.score.raw == pytest.approx(row["prediction"], abs=1e-5)
        for m in result.score.used:
            without = result.score.raw - result.score.contributions[m]
            assert without == pytest.approx(row[f"prediction_without_{m}"], abs=1e-5)
        assert set(result.score.used) == {m for m in MODALITIES if row[f"prediction_without_{m}"] is not None}


def test_features_alone_give_the_same_and_need_no_maker(data, predictor, monkeypatch):
    monkeypatch.setattr("model.predict.find_maker", lambda: pytest.fail("nobody may be asked for features"))
    table = ClipTable.read(data, "test", SMALL.max_positions)
    network, _ = predictor.network()
    with torch.inference_mode():
        expected = network(table.batch(np.array([3]))).prediction.item()
    steps = clips(data)[3]
    result = predictor.from_features(
        {m: s.values for m, s in steps.items()}, masks={m: s.mask for m, s in steps.items()}
    )
    assert result.score.raw == pytest.approx(expected, abs=1e-5) and result.duration is None and result.windows == ()


def test_what_is_left_out_is_missing(data, predictor):
    steps = clips(data)[3]
    alone = predictor.from_features({"audio": steps["audio"].values})
    assert alone.score.used == ("audio",) and alone.score.contributions == {}
    hidden = {"vision": np.zeros(len(steps["vision"].values), bool)}
    both = predictor.from_features({m: steps[m].values for m in ("audio", "vision")}, masks=hidden)
    assert both.score.used == ("audio",) and both.score.raw == pytest.approx(alone.score.raw, abs=1e-5)
    with pytest.raises(PredictionError, match="nothing to score it by") as nothing:
        predictor.from_features({"vision": steps["vision"].values}, masks=hidden)
    assert nothing.value.failure.error == "NoModality"


def test_padding_of_features_that_came_with_a_corpus_is_hidden(data, trained, tmp_path):
    steps = {m: s.values[:6] for m, s in clips(data)[3].items()}
    padded = {m: np.concatenate([x, np.zeros((3, x.shape[1]))]).astype(np.float32) for m, x in steps.items()}
    del padded["text"]
    shutil.copytree(trained, tmp_path / "imported")
    path = tmp_path / "imported" / "checkpoint.json"
    description = json.loads(path.read_text())
    for m in ("audio", "vision"):
        description["dataset"]["modalities"][m]["extractor"] = f"{m}.imported"
    path.write_text(json.dumps(description))
    imported, extracted = (Predictor.load(folder, device="cpu") for folder in (tmp_path / "imported", trained))
    real = imported.from_features({m: steps[m] for m in padded}).score.raw
    assert imported.from_features(padded).score.raw == pytest.approx(real, abs=1e-5)
    assert abs(extracted.from_features(padded).score.raw - real) > 1e-4, "zeros may be measured"


def test_a_clip_alone_is_standardised_by_itself_where_training_standardised_by_speaker(data, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "best")
    described = json.loads((tmp_path / "best" / "checkpoint.json").read_text())
    described["dataset"]["normalise_audio"] = "speaker"
    (tmp_path / "best" / "checkpoint.json").write_text(json.dumps(described))
    predictor, plain = Predictor.load(tmp_path / "best", device="cpu"), Predictor.load(trained, device="cpu")
    assert predictor.network()[1].dataset.to_dict()["normalise_audio"] == "speaker"
    values = next(clip for clip in clips(data) if len(clip["audio"].values) > 1)["audio"].values
    mask = np.arange(len(values)) < len(values) - 1
    seen = values[mask].astype(float)
    by_hand = (values - seen.mean(axis=0)) / np.where(seen.std(axis=0) > 0, seen.std(axis=0), 1)
    found = predictor.from_features({"audio": values}, masks={"audio": mask}).score.raw
    expected = plain.from_features({"audio": by_hand.astype(np.float32)}, masks={"audio": mask}).score.raw
    assert found == pytest.approx(expected, abs=1e-5)
    louder = predictor.from_features({"audio": values * 3 + 2}, masks={"audio": mask}).score.raw
    assert found == pytest.approx(louder, abs=1e-4), "level and offset of a voice are removed"


@pytest.mark.parametrize(
    ("features", "masks", "message"),
    [
        ({"audio": np.zeros((3, 4))}, {}, r"audio must be \[T, 5\].*\(3, 4\)"),
        ({"smell": np.zeros((3, 4))}, {}, "'smell'"),
        ({"audio": np.full((3, 5), np.nan)}, {}, "NaN or infinite"),
        ({"audio": np.zeros((3, 5))}, {"audio": np.ones(2, bool)}, r"mask of audio must be \[3\] bool"),
    ],
)
def test_features_of_another_kind_are_refused(predictor, features, masks, message):
    with pytest.raises(ValueError, match=message):
        predictor.from_features(features, masks=masks)


def test_intervals_are_those_of_the_modalities_that_were_used(data, predictor):
    calibration = predictor.description["calibration"]
    values = {m: s.values for m, s in clips(data)[3].items()}
    for level, subset in ((0.9, MODALITIES), (0.5, ("text", "vision")), (0.8, ("audio",))):
        result = predictor.from_features({m: values[m] for m in subset}, level=level)
        half, low, high = calibration["+".join(subset)][f"{level:g}"], *predictor.description["dataset"]["label_range"]
        value = result.score.value
        assert (
            result.score.interval.level == level and result.score.interval.clips == calibration["+".join(subset)]["n"]
        )
        assert result.score.interval.low == pytest.approx(max(low, value - half), abs=1e-6)
        assert result.score.interval.high == pytest.approx(min(high, value + half), abs=1e-6)
    with pytest.raises(ValueError, match=r"level is 0.7.*0.5, 0.8, 0.9, 0.95"):
        predictor.from_features(values, level=0.7)


def test_an_interval_that_is_not_known_is_said(data, trained, tmp_path):
    description = json.loads((trained / "checkpoint.json").read_text())
    for name, calibration in (("none", {}), ("few", {"audio": {"n": 4, "0.9": None}})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
        (folder / "checkpoint.json").write_text(json.dumps(description | {"calibration": calibration, "sha256": {}}))
        result = Predictor(folder, device="cpu").from_features({"audio": clips(data)[3]["audio"].values})
        (notice,) = [w for w in result.warnings if w.code == "no_interval"]
        assert result.score.interval is None
        assert ("without calibration" if name == "none" else "only 4 of the clips") in notice.message


@pytest.mark.parametrize(
    ("label_range", "raw", "value", "sentiment", "label_class"),
    [
        ((-3.0, 3.0), 4.0, 3.0, "positive", "3"),
        ((-3.0, 3.0), 0.4, 0.4, "neutral", "0"),
        ((-3.0, 3.0), -0.6, -0.6, "negative", "-1"),
        ((-1.0, 1.0), -0.8, -0.8, "negative", "[-1, -0.7]"),
        ((-1.0, 1.0), 0.05, 0.05, "neutral", "(-0.1, 0.1]"),
        ((-1.0, 1.0), 1.2, 1.0, "positive", "(0.7, 1]"),
    ],
)
def test_a_number_is_told_in_the_corpuss_range_and_classes(trained, label_range, raw, value, sentiment, label_class):
    from model.prediction.scoring import _score

    _, info = load_checkpoint(trained)
    info = replace(info, dataset=replace(info.dataset, label_range=label_range))
    score = _score(raw, ("text",), {}, info, 0.9)
    assert (score.raw, score.value, score.sentiment, score.label_class) == (raw, value, sentiment, label_class)


def long_video(data: Path, duration: float, count: int) -> VideoFeatures:
    windows = [segment(steps, f"w{i}", i, i + 2.0) for i, steps in enumerate(clips(data, "valid")[7 : 7 + count])]
    return VideoFeatures(
        duration, "given", segment(clips(data)[3]), windows, [Note("no_face", "no face")], {"decode": 0.5}
    )


def test_a_long_video_is_scored_by_its_windows(data, trained, monkeypatch):
    longest = TRAINING["seconds"]["longest"]
    videos = [long_video(data, WINDOWED_FROM * longest + 0.1, 5), long_video(data, WINDOWED_FROM * longest, 5)]
    predictor, _ = with_maker(trained, monkeypatch, videos)
    far, near = predictor.predict([Video(Path("far.mp4")), Video(Path("near.mp4"))])
    assert far.scored_by == "windows" and near.scored_by == "clip"
    scores = [window.score for window in far.windows]
    assert far.score.raw == pytest.approx(np.mean([score.raw for score in scores]))
    for m in far.score.used:
        assert far.score.contributions[m] == pytest.approx(np.mean([s.contributions.get(m, 0.0) for s in scores]))
    assert far.score.interval is None and scores[0].interval is not None
    assert {"no_face", "longer_than_trained", "scored_by_windows", "no_interval"} <= {w.code for w in far.warnings}
    assert "scored_by_windows" not in {w.code for w in near.warnings}
    for a, b in zip(far.windows, near.windows, strict=True):
        assert a.score.raw == pytest.approx(b.score.raw, abs=1e-5) and a.text == b.text
    assert far.seconds["decode"] == 0.5 and far.seconds["model"] > 0


def test_a_window_with_nothing_in_it_has_no_score(data, trained, monkeypatch):
    made = long_video(data, 6.0, 2)
    made = replace(made, windows=[*made.windows, segment({}, "", 3.0, 5.0)])
    predictor, _ = with_maker(trained, monkeypatch, [made])
    (result,) = predictor.predict([Video(Path("x.mp4"))])
    assert [window.score is None for window in result.windows] == [False, False, True]
    assert result.to_dict()["windows"][2]["score"] is None


def test_windows_are_as_long_as_training_clips_and_only_long_videos_get_any(trained, monkeypatch):
    predictor, maker = with_maker(trained, monkeypatch, [])
    list(predictor.predict([]))
    assert (maker.asked["window"], maker.asked["hop"], maker.asked["longer_than"]) == (2.0, 1.0, 4.0)
    list(predictor.predict([], window=8.0, workers=3, timeout=9.0, memory=5))
    assert (maker.asked["window"], maker.asked["hop"], maker.asked["longer_than"]) == (8.0, 4.0, 8.0)
    assert (maker.asked["workers"], maker.asked["timeout"], maker.asked["prepared"]) == (3, 9.0, True)
    assert maker.asked["memory"] == 5
    list(predictor.predict([], window=8.0, hop=1.0))
    assert maker.asked["hop"] == 1.0
    for options in ({"window": 0.0}, {"hop": -1.0}, {"window": float("nan")}):
        with pytest.raises(ValueError, match=r"must be 0\.1 s or more"):
            predictor.predict([], **options)


def test_what_training_never_saw_is_said(data, predictor):
    steps = clips(data)[3]
    warned = {m: predictor.from_features({m: steps[m].values}).warnings for m in ("text", "audio")}
    lacking = {m: sum(w.code == "never_without" for w in found) for m, found in warned.items()}
    assert lacking == {"text": 1, "audio": 2}  # training clips without audio there were
    long = {m: np.resize(s.values, (20, s.values.shape[1])) for m, s in steps.items()}
    cut = [w.message for w in predictor.from_features(long).warnings if w.code == "cut"]
    assert cut == [f"the network sees the first 12 of {m}'s 20 steps only" for m in MODALITIES]


def test_bad_videos_are_results_and_the_others_go_on(data, trained, monkeypatch):
    good = VideoFeatures(2.0, "given", segment(clips(data)[3]))
    empty = VideoFeatures(2.0, "", segment({}), notes=[Note("no_face", "no face in the picture")])
    videos = [
        FeatureFailure("MediaError", "a.mp4: zero bytes"),
        good,
        empty,
        *[good] * 70,
        FeatureFailure("Timeout", "z"),
    ]
    predictor, _ = with_maker(trained, monkeypatch, videos)
    results = list(predictor.predict([Video(Path(f"{i}.mp4")) for i in range(len(videos))]))
    assert [result.name for result in results] == [f"{i}.mp4" for i in range(len(videos))]
    assert results[0] == Failure("0.mp4", "MediaError", "a.mp4: zero bytes")
    assert results[2].error == "NoModality" and "no face in the picture" in results[2].message
    assert all(isinstance(result, Prediction) for result in [results[1], *results[3:-1]])
    assert results[-1].error == "Timeout"


def test_one_video_is_a_call_and_a_bad_one_raises(data, trained, monkeypatch):
    predictor, maker = with_maker(trained, monkeypatch, [VideoFeatures(2.0, "given", segment(clips(data)[3]))])
    assert predictor("x.mp4", "words").name == "x.mp4"
    maker.results = [FeatureFailure("MediaError", "x.mp4: zero bytes; copy it again")]
    with pytest.raises(PredictionError, match="copy it again"):
        predictor("x.mp4")
    with pytest.raises(ValueError, match="both a text and a transcript"):
        predictor("x.mp4", "words", transcript=Path("x.srt"))


def test_a_video_without_anyone_to_make_features_says_the_ways_out(trained, monkeypatch):
    monkeypatch.setattr("model.prediction.protocol.entry_points", lambda group: [])
    with pytest.raises(ValueError, match=r"pip install -e .*from_features"):
        Predictor(trained, device="cpu")("x.mp4")


def test_the_projects_own_extractors_are_registered():
    from model.prediction.protocol import find_maker

    assert find_maker().__module__ == "extractors.inference.feature_maker"


def test_several_threads_get_what_one_gets(data, trained):
    predictor = Predictor(trained, device="cpu")  # loaded by whoever comes first
    values = [{m: s.values for m, s in steps.items()} for steps in clips(data)[:10]]
    barrier = threading.Barrier(4)

    def score(number: int) -> list[float]:
        barrier.wait()
        return [predictor.from_features(features).score.raw for features in values]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(score, range(4)))
    alone = [Predictor(trained, device="cpu").from_features(features).score.raw for features in values]
    for one in found:
        assert one == pytest.approx(alone, abs=1e-5)


def test_a_network_that_reads_transcripts_cuts_them_itself(dataset_writer, tmp_path):
    folder = dataset_writer(tmp_path / "data", clips={"train": 16, "valid": 8, "test": 4}, missing=False)
    text = TextConfig(mode="scratch", vocabulary=64, max_tokens=8, layers=1, width=16, heads=2)
    best = train(folder, tmp_path / "out", replace(SMALL, text=text), SHORT, seed=0).best
    expected = evaluate(folder, [best], "test", device="cpu").predictions["prediction"].to_pylist()
    predictor = Predictor(best, device="cpu")
    for steps, wanted in zip(clips(folder), expected, strict=True):
        seen = {m: steps[m] for m in ("audio", "vision")}
        result = predictor.from_features(
            {m: s.values for m, s in seen.items()}, masks={m: s.mask for m, s in seen.items()}, text="words"
        )
        assert result.score.raw == pytest.approx(wanted, abs=1e-5) and result.score.used == MODALITIES
    cut = predictor.from_features({}, text="words " * 40)
    assert any(w.code == "cut" and "8 of text's tokens" in w.message for w in cut.warnings)
    quantised = Predictor(best, device="cpu", quantise_text=True).from_features({}, text="words")
    plain = predictor.from_features({}, text="words")
    assert quantised.score.raw != plain.score.raw
    assert quantised.score.raw == pytest.approx(plain.score.raw, abs=0.2)


def test_a_checkpoint_without_text_has_no_encoder_to_quantise(data, tmp_path):
    best = train(data, tmp_path, SMALL, replace(SHORT, modalities=("audio",)), seed=0).best
    with pytest.raises(ValueError, match="no text encoder"):
        Predictor(best, quantise_text=True)
    result = Predictor(best, device="cpu").from_features({m: s.values for m, s in clips(data)[3].items()})
    assert result.score.used == ("audio",)


@pytest.mark.parametrize("options", [{}, {"allow_download": True}])
def test_models_are_downloaded_only_if_the_user_allows_it(trained, monkeypatch, options):
    asked = {}
    monkeypatch.setattr("model.predict.find_maker", lambda: lambda *args, **given: asked.update(given))
    Predictor(trained, device="cpu", **options).maker()
    assert asked["allow_download"] is bool(options)


def test_the_recogniser_that_a_checkpoint_names_is_used_if_it_can_be_had(data, trained, tmp_path, monkeypatch):
    description = json.loads((trained / "checkpoint.json").read_text())
    description["dataset"]["recogniser"] = "whisper-here"
    for name in ("model.safetensors", "density.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    asked, here = [], {"whisper-here", "other"}
    silent = VideoFeatures(2.0, "", segment({"audio": clips(data)[3]["audio"]}, ""))

    def make(dataset, modalities, recogniser=None, **options):
        asked.append(recogniser)
        if recogniser and recogniser not in here:
            raise ValueError("neither a folder nor in the cache")
        return FakeMaker([silent])

    monkeypatch.setattr("model.predict.find_maker", lambda: make)
    for chosen, last in ((None, "whisper-here"), ("", None), ("other", "other")):
        assert Predictor(tmp_path, device="cpu", recogniser=chosen)("x.mp4").warnings and asked[-1] == last
    here.remove("whisper-here")
    warned = Predictor(tmp_path, device="cpu")("x.mp4").warnings
    assert any(w.code == "no_recogniser" and "neither a folder" in w.message for w in warned)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not JSON"), ('{"schema_version": 1}', "schema 1, this version reads 2")]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        Predictor(tmp_path)
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Predictor.load(tmp_path)


KEYS = {
    "file", "error", "score", "raw_score", "sentiment", "class", "interval", "outlier_test", "used", "contributions",
    "scored_by", "duration", "text", "text_source", "windows", "warnings", "seconds",
}  # fmt: skip


def test_json_and_parquet_have_the_keys_that_are_documented(data, trained, monkeypatch, tmp_path):
    predictor, _ = with_maker(trained, monkeypatch, [long_video(data, 20.0, 2), FeatureFailure("MediaError", "bad")])
    results = list(predictor.predict([Video(Path("a.mp4")), Video(Path("b.mp4"))]))
    plain = [result.to_dict() for result in results]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert [set(result) for result in plain] == [KEYS, KEYS] and set(RESULTS_SCHEMA.names) == KEYS
    window = KEYS - {"file", "error", "scored_by", "duration", "text_source", "windows", "warnings", "seconds"}
    assert set(plain[0]["windows"][0]) == window | {"start", "end"}
    assert set(plain[0]["windows"][0]["interval"]) == {"level", "low", "high", "clips"}
    assert plain[1]["error"] == {"class": "MediaError", "message": "bad"} and plain[1]["score"] is None
    page = (Path(__file__).parents[2] / "docs/predict.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in page for key in KEYS | set(plain[0]["windows"][0]) | {"level", "low", "high", "clips"})
    write_results(results, tmp_path / "out/results.parquet")
    rows = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert rows[0]["score"] == pytest.approx(plain[0]["score"], abs=1e-6) and rows[1]["error"]["message"] == "bad"
    assert rows[0]["windows"][1]["text"] == "w1" and rows[0]["contributions"].keys() == set(MODALITIES)
