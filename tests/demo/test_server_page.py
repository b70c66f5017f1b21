"""The page in Chromium, against the real command."""

import contextlib
import http.server
import io
import re
import signal
import threading

import av
import numpy as np
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.chromium import chromium, expect, faultless_page, is_live, plays, show, tab
from support.served import serving

TOKEN = "correct-horse-battery"
PAINTED = """
(id) => {
  const canvas = document.getElementById(id), pen = canvas.getContext("2d");
  const colours = new Set(new Uint32Array(pen.getImageData(0, 0, canvas.width, canvas.height).data.buffer));
  return colours.size;
}
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    with faultless_page(browser) as page:
        yield page


@pytest.fixture(scope="module")
def address():
    with serving("--preset", "quality_stream", "--token", TOKEN) as (_, address):  # the lowest frame rate
        yield address


def test_watch_write_choose_and_save(page, address):
    page.goto(address)
    is_live(page)
    page.wait_for_timeout(2000)  # the browser settles on a buffer
    # A busy machine may hold everything up for a moment: one quiet stretch out of ten shows what the page can do.
    stretches = []
    while not stretches or stretches[-1]["freezes"]:
        assert len(stretches) < 10, stretches
        stretches.append(plays(page, frames=60))

    first = page.locator("#prompt").input_value()
    show(page, "a paper boat on a lake")
    expect(page.locator("#prompt")).to_have_value("a paper boat on a lake")
    assert re.fullmatch(r"Seen \d+\.\d\d s after Enter.*", page.locator("#arrival-words").inner_text())
    tab(page, "Prompts")
    expect(page.locator("#history .words")).to_have_text(["a paper boat on a lake"])
    expect(page.locator("#history img")).to_have_attribute("src", re.compile("^data:image/"))
    page.get_by_text("Try", exact=True).click()  # folded since something was seen
    page.locator("#examples button").first.click()
    expect(page.locator("#prompt")).to_have_value(re.compile("red circle"))
    expect(page.locator("#guide-help")).to_contain_text("triangle")
    page.focus("#prompt")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#prompt")).to_have_value("a paper boat on a lake")
    page.keyboard.press("Escape")
    expect(page.locator("#prompt")).not_to_have_value("a paper boat on a lake")
    assert first

    tab(page, "Look")
    page.locator("#presets button[value=realtime]").click()
    expect(page.locator("#effective")).to_contain_text("1000 500 250")
    expect(page.locator("#effective")).to_contain_text("float32")
    expect(page.locator("#effective")).to_contain_text(re.compile(r"Memory\d+\.\d GiB"))
    expect(page.locator("#presets button[value=realtime]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Alt+Digit5")  # turbo
    expect(page.locator("#effective")).to_contain_text("int8")

    tab(page, "Speed")
    expect(page.locator("#chart")).to_have_attribute(
        "aria-label", re.compile(r"Last block \d+ ms of \d+ ms, [\d.]+ frames a second")
    )
    for _ in range(100):
        if page.evaluate(PAINTED, "chart") > 5:  # bars, lines and figures, smoothed
            break
        page.wait_for_timeout(50)
    assert page.evaluate(PAINTED, "chart") > 5
    expect(page.locator("#figures")).to_contain_text(re.compile(r"Enter to picture\d+\.\d\d s"))

    tab(page, "Prompts")
    page.locator("#blocks button").nth(2).click()
    expect(page.locator("#blocks button").nth(2)).to_have_attribute("aria-checked", "true")
    page.keyboard.press("Alt+KeyO")
    expect(page.locator("#overlay-figures")).to_contain_text("fps")
    page.keyboard.press("Alt+KeyK")
    expect(page.locator("#pill")).to_have_text("paused")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    is_live(page)

    page.evaluate("channel.send('{')")  # answered by an error without an id
    expect(page.locator("#toast")).to_contain_text("Invalid JSON")
    page.evaluate('channel.send(\'{"type": "exit", "id": 7}\')')  # that of nothing that the page asked
    expect(page.locator("#toast")).to_contain_text("exit")

    with page.expect_download() as download:
        page.keyboard.press("Alt+KeyS")
    assert re.fullmatch(r"longlive-.*\.mp4", download.value.suggested_filename)
    with open(download.value.path(), "rb") as file, av.open(io.BytesIO(file.read())) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) >= 60 and frames[0].shape == (128, 192, 3) and frames[-1].std() > 5


def test_two_pages_busy_gone_and_back(page, browser):
    with serving("--viewers", "1") as (server, address):
        page.goto(address)
        is_live(page)
        second = browser.new_page()
        second.goto(address)
        expect(second.locator("#veil-title")).to_have_text("The server is busy")
        expect(second.locator("#veil-text")).to_contain_text("No seat is free, of 1")
        second.close()

        server.send_signal(signal.SIGINT)
        expect(page.locator("#veil-title")).to_have_text("The server is gone", timeout=20_000)
        expect(page.locator("#presets button").first).to_be_disabled()
        assert server.wait(20) == 0
    with serving(port=int(address.rstrip("/").rpartition(":")[2])):
        is_live(page)  # by itself
        expect(page.locator("#presets button").first).to_be_enabled()
        plays(page, frames=10)


def test_a_token_is_asked_for_and_taken_from_the_address(page, address):
    page.goto(address.partition("#")[0])
    expect(page.locator("#veil-text")).to_contain_text("A token is needed")
    page.goto("about:blank")
    page.goto(address)
    is_live(page)
    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(asked) > 5 and not any(TOKEN in name for name in asked)


def test_readable_on_a_phone(page, address):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(address)
    is_live(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    tab(page, "Prompts")
    heights = page.evaluate("[...document.querySelectorAll('button')].map((b) => b.offsetHeight).filter((h) => h)")
    assert min(heights) >= 28 and len(heights) > 15


ELSEWHERE = """
async ({ server, kinds, bundlePolicy, label, gathered }) => {
  const peer = new RTCPeerConnection({ bundlePolicy }), heard = [];
  for (const kind of kinds) peer.addTransceiver(kind, { direction: "recvonly" });
  const channel = peer.createDataChannel(label);
  channel.onmessage = ({ data }) => heard.push(JSON.parse(data).type);
  await peer.setLocalDescription();
  for (let i = 0; gathered && i < 100 && peer.iceGatheringState !== "complete"; i++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const headers = { "Content-Type": "application/json" }, body = JSON.stringify(peer.localDescription);
  const answer = await fetch(`${server}offer`, { method: "POST", headers, body });
  const content = await answer.json();
  if (!answer.ok) return content;
  await peer.setRemoteDescription(content);
  let decoded = 0;
  for (let i = 0; i < 200 && decoded < 3; i++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const reports = [...(await peer.getStats()).values()].filter((one) => one.type === "inbound-rtp");
    decoded = Math.max(0, ...reports.map((one) => one.framesDecoded ?? 0));
  }
  const directions = peer.getTransceivers().map((one) => one.currentDirection);  // rejected ones are gone
  const state = peer.connectionState;
  peer.close();
  return { decoded, state, directions, hello: heard[0] };
}
"""


@contextlib.contextmanager
def page_elsewhere():
    """The origin of an empty page of another server."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://localhost:{other.server_port}"
        other.shutdown()


def test_a_page_elsewhere_watches_with_whatever_it_offers(browser):
    with (
        page_elsewhere() as origin,
        page_elsewhere() as stranger,
        serving("--origin", origin, "--sessions", "2") as (_, server),
    ):
        page = browser.new_page()
        page.goto(origin)
        for kinds in (["video"], ["audio", "video"], ["video", "audio"], ["video", "video"]):
            for policy in ("balanced", "max-bundle", "max-compat"):
                offer = {
                    "server": server,
                    "kinds": kinds,
                    "bundlePolicy": policy,
                    "label": "chat ☂",
                    "gathered": True,
                }
                for _ in range(120):
                    found = page.evaluate(ELSEWHERE, offer)
                    if found.get("code") not in ("loading", "busy"):
                        break
                    page.wait_for_timeout(500)
                kept = policy == "max-bundle" and kinds[0] == "audio"  # or Chromium would not take the answer
                wanted = {
                    "state": "connected",
                    "directions": ["recvonly"] if not kept else ["inactive", "recvonly"],
                    "hello": "hello",
                }
                assert found.pop("decoded", 0) >= 3 and found == wanted, (kinds, policy, found)
        trickled = {**offer, "kinds": ["audio", "video"], "bundlePolicy": "balanced", "gathered": False}
        assert page.evaluate(ELSEWHERE, trickled)["decoded"] >= 3
        assert page.evaluate(ELSEWHERE, {**offer, "server": server + "s/lobby/"})["decoded"] >= 3
        found = page.evaluate(ELSEWHERE, {**offer, "kinds": ["audio"]})
        assert "addTransceiver('video'" in found["error"]
        assert (
            page.evaluate("(server) => fetch(server + 'recording.mp4').then((answer) => answer.status)", server) == 200
        )
        page.goto(stranger)
        failed = page.evaluate("(server) => fetch(server + 'status').catch((error) => String(error))", server)
        assert "Failed to fetch" in failed
        page.close()


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """The address of a server whose model has a control module."""
    model = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "tiny", control=True)
    with serving("--model", str(model), "--control", "--preset", "ultra") as (_, address):
        yield address


def comes_in(page, words: str) -> None:
    note = page.locator("#input-note")
    expect(note).to_have_text(re.compile(rf"Your video is {words}\.$"), timeout=20_000)


def source(page, name: str):
    return page.get_by_role("radio", name=name)


@pytest.fixture
def clip(tmp_path):
    """A file of video that Chromium plays."""
    with av.open(str(tmp_path / "clip.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for i in range(25):
            picture = np.full((96, 128, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return tmp_path / "clip.webm"


def status(page) -> dict:
    return page.evaluate("fetch('status').then((answer) => answer.json())")["input"]


def becomes(page, **wanted) -> None:
    """The server says so, soon."""
    for _ in range(200):
        found = status(page)
        if all(found[name] == value for name, value in wanted.items()):
            return
        page.wait_for_timeout(100)
    raise AssertionError(found)


def test_a_webcam_and_a_file_go_in(page, steered, clip):
    page.goto(steered)
    is_live(page)
    tab(page, "Input")
    assert status(page)["use"] is None
    source(page, "Webcam").click()
    comes_in(page, "what the picture starts from")
    expect(source(page, "Webcam")).to_have_attribute("aria-checked", "true")
    assert page.evaluate("document.getElementById('preview').srcObject.active")
    expect(page.locator("#noise-row")).to_be_visible()
    expect(page.locator("#scale-row")).to_be_hidden()
    plays(page, frames=30)  # what is made goes on coming
    becomes(page, use="video", receiving=True)
    assert status(page)["by"].startswith("viewer")
    page.locator("#noise").fill("0.3")
    source(page, "Follow it").click()
    comes_in(page, "followed")
    expect(page.locator("#scale-row")).to_be_visible()
    becomes(page, use="control", noise_scale=0.3)

    page.set_input_files("#video-file", clip)
    expect(source(page, "File…")).to_have_attribute("aria-checked", "true")
    comes_in(page, "followed")
    page.wait_for_timeout(3500)  # it begins again, and again, and the server waits for frames no longer than this
    comes_in(page, "followed")
    plays(page, frames=30)

    source(page, "None").click()
    expect(page.locator("#input-note")).to_have_text("")
    expect(page.locator("#preview")).to_be_hidden()
    becomes(page, use=None)


def test_a_webcam_ends_with_its_connection(page, steered):
    page.goto(steered)
    is_live(page)
    tab(page, "Input")
    source(page, "Webcam").click()
    comes_in(page, ".*")
    camera = page.evaluate_handle("document.getElementById('preview').srcObject.getTracks()[0]")
    page.evaluate("peers.at(-1).close()")
    expect(page.locator("#preview")).to_be_hidden(timeout=30_000)
    assert camera.evaluate("(track) => track.readyState") == "ended"


def test_another_viewer_takes_over(page, browser, steered):
    page.goto(steered)
    is_live(page)
    tab(page, "Input")
    source(page, "Webcam").click()
    comes_in(page, ".*")
    other = browser.new_page()
    other.goto(steered)
    is_live(other)
    tab(other, "Input")
    expect(other.locator("#input-note")).to_have_text(re.compile("viewer \\d+'s video is"))
    source(other, "Webcam").click()
    comes_in(other, ".*")
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.locator("#toast")).to_contain_text("changed the input")
    assert page.evaluate("document.getElementById('preview').srcObject") is None
    other.close()
    expect(page.locator("#input-note")).to_have_text("", timeout=30_000)


DROP = """
([type, place, width]) => new Promise(async (resolve) => {
  const canvas = Object.assign(document.createElement("canvas"), { width, height: 80 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "rgb(200, 30, 60)";
  pen.fillRect(0, 0, width, 80);
  const data = new DataTransfer(), blob = await new Promise((done) => canvas.toBlob(done));
  data.items.add(new File([type.startsWith("image/") ? blob : "text"], "dropped", { type }));
  const event = (name) => new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true });
  const target = document.querySelector(place);
  target.dispatchEvent(event("dragover"));
  resolve([document.body.classList.contains("dragging"), target.dispatchEvent(event("drop"))]);
})
"""


def test_pictures_are_dropped_shown_and_removed(page, browser, steered):
    page.goto(steered)
    is_live(page)
    tab(page, "Input")
    reference, first = (page.locator(f"#pictures li[data-role={role}]") for role in ("reference", "first_frame"))
    assert page.evaluate(DROP, ["image/png", "body", 300]) == [True, False]  # anywhere
    expect(reference).to_have_class(re.compile("given"))
    assert status(page)["pictures"] == ["reference"]
    size, colour = page.evaluate(
        "(() => { const c = document.querySelector('#pictures canvas');"
        "return [[c.width, c.height], [...c.getContext('2d').getImageData(3, 3, 1, 1).data]]; })()"
    )
    assert size == [48, 32] and colour == [200, 30, 60, 255]  # the model's size, covered
    page.evaluate(DROP, ["image/png", "#pictures li[data-role=first_frame]", 100])
    expect(first).to_have_class(re.compile("given"))
    expect(page.locator("#scale-row")).to_be_visible()
    other = browser.new_page()
    other.goto(steered)
    is_live(other)
    tab(other, "Input")
    expect(other.locator("#pictures .given")).to_have_count(2)
    expect(other.locator("#pictures .given canvas").first).to_be_hidden()  # it has not seen the picture
    other.close()
    plays(page, frames=30)
    for role in (reference, first):
        role.locator(".remove").click()
        expect(role).not_to_have_class(re.compile("given"))
    becomes(page, pictures=[])
    page.evaluate(DROP, ["text/plain", "body", 10])
    expect(page.locator("#toast")).to_contain_text("Only a picture or a video")


def test_what_the_model_cannot_do_is_not_offered(page, address):
    page.goto(address)
    is_live(page)
    tab(page, "Input")
    for there, name in [(True, "#sources"), (False, "#uses"), (False, "#pictures")]:
        expect(page.locator(name)).to_be_visible(visible=there)
    page.evaluate(DROP, ["image/png", "body", 100])
    expect(page.locator("#toast")).to_contain_text("takes no pictures")
    source(page, "Webcam").click()  # video to start from is always taken
    comes_in(page, "what the picture starts from")


def test_no_webcam_is_said(page, address):
    page.add_init_script("navigator.mediaDevices.getUserMedia = async () => { throw new Error('it is busy'); }")
    page.goto(address)
    is_live(page)
    tab(page, "Input")
    source(page, "Webcam").click()
    expect(page.locator("#toast")).to_contain_text("No input: it is busy")
    expect(source(page, "None")).to_have_attribute("aria-checked", "true")
    page.set_input_files("#video-file", {"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"none"})
    expect(page.locator("#toast")).to_contain_text("a.mp4 is no video that this browser plays")


def test_the_last_choice_counts_and_a_webcam_may_go(page, steered):
    page.add_init_script("""
      const original = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        await new Promise((resolve) => setTimeout(resolve, 300));
        return (window.camera = await original(wanted));
      };
    """)
    page.goto(steered)
    is_live(page)
    tab(page, "Input")
    source(page, "Webcam").click()
    source(page, "None").click()  # before it is there
    for _ in range(100):
        if page.evaluate("window.camera?.getTracks()[0].readyState") == "ended":
            break
        page.wait_for_timeout(50)
    assert page.evaluate("window.camera.getTracks()[0].readyState") == "ended"
    becomes(page, use=None)
    assert page.locator("#preview").is_hidden()
    source(page, "Webcam").click()
    comes_in(page, ".*")
    page.evaluate("window.camera.getTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.locator("#input-note")).to_have_text("")
    becomes(page, use=None)


def test_a_stream_of_ones_own_a_queue_and_a_link_to_share(browser):
    private = ("--private", "--sessions", "1", "--keep", "0.5", "--token", TOKEN)
    with serving(*private) as (_, address), contextlib.ExitStack() as stack:
        contexts = [browser.new_context() for _ in range(3)]
        for context in contexts:
            stack.callback(context.close)
        first, second, friend = (context.new_page() for context in contexts)
        contexts[0].grant_permissions(["clipboard-read", "clipboard-write"])
        first.goto(address.replace("#", "?preset=ultra&seed=7#"))
        expect(first).to_have_url(re.compile(r"/s/p-[\w-]{16}/\?preset=ultra&seed=7#token="))
        is_live(first)
        expect(first.locator("#presets button[value=ultra]")).to_have_attribute("aria-pressed", "true")

        second.goto(address)
        expect(second.locator("#veil-title")).to_have_text("You are number 1 in the queue", timeout=60_000)
        expect(second.locator("#pill")).to_have_text("number 1 in the queue")

        tab(first, "Clips")
        first.get_by_role("button", name="Copy link", exact=True).click()
        expect(first.locator("#toast")).to_contain_text("is copied")
        link = first.evaluate("navigator.clipboard.readText()")
        assert TOKEN not in link and link.partition("/s/")[2].partition("/")[0] in first.url
        friend.goto(link)
        is_live(friend)
        expect(friend.locator("#people")).to_contain_text("2 watching")
        assert friend.evaluate("fetch('/status').then((answer) => answer.status)") == 401

        friend.goto("about:blank")
        first.goto("about:blank")
        is_live(second)
