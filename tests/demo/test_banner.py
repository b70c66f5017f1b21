"""The banner: what it covers, how long, and that it changes nothing else."""

import pytest
import torch

from longlive_optimized.demo.scope_integration import banner as banners
from longlive_optimized.demo.scope_integration.banner import SECONDS, Banner
from longlive_optimized.demo.scope_integration.glyphs import face

LONG = "style.safetensors: 12 tensors are for no module of this model, and ignored: " + "blocks.40.self_attn.q, " * 20
SIZES = [(320, 576), (480, 832), (1080, 1920), (832, 480), (64, 96), (16, 16), (16, 400), (400, 16)]


def grey(*shape):
    return torch.full(shape, 120, dtype=torch.uint8)


def shown(text: str) -> Banner:
    banner = Banner()
    banner.show(text)
    return banner


@pytest.mark.parametrize("text", ["no VACE", LONG, "x" * 400, " ", "–×… é 日本"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("at_top", [False, True])
def test_covers_the_edge_asked_for_and_at_most_half_of_the_picture(height, width, at_top, text):
    frames = shown(text).draw(grey(2, height, width, 3), 0.0, at_top)
    rows = (frames[0] != 120).any(-1).any(-1).nonzero().flatten()
    assert torch.equal(frames[0], frames[1])
    assert len(rows) <= max(height // 2 + 14, 16)
    assert (rows[0] == 0) if at_top else (rows[-1] == height - 1)
    assert len(rows) == rows[-1] - rows[0] + 1


def test_stays_for_its_seconds_from_when_it_is_first_drawn():
    banner, plain = shown("no VACE"), grey(1, 64, 96, 3)
    first = banner.draw(plain.clone(), 100.0)
    assert not torch.equal(first, plain)
    assert torch.equal(banner.draw(plain.clone(), 100.0 + SECONDS), first)
    for later in (100.1 + SECONDS, 100.0):  # and does not come again
        assert torch.equal(banner.draw(plain.clone(), later), plain)
    banner.show("another")
    assert not torch.equal(banner.draw(plain.clone(), 500.0), plain)


def test_the_last_message_counts_and_none_draws_nothing():
    plain = grey(1, 320, 576, 3)
    banner = shown("the first")
    banner.draw(plain.clone(), 0.0)
    banner.show("the second")
    assert torch.equal(banner.draw(plain.clone(), 1.0), shown("the second").draw(plain.clone(), 9.0))
    banner.show("")
    assert torch.equal(banner.draw(plain.clone(), 2.0), plain)
    assert torch.equal(Banner().draw(plain.clone(), 0.0), plain)


def test_lines_are_broken_between_words_and_cut_with_dots():
    regular = face("regular", 12)
    width = regular.width("two words here")
    assert banners._lines(regular, "two words here and more", width, 4) == ["two words here", "and more"]
    assert banners._lines(regular, "two words here and more", width, 1)[0].endswith("...")
    parts = banners._lines(regular, "a" * 100, width, 40)
    assert "".join(parts) == "a" * 100 and all(regular.width(part) <= width for part in parts)


def test_a_panel_is_drawn_once(monkeypatch):
    made, panel = [], banners._panel
    monkeypatch.setattr(banners, "_panel", lambda *args: made.append(1) or panel(*args))
    banner = shown("no VACE")
    for _ in range(5):
        banner.draw(grey(12, 64, 96, 3), 0.0)
    assert made == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_the_same_on_a_gpu():
    frames = grey(12, 320, 576, 3)
    assert torch.equal(shown(LONG).draw(frames.cuda(), 0.0).cpu(), shown(LONG).draw(frames.clone(), 0.0))
