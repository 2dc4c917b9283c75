"""Files and folders appear whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from model.files import atomic_file, atomic_folder


def write(folder, text):
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text(text)


def test_a_failure_leaves_the_old_file_and_folder(tmp_path):
    (tmp_path / "file").write_text("old")
    write(tmp_path / "folder", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_run_left_aside_does_not_block_the_next_one(tmp_path):
    """In a container the next run has the same process id, and so the same temporary names."""
    write(tmp_path / "best", "old")
    for kind in ("old", "tmp"):
        (tmp_path / f".best.{os.getpid()}.{kind}").mkdir()
        (tmp_path / f".best.{os.getpid()}.{kind}" / "left").write_text("")
    write(tmp_path / "best", "new")
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["file"]
    assert (tmp_path / "best" / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_have_the_permissions_of_any_new_file(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    (tmp_path / "usual folder").mkdir()
    with atomic_file(tmp_path / "file") as temporary:
        save_file({"x": np.zeros(2)}, temporary)
    with atomic_folder(tmp_path / "folder") as temporary:
        save_file({"x": np.zeros(2)}, temporary / "file")
        temporary.chmod(0o700)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "folder/file").stat().st_mode == usual.stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "usual folder").stat().st_mode
