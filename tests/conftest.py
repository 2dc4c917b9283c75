"""How pytest-xdist distributes the tests; a browser for those that need one; and the fixtures of `tests.support`."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARED = ("chat", "clips", "corpora", "datasets", "encoders", "project")
pytest_plugins = [f"tests.support.{module}" for module in SHARED]

# One thread a process, also for those that the tests start: processes with threads for all cores hinder each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARING_A_SERVER = {
    "tests/flows/orchestration/test_deployments.py": "`house`",
    "tests/flows/orchestration/test_score_deployments.py": "`house`",
    "tests/flows/orchestration/test_compare_deployment.py": "`house`",
    "tests/flows/orchestration/test_study_deployment.py": "`house`",
    "tests/flows/orchestration/test_ui_pages.py": "`house`",
    "tests/flows/serving/test_app.py": "`scoring_pool`",
    "tests/flows/serving/test_docs_page.py": "`scoring_pool`",
    "tests/flows/serving/test_logs.py": "`scoring_pool`",
    "tests/flows/serving/test_frames.py": "`scoring_pool`",
    "tests/flows/serving/test_page.py": "`scoring_pool`",
    "tests/flows/serving/test_schema.py": "`scoring_pool`",
    "tests/flows/serving/test_security.py": "`scoring_pool`",
    "tests/flows/serving/test_telemetry.py": "`scoring_pool`",
    "tests/flows/serving/test_worker_pool.py": "`scoring_pool`",
}
"""Modules that one worker runs, so that their server is started once."""
SPLIT = "tests/docs/test_commands.py"
"""Module whose tests several workers run: each is long, and what they share is quickly copied."""
SLOWEST_FIRST = (
    *SHARING_A_SERVER,
    "tests/pipeline/test_kill.py",
    "tests/pipeline/test_dvc.py",
    "tests/pipeline/",
    SPLIT,
    "tests/flows/orchestration/",
    "tests/model/checkpoint/test_onnx.py",
    "tests/flows/serving/",
    "tests/flows/prediction/",
    "tests/model/",
    "tests/extractors/",
)
"""Modules that run before all others, so that no worker is left with one of them while the other is idle."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute whole modules, but for `SPLIT`, in their order, with those that share a server in one unit."""
    from xdist.scheduler import LoadFileScheduling

    class ModuleScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(SPLIT):
                return nodeid
            servers = (server for path, server in SHARING_A_SERVER.items() if nodeid.startswith(path))
            return next(servers, super()._split_scope(nodeid))

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # else modules with many tests come first, however short these are
    return ModuleScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests as `SLOWEST_FIRST` says; within a module they stay in their order."""

    def rank(item: pytest.Item) -> int:
        matches = (n for n, path in enumerate(SLOWEST_FIRST) if item.nodeid.startswith(path))
        return next(matches, len(SLOWEST_FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[..., Any]]:
    """Starts headless Chromium of the system, with further arguments; the tests skip where there is none."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH; install it (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        started: list[Any] = []

        def start(*more: str) -> Any:
            started.append(playwright.chromium.launch(executable_path=path, args=[*arguments, *more]))
            return started[-1]

        yield start
        for one in started:
            one.close()


@pytest.fixture(scope="module")
def browser(chromium) -> Any:
    """Headless Chromium of the system; the tests skip where there is none."""
    return chromium()
