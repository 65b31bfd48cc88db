"""What tests of the report do in a browser: open it, click and choose."""

import contextlib
import json
from pathlib import Path

import pytest
from headless import Browser, chromium

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no chromium on this machine to open the report in")

READY = "document.documentElement.classList.contains('ready')"
CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
READOUT = "document.getElementById('readout').textContent"
SVG, SOFT = "{http://www.w3.org/2000/svg}", "rgb(83, 92, 104)"
TIP = "document.querySelector('.tip').hidden ? null : document.querySelector('.tip').textContent"


@contextlib.contextmanager
def opened(url: str, tmp_path, **window):
    """Open the page and wait for its script. At the end, assert that it fetched nothing and logged nothing."""
    with Browser(tmp_path / "profile", **window) as browser:
        browser.open(url)
        browser.until(READY)
        browser.run(CHECKS)
        yield browser
        asked = {address.partition("#")[0] for address in browser.requests() if not address.startswith("data:")}
        assert asked == {url.partition("#")[0]}
        assert browser.complaints() == []


def wrong(browser: Browser) -> dict[str, list[str]]:
    """Faults of accessibility, by kind."""
    return {what: found for what, found in browser.run("accessible()").items() if found}


def centre(browser: Browser, element: str) -> tuple[float, float]:
    """Scroll to an element and return the position of its centre in the window."""
    browser.run(f"({element}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    # Two frames later the page is scrolled and has had the event.
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = browser.run(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(({element}).getBoundingClientRect())"
    )
    return tuple(box)


def click(browser: Browser, element: str) -> None:
    """Click an element with the mouse. A browser lets a page save ten files after each click of a reader."""
    x, y = centre(browser, element)
    for kind in ("mousePressed", "mouseReleased"):
        browser.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def choose(browser: Browser, select: str, label: str) -> None:
    """Choose an option by its label."""
    browser.run(
        f"(() => {{ const list = document.querySelector({json.dumps(select)});"
        f"list.value = [...list.options].find(one => one.text === {json.dumps(label)}).value;"
        "list.dispatchEvent(new Event('change')); })()"
    )
