"""Three replicas on one machine: where sessions go, what survives, who waits.

For a machine that does nothing else, since sessions must go on within seconds: CLUSTER_TESTS=1. Skipped without Ray.
"""

import asyncio
import os
import time

import pytest

if not os.environ.get("CLUSTER_TESTS"):
    pytest.skip("wants a machine that does nothing else: set CLUSTER_TESTS=1", allow_module_level=True)

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'longlive-optimized[cluster]'")

from support.cluster import Watcher, cluster, kill, place, replicas, until

BLOCK = 12 / 8  # seconds of a block at 8 frames a second
RESUMED = 10.0  # seconds within which a session goes on whose replica is gone


def test_sessions_survive_their_replica_and_wait_for_seats():
    """One test for all of it: a cluster takes half a minute to come up."""
    asyncio.run(_sessions_survive())


async def _sessions_survive():
    async with cluster(seats=3, replicas=3, keep_seconds=5) as http:
        watchers = [Watcher(http, f"s{i}") for i in range(6)]
        await until(lambda: all(len(one.new) > 16 for one in watchers), 90)
        places = await place(http)
        assert sorted(places) == [one.name for one in watchers]
        assert sorted([*places.values()].count(pid) for pid in set(places.values())) == [2, 2, 2]  # the least loaded
        await _a_lost_replica(http, watchers, places)
        await _a_full_house(http)
        await asyncio.gather(*(one.leave() for one in watchers))


async def _a_lost_replica(http, watchers, places):
    victim = places["s0"]
    lost, others = ([one for one in watchers if (places[one.name] == victim) is gone] for gone in (True, False))
    killed = time.monotonic()
    kill(victim)
    await until(lambda: all(one.after(killed + 0.5) < RESUMED for one in lost), RESUMED + 1)
    assert all(one.resumed and one.connected == 2 for one in lost)
    assert all(one.connected == 1 and one.gap(killed) < 2 * BLOCK for one in others)
    moved = await place(http)
    assert sorted(moved) == sorted(places) and victim not in moved.values()
    await until(lambda: _has(http, 3))  # Serve has started another one


async def _a_full_house(http):
    more = [Watcher(http, f"m{i}") for i in range(4)]  # for three seats
    await until(lambda: any(one.waits for one in more) and sum(len(one.new) > 3 for one in more) == 3)
    waits = next(one for one in more if not one.new)
    assert set(waits.waits) == {1}
    status = (await http.get("/status")).json()
    assert (status["free"], status["open"], status["queued"]) == (0, 9, 1)
    assert (await http.get(f"/s/{waits.name}/status")).json()["queue"] == 1
    await next(one for one in more if one.new).leave()
    await until(lambda: len(waits.new) > 3, 40)  # its seat is kept for a while
    await asyncio.gather(*(one.leave() for one in more if one is waits or one.new))


async def _has(http, count: int) -> bool:
    return len([one for one in await replicas(http) if not one["draining"]]) == count


def test_replicas_come_and_go_with_the_sessions():
    """They come before the last seat is taken; one that is to go hands its sessions over first."""
    asyncio.run(_replicas_come_and_go())


async def _replicas_come_and_go():
    scaling = {"replicas": 1, "max_replicas": 2, "upscale_seconds": 0.5, "downscale_seconds": 2, "keep_seconds": 1}
    async with cluster(seats=3, **scaling) as http:
        first = [Watcher(http, f"a{i}") for i in range(3)]
        await until(lambda: all(one.new for one in first))
        await until(lambda: _has(http, 2), 60)
        others = [Watcher(http, f"b{i}") for i in range(2)]
        await until(lambda: all(len(one.new) > 8 for one in others))
        places = await place(http)
        assert places["b0"] == places["b1"] != places["a0"] == places["a1"] == places["a2"]
        stay = [first[0], others[0]]  # one on each replica
        await asyncio.gather(*(one.leave() for one in (*first[1:], *others[1:])))
        since = time.monotonic()
        await until(lambda: _is_moved(stay), 60)
        await until(lambda: _has(http, 1), 30)
        await asyncio.sleep(2 * BLOCK)
        assert all(one.gap(since) < BLOCK + 0.5 for one in stay), [one.gap(since) for one in stay]
        places = await place(http)
        assert places[stay[0].name] == places[stay[1].name]
        await asyncio.gather(*(one.leave() for one in stay))


def _is_moved(watchers) -> bool:
    return any(one.resumed and one.connected == 2 for one in watchers)
