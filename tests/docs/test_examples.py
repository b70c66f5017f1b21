"""Every example runs, on the built-in model, and leaves what it says."""

import ast
import importlib.util
import json
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
    "stream": ({"frames": 12}, 12),
    "story": ({"seconds": 1}, 16),
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


def test_the_notebook_runs_cell_by_cell(tmp_path, monkeypatch):
    """As a kernel does it: in one namespace, and what a cell ends with is shown."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_video.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    space, shown = {}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None  # or it grows with each run
            run_cell("".join(cell["source"]), space, shown)
    assert [page[:7] for page in shown] == ["<video "] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"circle.mp4", "circle.gif", "story.json"}


def run_cell(source: str, space: dict, shown: list[str]) -> None:
    code = ast.parse(source)
    if isinstance(code.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(code.body.pop().value)
        exec(compile(code, "cell", "exec"), space)
        value = eval(compile(last, "cell", "eval"), space)
        if hasattr(value, "_repr_html_"):
            shown.append(value._repr_html_())
    else:
        exec(compile(code, "cell", "exec"), space)


def test_a_queue_is_filled_and_shown(capsys):
    example("own_queue").main(blocks=2, fps=1000)
    assert capsys.readouterr().out.splitlines()[-1] == "21 frames"


def test_a_lora_changes_the_picture_and_goes_again(capsys):
    example("lora").main(blocks=1)
    half, whole, none = (float(line.split()[5]) for line in capsys.readouterr().out.splitlines())
    assert 0 < half < whole and none == 0
