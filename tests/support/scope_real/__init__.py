"""A real scope on this machine's CPU, and a viewer of it: for the tests that are asked for with SCOPE_CHECKOUT.

scope's licence is CC BY-NC-SA 4.0: it is run and imported from a checkout elsewhere, nothing of it is here.
"""

from .server import ScopeServer, refused
from .viewer import Viewer

__all__ = ["ScopeServer", "Viewer", "refused"]
