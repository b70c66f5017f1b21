"""The overlay: what it shows, where, and that it changes nothing else. How it blends is tests/kernels' matter."""

import dataclasses
import itertools
import math
import subprocess
import sys

import pytest
import torch

from longlive_optimized.demo.scope_integration.glyphs import _FILE, ASCII, PAD, face
from longlive_optimized.demo.scope_integration.overlay import LatencyOverlay, OverlayConfig, create_latency_overlay
from longlive_optimized.demo.scope_integration.panel import ERROR, GOOD, WARNING, WHITE, Panel
from longlive_optimized.engine.latency import LatencyStats

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
SIZES = [(320, 576), (480, 832), (1080, 1920), (832, 480), (100, 150), (16, 16), (7, 400), (400, 7)]
STATS = LatencyStats(
    current_ms=32.5, mean_ms=31.2, p99_ms=34.1, max_ms=34.3, fps=31.2, frame_count=1234, cuda_graphs_active=True
)


def grey(*shape, dtype=torch.uint8):
    return torch.full(shape, 100, dtype=dtype) if dtype == torch.uint8 else torch.full(shape, 100 / 255).to(dtype)


def changed(frame, was=100):
    """Rows and columns of an HWC picture that are not ``was`` any more: first and last of each, or None."""
    spots = (frame != was).any(-1).nonzero()
    return (*spots.amin(0).tolist(), *spots.amax(0).tolist()) if len(spots) else None


def has(frame, colour) -> bool:
    return bool((frame == torch.tensor(colour, dtype=torch.uint8)).all(-1).any())


def drawn(overlay, stats=STATS, height=480, width=832):
    return overlay.apply(grey(height, width, 3), stats)


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_stands_in_its_corner(height, width, position):
    frame = drawn(create_latency_overlay(position, opacity=1.0), height=height, width=width)
    top, left, bottom, right = changed(frame)
    margin = round(0.025 * min(height, width))
    rows, columns = bottom - top + 1, right - left + 1
    if min(height, width) >= 320:
        gaps = {"top": top, "bottom": height - 1 - bottom, "left": left, "right": width - 1 - right}
        assert [gaps[side] for side in position.split("-")] == [margin, margin]
        assert rows < 0.7 * height and columns < 0.36 * width
    else:
        assert rows <= height and columns <= width


def test_text_grows_with_the_picture():
    widths = [changed(drawn(create_latency_overlay("top-left"), height=h, width=w))[3] for h, w in SIZES[:3]]
    assert widths[0] < widths[1] < widths[2] / 1.7
    small, large = (changed(drawn(create_latency_overlay("top-left", scale=s)))[3] for s in (1.0, 1.5))
    assert large > 1.4 * small


def test_is_scaled_down_before_it_is_cropped():
    roomy, tight = (changed(drawn(create_latency_overlay("top-left", scale=s, opacity=1.0))) for s in (1.5, 4.0))
    assert tight[2] <= 479 and tight[2] > roomy[2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["HWC", "CHW", "THWC", "CHW of HWC", "HWC of CHW"])
def test_layouts_and_dtypes_show_the_same(dtype, layout):
    want = drawn(create_latency_overlay(show_latency_graph=False), height=320, width=576).double() / 255
    frame = {
        "HWC": lambda: grey(320, 576, 3, dtype=dtype),
        "CHW": lambda: grey(3, 320, 576, dtype=dtype),
        "THWC": lambda: grey(4, 320, 576, 3, dtype=dtype),
        "CHW of HWC": lambda: grey(320, 576, 3, dtype=dtype).permute(2, 0, 1),
        "HWC of CHW": lambda: grey(3, 320, 576, dtype=dtype).permute(1, 2, 0),
    }[layout]()
    shape, strides = frame.shape, frame.stride()
    out = create_latency_overlay(show_latency_graph=False).apply(frame, STATS)
    assert out is frame and out.shape == shape and out.stride() == strides and out.dtype == dtype
    out = out.permute(1, 2, 0) if layout.startswith("CHW") else out
    out = out.double() / (255 if dtype == torch.uint8 else 1)
    assert (out - want).abs().max() <= (0 if dtype == torch.uint8 else 1.5 / 255)


def test_three_at_both_ends_is_taken_for_channels_last():
    frame = grey(3, 40, 3)
    drawn_rows = create_latency_overlay(margin=0).apply(frame, STATS)
    expected = create_latency_overlay(margin=0).apply(grey(1, 3, 40, 3), STATS)[0]
    assert torch.equal(drawn_rows, expected)


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (0, 64, 3), (2, 64, 0, 3), (1, 1, 3), (2, 2, 3)], ids=str)
def test_next_to_nothing(shape):
    assert create_latency_overlay().apply(grey(*shape), STATS).shape == shape


def test_writes_to_frames_of_any_origin():
    want = drawn(create_latency_overlay(), height=64, width=64)
    with torch.inference_mode():
        frame = grey(64, 64, 3)
    assert torch.equal(create_latency_overlay().apply(frame, STATS), want)
    leaf = grey(64, 64, 3, dtype=torch.float32).requires_grad_()
    assert create_latency_overlay().apply(leaf, STATS) is leaf
    assert not torch.equal(leaf.detach(), grey(64, 64, 3, dtype=torch.float32))


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (None, TypeError),
        ([[1, 2, 3]], TypeError),
        (torch.zeros(4, 5), ValueError),
        (torch.zeros(4, 5, 6), ValueError),
        (torch.zeros(1, 5, 6), ValueError),
        (torch.zeros(2, 3, 5, 6), ValueError),
        (torch.zeros(1, 1, 5, 6, 3), ValueError),
        (torch.zeros(5, 6, 3, dtype=torch.int32), ValueError),
        (torch.zeros(5, 6, 3, dtype=torch.float64), ValueError),
        (torch.zeros(1, 5, 6, 3).expand(4, -1, -1, -1), ValueError),
    ],
)
def test_a_bad_frame_is_named(frame, error):
    with pytest.raises(error, match="frame must"):
        create_latency_overlay().apply(frame, STATS)


@pytest.mark.parametrize("stats", [None, 3, [1.0], "fast"])
def test_bad_stats_are_named_and_nothing_is_drawn(stats):
    frame = grey(64, 64, 3)
    with pytest.raises(TypeError, match="stats must"):
        create_latency_overlay().apply(frame, stats)
    assert changed(frame) is None


def test_a_dict_says_the_same_as_the_object():
    want = drawn(create_latency_overlay())
    fields = dataclasses.asdict(STATS)
    assert torch.equal(drawn(create_latency_overlay(), fields | {"weather": "fine"}), want)
    del fields["static_kv_active"], fields["prompt_cache_hits"]  # as their defaults
    assert torch.equal(drawn(create_latency_overlay(), fields), want)
    assert torch.equal(drawn(create_latency_overlay(), {}), drawn(create_latency_overlay(), LatencyStats()))


def test_what_is_not_a_number_is_a_dash():
    odd = {"fps": math.nan, "max_ms": math.inf, "mean_ms": -math.inf, "current_ms": math.nan, "frame_count": None}
    pictures = [
        drawn(create_latency_overlay(), dict.fromkeys(odd, value)) for value in (math.nan, math.inf, None, "soon")
    ]
    assert all(torch.equal(p, pictures[0]) for p in pictures)
    assert not torch.equal(pictures[0], drawn(create_latency_overlay(), LatencyStats()))
    drawn(create_latency_overlay(), odd)


@pytest.mark.parametrize("value", [1e-9, 0.05, 99.95, 999.95, 12345.6, 1e7, 1e30, -5.0])
def test_any_number_fits_its_line(value):
    """No figure reaches its label: the first columns look as they do with other figures."""
    stats = {name: value for name in ("current_ms", "mean_ms", "p99_ms", "max_ms", "fps", "frame_count")}
    stats["cuda_graphs_active"] = True
    usual, odd = (drawn(create_latency_overlay(show_latency_graph=False), s) for s in (STATS, stats))
    _, left, _, _ = changed(usual)
    labels = slice(48, 141), slice(left, left + 52)  # below the large figure
    assert torch.equal(usual[labels], odd[labels])
    assert not torch.equal(usual[:141], odd[:141])


@pytest.mark.parametrize(
    ("milliseconds", "colour"),
    [(0.1, GOOD), (34.99, GOOD), (35, WARNING), (39.99, WARNING), (40, ERROR), (4000, ERROR)],
)
@pytest.mark.parametrize("field", ["current_ms", "mean_ms", "p99_ms", "max_ms"])
def test_thresholds_colour_the_figures(field, milliseconds, colour):
    overlay = create_latency_overlay(opacity=1.0, show_latency_graph=False, show_optimizations=False)
    frame = drawn(overlay, {field: milliseconds, "current_ms": math.nan} | {field: milliseconds})
    shown = {c for c in (GOOD, WARNING, ERROR) if has(frame, c)}
    assert shown == ({colour} if field == "current_ms" or colour != GOOD else set())
    assert has(frame, WHITE)


def test_own_thresholds():
    config = OverlayConfig(latency_warning_ms=5, latency_error_ms=8, opacity=1.0, show_latency_graph=False)
    for milliseconds, colour in ((4.9, GOOD), (5, WARNING), (8, ERROR)):
        assert has(drawn(LatencyOverlay(config), {"current_ms": milliseconds, "static_kv_active": True}), colour)


def bars(overlay, stats, frames=1):
    """Bars of each colour, counted along the lowest row of the graph."""
    frame = overlay.apply(torch.zeros(frames, 480, 832, 3, dtype=torch.uint8), stats)[0]
    row = frame[changed(frame, was=0)[2] - 12].int()
    found, last = dict.fromkeys((GOOD, WARNING, ERROR), 0), None
    for pixel in row:
        near = [colour for colour in found if (pixel - torch.tensor(colour)).abs().max() < 60]
        if near and near != last:
            found[near[0]] += 1
        last = near
    return found


def feed(overlay, milliseconds, times=1, frames=1):
    for _ in range(times):
        found = bars(overlay, {"current_ms": milliseconds}, frames=frames)
    return found


def graph(history, **fields):
    return create_latency_overlay(opacity=1.0, graph_history=history, **fields)


def test_one_bar_for_each_frame_newest_last():
    overlay = graph(10)
    assert feed(overlay, 20) == {GOOD: 1, WARNING: 0, ERROR: 0}
    assert feed(overlay, 36, 2) == {GOOD: 1, WARNING: 2, ERROR: 0}
    assert feed(overlay, 50) == {GOOD: 1, WARNING: 2, ERROR: 1}


def test_the_history_has_its_length():
    overlay = graph(10)
    feed(overlay, 50)
    assert feed(overlay, 20, 9) == {GOOD: 9, WARNING: 0, ERROR: 1}
    assert feed(overlay, 20) == {GOOD: 10, WARNING: 0, ERROR: 0}


def test_a_block_counts_its_frames():
    assert feed(graph(20), 20, frames=12) == {GOOD: 12, WARNING: 0, ERROR: 0}


def test_reset_forgets():
    overlay = graph(10)
    feed(overlay, 50, 3)
    overlay.reset()
    assert feed(overlay, 20) == {GOOD: 1, WARNING: 0, ERROR: 0}


@pytest.mark.parametrize("later", [0, 1, 60, 119])
def test_one_slow_frame_of_many_is_seen(later):
    overlay = graph(120)
    feed(overlay, 50)
    found = feed(overlay, 20, frames=later) if later else feed(overlay, math.nan)
    assert found[ERROR] == 1
    assert feed(overlay, 20, frames=120 - later)[ERROR] == 0


@pytest.mark.parametrize("milliseconds", [0.0, -1.0, math.nan, math.inf])
def test_no_measurement_is_no_bar(milliseconds):
    assert sum(feed(graph(10), milliseconds).values()) == 0


def test_bars_rise_with_latency_and_stay_inside():
    rises = []
    for milliseconds in (5, 15, 30, 38, 1e6):
        overlay = graph(10, latency_warning_ms=38, latency_error_ms=40, show_optimizations=False)
        frame = overlay.apply(torch.zeros(480, 832, 3, dtype=torch.uint8), {"current_ms": milliseconds})
        panel = changed(frame, was=0)
        newest = frame[panel[2] - 50 : panel[2], panel[3] - 13].int()
        rises.append(int((newest.amax(-1) > 150).sum()))
    assert rises == sorted(rises) and len(set(rises)) == 4 and rises[-1] == rises[-2] < 35


def test_lists_only_what_is_active():
    active = ("cuda_graphs_active", "torch_compile_active", "static_kv_active", "async_vae_active")
    heights = []
    for count in range(5):
        frame = drawn(create_latency_overlay("top-left"), {name: i < count for i, name in enumerate(active)})
        heights.append(changed(frame)[2])
    assert all(b - a == heights[1] - heights[0] > 0 for a, b in itertools.pairwise(heights))
    single = [drawn(create_latency_overlay(), {name: True}) for name in active]
    assert all(not torch.equal(single[i], single[j]) for i in range(4) for j in range(i))


def test_shows_the_precision():
    pictures = [drawn(create_latency_overlay(), {"precision": p}) for p in ("bf16", "fp8", "x" * 100, "µ")]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(pictures))
    assert changed(pictures[0]) == changed(pictures[2])


def test_parts_can_be_left_out():
    bottom = {
        (graph_on, list_on): changed(
            drawn(create_latency_overlay(show_latency_graph=graph_on, show_optimizations=list_on))
        )[2]
        for graph_on in (True, False)
        for list_on in (True, False)
    }
    assert bottom[True, True] > bottom[True, False] > bottom[False, False]
    assert bottom[True, True] > bottom[False, True] > bottom[False, False]


def test_opacity_scales_the_whole_panel():
    none, half, full = (drawn(create_latency_overlay(opacity=o)).double() for o in (0.0, 0.5, 1.0))
    assert (none == 100).all()
    assert ((half - 100) - (full - 100) / 2).abs().max() <= 1.5


def test_draws_again_only_when_something_changed(monkeypatch):
    draws = []
    draw = Panel.draw
    monkeypatch.setattr(Panel, "draw", lambda *a: draws.append(1) or draw(*a))
    overlay = graph(24)
    frame = drawn(overlay)
    for _ in range(2):
        drawn(overlay, {**dataclasses.asdict(STATS), "current_ms": math.nan})
    assert len(draws) == 2  # the second dash is like the first
    drawn(overlay, STATS, height=320, width=576)
    assert len(draws) == 3
    overlay.reset()
    assert torch.equal(drawn(overlay), frame)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position", "middle"),
        ("opacity", 1.01),
        ("opacity", -0.1),
        ("opacity", math.nan),
        ("show_latency_graph", "perhaps"),
        ("show_optimizations", None),
        ("graph_history", 0),
        ("graph_history", 2.5),
        ("latency_warning_ms", 0),
        ("latency_warning_ms", 41.0),
        ("latency_error_ms", math.inf),
        ("latency_error_ms", 34.0),
        ("margin", -0.1),
        ("margin", 0.6),
        ("scale", 0),
        ("scale", 5),
        ("colour", "red"),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        create_latency_overlay(**{field: value})


def test_bad_config_is_named():
    with pytest.raises(TypeError, match="config must be an OverlayConfig"):
        LatencyOverlay({"position": "top-left"})


def test_promised_defaults():
    config = LatencyOverlay().config
    assert config == OverlayConfig(
        position="top-right", opacity=0.8, show_latency_graph=True, show_optimizations=True, graph_history=120,
        latency_warning_ms=35.0, latency_error_ms=40.0,
    )  # fmt: skip
    assert create_latency_overlay("bottom-left", opacity=0.7).config == OverlayConfig(
        position="bottom-left", opacity=0.7
    )


@pytest.mark.parametrize("size", [9, 12, 16, 17, 23, 40, 64])
def test_every_character_has_ink_and_digits_one_width(size):
    regular = face("regular", size)
    assert regular.size == size
    for character in ASCII:
        assert regular.line(character).any() == (character != " "), character
    assert len({regular.width(digit) for digit in "0123456789"}) == 1
    assert regular.line("pg").shape == (regular.line("x").shape[0], regular.width("pg") + 2 * PAD)
    assert (regular.line("é") == regular.line("?")).all()
    cap = regular.line("H").any(axis=1).nonzero()[0]
    assert cap[-1] == regular.baseline - 1 and abs(len(cap) - regular.cap_height) <= 1


def test_the_glyphs_are_small():
    assert _FILE.stat().st_size < 50_000


def test_imports_without_anything_optional():
    code = """
import sys
for name in ("PIL", "cv2", "scope", "triton", "av"):
    sys.modules[name] = None
import torch
from longlive_optimized.demo.scope_integration.overlay import create_latency_overlay
frame = torch.zeros(320, 576, 3, dtype=torch.uint8)
assert create_latency_overlay().apply(frame, {"current_ms": 20.0}).any()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnGpu:
    @pytest.mark.parametrize("shape", [(3, 480, 832), (480, 832, 3), (12, 480, 832, 3)], ids=str)
    def test_shows_the_same_as_on_the_cpu(self, shape):
        on_cpu, on_gpu = create_latency_overlay(), create_latency_overlay()
        for step in range(30):
            stats = {"current_ms": 20 + step, "frame_count": step}
            want = on_cpu.apply(grey(*shape), stats)
            assert torch.equal(on_gpu.apply(grey(*shape).cuda(), stats).cpu(), want)

    def test_waits_for_nothing_and_no_copy_is_overtaken(self):
        frames = torch.full((100, 320, 576, 3), 100, dtype=torch.uint8, device="cuda")
        overlay, twin = create_latency_overlay(), create_latency_overlay()
        overlay.apply(frames[0].clone(), STATS)
        overlay.reset()
        torch.cuda.synchronize()
        torch.cuda._sleep(400_000_000)  # the device lags far behind the host
        torch.cuda.set_sync_debug_mode("error")
        try:
            for i, frame in enumerate(frames):
                overlay.apply(frame, {"current_ms": 20 + i / 5, "frame_count": i})
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for i, frame in enumerate(frames.cpu()):
            assert torch.equal(frame, twin.apply(grey(320, 576, 3), {"current_ms": 20 + i / 5, "frame_count": i}))

    def test_follows_the_current_stream(self):
        overlay = create_latency_overlay(show_latency_graph=False)
        want = drawn(create_latency_overlay(show_latency_graph=False))
        for _ in range(3):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                torch.cuda._sleep(20_000_000)
                frame = overlay.apply(grey(480, 832, 3).cuda(), STATS)
            stream.synchronize()
            assert torch.equal(frame.cpu(), want)
