"""VACE through the plugin: scope's inputs, ports and rules as the engine's control, with a module of random weights."""

import av
import numpy as np
import pytest
import torch

from longlive_optimized import BlockRequest, Control
from longlive_optimized.tinyworld.render import render
from longlive_optimized.tinyworld.score import shown
from longlive_optimized.tinyworld.world import Scene, Shape
from longlive_optimized.weights.locate import CONTROL_FILE, TINY_SIZE
from longlive_optimized.weights.random_checkpoint import make_checkpoint
from support.results import same
from support.scope_double.streams import engine_of, expected

FOX, BOAT = [{"text": "a fox", "weight": 1.0}], [{"text": "a boat", "weight": 1.0}]
FRAMES, MASKS, VIDEO = "vace_input_frames", "vace_input_masks", "video"
GRAPH = {"graph": {"nodes": [], "edges": []}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A models folder with a VACE module, and scope's assets beside it."""
    root = tmp_path_factory.mktemp("scope") / "models"
    (root.parent / "assets").mkdir()
    return make_checkpoint(root, "tiny", control=True)


@pytest.fixture(scope="module")
def load(folder):
    common = {"model_path": str(folder), "height": 32, "width": 48, "show_messages": False, "max_sessions": 4}
    return common | {"vace_enabled": True, "denoising_steps": [1000, 500]}


@pytest.fixture
def scope(installed, pipeline_class, load, folder, monkeypatch):
    monkeypatch.setenv("DAYDREAM_SCOPE_MODELS_DIR", str(folder))
    installed.notifications.clear()
    assert installed.manager.load(pipeline_class, load), installed.manager.error
    yield installed
    while installed.manager._sessions:
        installed.manager._sessions.pop().stop()


@pytest.fixture
def asset(folder):
    """``asset(name)`` writes a picture of noise among the assets and gives it as a tensor."""

    def write(name: str, seed: int = 0) -> torch.Tensor:
        picture = pictures(1, seed)[0].numpy()
        with av.open(str(folder.parent / "assets" / name), "w", format="image2") as file:
            stream = file.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "rgb24"
            for packet in [*stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")), *stream.encode()]:
                file.mux(packet)
        return torch.from_numpy(picture)

    return write


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=generator)


def masks(count: int = 12) -> torch.Tensor:
    made = torch.zeros(count, 32, 48, 3, dtype=torch.uint8)
    made[:, 8:24, 10:30] = 255
    return made


def run(session, calls: int = 1, put: dict[str, torch.Tensor] | None = None, **changes) -> list[torch.Tensor]:
    """The video of so many calls, after sending ``changes``; before each, ``put`` goes to the ports."""
    if changes:
        session.send(changes)
    made = []
    for _ in range(calls):
        for port, frames in (put or {}).items():
            for frame in frames:
                session.put_frame(frame, port)
        made.append(session.step().result["video"])
    return made


def told(scope, kind: str) -> list[str]:
    return [message["message"] for message in scope.notifications if message["type"] == kind]


def wired(scope, *ports: str, **parameters):
    return scope.manager.open({"prompts": FOX, "input_mode": "video", **GRAPH, **parameters}, ports)


# What scope is told, and loading


def test_the_schema_offers_vace(pipeline_class):
    config = pipeline_class.get_config_class()
    schema = config.get_schema_with_metadata()
    assert schema["supports_vace"] and config.inputs == [VIDEO, FRAMES, MASKS]
    field = schema["config_schema"]["properties"]["vace_context_scale"]
    assert field["ui"]["component"] == "vace" and field["ui"]["order"] == 1 and field["ui"]["is_load_param"]
    assert (field["default"], field["minimum"], field["maximum"]) == (1.0, 0.0, 2.0)
    assert CONTROL_FILE.name in {file for artifact in pipeline_class.get_artifacts() for file in artifact.files}


def test_the_module_is_loaded_only_if_wanted(installed, pipeline_class, load):
    for wanted in (True, False):
        assert installed.manager.load(pipeline_class, load | {"vace_enabled": wanted}), installed.manager.error
        assert (engine_of(installed).control is not None) == wanted


def test_the_built_in_model_follows_a_silhouette(installed, pipeline_class, load):
    """Its noise would have the shape elsewhere."""
    installed.notifications.clear()
    height, width = TINY_SIZE
    tiny = load | {"model_path": "tiny", "height": height, "width": width, "denoising_steps": [1000, 750, 500, 250]}
    assert installed.manager.load(pipeline_class, tiny), installed.manager.error
    prompts = [{"text": "a red circle stays in place on a green field", "weight": 1.0}]
    scene = Scene((Shape("red", "circle"),), "green", "still")
    centres = torch.tensor([[[3 / 8 * height, 3 / 4 * width]] * 3])
    silhouette, overlaps = render([(scene,)], centres, 12, height, width, silhouettes=True)[0], []
    for scale in (1.0, 0.0):
        session = wired(installed, FRAMES, prompts=prompts, vace_context_scale=scale)
        seen = shown(torch.cat(run(session, 2, {FRAMES: silhouette})))
        wanted = silhouette[:1, :, :, 0] > 95
        overlaps.append(((wanted & seen).sum() / (wanted | seen).sum()).item())
        session.stop()
    assert not told(installed, "longlive_error") and overlaps[0] > 0.7 > 0.3 > overlaps[1], overlaps


def test_without_the_file_it_loads_and_says_so(installed, pipeline_class, load, tmp_path):
    installed.notifications.clear()
    plain = make_checkpoint(tmp_path / "models", "tiny")
    assert installed.manager.load(pipeline_class, load | {"model_path": str(plain)}), installed.manager.error
    session = wired(installed, FRAMES)
    assert len(run(session, 2, {FRAMES: pictures(12)})[0]) == 9
    [notice] = told(installed, "longlive_notice")
    assert (
        "VACE's module is missing" in notice and CONTROL_FILE.name in notice and "longlive-optimized download" in notice
    )
    [error] = told(installed, "longlive_error")
    assert error.startswith(FRAMES) and "its file is missing" in error
    session.stop()


@pytest.mark.parametrize("scale", [-0.1, 2.1, "much"])
def test_a_scale_that_makes_no_sense_is_refused_at_load(installed, pipeline_class, load, scale):
    assert not installed.manager.load(pipeline_class, load | {"vace_context_scale": scale})
    assert "vace_context_scale" in installed.manager.error


def test_inputs_without_the_module_are_told_once(installed, pipeline_class, load):
    installed.notifications.clear()
    assert installed.manager.load(pipeline_class, load | {"vace_enabled": False}), installed.manager.error
    session = wired(installed, FRAMES)
    frames = run(session, 2, {FRAMES: pictures(12)}, vace_ref_images=["a.png"])
    assert same(frames, expected(installed, *[BlockRequest("a fox")] * 2))
    said = told(installed, "longlive_error")
    assert [text.split(":")[0] for text in said] == [FRAMES, "vace_ref_images"]
    assert all("vace_enabled" in text for text in said)
    session.stop()


# Ports


def test_control_frames_steer_pure_noise_in_nine_and_twelve_frames(scope):
    session, frames = wired(scope, FRAMES, noise_scale=0.3, noise_controller=True), pictures(12)
    control = Control(frames)
    made = run(session, 3, {FRAMES: frames})
    assert [len(block) for block in made] == [9, 12, 12]
    assert same(made, expected(scope, *[BlockRequest("a fox", control=control)] * 3))
    assert not same(made, expected(scope, *[BlockRequest("a fox")] * 3)) and not scope.notifications


def test_masks_say_what_is_kept(scope):
    session, frames = wired(scope, FRAMES, MASKS), pictures(12)
    made = run(session, 2, {FRAMES: frames, MASKS: masks()})
    control = Control(frames, masks())
    assert same(made, expected(scope, *[BlockRequest("a fox", control=control)] * 2))
    assert not same(made, expected(scope, *[BlockRequest("a fox", control=Control(frames))] * 2))


def test_with_both_ports_the_video_is_started_from_and_the_frames_followed(scope):
    session, video, frames = wired(scope, VIDEO, FRAMES, noise_controller=False), pictures(12, 1), pictures(12)
    made = run(session, 2, {VIDEO: video, FRAMES: frames})
    assert [len(block) for block in made] == [13, 12]
    request = BlockRequest("a fox", video=video, noise_steps="scope", control=Control(frames))
    assert same(made, expected(scope, *[request] * 2))


def test_frames_that_stop_are_no_longer_followed(scope):
    session, frames = wired(scope, FRAMES), pictures(12)
    made = run(session, 2, {FRAMES: frames})
    made += run(session, 2, input_mode="text")
    made += run(session, 1, {FRAMES: frames}, input_mode="video")
    steered, free = BlockRequest("a fox", control=Control(frames)), BlockRequest("a fox")
    assert same(made, expected(scope, steered, steered, free, free, steered)) and not scope.notifications


def test_masks_alone_are_told_and_left_out(scope):
    session = wired(scope, MASKS)
    assert same(run(session, 2, {MASKS: masks()}), expected(scope, *[BlockRequest("a fox")] * 2))
    assert [MASKS in text for text in told(scope, "longlive_error")] == [True]


def test_prepare_wants_twelve_frames_of_whatever_is_wired(scope):
    session = wired(scope, FRAMES, MASKS)
    for frame in pictures(12):
        session.put_frame(frame, FRAMES)
    assert session.step().kwargs is None
    for frame in masks(12):
        session.put_frame(frame, MASKS)
    assert len(session.step().kwargs[MASKS]) == 12


def test_frames_of_other_sizes_are_fitted(scope):
    session = wired(scope, FRAMES)
    odd = [torch.full((20 + i, 30 + 2 * i, 3), 20 * i, dtype=torch.uint8) for i in range(12)]
    assert same(run(session, 1, {FRAMES: odd}), expected(scope, BlockRequest("a fox", control=Control(odd))))


# Without a graph


def test_without_a_graph_the_camera_is_followed_where_vace_is_on(scope):
    frames, free = pictures(12), {"noise_controller": False}
    request, video = BlockRequest("a fox", control=Control(frames)), {VIDEO: frames}
    session = scope.manager.open({"prompts": FOX, "input_mode": "video", "vace_enabled": True, **free})
    made = run(session, 2, video)
    assert [len(block) for block in made] == [9, 12] and same(made, expected(scope, request, request))
    started_from = BlockRequest("a fox", video=frames, noise_steps="scope")
    for off in (
        {"vace_enabled": False},
        {"vace_enabled": True, "vace_use_input_video": False},
        GRAPH | {"vace_enabled": True},
    ):
        other = scope.manager.open({"prompts": FOX, "input_mode": "video", **off, **free})
        assert same(run(other, 1, video), expected(scope, started_from))
        other.stop()


# Scale


def test_the_scale_is_loads_until_a_call_says_another(installed, pipeline_class, load, scope):
    assert installed.manager.load(pipeline_class, load | {"vace_context_scale": 0.4}), installed.manager.error
    session, frames = wired(installed, FRAMES), pictures(12)
    session.processor.parameters.pop("vace_context_scale")  # which scope's offer sets
    made = run(session, 1, {FRAMES: frames})
    made += run(session, 1, {FRAMES: frames}, vace_context_scale=1.5)
    made += run(session, 1, {FRAMES: frames}, vace_context_scale=0)
    made += run(session, 1, {FRAMES: frames}, vace_context_scale="much")
    scales = (0.4, 1.5, 0.0, 0.0)
    assert same(made, expected(installed, *[BlockRequest("a fox", control=Control(frames, scale=s)) for s in scales]))
    assert ["vace_context_scale" in text for text in told(installed, "longlive_error")] == [True]
    session.stop()


# One-shots


def test_a_reference_acts_on_the_block_of_its_call(scope, asset):
    picture = asset("fox.png")
    session = scope.manager.open({"prompts": FOX, **GRAPH})
    made = run(session, 2) + run(session, 1, vace_ref_images=["fox.png", "other.png"]) + run(session, 1)
    free, steered = BlockRequest("a fox"), BlockRequest("a fox", control=Control(references=[picture]))
    assert same(made, expected(scope, free, free, steered, free))
    assert ["first picture alone" in text for text in told(scope, "longlive_error")] == [True]


def test_first_and_last_frames_with_and_without_control_frames(scope, asset):
    first, last, frames = asset("first.png", 1), asset("last.png", 2), pictures(12)
    session = wired(scope, FRAMES)
    named = {"first_frame_image": "first.png", "last_frame_image": "last.png"}
    made = run(session, 1, {FRAMES: frames}, **named) + run(session, 1, {FRAMES: frames})
    both = Control(frames, first_frame=first, last_frame=last)
    assert same(made, expected(scope, *[BlockRequest("a fox", control=c) for c in (both, Control(frames))]))
    text = scope.manager.open({"prompts": FOX, **GRAPH, "last_frame_image": "last.png"})
    assert same(run(text, 1), expected(scope, BlockRequest("a fox", control=Control(last_frame=last))))
    assert not told(scope, "longlive_error")


def test_a_picture_is_not_lost_where_its_block_fails_or_waits_for_a_prompt(scope, asset, monkeypatch):
    picture, engine = asset("fox.png"), engine_of(scope)
    monkeypatch.setattr("longlive_optimized.demo.scope_plugin.backoff.FIRST", 0.0)
    session = scope.manager.open({**GRAPH, "vace_ref_images": ["fox.png"]})
    assert session.step().result == {}
    right, tries = engine.generate_block, []

    def fail_once(*args):
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("no")
        return right(*args)

    monkeypatch.setattr(engine, "generate_block", fail_once)
    session.send({"prompts": FOX})
    assert session.step().result == {}
    made = run(session, 2)
    monkeypatch.undo()
    steered = BlockRequest("a fox", control=Control(references=[picture]))
    assert same(made, expected(scope, steered, BlockRequest("a fox")))


def test_a_picture_is_found_by_its_name_whatever_the_system_it_was_named_on(scope, asset, folder, tmp_path):
    from longlive_optimized.demo.scope_plugin.steering import found

    asset("fox.png")
    assets = folder.parent / "assets"
    (assets / "sub").mkdir(exist_ok=True)
    for path in ("fox.png", str(assets / "fox.png"), r"C:\Users\me\assets\fox.png", "/elsewhere/assets/fox.png"):
        assert found(path, assets) == assets / "fox.png"
    for path in ("owl.png", "sub", "", "/", "..", r"C:\owl.png"):
        with pytest.raises(FileNotFoundError, match="assets"):
            found(path, assets)


def test_a_picture_that_cannot_be_read_is_told_once_and_the_frames_go_on(scope, folder):
    (folder.parent / "assets" / "broken.png").write_bytes(b"no picture at all")
    session = scope.manager.open({"prompts": FOX, **GRAPH})
    made = []
    for path in ("broken.png", "missing.png", "missing.png"):
        made += run(session, 1, first_frame_image=path)
    made += run(session, 1, vace_ref_images=7)
    assert same(made, expected(scope, *[BlockRequest("a fox")] * 4))
    said = told(scope, "longlive_error")
    assert ["broken" in said[0], "missing" in said[1], "expected a path" in said[2]] == [True] * 3 and len(said) == 3


# Cuts


@pytest.mark.parametrize(("manages", "frames"), [(True, 9), (False, 12)])
def test_a_new_prompt_cuts_what_follows_frames_where_the_cache_is_managed(scope, manages, frames):
    session, put = wired(scope, FRAMES, manage_cache=manages), {FRAMES: pictures(12)}
    run(session, 2, put)
    assert [len(block) for block in run(session, 2, put, prompts=BOAT)] == [frames, 12]
    assert len(run(session, 1, put, transition={"target_prompts": FOX, "num_steps": 3})[0]) == 12


def test_control_that_comes_and_goes_cuts_nothing(scope, asset):
    asset("fox.png")
    session = scope.manager.open({"prompts": FOX, **GRAPH})
    made = run(session, 2) + run(session, 1, vace_ref_images="fox.png") + run(session, 1)
    assert [len(block) for block in made] == [9, 12, 12, 12]


def test_a_reset_begins_again_with_the_frames(scope):
    session, put = wired(scope, FRAMES), {FRAMES: pictures(12)}
    made = run(session, 2, put)
    assert same(run(session, 2, put, reset_cache=True), made)


def test_junk_on_the_ports_stops_nothing(scope):
    session = scope.manager.open({"prompts": FOX, **GRAPH})
    junk = {FRAMES: "soon", MASKS: [1], "vace_ref_images": {"a": 1}, "first_frame_image": 3, "vace_enabled": "yes"}
    made = run(session, 2, **junk, vace_use_input_video=[1], graph=7)
    assert same(made, expected(scope, *[BlockRequest("a fox")] * 2))
    assert len(told(scope, "longlive_error")) == len(junk) + 1


def test_pictures_are_read_as_they_are(asset, folder):
    from longlive_optimized.media import read_picture

    wanted = asset("as-it-is.png", 5)
    assert np.array_equal(read_picture(folder.parent / "assets" / "as-it-is.png"), wanted.numpy())
