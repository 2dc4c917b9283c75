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
