"""Messages to scope's clients: every WebRTC client gets each of them, over its data channel."""

from __future__ import annotations

import logging
import sys

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


def notify_error(text: str, request_id: object = None) -> None:
    """Log a warning and send it as ``longlive_error``."""
    log.warning(text)
    notify("longlive_error", request_id, message=text)


def set_loading_stage(text: str) -> None:
    """What scope's page shows while the pipeline loads."""
    app = sys.modules.get("scope.server.app")
    manager = getattr(app, "pipeline_manager", None)
    if manager is not None and hasattr(manager, "set_loading_stage"):
        manager.set_loading_stage(text)
