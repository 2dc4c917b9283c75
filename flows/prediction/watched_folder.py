"""A folder whose new files are scored, each once: what is in it, what is known of it, and where the scores go.

Beside the table of predictions lie a ledger of what was done, by the files' content, and a lock. The table is written
before the ledger: a run that is killed between them scores the last files again, to the same rows.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from corpora.files import atomic_path, sha256_of

if TYPE_CHECKING:
    from model.predict import Predictor
    from model.prediction.results import Result

LEDGER_VERSION = 1
DEFAULT_OUT = "predictions.parquet"  # in the folder
WEIGHTS = "model.safetensors"  # of a checkpoint, whose hash says which one scored
CHUNK = 16
"""Files after which what was found is written down: as many are scored again after a kill."""


class FolderBusy(RuntimeError):
    """Another run scores the same folder."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is watched.

    Attributes:
        folder: where files come to lie.
        out: Parquet file with a row a scored or failed file; ledger and lock lie beside it.
        pattern: of the files in the folder; of these, those that end as media do.
        settle: seconds in which a file's size and time may not change before it is taken to be whole.
        attempts: at a file that cannot be scored; afterwards only when its content has changed.

    Raises:
        ValueError: a number that is out of its range.
    """

    folder: Path
    out: Path
    pattern: str = "**/*"
    settle: float = 10.0
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.settle < 0 or self.attempts < 1:
            raise ValueError(f"settle is {self.settle:g} s, attempts {self.attempts}: they must be 0 and 1 or more")
        if self.pattern.startswith(("/", "~")) or ".." in Path(self.pattern).parts:
            raise ValueError(f"the pattern {self.pattern!r} leads out of the folder; give one such as '**/*.mp4'")

    @property
    def ledger(self) -> Path:
        """Beside the predictions."""
        return self.out.with_suffix(".ledger.json")

    @property
    def lock(self) -> Path:
        """Held by the run that scores."""
        return self.out.with_suffix(".lock")


@dataclass(slots=True)
class Seen:
    """A file as it was when it was last looked at: `since` when (seconds since 1970) it has been so.

    `sha256` is empty as long as it may still be being copied.
    """

    size: int
    modified: int
    since: float
    sha256: str = ""


@dataclass(slots=True)
class Done:
    """What became of a content: the error's class and message where it could not be scored."""

    file: str
    time: str
    attempts: int = 1
    error: str = ""
    message: str = ""


@dataclass(slots=True)
class Ledger:
    """Files by their path in the folder, and contents by their SHA-256."""

    files: dict[str, Seen] = field(default_factory=dict)
    contents: dict[str, Done] = field(default_factory=dict)

    @classmethod
    def read(cls, watch: Watch) -> Ledger:
        """The ledger as it was left; empty where there is none. Without the predictions, what was scored is not known.

        Raises:
            ValueError: it is none that this version reads.
        """
        try:
            raw = json.loads(watch.ledger.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            again = "remove it, and all files are scored again"
            raise ValueError(f"{watch.ledger}: not JSON ({error}); {again}") from error
        if raw.get("schema_version") != LEDGER_VERSION:
            raise ValueError(
                f"{watch.ledger}: version {raw.get('schema_version')}, this one reads {LEDGER_VERSION}; "
                "name another --out, and all files are scored again"
            )
        files = {name: Seen(**seen) for name, seen in raw["files"].items()}
        contents = {key: Done(**done) for key, done in raw["contents"].items()} if watch.out.exists() else {}
        return cls(files, contents)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        content = {"schema_version": LEDGER_VERSION, **asdict(self)}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did: its results, and how many files may still be being copied."""

    results: tuple[Result, ...]
    pending: int

    @property
    def failed(self) -> tuple[Result, ...]:
        """Those that could not be scored."""
        return tuple(result for result in self.results if result.to_dict()["error"])


@contextmanager
def alone(watch: Watch) -> Iterator[None]:
    """Be the only run that scores this folder into this table. The lock is the kernel's and ends with its holder.

    Raises:
        FolderBusy: another one does.
    """
    from filelock import FileLock, Timeout

    watch.out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(watch.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderBusy(f"another run scores {watch.folder} into {watch.out}: it goes on, and this one ends") from None
    try:
        yield
    finally:
        lock.release()


def look(watch: Watch, ledger: Ledger, now: float) -> tuple[dict[str, Path], int]:
    """Files that are due, by their content, and how many may still be being copied; the ledger is then up to date."""
    from corpora.readers.raw import MEDIA_SUFFIXES

    found: dict[str, Seen] = {}
    due: dict[str, Path] = {}
    pending = 0
    for path in sorted(watch.folder.glob(watch.pattern)):
        inside = path.relative_to(watch.folder)
        if path.suffix.lower() not in MEDIA_SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        seen = _seen(path, ledger.files.get(inside.as_posix()), watch.settle, now)
        if seen is None:
            continue
        found[inside.as_posix()] = seen
        pending += not seen.sha256
        done = ledger.contents.get(seen.sha256)
        if seen.sha256 and (done is None or (done.error and done.attempts < watch.attempts)):
            due.setdefault(seen.sha256, path)
    ledger.files = found
    return due, pending


def _seen(path: Path, before: Seen | None, settle: float, now: float) -> Seen | None:
    """The file as it is now, with its hash once it is at rest; None where there is no file (any more)."""
    try:
        stat = path.stat()
        if not path.is_file():
            return None
        if before is None or (before.size, before.modified) != (stat.st_size, stat.st_mtime_ns):
            before = Seen(stat.st_size, stat.st_mtime_ns, now)
        if before.sha256 or now - before.since < settle:
            return before
        sha256, after = sha256_of(path), path.stat()
    except FileNotFoundError:
        return None
    if (after.st_size, after.st_mtime_ns) != (before.size, before.modified):
        return Seen(after.st_size, after.st_mtime_ns, now)
    return Seen(before.size, before.modified, before.since, sha256)


def score_new(
    watch: Watch,
    predictor: Callable[[], Predictor],
    *,
    each: Callable[[Result], None] = lambda result: None,
    wait: bool = True,
    **options: Any,
) -> Report:
    """Score what is new in the folder, and write it down.

    Args:
        predictor: called when there is something to score.
        each: called with every result as it is there.
        wait: where files are new, wait `settle` seconds and look again, once, rather than leave them to the next run.
        options: of `Predictor.predict`: level, window, hop, workers, timeout.

    Raises:
        FolderBusy: another run scores this folder.
        FileNotFoundError: no such folder.
        ValueError: of `Predictor.predict`, or a ledger or table that is none.
    """
    if not watch.folder.is_dir():
        raise FileNotFoundError(f"{watch.folder}: no such folder; make it, or name another one to watch")
    with alone(watch):
        ledger = Ledger.read(watch)
        due, pending = look(watch, ledger, time.time())
        ledger.write(watch.ledger)
        if pending and wait:
            time.sleep(watch.settle)
            due, pending = look(watch, ledger, time.time())
            ledger.write(watch.ledger)
        return Report(tuple(_score(watch, ledger, due, predictor, each, options)) if due else (), pending)


def _score(
    watch: Watch,
    ledger: Ledger,
    due: dict[str, Path],
    predictor: Callable[[], Predictor],
    each: Callable[[Result], None],
    options: dict[str, Any],
) -> list[Result]:
    from extractors.transcripts.subtitles import find_transcript
    from model.prediction.protocol import Video

    scorer = predictor()
    videos = [Video(path, transcript=find_transcript(path.parent, path)) for path in due.values()]
    by = {"model": str(scorer.folder), "checkpoint": sha256_of(scorer.folder / WEIGHTS)[:16]}
    options = options | {"workers": min(options.get("workers") or os.cpu_count() or 1, len(videos))}
    results: list[Result] = []
    waiting: list[tuple[str, Result]] = []
    try:
        for sha256, result in zip(due, scorer.predict(videos, **options), strict=True):
            each(result)
            results.append(result)
            waiting.append((sha256, result))
            if len(waiting) >= CHUNK:
                _write_down(watch, ledger, waiting, by)
                waiting = []
    finally:
        if waiting:
            _write_down(watch, ledger, waiting, by)
    return results


def _write_down(watch: Watch, ledger: Ledger, scored: Sequence[tuple[str, Result]], by: dict[str, str]) -> None:
    """Results into the table, then into the ledger."""
    now = datetime.now(UTC).replace(microsecond=0)
    rows = [{**result.to_dict(), "sha256": sha256, "scored_at": now, **by} for sha256, result in scored]
    merge(rows, watch.out)
    for sha256, result in scored:
        told, before = result.to_dict(), ledger.contents.get(sha256)
        error = told["error"] or {"class": "", "message": ""}
        attempts = 1 + (before.attempts if before else 0)
        ledger.contents[sha256] = Done(told["file"], now.isoformat(), attempts, error["class"], error["message"])
    ledger.write(watch.ledger)


def predictions_schema() -> pa.Schema:
    """Columns of the table: those of `dashfusion predict --out`, and what was scored when by what."""
    from model.prediction.results import RESULTS_SCHEMA

    schema = RESULTS_SCHEMA
    for name, kind in (("sha256", pa.string()), ("scored_at", pa.timestamp("ms", "UTC")), ("model", pa.string()),
                       ("checkpoint", pa.string())):  # fmt: skip
        schema = schema.append(pa.field(name, kind))
    return schema


def merge(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Put rows into the table of predictions: one a content, and of a file that could not be scored none once it can.

    Raises:
        ValueError: what lies there is no table of predictions.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    schema = predictions_schema()
    new = pa.Table.from_pylist(list(rows), schema=schema)
    if path.exists():
        try:
            old = pq.read_table(path)
            same = pc.is_in(old["sha256"], new["sha256"].combine_chunks())
            failed = pc.and_(pc.is_valid(old["error"]), pc.is_in(old["file"], new["file"].combine_chunks()))
        except (pa.ArrowInvalid, KeyError) as error:
            raise ValueError(
                f"{path}: no table of predictions ({error}); move it away, or name another --out"
            ) from error
        kept = old.filter(pc.invert(pc.or_(same, failed)))
        new = pa.concat_tables([kept, new], promote_options="default").replace_schema_metadata(schema.metadata)
    with atomic_path(path) as temporary:
        pq.write_table(new, temporary, compression="zstd")


def watch_for_ever(
    watch: Watch, predictor: Predictor, interval: float, say: Callable[[str], None], **options: Any
) -> None:
    """`score_new` every `interval` seconds, until it is interrupted.

    Raises:
        FolderBusy, FileNotFoundError, ValueError: as `score_new`.
    """
    while True:
        score_new(watch, lambda: predictor, each=lambda result: say(told(result)), wait=False, **options)
        time.sleep(interval)


def told(result: Result) -> str:
    """A result in a line."""
    from flows.prediction.html import number

    row = result.to_dict()
    if row["error"]:
        name = "" if row["error"]["message"].startswith(row["file"]) else f"{row['file']}: "
        return f"{row['error']['class']}: {name}{row['error']['message']}"
    return f"{row['file']}: {number(row['score'])} {row['sentiment']}, from {', '.join(row['used'])}"
