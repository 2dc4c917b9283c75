"""Screenshots of the report and of the page of `dashfusion serve`: `python docs/images/shoot.py` after `make demo`.

It needs Chromium on PATH. report.png is the report's metrics; remove .dashfusion/metrics.jsonl before `make demo` to
leave out the change since the last run. explorer.png is the table of clips with the clip of the largest error open and
the pointer on a word. serve.png is a clip of the test split, scored with its transcript. prefect.png is taken by hand:
a run of `dashfusion ui` after a change of `train`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from PIL import Image
from playwright.sync_api import Page, sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
REPORT = Path("report/index.html")
CLIP = "speaker_004/0001"
"""Clip of the demo's test split that is scored."""
WIDTH = 1100
PORT = 8765
COLOURS = 128
"""Colours of a screenshot, of which the pages have few."""


def shoot_report(page: Page) -> None:
    """Take both screenshots of the report."""
    page.goto(REPORT.resolve().as_uri())
    height = page.locator("#errors h2").bounding_box()["y"] - 30
    page.screenshot(path=HERE / "report.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": height}, full_page=True)
    page.locator(".toggle").first.click()
    page.locator(".word").nth(3).hover()
    last = page.locator("tr.clip:not([hidden])").nth(4).bounding_box()
    head = page.locator("#clips h2").bounding_box()
    top = head["y"] + page.evaluate("scrollY") - 20
    bottom = last["y"] + page.evaluate("scrollY")
    clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    page.screenshot(path=HERE / "explorer.png", clip=clip, full_page=True)


def shoot_server(page: Page, address: str) -> None:
    """Score a clip on the server's page, and take its screenshot."""
    manifest = pq.read_table("data/manifest.parquet").to_pylist()
    clip = next(row for row in manifest if row["clip_id"] == CLIP)
    talk = {"name": "talk.mp4", "mimeType": "video/mp4", "buffer": Path("data/generated", clip["media"]).read_bytes()}
    page.goto(address)
    page.locator("#file").set_input_files(talk)
    page.locator("#text").fill(clip["text"])
    page.get_by_text("Options").click()
    page.locator("#window").fill("1.5")
    page.locator("#send").click()
    page.locator("#result").wait_for(timeout=300_000)
    page.locator("#player").evaluate("player => { player.currentTime = 2 }")
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=HERE / "serve.png", full_page=True)


@contextmanager
def server() -> Iterator[str]:
    """Provide the address of a running `dashfusion serve`."""
    command = [sys.executable, "-u", "-m", "flows.cli", "serve", "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            if not said.startswith("DashFusion is at"):
                raise RuntimeError(f"{said}{process.stdout.read()}")
            yield said.split()[3]
        finally:
            process.terminate()


def shrink(path: Path) -> None:
    """Reduce a screenshot's colours."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take all screenshots, in the project's folder."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, server() as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shoot_report(browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light"))
        shoot_server(browser.new_page(viewport={"width": 920, "height": 1000}, color_scheme="light"), address)
        browser.close()
    for name in ("report", "explorer", "serve"):
        shrink(HERE / f"{name}.png")


if __name__ == "__main__":
    main()
