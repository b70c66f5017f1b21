"""Where this package was installed from, which is where its documents are."""

from __future__ import annotations

import json
from importlib import metadata
from urllib.parse import urlsplit

DISTRIBUTION = "longlive-optimized"


def docs_url() -> str | None:
    """The page of the repository that this package was installed from (PEP 610); None if that was no web address."""
    try:
        record = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        url = json.loads(record or "{}").get("url")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        return None
    parts = urlsplit(url)  # without what may be a user's password
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.removesuffix('.git')}"
