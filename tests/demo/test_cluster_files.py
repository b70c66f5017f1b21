"""The examples of docs/cluster say what Serve and the application take. Skipped without Ray."""

from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'longlive-optimized[cluster]'")
pytest.importorskip("yaml")

import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from longlive_optimized.demo.serving import ClusterConfig, app

FILES = Path(__file__).parents[2] / "docs" / "cluster"
TOKEN = "correct horse battery"


def serve_part(name: str) -> dict:
    content = yaml.safe_load((FILES / name).read_text())
    return yaml.safe_load(content["spec"]["serveConfigV2"]) if "spec" in content else content


@pytest.mark.parametrize("name", ["serve.yaml", "rayservice.yaml"])
def test_serve_and_the_application_take_the_examples(name, monkeypatch):
    monkeypatch.setenv("LONGLIVE_TOKEN", TOKEN)
    (application,) = ServeDeploySchema(**serve_part(name)).applications
    assert application.import_path == "longlive_optimized.demo.serving:app"
    assert ClusterConfig(**application.args).token == TOKEN


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"seats": 0}, "seats"),
        ({"replicas": 2, "max_replicas": 1}, "max_replicas"),
        ({"preset": "fast"}, "preset"),
        ({"height": 33}, "height"),
        ({"host": "192.0.2.1"}, "token"),
        ({"token": "short"}, "token"),
        ({"turn": "turn:example.org"}, "password"),
        ({"stun": "example.org"}, "stun"),
        ({"origins": ["example.org"]}, "origin"),
        ({"seat": 2}, "seat"),
    ],
)
def test_what_cannot_be_is_named_at_once(fields, named, monkeypatch):
    monkeypatch.delenv("LONGLIVE_TOKEN", raising=False)
    monkeypatch.delenv("LONGLIVE_TURN_PASSWORD", raising=False)
    with pytest.raises(ValidationError, match=named):
        ClusterConfig(**{"host": "127.0.0.1"} | fields)


def test_serve_run_takes_arguments():
    """As its command line and Serve's files give them: Ray makes a ClusterConfig of texts by name."""
    built = call_user_app_builder_with_args_if_necessary(app, {"seats": "3", "host": "127.0.0.1", "gpus": "0"})
    assert isinstance(built, Application)
    with pytest.raises(ValidationError, match="seat"):
        call_user_app_builder_with_args_if_necessary(app, {"seat": "3", "host": "127.0.0.1"})


def test_a_token_is_not_repeated():
    assert TOKEN not in repr(ClusterConfig(token=TOKEN))
