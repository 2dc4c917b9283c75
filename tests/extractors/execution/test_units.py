from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from corpora.files import sha256_of
from corpora.manifest import Clip
from extractors import base, registry
from extractors.base import ExtractionError, FeatureSequence, MissingModalityError, Source
from extractors.execution import cache, units
from extractors.store import FeatureMeta, FeatureReader, StoreError, Summary
from media.container import MediaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

NAME = "fake.bytes"


class FakeBytes:
    """Features of a media file: its first bytes, one a step. The file's text can ask for trouble."""

    modality = "audio"
    feature_names = ("byte", "half")
    calls: list[str] = []  # noqa: RUF012

    def __init__(self, scale: float = 1.0, modality: str = "audio") -> None:
        self.scale, self.modality = scale, modality
        self.signature = base.make_signature(NAME, 1, {"scale": scale, "modality": modality})

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        for source in sources:
            self.calls.append(source.clip_id)
            yield self.one(source)

    def one(self, source: Source) -> FeatureSequence | ExtractionError:
        content = source.text if self.modality == "text" else source.media.read_text()
        match content:
            case "":
                return MissingModalityError("nothing here")
            case "unusable":
                return ExtractionError("cannot be used")
            case "unreadable":
                raise MediaError("cannot be read")
            case "bug":
                error = ZeroDivisionError("a bug")
                error.add_note("a note")
                raise error
            case "caused":
                error = ExtractionError("cannot be used either")
                try:
                    {}["inside"]
                except KeyError as cause:
                    error.__cause__ = cause
                return error
            case "stop":
                raise KeyboardInterrupt
            case "wide":
                return FeatureSequence(np.zeros((1, 3), np.float32), *times(1))
        values = np.frombuffer(content.encode(), np.uint8).astype(np.float32) * np.float32(self.scale)
        tokens = [np.arange(len(values), dtype=np.int32)] * 2 if self.modality == "text" else []
        return FeatureSequence(np.stack([values, values / 2], 1), *times(len(values)), *tokens)


class Forgetful(FakeBytes):
    """Leaves out the clips that it cannot do, against the protocol."""

    def extract(self, sources: Sequence[Source]) -> Iterator[FeatureSequence | ExtractionError]:
        return (r for r in super().extract(sources) if isinstance(r, FeatureSequence))


def times(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.arange(steps, dtype=np.float32)
    return start, start + 1, np.ones(steps, bool)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "fake_extractors", sys.modules[__name__])
    monkeypatch.setitem(registry.BUILT_IN, NAME, "fake_extractors:FakeBytes")
    monkeypatch.setitem(registry.BUILT_IN, "fake.forgetful", "fake_extractors:Forgetful")
    units._cached_extractor.cache_clear()
    FakeBytes.calls.clear()
    yield
    units._cached_extractor.cache_clear()


def corpus(root: Path, *contents: str) -> list[Clip]:
    clips = []
    for i, content in enumerate(contents):
        path = root / f"{i}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        clips.append(Clip(f"v/{i}", "v", "train", "en", path.name, content, duration=2.0, sha256=sha256_of(path)))
    return clips


def extract(clips: Sequence[Clip], tmp_path: Path, name: str = NAME, **options: object) -> units.UnitReport:
    return units.extract_unit(clips, tmp_path / "raw", name, options, tmp_path / "scratch")


def assembled(clips: Sequence[Clip], tmp_path: Path, report: units.UnitReport) -> tuple[Summary, FeatureReader]:
    out = tmp_path / "out"
    summary = units.assemble(clips, tmp_path / "raw", report.meta, tmp_path / "scratch", out, report.problems)
    return summary, FeatureReader(out, report.meta.modality)


def test_clips_are_extracted_and_assembled_in_manifest_order(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "two", "three")
    report = extract(list(reversed(clips)), tmp_path)
    assert (report.extracted, report.reused, report.missing, report.problems) == (3, 0, 0, ())
    summary, reader = assembled(clips, tmp_path, report)
    assert summary == Summary(rows=3, missing=0, steps=11, failed=0)
    assert reader.clip_ids == ("v/0", "v/1", "v/2")
    np.testing.assert_array_equal(reader["v/1"].values[:, 0], np.frombuffer(b"two", np.uint8))
    assert reader.meta == units.describe(NAME, {})


def test_a_second_run_extracts_nothing_and_gives_the_same_bytes(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "", "three")
    assembled(clips, tmp_path, extract(clips, tmp_path))
    first = (tmp_path / "out" / "part-00000.parquet").read_bytes()
    FakeBytes.calls.clear()
    report = extract(clips, tmp_path)
    assert (report.extracted, report.reused, report.missing) == (0, 3, 1)
    assert FakeBytes.calls == []
    assembled(clips, tmp_path, report)
    assert (tmp_path / "out" / "part-00000.parquet").read_bytes() == first


def test_a_run_stopped_between_units_goes_on_where_it_was(tmp_path):
    clips = corpus(tmp_path / "raw", *"abcdefgh")
    made = units.work_units(clips, 3)
    extract(made[0], tmp_path)
    FakeBytes.calls.clear()
    report = extract(clips, tmp_path)
    assert report.reused == len(made[0])
    assert sorted(FakeBytes.calls) == sorted(clip.clip_id for unit in made[1:] for clip in unit)
    assert assembled(clips, tmp_path, report)[0].rows == 8


def test_a_stop_inside_a_unit_keeps_the_batches_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "BATCH_CLIPS", 2)
    clips = corpus(tmp_path / "raw", "a", "b", "c", "stop", "e")
    with pytest.raises(KeyboardInterrupt):
        extract(clips, tmp_path)
    (tmp_path / "raw" / "3.mp4").write_text("d")
    clips[3] = replace(clips[3], sha256=sha256_of(tmp_path / "raw" / "3.mp4"))
    report = extract(clips, tmp_path)
    assert (report.extracted, report.reused) == (3, 2)


class Upper:
    """A condition that writes the media's text in capitals, with the clip's id behind it."""

    signature = "upper"

    def write_media(self, media: Path, clip_id: str, out: Path) -> Path:
        match media.read_text():
            case "nothing":
                raise MissingModalityError("nothing to corrupt")
            case "mistake":
                raise ZeroDivisionError("of the corruption")
            case "full":
                raise OSError("no space left on device")
        path = out.with_name(f"{out.name}.txt")
        path.write_text(f"{media.read_text().upper()} {clip_id}")
        return path


def test_corrupted_media_are_what_the_extractor_sees_and_are_gone_afterwards(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "nothing", "mistake", "one")
    plain = extract(clips[:1], tmp_path)
    job = (tmp_path / "raw", NAME, {}, tmp_path / "scratch", Upper())
    report = units.extract_unit(clips, *job)
    assert (report.extracted, report.missing, [p.clip_id for p in report.problems]) == (3, 1, ["v/2"])
    assert report.problems[0].error == "ZeroDivisionError"
    assert not list((tmp_path / "scratch").glob(f"{units.CORRUPTED}*"))
    assert units.extract_unit([clips[0], clips[3]], *job).reused == 2
    out = tmp_path / "out"
    units.assemble(clips, tmp_path / "raw", plain.meta, tmp_path / "scratch", out, report.problems, Upper())
    reader = FeatureReader(out, "audio")
    assert bytes(reader["v/0"].values[:, 0].astype(np.uint8)) == b"ONE v/0"
    assert bytes(reader["v/3"].values[:, 0].astype(np.uint8)) == b"ONE v/3"  # the same file, another clip
    assert len(assembled(clips[:1], tmp_path, plain)[1]["v/0"]) == 3  # what was extracted as it is stays


def test_a_full_disk_is_no_clips_problem(tmp_path):
    clips = corpus(tmp_path / "raw", "full")
    with pytest.raises(OSError, match="no space left"):
        units.extract_unit(clips, tmp_path / "raw", NAME, {}, tmp_path / "scratch", Upper())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no zip"])
def test_a_damaged_result_is_made_again(tmp_path, damage):
    clips = corpus(tmp_path / "raw", "one", "two")
    report = extract(clips, tmp_path)
    path = cache.scratch_path(tmp_path / "scratch", report.meta, clips[0], tmp_path / "raw")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    FakeBytes.calls.clear()
    report = extract(clips, tmp_path)
    assert FakeBytes.calls == ["v/0"] and report.extracted == 1
    assert len(assembled(clips, tmp_path, report)[1]["v/0"]) == 3


def test_a_cached_result_with_any_flipped_bit_is_intact_or_removed(tmp_path, caplog):
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    times, words = np.arange(3, dtype=np.float32), np.arange(3, dtype=np.int32)
    whole = FeatureSequence(values, times, times + 1, np.ones(3, bool), words, words)
    meta = FeatureMeta("text", "fake.text", {}, "fake.text-v1-abc", ("a", "b"))
    path = tmp_path / "result.npz"
    cache.save_sequence(path, whole)
    content = path.read_bytes()
    removed = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        read = cache.load_sequence(path, meta)
        removed += read is None
        assert path.exists() == (read is not None)
        for name in FeatureSequence.__dataclass_fields__ if read else ():
            np.testing.assert_array_equal(getattr(read, name), getattr(whole, name))
    assert removed > len(content) / 2 and "will be extracted again" in caplog.text


def test_a_flipped_bit_in_the_values_is_noticed(tmp_path):
    clips = corpus(tmp_path / "raw", "one")
    report = extract(clips, tmp_path)
    path = cache.scratch_path(tmp_path / "scratch", report.meta, clips[0], tmp_path / "raw")
    content = bytearray(path.read_bytes())
    where = content.index(np.float32(ord("o")).tobytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert extract(clips, tmp_path).extracted == 1


def test_replaced_media_is_extracted_again_and_nothing_else(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "two", "three")
    extract(clips, tmp_path)
    FakeBytes.calls.clear()
    (tmp_path / "raw" / "1.mp4").write_text("other")
    clips[1] = replace(clips[1], sha256=sha256_of(tmp_path / "raw" / "1.mp4"))
    report = extract(clips, tmp_path)
    assert FakeBytes.calls == ["v/1"]
    np.testing.assert_array_equal(assembled(clips, tmp_path, report)[1]["v/1"].values[:, 0], list(b"other"))


def test_media_that_changed_since_the_manifest_is_refused(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "two")
    (tmp_path / "raw" / "0.mp4").write_text("other")
    (problem,) = extract(clips, tmp_path).problems
    assert problem.clip_id == "v/0" and "run the prepare stage again" in problem.message


def test_media_that_is_gone_is_a_problem_and_no_crash(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "two")
    (tmp_path / "raw" / "0.mp4").unlink()
    for clip in (clips[0], replace(clips[0], sha256="")):
        report = extract([clip, clips[1]], tmp_path)
        assert [(p.clip_id, p.error) for p in report.problems] == [("v/0", "MediaError")]


def test_a_clip_without_a_hash_is_keyed_by_its_file(tmp_path):
    clips = [replace(clip, sha256="") for clip in corpus(tmp_path / "raw", "one")]
    extract(clips, tmp_path)
    assert extract(clips, tmp_path).reused == 1
    (tmp_path / "raw" / "0.mp4").write_text("other")
    assert extract(clips, tmp_path).extracted == 1


def test_text_is_keyed_by_transcript_language_and_duration(tmp_path):
    clips = corpus(tmp_path / "raw", "one")
    extract(clips, tmp_path, modality="text")
    (tmp_path / "raw" / "0.mp4").unlink()
    assert extract([replace(clips[0], sha256="other")], tmp_path, modality="text").reused == 1
    for change in ({"text": "two"}, {"language": "zh"}, {"duration": 3.0}):
        assert extract([replace(clips[0], **change)], tmp_path, modality="text").extracted == 1


def test_options_change_the_signature_so_nothing_is_reused(tmp_path):
    clips = corpus(tmp_path / "raw", "one")
    first = extract(clips, tmp_path)
    second = extract(clips, tmp_path, scale=2.0)
    assert second.extracted == 1 and second.meta.signature != first.meta.signature
    assert assembled(clips, tmp_path, second)[1]["v/0"].values[0, 0] == 2 * ord("o")


def test_a_missing_modality_is_a_row_without_steps_and_no_problem(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "")
    for modality in ("audio", "text"):
        report = extract(clips, tmp_path, modality=modality)
        assert (report.missing, report.problems) == (1, ())
        summary, reader = assembled(clips, tmp_path, report)
        assert summary.missing == 1 and summary.rows == 2
        assert len(reader["v/1"]) == 0


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("unusable", "ExtractionError", "cannot be used"),
        ("unreadable", "MediaError", "cannot be read"),
        ("bug", "ZeroDivisionError", "a bug"),
        ("wide", "ExtractionError", "3 wide"),
    ],
)
def test_a_clip_that_fails_is_listed_and_keeps_the_others(tmp_path, content, error, message):
    clips = corpus(tmp_path / "raw", "one", content, "three", "four")
    report = extract(clips, tmp_path)
    assert report.extracted == 3
    (problem,) = report.problems
    assert (problem.clip_id, problem.stage, problem.modality) == ("v/1", "extract", "audio")
    assert problem.error == error and message in problem.message
    summary, reader = assembled(clips, tmp_path, report)
    assert reader.clip_ids == ("v/0", "v/2", "v/3") and summary.failed == 1
    np.testing.assert_array_equal(reader["v/3"].values[:, 0], list(b"four"))


def test_a_failure_is_tried_again_by_the_next_run(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "bug")
    extract(clips, tmp_path)
    FakeBytes.calls.clear()
    report = extract(clips, tmp_path)
    assert set(FakeBytes.calls) == {"v/1"} and len(report.problems) == 1


def test_an_unexpected_error_is_logged_with_its_traceback(tmp_path, caplog):
    clips = corpus(tmp_path / "raw", "bug", "unusable")
    with caplog.at_level(logging.ERROR):
        extract(clips, tmp_path)
    (record,) = caplog.records
    assert "v/0" in record.getMessage() and record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("unreadable", ("in one", "MediaError: cannot be read")),
        ("bug", ("in one", "ZeroDivisionError: a bug", "a note")),
        ("caused", ("KeyError: 'inside'", "direct cause", "ExtractionError: cannot be used either")),
        ("wide", ("in check_sequence", "3 wide")),
    ],
)
def test_a_problem_names_the_file_with_its_full_traceback(tmp_path, content, words):
    clips = corpus(tmp_path / "raw", "one", content)
    (problem,) = extract(clips, tmp_path).problems
    found = cache.traceback_path(tmp_path / "scratch", problem.traceback).read_text()
    for part in ("v/1, fake.bytes-v1-", "Traceback", *words):
        assert part in found


def test_an_error_that_nobody_raised_has_no_traceback(tmp_path):
    (problem,) = extract(corpus(tmp_path / "raw", "unusable"), tmp_path).problems
    assert problem.traceback == "" and not (tmp_path / "scratch" / cache.TRACEBACKS).exists()


def test_a_traceback_has_the_same_reference_on_every_machine(tmp_path):
    references = []
    for machine in (tmp_path / "here", tmp_path / "there" / "deeper"):
        report = extract(corpus(machine / "raw", "bug", "caused", "wide"), machine)
        references.append([problem.traceback for problem in report.problems])
    assert references[0] == references[1] and len(set(references[0])) == 3


def test_an_extractor_that_leaves_clips_out_shifts_nothing(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "unusable", "three")
    report = extract(clips, tmp_path, name="fake.forgetful")
    assert [p.clip_id for p in report.problems] == ["v/1"] and "0 results for 1 clip" in report.problems[0].message
    np.testing.assert_array_equal(assembled(clips, tmp_path, report)[1]["v/2"].values[:, 0], list(b"three"))


def test_an_unknown_extractor_or_option_stops_at_once(tmp_path):
    with pytest.raises(ValueError, match="no extractor is called"):
        extract(corpus(tmp_path / "raw", "one"), tmp_path, name="fake.nothing")
    with pytest.raises(ValueError, match="tempo"):
        extract(corpus(tmp_path / "raw", "one"), tmp_path, tempo=1)


def test_a_clip_without_result_or_problem_stops_the_assembly(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "two")
    report = extract(clips[:1], tmp_path)
    with pytest.raises(StoreError, match="clip v/1: no audio result"):
        assembled(clips, tmp_path, report)
    assert not (tmp_path / "out").exists()


def test_work_units_hold_each_clip_once_within_the_size_and_in_order():
    clips = [Clip(f"v/{i:03}", "v", "train", "en", "m", "", duration=1 + i % 17) for i in range(103)]
    made = units.work_units(clips, 10)
    assert len(made) == 11 and max(map(len, made)) <= 10
    assert sorted(clip.clip_id for unit in made for clip in unit) == [clip.clip_id for clip in clips]
    assert all([clip.clip_id for clip in unit] == sorted(clip.clip_id for clip in unit) for unit in made)


def test_work_units_are_balanced_by_duration():
    clips = [Clip(f"v/{i}", "v", "train", "en", "m", "", duration=d) for i, d in enumerate([100.0, *[10.0] * 10])]
    totals = [sum(clip.duration for clip in unit) for unit in units.work_units(clips, 10)]
    assert totals == [100.0, 100.0]


def test_work_units_of_unknown_durations_and_of_nothing():
    clips = [Clip(f"v/{i}", "v", "train", "en", "m", "") for i in range(4)]
    assert [len(unit) for unit in units.work_units(clips, 2)] == [2, 2]
    assert units.work_units([], 2) == []
    with pytest.raises(ValueError, match="at least 1 clip"):
        units.work_units(clips, 0)


def test_threads_are_limited(monkeypatch):
    import cv2

    before = cv2.getNumThreads()
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # its threads are other tests' affair
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    for name in ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        monkeypatch.setenv(name, "8")
    try:
        units.limit_threads(1)
        assert os.environ["OMP_NUM_THREADS"] == "1" and cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_pruning_keeps_the_named_signatures(tmp_path):
    clips = corpus(tmp_path / "raw", "one")
    old, new = extract(clips, tmp_path), extract(clips, tmp_path, scale=2.0)
    folders, freed = cache.prune(tmp_path / "scratch", {new.meta.signature})
    assert folders == 1 and freed > 0
    assert extract(clips, tmp_path, scale=2.0).reused == 1
    assert not (tmp_path / "scratch" / old.meta.signature).exists()


def test_pruning_keeps_the_named_tracebacks(tmp_path):
    clips = corpus(tmp_path / "raw", "one", "bug", "caused")
    report = extract(clips, tmp_path)
    old, new = (cache.traceback_path(tmp_path / "scratch", p.traceback) for p in report.problems)
    size = old.stat().st_size
    assert cache.prune(tmp_path / "scratch", {report.meta.signature, new.stem}) == (0, size)
    assert not old.exists() and new.exists()


def test_pruning_touches_no_folder_but_scratch(tmp_path):
    (tmp_path / "home" / "letters").mkdir(parents=True)
    with pytest.raises(ValueError, match="not a scratch folder"):
        cache.prune(tmp_path / "home", set())
    assert (tmp_path / "home" / "letters").is_dir()
    assert cache.prune(tmp_path / "nowhere", set()) == (0, 0)
