"""The plugin as a double of scope finds it."""

import sys

import pytest

from support.scope_double import scope_installed
from support.scope_double.streams import LOAD


@pytest.fixture(scope="module")
def installed():
    with scope_installed() as scope:
        yield scope
    for name in [*sys.modules]:  # they hold the double's classes
        if name.startswith("longlive_optimized.demo.scope_plugin"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def pipeline_class(installed):
    return installed.discover("longlive-optimized")["longlive-optimized"]


@pytest.fixture
def scope(installed, pipeline_class):
    """Scope with the pipeline loaded; sessions end and messages are forgotten after each test, the instance stays."""
    installed.notifications.clear()
    assert installed.manager.load(pipeline_class, LOAD), installed.manager.error
    yield installed
    while installed.manager._sessions:
        installed.manager._sessions.pop().stop()
