"""``generate`` and ``serve`` on several ranks, as torchrun starts them; and ``--gpus``."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import av
import pytest
import torch

from longlive_optimized.cli import ranks as starting
from longlive_optimized.cli.ranks import join_ranks, read_gpus

SMALL = ["--height", "32", "--width", "64", "--device", "cpu", "--preset", "ultra"]


@contextlib.contextmanager
def on_two(*command):
    """Both processes, with what they say on stderr; killed at the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-P", "-m", "longlive_optimized.cli", *map(str, command), *SMALL]
    processes = [
        subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **shared, "RANK": str(rank), "COLUMNS": "200"},
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_generate_makes_one_video(tmp_path):
    out, report = tmp_path / "fox.mp4", tmp_path / "fox.json"
    with on_two("generate", "--prompt", "a fox", "--seconds", "1", "--out", out, "--json", report) as processes:
        said = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
    assert said[1] == ("", "") and f"wrote {out}" in said[0][1] and "on each of 2 ranks" in said[0][1]
    with av.open(str(out)) as video:
        assert len([*video.decode(video=0)]) == 16
    assert json.loads(report.read_text())["ranks"] == 2


@pytest.mark.parametrize("ends", ["by a signal", "by a rank that is killed"])
def test_serve(ends):
    pytest.importorskip("fastapi")
    with on_two("serve", "--port", "0") as (first, other):
        address = re.search(r"(http://\S+)/", first.stderr.readline())[1]
        asyncio.run(watch(address))
        if ends == "by a signal":
            for each in other, first:  # a terminal's Ctrl-C comes to all
                each.send_signal(signal.SIGINT)
            assert (first.wait(30), other.wait(30)) == (0, 0), other.communicate()
        else:
            other.kill()
            said = first.communicate(timeout=30)[1]
            assert first.returncode == 2 and "rank 1 has ended" in said


async def watch(address):
    """Pictures come, and a prompt may change, as with one rank."""
    import httpx

    from support.server_peer import Viewer

    async with httpx.AsyncClient(base_url=address) as http:
        for _ in range(600):
            if (await http.get("/readyz")).status_code == 200:
                break
            await asyncio.sleep(0.1)
        viewer = await Viewer(http).join()
        for prompt in ("a boat", "a bird"):
            assert (await viewer.ask("switch_prompt", prompt=prompt))["type"] != "error"
            for _ in range(24):
                assert (await viewer.picture()).shape == (32, 64, 3)
        await viewer.leave()


@pytest.mark.parametrize(
    ("gpus", "device", "wanted"),
    [
        ("0,0", None, "--gpus must be different numbers, such as 0,1, got '0,0'"),
        ("", None, "--gpus must be different numbers"),
        ("0,x", None, "--gpus must be different numbers"),
        ("0;1", None, "--gpus must be different numbers"),
        ("0,1", "cpu", "--device must be left out beside --gpus"),
    ],
)
def test_bad_gpus_are_refused(gpus, device, wanted, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=wanted):
        read_gpus(gpus, device)


def test_gpus_beside_torchrun_are_those_of_its_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert read_gpus("3, 1", None) == [3, 1] and read_gpus(None, "cpu") == []
    with pytest.raises(ValueError, match="--gpus must name 2 GPUs, one for each process"):
        read_gpus("0,1,2", None)


def test_gpus_start_the_same_command_for_the_others(monkeypatch):
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(starting.subprocess, "Popen", lambda command, **how: started.append((command, how)))
    monkeypatch.setattr(starting.atexit, "register", lambda *args: None)
    monkeypatch.setattr("longlive_optimized.engine.ranks.Ranks.from_environment", lambda device, **how: (device, how))
    monkeypatch.setattr(os, "environ", {"PATH": "/bin"})
    monkeypatch.setattr(sys, "argv", ["longlive-optimized", "serve", "--gpus", "2,5,7"])
    assert join_ranks([2, 5, 7], None, leads=True) == ("cuda:2", {"leads": True})
    commands, environments = [command for command, _ in started], [how["env"] for _, how in started]
    assert commands == [[sys.executable, "-m", "longlive_optimized.cli", "serve", "--gpus", "2,5,7"]] * 2
    assert [(env["RANK"], env["WORLD_SIZE"], env["PATH"]) for env in environments] == [
        ("1", "3", "/bin"),
        ("2", "3", "/bin"),
    ]
    assert len({env["MASTER_PORT"] for env in environments}) == 1
    monkeypatch.setattr(os, "environ", environments[1])
    assert join_ranks([2, 5, 7], None, leads=True) == ("cuda:7", {"leads": True})


def test_one_gpu_is_a_device(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = join_ranks([1], None)
    assert (ranks.count, str(ranks.device)) == (1, "cuda:1")
    with pytest.raises(ValueError, match="--gpus must name some of the 2 GPUs that are here, got 1,2"):
        join_ranks([1, 2], None)
