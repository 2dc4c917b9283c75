"""What a browser shows of a run: its stages, the stages' own runs, their artifacts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flows.orchestration import prefect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.server, pytest.mark.browser]

EXTRACTIONS = ["extract@text", "extract@audio", "extract@vision"]
STAGES = ["check", "prepare", "transcribe", *EXTRACTIONS, "align", "train", "evaluate"]


@pytest.fixture
def page(browser, house, first_run, tmp_path) -> Iterator[Any]:
    """The page of the pipeline's first run; a picture of where it was left stays in `tmp_path`."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme="dark")
    opened.set_default_timeout(60_000)
    opened.goto(f"{prefect_server.pages(house.api_url)}/runs/flow-run/{first_run['id']}")
    opened.get_by_text("Task Runs", exact=True).wait_for()
    yield opened
    opened.screenshot(path=tmp_path / "prefect.png")
    opened.close()


def open_tab(page: Any, tab: str, name: str) -> None:
    """Open a tab of a run's page and click on what it lists.

    Prefect's page sometimes goes back to its first tab, or lists nothing, when the tab is clicked on while the run is
    still being loaded; then the page is loaded again.
    """
    from playwright.sync_api import TimeoutError as NotShownError

    for attempt in range(4):
        if attempt:
            page.reload()
        try:
            page.get_by_text(tab, exact=True).first.click(timeout=30_000)
            page.get_by_text(name, exact=True).first.click(timeout=30_000)
        except NotShownError:
            continue
        return
    raise AssertionError(f"tab {tab!r} of {page.url} does not show {name!r}:\n{page.inner_text('body')}")


def test_the_runs_page_shows_its_stages(page):
    page.get_by_text("Task Runs", exact=True).first.click()
    for stage in STAGES:
        page.get_by_text(stage, exact=True).first.wait_for()
    page.get_by_text("9 Task runs").first.wait_for()


def test_the_runs_page_shows_the_metrics(page):
    open_tab(page, "Artifacts", "pipeline-metrics")
    page.get_by_text("Mean absolute error").first.wait_for()


def test_the_page_of_the_run_of_evaluate_shows_the_plots(page, house, first_run):
    evaluation = next(run for run in house.children(first_run["id"]) if run["name"] == "evaluate demo_en")
    open_tab(page, "Subflow Runs", "evaluate demo_en")
    page.wait_for_url(f"**/{evaluation['id']}*")
    open_tab(page, "Artifacts", "plots")
    page.locator("img[src^='data:image/png']").first.wait_for()


def test_the_page_of_a_prediction_shows_its_time_line(browser, house, first_run):
    clip = next((house.project.folder / "data/generated/Raw").glob("*/0001.mp4"))
    run = house.finished("predict", path=str(clip), window=1.0)
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(60_000)
    opened.goto(f"{prefect_server.pages(house.api_url)}/runs/flow-run/{run['id']}")
    open_tab(opened, "Artifacts", "prediction")
    opened.locator("img[src^='data:image/png']").first.wait_for()
    opened.get_by_text("on a scale from").first.wait_for()
    opened.close()
