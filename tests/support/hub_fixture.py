"""pytest's plugin for tests of any room that want a hub: a small one, on a machine that has nothing yet."""

import pytest


@pytest.fixture(scope="session")
def hub_files(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """A tiny model's files by repository; nobody may change them."""
    from .hub import contents

    return contents(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(hub_files, tmp_path, monkeypatch):
    """It has ``hub_files``, and keeps a log of requests; the machine's caches lie in ``tmp_path``."""
    from .hub import alone

    with alone(hub_files, tmp_path, monkeypatch) as hub:
        yield hub
