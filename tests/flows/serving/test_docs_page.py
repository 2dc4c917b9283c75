"""The page /docs in a browser: it shows the whole schema, and sends requests with the token under the strict policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.flows.serving.test_page import TOKEN, Opened, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser, scoring_pool, uploads) -> Iterator[Opened]:
    with running(scoring_pool, uploads, TOKEN) as (address, _):
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        yield Opened(page, f"{address}/docs")
        page.close()


def test_it_shows_every_operation_field_and_schema(tab):
    tab.get("post-predict").wait_for()
    schema = tab.page.evaluate("fetch('openapi.json').then((response) => response.json())")
    text = tab.page.locator("main").evaluate("element => element.textContent")
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert path in text and operation["summary"] in text
            assert all(status in text for status in operation["responses"])
    for name, one in schema["components"]["schemas"].items():
        assert name.startswith("Body_") or tab.get(f"schema-{name}").count() == 1
        assert all(field in text for field in one.get("properties", ()))
    assert "undefined" not in text and "[object" not in text
    tab.page.locator("a[href='#schema-Prediction']").first.evaluate("link => link.click()")
    assert tab.get("schema-Prediction").get_attribute("open") is not None
    assert tab.complaints == []


def test_a_clip_is_scored_from_it_with_the_token(tab, clip):
    tab.get("post-predict-file").set_input_files(clip)
    tab.get("post-predict-text").fill("It's fine.")
    section = tab.get("post-predict")
    section.get_by_role("button", name="Send").click()
    section.locator(".status.failed", has_text="401").wait_for()
    assert json.loads(section.locator(".body").inner_text())["error"] == "no_token"
    tab.get("token").fill(TOKEN)
    section.get_by_role("button", name="Send").click()
    section.locator(".status:not(.failed)", has_text="200 OK").wait_for()
    [result] = json.loads(section.locator(".body").inner_text())["results"]
    assert result["file"] == clip.name and result["text"] == "It's fine."
    command = section.locator(".curl").inner_text()
    assert "$DASHFUSION_TOKEN" in command and TOKEN not in command and r"'text=It'\''s fine.'" in command
    assert clip.name in command and "/predict'" in command
    assert [line for line in tab.complaints if "401" not in line] == [], "the browser reports the 401 itself"
    origin = tab.address.removesuffix("/docs")
    assert all(url.startswith((origin, "data:")) for url in tab.asked)


@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_the_window(tab, width):
    tab.page.set_viewport_size({"width": width, "height": 900})
    tab.get("post-predict").wait_for()
    for details in tab.page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert tab.page.locator("html").evaluate("element => element.scrollWidth") <= width
