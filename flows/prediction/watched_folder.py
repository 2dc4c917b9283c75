"""Score the new files of a folder, each content once, across restarts and overlapping runs.

Results go to a Parquet table. Next to it are a ledger, which records files and contents already processed, and a lock.
The table is written before the ledger, so a run that is killed in between scores the last files again and replaces
their rows.
"""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from corpora.files import atomic_file, sha256_of
from corpora.readers.table import MEDIA_SUFFIXES
from flows.display.console import printable, valid_unicode
from flows.display.metrics import format_number
from flows.prediction.inputs import find_sidecar
from flows.prediction.score import score_all, to_valid_unicode
from model.prediction.protocol import Video
from model.prediction.results import RESULTS_SCHEMA, UNLIKE_TRAINING, Failure, Result

if TYPE_CHECKING:
    from model.predict import Predictor

LEDGER_VERSION = 1
DEFAULT_OUT = "predictions.parquet"  # in the watched folder
WEIGHTS = "model.safetensors"  # of a checkpoint; its hash identifies the checkpoint
CHUNK = 16
"""Number of results to collect before writing them, and so the most that are scored again after a kill."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        *RESULTS_SCHEMA,
        ("sha256", pa.string()),
        ("scored_at", pa.timestamp("ms", "UTC")),
        ("model", pa.string()),
        ("checkpoint", pa.string()),
    ],
    RESULTS_SCHEMA.metadata,
)
"""Columns of `dashfusion predict --out`, plus content hash, time, and the checkpoint's folder and hash."""


class FolderBusyError(RuntimeError):
    """Another run is scoring the same folder."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A folder to watch, and how.

    Attributes:
        folder: Folder to watch.
        out: Parquet file with one row per scored or failed file. The ledger and the lock are next to it.
        pattern: Glob pattern in the folder; only files with media suffixes are considered.
        settle: Seconds for which a file's size and time must not change before it is considered complete.
        attempts: Maximum number of attempts at a file that cannot be scored, until its content changes.

    Raises:
        ValueError: A value is out of range.
    """

    folder: Path
    out: Path
    pattern: str = "**/*"
    settle: float = 10.0
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.out.suffix.lower() == ".csv":
            raise ValueError(f"--out {self.out}: a watched folder's table is Parquet; name it such as out.parquet")
        if self.settle < 0 or self.attempts < 1:
            raise ValueError(f"settle is {self.settle:g} s, attempts {self.attempts}: they must be 0 and 1 or more")
        if self.pattern.startswith(("/", "~")) or ".." in Path(self.pattern).parts:
            raise ValueError(f"the pattern {self.pattern!r} leads out of the folder; give one such as '**/*.mp4'")

    @property
    def ledger(self) -> Path:
        """Path of the ledger."""
        return self.out.with_suffix(".ledger.json")

    @property
    def lock(self) -> Path:
        """Path of the lock file, which the scoring run holds."""
        return self.out.with_suffix(".lock")


@dataclass(slots=True)
class FileState:
    """State of a file at the last scan.

    Attributes:
        size: Bytes.
        modified: Modification time in nanoseconds.
        since: Time (seconds since the epoch) at which this state was first seen.
        sha256: Content hash; empty while the file may still be incomplete.
        problem: Reason, already reported, why the file cannot be read; empty otherwise.
    """

    size: int
    modified: int
    since: float
    sha256: str = ""
    problem: str = ""


@dataclass(slots=True)
class Outcome:
    """Outcome of a content, with the error's class and message if it could not be scored."""

    file: str
    time: str
    attempts: int = 1
    error: str = ""
    message: str = ""


@dataclass(slots=True)
class Ledger:
    """File states by path in the folder, and outcomes by the content's SHA-256."""

    files: dict[str, FileState] = field(default_factory=dict)
    contents: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def read(cls, watch: Watch) -> Ledger:
        """Read the ledger; if there is none, return an empty one. Outcomes are dropped if the table is missing.

        Raises:
            ValueError: The file is not a ledger of this version.
        """
        try:
            raw = json.loads(watch.ledger.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except ValueError as error:
            advice = "remove it to score all files again"
            raise ValueError(f"{watch.ledger}: not JSON ({error}); {advice}") from error
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != LEDGER_VERSION:
            raise ValueError(
                f"{watch.ledger}: version {version}, but version {LEDGER_VERSION} is needed; "
                "give another --out to score all files again"
            )
        files = {name: FileState(**state) for name, state in raw["files"].items()}
        if not watch.out.exists():
            return cls({name: replace(state, problem="") for name, state in files.items()})
        return cls(files, {key: Outcome(**outcome) for key, outcome in raw["contents"].items()})

    def write(self, path: Path) -> None:
        """Write the ledger atomically."""
        content = {"schema_version": LEDGER_VERSION, **asdict(self)}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Report:
    """Results of one run, and the number of files that may still be incomplete."""

    results: tuple[Result, ...]
    pending: int

    @property
    def failed(self) -> tuple[Result, ...]:
        """Results of files that could not be scored."""
        return tuple(result for result in self.results if result.to_dict()["error"])


@contextmanager
def exclusive(watch: Watch) -> Iterator[None]:
    """Hold the lock of the table. The operating system releases it if the process ends.

    Raises:
        FolderBusyError: Another run holds it.
    """
    watch.out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(watch.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = f"another run scores {watch.folder} into {watch.out}; it continues, and this one ends"
        raise FolderBusyError(message) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(slots=True)
class Scan:
    """Files of a folder that need work.

    Attributes:
        due: Files to score, by content hash.
        unreadable: Files that cannot be read, and were not reported yet, by name in the ledger.
        pending: Number of files that may still be incomplete.
    """

    due: dict[str, Path] = field(default_factory=dict)
    unreadable: dict[str, Failure] = field(default_factory=dict)
    pending: int = 0


def scan(watch: Watch, ledger: Ledger, now: float) -> Scan:
    """Find the files to score, and update the ledger's file states."""
    found = Scan()
    states: dict[str, FileState] = {}
    for path in sorted(watch.folder.glob(watch.pattern)):
        relative = path.relative_to(watch.folder)
        if path.suffix.lower() not in MEDIA_SUFFIXES or any(part.startswith(".") for part in relative.parts):
            continue
        name = valid_unicode(relative.as_posix())
        previous = ledger.files.get(name)
        try:
            state = _current_state(path, previous, watch.settle, now)
        except OSError as error:
            problem = f"{error.strerror or error}; check the file"
            states[name] = previous or FileState(0, 0, now)
            if problem != states[name].problem:
                found.unreadable[name] = Failure(str(path), type(error).__name__, f"{path}: {problem}")
            continue
        if state is None:
            continue
        states[name] = state
        found.pending += not state.sha256
        outcome = ledger.contents.get(state.sha256)
        if state.sha256 and (outcome is None or (outcome.error and outcome.attempts < watch.attempts)):
            found.due.setdefault(state.sha256, path)
    ledger.files = states
    return found


def _current_state(path: Path, state: FileState | None, settle: float, now: float) -> FileState | None:
    """Update a file's state, with its hash once it has settled. Return None if there is no such file (any more).

    Raises:
        OSError: The file cannot be read.
    """
    try:
        before = path.stat()
        if not stat.S_ISREG(before.st_mode):
            return None
        if state is None or (state.size, state.modified) != (before.st_size, before.st_mtime_ns):
            state = FileState(before.st_size, before.st_mtime_ns, now)
        if state.sha256:
            return state
        if state.since > now:  # the clock was set back
            state = replace(state, since=now)
        if now - state.since < settle:
            return state
        sha256, after = sha256_of(path), path.stat()
    except FileNotFoundError:
        return None
    if (after.st_size, after.st_mtime_ns) != (state.size, state.modified):  # changed while it was read
        return FileState(after.st_size, after.st_mtime_ns, now)
    return FileState(state.size, state.modified, state.since, sha256)


def score_new(
    watch: Watch,
    predictor: Callable[[], Predictor],
    *,
    on_result: Callable[[Result], None] = lambda result: None,
    wait: bool = True,
    **options: Any,
) -> Report:
    """Score the folder's new files, and record the results.

    Args:
        watch: Folder to score.
        predictor: Factory of the predictor, called only if there is something to score.
        on_result: Called with each result as soon as it is available.
        wait: If files may be incomplete, wait `settle` seconds and scan once more, instead of leaving them to the next
            run.
        options: Options of `score_all`.

    Raises:
        FolderBusyError: Another run is scoring this folder.
        FileNotFoundError: The folder does not exist.
        ValueError: As `Predictor.predict`, or the ledger or table is not valid.
    """
    if not watch.folder.is_dir():
        raise FileNotFoundError(f"{watch.folder}: no such folder; create it, or give another one to watch")
    with exclusive(watch):
        ledger = Ledger.read(watch)
        found = scan(watch, ledger, time.time())
        ledger.write(watch.ledger)
        if found.pending and wait:
            time.sleep(watch.settle)
            found = scan(watch, ledger, time.time())
            ledger.write(watch.ledger)
        results = _report_unreadable(watch, ledger, found.unreadable, on_result)
        if found.due:
            results += _score(watch, ledger, found.due, predictor, on_result, options)
        return Report(tuple(results), found.pending)


def _report_unreadable(
    watch: Watch, ledger: Ledger, unreadable: dict[str, Failure], on_result: Callable[[Result], None]
) -> list[Result]:
    """Record the files that cannot be read, and note the reasons so that the next scan does not report them again."""
    results = [to_valid_unicode(failure) for failure in unreadable.values()]
    if not results:
        return []
    for result in results:
        on_result(result)
    now = datetime.now(UTC).replace(microsecond=0)
    merge([{**result.to_dict(), "scored_at": now} for result in results], watch.out)
    for name, failure in unreadable.items():
        ledger.files[name].problem = failure.message.removeprefix(f"{failure.name}: ")
    ledger.write(watch.ledger)
    return results


def _score(
    watch: Watch,
    ledger: Ledger,
    due: dict[str, Path],
    predictor: Callable[[], Predictor],
    on_result: Callable[[Result], None],
    options: dict[str, Any],
) -> list[Result]:
    scorer = predictor()
    videos = [Video(path, transcript=find_sidecar(path.parent, path)) for path in due.values()]
    provenance = {"model": valid_unicode(str(scorer.folder)), "checkpoint": sha256_of(scorer.folder / WEIGHTS)[:16]}
    results: list[Result] = []
    unrecorded: list[tuple[str, Result]] = []
    try:
        for sha256, result in zip(due, score_all(scorer, videos, **options), strict=True):
            on_result(result)
            results.append(result)
            unrecorded.append((sha256, result))
            if len(unrecorded) >= CHUNK:
                _record(watch, ledger, unrecorded, provenance)
                unrecorded = []
    finally:
        if unrecorded:
            _record(watch, ledger, unrecorded, provenance)
    return results


def _record(watch: Watch, ledger: Ledger, scored: Sequence[tuple[str, Result]], provenance: dict[str, str]) -> None:
    """Write results to the table, then to the ledger."""
    now = datetime.now(UTC).replace(microsecond=0)
    rows = [{**result.to_dict(), "sha256": sha256, "scored_at": now, **provenance} for sha256, result in scored]
    merge(rows, watch.out)
    for row in rows:
        previous = ledger.contents.get(row["sha256"])
        attempts = 1 + (previous.attempts if previous else 0)
        error = row["error"] or {"class": "", "message": ""}
        ledger.contents[row["sha256"]] = Outcome(
            row["file"], now.isoformat(), attempts, error["class"], error["message"]
        )
    ledger.write(watch.ledger)


def merge(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Merge rows into the table, replacing those of the same content and failures of the same file.

    Raises:
        ValueError: The existing file is not a table of predictions.
    """
    table = pa.Table.from_pylist(list(rows), schema=PREDICTIONS_SCHEMA)
    if path.exists():
        try:
            old = pq.read_table(path)
            same = pc.is_in(old["sha256"], table["sha256"].combine_chunks().drop_null())
            failed = pc.and_(pc.is_valid(old["error"]), pc.is_in(old["file"], table["file"].combine_chunks()))
        except (pa.ArrowInvalid, KeyError) as error:
            raise ValueError(
                f"{path}: not a table of predictions ({error}); move it away, or give another --out"
            ) from error
        kept = old.filter(pc.invert(pc.or_(same, failed)))
        table = pa.concat_tables([kept, table], promote_options="default")
        table = table.replace_schema_metadata(PREDICTIONS_SCHEMA.metadata)
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def watch_forever(
    watch: Watch, predictor: Predictor, interval: float, log: Callable[[str], None], **options: Any
) -> None:
    """Call `score_new` every `interval` seconds until interrupted, and log each result.

    Raises:
        FolderBusyError, FileNotFoundError, ValueError: As `score_new`.
    """
    while True:
        score_new(watch, lambda: predictor, on_result=lambda result: log(format_result(result)), wait=False, **options)
        time.sleep(interval)


def format_result(result: Result) -> str:
    """Format a result as one line that is safe to print."""
    row = result.to_dict()
    if row["error"]:
        name = "" if row["error"]["message"].startswith(row["file"]) else f"{row['file']}: "
        return printable(f"{row['error']['class']}: {name}{row['error']['message']}")
    unlike = "".join(f"; {w['message']}" for w in row["warnings"] if w["code"] == UNLIKE_TRAINING)
    score = f"{format_number(row['score'])} {row['sentiment']}, from {', '.join(row['used'])}"
    return printable(f"{row['file']}: {score}{unlike}")
