"""Folders that are expensive to make, made once a test run and shared by its processes; generated corpora."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from corpora.demo.config import DemoConfig
from corpora.demo.generate import generate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = DemoConfig(clips=5, speakers=4, seed=3)


def make_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills in the first process that asks; the other pytest-xdist workers wait for it.

    Tests only read the folder, since it belongs to all of them.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all workers
    folder, complete = root / name, root / f"{name}.complete"
    with FileLock(root / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process whose `make` failed
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> DemoConfig:
    """Configuration of `demo`."""
    return TINY


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a generated corpus of five clips, to be read only."""
    return make_once(tmp_path_factory, "demo", lambda root: generate(root, TINY, workers=1))
