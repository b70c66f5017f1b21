"""What Ray Serve runs: a gate, and replicas that come and go."""

# Without the future's annotations, which are texts: from its parameter's class Ray knows what ``app`` takes.

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, DeploymentActorConfig, RequestRouterConfig
from ray.serve.experimental.capacity_queue import CapacityQueue
from ray.serve.handle import DeploymentHandle

from .config import ClusterConfig
from .desk import Desk
from .gate import Gate
from .replica import Replica

SEATS = "seats"
FULL = 0.8  # share of the seats that is taken when Ray's autoscaler is content
MOST_REQUESTS = 1000  # that a gate answers at a time; Serve lets no more than five in by default, and others wait
ROUTER = "ray.serve.experimental.capacity_queue_router.CapacityQueueRouter"
HEALTH = 1.0  # seconds between two looks at a replica: Ray's seats of one that is gone are given out until then


class Session:
    """The deployment whose requests are sessions."""

    async def __init__(self, config: ClusterConfig):
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(name, config, config.host or ray.util.get_node_ip_address(), Desk.of(config))
        self._known = False
        await self._replica.open()
        self._replica.watch(self._is_to_go)

    async def hold(self, name: str) -> AsyncIterator[dict]:
        """``Replica.hold``."""
        async for news in self._replica.hold(name):
            yield news

    def check_health(self) -> None:
        """Serve replaces a replica of which this raises."""
        if not self._replica.healthy:
            raise RuntimeError("the engine has ended")

    async def _is_to_go(self) -> bool:
        """Whether Serve has taken it from those that sessions are led to."""
        with contextlib.suppress(ValueError, RayError):
            seats: Any = serve.get_deployment_actor(SEATS)
            there = self._replica.name in await seats.get_registered_replicas.remote()
            self._known |= there
            return self._known and not there
        return False

    async def __del__(self):
        await self._replica.close()


class _ToGate:
    async def __call__(self, scope, receive, send) -> None:
        await serve.get_replica_context().servable_object.gate.app(scope, receive, send)


_entry = FastAPI(openapi_url=None)
_entry.mount("/", _ToGate())


@serve.ingress(_entry)
class Entrance:
    """The deployment that has the address."""

    async def __init__(self, config: ClusterConfig, replicas: DeploymentHandle):
        desk = Desk.of(config)
        await desk.use.remote(serve.get_replica_context().app_name)
        self.gate = Gate(config, desk)


def app(args: ClusterConfig) -> Application:
    """The application for ``serve run`` and Serve's files, whose arguments are ClusterConfig's."""
    scaling: dict[str, Any] = {"num_replicas": args.replicas}
    if args.max_replicas and args.max_replicas > args.replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=args.replicas,
                initial_replicas=args.replicas,
                max_replicas=args.max_replicas,
                target_ongoing_requests=FULL * args.seats,
                upscale_delay_s=args.upscale_seconds,
                downscale_delay_s=args.downscale_seconds,
                look_back_period_s=15.0,
            )
        }
    # A token for each seat: Ray sends a session to where most are free, and none to where none is.
    queue = DeploymentActorConfig(
        name=SEATS,
        actor_class=CapacityQueue,
        init_kwargs={"acquire_timeout_s": 1.0, "token_ttl_s": None},
        actor_options={"num_cpus": 0},
    )
    router = RequestRouterConfig(
        request_router_class=ROUTER,  # pyright: ignore[reportArgumentType]  # a name will do
        request_router_kwargs={"capacity_queue_actor_name": SEATS},
    )
    sessions = serve.deployment(
        Session,
        name="Session",
        max_ongoing_requests=args.seats,
        ray_actor_options={"num_gpus": args.gpus, "num_cpus": args.cpus},
        deployment_actors=[queue],
        request_router_config=router,
        health_check_period_s=HEALTH,
        graceful_shutdown_timeout_s=args.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        **scaling,
    )
    entrance = serve.deployment(
        Entrance,
        name="Entrance",
        max_ongoing_requests=MOST_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )
    return entrance.bind(args, sessions.bind(args))
