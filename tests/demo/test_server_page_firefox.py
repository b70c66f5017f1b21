"""The page in Firefox, driven by Mozilla's own Marionette, which needs no driver beside it. Skipped without either."""

import os
import re
import shutil
import socket
import time
from importlib import resources

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("marionette_driver", reason="marionette-driver is not installed")
from marionette_driver import By
from marionette_driver.keys import Keys
from marionette_driver.marionette import Marionette

from support.served import serving

FIREFOX = os.environ.get("FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")
PROMPT = "a yellow triangle drifts up over a black night"
SEEN = re.compile(r"Seen ([\d.]+) s after Enter · the engine took ([\d.]+) s")
PREFS = {  # any page may know this machine's address and play video
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "media.autoplay.default": 0,
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
}


def own_address() -> str:
    """An address of this machine that is no loopback's, which Firefox would not take; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback's")
        return probe.getsockname()[0]


@pytest.fixture(scope="module")
def address():
    if FIREFOX is None:
        pytest.skip("there is no Firefox: apt-get install firefox-esr")
    options = "--model", "tiny", "--preset", "ultra", "--height", "64", "--width", "96", "--ice-address", own_address()
    with serving(*options) as (_, address):
        yield address


@pytest.fixture(scope="module")
def firefox(address, tmp_path_factory):
    log = str(tmp_path_factory.mktemp("firefox") / "log")
    driver = Marionette(bin=FIREFOX, headless=True, host="127.0.0.1", port=0, prefs=PREFS, gecko_log=log)
    driver.start_session()
    driver.timeout.script = 60
    driver.set_window_rect(width=1280, height=800)
    driver.navigate(address)
    wait(lambda: "live" in text(driver, "pill"))
    yield driver
    driver.quit()
    driver.cleanup()


def wait(condition, seconds: float = 40.0):
    """What the condition gives, once it holds."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def text(driver, name: str) -> str:
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", script_args=[name])


def test_a_prompt_typed_anywhere_is_seen_and_timed(firefox):
    firefox.find_element(By.CSS_SELECTOR, "body").send_keys(PROMPT)
    box = firefox.find_element(By.ID, "prompt")
    assert box.get_property("value") == PROMPT
    box.send_keys(Keys.ENTER)
    found = wait(lambda: SEEN.fullmatch(text(firefox, "arrival-words")))
    seen, engine = map(float, found.groups())
    assert 0 < engine < seen + 0.05 and seen < 10
    wait(lambda: firefox.execute_script("return document.querySelectorAll('#history img').length") == 1)


def test_pictures_tell_their_time_stamps(firefox):
    """By which arrivals are exact."""
    script = "const [done] = arguments; document.getElementById('video').requestVideoFrameCallback((now, m) => done(m))"
    one, other = firefox.execute_async_script(script), firefox.execute_async_script(script)
    assert (other["rtpTimestamp"] - one["rtpTimestamp"]) % 2**32 < 90_000 * 10


def test_a_webcam_goes_in(firefox):
    firefox.find_element(By.ID, "drawer-button").click()
    firefox.find_element(By.ID, "tab-input").click()
    firefox.find_element(By.CSS_SELECTOR, "#sources button[value=webcam]").click()
    wait(lambda: text(firefox, "input-note") == "Your video is what the picture starts from.")
    firefox.find_element(By.CSS_SELECTOR, "#sources button[value=none]").click()
    wait(lambda: text(firefox, "input-note") == "")


def test_axe_finds_nothing(firefox):
    pytest.importorskip("axe_playwright_python", reason="pip install axe-playwright-python")
    source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    for name in ("prompts", "look", "input", "clips", "speed"):
        if firefox.execute_script("return document.getElementById('drawer').hidden"):
            firefox.find_element(By.ID, "drawer-button").click()
        firefox.find_element(By.ID, f"tab-{name}").click()
        script = (
            f"{source}; const [done] = arguments; axe.run().then(({{ violations }}) => done(violations.map((one) => "
            "one.id + ': ' + one.nodes.map(({ html }) => html).join())))"
        )
        assert firefox.execute_async_script(script) == [], name
