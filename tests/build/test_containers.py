"""Dockerfile and compose files name what there is: stages, arguments, extras, options of serve. Nothing is built."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from longlive_optimized.cli import app

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
FILES = ("compose.yaml", "docs/cluster/compose.yaml")
ARGUMENTS = dict(re.findall(r"^ARG (\w+)=(.+)$", DOCKERFILE, re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def services(name: str) -> list[dict]:
    """A file's services that are built from the Dockerfile, with variables as they are where nobody sets them."""
    found = without_variables(yaml.safe_load((ROOT / name).read_text()))["services"]
    return [each for each in found.values() if "build" in each]


def without_variables(value):
    if isinstance(value, dict):
        return {key: without_variables(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_variables(each) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)(:-([^}]*))?[^}]*\}", lambda found: found[3] or found[1], value)


@pytest.mark.parametrize("name", FILES)
def test_a_service_builds_the_image_with_arguments_that_it_takes(name):
    assert services(name)
    for service in services(name):
        build = service["build"]
        assert (ROOT / name).parent.joinpath(build["context"]).resolve() == ROOT
        assert build["args"].keys() <= ARGUMENTS.keys()
        for extra in build["args"].get("EXTRAS", ARGUMENTS["EXTRAS"]).split(","):
            assert extra in EXTRAS, extra
        assert f"AS compiler-{build['args'].get('LONGLIVE_CUDA', 'ON')}\n" in DOCKERFILE


@pytest.mark.parametrize("name", FILES)
def test_its_command_is_one_of_ours(name):
    serve = typer.main.get_command(app).commands["serve"]
    options = {option for parameter in serve.params for option in parameter.opts}
    for service in services(name):
        program, command, *words = shlex.split(service["command"])
        assert (program, command) == ("longlive-optimized", "serve")
        assert {word for word in words if word.startswith("--")} <= options


def test_where_things_lie_in_a_container():
    home = re.search(r"^WORKDIR (/home/\w+)$", DOCKERFILE, re.MULTILINE)[1]
    user = re.search(r"^USER (\w+)$", DOCKERFILE, re.MULTILINE)[1]
    assert home == f"/home/{user}" and f"--uid 1001 {user}" in DOCKERFILE
    for service in services("compose.yaml"):
        kept = [volume.split(":")[1] for volume in service["volumes"] if not volume.startswith(".")]
        assert kept and all(re.search(rf"install --directory .*{re.escape(path)}\b", DOCKERFILE) for path in kept)


def test_the_image_is_built_as_setup_env_builds():
    setup = (ROOT / "setup_env.sh").read_text()
    tools = re.search(r'install --quiet ("scikit-build-core.*)', setup)[1]
    assert tools in DOCKERFILE and f"TORCH:-{ARGUMENTS['TORCH']}}}" in setup
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"compiler-ON", "compiler-OFF", "build"} == {*stages}
    assert {*re.findall(r"COPY --from=(\S+)", DOCKERFILE)} <= {*stages}
    [cuda] = {*re.findall(r"nvidia/cuda:([\d.]+)-", DOCKERFILE)}
    assert cuda.startswith("13.0"), "docs/install.md says which driver that wants"


def test_what_is_ignored_is_not_needed():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ".git" in ignored and ".venv" in ignored
    assert not {*ignored} & {"csrc", "kernels", "longlive_optimized", "pyproject.toml", "CMakeLists.txt", "LICENSE"}
