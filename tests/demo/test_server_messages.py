"""What a viewer says is obeyed or refused, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlive_optimized.config import PRESETS
from longlive_optimized.demo.server import messages
from longlive_optimized.demo.server.messages import BadMessage, parse

GOOD = [
    {"type": "switch_prompt", "prompt": "a fox"},
    {"type": "switch_prompt", "prompt": "狐狸\n在雪中", "transition_blocks": 4, "id": "a"},
    {"type": "set_optimization_preset", "preset": "balanced"},
    {"type": "set_optimization_preset", "preset": "quality"},
    {"type": "settings", "playback_speed": 0.25},
    {"type": "settings", "playback_speed": 4, "interpolation": "blend", "shown_fps": 24, "id": 9},
    {"type": "settings", "interpolation": "none", "shown_fps": None},
    {"type": "settings", "loras": {"ink": -5, "my oil": 0.5}},
    {"type": "get_latency_stats", "id": 7},
    {"type": "set_transition", "blocks": 8, "blend": "slerp"},
    {"type": "set_overlay", "enabled": True},
    {"type": "set_paused", "paused": False},
    {"type": "set_input", "use": "video"},
    {"type": "set_input", "use": None, "id": 1},
    {"type": "set_strength", "noise_scale": 0.1, "control_scale": 2},
    {"type": "set_strength", "control_scale": 0},
    {"type": "remove_picture", "role": "first_frame"},
    {"type": "reset"},
    {"type": "reset", "seed": 7, "height": 64, "width": 96},
    {"type": "stop_replay", "id": "x"},
    {"type": "replay", "story": {"version": 1, "blocks": 3, "prompts": [{"block": 0, "prompt": "a fox"}]}},
]


@pytest.mark.parametrize("message", GOOD)
def test_good_messages(message):
    command = parse(json.dumps(message))
    for name, value in message.items():
        wanted = "quality_stream" if value == "quality" else value
        given = getattr(command, name)
        assert (given.as_dict() if name == "story" else given) == wanted


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        ("null", "object"),
        ("[]", "object"),
        ("{}", "type"),
        ('{"type": "shutdown"}', "does not match"),
        ('{"type": ["reset"]}', "does not match"),
        ('{"type": "reset", "speed": 1}', "speed: Extra inputs"),
        ('{"type": "reset", "seed": -1}', "seed"),
        ('{"type": "reset", "seed": "1"}', "seed"),
        ('{"type": "reset", "height": 40}', "height: .*multiple of 16"),
        ('{"type": "reset", "width": 0}', "width"),
        ('{"type": "switch_prompt"}', "either prompt or prompts"),
        ('{"type": "switch_prompt", "prompt": "a", "prompts": [["a", 1]]}', "either prompt or prompts"),
        ('{"type": "switch_prompt", "prompts": []}', "prompts"),
        ('{"type": "switch_prompt", "prompts": [["a", 1], ["b", 1], ["c", 1], ["d", 1], ["e", 1]]}', "at most 4"),
        ('{"type": "switch_prompt", "prompts": [["a", -1]]}', "prompts.*greater than or equal to 0"),
        ('{"type": "switch_prompt", "prompts": [["a", 0], ["b", 0]]}', "a weight above 0"),
        ('{"type": "switch_prompt", "prompts": [["a", NaN]]}', "prompts"),
        ('{"type": "switch_prompt", "prompts": [["a"]]}', "prompts"),
        ('{"type": "switch_prompt", "prompts": [[" ", 1]]}', "prompt must hold some text"),
        ('{"type": "switch_prompt", "prompt": "  "}', "prompt must hold some text"),
        ('{"type": "switch_prompt", "prompt": 3}', "prompt: Input should be a valid string"),
        ('{"type": "switch_prompt", "prompt": "%s"}' % ("x" * 2001), "at most 2000"),
        ('{"type": "switch_prompt", "prompt": "a", "transition_blocks": 0}', "transition_blocks"),
        ('{"type": "switch_prompt", "prompt": "a", "transition_blocks": 33}', "transition_blocks"),
        ('{"type": "switch_prompt", "prompt": "\\ud800"}', "JSON"),
        ('{"type": "set_optimization_preset", "preset": "warp"}', "preset must be one of quality_stream"),
        ('{"type": "set_overlay", "enabled": "yes"}', "enabled"),
        ('{"type": "set_paused", "paused": 1}', "paused"),
        ('{"type": "settings"}', "at least one of denoising_steps, playback_speed, interpolation, shown_fps, loras"),
        ('{"type": "settings", "loras": {}}', "loras: Dictionary should have at least 1 item"),
        ('{"type": "settings", "loras": {"ink": NaN}}', "loras.ink: Input should be"),
        ('{"type": "settings", "loras": {"ink": 5.5}}', "loras.ink: Input should be less than or equal to 5"),
        ('{"type": "settings", "denoising_steps": []}', "denoising_steps"),
        ('{"type": "settings", "denoising_steps": [1001]}', "denoising_steps"),
        (
            '{"type": "settings", "playback_speed": 0.2}',
            "playback_speed: Input should be greater than or equal to 0.25",
        ),
        ('{"type": "settings", "playback_speed": 4.1}', "playback_speed"),
        ('{"type": "settings", "playback_speed": null}', "playback_speed"),
        ('{"type": "settings", "playback_speed": true}', "playback_speed"),
        ('{"type": "settings", "playback_speed": NaN}', "playback_speed"),
        ('{"type": "settings", "interpolation": "rife"}', "interpolation: Input should be 'none' or 'blend'"),
        ('{"type": "settings", "shown_fps": 23}', "shown_fps"),
        ('{"type": "settings", "shown_fps": 61}', "shown_fps"),
        ('{"type": "settings", "shown_fps": 30.5}', "shown_fps"),
        ('{"type": "settings", "target_fps": 30}', "target_fps: Extra inputs"),
        ('{"type": "set_transition", "blocks": 2.5}', "blocks"),
        ('{"type": "set_transition", "blocks": 2, "blend": "cubic"}', "blend"),
        ('{"type": "set_input"}', "use: Field required"),
        ('{"type": "set_input", "use": "audio"}', "use"),
        ('{"type": "set_strength", "noise_scale": 0.05}', "noise_scale"),
        ('{"type": "set_strength", "noise_scale": NaN}', "noise_scale"),
        ('{"type": "set_strength", "control_scale": 2.5}', "control_scale"),
        ('{"type": "set_strength", "control_scale": "1"}', "control_scale"),
        ('{"type": "remove_picture", "role": "last_frame"}', "role"),
        ('{"type": "reset", "id": {}}', "id"),
        ('{"type": "replay", "story": []}', "story: a story must be a JSON object, got list"),
        ('{"type": "replay", "story": {"version": 1, "blocks": 2}}', "story: prompts must be given"),
        ('{"type": "replay", "story": "%s"}' % ("x" * 65_536), "at most 65536 bytes"),
        ('{"type": "reset", "id": "%s"}' % ("x" * 65), "id"),
        (" " * 16_385, "at most 16384 bytes"),
        ("é" * 9000, "at most 16384 bytes"),
        ("[" * 10_000, "JSON"),
        ("\ud800", "unicode"),
        (b'{"type": "reset"}', "text, not bytes"),
    ],
)
def test_bad_messages_say_why(message, reason):
    with pytest.raises(BadMessage, match=reason) as caught:
        parse(message)
    assert len(str(caught.value)) <= messages.LONGEST_ERROR


def test_an_error_keeps_the_id_and_repeats_no_long_input():
    with pytest.raises(BadMessage) as caught:
        parse(json.dumps({"type": "z" * 9000, "id": 5}))
    assert caught.value.id == 5 and len(str(caught.value)) <= messages.LONGEST_ERROR


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "prompt",
    "preset",
    "blocks",
    "blend",
    "enabled",
    "paused",
    "id",
    "transition_blocks",
    "use",
    "role",
    "noise_scale",
    "story",
)
TYPES = tuple({message["type"] for message in GOOD})
NEARLY = st.builds(
    lambda type, fields: {"type": type, **fields},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(FIELDS), JSON),
)


@given(st.text() | st.binary() | JSON.map(json.dumps) | NEARLY.map(json.dumps))
def test_anything_is_a_command_or_a_bad_message(message):
    try:
        assert isinstance(parse(message), messages.Command)
    except BadMessage as error:
        assert str(error)


def test_the_presets_are_the_tables():
    assert [preset["name"] for preset in messages.presets()] == [*PRESETS]
    json.dumps(messages.presets())


def test_prompts_have_weights():
    command = parse('{"type": "switch_prompt", "prompts": [["a fox", 0.7], ["a boat", 1]]}')
    assert command.what == (("a fox", 0.7), ("a boat", 1.0))
    assert messages.words(command.what) == "a fox (0.7) + a boat (1)"
    assert messages.words("a fox") == "a fox"


def test_what_can_be_said_is_listed():
    found = messages.commands()
    assert {message["type"] for message in GOOD} <= found.keys()
    for message in GOOD:
        assert {*message} - {"type", "id"} <= {*found[message["type"]]}
