"""The page of `dashfusion predict --report` in a browser: a table first, which sorts, and names that do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flows.prediction.html import write_page

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">" + "long" * 40 + ".mp4"
MODEL = {"corpus": "demo_en", "seed": 0, "epoch": 1, "label_range": [-3.0, 3.0]}


def result(name: str, score: float | None, *warnings: str) -> dict[str, Any]:
    failed = score is None
    return {
        "file": name, "error": {"class": "MediaError", "message": f"{name}: damaged"} if failed else None,
        "score": score, "sentiment": None, "class": None if failed else str(round(score)), "used": ["text"],
        "interval": None if failed else {"level": 0.9, "low": score - 1, "high": score + 1 + score / 10, "clips": 9},
        "contributions": {}, "duration": 9.0, "text": "", "windows": [],
        "warnings": [{"code": "x", "message": warning} for warning in warnings],
    }  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_a_folder_opens_with_a_table_that_sorts(browser, tmp_path: Path, width: int, scheme: str):
    results = [result("b.mp4", 2.0), result(HOSTILE, -1.0, "no face in any frame", "no text"), result("c.mp4", None)]
    write_page(tmp_path / "page.html", results, MODEL, 0.9)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda line: complaints.append(line.text))
    page.goto((tmp_path / "page.html").as_uri())
    rows = page.locator("table.sortable tbody tr")
    files = lambda: [name[:1] for name in rows.locator("td:first-child").all_inner_texts()]  # noqa: E731
    assert files() == ["b", "<", "c"] and "weakly negative" in rows.nth(1).inner_text()
    for head, order in (("Score", "<bc"), ("Score", "b<c"), ("Interval", "<bc"), ("Warnings", "b<c"), ("File", "<bc")):
        if head == "Interval" and width < 560:
            continue  # hidden, so that the warnings can be seen
        page.locator("th button", has_text=head).click()
        assert files() == list(order), head
    assert page.locator("table.sortable").bounding_box()["y"] < page.locator("#result-1").bounding_box()["y"]
    rows.nth(0).locator("a").click()
    assert page.url.endswith("#result-2")
    assert page.locator("#result-2 .doubts").bounding_box()["y"] < page.locator("#result-2 .value").bounding_box()["y"]
    warnings = page.locator("th", has_text="Warnings").bounding_box()
    assert warnings["x"] + warnings["width"] <= width
    assert page.locator("html").evaluate("element => element.scrollWidth") == width
    assert "taken" not in page.title() and complaints == []
    page.close()


def test_a_single_result_has_neither_table_nor_script(browser, tmp_path: Path):
    write_page(tmp_path / "page.html", [result("a.mp4", 1.0)], MODEL, 0.9)
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    assert page.locator("table").count() == 0 and page.locator("script").count() == 0
    page.close()
