"""What ranks send each other: calls as JSON and tensors, over sockets that strangers cannot use."""

import dataclasses
import json
import socket
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from longlive_optimized import BlockRequest, Control
from longlive_optimized.engine.rank_calls import packed, unpacked
from longlive_optimized.engine.rank_link import _KEY, Link
from longlive_optimized.weights.user_lora import UserLora


class Numbered:
    """Stands for a stream."""


def travelled(value, stream=None):
    tensors, streams = [], {7: stream}
    sent = json.dumps(packed(value, tensors, {stream: 7} if stream else {}))
    return unpacked(json.loads(sent), tensors, streams)


@pytest.mark.parametrize(
    ("value", "comes"),
    [
        (None, None),
        (True, True),
        (0.1, 0.1),
        ("a fox\n\u2603", "a fox\n\u2603"),
        ((1000, 500.0), [1000, 500.0]),
        (np.int64(3), 3),
        (torch.tensor(2.5), 2.5),
        (Path("/tmp/x"), "/tmp/x"),
        ({"precision": "int8", "tensor": {"dict": [1]}}, {"precision": "int8", "tensor": {"dict": [1]}}),
    ],
)
def test_values_come_as_they_went(value, comes):
    assert travelled(value) == comes and type(travelled(value)) is type(comes)


def test_pictures_streams_and_requests_travel(tmp_path):
    (tmp_path / "x.safetensors").touch()
    pictures, stream = torch.arange(48, dtype=torch.uint8).view(2, 2, 4, 3), Numbered()
    assert torch.equal(travelled(pictures.numpy()[:, ::-1]), pictures.flip(1)) and travelled(stream, stream) is stream
    control = Control([pictures[0], pictures[1, :1]], scale=0.5)
    asked = BlockRequest(
        [("a", 1.0), ("b", 2.0)], "slerp", video=pictures, noise_scale=0.4, control=control, seed=2**62
    )
    comes = travelled(asked)
    assert comes == asked and torch.equal(comes.video, pictures)
    assert all(map(torch.equal, comes.control.frames, control.frames)) and len(comes.control.frames) == 2
    lora = UserLora(tmp_path / "x.safetensors", -0.5)
    assert dataclasses.asdict(travelled([lora])[0]) == dataclasses.asdict(lora)


@pytest.mark.parametrize("value", [object(), print, {1}, b"x", [lambda: 0], {"a": iter(())}])
def test_what_cannot_travel_is_refused(value):
    with pytest.raises(TypeError, match="an argument must be one that other ranks can be sent, got"):
        packed(value, [], {})


def linked(count):
    """Links of all ranks, in threads; a stranger has knocked first."""
    store, links = dist.HashStore(), {}

    def meet(rank):
        links[rank] = Link.meet(store, rank, count, 20)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(count)]
    threads[0].start()
    port = json.loads(store.get(_KEY))["port"]
    for said in (b"", b"\0\0\0\4junk", b'\0\0\0\x0a[1, "word"]'):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [links[rank] for rank in range(count)]


def wait_for(look):
    end = time.monotonic() + 10
    while not look():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def test_messages_come_in_order_and_ends_are_seen():
    links, heard, ended = linked(3), deque(), deque()
    for rank, link in enumerate(links):
        link.start(
            lambda of, message, tensors, rank=rank: heard.append((rank, of, message, tensors)),
            lambda of, rank=rank: ended.append((rank, of)),
        )
    links[0].send({"n": 0})
    links[0].send({"n": 1}, [torch.arange(3), torch.zeros(1_000_000, dtype=torch.uint8)], to=2)
    links[1].send({"n": 2})
    wait_for(lambda: len(heard) == 4)
    of_two = [entry for entry in heard if entry[0] == 2]
    assert [message for _, _, message, _ in of_two] == [{"n": 0}, {"n": 1}] and len(of_two[1][3][1]) == 1_000_000
    assert torch.equal(of_two[1][3][0], torch.arange(3)) and (0, 1, {"n": 2}, ()) in heard
    links[2].close()
    wait_for(lambda: ended)
    links[0].send({"n": 3})  # to one that has ended: nothing happens
    wait_for(lambda: len(heard) == 5)
    assert [*ended] == [(0, 2)]
    links[0].close()
    wait_for(lambda: len(ended) == 2)
    assert ended[1] == (1, 0)
    links[1].close()


def test_ranks_that_do_not_come_are_an_error():
    with pytest.raises(ConnectionError, match=r"rank 0 waited 0\.2 s for the others"):
        Link.meet(dist.HashStore(), 0, 2, 0.2)
