"""What a browser makes of the page: whole, quiet and asking for nothing. The table of clips, by mouse and by key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>document.title = 'taken'</script> </script><script>document.title = 'taken'</script> "
    "<img src=x onerror=\"document.title='taken'\"> ]]> \"quoted\" 'single' \u2028 " + "long" * 40
)


@pytest.fixture
def opened(render, make, browser) -> Iterator[Any]:
    """Opens a report; whatever the page says, asks for or overflows is a failure at the end of the test."""
    pages, trouble, requests = [], [], []

    def open_page(width: int = 1200, scheme: str = "light", script: bool = True, **changes: Any) -> Any:
        render(**changes)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.set_default_timeout(10_000)
        page.goto(render.path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert trouble == [] and len(requests) == len(pages)


def everything(make, clips, **changes: Any) -> dict[str, Any]:
    labelled = make.predictions(clips, {0: 0.5})
    for m in ("text", "audio", "vision"):
        labelled = labelled.append_column(f"prediction_without_{m}", labelled["prediction"])
    return {
        "clips": clips,
        "predictions": labelled,
        "curves": make.curves({0: 5}),
        "card": make.card(),
        "subgroups": make.subgroups(),
        "calibration": make.calibration(),
        "studies": [make.study()],
        "explorer": make.explorer(clips),
        "intervals": {"mae": (0.4, 0.61), "acc2_np": (0.85, 0.97)},
    } | changes


def shown(page) -> list[str]:
    """Ids in the table of clips, from the first to the last that can be seen."""
    return page.locator("tr.clip:not([hidden]) code").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 900, 768, 390])
def test_the_page_is_shown_whole_whatever_it_holds(opened, make, width, scheme):
    clips = make.clips(text=HOSTILE)
    page = opened(width, scheme, **everything(make, clips, studies=[make.study(title=HOSTILE)]))
    page.locator(".toggle").first.click()
    page.locator(".word").first.hover()
    assert page.title() == "demo_en, test split: DashFusion"
    assert page.inner_text("body").count("document.title = 'taken'") >= 12
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = "[...document.querySelectorAll('#corpus .figures')].map(table => [table, table.closest('.scroll')])"
    wide = f"{figures}.map(([t, p]) => [t.scrollWidth, p.clientWidth]).filter(([t, p]) => p && t > p)"
    assert page.evaluate(wide) == [], "tables of the corpus that must be scrolled sideways: width, width shown"
    luminance = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]")
    assert (luminance < 80) == (scheme == "dark")


def test_plots_are_drawn_in_the_pages_colours(opened, make):
    page = opened(scheme="dark", **everything(make, make.clips()))
    ink = page.evaluate("getComputedStyle(document.body).color")
    fills = page.locator("[aria-label='Confusion matrix'] text").evaluate_all(
        "nodes => nodes.map(node => getComputedStyle(node).fill)"
    )
    assert ink in fills and "rgb(0, 0, 0)" not in fills, "var() holds in the attributes of an SVG"


def test_without_scripts_every_clip_stands_in_the_table(opened, make):
    page = opened(script=False, **everything(make, make.clips(30)))
    assert len(page.locator("tr.clip").all()) == 30 and page.locator("tr.clip").last.is_visible()
    assert not page.locator("#controls").is_visible() and not page.locator(".toggle").all()
    assert page.get_by_text("Enable JavaScript").is_visible()


def test_clips_are_found_by_id_and_transcript(opened, make):
    clips = make.clips(12)
    clips["v3/0001"] = replace(clips["v3/0001"], text="Quite a Surprise.")
    page = opened(**everything(make, clips))
    assert len(shown(page)) == 12 and page.inner_text("#count") == "12 clips"
    page.fill("#find", "surPRISE")
    assert shown(page) == ["v3/0001"] and page.inner_text("#count") == "1 of 12 clips"
    page.fill("#find", "v11/")
    assert shown(page) == ["v11/0001"]
    page.fill("#find", "nowhere")
    assert shown(page) == [] and page.inner_text("#count") == "0 of 12 clips"


def test_clips_are_filtered_by_error_by_what_they_lack_and_by_part(opened, make):
    clips = make.clips(12)  # labels from -3 to 3; 0.5 is added to each
    page = opened(**everything(make, clips))
    page.select_option("#errors-of", "wrong")
    assert set(shown(page)) == {"v5/0001"}, "-0.27 is predicted +0.23"
    page.select_option("#errors-of", "low")
    assert shown(page) == []
    page.select_option("#errors-of", "")
    page.select_option("#lacking", "vision")
    assert set(shown(page)) == {"v0/0001", "v1/0001"}
    page.select_option("#subgroup", label="text misleads")
    assert set(shown(page)) == {"v0/0001"}, "both at once"
    page.select_option("#lacking", "none")
    assert set(shown(page)) == {"v4/0001", "v8/0001"}


def test_clips_are_sorted_by_each_of_their_numbers(opened, make):
    clips = {name: replace(clip, duration=20.0 - i) for i, (name, clip) in enumerate(make.clips(12).items())}
    table = make.predictions(clips, {0: 0.0})
    errors = np.asarray(table["label"]) + np.resize([1, -1], 12) * np.arange(12) / 10
    table = table.set_column(4, "prediction", [errors.astype(np.float32)])
    page = opened(**everything(make, clips, predictions=table))
    ascending = [f"v{i}/0001" for i in range(12)]
    assert shown(page) == ascending[::-1], "the greatest error first, of either sign"
    page.get_by_role("button", name="Error").click()
    assert shown(page) == ascending
    page.get_by_role("button", name="True", exact=True).click()
    assert shown(page) == ascending[::-1]
    page.get_by_role("button", name="Seconds").click()
    assert shown(page) == ascending
    sorted_by = page.locator("th[aria-sort]")
    assert [sorted_by.inner_text().split()[0], sorted_by.get_attribute("aria-sort")] == ["Seconds", "descending"]


def test_a_long_table_comes_in_pieces(opened, make):
    page = opened(**everything(make, make.clips(45)))
    assert len(shown(page)) == 20
    page.get_by_role("button", name="Show more").click()
    assert len(shown(page)) == 40
    page.get_by_role("button", name="Show more").click()
    assert len(shown(page)) == 45 and not page.locator("#more").is_visible()


def test_a_clip_opens_to_its_words_its_time_lines_and_what_each_modality_moves(opened, make):
    clips = make.clips(3, text="one two three four")
    table = everything(make, clips)["predictions"]
    table = table.drop_columns("prediction_without_text")
    table = table.append_column("prediction_without_text", [(np.asarray(table["prediction"]) + 0.75).astype("f4")])
    clips = {name: replace(clip, label_vision=-1.5) for name, clip in clips.items()}
    page = opened(**everything(make, clips, predictions=table))
    page.locator("tr.clip").first.click(position={"x": 500, "y": 10})
    detail = page.locator("tr.detail")
    assert [word.inner_text() for word in detail.locator(".word").all()] == ["one", "two", "three", "four"]
    lanes = [name.inner_text().replace("\u200b", "") for name in detail.locator(".lane-name").all()]
    assert lanes == ["words", "log_f0", "mfcc_2", "attention", "mouth_width", "jaw_open", "attention", ""]
    lane = detail.locator(".lane svg").first
    widths = [lane.locator(f".state-{state}").evaluate("rect => rect.width.baseVal.value") for state in (1, 2)]
    assert widths == pytest.approx([16, 16], abs=2), "of 64: a quarter not valid, a quarter hidden from the network"
    rows = [line.inner_text().split() for line in detail.locator(".contributions tbody tr").all()]
    assert rows == [["text", "\u22120.75", "–"], ["audio", "+0.00", "–"], ["vision", "+0.00", "\u22121.5"]]  # noqa: RUF001
    page.locator("tr.clip").first.click(position={"x": 500, "y": 10})
    assert detail.count() == 0


def test_attention_follows_the_word_that_is_pointed_at(opened, make):
    page = opened(**everything(make, make.clips(3, text="one two three four")))
    page.locator(".toggle").first.click()

    def hottest() -> float:
        opacity = (
            "[...document.querySelector('.heat svg').children].map(cell => Number(cell.getAttribute('fill-opacity')))"
        )
        cells = page.evaluate(opacity)
        return cells.index(max(cells)) / len(cells)

    for number, word in enumerate(page.locator(".word").all()[:3]):  # the fourth looks at what is hidden
        word.hover()
        assert hottest() == pytest.approx(number / 4, abs=0.03)
    caption = page.locator(".caption").inner_text()
    assert caption.startswith("“three”, 1.50 to 2.25 s; audio: at most") and "10 % on [CLS]" in caption
    assert page.locator(".words .at").inner_text() == "three"


def test_with_another_anchor_the_strip_is_what_looks_at_a_word(opened, make):
    clips = make.clips(3, text="one two three four")
    known = make.explorer(clips)
    known = replace(known, explanation=replace(known.explanation, anchor="audio"))
    page = opened(**everything(make, clips, explorer=known))
    page.locator(".toggle").first.click()
    assert "attention to the words" in page.locator(".caption").inner_text()
    page.locator(".word").first.hover()
    assert "[CLS]" not in page.locator(".caption").inner_text()


def test_everything_can_be_reached_and_done_by_key(opened, make):
    page = opened(**everything(make, make.clips(3, text="one two three four")))
    page.focus(".toggle")
    page.keyboard.press("Enter")
    assert page.locator(".toggle").first.get_attribute("aria-expanded") == "true"
    target = page.locator(".toggle").first.get_attribute("aria-controls")
    assert page.locator(f"#{target}").count() == 1
    page.keyboard.press("Tab")
    focused = "document.activeElement.innerText"
    assert page.evaluate(focused) == "one"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == "three" and "three" in page.locator(".caption").inner_text()
    page.keyboard.press("End")
    assert page.evaluate(focused) == "four"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "toggle", "the words are one stop"
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(focused) == "four", "and are come back to where they were left"
    page.keyboard.press("Escape")
    assert page.locator("tr.detail").count() == 0
    assert page.evaluate("document.activeElement === document.querySelector('.toggle')")
    page.locator("th .sort").first.focus()
    page.keyboard.press("Space")
    assert page.locator("th[aria-sort]").inner_text().startswith("Seconds")


@pytest.mark.parametrize("width", [1200, 390])
def test_open_clips_stay_with_their_rows_when_the_order_changes(opened, make, width):
    page = opened(width, **everything(make, make.clips(4)))
    page.locator(".toggle").nth(1).click()
    name = shown(page)[1]
    for button in ("True", "Predicted"):
        page.get_by_role("button", name=button, exact=True).click()
        assert (
            page.locator("tr.detail").evaluate("row => row.previousElementSibling.querySelector('code').innerText")
            == name
        )
    page.fill("#find", "nowhere")
    assert not page.locator("tr.detail").is_visible()


def test_clips_of_which_little_is_known_open_all_the_same(opened, make):
    clips = {name: replace(clip, text="", duration=None) for name, clip in make.clips(2).items()}
    page = opened(clips=clips, predictions=make.predictions(clips, {0: 0.1}))
    page.locator(".toggle").first.click()
    assert "No transcript." in page.locator("tr.detail").inner_text()
    assert "No time lines" in page.locator("tr.detail").inner_text()


def test_a_page_can_be_printed_on_light_paper_by_those_who_read_in_the_dark(opened, make):
    page = opened(scheme="dark", **everything(make, make.clips(30)))
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator("#controls").is_visible()
    assert page.locator("tr.clip").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(26, 31, 38)"
    assert len(page.pdf()) > 20_000
