"""LoRAs' sliders on the page: turned in the shared stream, seen in the others. In Chromium."""

import json
import re

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
from support.chromium import chromium, expect, faultless_page, is_live, tab
from support.loras import for_the_built_in_model
from support.served import serving


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    files = [for_the_built_in_model(folder / f"{name}.safetensors", i) for i, name in enumerate(("ink", "oil"))]
    loras = "--lora", f"{files[0]}:0.8", "--lora", f"{files[1]}:2.5"
    with serving("--preset", "ultra", "--sessions", "2", *loras) as (_, address):
        yield address


def in_force(page, text: str, seconds: float = 20) -> None:
    expect(page.locator("#effective")).to_contain_text(f"LoRAs{text}", timeout=1e3 * seconds)


def test_sliders_turn_loras_for_all(browser, address, tmp_path):
    """By mouse and by keys; who watches another stream sees it, and who turned; and the session is played again."""
    with faultless_page(browser) as page, faultless_page(browser) as other, faultless_page(browser) as guest:
        for each, path in ((page, ""), (other, ""), (guest, "s/lobby/")):
            each.goto(address + path)
            is_live(each)
            tab(each, "Look")
            in_force(each, "ink 0.80, oil 2.50")
        ink, oil = page.get_by_label("ink"), page.get_by_label("oil")
        expect(ink).to_have_value("0.8")
        expect(oil).to_have_value("2.5")
        assert [oil.get_attribute(name) for name in ("min", "max")] == ["-1", "3"]
        expect(page.locator("#loras")).to_contain_text("For all streams of this server.")
        expect(guest.locator("#loras")).to_contain_text("not turned in this one")
        expect(guest.get_by_label("ink")).to_be_disabled()

        ink.scroll_into_view_if_needed()
        box = ink.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.down()
        for i in range(12):
            page.mouse.move(box["x"] + box["width"] * (0.5 - i / 60), box["y"] + box["height"] / 2)
            page.wait_for_timeout(50)
        page.mouse.up()
        turned = float(ink.input_value())
        assert -1 < turned < 0.5
        for each in (page, other, guest):
            in_force(each, f"ink {turned:.2f}, oil 2.50")
            expect(each.get_by_label("ink")).to_have_value(f"{turned:g}")
        expect(guest.locator("#toast")).to_have_text("viewer 1 of main turned a LoRA, for all streams")

        oil.focus()
        page.keyboard.press("ArrowLeft")
        in_force(guest, f"ink {turned:.2f}, oil 2.45")
        page.get_by_role("tab", name="Look").focus()
        page.keyboard.press("ArrowLeft")
        other.get_by_label("oil").fill("-0.5")  # while the first viewer's has been moved and has the last word no more
        in_force(page, f"ink {turned:.2f}, oil -0.50")
        expect(oil).to_have_value("-0.5")
        expect(page.locator("#lora-1-value")).to_have_text("-0.50")

        for _ in range(100):  # until a block is made with it
            if page.request.get(f"{address}story").json().get("changes", [{}])[-1].get("loras") == {
                "oil.safetensors": -0.5
            }:
                break
            page.wait_for_timeout(100)
        tab(page, "Prompts")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the story").click()
        file = tmp_path / "story.json"
        download.value.save_as(file)
        story = json.loads(file.read_text())
        assert story["loras"] == {"ink.safetensors": 0.8, "oil.safetensors": 2.5}
        expect(page.locator("#toast")).to_contain_text("put it beside ink.safetensors, oil.safetensors")
        assert story["changes"][-1]["loras"] == {"oil.safetensors": -0.5}
        page.set_input_files("#story-file", file)
        expect(page.locator("#replaying")).to_contain_text(re.compile("Playing a story"))
        in_force(guest, "ink 0.80, oil 2.50")
        in_force(guest, f"ink {turned:.2f}, oil -0.50", seconds=60)  # a replay takes as long as the session
        guest.set_input_files("#story-file", file)
        expect(guest.locator("#toast")).to_contain_text("story has other scales of LoRAs than are in force")
        file.write_text(json.dumps(story | {"loras": {"chalk.pt": 1}, "changes": []}))
        page.set_input_files("#story-file", file)
        expect(page.locator("#toast")).to_contain_text("LoRAs that are not served here, chalk.pt")


LISTEN = """() => channel.addEventListener("message", ({ data }) => {
  const message = JSON.parse(data);
  if (message.type === "state") window.told = message;
})"""
HEAR = """(loras) => channel.dispatchEvent(new MessageEvent("message", { data: JSON.stringify({ ...told, loras }) }))"""


def test_a_slider_that_is_moved_stays_in_its_viewers_hand(browser, address):
    """Whatever the server says meanwhile; it rests where that said."""
    with faultless_page(browser) as page:
        page.goto(address)
        is_live(page)
        tab(page, "Look")
        page.evaluate(LISTEN)
        page.locator("#pause").click()
        page.wait_for_function("window.told?.paused")
        page.evaluate("() => { channel.send = () => {}; }")  # the server is not told any more
        ink = page.get_by_label("ink")
        ink.fill("0.5")
        page.evaluate(HEAR, [{"name": "ink", "scale": 1.5}, {"name": "oil", "scale": -4.5}])
        expect(ink).to_have_value("0.5")
        expect(page.get_by_label("oil")).to_have_value("-4.5")  # the range follows
        page.wait_for_timeout(1200)
        expect(ink).to_have_value("1.5")
        expect(page.locator("#lora-0-value")).to_have_text("1.50")
