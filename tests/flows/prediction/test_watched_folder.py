"""Watching a folder: what is new is scored once, across restarts, overlaps, kills, copies in progress and failures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from flows.cli.app import app
from flows.prediction import watched_folder as module
from flows.prediction.watched_folder import (
    FolderBusyError,
    Ledger,
    Watch,
    format_result,
    scan,
    score_new,
    watch_forever,
)
from model.checkpoint.description import GENERATED_NOTICE
from model.prediction.results import Failure, Prediction, Result, Score

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
TODAY = 1_800_000_000.0  # seconds since 1970


class Scorer:
    """Scores a file by its length, without a network; files with `bad` in them cannot be scored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []
        self.transcripts: list[Path | None] = []

    def predict(self, videos: Any, **options: Any) -> Iterator[Result]:
        for video in videos:
            self.seen.append(video.media.name)
            self.transcripts.append(video.transcript)
            content = video.media.read_bytes()
            if b"bad" in content:
                yield Failure(str(video.media), "MediaError", f"{video.media}: bad; mend it")
                continue
            score = Score(len(content) / 10, len(content) / 10, "positive", "1", None, ("audio",), {})
            yield Prediction(str(video.media), score, "clip", 1.0, "", "", (), (), {"model": 0.1})


@pytest.fixture
def scorer(tmp_path) -> Scorer:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    return Scorer(tmp_path / "model")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


@pytest.fixture
def watched(folder) -> Watch:
    return Watch(folder, folder / "predictions.parquet", settle=0.0)


def rows(watched: Watch) -> dict[str, Any]:
    """The predictions by the files' names."""
    return {Path(row["file"]).name: row for row in pq.read_table(watched.out).to_pylist()}


def run(watched: Watch, scorer: Scorer, **options: Any) -> list[str]:
    """One run; the files that it scored or failed at."""
    before = len(scorer.seen)
    score_new(watched, lambda: scorer, **options)
    return scorer.seen[before:]


def scanned(watched: Watch, ledger: Ledger, now: float) -> tuple[dict[str, Path], int]:
    """Files that a scan finds due, and how many are pending."""
    found = scan(watched, ledger, now)
    return found.due, found.pending


def test_every_file_is_scored_once(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    (folder / "deep").mkdir()
    (folder / "deep/b.WAV").write_bytes(b"second")
    for name in ("notes.txt", ".hidden.mp4", "c.mp4.part"):
        (folder / name).write_bytes(b"none of these")
    assert run(watched, scorer) == ["a.mp4", "b.WAV"]
    assert run(watched, scorer) == []
    (folder / "d.mp4").write_bytes(b"fourth!")
    assert run(watched, scorer) == ["d.mp4"]
    found = rows(watched)
    assert {name: round(row["score"], 4) for name, row in found.items()} == {"a.mp4": 0.3, "b.WAV": 0.6, "d.mp4": 0.7}
    assert all(row["sha256"] and row["scored_at"] and row["checkpoint"] for row in found.values())


def test_what_is_known_is_known_by_content_and_not_by_name(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"the same")
    assert run(watched, scorer) == ["a.mp4"]
    (folder / "a.mp4").rename(folder / "renamed.mp4")
    shutil.copy(folder / "renamed.mp4", folder / "copy.mp4")
    os.utime(folder / "copy.mp4", (TODAY, TODAY))
    assert run(watched, scorer) == []
    (folder / "copy.mp4").write_bytes(b"another content")
    assert run(watched, scorer) == ["copy.mp4"]
    assert len(pq.read_table(watched.out)) == 2


def test_files_that_are_known_are_not_read_again(watched, folder, scorer, monkeypatch):
    (folder / "a.mp4").write_bytes(b"one")
    run(watched, scorer)
    monkeypatch.setattr(module, "sha256_of", lambda path: pytest.fail(f"{path} is read again"))
    assert run(watched, scorer) == []


def test_a_file_that_is_still_being_copied_is_waited_for(folder, tmp_path):
    watched = Watch(folder, tmp_path / "out.parquet", settle=30.0)
    ledger = Ledger()
    path = folder / "a.mp4"
    path.write_bytes(b"half")
    os.utime(path, (TODAY - 9999, TODAY - 9999))  # some copiers set the time first: an old one says nothing
    assert scanned(watched, ledger, TODAY) == ({}, 1)
    assert scanned(watched, ledger, TODAY + 29) == ({}, 1)
    path.write_bytes(b"half and more")
    assert scanned(watched, ledger, TODAY + 31) == ({}, 1), "it has grown, so the time starts anew"
    os.utime(path, (TODAY, TODAY))
    assert scanned(watched, ledger, TODAY + 60) == ({}, 1), "its time has changed"
    due, pending = scanned(watched, ledger, TODAY + 90)
    assert list(due.values()) == [path] and pending == 0
    path.unlink()
    assert scanned(watched, ledger, TODAY + 91) == ({}, 0) and ledger.files == {}


def test_a_file_that_changes_while_it_is_read_is_waited_for(folder, tmp_path, monkeypatch):
    path = folder / "a.mp4"
    path.write_bytes(b"half")
    hashed = module.sha256_of

    def slowly(read: Path) -> str:
        digest = hashed(read)
        read.write_bytes(b"half and more")
        return digest

    monkeypatch.setattr(module, "sha256_of", slowly)
    assert scanned(Watch(folder, tmp_path / "out.parquet", settle=0.0), Ledger(), TODAY) == ({}, 1)


def test_the_wait_outlives_a_restart(folder, tmp_path, scorer, monkeypatch):
    watched = Watch(folder, tmp_path / "out.parquet", settle=30.0)
    (folder / "a.mp4").write_bytes(b"one")
    now = TODAY
    monkeypatch.setattr("flows.prediction.watched_folder.time.time", lambda: now)
    assert run(watched, scorer, wait=False) == []
    now += 31
    assert run(watched, scorer, wait=False) == ["a.mp4"]


def test_one_run_waits_for_what_is_new(folder, tmp_path, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    assert run(Watch(folder, tmp_path / "out.parquet", settle=0.2), scorer) == ["a.mp4"]


def test_a_file_that_cannot_be_scored_is_tried_so_often_and_then_when_it_changes(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"bad")
    (folder / "b.mp4").write_bytes(b"good")
    assert [run(watched, scorer) for _ in range(4)] == [["a.mp4", "b.mp4"], ["a.mp4"], [], []]
    row = rows(watched)["a.mp4"]
    assert row["score"] is None and "mend it" in row["error"]["message"]
    [failed] = [done for done in Ledger.read(watched).contents.values() if done.error]
    assert (failed.attempts, failed.error) == (2, "MediaError") and "mend it" in failed.message
    (folder / "a.mp4").write_bytes(b"mended now")
    assert run(watched, scorer) == ["a.mp4"]
    assert len(pq.read_table(watched.out)) == 2 and rows(watched)["a.mp4"]["error"] is None


def test_a_run_that_is_killed_between_table_and_ledger_scores_again_to_the_same_rows(
    watched, folder, scorer, monkeypatch
):
    (folder / "a.mp4").write_bytes(b"one")
    run(watched, scorer)
    (folder / "b.mp4").write_bytes(b"second")
    write, calls = Ledger.write, []

    def killed(ledger: Ledger, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(ledger, path)

    monkeypatch.setattr(Ledger, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(watched, scorer)
    monkeypatch.undo()
    assert len(pq.read_table(watched.out)) == 2
    assert run(watched, scorer) == ["b.mp4"]
    assert len(pq.read_table(watched.out)) == 2


def test_an_interruption_keeps_what_was_scored(watched, folder, scorer):
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(b"x" * (number + 1))

    def interrupt(result: Result) -> None:
        if result.name.endswith("3.mp4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_new(watched, lambda: scorer, on_result=interrupt)
    assert set(rows(watched)) == {"0.mp4", "1.mp4", "2.mp4"}
    assert run(watched, scorer) == ["3.mp4", "4.mp4"]


def test_two_runs_never_work_at_the_same_time(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    with FileLock(watched.lock), pytest.raises(FolderBusyError, match="another run scores"):
        run(watched, scorer)
    assert run(watched, scorer) == ["a.mp4"]


def test_without_the_predictions_all_is_new(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    run(watched, scorer)
    watched.out.unlink()
    assert run(watched, scorer) == ["a.mp4"]


def test_a_transcript_beside_a_file_is_its_own(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n")
    (folder / "b.mp4").write_bytes(b"second")
    run(watched, scorer)
    assert scorer.transcripts == [folder / "a.srt", None]


def test_a_transcript_that_links_out_of_the_folder_is_not_followed(watched, folder, tmp_path, scorer):
    (tmp_path / "secret.txt").write_text("a secret")
    (folder / "shared.txt").write_text("Hello.")
    for name, target in (("a", tmp_path / "secret.txt"), ("b", Path("../secret.txt")), ("c", folder / "shared.txt")):
        (folder / f"{name}.mp4").write_bytes(name.encode())
        (folder / f"{name}.txt").symlink_to(target)
    (folder / "d.mp4").write_bytes(b"d")
    (folder / "d.txt").symlink_to("d.txt")
    (folder / ("e" * 251 + ".mp4")).write_bytes(b"e")  # its name with .srt is too long for the file system
    assert len(run(watched, scorer)) == 5
    assert scorer.transcripts == [None, None, folder / "c.txt", None, None]


def test_files_that_cannot_be_read_are_rows_and_the_others_are_scored(watched, folder, scorer, monkeypatch):
    (folder / "a-loop.mp4").symlink_to("a-loop.mp4")
    (folder / "b.mp4").write_bytes(b"one")
    (folder / "c-locked.mp4").write_bytes(b"locked")
    locked, hashed = True, module.sha256_of

    def sha256_of(path: Path) -> str:
        if locked and path.name == "c-locked.mp4":
            raise PermissionError(13, "Permission denied", str(path))
        return hashed(path)

    monkeypatch.setattr(module, "sha256_of", sha256_of)
    shown: list[Result] = []
    assert run(watched, scorer, on_result=shown.append) == ["b.mp4"]
    assert [Path(result.name).name for result in shown] == ["a-loop.mp4", "c-locked.mp4", "b.mp4"]
    found = rows(watched)
    assert "symbolic links" in found["a-loop.mp4"]["error"]["message"] and found["b.mp4"]["score"] is not None
    assert found["c-locked.mp4"]["error"] == {
        "class": "PermissionError",
        "message": f"{folder / 'c-locked.mp4'}: Permission denied; check the file",
    }
    assert run(watched, scorer, on_result=shown.append) == [] and len(shown) == 3, "each reason is reported once"
    (folder / "d.mp4").write_bytes(b"fourth!")
    assert run(watched, scorer) == ["d.mp4"] and len(rows(watched)) == 4, "and its row stays"
    locked = False
    (folder / "a-loop.mp4").unlink()
    (folder / "a-loop.mp4").write_bytes(b"no link any more")
    assert run(watched, scorer) == ["a-loop.mp4", "c-locked.mp4"]
    assert len(pq.read_table(watched.out)) == 4 and not any(row["error"] for row in rows(watched).values())


def test_unreadable_files_are_reported_again_where_the_predictions_are_gone(watched, folder, scorer):
    (folder / "loop.mp4").symlink_to("loop.mp4")
    run(watched, scorer)
    watched.out.unlink()
    run(watched, scorer)
    assert list(rows(watched)) == ["loop.mp4"]


def test_names_that_are_not_utf8_are_scored_and_written_with_escapes(watched, folder, scorer):
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_bytes(b"one")
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.mp4")).write_bytes(b"bad")
    Path(os.fsdecode(os.fsencode(folder) + b"/loop\xfe.mp4")).symlink_to("loop\udcfe.mp4")
    lines: list[str] = []
    assert len(run(watched, scorer, on_result=lambda result: lines.append(format_result(result)))) == 2
    found = rows(watched)
    assert set(found) == {"caf\\xe9.mp4", "bad\\xff.mp4", "loop\\xfe.mp4"}
    assert found["caf\\xe9.mp4"]["score"] == pytest.approx(0.3)
    assert found["bad\\xff.mp4"]["error"]["message"].endswith("/bad\\xff.mp4: bad; mend it")
    assert "\n".join(lines).encode("utf-8")
    assert len(run(watched, scorer)) == 1 and run(watched, scorer) == [], "the failing one once more"


def test_control_characters_of_names_are_not_printed():
    assert "\x1b" not in format_result(Failure("\x1b]0;x\x07.mp4", "MediaError", "\x1b]0;x\x07.mp4: torn"))


def test_a_time_in_the_future_does_not_hide_a_file(folder, tmp_path):
    watched = Watch(folder, tmp_path / "out.parquet", settle=30.0)
    (folder / "a.mp4").write_bytes(b"one")
    ledger = Ledger()
    assert scanned(watched, ledger, TODAY + 10**9) == ({}, 1)
    assert scanned(watched, ledger, TODAY) == ({}, 1), "the clock was set back"
    due, pending = scanned(watched, ledger, TODAY + 31)
    assert list(due.values()) == [folder / "a.mp4"] and pending == 0


def test_the_pattern_chooses(folder, tmp_path, scorer):
    for name in ("a.mp4", "b.wav", "talk-c.mp4"):
        (folder / name).write_bytes(name.encode())
    out = tmp_path / "out.parquet"
    assert run(Watch(folder, out, "talk-*", settle=0.0), scorer) == ["talk-c.mp4"]
    assert run(Watch(folder, out, "*.mp4", settle=0.0), scorer) == ["a.mp4"]


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "a/../../*", "~/x"])
def test_a_pattern_stays_in_the_folder(folder, pattern):
    with pytest.raises(ValueError, match="leads out of the folder"):
        Watch(folder, folder / "out.parquet", pattern)


def test_what_is_no_ledger_or_no_table_is_told_of_and_left_alone(watched, folder, scorer):
    (folder / "a.mp4").write_bytes(b"one")
    for content, message in (
        ("{", "not JSON"),
        ("[]", "version None, but"),
        ('{"schema_version": 9}', "version 9, but version 1 is needed"),
    ):
        watched.ledger.write_text(content)
        with pytest.raises(ValueError, match=message):
            run(watched, scorer)
        assert watched.ledger.read_text() == content
    watched.ledger.unlink()
    pq.write_table(pa.table({"clip_id": ["another table"]}), watched.out)
    with pytest.raises(ValueError, match="not a table of predictions"):
        run(watched, scorer)
    assert pq.read_table(watched.out).column_names == ["clip_id"]
    with pytest.raises(FileNotFoundError, match="no such folder; create it"):
        run(Watch(folder / "nowhere", watched.out), scorer)


def test_many_files_are_written_down_in_parts(watched, folder, scorer, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    merged: list[int] = []
    merge = module.merge

    def counted(rows: Any, path: Path) -> None:
        merged.append(len(rows))
        merge(rows, path)

    monkeypatch.setattr(module, "merge", counted)
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(b"x" * (number + 1))
    run(watched, scorer)
    assert merged == [2, 2, 1] and len(rows(watched)) == 5


def test_the_loop_goes_on_until_it_is_interrupted(watched, folder, scorer, monkeypatch):
    said: list[str] = []
    (folder / "a.mp4").write_bytes(b"one")
    sleeps = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        (folder / f"b{len(sleeps)}.mp4").write_bytes(b"bad" * len(sleeps))
        if len(sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("flows.prediction.watched_folder.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        watch_forever(watched, scorer, 7.0, said.append)
    assert sleeps == [7.0] * 3 and len(said) == 4
    assert said[0].endswith("a.mp4: 0.30 positive, from audio")
    assert said[1].startswith("MediaError: ") and said[1].count("b1.mp4") == 1


def test_a_result_in_a_line_names_its_file_once():
    assert (
        format_result(Failure("a.mp4", "NoModality", "nothing to score it by"))
        == "NoModality: a.mp4: nothing to score it by"
    )
    assert format_result(Failure("a.mp4", "MediaError", "a.mp4: torn")) == "MediaError: a.mp4: torn"


def test_the_command_scores_real_clips_and_then_nothing(corpus, clip, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(clip, tmp_path / "in/clip.mp4")
    (tmp_path / "in/clip.txt").write_text("It was fine.")
    (tmp_path / "in/torn.mp4").write_bytes(clip.read_bytes()[:2000])
    model = ["--model", str(corpus / "models-unaligned/best"), "--device", "cpu"]
    command = ["watch", str(tmp_path / "in"), "--once", "--settle", "0.1", "--attempts", "1", "--workers", "1", *model]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0 and "2 new, 1 of them failed" in shown.output, shown.output
    assert shown.output.startswith(GENERATED_NOTICE)
    found = rows(Watch(tmp_path / "in", tmp_path / "in/predictions.parquet"))
    assert found["clip.mp4"]["warnings"][0]["code"] == "generated_training"
    assert found["clip.mp4"]["used"] == ["text", "audio", "vision"] and found["torn.mp4"]["score"] is None
    assert json.loads((tmp_path / "in/predictions.ledger.json").read_text())["schema_version"] == 1
    assert "0 new" in CliRunner().invoke(app, command).output
    with FileLock(tmp_path / "in/predictions.lock"):
        shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 1 and "another run scores" in shown.output
    shown = CliRunner().invoke(app, ["watch", str(tmp_path / "nowhere"), "--once", *model])
    assert shown.exit_code == 1 and "no such folder" in shown.output


RUN = """
import sys
from pathlib import Path
from tests.flows.prediction.test_watched_folder import FolderBusyError, Scorer, Watch, format_result, score_new

folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    score_new(
        Watch(folder, folder / "predictions.parquet", settle=1.0),
        lambda: Scorer(folder.parent / "model"),
        on_result=lambda result: print(format_result(result)),
    )
except FolderBusyError as busy:
    print(busy)
"""


def test_runs_that_overlap_score_each_file_once(folder, scorer):
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes(b"x" * (number + 1))
    command = [sys.executable, "-c", RUN, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in running] == ["ready\n"] * 3
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = "".join(process.communicate(timeout=300)[0] for process in running)
    assert [said.count(f"{number}.mp4: ") for number in range(3)] == [1, 1, 1], said
    assert sorted(rows(Watch(folder, folder / "predictions.parquet"))) == ["0.mp4", "1.mp4", "2.mp4"]
