"""Screenshots of the report: `python docs/images/shoot.py` after `make demo`, with Chromium on PATH.

report.png is the top of the page; remove .dashfusion/metrics.jsonl before `make demo` to leave out the change since the
last run. explorer.png is the table of clips with the clip of the largest error open and the pointer on a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "report" / "index.html"
WIDTH = 1100


def shoot(page: Page) -> None:
    """Take both screenshots."""
    page.goto(REPORT.as_uri())
    page.screenshot(path=HERE / "report.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": 1330}, full_page=True)
    page.locator(".toggle").first.click()
    page.locator(".word").nth(3).hover()
    last = page.locator("tr.clip:not([hidden])").nth(4).bounding_box()
    head = page.locator("#clips h2").bounding_box()
    top = head["y"] + page.evaluate("scrollY") - 20
    bottom = last["y"] + page.evaluate("scrollY")
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    page.screenshot(path=HERE / "explorer.png", clip=clip, full_page=True)


def main() -> None:
    """Open the report in Chromium and take the screenshots."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shoot(browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light"))
        browser.close()


if __name__ == "__main__":
    main()
