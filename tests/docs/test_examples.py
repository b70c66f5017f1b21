"""Every example runs, on the built-in model, and leaves what it says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import av
import pytest

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
# Arguments that keep it short, and the frames that its mp4 then has.
VIDEOS = {
    "one_video": ({"blocks": 2}, 21),
    "frame_loop": ({"frames": 12}, 12),
    "two_streams": ({"blocks": 1}, 9),
    "video_input": ({"blocks": 1}, 9),
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_examples_are_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*VIDEOS, "own_queue", "lora"}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_made(name, tmp_path):
    arguments, frames = VIDEOS[name]
    out = tmp_path / "made" / "video.mp4"
    example(name).main(**arguments, out=out)
    with av.open(str(out)) as video:
        assert sum(1 for _ in video.decode(video=0)) == frames


def test_a_queue_is_filled_and_shown(capsys):
    example("own_queue").main(blocks=2, fps=1000)
    assert capsys.readouterr().out.splitlines()[-1] == "21 frames"


def test_a_lora_changes_the_picture_and_goes_again(capsys):
    example("lora").main(blocks=1)
    half, whole, none = (float(line.split()[5]) for line in capsys.readouterr().out.splitlines())
    assert 0 < half < whole and none == 0
