"""From an mp4 and the words it was made for to what it shows."""

import pytest
import torch

from longlive_optimized.cli.video import Mp4Writer
from longlive_optimized.tinyworld import watch
from longlive_optimized.tinyworld.render import NATIVE, render
from longlive_optimized.tinyworld.world import read_caption

FIRST, THEN = "a red circle moves left over a green field", "a white cross and a blue box rest on a black night"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """FIRST until frame 21, two times as large as the model makes it; THEN from there on."""
    scenes, centres = (
        [read_caption(FIRST), read_caption(THEN)],
        torch.tensor([[[24.0, 32.0], [40.0, 72.0], [0.0, 0.0]]]),
    )
    path = tmp_path_factory.mktemp("watch") / "video.mp4"
    with Mp4Writer(path, *NATIVE, enlarge=2) as file:
        file.write(render([scenes], centres, 57, *NATIVE, cut=21)[0].numpy())
    return path


def test_all_is_there(video, capsys):
    watch.main([str(video), FIRST, f"1.1:{THEN}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"0.0 to 1.3 s, all there: {FIRST}" and lines[1] == f"2.1 to 3.6 s, all there: {THEN}"
    assert lines[2] == "score: 12 of 12 attributes"


def test_what_is_not_is_named(video, capsys):
    watch.main([str(video), FIRST.replace("left", "up"), f"1.1:{THEN.replace('cross', 'disc')}"])
    out = capsys.readouterr().out
    assert "lacks motion: " in out and "lacks form 2: " in out and "score: 10 of 12" in out


def test_frames_are_read_at_the_models_size(video):
    assert watch.read_video(video).shape == (57, *NATIVE, 3)


@pytest.mark.parametrize(("second", "frame"), [(0, 9), (0.5, 9), (0.57, 21), (0.6, 21), (1.3, 21), (1.4, 33), (4, 69)])
def test_first_block(second, frame):
    assert watch.first_block(second) == frame


def test_other_prompts_are_refused(video):
    with pytest.raises(ValueError, match="no caption of this world: 'a fox'"):
        watch.main([str(video), "a fox"])
