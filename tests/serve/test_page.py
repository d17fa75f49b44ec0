"""The page of cinemae serve in a browser: what a visitor sees, loaded from this host only."""

import base64
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cinemae_jax.commands import serve
from cinemae_jax.detector.api import Detector
from cinemae_jax.detector.heatmap import STATEMENT
from cinemae_jax.serve import app
from tests.conftest import photo
from tests.helpers.pictures import encoded
from tests.helpers.serving import MAX_BYTES, Gated, running
from tests.helpers.small_detector import small_bundle

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=20_000)  # milliseconds, on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.browser]

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, $CHROMIUM is not set")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def detector(backbone_file: Path) -> Detector:
    made = serve.make_detector(small_bundle(backbone_file), runs=None, fpr=None)
    app.warm_up(made)
    return made


@pytest.fixture(scope="module")
def url(detector: Detector) -> Iterator[str]:
    with running(detector) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    yield from visit(browser, url)


def visit(browser: Browser, url: str) -> Iterator[Page]:
    """A page in its own browser context, without errors or requests to other hosts."""
    context = browser.new_context()
    page = context.new_page()
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(url)
    expect(page.locator("#limits")).to_contain_text("JPEG")
    yield page
    context.close()
    assert all(address.startswith((url, "blob:", "data:")) for address in asked)
    refused = "Failed to load resource: the server responded with a status of 422"
    assert [fault for fault in faults if not fault.startswith(refused)] == []


def picture(seed: int = 0) -> bytes:
    return encoded(photo(np.random.default_rng(seed), ai=bool(seed % 2)))


def give(page: Page, data: bytes, name: str = "a.png", kind: str = "image/png") -> None:
    page.get_by_label("Choose an image").set_input_files(
        {"name": name, "mimeType": kind, "buffer": data}
    )


def expect_answer(page: Page, detector: Detector, data: bytes) -> None:
    """The page shows the prediction for this image."""
    (found,) = detector.predict(data)
    expect(page.locator("#probability")).to_have_text(f"{found.probability:.3f}")
    expect(page.locator("#spread")).to_have_text(f"± {found.uncertainty:.3f}")
    words = {"ai": "Called AI-generated", "nature": "Called a photograph"}
    expect(page.locator("#verdict")).to_have_text(words.get(found.verdict, "Inconclusive"))


def pixels(page: Page) -> list[int]:
    """Width and height of the image shown."""
    script = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    return page.locator("#picture").evaluate(script)


def test_an_image_is_scored_and_the_answer_explained(page: Page, detector: Detector) -> None:
    give(page, picture(1), "holiday.png")
    expect_answer(page, detector, picture(1))
    expect(page.get_by_role("status")).to_contain_text("holiday.png: ")
    assert pixels(page) == [40, 40]
    doubts = page.locator("#doubts")
    for sentence in detector.in_words():
        expect(doubts).to_contain_text(sentence)
    (found,) = detector.predict(picture(1))
    for flag in found.flags:
        expect(doubts).to_contain_text(flag.partition(": ")[2])
    scale = page.get_by_role("img", name=re.compile("On a scale from 0 to 1"))
    expect(scale).to_have_attribute("aria-label", re.compile(f"{found.probability:.3f}"))
    page.get_by_text("Answer as JSON").click()
    expect(page.get_by_label("JSON")).to_contain_text(f'"example_id": {found.example_id}')
    page.locator("#about > summary").click()
    expect(page.locator("#facts")).to_contain_text(detector.trained.backbone.sha256)
    expect(page.get_by_text("never a proof")).to_be_visible()


def test_a_heat_map_can_be_shown_and_hidden(page: Page, detector: Detector) -> None:
    give(page, picture(2))
    expect_answer(page, detector, picture(2))
    before = page.locator("#picture").get_attribute("src")
    switch = page.get_by_label("where reconstruction fails")
    switch.focus()
    page.keyboard.press("Space")
    expect(page.locator("#statement")).to_have_text(STATEMENT)
    expect(page.locator("#picture")).to_have_attribute("alt", re.compile("^heat map of a.png"))
    expect(page.locator("#measure")).to_contain_text("mean of 16 masking runs")
    assert page.locator("#picture").get_attribute("src").startswith("data:image/png")
    assert pixels(page) == list(detector.lcas_map(picture(2)).image.size)
    page.get_by_text("Answer as JSON").click()
    assert len(page.get_by_label("JSON").inner_text()) < 5000  # the heat map is shortened
    page.keyboard.press("Tab")
    switch.uncheck()
    expect(page.locator("#statement")).to_be_hidden()
    assert page.locator("#picture").get_attribute("src") == before


def test_stability_is_asked_for_and_shown(page: Page, detector: Detector) -> None:
    page.get_by_label("whether mild changes change the verdict").check()
    give(page, picture(3))
    (found,) = detector.predict(picture(3), stability=True)
    expect(page.get_by_role("row")).to_have_text(
        [f"{name}probability of AI {p:.3f}" for name, p in found.stability.items()]
    )


def test_a_bad_file_gives_an_error_and_the_next_file_works(page: Page, detector: Detector) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for data, name, kind, words in (
        (b"x" * 2 * MAX_BYTES, "huge.png", "image/png", "huge.png is too large: 6 MB"),
        (b"x", "notes.txt", "text/plain", "notes.txt is not an image"),
        (b"", "empty.png", "image/png", "empty.png is empty."),
    ):
        give(page, data, name, kind)
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.locator("#result")).to_be_hidden()
    assert asked == []  # none of them left the page
    for data, words in (
        (b"no picture", "not an image, or of an unsupported format"),
        (picture()[:-30], "damaged image"),
    ):
        give(page, data, "bad.png")
        expect(page.get_by_role("alert")).to_contain_text("bad.png was not scored: ")
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.locator("#result")).to_be_hidden()
    give(page, picture(4))
    expect_answer(page, detector, picture(4))
    expect(page.get_by_role("alert")).to_be_hidden()


SEND = """(target, [type, bytes]) => {
  const data = new DataTransfer();
  const content = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  data.items.add(new File([content], "given.png", { type: "image/png" }));
  const options = { bubbles: true, cancelable: true };
  target.dispatchEvent(type === "drop"
    ? new DragEvent("drop", { ...options, dataTransfer: data })
    : new ClipboardEvent("paste", { ...options, clipboardData: data }));
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_can_be_dropped_or_pasted(way: str, page: Page, detector: Detector) -> None:
    data = picture(5)
    page.locator("body").evaluate(SEND, [way, base64.b64encode(data).decode()])
    expect_answer(page, detector, data)
    expect(page.get_by_role("status")).to_contain_text("given.png: ")


def test_two_visitors_get_their_own_answers(browser: Browser, detector: Detector) -> None:
    gated = Gated(detector)
    with running(gated) as url:
        first, second = (visit(browser, url) for _ in range(2))
        one, other = next(first), next(second)
        give(one, picture(6), "one.png")
        give(other, picture(7), "other.png")
        assert gated.came.acquire(timeout=10)
        expect(one.get_by_role("status")).to_contain_text("Scoring one.png")
        expect(other.get_by_role("status")).to_contain_text("Scoring other.png")
        gated.gate.set()
        expect_answer(one, detector, picture(6))
        expect_answer(other, detector, picture(7))
        for visitor in (first, second):
            assert next(visitor, None) is None


def test_the_last_image_is_the_one_shown(browser: Browser, detector: Detector) -> None:
    gated = Gated(detector)
    with running(gated) as url:
        visitor = visit(browser, url)
        page = next(visitor)
        give(page, picture(8), "early.png")
        assert gated.came.acquire(timeout=10)
        give(page, picture(9), "late.png")
        threading.Timer(0.3, gated.gate.set).start()
        expect_answer(page, detector, picture(9))
        expect(page.get_by_role("status")).to_contain_text("late.png: ")
        gated.gate.clear()
        give(page, picture(8), "slow.png")
        expect(page.get_by_role("status")).to_contain_text("Scoring slow.png")
        give(page, b"", "empty.png")
        gated.gate.set()
        page.wait_for_timeout(300)  # longer than the answer takes
        expect(page.get_by_role("alert")).to_have_text("empty.png is empty.")
        expect(page.locator("#result")).to_be_hidden()
        assert next(visitor, None) is None


def test_a_stopped_server_is_reported(browser: Browser, detector: Detector) -> None:
    context = browser.new_context()
    page = context.new_page()
    with running(detector) as url:
        page.goto(url)
        expect(page.locator("#limits")).to_contain_text("JPEG")
    give(page, picture())
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    context.close()


def test_it_fits_a_narrow_screen(page: Page, detector: Detector) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    give(page, picture(1), "a_name_without_any_place_to_break_that_is_longer_than_a_line.png")
    expect_answer(page, detector, picture(1))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
