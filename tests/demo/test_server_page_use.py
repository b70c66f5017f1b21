"""The page as people use it: typed at, by keyboard alone, on any screen, and read by machines. In Chromium."""

import json
import re

import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
from support.chromium import chromium, expect, faultless_page, is_live, show, tab
from support.looks import LOOK
from support.served import serving

GREEN = "a red circle and a blue square move left over a green field"
BLACK = "a yellow triangle drifts up over a black night"
TABS = "Prompts", "Look", "Input", "Clips", "Speed"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address():
    with serving("--model", "tiny", "--preset", "ultra", "--height", "64", "--width", "96") as (_, address):
        yield address


@pytest.fixture
def page(browser, address):
    with faultless_page(browser, 1280, 720) as page:
        page.goto(address)
        is_live(page)
        yield page


def test_the_time_from_enter_to_the_picture_is_true(page):
    show(page, GREEN)
    page.wait_for_timeout(1500)
    page.evaluate(LOOK)
    page.wait_for_timeout(300)
    show(page, BLACK)
    for _ in range(100):
        if page.evaluate("window.looked.changed"):
            break
        page.wait_for_timeout(50)
    seconds = page.evaluate("(window.looked.changed - window.looked.entered) / 1e3")
    said = page.locator("#arrival-words").inner_text()
    seen, engine = map(float, re.fullmatch(r"Seen ([\d.]+) s after Enter · the engine took ([\d.]+) s", said).groups())
    assert abs(seen - seconds) < 0.1, (said, seconds)  # a frame is shown for 0.06 s, a block for 0.75
    assert 0 < engine < seen + 0.05


def test_what_is_typed_anywhere_goes_to_the_prompt(page):
    prompt = page.locator("#prompt")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.type("1 fox, k o r s f /")  # no letter is a command
    expect(prompt).to_have_value("1 fox, k o r s f /")
    page.keyboard.press("Escape")
    expect(prompt).not_to_have_value("1 fox, k o r s f /")
    page.locator("#pause").focus()
    page.keyboard.type("a boat")
    expect(prompt).to_have_value("a boat")
    page.keyboard.press("Enter")
    page.keyboard.type("a bear")  # at once, in its place
    expect(prompt).to_have_value("a bear")
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+KeyF")
    page.wait_for_timeout(300)
    assert page.evaluate("Boolean(document.fullscreenElement)")
    page.keyboard.type("in full screen")
    expect(prompt).to_have_value("in full screen")
    page.keyboard.press("Escape")
    page.evaluate("document.exitFullscreen()")


def focused(page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")


def test_all_is_done_by_keyboard_alone(page):
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(11):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'") or seen[-1] == "prompt"
    assert seen[:7] == ["pill", "pause", "reset", "overlay", "save", "full", "drawer-button"] and "prompt" in seen
    page.keyboard.press("Alt+KeyD")
    assert focused(page) == "tab-prompts"
    page.keyboard.press("ArrowRight")
    assert focused(page) == "tab-look"
    expect(page.locator("#panel-look")).to_be_visible()
    for _ in range(3):  # the drawer's own button, the panel, the first preset
        page.keyboard.press("Tab")
    assert focused(page) == "quality_stream"
    for _ in range(5):
        page.keyboard.press("Tab")
    assert focused(page) == "ultra"
    page.keyboard.press("Enter")
    expect(page.locator("#presets button[value=ultra]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()
    assert focused(page) == "drawer-button"
    page.keyboard.press("Alt+KeyH")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    page.keyboard.press("Alt+KeyD")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")  # out of the tabs
    while focused(page) != "1":  # the transition's length, chosen by arrows
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#blocks button[value='2']")).to_have_attribute("aria-checked", "true")
    page.keyboard.press("ArrowLeft")


INSIDE = """
() => {
  const seen = [...document.querySelectorAll("button, textarea, input, select")].filter((one) => one.checkVisibility({
    visibilityProperty: true }) && getComputedStyle(one).clipPath === "none" && !one.closest(".panel"));
  return [seen.length, seen.filter((one) => {
    const { left, right, top, bottom } = one.getBoundingClientRect();
    return left < 0 || top < 0 || right > innerWidth + 1 || bottom > innerHeight + 1;
  }).map((one) => one.id || one.textContent)];
}
"""
WIDER = """
() => [...document.querySelectorAll(".panel:not([hidden])")].map((panel) => panel.scrollWidth - panel.clientWidth)
"""


@pytest.mark.parametrize(
    ("width", "height"), [(320, 568), (360, 740), (740, 360), (640, 360), (1920, 1080)]
)  # 640x360 is 1280x720 at 200 %
def test_nothing_is_cut_off(browser, address, width, height):
    with faultless_page(browser, width, height) as page:
        page.goto(address)
        is_live(page)
        page.keyboard.press("Alt+KeyO")
        expect(page.locator("#overlay-figures dd").first).to_be_visible()
        count, outside = page.evaluate(INSIDE)
        assert count >= 8 and outside == []
        picture, figures = (page.locator(name).bounding_box() for name in ("#picture", "#overlay-figures"))
        assert picture["height"] > 0.25 * height
        assert figures["x"] >= picture["x"] and figures["width"] < picture["width"]
        assert page.evaluate("parseFloat(getComputedStyle(document.getElementById('overlay-figures')).fontSize)") >= 10
        for name in TABS:
            tab(page, name)
            assert page.evaluate(WIDER) == [0]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(INSIDE)[1] == []


def faults(axe, page) -> list[str]:
    found = axe.run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:120]} {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(
    "how",
    [
        {"color_scheme": "dark"},
        {"forced_colors": "active", "reduced_motion": "reduce"},
        {"color_scheme": "light", "width": 390, "height": 844},
    ],
    ids=lambda how: "-".join(map(str, how.values())),
)
def test_axe_finds_nothing(browser, address, how):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    with faultless_page(browser, **how) as page:
        page.goto(address)
        is_live(page)
        assert faults(axe, page) == []
        show(page, BLACK)
        for name in TABS:
            tab(page, name)
            page.mouse.move(5, 5)
            assert faults(axe, page) == [], name
        page.keyboard.press("Alt+KeyH")
        assert faults(axe, page) == []


def hear(page, **message) -> None:
    """The server says so."""
    text = json.dumps(message)
    page.evaluate("(data) => channel.dispatchEvent(new MessageEvent('message', { data }))", text)


def test_slow_is_said_with_what_would_help(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Alt+Digit1")
    expect(page.locator("#effective")).to_contain_text("quality stream")
    stats = {"block_ms": 3000.0, "current_ms": 250.0, "p99_ms": 250.0, "fps": 4.0, "prompt_switch_ms": 0.0}
    block = {"type": "block", "frames": 12, "shown_fps": 4.0, "model_fps": 4.0, "prompt": 0}
    said = page.locator("#advice")
    for _ in range(6):
        hear(page, **block, stats=stats | {"frame_count": 1})
    expect(said).to_contain_text(re.compile(r"Slower than real time: 4 of \d+ frames a second"))
    said.get_by_role("button", name="Why?").click()
    expect(page.locator("#speed-words")).to_contain_text("The model takes")
    page.keyboard.press("Escape")
    said.get_by_role("button", name="realtime").click()
    expect(page.locator("#presets button[value=realtime]")).to_have_attribute("aria-pressed", "true")
    for _ in range(6):
        hear(page, **block, stats=stats | {"frame_count": 1})
    expect(said).to_be_visible()
    said.get_by_role("button", name="Not now").click()
    for _ in range(6):
        hear(page, **block, stats=stats | {"frame_count": 1})
    expect(said).to_be_hidden()
    page.keyboard.press("Alt+Digit6")


def test_there_are_controls_for_what_the_server_takes_alone(page):
    hello = {
        "type": "hello",
        "you": "viewer 1",
        "link": "",
        "presets": [],
        "inputs": ["video"],
        "pictures": [],
        "width": 96,
        "height": 64,
        "record_seconds": 0,
    }
    rows = page.locator("#steps-row, #speed-row, #pictures-row, #seed-form, #loras")
    tab(page, "Look")
    hear(page, **hello, commands={"switch_prompt": ["prompt"]})
    for i in range(rows.count()):
        expect(rows.nth(i)).to_be_hidden()
    expect(page.locator("#save")).to_be_hidden()
    tab(page, "Prompts")
    expect(page.locator("#mix-section")).to_be_hidden()
    expect(page.locator("#story-section")).to_be_hidden()

    page.evaluate("() => { window.sent = []; channel.send = (text) => sent.push(JSON.parse(text)); }")
    settings = ["denoising_steps", "playback_speed", "interpolation", "shown_fps", "loras"]
    everything = {"settings": settings, "reset": ["seed"], "replay": ["story"], "switch_prompt": ["prompts"]}
    hear(page, **hello, commands=everything, loras=[{"name": "ink", "scale": 0.8}])
    expect(page.locator("#story-section")).to_be_visible()
    tab(page, "Look")
    for i in range(rows.count()):
        expect(rows.nth(i)).to_be_visible()
    page.locator("#steps button[value='3']").click()
    page.locator("#speed button[value='0.5']").click()
    page.locator("#pictures-shown button[value='60']").click()
    page.locator("#pictures-shown button[value=none]").click()
    page.get_by_label("ink").fill("1.2")
    page.wait_for_timeout(200)
    page.get_by_label("Seed, starts over").fill("5")
    page.get_by_role("button", name="Use", exact=True).click()
    sent = [{name: value for name, value in message.items() if name != "id"} for message in page.evaluate("sent")]
    prompt = page.locator("#prompt").input_value()
    assert sent == [
        {"type": "settings", "denoising_steps": [1000, 500, 250]},
        {"type": "settings", "playback_speed": 0.5},
        {"type": "settings", "interpolation": "blend", "shown_fps": 60},
        {"type": "settings", "interpolation": "none"},
        {"type": "settings", "loras": {"ink": 1.2}},
        {"type": "switch_prompt", "prompt": prompt},
        {"type": "reset", "seed": 5},
    ]


STORY = {
    "version": 1,
    "seed": 3,
    "blocks": 8,
    "prompts": [{"block": 0, "prompt": GREEN}, {"block": 6, "prompt": BLACK}],
}


def test_a_session_is_a_story_that_is_saved_and_played(page, tmp_path):
    page.route("**/story", lambda route: route.fulfill(json=STORY))
    page.evaluate("() => { window.sent = []; channel.send = (text) => sent.push(JSON.parse(text)); }")
    hello = {"you": "viewer 1", "link": "", "presets": [], "inputs": [], "pictures": [], "width": 96, "height": 64}
    hear(page, type="hello", **hello, record_seconds=0, commands={"replay": ["story"]})
    tab(page, "Prompts")
    expect(page.locator("#timeline li")).to_have_text([f"0:00{GREEN}", f"0:04{BLACK}"])
    expect(page.locator("#timeline-length")).to_have_text("0:06 so far, seed 3")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the story").click()
    file = tmp_path / "story.json"
    download.value.save_as(file)
    assert json.loads(file.read_text()) == STORY
    expect(page.locator("#toast")).to_have_text("The story is saved")
    page.set_input_files("#story-file", file)
    for _ in range(100):
        if page.evaluate("sent.length"):
            break
        page.wait_for_timeout(50)
    (message,) = page.evaluate("sent")
    assert message | {"id": 0} == {"type": "replay", "story": STORY, "id": 0}
    file.write_text("no story")
    page.set_input_files("#story-file", file)
    expect(page.locator("#toast")).to_contain_text("is no story file")


def test_a_story_file_is_played_by_the_server(page, tmp_path):
    file = tmp_path / "story.json"
    file.write_text(json.dumps(STORY | {"height": 64, "width": 96, "preset": "realtime"}))
    tab(page, "Prompts")
    page.set_input_files("#story-file", file)
    expect(page.locator("#replaying")).to_contain_text(re.compile(r"Playing a story: 0:0\d of 0:06"))
    expect(page.locator("#prompt")).to_have_value(GREEN)
    expect(page.locator("#effective")).to_contain_text("Seed3")
    expect(page.locator("#effective")).to_contain_text("realtime")
    expect(page.locator("#prompt")).to_have_value(BLACK)
    expect(page.locator("#replaying")).to_be_hidden()
    file.write_text(json.dumps(STORY | {"blocks": -1}))
    page.set_input_files("#story-file", file)
    expect(page.locator("#toast")).to_contain_text("blocks")
    page.keyboard.press("Alt+Digit6")


def test_a_story_is_stopped_or_prompted_away(page, tmp_path):
    """By the button, and by who writes a prompt: the video goes on from there."""
    file = tmp_path / "story.json"
    prompts = [{"block": 0, "prompt": GREEN}, {"block": 12, "prompt": BLACK}]
    story = {"version": 1, "seed": 3, "blocks": 80, "height": 64, "width": 96, "preset": "ultra", "prompts": prompts}
    file.write_text(json.dumps(story))
    tab(page, "Prompts")
    said = page.locator("#replaying")
    for stop in ("button", "prompt"):
        page.set_input_files("#story-file", file)
        expect(said).to_contain_text(re.compile("Playing a story: 0:0[1-4] of 1:00"))
        expect(page.locator("#prompt")).to_have_value(GREEN)
        if stop == "button":
            said.get_by_role("button", name="Stop").click()
        else:
            page.evaluate("document.activeElement.blur()")
            page.keyboard.type("a white cro")
            page.wait_for_timeout(500)
            expect(said).to_be_visible()  # it is not sent yet
            page.keyboard.type("ss")
            page.keyboard.press("Enter")
        expect(said).to_be_hidden()
    expect(page.locator("#arrival")).to_have_attribute("data-phase", "arrived")
    page.wait_for_timeout(8000)  # the story would have changed the prompt
    expect(page.locator("#prompt")).to_have_value("a white cross")
    expect(page.locator("#effective")).to_contain_text("Seed3")


def test_live_regions_do_not_chatter(page):
    page.evaluate("""() => {
      window.said = [];
      for (const region of document.querySelectorAll("[role=status], [role=alert]")) {
        new MutationObserver(() => said.push(region.id + ": " + region.textContent))
          .observe(region, { childList: true, subtree: true, characterData: true });
      }
    }""")
    page.wait_for_timeout(2000)  # blocks come, figures change
    quiet = page.evaluate("said.filter((line) => !line.startsWith('advice'))")
    assert len(quiet) <= 1, quiet  # that it is live, if that was only said now
    show(page, BLACK + ".")
    page.wait_for_timeout(1800)
    lines = page.evaluate("said.filter((line) => !line.startsWith('advice'))")[len(quiet) :]
    assert lines == [f"announce: Seen: {BLACK}."]


def test_what_was_seen_is_kept_and_begun_again(page, address):
    seed = page.locator("#seed").input_value()
    show(page, GREEN)
    show(page, BLACK)
    page.wait_for_timeout(1500)  # for its picture
    page.reload()
    is_live(page)
    tab(page, "Prompts")
    words = page.locator("#history .words")
    expect(words).to_have_text([BLACK, GREEN])
    expect(page.locator("#history img")).to_have_count(2)
    expect(page.locator("#history small").first).to_have_text(re.compile(f"ultra · seed {seed} · 96×64"))
    words.nth(1).click()
    expect(page.locator("#prompt")).to_have_value(GREEN)
    expect(words).to_have_text([GREEN, BLACK])  # once it is seen
    tab(page, "Look")
    page.get_by_label("Seed, starts over").fill("7")
    page.get_by_label("Seed, starts over").press("Enter")
    expect(page.locator("#effective")).to_contain_text("Seed7")
    tab(page, "Prompts")
    page.locator("#history .whole").nth(1).click()  # with its own seed
    expect(page.locator("#prompt")).to_have_value(BLACK)
    expect(words).to_have_text([BLACK, GREEN])
    expect(page.locator("#effective")).to_contain_text(f"Seed{seed}")
    page.get_by_role("button", name="Forget these").click()
    expect(page.locator("#history-section")).to_be_hidden()


def test_prompts_are_mixed_by_weight(page):
    tab(page, "Prompts")
    page.get_by_label("Prompt 1 of the mix").fill(GREEN)
    page.get_by_label("Prompt 2 of the mix").fill(BLACK)
    page.get_by_role("button", name="Show the mix").click()
    expect(page.locator("#arrival")).to_have_attribute("data-phase", "arrived")
    expect(page.locator("#prompt")).to_have_value(f"{GREEN} (0.5) + {BLACK} (0.5)")
    page.get_by_label("Weight of prompt 2").fill("0.9")
    expect(page.locator("#prompt")).to_have_value(f"{GREEN} (0.5) + {BLACK} (0.9)")
    page.get_by_role("button", name="One more").click()
    expect(page.get_by_label("Prompt 3 of the mix")).to_be_focused()
    page.get_by_label("Prompt 3 of the mix").fill("  ")
    page.keyboard.press("Enter")  # a line without words counts for nothing
    show(page, GREEN)
    expect(page.locator("#prompt")).to_have_value(GREEN)


def test_watch_is_the_video_alone(browser, address):
    with faultless_page(browser, 640, 360) as page:
        page.goto(address + "watch?clean=1")
        for _ in range(200):
            if page.evaluate("document.getElementById('video').videoWidth"):
                break
            page.wait_for_timeout(100)
        assert page.evaluate("document.body.innerText.trim()") == "LongLive"  # the unseen heading
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
        box = page.locator("#video").bounding_box()
        assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 640, 360)
        page.goto(address + "watch")
        expect(page.locator("#caption")).to_have_text(re.compile("over a"))
