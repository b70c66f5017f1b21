"""Several processes, each with a device of its own, that make one video together (docs/several_gpus.md).

Every rank has an engine and a stream of the same settings, and runs the same calls in the same order: because all run
the same program, or because the others follow rank 0, which sends them its calls. What a call computes is equal on all,
so none has to ask another how to go on; only failures are told, and which of them all ranks share.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.shard import Shard
from .rank_calls import packed, unpacked
from .rank_link import Link, Message

if TYPE_CHECKING:
    from .stream import Stream

M = TypeVar("M", bound=Callable)

log = logging.getLogger(__name__)

TIMEOUT = 600.0  # seconds that a rank waits for one that lives
_JOIN = 120.0  # at most, until all are there
_GRACE = 5.0  # seconds that a rank whose device waits for one that has failed may take to fail itself


class RankError(ConnectionError):
    """A rank has ended, or has failed alone: the ranks are no longer alike, and all must be started anew."""


class Call(NamedTuple):
    """What rank 0 asks of those that follow: a method's name, the stream that it is of or None, its arguments."""

    name: str
    of: int | None
    args: list
    kwargs: dict


@dataclass
class _Outcomes:
    """How one call ended on the ranks, as rank 0 hears of it: an error's text or None, by rank."""

    by_rank: dict[int, str | None] = field(default_factory=dict)
    judged: bool = False


class Ranks:
    """This process's place among those that make one video together. Without arguments: it is alone.

    rank, count: of ``count`` ranks. device: of this one, None where the engine chooses. shard: what a pass's tokens are
    divided by. leads: whether rank 0 sends its calls to the others, which ``follow``. broken: why no call can be made
    any more; None as long as all is well. on_broken: called with that error, in a thread of its own.

    Made by ``from_environment``. ``close`` it, or use it as a context, when its last call is made: a rank that ends is
    an error for those that go on.
    """

    def __init__(self) -> None:
        self.rank, self.count, self.leads = 0, 1, False
        self.device: torch.device | None = None
        self.shard, self.broken = Shard(), None
        self.on_broken: Callable[[RankError], None] = lambda error: None
        self.capturable = True  # its collectives, in CUDA graphs
        self._link: Link | None = None

    @classmethod
    def from_environment(
        cls,
        device: str | torch.device | None = None,
        *,
        backend: str | None = None,
        leads: bool = False,
        timeout: float = TIMEOUT,
    ) -> Ranks:
        """As torchrun has set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; alone where it has not.

        device: None, or ``cuda`` without a number, takes the GPU LOCAL_RANK; None the CPU where there is no CUDA.
        backend: torch.distributed's; None takes ``nccl`` on GPUs and ``gloo`` on CPUs. gloo serves GPUs too, slowly,
            without CUDA graphs, and even several ranks on one.
        leads: rank 0 sends its calls to the others, which ``follow``.
        timeout: seconds that one rank waits for another that lives.

        Waits for all ranks. Raises ValueError for what the environment says wrongly, for ranks on several hosts, and
        beside a torch.distributed that is initialised; ConnectionError where a rank does not come.
        """
        if "RANK" not in os.environ:
            return cls()
        if not isinstance(timeout, int | float) or not 0 < timeout < 1e9:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
        rank, count = _number("RANK"), _number("WORLD_SIZE")
        if count == 1:
            return cls()
        if _number("LOCAL_WORLD_SIZE", count) != count:
            raise ValueError(f"all {count} ranks must run on one host, got {os.environ['LOCAL_WORLD_SIZE']} here")
        if dist.is_initialized():
            raise ValueError("ranks must be made before torch.distributed is initialised")
        ranks, where = cls(), _device_of(device)
        backends = ("nccl", "gloo") if where.type == "cuda" else ("gloo",)
        if backend not in (None, *backends):
            raise ValueError(f"backend must be {' or '.join(backends)} on {where}, got {backend!r}")
        ranks._join(rank, count, where, backend or backends[0], leads, timeout)
        return ranks

    def _join(self, rank: int, count: int, device: torch.device, backend: str, leads: bool, timeout: float) -> None:
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # multicast over NVLink: many containers may not
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        os.environ.setdefault("NCCL_RUNTIME_CONNECT", "0")  # all connections now, none while a graph is captured
        # The link sees a rank end; NCCL's own watchdog would end this process.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        from torch.distributed.rendezvous import rendezvous  # which not every build of torch has

        wait, join = datetime.timedelta(seconds=timeout), min(timeout, _JOIN)
        try:
            store, _, _ = next(iter(rendezvous("env://", timeout=datetime.timedelta(seconds=join))))
        except (ValueError, dist.DistError) as error:
            raise ConnectionError(f"rank {rank} of {count} does not find the others: {error}") from error
        self._link = Link.meet(dist.PrefixStore("longlive", store), rank, count, join)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        bound: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
        store = dist.PrefixStore("longlive/group", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait, **bound)
        self.rank, self.count, self.device, self.leads = rank, count, device, leads
        self.capturable, self._timeout = backend == "nccl", timeout
        self.shard = Shard(rank, count, dist.group.WORLD, self._watch)
        self._changed = threading.Condition()
        self._calls, self._inside = 0, False  # calls begun; in one
        self._reported = self._erred = 0  # the last call whose outcome is told; the last that failed here
        self._failed: dict[int, tuple[int, str]] = {}  # by call: who failed first, and how
        self._verdicts: set[int] = set()  # calls that failed on all ranks alike
        self._outcomes: dict[int, _Outcomes] = {}  # rank 0's
        self._points = 0  # at which this rank has said what must be equal
        self._said: dict[int, dict[int, Mapping[str, str]]] = {}  # rank 0's, by point and rank
        self._aborting: threading.Thread | None = None
        self._closed = False
        self._requests: deque[tuple[Message, Sequence[Tensor]]] = deque()  # of one that follows
        self._streams: dict[int, Stream] = {}
        self._numbers: weakref.WeakKeyDictionary[Stream, int] = weakref.WeakKeyDictionary()
        self._gone: list[int] = []  # streams that rank 0 has forgotten since its last request
        self._following, self._opened = False, 0
        self._done: dict[int, int] = {}  # ranks that make no more calls, and how many they have made
        self._link.start(self._heard, self._ended)
        atexit.register(self._end)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(0.0 if error[0] else 10.0)

    def close(self, timeout: float = 10.0) -> None:
        """Leave: wait for this rank's device, then up to ``timeout`` seconds until the others have done so too. Those
        that follow return from ``follow``."""
        if self._link is None or self._closed:
            return
        if self.broken is None and self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or until a rank ends
        self._closed = True
        if self.broken is None:
            with self._changed:
                self._done[self.rank] = self._calls
                self._link.send({"kind": "done", "calls": [*self._done.items()]})
                self._changed.wait_for(lambda: self.broken or len(self._done) == self.count, timeout)
        self._link.close()
        if self.broken is None and not self.capturable:  # NCCL's would wait for graphs that hold its collectives
            dist.destroy_process_group()

    def _end(self) -> None:
        """As Python ends. An abort that does not come to its end would keep it from that."""
        self.close(0.0)
        if self._aborting:
            self._aborting.join(_GRACE)
            if self._aborting.is_alive():
                log.error("rank %d ends at once: %s", self.rank, self.broken)
                logging.shutdown()
                os._exit(1)

    @contextlib.contextmanager
    def call(self, request: Callable[[], Call] | None = None) -> Iterator[None]:
        """One call that all ranks make; inside another, a part of that. ``request``: what rank 0 sends, if it leads.

        An error that all ranks raise alike is raised as it is. One that only some raise becomes RankError on all: on
        those that have finished the call, in their next. Raises RankError where the ranks are no longer alike, and
        RuntimeError where this one follows.
        """
        if self.count == 1 or self._inside:
            yield
            return
        self._begin(request)
        try:
            yield
        except Exception as error:
            if (reason := self._judged(self._told(error))) is not None:
                raise RankError(reason) from error
            raise
        except BaseException as error:  # the user's wish, which comes when it comes
            self._break(f"rank {self.rank} was stopped: {type(error).__name__}")
            raise
        else:
            self._report(None)
            self.check()  # what was made may be worthless
        finally:
            self._inside = False

    def check(self) -> None:
        """Raises RankError where no call can be made any more."""
        if self.broken is not None:
            raise RankError(self.broken)

    def follow(self, engine: Any) -> None:
        """Make rank 0's calls until it closes its ranks. ``engine`` and rank 0's are of the same model and config.

        Raises RankError where the ranks are no longer alike; RuntimeError on rank 0, or where it does not lead.
        """
        if self.count == 1 or not self.leads or self.rank == 0:
            raise RuntimeError("follow is for ranks but the first, made with leads=True")
        while (request := self._next_request()) is not None:
            message, tensors = request
            for number in message["gone"]:
                self._streams.pop(number, None)
            call = Call(*unpacked(message["call"], tensors, self._streams))
            target = engine if call.of is None else self._streams[call.of]
            self._following = True
            try:
                _led(target, call.name)(target, *call.args, **call.kwargs)
            except RankError:
                raise
            except Exception:  # which rank 0 has raised too
                continue
            finally:
                self._following = False

    def enroll(self, stream: Stream) -> None:
        """A stream has been opened: rank 0 and those that follow know it by its number."""
        if not self.leads:
            return
        number = self._numbers[stream] = self._opened
        self._opened += 1
        if self.rank:
            self._streams[number] = stream
        else:
            weakref.finalize(stream, self._gone.append, number)

    def number_of(self, stream: object) -> int | None:
        """A stream's; None for what is none."""
        return self._numbers.get(stream)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def device_for(self, device: str | torch.device | None) -> str | torch.device | None:
        """The device of an engine that is asked to be on ``device``. Raises ValueError for another than this rank's."""
        if device is None or self.count == 1:
            return self.device if device is None else device
        mine, asked = str(self.device), str(torch.device(device))
        if asked not in (mine, mine.partition(":")[0]):
            raise ValueError(f"device must be {self.device}, that of its ranks, got {str(device)!r}")
        return self.device

    def least(self, value: int) -> int:
        """The smallest of all ranks' values."""
        return int(self.shard.gather(torch.tensor([value], dtype=torch.int64, device=self.device)).min())

    def _begin(self, request: Callable[[], Call] | None) -> None:
        if self.leads and self.rank and request is not None and not self._following:
            raise RuntimeError(f"rank {self.rank} follows rank 0: let it call engine.follow()")
        send = self._request(request()) if self.leads and self.rank == 0 and request is not None else None
        with self._changed:
            if late := next((each for call, each in self._failed.items() if call <= self._calls), None):
                self._break_here(_reason(*late))
            if self._closed:
                raise RankError(f"rank {self.rank} has closed its ranks")
            self._calls, self._inside = self._calls + 1, True
            self._miss_those_who_left()
            if self.broken is not None:
                self._inside = False
                raise RankError(self.broken)
        if send:
            send()
        elif request is not None and not self.leads:
            self._compare_call(request())

    def agree(self, value: Mapping[str, Any]) -> None:
        """Say what must be equal on all ranks, at this point of a call. Where it is not, the ranks break, soon: the
        RankError names what differs."""
        if self._link is None:
            return
        said = {name: repr(one) for name, one in value.items()}
        with self._changed:
            self._points += 1
            if self.rank:
                self._link.send({"kind": "said", "point": self._points, "said": said})
            else:
                self._compare(0, self._points, said)

    def _compare_call(self, call: Call) -> None:
        with contextlib.suppress(TypeError):  # for what the call itself will raise an error, on all ranks
            arguments = packed([call.args, call.kwargs], [], _AnyStream())
            self.agree({"call": call.name, f"arguments of {call.name}": arguments})

    def _compare(self, rank: int, point: int, said: Mapping[str, str]) -> None:
        """Rank 0 hears what a rank has said."""
        by_rank = self._said.setdefault(point, {})
        by_rank[rank] = said
        first = by_rank.get(0, {})
        for other, its in by_rank.items() if first else ():
            if differs := [name for name in {*first, *its} if first.get(name) != its.get(name)]:
                names = ", ".join(differs)
                self._break(f"rank {other} differs from rank 0 in {names}: all must be started alike, and call alike")
        if len(by_rank) == self.count:
            del self._said[point]

    def _request(self, call: Call) -> Callable[[], None]:
        """Sends a call to those that follow. Raises TypeError where an argument cannot travel."""
        tensors: list[Tensor] = []
        message = {"kind": "call", "call": packed(list(call), tensors, self._numbers)}

        def send() -> None:
            assert self._link
            gone = [self._gone.pop() for _ in range(len(self._gone))]
            self._link.send(message | {"gone": gone}, tensors)

        return send

    def _next_request(self) -> tuple[Message, Sequence[Tensor]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self.broken or 0 in self._done)
            if self._requests:
                return self._requests.popleft()
            self.check()
            return None

    def _watch(self) -> None:
        """Raises RankError where the call under way cannot end well."""
        self.check()
        if failed := self._failed.get(self._calls):
            raise RankError(_reason(*failed))

    def _told(self, error: Exception) -> str:
        """An error's text. Memory never runs out on two ranks alike: not at the same point."""
        if isinstance(error, RankError):
            return _WAITED
        where = f" (rank {self.rank})" if isinstance(error, torch.OutOfMemoryError) else ""
        return f"{type(error).__name__}: {error}{where}"

    # What follows runs in the thread that listens, or under ``_changed``.

    def _report(self, text: str | None) -> None:
        """Tell rank 0 how this call ended here."""
        with self._changed:
            call = self._reported = self._calls
            self._erred = call if text is not None else self._erred
            if self.rank == 0:
                self._note(0, call, text)
            elif self._link:
                self._link.send({"kind": "outcome", "call": call, "error": text})
            if text is None and call in self._failed:
                self._break_here(_reason(*self._failed[call]))

    def _judged(self, text: str) -> str | None:
        """Report an error; None if all ranks have failed alike, else why they are no longer alike."""
        self._report(text)
        call = self._calls
        with self._changed:
            known = self._changed.wait_for(lambda: self.broken or call in self._verdicts, self._timeout)
            if not known:
                self._break_here(_reason(self.rank, text))
            self._verdicts.discard(call)
            self._failed.pop(call, None)
            return self.broken

    def _note(self, rank: int, call: int, text: str | None) -> None:
        """Rank 0 hears how a call ended on a rank."""
        assert self._link
        outcomes = self._outcomes.setdefault(call, _Outcomes())
        outcomes.by_rank[rank] = text
        known = outcomes.by_rank
        if text is not None and text != _WAITED and call not in self._failed:
            self._fail(call, rank, text)
            self._link.send({"kind": "failed", "call": call, "rank": rank, "error": text})
        if call in self._failed and not outcomes.judged:
            if len(set(known.values())) > 1:
                outcomes.judged = True
                self._break(_reason(*self._failed[call]))
            elif len(known) == self.count:
                outcomes.judged = True
                self._verdicts.add(call)
                self._link.send({"kind": "alike", "call": call})
                self._changed.notify_all()
        if len(known) == self.count:
            del self._outcomes[call]

    def _fail(self, call: int, rank: int, text: str) -> None:
        """A rank has failed in a call. What waits for its collectives on a device does not see that: it is stopped."""
        self._failed[call] = rank, text
        if call <= self._reported and call != self._erred:
            self._break_here(_reason(rank, text))
        elif self.capturable:
            threading.Thread(target=self._stop_waiting, args=(call,), daemon=True).start()

    def _stop_waiting(self, call: int) -> None:
        time.sleep(_GRACE)
        if self._reported < call == self._calls:
            self._abort()

    def _break(self, reason: str) -> None:
        """On all ranks."""
        self._break_here(reason)
        if self._link:
            self._link.send({"kind": "broken", "reason": reason})

    def _break_here(self, reason: str) -> None:
        with self._changed:
            if self.broken is None:
                self.broken = reason
                threading.Thread(target=self.on_broken, args=(RankError(reason),), daemon=True).start()
            self._changed.notify_all()
        self._abort()

    def _abort(self) -> None:
        """End what waits in collectives, on the device too; there will be no others."""
        if self._aborting is None and not self._closed:
            # NCCL lets its kernels go at once, and then may wait for graphs that hold its collectives.
            self._aborting = threading.Thread(target=_abort_group, daemon=True)
            self._aborting.start()

    def _heard(self, rank: int, message: Message, tensors: Sequence[Tensor]) -> None:
        with self._changed:
            kind = message["kind"]
            if kind == "call":
                self._requests.append((message, tensors))
            elif kind == "said":
                self._compare(rank, message["point"], message["said"])
            elif kind == "outcome":
                self._note(rank, message["call"], message["error"])
            elif kind == "failed":
                self._fail(message["call"], message["rank"], message["error"])
            elif kind == "alike":
                self._verdicts.add(message["call"])
            elif kind == "broken":
                if self.rank == 0:
                    self._break(message["reason"])
                self._break_here(message["reason"])
            elif kind == "done":
                self._done.update(message["calls"])
                self._miss_those_who_left()
                if self.rank == 0 and self._link:
                    self._link.send({"kind": "done", "calls": [*self._done.items()]})
            self._changed.notify_all()

    def _miss_those_who_left(self) -> None:
        """A call is under way that a rank will not make: it has made its last."""
        if left := [rank for rank, calls in self._done.items() if calls < self._calls]:
            if self._inside and not self._closed:
                self._break(f"rank {left[0]} has left, rank {self.rank} makes another call")

    def _ended(self, rank: int) -> None:
        with self._changed:
            if rank not in self._done:
                self._break(f"rank {rank} has ended: start all {self.count} anew")


class _AnyStream(dict[Any, int]):
    """Streams have numbers only where rank 0 leads: here all have the same."""

    def __missing__(self, stream: Any) -> int:
        return 0


_WAITED = "it waited for a rank that had failed"


def _reason(rank: int, text: str) -> str:
    return f"rank {rank} has failed: {text}; the ranks are no longer alike, start all of them anew"


def _abort_group() -> None:
    with contextlib.suppress(Exception):  # what is broken may say so
        if (group := dist.group.WORLD) is not None:
            group.abort()


def _number(name: str, default: int | None = None) -> int:
    given = os.environ.get(name, default)
    try:
        return int(given)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a whole number, as torchrun sets it, got {given!r}") from None


def _device_of(device: str | torch.device | None) -> torch.device:
    """The device of this rank."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda":
        return device
    number, there = device.index, torch.cuda.device_count()
    number = _number("LOCAL_RANK", _number("RANK")) if number is None else number
    if number >= there:
        raise ValueError(f"device must be one of the {there} GPUs that are here, got cuda:{number}")
    return torch.device("cuda", number)


_LED: dict[str, Callable] = {}  # by qualified name: what rank 0 may ask for


def on_all_ranks(method: M) -> M:
    """A method of an engine or a stream that all ranks call alike: where rank 0 leads, the others are sent its call."""

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        ranks: Ranks = self.devices.ranks
        if ranks.count == 1:
            return method(self, *args, **kwargs)

        ranks.check()  # first: the device may be lost with a rank

        def request() -> Call:
            return Call(method.__name__, ranks.number_of(self), list(args), kwargs)

        with self.devices.turn(), ranks.call(request):
            return method(self, *args, **kwargs)

    _LED[method.__qualname__] = called
    return cast(M, called)


def made_on_all_ranks(init: M) -> M:
    """An engine's ``__init__``, with ``ranks`` among its keywords."""

    @functools.wraps(init)
    def called(self: Any, *args: Any, **kwargs: Any) -> None:
        ranks = kwargs.get("ranks")
        with ranks.call() if isinstance(ranks, Ranks) else contextlib.nullcontext():
            init(self, *args, **kwargs)

    return cast(M, called)


def _led(target: object, name: str) -> Callable:
    return _LED[f"{type(target).__name__}.{name}"]
