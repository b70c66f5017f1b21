"""docs/performance.md is what its program writes, and holds the README's figures."""

import json
import re
from pathlib import Path

import pytest

from measure.record import rows, write
from measure.report import REPORT, report, show

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "docs/measurements").glob("*.json"))


def test_the_document_is_what_the_program_writes():
    assert REPORT.read_text() == report(), "run python tests/measure/report.py"


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_a_run_says_when_how_and_on_what(path):
    run = json.loads(path.read_text())
    assert all(run[name] for name in ("date", "commit", "device", "command", "rows"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"]) and re.fullmatch(r"[0-9a-f]{7,40}", run["commit"])
    assert re.fullmatch(rf"[a-z0-9-]+-{run['date']}-\d+", path.stem)
    assert not run.keys() - {
        "date",
        "commit",
        "device",
        "command",
        "rows",
        "state",
        "software",
        "ceilings",
        "goals",
        "notes",
    }


def test_the_readme_says_nothing_that_was_not_measured():
    readme = (ROOT / "README.md").read_text()
    measured = [float(number) for number in _numbers(REPORT.read_text())]
    section = re.search(r"^## Measured\n(.*?)^## ", readme, re.DOTALL | re.MULTILINE)[1]
    presets = [" ".join(line.split("|")[-3:]) for line in readme.splitlines() if line.startswith(("| `", "At 480"))]
    for number in _numbers("\n".join([section, *presets])):
        unit = 10.0 ** -len(number.partition(".")[2])
        assert any(abs(float(number) - value) <= unit / 2 + 1e-6 for value in measured), f"README's {number}"


def _numbers(text: str) -> list[str]:
    return re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", text)


def test_cells():
    assert show({"median": 1.5, "p99": 2.0}) == "1.5 (2.0)"
    assert show([1, 2.5]) == "1, 2.5" and show(None) == "" and show(0.25, 1) == "0.2" and show(7.0e-7) == "7.0e-7"


def test_a_run_of_bench_block_is_kept(tmp_path):
    stages = ("wall", "first_pixel", "text", "recache", "denoise", "decode", "decode_rest")
    bench = {"height": 480, "width": 832, "dit_ms": 235.71, "dit_p99_ms": 240.7, "fps": 39.76, "peak_gib": None}
    bench |= {f"switch_{stage}_ms": 10.04 for stage in stages} | {"baseline_over_engine": 1.934}
    block, switch = rows(bench)
    assert block == {
        "table": "block",
        "size": "480×832",
        "dit_ms": {"median": 235.7, "p99": 240.7},
        "fps": 39.8,
        "baseline_by_ours": 1.93,
    }
    assert switch["last_pixel_ms"] == 10.0 and switch["decode_ms"] == [10.0, 10.0] and "at_random_last_ms" not in switch
    run = {"date": "2026-12-01", "commit": "0000000", "device": "GPU", "command": "bench", "rows": [block, switch]}
    paths = [write(run, tmp_path), write(run, tmp_path)]
    assert [path.name for path in paths] == ["block-2026-12-01-1.json", "block-2026-12-01-2.json"]
    assert json.loads(paths[0].read_text()) == run
