"""Worker processes that score: files that hang, crash or fill them, the line before them, and their end."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from extractors.execution.workers import resident_memory
from flows.serving import worker_pool as module
from flows.serving.errors import REASONS, ApiError
from flows.serving.worker import Model, Upload, replace_path
from flows.serving.worker_pool import EXAMINERS, Limits, ScoringPool, default_worker_count
from model.predict import Predictor
from tests.support import examining

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from extractors.execution.workers import Worker

TEXT = "It was fine."
PATIENCE = 300.0  # seconds, for what takes a few on an idle machine


def wait(ready: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited in vain for {what}")


def refusal(answer: Any) -> ApiError:
    with pytest.raises(ApiError) as refused:
        answer.result(timeout=PATIENCE)
    return refused.value


def worker_of(scoring_pool: ScoringPool) -> Worker:
    [worker] = scoring_pool._workers
    return worker


@pytest.fixture
def light_pool(corpus, tmp_path, monkeypatch) -> Iterator[ScoringPool]:
    """One worker of the test's own, which loads no model: for what does not depend on how an upload is scored."""
    monkeypatch.setattr(module, "prepare", examining.prepare)
    monkeypatch.setattr(module, "score", examining.score)
    started = ScoringPool(Model(corpus / "models-unaligned/best"), Limits(), 1, tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.close()


@pytest.fixture
def upload(clip) -> Upload:
    return Upload(clip, "a clip.mp4", TEXT)


@pytest.fixture
def slow_upload(clip) -> Upload:
    """For `light_pool`: one whose scoring takes an hour."""
    return Upload(clip, "slow.mp4", TEXT)


@pytest.fixture
def waiting_upload(tmp_path) -> Upload:
    """For `light_pool`: one whose scoring ends when its file is there."""
    return Upload(tmp_path / "waits.mp4", "waits.mp4", TEXT)


@pytest.fixture
def long_upload(long_clip) -> Upload:
    return Upload(long_clip, "long.mp4", TEXT)


def begun(answer: Any) -> Any:
    """The answer, once a worker is at it."""
    wait(answer.running, "a worker to take it")
    return answer


def test_a_file_that_brings_its_worker_down_is_refused_and_the_next_is_scored(scoring_pool, upload, long_upload):
    first = scoring_pool.score(upload).result(timeout=PATIENCE)
    pid = worker_of(scoring_pool).pid
    answer = begun(scoring_pool.score(long_upload))
    psutil.Process(pid).kill()
    refused = refusal(answer)
    assert (refused.error, refused.status_code) == ("crashed", 422) and refused.message.startswith("long.mp4: ")
    again = scoring_pool.score(upload).result(timeout=PATIENCE)
    assert again["raw_score"] == first["raw_score"] and worker_of(scoring_pool).pid != pid


def test_no_file_is_blamed_for_a_process_that_ended_before_it_came(light_pool, upload):
    light_pool.examine(upload.path, upload.name).result(timeout=PATIENCE)
    for worker in (worker_of(light_pool), *light_pool._examiners):
        if resident_memory(worker.pid):
            process = psutil.Process(worker.pid)
            process.kill()
            wait(lambda process=process: not resident_memory(process.pid), "its end")
    light_pool.examine(upload.path, upload.name).result(timeout=PATIENCE)
    assert light_pool.score(upload).result(timeout=PATIENCE)["error"] is None


def test_a_file_that_takes_too_long_is_refused_and_its_worker_ended(light_pool, slow_upload, monkeypatch):
    monkeypatch.setattr(light_pool, "limits", replace(light_pool.limits, scoring_seconds=0.05))
    pid = worker_of(light_pool).pid
    refused = refusal(light_pool.score(slow_upload))
    assert refused.error == "clip_timeout" and "longer than 0.05 s" in refused.message
    assert not psutil.pid_exists(pid)


def test_a_worker_that_takes_too_much_memory_is_ended(light_pool, upload, slow_upload, monkeypatch):
    pid = worker_of(light_pool).pid
    with monkeypatch.context() as patch:
        patch.setattr(worker_of(light_pool), "memory", 1 << 20)
        refused = refusal(light_pool.score(slow_upload))
    assert refused.error == "too_much_memory" and "0.0 GiB" in refused.message
    assert not psutil.pid_exists(pid) and light_pool.score(upload).result(timeout=PATIENCE)["error"] is None


def test_a_worker_that_has_grown_is_replaced_before_the_next_upload(light_pool, upload, monkeypatch):
    pid = worker_of(light_pool).pid
    light_pool.score(upload).result(timeout=PATIENCE)
    assert worker_of(light_pool).pid == pid, "it has not grown"
    with monkeypatch.context() as patch:
        patch.setattr(module, "MEMORY_GROWTH_LIMIT", -(1 << 40))
        light_pool.score(upload).result(timeout=PATIENCE)
        wait(lambda: worker_of(light_pool).pid not in (None, pid), "another process")
    assert light_pool.score(upload).result(timeout=PATIENCE)["error"] is None


def test_headers_that_hang_or_crash_the_process_that_reads_them_are_refused(scoring_pool, clip, monkeypatch):
    scoring_pool.examine(clip, "fine.mp4").result(timeout=PATIENCE)
    monkeypatch.setattr(module, "EXAMINE_LIMIT", 0.0)
    refused = refusal(scoring_pool.examine(clip, "hangs.mp4"))
    assert refused.error == "crashed" and refused.message.startswith("hangs.mp4: ")
    monkeypatch.undo()
    scoring_pool.examine(clip, "fine.mp4").result(timeout=PATIENCE)


def test_a_file_that_takes_long_to_examine_does_not_hold_up_the_others(scoring_pool, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "examine", examining.examine)
    monkeypatch.setattr(module, "EXAMINE_LIMIT", 300.0)
    slow = [scoring_pool.examine(tmp_path / f"slow-{i}.mp4", f"slow-{i}.mp4") for i in range(EXAMINERS - 1)]
    for _ in range(3):
        scoring_pool.examine(clip, "fine.mp4").result(timeout=PATIENCE)
    assert not any(future.done() for future in slow)
    for future in slow:
        wait(future.running, "its examination")
    while not all(future.done() for future in slow):
        for examiner in scoring_pool._examiners:
            module._kill(examiner)
    assert {refusal(future).error for future in slow} == {"crashed"}
    scoring_pool.examine(clip, "fine.mp4").result(timeout=PATIENCE)


def test_an_upload_that_nobody_waits_for_is_not_begun(light_pool, upload, slow_upload, waiting_upload):
    first = begun(light_pool.score(waiting_upload))
    second, third = light_pool.score(slow_upload), light_pool.score(upload)
    assert second.cancel()
    waiting_upload.path.touch()
    assert third.result(timeout=PATIENCE)["file"] == upload.name and first.done()
    with pytest.raises(CancelledError):
        second.result()


def test_the_line_has_an_end_and_says_when_to_come_again(scoring_pool, monkeypatch):
    monkeypatch.setattr(scoring_pool, "_capacity", 2)
    monkeypatch.setattr(scoring_pool, "_mean_seconds", 3.2)
    with scoring_pool.admit(), scoring_pool.admit():
        assert scoring_pool.waiting == 2
        with pytest.raises(ApiError) as refused, scoring_pool.admit():
            raise AssertionError("there were two places")
    assert refused.value.error == "busy" and refused.value.headers == {"Retry-After": "6"}
    assert scoring_pool.waiting == 0
    with pytest.raises(KeyError), scoring_pool.admit():
        raise KeyError
    assert scoring_pool.waiting == 0


def test_an_option_that_the_checkpoint_does_not_know_is_refused(scoring_pool, upload, corpus):
    refused = refusal(scoring_pool.score(replace(upload, hop=0.01)))
    assert refused.error == "invalid" and "hop is 0.01 s" in refused.message


def test_stopping_refuses_who_waits_and_ends_every_process(light_pool, upload, waiting_upload):
    pids = [worker_of(light_pool).pid]
    answer, waiting = begun(light_pool.score(waiting_upload)), light_pool.score(upload)
    light_pool.stop()
    waiting_upload.path.touch()
    with pytest.raises(ApiError, match="stopped"), light_pool.admit():
        raise AssertionError("no place is left")
    light_pool.close(grace=PATIENCE)
    assert answer.result(timeout=1)["error"] is None, "what was begun has had its time"
    assert refusal(waiting).error == "stopping"
    assert not any(map(psutil.pid_exists, pids))


def test_a_checkpoint_that_cannot_be_used_is_told_of_at_the_start(corpus, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        ScoringPool(Model(tmp_path), Limits(), 1, tmp_path)
    wrong = Model(corpus / "models-unaligned/best", device="nonsense")
    with pytest.raises((ValueError, RuntimeError), match="nonsense"):
        Predictor.load(wrong.folder, device=wrong.device)
    monkeypatch.setattr(module, "prepare", examining.prepare)
    pool = ScoringPool(wrong, Limits(), 2, tmp_path)
    with pytest.raises(ValueError, match="nonsense"):
        pool.start()
    assert not pool._kill_all(), "no process is left, though the other one was still at its start"


@pytest.mark.parametrize("wrong", [{"size": 0}, {"length": -1.0}, {"waiting": -1}, {"memory": 0}])
def test_limits_that_are_none_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
    assert Limits(waiting=0).waiting == 0


def test_every_reason_has_a_status_that_fits_it():
    assert {reason.status for reason in REASONS.values()} == {400, 401, 403, 404, 405, 408, 413, 415, 422, 500, 503}
    assert 1 <= default_worker_count() <= 4


def test_a_result_names_the_file_as_its_sender_does():
    result = {
        "file": "/tmp/x/1f", "error": {"class": "MediaError", "message": "/tmp/x/1f: torn; /tmp/x/1f again"},
        "warnings": [{"code": "audio_failed", "message": "audio: /tmp/x/1f: torn"}], "text": "/tmp/x/1f",
    }  # fmt: skip
    changed = replace_path(result, "/tmp/x/1f", "talk.mp4")
    assert changed["file"] == "talk.mp4" and changed["error"]["message"] == "talk.mp4: torn; talk.mp4 again"
    assert changed["warnings"] == [{"code": "audio_failed", "message": "audio: talk.mp4: torn"}]
    assert changed["text"] == "/tmp/x/1f"
