"""Messages of the data channel with a ``type`` of ours. scope merges them into the parameters of every later call, so
only a change of (type, preset, request_id) is a new request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...config import preset_name
from .notify import notify, notify_error

SET_PRESET, GET_STATS = "set_optimization_preset", "get_latency_stats"


class Commands:
    """One session's requests, each obeyed and answered once.

    set_preset: called with a preset's name; returns the settings now in force. stats: returns the figures.
    """

    def __init__(self, set_preset: Callable[[str], dict], stats: Callable[[], dict]):
        self._set_preset, self._stats = set_preset, stats
        self._last: str | None = None

    def obey(self, keywords: Mapping[str, Any]) -> None:
        """Look at a call's keywords; never raises, as a bad message must not stop the frames."""
        kind, request_id = keywords.get("type"), keywords.get("request_id")
        if not isinstance(request_id, str | int):
            request_id = None  # what may come, NaN for one, is not what a browser could read back
        # ``preset`` lies around from an earlier message when statistics are asked for.
        preset = keywords.get("preset") if kind == SET_PRESET else None
        request = repr((kind, preset, request_id))
        if kind not in (SET_PRESET, GET_STATS) or request == self._last:
            return
        self._last = request
        if kind == GET_STATS:
            notify("latency_stats", request_id, stats=self._stats())
            return
        try:
            name = preset_name(str(preset))
        except ValueError as error:
            notify_error(str(error), request_id)
            return
        notify("optimization_preset", request_id, preset=name, effective=self._set_preset(name))
