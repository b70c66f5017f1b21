"""A story is read as it is meant, or refused with the field's name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.story import MOST_BYTES, Story

FOX = {"block": 0, "prompt": "a fox"}
GOOD = {"version": 1, "blocks": 9, "prompts": [FOX]}


def with_changes(*changes):
    return {"changes": [*changes]}


def moments(story):
    return [(moment.block, moment.frames, moment.prompt.what) for moment in Story.read(story).moments()]


def test_blocks_and_seconds_say_the_same():
    """Frames 0-8, 9-20, 21-32 ...: what is wished for at one second is seen from the first block behind frame 16 on."""
    boat = {"prompts": [["a boat", 1], ["a fox", 2.5]], "blend": "slerp", "transition_blocks": 3}
    by_block = {"version": 1, "blocks": 4, "prompts": [FOX, {"block": 2, **boat}]}
    by_second = {"version": 1, "blocks": 4, "prompts": [{"seconds": 0, "prompt": "a fox"}, {"seconds": 1, **boat}]}
    wanted = [(0, 9, "a fox"), (1, 12, "a fox")]
    wanted += [(block, 12, (("a boat", 1.0), ("a fox", 2.5))) for block in (2, 3)]
    assert moments(by_block) == moments(by_second) == wanted


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, [1]), (0.5, [8]), (9 / 16, [9]), (2, [9, 12, 11])])
def test_seconds_end_in_the_midst_of_a_block(seconds, frames):
    story = {"version": 1, "seconds": seconds, "prompts": [FOX]}
    assert [count for _, count, _ in moments(story)] == frames


def test_a_block_that_begins_exactly_then_counts():
    at = {"seconds": 21 / 16, "prompt": "a boat"}
    later = {"seconds": 21.01 / 16, "prompt": "a boat"}
    for entry, block in ((at, 2), (later, 3)):
        told = [each[2] for each in moments({"version": 1, "blocks": 5, "prompts": [FOX, entry]})]
        assert told.index("a boat") == block


def test_a_first_block_from_video_is_longer():
    story = Story.read({"version": 1, "seconds": 2, "prompts": [FOX, {"seconds": 0.8, "prompt": "a boat"}]})
    assert [m.frames for m in story.moments(13)] == [13, 12, 7]
    assert [m.prompt.what for m in story.moments(13)] == ["a fox", "a boat", "a boat"]  # at frame 12.8
    assert [m.prompt.what for m in story.moments(9)] == ["a fox", "a fox", "a boat"]


def test_a_restart_is_a_first_block_again():
    story = {"version": 1, "seconds": 3, "prompts": [FOX], **with_changes({"block": 2, "restart": True, "seed": 7})}
    read = [*Story.read(story).moments()]
    assert [m.frames for m in read] == [9, 12, 9, 12, 6]
    assert [(m.restart, m.seed) for m in read] == [(False, None)] * 2 + [(True, 7)] + [(False, None)] * 2


def test_another_vae_begins_as_with_a_first_block():
    """One that is the same already does not."""
    changes = [{"block": i, "settings": {"vae_type": vae}} for i, vae in ((1, "wan"), (2, "tae"), (3, "tae"))]
    story = Story.read({"version": 1, "seconds": 3, "prompts": [FOX], "changes": changes})
    assert [moment.frames for moment in story.moments()] == [9, 12, 9, 12, 6] and story.length == 5


@given(
    st.one_of(st.integers(1, 60).map(lambda n: {"blocks": n}), st.floats(0.01, 40).map(lambda s: {"seconds": s})),
    st.sets(st.integers(0, 60), max_size=6),
    st.sets(st.integers(0, 640).map(lambda frame: frame / 16) | st.floats(0, 40), max_size=6),
)
def test_its_length_is_known_without_going_through_it(length, blocks, seconds):
    changes = [{"block": block, "restart": True} for block in blocks if block < length.get("blocks", 200_000)]
    end = length.get("seconds") or length["blocks"] * 12 / 16
    changes += [{"seconds": second, "restart": True} for second in seconds if second < end]
    story = Story.read({"version": 1, **length, "prompts": [FOX], "changes": changes})
    assert story.length == sum(1 for _ in story.moments())


def test_the_length_of_a_long_story_takes_no_walk(monkeypatch):
    """A server is told it in a message of a hundred bytes."""
    monkeypatch.setattr(Story, "moments", None)
    assert Story.read({"version": 1, "seconds": 149_999, "prompts": [FOX]}).length == 199_999


def test_changes_add_up():
    story = Story.read(
        {**GOOD, "preset": "ultra", "settings": {"sink_size": 0, "vae_type": "tae"}, "loras": {"a.safetensors": 0.5}}
        | with_changes(
            {"block": 2, "preset": "quality", "settings": {"local_attn_size": 9}},
            {"block": 4, "settings": {"denoising_steps": [900, 100]}, "loras": {"a.safetensors": 1}},
        )
    )
    config = story.config()
    assert (config.denoising_steps, config.precision, config.sink_size) == ((1000, 250), "int8", 0)
    read = [*story.moments()]
    quality = {"denoising_steps": (1000, 750, 500, 250), "local_attn_size": 9, "precision": "bf16"}
    assert read[2].preset == "quality_stream" and read[2].settings == quality
    assert read[4].settings == {"denoising_steps": [900, 100]} and read[4].loras == {"a.safetensors": 1.0}
    assert not read[3].settings and read[3].preset is None and not read[3].loras
    assert [c.denoising_steps for c in story.configs()][-1] == (900, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version must be 1: a story of version 2 cannot be read here"),
        ({"version": "1"}, "version must be 1"),
        ({"model": ""}, "model must have at least 1 character"),
        ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
        ({"seed": 1.5}, "seed must be a valid integer, got 1.5"),
        ({"preset": "fast"}, "preset must be one of quality_stream"),
        ({"height": 100}, "height must be a multiple of 16, got 100"),
        ({"blocks": 0}, "blocks must be greater than or equal to 1, got 0"),
        ({"blocks": True}, "blocks must be a valid integer, got True"),
        ({"seconds": 2}, "a story must have either blocks or seconds"),
        ({"blocks": None}, "a story must have either blocks or seconds"),
        ({"blocks": None, "seconds": float("nan")}, "seconds must be"),
        ({"blocks": None, "seconds": 1e9}, "seconds must be of at most"),
        ({"prompt": "a fox"}, "prompt is no field here"),
        ({"settings": {"sinks": 3}}, "settings.sinks cannot be set in a story; did you mean 'sink_size'?"),
        ({"settings": {"memory_limit_gib": 3}}, "settings.memory_limit_gib cannot be set in a story"),
        ({"settings": {"sink_size": "3"}}, "sink_size must be a valid integer, got '3'"),
        ({"settings": {"local_attn_size": 5}}, r"local_attn_size must be at least sink_size \+ 3 = 6, got 5"),
        ({"prompts": []}, "prompts must have at least 1 item"),
        ({"prompts": {}}, "prompts must be a valid array"),
        ({"prompts": [{"block": 1, "prompt": "a"}]}, "prompts must have one at block 0, to begin with"),
        ({"prompts": [{"prompt": "a"}]}, r"prompts\[0\] must have either block or seconds"),
        ({"prompts": [{"block": 0, "seconds": 0, "prompt": "a"}]}, r"prompts\[0\] must have either block or seconds"),
        ({"prompts": [{"block": 0}]}, r"prompts\[0\] must have either prompt or prompts"),
        ({"prompts": [{"block": 0, "prompt": "a", "prompts": [["b", 1]]}]}, r"prompts\[0\] must have either prompt or"),
        ({"prompts": [FOX, {"block": 1, "prompt": " "}]}, r"prompts\[1\].prompt must hold some text"),
        ({"prompts": [FOX, {"block": 1, "prompts": [["b"]]}]}, r"prompts\[1\].prompts\[0\]\[1\] must be given"),
        ({"prompts": [FOX, {"block": 1, "prompts": [["b", -1]]}]}, r"prompts\[1\].prompts\[0\]\[1\] must be greater"),
        ({"prompts": [{**FOX, "prompt": None, "prompts": [["b", 1]] * 3, "blend": "slerp"}]}, "two prompts at most"),
        ({"prompts": [{**FOX, "blend": "cubic"}]}, r"prompts\[0\].blend must be 'linear' or 'slerp', got 'cubic'"),
        ({"prompts": [{**FOX, "transition_blocks": 0}]}, r"prompts\[0\].transition_blocks must be greater"),
        ({"prompts": [{**FOX, "colour": 1}]}, r"prompts\[0\].colour is no field here"),
        ({"prompts": [FOX, FOX]}, r"prompts\[1\] must be at another time than prompts\[0\], block 0"),
        ({"prompts": [FOX, {**FOX, "block": 9}]}, r"prompts\[1\].block must be below blocks, 9, got 9"),
        ({"prompts": [FOX, {"seconds": 7, "prompt": "b"}]}, r"prompts\[1\].seconds must be below 6.75, got 7"),
        (with_changes({"block": 1}), r"changes\[0\] must have a preset, settings, loras, restart or seed"),
        (with_changes({"block": 1, "preset": "slow"}), r"changes\[0\].preset must be one of"),
        (
            with_changes({"block": 1, "settings": {"sink_size": 2}}),
            r"changes\[0\]: settings\.sink_size cannot be set at",
        ),
        (
            with_changes({"block": 1, "settings": {"local_attn_size": 65}}),
            r"changes\[0\].settings: local_attn_size must",
        ),
        (with_changes({"block": 1, "loras": {"b": 1}}), r"changes\[0\].loras: 'b' must be among the story's own loras"),
        ({"loras": {"a": "strong"}}, "loras.a must be a valid number, got 'strong'"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Story.read(GOOD | change)


@pytest.mark.parametrize("data", [[], "a fox", None, 3, {1: 2}, {"version": 1, "model": object()}])
def test_what_is_no_story(data):
    with pytest.raises(ValueError):
        Story.read(data)


def test_it_is_written_and_read_again(tmp_path):
    story = Story.read(GOOD | {"prompts": [{**FOX, "prompt": "狐狸"}], "settings": {"denoising_steps": [1000, 500]}})
    story.save(tmp_path / "fox.json")
    text = (tmp_path / "fox.json").read_text(encoding="utf-8")
    assert "狐狸" in text and "transition_blocks" not in text
    assert Story.load(tmp_path / "fox.json") == story == Story.read(story) == Story.read(json.loads(story.to_json()))


def test_loras_are_from_the_files_own_folder(tmp_path):
    changes = with_changes({"block": 3, "loras": {"paint.safetensors": 0}})
    (tmp_path / "a.json").write_text(json.dumps(GOOD | {"loras": {"paint.safetensors": 1}} | changes))
    story = Story.load(tmp_path / "a.json")
    path = str(tmp_path / "paint.safetensors")
    assert story.loras == {path: 1.0} and story.changes[0].loras == {path: 0.0}
    with pytest.raises(FileNotFoundError, match=r"paint\.safetensors"):
        story.user_loras()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.json is not valid JSON"),
        ("[1]", "a.json must hold a JSON object"),
        ("{}", "a.json: version must be given"),
        ('{"version": 1, "blocks": 2}', "a.json: prompts must be given"),
        ("[" * 100_000, "a.json is not valid JSON: it is nested too deep"),
        (" " * (MOST_BYTES + 1), f"a.json is larger than {MOST_BYTES} bytes"),
    ],
)
def test_a_file_that_holds_none_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Story.load(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Story.load(tmp_path / "none.json")


def test_what_is_not_recorded():
    story = Story.read(GOOD | {"unrecorded": [{"block": 4, "what": "video input"}]})
    with pytest.raises(ValueError, match="from block 4 on it was made from what it does not hold: video input; with"):
        story.check_recorded()
    Story.read(GOOD | {"blocks": 4, "unrecorded": [{"block": 4, "what": "video input"}]}).check_recorded()
