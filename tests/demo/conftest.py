"""The plugin as a double of scope finds it."""

import sys

import pytest

from support.scope_double import scope_installed


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
