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


def click(page: Any, *names: str) -> None:
    """Click on one name after the other, each as soon as it is there."""
    for name in names:
        page.get_by_text(name, exact=True).first.click()


def test_the_runs_page_shows_its_stages(page):
    click(page, "Task Runs")
    for stage in STAGES:
        page.get_by_text(stage, exact=True).first.wait_for()
    page.get_by_text("9 Task runs").first.wait_for()


def test_the_runs_page_shows_the_metrics(page):
    click(page, "Artifacts", "pipeline-metrics")
    page.get_by_text("Mean absolute error").first.wait_for()


def test_the_page_of_the_run_of_evaluate_shows_the_plots(page):
    click(page, "Subflow Runs", "evaluate demo_en", "Artifacts", "plots")
    page.locator("img[src^='data:image/png']").first.wait_for()


def test_the_page_of_a_prediction_shows_its_time_line(browser, house, first_run):
    clip = next((house.project.folder / "data/generated/Raw").glob("*/0001.mp4"))
    run = house.finished("predict", path=str(clip), window=1.0)
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(60_000)
    opened.goto(f"{prefect_server.pages(house.api_url)}/runs/flow-run/{run['id']}")
    click(opened, "Artifacts", "prediction")
    opened.locator("img[src^='data:image/png']").first.wait_for()
    opened.get_by_text("on a scale from").first.wait_for()
    opened.close()
