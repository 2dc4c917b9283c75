"""The server's page in a browser: a clip from its choice to its score, the time line, and what goes wrong."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import uvicorn

from flows.serving.app import create_app
from flows.serving.frames import MAX_FRAMES
from flows.serving.protocol import HttpProtocol
from flows.serving.security import LOOPBACK, Rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.browser

TOKEN = "correct-horse-battery"
TEXT = "The phone was kind of pleasant. The food was awful, and we were bored."


@contextmanager
def running(scoring_pool: Any, folder: Path, token: str = "") -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a server in a thread of ours, and what stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    rules = Rules(LOOPBACK, (), token, scoring_pool.limits.size, 60.0)
    config = uvicorn.Config(
        create_app(scoring_pool, rules, folder), http=HttpProtocol, ws="none", lifespan="off", log_level="warning"
    )
    served = uvicorn.Server(config)
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop() -> None:
        served.should_exit = True
        thread.join(timeout=30)
        listener.close()

    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", stop
    finally:
        stop()


@dataclass
class Opened:
    """A tab with the page, and all that it asked for and complained of."""

    page: Any
    address: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type in ("error", "warning") and self.complaints.append(line.text))
        self.page.goto(self.address)

    def get(self, name: str) -> Any:
        return self.page.locator(f"#{name}")

    def property(self, name: str, key: str) -> Any:
        return self.get(name).evaluate("(element, key) => element[key]", key)

    def wait(self, name: str, ready: Callable[[str], bool]) -> str:
        """The text of an element, once it is so."""
        self.get(name).wait_for()
        for _ in range(300):
            if ready(text := self.get(name).inner_text()):
                return text
            self.page.wait_for_timeout(100)
        raise AssertionError(f"#{name} stays {text!r}")

    def choose(self, path: Path | list[Path]) -> None:
        self.get("form").wait_for()
        self.get("file").set_input_files(path)

    def score(self, path: Path, text: str = TEXT) -> None:
        self.choose(path)
        self.get("text").fill(text)
        self.get("send").click()
        self.get("result").wait_for()

    def problem(self) -> tuple[str, str]:
        self.get("problem").wait_for()
        return self.get("problem").get_attribute("data-error"), self.get("problem-message").inner_text()


@pytest.fixture
def opened(browser, scoring_pool, uploads) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a server of its own."""
    with running(scoring_pool, uploads) as (address, _):
        tabs = []

        def open_page(width: int = 1000, **options: Any) -> Opened:
            tabs.append(browser.new_page(viewport={"width": width, "height": 900}, **options))
            return Opened(tabs[-1], address)

        yield open_page
        for tab in tabs:
            tab.close()


def seconds_of(readout: str) -> float:
    minutes, rest = readout.split(": ", 1)[0].split(":")
    return 60 * int(minutes) + float(rest)


def test_a_clip_is_scored_and_its_time_line_follows_the_video(opened, long_clip):
    tab = opened()
    tab.score(long_clip)
    assert "long.mp4" in tab.get("result-name").inner_text() and "demo_en" in tab.get("about").inner_text()
    assert tab.get("score").inner_text()[-3] == "." and "text, audio, vision" in tab.get("from").inner_text()
    assert tab.get("bars").locator(".contribution").count() == 3
    assert TEXT in tab.get("transcript-text").inner_text()
    assert tab.get("timeline").locator("polyline").count() >= 1
    assert tab.property("player", "readyState") > 0, "the browser's own copy plays"

    box = tab.get("timeline").bounding_box()
    tab.get("timeline").click(position={"x": box["width"] * 0.6, "y": 40})
    at = seconds_of(tab.get("readout").inner_text())
    assert tab.property("player", "currentTime") == pytest.approx(at, abs=0.2) and 10 < at < 18
    tab.get("timeline").press("ArrowLeft")
    assert seconds_of(tab.get("readout").inner_text()) == pytest.approx(at - 1, abs=0.2)
    assert tab.get("timeline").get_attribute("aria-valuetext") in tab.get("readout").inner_text()
    tab.get("timeline").press("Home")
    tab.get("timeline").press(" ")
    tab.wait("readout", lambda text: seconds_of(text) > 0.5)
    tab.get("timeline").press(" ")
    assert tab.property("player", "paused")
    drawn = tab.get("timeline").locator("g").get_attribute("transform")
    tab.get("windows-title").click()
    tab.get("rows").locator("button").last.click()
    assert tab.get("timeline").locator("g").get_attribute("transform") != drawn
    assert tab.property("player", "currentTime") > 15
    assert tab.complaints == []
    assert all(url.startswith((tab.address, f"blob:{tab.address}", "data:")) for url in tab.asked)


def test_a_short_clip_has_no_time_line_and_the_page_says_why(opened, clip):
    tab = opened()
    tab.score(clip)
    assert not tab.get("over-time").is_visible() and "Too short" in tab.get("no-timeline").inner_text()
    tab.page.get_by_text("Options", exact=True).click()
    tab.get("window").fill("1")
    tab.get("send").click()
    tab.wait("status", lambda text: text.startswith("Scored"))
    tab.get("timeline").wait_for()
    assert tab.get("rows").locator("tr").count() > 2
    with tab.page.expect_download() as download:
        tab.get("download").click()
    assert '"schema_version": 1' in Path(download.value.path()).read_text(encoding="utf-8")


def test_what_makes_a_score_doubtful_is_above_it_and_its_class_is_in_words(opened, clip):
    tab = opened()
    tab.score(clip, "")
    assert "no text" in tab.get("warning-list").inner_text()
    assert tab.get("warnings").bounding_box()["y"] < tab.get("score").bounding_box()["y"]
    assert tab.get("notice").bounding_box()["y"] < tab.get("warnings").bounding_box()["y"]
    assert tab.get("notice").inner_text() not in tab.get("warning-list").inner_text(), "said twice"
    assert re.fullmatch("neutral|((strongly|weakly) )?(negative|positive)", tab.get("sentiment").inner_text())


@pytest.fixture
def unplayable(clip, tmp_path) -> Path:
    """The clip in a format that browsers do not play."""
    target = tmp_path / "old.avi"
    with av.open(str(clip)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "yuv420p"
        for number, frame in enumerate(source.decode(video=0)):
            small = frame.reformat(160, 128, "yuv420p")
            small.pts, small.time_base, small.pict_type = number, Fraction(1, 25), 0
            container.mux(stream.encode(small))
        container.mux(stream.encode(None))
    return target


def test_a_file_that_the_browser_cannot_play_is_shown_as_frames(opened, unplayable, clip):
    tab = opened()
    tab.choose(unplayable)
    assert "cannot play old.avi" in tab.wait("unplayable", bool) and not tab.get("player").is_visible()
    tab.get("send").click()
    tab.get("result").wait_for()
    images = tab.get("frames").locator("img")
    assert images.count() == MAX_FRAMES
    assert images.evaluate_all("images => images.every(image => image.complete && image.naturalWidth === 160)")
    assert "these are frames of it" in tab.get("unplayable").inner_text()
    with tab.page.expect_download() as download:
        tab.get("download").click()
    assert "frames" not in json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["results"][0]
    tab.score(clip)
    assert tab.get("player").is_visible() and not tab.get("frames").is_visible(), "what plays needs no frames"
    assert not [line for line in tab.complaints if "Security" in line]


def test_several_files_are_a_sortable_table_whose_rows_open_the_results(opened, clip, unplayable, tmp_path):
    (tmp_path / "<b>letter.mp4").write_text("This is a letter.")
    (tmp_path / "large.mp4").write_bytes(bytes(5 << 20))
    tab = opened()
    tab.choose([clip, tmp_path / "<b>letter.mp4", unplayable, tmp_path / "large.mp4"])
    assert "4 files" in tab.get("chosen").inner_text() and not tab.get("text").is_visible()
    tab.get("send").click()
    assert tab.wait("status", lambda text: "scored" in text) == "2 of 4 files scored."
    assert not tab.get("result").is_visible()
    rows = tab.get("clips").locator("tr")
    names = [clip.name, "<b>letter.mp4", "old.avi", "large.mp4"]
    assert rows.locator("td:first-child").all_inner_texts() == names
    assert "Not scored" in rows.nth(1).inner_text() and "limit is 4.0 MB" in rows.nth(3).inner_text()

    tab.get("table").locator("th button", has_text="File").click()
    assert rows.locator("td:first-child").all_inner_texts() == ["<b>letter.mp4", clip.name, "large.mp4", "old.avi"]
    tab.get("table").locator("th button", has_text="Score").click()
    scores = rows.locator("td:nth-child(2)").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    assert float(scores[0]) <= float(scores[1]) and scores[2:] == ["", ""]
    tab.get("table").locator("th button", has_text="Score").click()
    turned = rows.locator("td:nth-child(2)").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    assert turned == [scores[1], scores[0], "", ""]

    tab.get("clips").get_by_role("button", name="old.avi").click()
    assert tab.get("result-name").inner_text() == "old.avi" and tab.get("frames").is_visible()
    tab.get("clips").get_by_role("button", name=clip.name).click()
    assert tab.get("result-name").inner_text() == clip.name and tab.get("player").is_visible()
    with tab.page.expect_download() as download:
        tab.get("download-all").click()
    document = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [result["file"] for result in document["results"]] == [clip.name, "old.avi"]


def test_the_drop_area_can_be_seen(opened):
    tab = opened()
    tab.get("form").wait_for()
    box, border = tab.get("drop").bounding_box(), "element => getComputedStyle(element).borderTopStyle"
    assert box["height"] > 120 and box["width"] > 600 and tab.get("drop").evaluate(border) == "dashed"
    assert "Drop clips here" in tab.get("drop").inner_text()


def test_a_file_that_is_no_clip_is_refused_in_words(opened, tmp_path, clip):
    (tmp_path / "letter.mp4").write_text("This is a letter.")
    tab = opened()
    tab.choose(tmp_path / "letter.mp4")
    tab.get("unplayable").wait_for()
    tab.get("send").click()
    error, message = tab.problem()
    assert error == "not_media" and "letter.mp4" in message
    assert tab.get("problem").get_attribute("role") == "alert" and not tab.get("retry").is_visible()
    tab.score(clip)
    assert not tab.get("problem").is_visible()


def test_too_large_and_too_long_are_told_before_anything_is_sent(
    opened, tmp_path, long_clip, scoring_pool, monkeypatch
):
    (tmp_path / "large.mp4").write_bytes(bytes(5 << 20))
    tab = opened()
    tab.choose(tmp_path / "large.mp4")
    error, message = tab.problem()
    assert error == "too_large" and "5.0 MB" in message and "4.0 MB" in message and tab.get("send").is_disabled()
    monkeypatch.setattr(scoring_pool, "limits", replace(scoring_pool.limits, length=10.0))
    tab = opened()
    tab.choose(long_clip)
    error, message = tab.problem()
    assert error == "too_long" and "0:10.0" in message and tab.get("send").is_disabled()
    assert not [url for url in tab.asked if url.endswith("/predict")]


def test_a_busy_server_is_tried_again(opened, clip, scoring_pool, monkeypatch):
    monkeypatch.setattr(scoring_pool, "_capacity", 0)
    monkeypatch.setattr(scoring_pool, "_mean_seconds", 1.0)
    tab = opened()
    tab.choose(clip)
    tab.get("send").click()
    error, message = tab.problem()
    assert error == "busy" and "Trying again" in message and tab.get("cancel").is_visible()
    monkeypatch.undo()
    tab.get("result").wait_for()


def test_a_server_that_is_gone_is_told_of_with_a_way_to_try_again(browser, scoring_pool, uploads, clip):
    with running(scoring_pool, uploads) as (address, stop):
        tab = Opened(browser.new_page(), address)
        tab.choose(clip)
        stop()
        tab.get("send").click()
        error, message = tab.problem()
        assert error == "gone" and "dashfusion serve" in message and tab.get("retry").is_visible()
        tab.page.close()


def test_the_token_is_asked_for_and_kept_for_the_tab(browser, scoring_pool, uploads, clip):
    with running(scoring_pool, uploads, TOKEN) as (address, _):
        tab = Opened(browser.new_page(), address)
        tab.get("token").fill("wrong-wrong-wrong-wrong")
        tab.get("token").press("Enter")
        assert "not the server's token" in tab.wait("token-wrong", bool)
        tab.get("token").fill(TOKEN)
        tab.get("token").press("Enter")
        tab.score(clip)
        tab.page.reload()
        tab.get("form").wait_for()
        tab.page.close()


def test_a_clip_is_dropped_on_the_page(opened, clip):
    tab = opened()
    tab.get("form").wait_for()
    data = tab.page.evaluate_handle(
        """bytes => { const data = new DataTransfer();
                      data.items.add(new File([new Uint8Array(bytes)], "dropped.mp4")); return data; }""",
        list(clip.read_bytes()),
    )
    tab.page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    assert "dropped.mp4" in tab.get("chosen").inner_text()
    tab.get("send").click()
    tab.get("result").wait_for()


def test_a_clip_is_recorded_where_the_browser_has_a_camera(scoring_pool, uploads, chromium):
    pretending = chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with running(scoring_pool, uploads) as (address, _):
        tab = Opened(pretending.new_page(), address)
        tab.get("record").click()
        tab.wait("record", lambda text: text.startswith("Stop (0:02"))
        tab.get("record").click()
        tab.wait("chosen", lambda text: "recording.webm" in text)
        tab.get("send").click()
        tab.get("result").wait_for()
        assert "no face" in tab.get("warning-list").inner_text()
        assert tab.complaints == []


def test_without_a_camera_the_page_says_so(opened):
    tab = opened()
    tab.get("record").click()
    assert tab.problem()[0] == "camera"


def test_with_the_keyboard_alone(opened, clip):
    tab = opened()
    tab.choose(clip)
    order = []
    while "send" not in order and len(order) < 20:
        tab.page.keyboard.press("Tab")
        order.append(tab.page.evaluate("document.activeElement.id"))
    assert [name for name in order if name in ("record", "text", "send")] == ["record", "text", "send"]
    tab.get("send").press("Enter")
    tab.get("result").wait_for()
    assert tab.page.evaluate("document.activeElement.id") == "result-name"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened, long_clip, scheme, tmp_path):
    tab = opened(390, color_scheme=scheme)
    tab.score(long_clip)
    root = tab.page.locator("html")
    assert root.evaluate("element => element.scrollWidth") == 390
    for name in ("send", "score", "timeline", "from", "warnings"):
        box = tab.get(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, name
    background = tab.page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 380) == (scheme == "dark")
    tab.page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    assert tab.complaints == []
