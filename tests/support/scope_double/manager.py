"""Loading and unloading of a pipeline as scope's manager does it."""

import gc
import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .session import Session

logger = logging.getLogger(__name__)


class Manager:
    """Holds at most one pipeline, as scope does after a load of one.

    ``error`` is the text of the last failed load; scope only logs it.
    """

    def __init__(self, set_loading_stage: Callable[[str | None], None] = lambda stage: None):
        self.error: str | None = None
        self._set_loading_stage = set_loading_stage
        self._status = "not_loaded"
        self._instance: Any = None
        self._key: tuple[str, dict] | None = None
        self._sessions: list[Session] = []

    def load(self, pipeline_class: type, load_params: dict | None = None) -> bool:
        """Load, in a thread of its own; True when it is loaded.

        An instance of the same id with equal parameters is kept. Any other is released *before* the new one is built.
        Load parameters pass through JSON, as over REST, and are validated by nobody.
        """
        load_params = json.loads(json.dumps(load_params or {}))
        key = (pipeline_class.get_config_class().pipeline_id, load_params)
        if self._instance is not None and self._key == key:
            return True
        self.unload()
        self._set_loading_stage("Initializing pipeline...")
        thread = threading.Thread(target=self._build, args=(pipeline_class, key))
        thread.start()
        thread.join()
        self._set_loading_stage(None)
        return self._status == "loaded"

    def status(self) -> str:
        """``not_loaded``, ``loaded`` or ``error``; an error is told once."""
        status = self._status
        if status == "error":
            self._status = "not_loaded"
        return status

    @property
    def pipeline(self) -> Any:
        """The loaded instance. Raises LookupError when none is."""
        if self._instance is None:
            raise LookupError("no pipeline is loaded")
        return self._instance

    def open(self, parameters: dict | None = None, wired: Sequence[str] = ("video",)) -> Session:
        """A client's session on the loaded pipeline; it keeps this instance to its end, whatever is loaded later."""
        session = Session(self.pipeline, parameters, wired)
        self._sessions.append(session)
        return session

    def unload(self) -> None:
        """Drop the references and collect. Nothing of the pipeline is called."""
        self._instance = self._key = None
        self._status = "not_loaded"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.synchronize()

    def close(self) -> None:
        """Stop every session and unload."""
        while self._sessions:
            self._sessions.pop().stop()
        self.unload()

    def _build(self, pipeline_class: type, key: tuple[str, dict]) -> None:
        fields = pipeline_class.get_config_class().model_fields
        # The raw default: an enum member, a shared list, or pydantic's own mark for "none was given".
        defaults = {name: field.default for name, field in fields.items() if field.default is not None}
        try:
            self._instance = pipeline_class(**defaults | key[1])
        except Exception as error:
            self.error, self._status = f"{type(error).__name__}: {error}", "error"
            logger.error("loading failed: %s", self.error)
        else:
            self._key, self._status = key, "loaded"
