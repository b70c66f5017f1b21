"""README states the versions that were tried; the package asks for no others, and the suite runs on no others."""

import platform
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATED = re.search(
    r"Python ([\d.]+) to ([\d.]+),\s+torch ([\d.]+) to ([\d.]+),\s+PyAV ([\d.]+)\s+to\s+([\d.]+)",
    (ROOT / "README.md").read_text(),
)
assert STATED, 'README says no "Python A to B, torch A to B, PyAV A to B"'
RANGES = dict(
    zip(("Python", "torch", "PyAV"), zip(STATED.groups()[::2], STATED.groups()[1::2], strict=True), strict=True)
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TRIED = re.findall(r'"(3\.\d+) (?:(2\.[\d.]+) )?([\d.]+)"', (ROOT / "tests/measure/versions.sh").read_text())


def parts(version: str, like: str) -> tuple[int, ...]:
    """As many numbers of a version as ``like`` has: 2.13.0+cpu is (2, 13) like 2.9."""
    return tuple(map(int, re.findall(r"\d+", version)))[: like.count(".") + 1]


def installed(name: str) -> str:
    return platform.python_version() if name == "Python" else metadata.version({"PyAV": "av"}.get(name, name))


@pytest.mark.parametrize("name", RANGES)
def test_what_is_installed_was_tried(name):
    version, (oldest, newest) = installed(name), RANGES[name]
    assert parts(oldest, oldest) <= parts(version, newest) <= parts(newest, newest), (
        f"{name} {version} was not tried: README says {oldest} to {newest}. Try it with tests/measure/versions.sh, "
        "then put it there, in README and in docs/CONTRIBUTING.md"
    )


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_were_tried(name):
    tried = {row[list(RANGES).index(name)] for row in TRIED}
    table = (ROOT / "docs/CONTRIBUTING.md").read_text()
    for end in RANGES[name]:
        versions = [version for version in tried if parts(version, end) == parts(end, end)]
        assert versions, f"{name} {end} is missing in tests/measure/versions.sh"
        assert any(f"| {version} |" in table for version in versions), (
            f"{name} {end} is missing in docs/CONTRIBUTING.md"
        )


def test_the_package_asks_for_no_other():
    oldest, newest = RANGES["Python"]
    major, minor = parts(newest, newest)
    assert PROJECT["requires-python"] == f">={oldest},<{major}.{minor + 1}"
    for name, package in (("torch", "torch"), ("PyAV", "av")):
        assert f"{package}>={RANGES[name][0]}" in PROJECT["dependencies"], name
    script = (ROOT / "setup_env.sh").read_text()
    assert f"Python {oldest} to {newest} is needed" in script and f"at least {RANGES['torch'][0]}" in script
