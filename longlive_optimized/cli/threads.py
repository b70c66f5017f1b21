"""How the command line's process shares the machine's cores."""

from __future__ import annotations

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, "QUOTA PERIOD" in microseconds, or "max PERIOD"


def share_the_machine() -> None:
    """Let OpenMP's threads sleep while they wait, and let there be as many as there are cores for this process.

    By default they spin, which takes cores from whoever else computes, and torch takes one for each core of the machine
    even where a container may use two. What the user has set stands. Works before torch is loaded.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("OMP_NUM_THREADS", str(cores()))):
        os.environ[name] = os.environ.get(name) or value  # an empty one is none


def cores() -> int:
    """Cores that this process may use: by its affinity, and by its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed
