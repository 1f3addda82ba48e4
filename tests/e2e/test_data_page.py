"""The page of a dataset in a real browser: nothing runs, nothing is asked for, and all of it is in sight."""

import pytest

from ftkit.report.pages.dataset import Dataset, ShownText, Told, data_page
from tests.e2e import test_report_page
from tests.e2e.test_report_page import HOSTILE, browser

__all__ = ["browser"]
pytestmark = test_report_page.pytestmark

LONG = "x" * 300
DATASET = Dataset(
    name=HOSTILE,
    lines=[f"text 'text', label {HOSTILE!r}", LONG],
    splits=["train", "validation", "test"],
    classes=[(HOSTILE, [3, 4, 5]), (LONG, [1_000_000, 2, 3])],
    lengths={"train": [(8 * number, number**3) for number in range(1, 14)]},
    sequences=[ShownText(f"train 1, label {HOSTILE!r}", [(HOSTILE, False), (HOSTILE, True), (LONG, False)])],
    findings=[Told(severity, f"{HOSTILE} {LONG}", HOSTILE) for severity in ("error", "warning", "note")],
)
CONTRAST = """() => {
    const light = ([red, green, blue]) => [red, green, blue].map(one => one / 255).map(one =>
        one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4).reduce((sum, one, place) =>
        sum + one * [0.2126, 0.7152, 0.0722][place], 0);
    const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const behind = element => {
        const found = numbers(getComputedStyle(element).backgroundColor);
        return found.length === 3 ? found : behind(element.parentElement);
    };
    return Math.min(...[...document.querySelectorAll("main *")].filter(element => element.innerText).map(element => {
        const both = [numbers(getComputedStyle(element).color), behind(element)].map(light).sort((a, b) => b - a);
        return (both[0] + 0.05) / (both[1] + 0.05);
    }));
}"""
"""The least contrast of a text with what is behind it, as WCAG 2 defines it."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "data.html"
    path.write_text(data_page(DATASET), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_stay_texts_and_all_can_be_read_without_scrolling_sideways(browser, path, width, scheme):
    page = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme).new_page()
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert heard == []
    assert asked == [path.as_uri()]
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("mark").inner_text() == HOSTILE
    overhang = "[...document.querySelectorAll('html, .scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)"
    assert page.evaluate(f"{overhang}.map(one => one.ariaLabel)") == []
    assert page.evaluate(CONTRAST) >= 4.5, "WCAG 2, AA"
    is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 25)"
    assert is_dark == (scheme == "dark")
    page.context.close()
