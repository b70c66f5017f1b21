"""The actor that keeps the directory, and holds the requests that sessions are."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from .config import ClusterConfig
from .directory import Directory, Entry, Report

log = logging.getLogger(__name__)

NAMESPACE, NAME = "longlive", "longlive-desk"
ON_THE_HEAD = {"node:__internal_head__": 0.001}  # the machine that a cluster cannot lose
PLACING = 40.0  # seconds that a session may take to be opened


class Desk:
    """A detached actor: it is nobody's child, and outlives the gate and all replicas.

    What sessions go on from is in Ray's object store, and this actor's own, whichever replica sent it. Should the actor
    itself be gone, Ray starts it anew: replicas report, and sessions are kept again with their next blocks.
    """

    def __init__(self, config: ClusterConfig):
        self._directory = Directory(
            config.max_queued, config.keep_seconds, ray.put, per_client=config.sessions_per_client
        )
        self._replicas: DeploymentHandle | None = None
        self._tasks: set[asyncio.Task] = set()

    @staticmethod
    def of(config: ClusterConfig):
        """The cluster's actor, which is made if there is none."""
        actor = ray.remote(num_cpus=0, resources=ON_THE_HEAD, max_restarts=-1, max_task_retries=3)(Desk)
        named = actor.options(name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        return named.remote(config)

    async def use(self, app: str) -> None:
        """Open sessions at the replicas of this application from now on."""
        self._replicas = serve.get_deployment_handle("Session", app)

    async def report(self, report: Report) -> list[str]:
        """``Directory.report``; sessions of a replica that is to go are moved, as soon as there are seats."""
        elsewhere = self._directory.report(report)
        if report.draining:
            for name in set(report.sessions) - {*elsewhere}:
                self._start(self._move(name))
        return elsewhere

    async def keep(self, name: str, replica: str, data: bytes) -> None:
        """``Directory.keep``."""
        self._directory.keep(name, replica, data)

    async def saved(self, name: str) -> list:
        """``Directory.saved``."""
        return self._directory.saved(name)

    async def address(self, name: str) -> str | None:
        """``Directory.address``."""
        return self._directory.address(name)

    async def addresses(self) -> dict[str, str]:
        """``Directory.addresses``."""
        return self._directory.addresses()

    async def position(self, name: str) -> int | None:
        """``Directory.position``."""
        return self._directory.position(name)

    async def status(self) -> dict:
        """``Directory.status``."""
        return self._directory.status()

    async def place(self, name: str, client: str = "") -> Entry:
        """Where a session is, which is opened if it is nowhere and there is a seat; ``soon`` if that takes too long.
        client: who asks."""
        entry = Entry("soon")
        loop = asyncio.get_running_loop()
        end = loop.time() + PLACING
        while entry.kind == "soon" and loop.time() < end:
            entry = self._directory.enter(name, client=client)
            if entry.kind == "go":
                entry = await self._open(name)
            elif entry.kind == "soon":
                await asyncio.sleep(0.1)
        return entry

    async def _open(self, name: str) -> Entry:
        """Open a session at the replica that Ray chooses."""
        if self._replicas is None:
            self._directory.failed(name)
            return Entry("soon")
        answers: Any = self._replicas.options(stream=True).hold.remote(name)
        try:
            first = await asyncio.wait_for(anext(answers), PLACING)
        except (TimeoutError, StopAsyncIteration, RayError, RayServeException) as error:
            answers.cancel()
            self._directory.failed(name)
            log.warning("a session could not be opened: %s", error)
            return Entry("soon")
        self._directory.placed(name, first["replica"])
        self._start(self._follow(first["replica"], answers))
        return Entry("at", first["address"])

    async def _follow(self, replica: str, answers) -> None:
        """Be there as long as a session is at a replica."""
        try:
            async for _ in answers:
                pass
        except RayError as error:
            log.warning("a replica is gone: %s", str(error).splitlines()[0])
            self._directory.lost(replica)

    async def _move(self, name: str) -> None:
        if self._directory.enter(name, moves=True).kind == "go":
            await self._open(name)

    def _start(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
