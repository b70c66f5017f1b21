"""Chromium, driven by Playwright, and what tests of the page do with it. Skipped where there is none.

Playwright is told which Chromium to drive: its own downloads are not needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator

import pytest

from .served import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # for busy machines
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required "
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream"  # a webcam that shows a green screen
)
# The page keeps its connections to itself; this remembers them, to be asked what they decoded.
REMEMBER = """
const Original = RTCPeerConnection; window.peers = [];
window.RTCPeerConnection = class extends Original {
  constructor(...all) { super(...all); peers.push(this); }
  createDataChannel(...all) { return (window.channel = super.createDataChannel(...all)); }
};
"""
RECEIVED = """
async () => {
  const report = [...(await peers.at(-1).getStats()).values()].find((r) => r.type === "inbound-rtp");
  return { decoded: report.framesDecoded, freezes: report.freezeCount };
}
"""


@contextlib.contextmanager
def chromium() -> Iterator[sync_api.Browser]:
    """A browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@contextlib.contextmanager
def faultless_page(browser, width: int = 960, height: int = 640, **how) -> Iterator[sync_api.Page]:
    """A page that may not log an error."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **how)
    context.add_init_script(REMEMBER)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors


def is_live(page) -> None:
    """Wait until pictures come."""
    expect(page.locator("#pill")).to_have_text(re.compile("live"), timeout=60_000)


@contextlib.contextmanager
def live_page(*options: str, **how) -> Iterator[sync_api.Page]:
    """The page of ``serve`` with these options, when pictures come."""
    with serving(*options) as (_, address), chromium() as browser:
        page = browser.new_page(**how)
        page.goto(address)
        is_live(page)
        yield page


def plays(page, frames: int) -> dict:
    """What happened while so many frames were decoded."""
    before, now = page.evaluate(RECEIVED), None
    for _ in range(600):
        now = page.evaluate(RECEIVED)
        if now["decoded"] >= before["decoded"] + frames:
            return {name: now[name] - before[name] for name in now}
        page.wait_for_timeout(100)
    raise AssertionError(f"{before}, a minute later {now}")


def tab(page, name: str) -> None:
    """Look at a tab of the drawer."""
    if page.locator("#drawer").is_hidden():
        page.locator("#drawer-button").click()
    page.get_by_role("tab", name=name).click()


def show(page, prompt: str) -> None:
    """Type a prompt wherever the focus is, and wait until it is seen."""
    page.evaluate("document.activeElement.blur()")
    page.keyboard.type(prompt)
    page.keyboard.press("Enter")
    expect(page.locator("#arrival")).to_have_attribute("data-phase", re.compile("arriv"))
    expect(page.locator("#arrival")).to_have_attribute("data-phase", "arrived")
