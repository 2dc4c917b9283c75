"""A browser for the tests that need one, and the fixtures of `tests.support`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ["tests.support.clips", "tests.support.datasets", "tests.support.project"]


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
