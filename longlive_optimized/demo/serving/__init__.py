"""Many GPUs behind one address, by Ray Serve: ``longlive-optimized serve --cluster``, or ``serve run
longlive_optimized.demo.serving:app``. Needs the extra ``cluster``; how it is used is in docs/cluster.md.

A replica (replica.py) has a GPU, an engine and the server of ``demo/server`` with some seats. A session is a stream of
that server, and one request to the replica, which lasts as long as the stream: so Ray counts, routes, drains and scales
sessions as it does requests. The gate (gate.py) has the one address, and leads each session to its replica. The
desk (desk.py) opens and moves sessions; its directory (directory.py) knows who is where, who waits, and what a session
that lost its replica goes on from.
"""

from .config import ClusterConfig
from .deployment import app

__all__ = ["ClusterConfig", "app"]
