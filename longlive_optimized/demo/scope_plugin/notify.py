"""Messages to scope's clients: every WebRTC client gets each of them, over its data channel."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator

_PACKAGE = __name__.partition(".")[0]
PIPELINE_ID = "longlive-optimized"
log = logging.getLogger(__name__)


def notify(kind: str, request_id: object = None, **content) -> None:
    """Send ``{"type": kind, ...}``; any thread may. Where there is no server (headless, tests) the log has it alone."""
    message = {"type": kind} | ({} if request_id is None else {"request_id": request_id}) | content
    app = sys.modules.get("scope.server.app")
    manager = getattr(app, "webrtc_manager", None)
    if manager is None:
        log.info("no client to notify: %s", message)
        return
    try:
        manager.broadcast_notification(message)
    except Exception:  # whoever listens or not, frames go on
        log.exception("a notification was not sent: %s", message)


def notify_error(text: str, request_id: object = None, kind: str = "longlive_error") -> None:
    """Log a warning and send it."""
    log.warning(text)
    notify(kind, request_id, message=text)


def notify_stopped(text: str, exception: str) -> None:
    """Say that no frames come, as scope 0.2.5 does itself, but not as the end: scope need not stop the stream.

    The page then shows the text where the picture was, and does not take it away again: this is for when there is no
    picture, in no session. scope 0.2.4 shows nothing.
    """
    said = {"pipeline_id": PIPELINE_ID, "message": text, "exception_type": exception}
    notify("pipeline_error", **said, recoverable=True, fatal=False)


@contextlib.contextmanager
def warnings_said() -> Iterator[list[str]]:
    """The warnings, as texts, that the engine logs in this thread meanwhile."""
    said: list[str] = []
    handler, package, thread = logging.Handler(logging.WARNING), logging.getLogger(_PACKAGE), threading.get_ident()
    own = __package__ or ""

    def note(record: logging.LogRecord) -> None:
        if record.thread == thread and not record.name.startswith(own):
            said.append(record.getMessage())

    handler.emit = note
    package.addHandler(handler)
    try:
        yield said
    finally:
        package.removeHandler(handler)


def set_loading_stage(text: str) -> None:
    """What scope's page shows while the pipeline loads."""
    app = sys.modules.get("scope.server.app")
    manager = getattr(app, "pipeline_manager", None)
    if manager is not None and hasattr(manager, "set_loading_stage"):
        manager.set_loading_stage(text)
