"""What several tests of the flows need."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from flows import server

ROOT = Path(__file__).parents[2]


@contextmanager
def run_server() -> Iterator[str]:
    """Address of a Prefect server that runs as long as the block."""
    port = server.free_port()
    keeper = server.start(psutil.Process(), port)
    api_url = f"http://127.0.0.1:{port}/api"
    try:
        assert server.wait_until_healthy(api_url, keeper), (server.STATE / "server.log").read_text()
        yield api_url
    finally:
        keeper.terminate()
        keeper.wait(timeout=20)


@pytest.fixture(scope="session")
def running_server() -> Callable[[], AbstractContextManager[str]]:
    """`run_server`."""
    return run_server


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with the project's parameters and presets, as the working directory."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path
