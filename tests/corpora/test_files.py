"""Files appear whole, and a writer that was killed leaves nothing that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from corpora.files import atomic_file, atomic_folder

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from corpora.files import atomic_file

with atomic_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("two")
        raise ZeroDivisionError
    assert path.read_text() == "one" and names(path.parent) == ["file"]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and len(names(tmp_path)) == 1 and not path.exists()
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["file"]


def test_two_threads_can_write_one_file(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as ours:
        ours.write_text("ours")

        def write() -> None:
            with atomic_file(path) as theirs:
                theirs.write_text("theirs")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and names(tmp_path) == ["file"]


def test_another_writers_file_is_left_alone(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as ours:
        theirs = ours.with_name(ours.name.replace(str(os.getpid()), str(os.getppid())))
        theirs.write_text("theirs")
        ours.write_text("ours")
    other = path.with_name(".file.elsewhere.1.tmp")
    other.write_text("of another machine")
    with atomic_file(path) as ours:
        ours.write_text("again")
    assert theirs.exists() and other.exists()


def folder_of(path: Path, content: str) -> None:
    path.mkdir()
    (path / "file").write_text(content)


KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from corpora.files import atomic_folder

replace = Path.replace
def killed(source, target):
    if source.name.endswith(".tmp"):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(source, target)

Path.replace = killed
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "file").write_text("new")
"""


def test_a_run_killed_between_the_two_renames_loses_nothing(tmp_path):
    path = tmp_path / "folder"
    folder_of(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(path):
        assert (path / "file").read_text() == "new"
        raise ZeroDivisionError
    assert (path / "file").read_text() == "new" and names(tmp_path) == ["folder"]


def test_a_second_rename_that_fails_loses_nothing(tmp_path, monkeypatch):
    path, replace = tmp_path / "folder", Path.replace
    folder_of(path, "old")

    def refuse(source, target):
        if source.name.endswith(".tmp"):
            monkeypatch.undo()
            raise OSError("busy")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="busy"), atomic_folder(path) as temporary:
        (temporary / "file").write_text("new")
    assert (path / "file").read_text() == "new" and names(tmp_path) == ["folder"]


@pytest.mark.parametrize("left", [(".tmp",), (".old",), ("", ".old"), ("", ".tmp"), ("", ".tmp", ".old")])
def test_what_is_not_whole_is_never_taken_for_the_folder(tmp_path, left):
    path = tmp_path / "folder"
    for ending in left:
        folder_of(tmp_path / f".folder{ending}" if ending else path, f"left{ending}")
    with pytest.raises(ZeroDivisionError), atomic_folder(path):
        raise ZeroDivisionError
    assert names(tmp_path) == (["folder"] if "" in left else [])
    assert "" not in left or (path / "file").read_text() == "left"


def test_content_is_on_disk_before_its_name_appears(tmp_path, monkeypatch):
    events = []
    target = tmp_path / "file"
    monkeypatch.setattr(os, "fsync", lambda handle: events.append((os.fstat(handle).st_ino, target.exists())))
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
    assert events == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    events.clear()
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("whole")
    content = {(path.stat().st_ino, False) for path in (target, *target.rglob("*"))}
    assert set(events[:-1]) == content and events[-1] == (tmp_path.stat().st_ino, True)
