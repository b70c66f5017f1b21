"""A stream that goes on from its snapshot in another engine, against the one that went on undisturbed."""

import itertools
import json
import pickle
import random
import struct
import time
import zlib
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors.torch import load, save_file

from longlive_optimized import BlockRequest, Control, LongLiveEngine, OptimizationConfig
from longlive_optimized.config import PRESETS, StreamSettings
from longlive_optimized.engine.rank_calls import packed, unpacked
from longlive_optimized.engine.recache import NOTHING, plan_rebuild, plan_recache
from longlive_optimized.engine.snapshot import Snapshot
from longlive_optimized.engine.stream import Stream
from longlive_optimized.model.ring_cache import RingCache
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from longlive_optimized.weights.user_lora import UserLora
from support.rings import poison

SIZE = {"height": 32, "width": 48}
A, B = "a red circle", "a white cross"
GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.randint(0, 256, (80, 2, 3, 3), dtype=torch.uint8, generator=GENERATOR)
PICTURES = PICTURES.repeat_interleave(16, 1).repeat_interleave(16, 2)


@pytest.fixture(scope="module")
def other() -> LongLiveEngine:
    """Another engine of the same model."""
    return LongLiveEngine("tiny", OptimizationConfig(**SIZE), device="cpu")


def made(engine, stream, requests):
    """Each block's new latents and pictures."""
    blocks = []
    for request in requests:
        pictures = engine.generate_block(BlockRequest(request) if isinstance(request, str) else request, stream)
        blocks.append((stream.history[-3:], pictures))
    return blocks


def moved(stream, other, **how):
    """The stream from its snapshot, as bytes, in another engine, over storage that holds nothing yet."""
    new = other.open_stream(snapshot=Snapshot.from_bytes(stream.snapshot(**how).to_bytes()))
    poison(new.ring)
    return new


def distance(one, two):
    """Of latents relative, of pictures the mean and the largest difference, of all blocks together."""
    latents, pictures = zip(*((x - y, a.int() - b.int()) for (x, a), (y, b) in zip(one, two, strict=True)), strict=True)
    norm = torch.cat([x for x, _ in one]).norm()
    apart = torch.cat(pictures).abs().float()
    return (torch.cat(latents).norm() / norm).item(), apart.mean().item(), apart.max().item()


def assert_same(one, two):
    for (x, a), (y, b) in zip(one, two, strict=True):
        assert torch.equal(x, y) and a.shape == b.shape
        assert (a.int() - b.int()).abs().max() <= 1 and (a != b).float().mean() < 1e-3


def go_on(engine, other, before, after, **settings):
    """The blocks ``after`` those ``before``, of the undisturbed stream and of its snapshot's."""
    stream = engine.open_stream(seed=5, **settings)
    made(engine, stream, before)
    new = moved(stream, other)
    assert new.position == stream.position and new.settings == stream.settings
    return made(engine, stream, after), made(other, new, after)


@pytest.mark.parametrize("blocks", [0, 1, 2, 5, 8])
def test_all_is_the_same_while_latents_reach_back_to_the_beginning(engine, other, blocks):
    for (x, a), (y, b) in zip(*go_on(engine, other, [A] * blocks, [A] * 3), strict=True):
        assert torch.equal(x, y) and torch.equal(a, b)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_goes_on_after_a_switch(engine, other, name):
    settings = {field: value for field, value in PRESETS[name].items() if field in StreamSettings.__annotations__}
    assert_same(*go_on(engine, other, [A] * 6 + [B] * 4, [B] * 3, **settings))


CASES = {
    "a switch with the next block": ([A] * 10, [B] * 3),
    "a switch behind": ([A] * 10 + [B], [B] * 3),
    "an early switch": ([A] * 2 + [B] * 4, [B] * 3),
    "two switches": ([A] * 5 + [B] * 2 + [A] * 3, [A] * 2 + [B] * 2),
    "in the midst of a transition": ([A] * 6 + [BlockRequest(B, transition_blocks=5)] * 2, [B] * 5),
    "a transition turned back": ([A] * 6 + [BlockRequest(B, transition_blocks=5)] * 2, [A] * 3),
    "a slow arc of two prompts": (
        [A] * 6 + [BlockRequest([(A, 0.3), (B, 1.1)], "slerp", transition_blocks=4, transition_from_source=True)] * 2,
        [BlockRequest([(A, 0.3), (B, 1.1)], "slerp")] * 4,
    ),
    "another seed and fewer steps": (
        [A] * 3 + [BlockRequest(A, seed=9)] * 2,
        [A, BlockRequest(A, denoising_steps=(1000, 250)), A],
    ),
    "a reset": ([A] * 3, [BlockRequest(B, reset=True, seed=8), B]),
    "a restart in a transition": (
        [A] * 3 + [BlockRequest(B, transition_blocks=5)] * 2,
        [BlockRequest(B, restart=True), B],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_goes_on(engine, other, case):
    assert_same(*go_on(engine, other, *CASES[case]))


@pytest.mark.parametrize(
    "settings",
    [
        {"global_sink": False},
        {"positions": "base"},
        {"local_attn_size": 10, "sink_size": 1},
        {"local_attn_size": 9, "sink_size": 0},
        {"step_schedule": "scope", "denoising_steps": (1000, 500)},
        {"precision": "int8"},
        {"precision": "int8", "sink_size": 0},
    ],
)
def test_settings_go_on(engine, other, settings):
    assert_same(*go_on(engine, other, [A] * 6 + [B] * 3, [B, B, A], **settings))


@pytest.mark.parametrize("restart_at", [9, 12])
def test_a_video_begins_again_where_it_would_have(engine, other, restart_at):
    assert_same(*go_on(engine, other, [A, B, B], [B] * 4, restart_at=restart_at))


@pytest.mark.parametrize("model", ["tiny", "random"])
@pytest.mark.parametrize("settings", [{}, {"global_sink": False}, {"sink_size": 0}])
def test_far_from_the_last_recache_little_differs(engine, other, tmp_path, model, settings):
    if model == "random":
        folder = make_checkpoint(tmp_path / "model", "tiny", seed=3)
        engine, other = (LongLiveEngine(folder, OptimizationConfig(**SIZE), device="cpu") for _ in range(2))
    one, two = go_on(engine, other, [A] * 5 + [B] * 9, [B] * 2, **settings)
    latents, mean, largest = distance(one, two)
    # Pictures: 8 latents of context that the decoder of random weights remembers in part, see the docstring.
    assert latents < (1e-4 if "sink_size" not in settings else 1e-3) and mean < 0.01 and largest <= 1


def test_sinks_keep_their_prompt(engine, other):
    """A rebuild that told the sinks today's prompt would differ by more."""
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 5 + [B] * 9)
    kept, told_anew = moved(stream, other), moved(stream, other)
    told_anew.sink_pass = told_anew.sink_pass._replace(embedding=told_anew.prompt.embedding)
    wanted, *found = (made(e, s, [B]) for e, s in ((engine, stream), (other, kept), (other, told_anew)))
    near, far = (distance(wanted, blocks)[0] for blocks in found)
    assert near < far / 10


def test_more_latents_stay_exact_for_longer(engine, other):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 5 + [B] * 9)
    new = moved(stream, other, latents=36)
    assert_same(made(engine, stream, [B] * 2), made(other, new, [B] * 2))


@pytest.mark.parametrize("latents", [11, 65, 12.5, True, "24"])
def test_a_number_of_latents_that_cannot_be_kept_is_named(engine, latents):
    with pytest.raises(ValueError, match=r"latents must be a whole number in 12\.\.64"):
        engine.open_stream().snapshot(latents=latents)


def test_a_snapshot_changes_nothing(engine, other):
    plain, disturbed = (engine.open_stream(seed=5) for _ in range(2))
    requests = [A] * 3 + [BlockRequest(B, transition_blocks=3)] * 3
    wanted = made(engine, plain, requests)
    snapshots, found = [], []
    for request in requests:
        found += made(engine, disturbed, [request])
        snapshots.append(disturbed.snapshot())
        assert snapshots[-1].ready()
    for (x, a), (y, b) in zip(wanted, found, strict=True):
        assert torch.equal(x, y) and torch.equal(a, b)
    # Nor do later blocks change it.
    early = other.open_stream(snapshot=snapshots[1])
    assert_same(wanted[2:], made(other, early, requests[2:]))


def test_it_can_be_passed_on_at_once(engine, other):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A, A])
    first = moved(stream, other)
    second = moved(first, engine)  # before its first block
    wanted = made(engine, stream, [A, B])
    assert_same(wanted, made(other, first, [A, B]))
    assert_same(wanted, made(engine, second, [A, B]))


def contents(snapshot):
    """State and tensors of its bytes."""
    data = snapshot.to_bytes()
    tensors = load(data[16:])
    return json.loads(bytes(tensors.pop("state").numpy())), tensors


def same(one, two):
    (state, tensors), (other_state, others) = map(contents, (one, two))
    assert state == other_state and tensors.keys() == others.keys()
    return all(torch.equal(x, others[name]) for name, x in tensors.items())


def test_bytes_and_pickles_give_it_back(engine, other):
    stream = engine.open_stream(seed=2**63 - 1, restart_at=99)
    video = BlockRequest([(A, 0.1), (B, 0.7)], video=PICTURES[:13], noise_from_motion=True, transition_blocks=3)
    for request in (A, BlockRequest(B, transition_blocks=4), B, BlockRequest(A, transition_blocks=2), video):
        snapshot = stream.snapshot()
        for again in (Snapshot.from_bytes(snapshot.to_bytes()), pickle.loads(pickle.dumps(snapshot))):
            assert again.state == snapshot.state and again.settings == stream.settings and same(again, snapshot)
            new = other.open_stream(snapshot=again)
            assert same(new.snapshot(), snapshot)
        engine.generate_block(BlockRequest(request) if isinstance(request, str) else request, stream)
    assert stream.snapshot().tensors.keys() >= {"motion", "embedding0", "embedding1"}


def test_it_travels_to_other_ranks(snapshot):
    tensors = []
    sent = json.dumps(packed({"snapshot": snapshot}, tensors, {}))
    assert same(unpacked(json.loads(sent), tensors, {})["snapshot"], snapshot)


def test_the_rest_of_a_block_goes_on(engine, other):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 2)
    first = engine.generate_block(BlockRequest(A), stream, first_latent_only=True)
    new = moved(stream, other)
    assert len(first) == 4
    assert torch.equal(engine.rest_of_block(stream), other.rest_of_block(new))
    assert_same(made(engine, stream, [A]), made(other, new, [A]))
    with pytest.raises(RuntimeError, match="no frames"):
        other.rest_of_block(new)


def test_a_video_of_known_length_draws_on(engine, other):
    stream = engine.open_stream(seed=5, total_frames=15)
    made(engine, stream, [A] * 2)
    new = moved(stream, other)
    assert_same(made(engine, stream, [A] * 3), made(other, new, [A] * 3))
    with pytest.raises(ValueError, match="15 latent frames"):
        other.generate_block(BlockRequest(A), new)


def test_a_block_that_failed_is_drawn_again_as_it_was(engine, other, monkeypatch):
    stream = engine.open_stream(seed=5, total_frames=15)
    made(engine, stream, [A])
    with monkeypatch.context() as broken:
        broken.setattr(stream.decoder, "decode_uint8", lambda latents: 1 / 0)
        broken.setattr(stream, "reset", lambda: None)
        with pytest.raises(ZeroDivisionError):
            engine.generate_block(BlockRequest(B), stream)
    stream.decoder_lost = False
    new = moved(stream, other)
    assert_same(made(engine, stream, [B] * 2), made(other, new, [B] * 2))


@pytest.mark.parametrize("window", [9, 21])
def test_another_window_before_or_after_it(engine, other, window):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 6)
    after = moved(stream, other)
    stream.configure(local_attn_size=window)
    before = moved(stream, other)
    after.configure(local_attn_size=window)
    wanted = made(engine, stream, [A] * 2)
    assert_same(wanted, made(other, before, [A] * 2))
    assert_same(wanted, made(other, after, [A] * 2))


def test_a_window_that_grew_over_new_sinks(engine, other):
    stream = engine.open_stream(seed=5, global_sink=False)
    made(engine, stream, [A] * 6 + [B] * 2)
    stream.configure(local_attn_size=21, global_sink=True)
    new = moved(stream, other)
    assert distance(made(engine, stream, [B] * 2), made(other, new, [B] * 2))[0] < 0.1


def test_lora_scales_are_the_engine_s(tmp_path):
    shapes = {"A": (4, 256), "B": (256, 4)}
    weights = {f"blocks.0.cross_attn.k.lora_{half}.weight": torch.randn(shape) for half, shape in shapes.items()}
    save_file(weights, path := tmp_path / "lora.safetensors")
    config = OptimizationConfig(**SIZE)
    one, two = (LongLiveEngine("tiny", config, "cpu", loras=[UserLora(path, scale)]) for scale in (0.2, 0.8))
    stream = one.open_stream(seed=5)
    made(one, stream, [A] * 6)
    new = moved(stream, two)
    two.set_loras([UserLora(path, 0.2)])  # recaches the sinks too, as here
    one.set_loras([UserLora(path, 0.2)])
    assert_same(made(one, stream, [A] * 2), made(two, new, [A] * 2))
    new = moved(stream, two)
    assert_same(made(one, stream, [A] * 2), made(two, new, [A] * 2))


def clip(i):
    """The i-th block's share of a video."""
    start = 12 * i + (i > 0)
    return PICTURES[start : start + 12 + (i == 0)].float().cumsum(0).div(12).to(torch.uint8)


@pytest.mark.parametrize("kind", ["video", "motion", "control"])
def test_pictures_that_come_in_go_on_without_a_cut(engine, other, kind):
    if kind == "control":
        engine, other = (LongLiveEngine("tiny", replace(engine.config, control=True), "cpu") for _ in range(2))

    def request(i):
        if kind == "control":
            return BlockRequest(A, control=Control(clip(i)))
        return BlockRequest(A, video=clip(i), noise_scale=0.7, noise_from_motion=kind == "motion")

    stream = engine.open_stream(seed=5)
    made(engine, stream, [request(i) for i in range(3)])
    new, unaware = moved(stream, other), moved(stream, other)
    unaware.encoder_lost = False
    if kind == "control":
        unaware.control_input.reset()
    wanted, *found = (
        made(e, s, [request(i) for i in (3, 4)]) for e, s in ((engine, stream), (other, new), (other, unaware))
    )
    assert [len(pictures) for _, pictures in found[0]] == [12, 12]
    near, far = (distance(wanted, blocks)[0] for blocks in found)
    assert near < far < 2


@pytest.mark.parametrize("vae_type", ["lightvae", "tae", "lighttae"])
def test_a_small_vae_goes_on(engine, other, vae_type):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 2)
    engine.use_vae(vae_type, stream)
    made(engine, stream, [A] * 2)
    new = moved(stream, other)
    assert new.networks.vae_type == vae_type and new.networks.codec is other._vaes[vae_type][0]
    wanted, found = made(engine, stream, [A] * 2), made(other, new, [A] * 2)
    assert_same(wanted, found)
    assert [len(pictures) for _, pictures in found] == [12, 12]


def test_an_own_vae_and_counters_go_on(engine):
    small = LongLiveEngine("tiny", replace(engine.config, vae_type="tae"), device="cpu")
    stream = small.open_stream(seed=5)
    made(small, stream, [A] * 2)
    stream.fallback_blocks = 3
    new = moved(stream, engine)
    assert new.networks.vae_type == "tae" and new.fallback_blocks == 3
    assert_same(made(small, stream, [A]), made(engine, new, [A]))


def test_a_block_that_fails_is_rebuilt_again(engine, other, monkeypatch):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 6)
    new = moved(stream, other)
    calls = []

    def short(ring, *where):
        calls.append(where)
        if len(calls) == 3:
            raise RuntimeError("no memory")
        seek(ring, *where)

    seek = RingCache.seek
    with monkeypatch.context() as broken:
        broken.setattr(RingCache, "seek", short)
        with pytest.raises(RuntimeError, match="no memory"):
            other.generate_block(BlockRequest(A), new)
    assert_same(made(engine, stream, [A] * 2), made(other, new, [A] * 2))


def test_a_prompt_that_fails_leaves_a_recache(engine, other, monkeypatch):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 6)
    new = moved(stream, other)
    monkeypatch.setattr(other.prompts, "get", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        other.generate_block(BlockRequest(B), new)
    monkeypatch.undo()
    assert new.recache_due
    assert_same(made(engine, stream, [B] * 2), made(other, new, [B] * 2))


@pytest.mark.parametrize("sink", [0, 1, 3, 7])
@pytest.mark.parametrize("window", [10, 12, 21])
def test_a_rebuild_writes_each_frame_of_the_window_once(window, sink):
    dice = random.Random(window + sink)
    for _ in range(200):
        first_block = dice.choice([3, 4])
        position = first_block + 3 * dice.randrange(40)
        kept = min(position, dice.randrange(window, 65))
        last, first_sink = NOTHING, 0
        if dice.random() < 0.6:
            back = dice.randrange((position - first_block) // 3 + 1)
            last = plan_recache(position - 3 * back, window, sink, dice.random() < 0.5)
            first_sink = last.origin
        first, blocks = plan_rebuild(position, window, sink, kept=kept, last=last, first_sink=first_sink)
        passes = [first, *blocks] if first.frames else blocks
        assert passes[0].start >= position - kept and passes[-1].end == position
        assert all(a.end == b.start for a, b in itertools.pairwise(passes))
        assert all(each.frames <= window for each in passes)
        written = {frame for each in passes for frame in range(each.start, each.end)}
        assert written >= set(range(max(0, position - (window - sink)), position))
        if position - last.start <= kept:
            assert first == last and passes[0].keeps_sinks == (last.start > last.origin)
        else:
            assert first.keeps_sinks == (sink > 0) and first.start >= first_sink + sink
            assert len(passes) == 1 or position - passes[0].start + 3 > min(kept, position - sink - first_sink)


def test_what_does_not_fit_an_engine_is_named_before_anything_is_made(engine, other, tmp_path, monkeypatch):
    stream = engine.open_stream()
    made(engine, stream, [A])
    snapshot = stream.snapshot()
    another = LongLiveEngine(make_checkpoint(tmp_path / "model", "tiny", seed=3), OptimizationConfig(**SIZE), "cpu")
    monkeypatch.setattr(Stream, "__init__", lambda *args: 1 / 0)
    with pytest.raises(ValueError, match=r"snapshot must be of the same model, got one of .*num_layers 5, here 2"):
        another.open_stream(snapshot=snapshot)
    with pytest.raises(ValueError, match="snapshot brings its own settings: height, precision, total_frames"):
        other.open_stream(32, total_frames=9, precision="bf16", snapshot=snapshot)
    with pytest.raises(TypeError, match="snapshot must be of the class Snapshot"):
        other.open_stream(snapshot=snapshot.to_bytes())


def repacked(snapshot, change, version=1):
    """Its bytes after ``change(state, tensors)``, with a good checksum."""
    state, tensors = contents(snapshot)
    change(state, tensors)
    tensors["state"] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    body = safetensors.torch.save(tensors)
    return struct.pack("<8sII", b"LLSTREAM", version, zlib.crc32(body)) + body


def edit(name, value):
    def change(state, tensors):
        *path, last = name.split(".")
        for key in path:
            state = state[key]
        state[last] = value

    return change


def set_tensor(name, make):
    def change(state, tensors):
        tensors[name] = make(tensors.get(name))

    return change


WRONG = {
    "position": (edit("position", 11), "must be at the end of a block"),
    "negative position": (edit("position", -3), "position"),
    "huge position": (edit("position", 2**62), "position"),
    "few latents": (edit("position", 30), "at least 12 latents"),
    "flag": (edit("recache_due", 1), "recache_due"),
    "unknown field": (edit("more", 1), "more"),
    "vae": (edit("vae_type", "sdxl"), "vae_type"),
    "settings": (edit("settings.local_attn_size", 65), "local_attn_size"),
    "unknown setting": (edit("settings.wishes", 1), "wishes is no field"),
    "no size": (edit("settings.height", None), "height and width"),
    "another size": (edit("settings.height", 64), "latents of Nx16x8x6"),
    "model": (edit("model.dim", -1), "dim"),
    "unknown dimension": (edit("model.wings", 2), "dimensions of a model"),
    "deep": (edit("model", json.loads("[" * 90 + "]" * 90)), "model"),
    "recache in the future": (edit("last_recache", [0, 12, 0]), "last_recache before its position"),
    "recache without frames": (edit("last_recache", [3, 0, 3]), "last_recache"),
    "recache of sinks": (edit("last_recache", [1, 2, 0]), "behind the sinks"),
    "sinks": (edit("first_sink", 7), "sinks before position 9"),
    "decoded": (edit("decoded", 10), "decoded at most"),
    "undecoded": (edit("undecoded", 4), "undecoded"),
    "given": (edit("given", 99), "given"),
    "no prompt": (edit("prompt.now", None), "embedding of its prompt"),
    "prompt that is not there": (edit("prompt.shown", 5), "embedding5"),
    "prompt far away": (edit("prompt.shown", 10**9), "shown"),
    "step without a target": (edit("prompt.ahead", [1, 3]), "transition"),
    "weights": (edit("prompt.wanted", [["a", "b"], [1.0], None]), "a weight for each text"),
    "blend": (edit("prompt.wanted", [["a"], [1.0], "cubic"]), "wanted"),
    "total_frames": (edit("total_frames", 6), "position up to total_frames 6"),
    "generator": (edit("total_frames", 9), "generator's state"),
    "another generator": (set_tensor("generator", lambda x: torch.zeros(16, dtype=torch.uint8)), "generator's state"),
    "nan": (set_tensor("latents", lambda x: x.log()), "finite latents"),
    "infinite embedding": (set_tensor("embedding0", lambda x: x / 0), "finite embedding0"),
    "dtype": (set_tensor("latents", lambda x: x.double()), "latents of Nx16x4x6, got torch.float64"),
    "channels": (set_tensor("latents", lambda x: x[:, :8].contiguous()), "latents of"),
    "sink channels": (set_tensor("sinks", lambda x: x[:, :, :2].contiguous()), "sinks of"),
    "few sinks": (set_tensor("sinks", lambda x: x[:1].contiguous()), "latents of 3 sinks"),
    "many latents": (set_tensor("latents", lambda x: x.repeat(30, 1, 1, 1)), "latents at position 9"),
    "long embedding": (set_tensor("embedding0", lambda x: x[:1].repeat(4097, 1)), "embedding0 of at most"),
    "wide embedding": (set_tensor("embedding0", lambda x: x[:, :5].contiguous()), "embedding0 of"),
    "stray tensor": (set_tensor("more", lambda x: torch.zeros(1)), "must have"),
    "motion": (set_tensor("motion", lambda x: torch.zeros(1, 3, 8, 8)), "motion of 1x3x32x48"),
    "no latents": (lambda state, tensors: tensors.pop("latents"), "must have"),
}  # fmt: skip


@pytest.fixture(scope="module")
def snapshot(engine):
    stream = engine.open_stream(seed=5)
    made(engine, stream, [A] * 3)
    return stream.snapshot()


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_named(snapshot, case):
    change, wanted = WRONG[case]
    with pytest.raises(ValueError, match=wanted):
        Snapshot.from_bytes(repacked(snapshot, change))


def test_what_was_put_together_well_is_taken(snapshot):
    assert same(Snapshot.from_bytes(repacked(snapshot, lambda state, tensors: None)), snapshot)


def test_a_stranger_s_position_far_away_is_no_trouble(snapshot, other):
    def change(state, tensors):
        state |= {"position": 3 * 2**60, "decoded": 3 * 2**60, "last_recache": [3 * 2**60 - 9, 9, 0]}
        tensors["latents"] = torch.cat((tensors["latents"], tensors["latents"]))

    stream = other.open_stream(snapshot=Snapshot.from_bytes(repacked(snapshot, change)))
    poison(stream.ring)
    assert all(latents.isfinite().all() for latents, _ in made(other, stream, [A, B]))


def test_noise_of_another_kind_of_device_is_named(engine, other):
    snapshot = engine.open_stream(total_frames=9).snapshot()
    spoiled = Snapshot.from_bytes(repacked(snapshot, set_tensor("generator", lambda x: x[:16].clone())))
    with pytest.raises(ValueError, match="noise that was drawn on cpu"):
        other.open_stream(snapshot=spoiled)
    spoiled = Snapshot.from_bytes(repacked(snapshot, set_tensor("generator", lambda x: x * 0 + 255)))
    with pytest.raises(ValueError, match="noise that was drawn on cpu"):
        other.open_stream(snapshot=spoiled)


def test_damaged_bytes_are_refused(snapshot):
    data, dice = snapshot.to_bytes(), random.Random(0)
    for _ in range(300):
        spoiled = bytearray(data)
        spoiled[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        with pytest.raises(ValueError, match="data is"):
            Snapshot.from_bytes(spoiled)
    for end in (0, 5, 15, 16, 20, len(data) - 1):
        with pytest.raises(ValueError, match="data is"):
            Snapshot.from_bytes(data[:end])
    with pytest.raises(ValueError, match="version 2, only 1 can be read"):
        Snapshot.from_bytes(repacked(snapshot, lambda state, tensors: None, version=2))
    for no_bytes in (None, "LLSTREAM", [1]):
        with pytest.raises(TypeError, match="data must be bytes"):
            Snapshot.from_bytes(no_bytes)


def test_strangers_bytes_end_in_value_errors(snapshot):
    """Bodies spoiled at random, each with a good checksum."""
    body, dice = snapshot.to_bytes()[16:], random.Random(1)
    where = [*range(0, 400), *range(len(body) - 2500, len(body))]  # the header; the state is among the last tensors
    for _ in range(400):
        spoiled = bytearray(body)
        for _ in range(dice.randrange(1, 4)):
            spoiled[dice.choice(where) % len(body)] = dice.randrange(256)
        try:
            Snapshot.from_bytes(struct.pack("<8sII", b"LLSTREAM", 1, zlib.crc32(spoiled)) + spoiled)
        except ValueError:
            pass


def test_a_full_size_snapshot_is_small_and_quick(snapshot):
    """What 24 latents, the sinks and a prompt of 60 tokens take at 480x832; the clock is only to catch seconds."""
    state = replace(snapshot.state, settings={**snapshot.state.settings, "height": 480, "width": 832}, position=300)
    state = replace(state, model={**state.model, "text_len": 512, "text_dim": 4096}, decoded=300)
    text = torch.zeros(512, 4096, dtype=torch.bfloat16)
    text[:60] = 1
    tensors = {"latents": torch.randn(24, 16, 60, 104).bfloat16(), "sinks": torch.zeros(3, 16, 60, 104).bfloat16()}
    data = Snapshot(state, {**tensors, "embedding0": text}).to_bytes()
    assert len(data) < 6.0e6
    assert Snapshot.from_bytes(data).state == state


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("settings", [{}, {"precision": "int8"}, {"use_cuda_graphs": False}])
def test_on_a_gpu_it_goes_on_bit_for_bit(settings):
    """Its latents; what its decoder remembers was decoded anew, in bfloat16."""
    engine, other = (LongLiveEngine("tiny", OptimizationConfig(height=64, width=96), "cuda") for _ in range(2))
    for before, after in (([A] * 5, [A] * 3), ([A] * 6 + [B] * 3, [B] * 3), ([A] * 6, [B] * 2)):
        for (x, a), (y, b) in zip(*go_on(engine, other, before, after, **settings), strict=True):
            apart = (a.int() - b.int()).abs()
            assert torch.equal(x, y) and a.shape == b.shape
            assert apart.max() <= 8 and apart.float().mean() < 0.25, (apart.max(), apart.float().mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_waits_for_nothing():
    engine = LongLiveEngine("tiny", OptimizationConfig(height=64, width=96), "cuda")
    plain, disturbed = (engine.open_stream(seed=5) for _ in range(2))
    wanted = made(engine, plain, [A] * 3)
    found = made(engine, disturbed, [A])
    disturbed.snapshot()  # the first one makes pinned memory
    found += made(engine, disturbed, [A])
    engine.synchronize()
    torch.cuda._sleep(400_000_000)  # some tenths of a second
    started = time.perf_counter()
    snapshot = disturbed.snapshot()
    assert time.perf_counter() - started < 0.05 and not snapshot.ready()
    data = snapshot.to_bytes()
    assert snapshot.ready() and torch.equal(Snapshot.from_bytes(data).tensors["latents"], disturbed.history.cpu())
    found += made(engine, disturbed, [A])
    for (x, a), (y, b) in zip(wanted, found, strict=True):
        assert torch.equal(x, y) and torch.equal(a, b)
