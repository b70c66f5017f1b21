"""What a cluster refuses at its one address, and a command that cannot begin: without a cluster."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("aiortc")
pytest.importorskip("fastapi")
pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'longlive-optimized[cluster]'")

from longlive_optimized.cli import main
from longlive_optimized.demo.serving import ClusterConfig, command
from longlive_optimized.demo.serving.directory import Entry
from longlive_optimized.demo.serving.gate import Gate
from support.server_peer import Viewer


class Desk:
    """Notes which sessions it is asked for, and by whom; all seats are taken."""

    def __init__(self):
        self.asked, self.clients, self.answer = [], set(), Entry("wait", position=1)
        self.place = SimpleNamespace(remote=self._place)

    async def _place(self, name, client):
        self.asked.append(name)
        self.clients.add(client)
        return self.answer


def at_the_gate(scene):
    async def run():
        desk = Desk()
        gate = Gate(ClusterConfig(host="127.0.0.1", token=None, gpus=0), desk)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate.app), base_url="http://localhost") as http:
            await scene(http, desk)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 422, "bad offer"),
        ('{"type": "offer", "sdp": 5}', 422, "bad offer"),
        ('{"type": "offer", "sdp": "", "stream": {"seed": -1}}', 422, "bad offer"),
        ('{"type": "offer", "sdp": "v=0"}', 400, "bad offer"),
        ("x" * 70_000, 413, "too long"),
    ],
)
def test_a_bad_offer_takes_no_seat(body, status, code):
    async def scene(http, desk):
        answer = await http.post("/s/one/offer", content=body)
        assert (answer.status_code, answer.json()["code"], desk.asked) == (status, code, [])

    at_the_gate(scene)


def test_a_wish_that_cannot_be_takes_no_seat():
    async def scene(http, desk):
        for wishes, asked in ({"height": 4096, "width": 4096}, []), ({"seed": 7}, ["one"]):
            viewer = Viewer(http, stream="/s/one", wishes=wishes)
            with pytest.raises(httpx.HTTPStatusError) as refused:
                await viewer.watch()
            assert refused.value.response.status_code == (503 if asked else 422) and desk.asked == asked
            await viewer.leave()

    at_the_gate(scene)


def test_who_has_as_many_as_one_may_have_is_told():
    async def scene(http, desk):
        desk.answer, viewer = Entry("many"), Viewer(http, stream="/s/one")
        with pytest.raises(httpx.HTTPStatusError) as refused:
            await viewer.watch()
        answer = refused.value.response
        assert (answer.status_code, answer.json()["code"]) == (429, "too many") and desk.clients == {"127.0.0.1"}
        await viewer.leave()

    at_the_gate(scene)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "nowhere"], "--device must be cuda, cuda:N or cpu, got 'nowhere'"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--prompt", " "], "prompt must hold some text"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["longlive-optimized", "serve", "--cluster", "--port", "0", *options])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(command.ray, "init", lambda **keywords: pytest.fail("Ray was started"))
    with pytest.raises(SystemExit) as caught:
        main()
    errors = capsys.readouterr().err
    assert caught.value.code == 2 and message in " ".join(errors.split()) and "Traceback" not in errors


def test_why_replicas_do_not_come_up_is_told(monkeypatch):
    """As Serve tells it: the replica's traceback, with more behind it."""
    message = "The deployment failed to start 3 times. Error:\nTraceback ...\nOSError: a file is cut off\n\nRetrying."
    states = {"Session": ("UNHEALTHY", message), "Entrance": ("HEALTHY", "ValueError: of the past")}
    deployments = {
        name: SimpleNamespace(status=SimpleNamespace(name=status), message=text)
        for name, (status, text) in states.items()
    }
    applications = {"default": SimpleNamespace(deployments=deployments)}
    monkeypatch.setattr(command.serve, "status", lambda: SimpleNamespace(applications=applications))
    assert command._reason() == "OSError: a file is cut off"
