"""`dashfusion predict`: the files that are meant, what is printed and written, and the same scores as evaluate's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpora.manifest import MODALITIES
from flows.cli.app import app
from flows.display.metrics import format_clock
from flows.prediction import score
from flows.prediction.console import sparkline
from flows.prediction.html import write_page
from flows.prediction.inputs import default_model, find_media, to_videos
from model.checkpoint.description import GENERATED_NOTICE
from model.evaluate import evaluate
from model.predict import Predictor
from model.prediction.protocol import Video
from model.prediction.results import Failure, Prediction, Result, Score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

runner = CliRunner()

MODES = ("unaligned", "aligned")


def clips(corpus: Path) -> list[dict[str, Any]]:
    return pq.read_table(corpus / "unaligned/test", columns=["clip_id", "text"]).to_pylist()


def predict(*arguments: object) -> Any:
    return runner.invoke(app, ["predict", "--workers", "1", *map(str, arguments)])


@pytest.mark.parametrize("mode", MODES)
def test_scores_are_evaluates_of_the_same_clips(corpus, mode, tmp_path):
    checkpoint = corpus / f"models-{mode}" / "best"
    expected = evaluate(corpus / mode, [checkpoint], "test", device="cpu").predictions.to_pylist()
    assert len(expected) > 1
    for row in clips(corpus):
        name = row["clip_id"].replace("/", "_")
        (tmp_path / f"{name}.txt").write_text(row["text"])
        shutil.copy(corpus / "media/Raw" / f"{row['clip_id']}.mp4", tmp_path / f"{name}.mp4")
    shown = predict(tmp_path, "--transcript", tmp_path, "--model", checkpoint, "--json", "--device", "cpu")
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert document["model"]["generated"] is True
    results = {Path(result["file"]).stem: result for result in document["results"]}
    for row in expected:
        result = results[row["clip_id"].replace("/", "_")]
        assert result["raw_score"] == pytest.approx(row["prediction"], abs=1e-4)
        assert result["used"] == list(MODALITIES) and result["interval"] is None  # of 2 validation clips
        assert result["warnings"][0]["code"] == "generated_training" and result["outlier_test"] is None
        for m in MODALITIES:
            without = result["raw_score"] - result["contributions"][m]
            assert without == pytest.approx(row[f"prediction_without_{m}"], abs=1e-4)


def test_one_video_by_the_function(corpus):
    row = clips(corpus)[0]
    predictor = Predictor.load(corpus / "models-unaligned/best", device="cpu")
    result = predictor(corpus / "media/Raw" / f"{row['clip_id']}.mp4", row["text"])
    expected = evaluate(corpus / "unaligned", [corpus / "models-unaligned/best"], "test", device="cpu")
    assert result.score.raw == pytest.approx(expected.predictions["prediction"][0].as_py(), abs=1e-5)
    windows = predictor(corpus / "media/Raw" / f"{row['clip_id']}.mp4", row["text"], window=1.0, hop=0.5).windows
    assert len(windows) > 2 and all(window.score for window in windows)
    said = " ".join(window.text for window in windows).split()
    assert set(said) == set(row["text"].split())


def test_int8_scores_are_near(corpus):
    row = clips(corpus)[0]
    media = corpus / "media/Raw" / f"{row['clip_id']}.mp4"
    plain, quantised = (
        Predictor(corpus / "models-unaligned/best", device="cpu", quantise_text=on)(media, row["text"])
        for on in (False, True)
    )
    assert quantised.score.raw != plain.score.raw
    assert quantised.score.raw == pytest.approx(plain.score.raw, abs=0.2)


def test_the_table_says_scores_failures_and_what_to_know(corpus, tmp_path):
    media = corpus / "media/Raw" / f"{clips(corpus)[0]['clip_id']}.mp4"
    shutil.copy(media, tmp_path / "talk [1].mp4")
    (tmp_path / "torn.mp4").write_bytes(media.read_bytes()[:2000])
    model = ("--model", corpus / "models-unaligned/best", "--device", "cpu")
    written = ("--out", tmp_path / "out.parquet", "--report", tmp_path / "page.html")
    shown = predict(tmp_path, tmp_path / "nowhere.mp4", *model, *written)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(GENERATED_NOTICE) and shown.output.count(GENERATED_NOTICE) == 1
    for word in ("talk [1].mp4", "no text", "MediaError", "nowhere.mp4: no such file", "torn.mp4: "):
        assert word in " ".join(shown.output.split())
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, False]
    assert rows[0]["warnings"][0] == {"code": "generated_training", "message": GENERATED_NOTICE}
    metadata = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"dashfusion"])
    assert metadata["generated"] is True and metadata["notice"] == GENERATED_NOTICE
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.split("<main>")[1].strip().startswith(f'<p class="notice">{GENERATED_NOTICE}')
    assert page.count(GENERATED_NOTICE) == 1
    assert "talk [1].mp4" in page and "no such file" in page and "://" not in page and page.count("<script") == 1
    assert page.index('<table class="sortable">') < page.index('id="result-1"')
    assert predict(tmp_path, *model, "--strict").exit_code == 1
    assert predict(tmp_path / "torn.mp4", *model).exit_code == 1


def test_json_is_all_that_is_printed_and_errors_go_elsewhere(corpus, tmp_path):
    model = ("--model", corpus / "models-unaligned/best", "--device", "cpu")
    (tmp_path / "a.mp4").touch()
    shown = predict(tmp_path / "a.mp4", *model, "--json", "--text", "x")
    content = json.loads(shown.stdout)
    assert shown.exit_code == 1 and set(content) == {"schema_version", "model", "level", "results"}
    assert set(content["model"]) == {"path", "corpus", "generated", "language", "label_range", "seed", "epoch"}
    assert content["results"][0]["error"]["class"] == "MediaError"
    shown = predict(tmp_path / "a.mp4", *model, "--json", "--level", "0.7")
    assert shown.exit_code == 1 and shown.stdout == "" and "level is 0.7" in shown.stderr
    shown = predict(tmp_path / "a.mp4", "--model", tmp_path, "--json")
    assert shown.exit_code == 1 and "no checkpoint here" in shown.stderr


def test_files_folders_and_patterns_are_found_each_file_once(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.WAV", "notes.txt", "deep/er/c.mkv", ".hidden/d.mp4", "deep/.e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = lambda *paths: [path.relative_to(tmp_path).as_posix() for path in find_media(map(str, paths))]  # noqa: E731
    assert names(tmp_path) == ["a.mp4", "b.WAV", "deep/er/c.mkv"]
    assert names(tmp_path / "**/*.mkv", tmp_path) == ["deep/er/c.mkv", "a.mp4", "b.WAV"]
    assert names(tmp_path / "notes.txt") == ["notes.txt"]  # what is named is taken
    assert names(tmp_path / "gone.mp4") == ["gone.mp4"]
    (tmp_path / "odd[1].mp4").touch()
    assert names(tmp_path / "odd[1].mp4") == ["odd[1].mp4"]  # a file's own name is no pattern
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no media file in"):
        names(tmp_path / "empty", tmp_path / "*.avi")


def test_odd_files_of_a_folder_are_found_so_that_they_are_reported(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to("b.mp4")
    (tmp_path / "c.mp4").symlink_to("gone.mp4")
    (tmp_path / "d.mp4").mkdir()
    assert [path.name for path in find_media([str(tmp_path)])] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [path.name for path in find_media([str(tmp_path / "*.mp4")])] == ["a.mp4", "b.mp4", "c.mp4"]
    assert find_media(["~nobody-of-this-name.mp4"]) == [Path("~nobody-of-this-name.mp4")]

    def locked(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", locked)
    assert find_media([str(tmp_path / "a.mp4")]) == [tmp_path / "a.mp4"]


NOT_UTF8, ESCAPING = "caf\udce9.mp4", "torn\x1b]0;x\x07\udcff.mp4"


def test_one_odd_file_does_not_stop_the_others_and_every_output_is_written(corpus, clip, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clip, folder / "good.mp4")
    shutil.copy(clip, folder / NOT_UTF8)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / ESCAPING).write_bytes(b"no clip")
    (folder / "good.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("A secret.")
    model = ("--model", corpus / "models-unaligned/best", "--device", "cpu", "--transcript", folder)
    written = ("--out", tmp_path / "out.parquet", "--report", tmp_path / "page.html")
    for shown in (predict(folder, *model, *written), predict(folder, *model, "--json")):
        assert shown.exit_code == 0, shown.output
        assert "\x1b]0" not in shown.output and "\x07" not in shown.output and "secret" not in shown.output
    results = {Path(row["file"]).name: row for row in pq.read_table(tmp_path / "out.parquet").to_pylist()}
    assert [row["error"] is None for row in map(results.get, ("good.mp4", r"caf\xe9.mp4"))] == [True, True]
    assert "loop.mp4" in results["loop.mp4"]["error"]["message"] and len(results) == 4
    assert {Path(row["file"]).name for row in json.loads(shown.stdout)["results"]} == set(results)
    assert r"caf\xe9.mp4" in (tmp_path / "page.html").read_text(encoding="utf-8")


class Scorer:
    """Scores every file alike; interrupted at the file `stop`."""

    folder = Path("model")
    description: ClassVar[dict[str, Any]] = {
        "dataset": {"corpus": "demo_en", "language": "en", "label_range": [-3, 3]}, "seed": 0, "epoch": 1,
    }  # fmt: skip

    def predict(self, videos: Sequence[Video], **_: Any) -> Iterator[Result]:
        for video in videos:
            if video.media.name == "stop":
                raise KeyboardInterrupt
            score = Score(1.0, 1.0, "positive", "1", None, ("audio",), {})
            yield Prediction(str(video.media), score, "clip", 1.0, "", "", (), (), {"model": 0.1})


def test_scores_are_written_where_an_output_fails_and_where_scoring_is_interrupted(tmp_path, capsys, monkeypatch):
    videos = [Video(Path("a.mp4")), Video(Path("stop"))]
    out, page = tmp_path / "out.parquet", tmp_path / "page.html"
    with pytest.raises(KeyboardInterrupt):
        score.predict(Scorer(), videos, 0.9, score.OutputOptions(False, out, page))
    assert pq.read_table(out)["file"].to_pylist() == ["a.mp4"] and "a.mp4" in page.read_text()
    assert "a.mp4" in capsys.readouterr().out

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    page.unlink()
    monkeypatch.setattr(score, "write_results", full)
    with pytest.raises(OSError, match="No space left"):
        score.predict(Scorer(), videos[:1], 0.9, score.OutputOptions(True, out, page))
    assert page.exists() and json.loads(capsys.readouterr().out)["results"]
    monkeypatch.setattr(score, "write_page", full)
    with pytest.raises(OSError, match="No space left on device; No space left on device"):
        score.predict(Scorer(), videos[:1], 0.9, score.OutputOptions(True, out, page))
    assert json.loads(capsys.readouterr().out)["results"]
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        score.predict(Scorer(), videos[:1], 0.9, score.OutputOptions(out=tmp_path))


def test_a_file_whose_reading_takes_too_much_memory_is_a_row(corpus, clip):
    predictor = Predictor(corpus / "models-unaligned/best", device="cpu")
    [result] = score.score_all(predictor, [Video(clip)], workers=1, memory=0.01)
    assert isinstance(result, Failure) and result.error == "OutOfMemory"
    assert result.message.startswith(f"{clip}: more than 0.0 GiB of memory")


def test_texts_go_to_the_file_that_they_are_of(tmp_path):
    (tmp_path / "a.srt").touch()
    media = [Path("/v/a.mp4"), Path("/v/b.mp4")]
    assert [video.transcript for video in to_videos(media, None, tmp_path)] == [tmp_path / "a.srt", None]
    assert to_videos(media[:1], "said", None)[0].text == "said"
    assert to_videos(media[:1], None, tmp_path / "a.srt")[0].transcript == tmp_path / "a.srt"
    for arguments, message in (
        ((media, "said", None), "--text is for a single file, and 2 are given"),
        ((media, None, tmp_path / "a.srt"), "--transcript is for a single file"),
        ((media[:1], "said", tmp_path / "a.srt"), "give only one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            to_videos(*arguments)
    with pytest.raises(FileNotFoundError, match="no such transcript"):
        to_videos(media, None, tmp_path / "none")


def test_the_default_is_the_first_seeds_best(project):
    assert default_model() == Path("models/seed-0/best")
    Path("params.yaml").write_text("train: {seeds: []}")
    with pytest.raises(ValueError, match="--model"):
        default_model()
    Path("params.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="--model"):
        default_model()


def window(score: float | None, start: float = 0.0) -> dict[str, Any]:
    return {"score": score, "start": start, "end": start + 2, "used": ["text"], "text": "<b>bold</b>"}


def test_a_time_line_rises_with_the_score_and_is_never_too_wide():
    assert sparkline([window(score) for score in (-3.0, None, 0.0, 3.0)], (-3, 3)) == "▁ ▅█"
    many = sparkline([window(-3 + 6 * i / 999) for i in range(1000)], (-3, 3))
    assert len(many) == 60 and list(many) == sorted(many)


def test_times_are_read_as_on_a_clock():
    assert [format_clock(x) for x in (3.54, 59.94, 65, 3723)] == ["0:03.5", "0:59.9", "1:05", "1:02:03"]


def test_what_people_say_and_call_their_files_is_no_markup(tmp_path):
    result = {
        "file": "<script>alert(1)</script>.mp4", "error": None, "score": 1.0, "raw_score": 1.0, "sentiment": "positive",
        "class": "1", "interval": {"level": 0.9, "low": 0.0, "high": 2.0, "clips": 9}, "used": ["text"],
        "contributions": {}, "scored_by": "clip", "duration": 9.0, "text": "", "text_source": "given",
        "windows": [window(1.0), window(None, 1.0), window(-1.0, 2.0)],
        "warnings": [{"code": "x", "message": "a & b"}], "seconds": {},
    }  # fmt: skip
    model = {"corpus": "demo_en", "seed": 0, "epoch": 1, "label_range": [-3, 3]}
    write_page(tmp_path / "page.html", [result], model, 0.9)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>bold" not in page and "&lt;b&gt;bold" in page and "a &amp; b" in page
    assert page.index("Reasons to doubt") < page.index('<div class="value">') and "weakly positive" in page
    assert page.count("<svg") == 2 and page.count("<circle") == 3  # the score, and two lone points of the time line


def test_export_copies_the_model_with_its_figures(project, corpus):
    shutil.copytree(corpus / "models-unaligned", project / "models/seed-0")
    shown = runner.invoke(app, ["export", "model", "copy"])
    assert shown.exit_code == 0 and "validation metrics" in shown.output
    (project / "metrics").mkdir()
    (project / "metrics/test.json").write_text(json.dumps({"n": 2, "mae": 0.5, "corr": None}))
    shown = runner.invoke(app, ["export", "model", "copy"])
    assert shown.exit_code == 0 and "2 labelled clips of the test split" in (project / "copy/README.md").read_text()
    assert Predictor(project / "copy").description["dataset"]["corpus"] == "demo_en"
