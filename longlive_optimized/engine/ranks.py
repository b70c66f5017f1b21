"""Several processes, each with a device of its own, that make one video together (docs/several_gpus.md).

Every rank has an engine and a stream of the same settings, and runs the same calls in the same order: because all run
the same program, or because the others follow rank 0, which sends them its calls. What a call computes is equal on all,
so none has to ask another how to go on; only failures are told, and which of them all ranks share.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..model.shard import Shard
from .rank_agreement import Agreement
from .rank_bond import Bond, RankError
from .rank_calls import Call
from .rank_link import Link, Message
from .rank_outcomes import Outcomes
from .rank_requests import Requests
from .rank_start import Standing, meet, standing

if TYPE_CHECKING:
    from .stream import Stream

M = TypeVar("M", bound=Callable)

TIMEOUT = 600.0  # seconds that a rank waits for one that lives


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
        self.shard = Shard()
        self.on_broken: Callable[[RankError], None] = lambda error: None
        self.capturable = True  # its collectives, in CUDA graphs
        self._bond: Bond | None = None

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
        ranks = cls()
        if mine := standing(device, backend, timeout):
            ranks._join(mine, meet(mine, timeout), leads, timeout)
        return ranks

    def _join(self, mine: Standing, link: Link, leads: bool, timeout: float) -> None:
        self.rank, self.count, self.device, self.leads = mine.rank, mine.count, mine.device, leads
        self.capturable = mine.backend == "nccl"
        bond = self._bond = Bond(mine.rank, mine.count, link, lambda error: self.on_broken(error))
        self._outcomes = Outcomes(bond, timeout, stops_waiting=self.capturable)
        self._agreement, self._requests = Agreement(bond), Requests(bond)
        self._following = False  # in a call of rank 0's
        self.shard = Shard(mine.rank, mine.count, dist.group.WORLD, self._outcomes.watch)
        link.start(self._heard, self._ended)
        atexit.register(self._end)

    @property
    def broken(self) -> str | None:
        return self._bond.broken if self._bond else None

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(0.0 if error[0] else 10.0)

    def close(self, timeout: float = 10.0) -> None:
        """Leave: wait for this rank's device, then up to ``timeout`` seconds until the others have done so too. Those
        that follow return from ``follow``."""
        if self._bond is None or self._bond.closed:
            return
        if self.broken is None and self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or until a rank ends
        self._bond.closed = True
        if self.broken is None:
            self._outcomes.leave(timeout)
        self._bond.close()
        if self.broken is None and not self.capturable:  # NCCL's would wait for graphs that hold its collectives
            dist.destroy_process_group()

    def _end(self) -> None:
        self.close(0.0)
        if self._bond:
            self._bond.end()

    @contextlib.contextmanager
    def call(self, request: Callable[[], Call] | None = None) -> Iterator[None]:
        """One call that all ranks make; inside another, a part of that. ``request``: what rank 0 sends, if it leads.

        An error that all ranks raise alike is raised as it is. One that only some raise becomes RankError on all: on
        those that have finished the call, in their next. Raises RankError where the ranks are no longer alike, and
        RuntimeError where this one follows.
        """
        if self._bond is None or self._outcomes.inside:
            yield
            return
        self._begin(request)
        try:
            yield
        except Exception as error:
            if (reason := self._outcomes.judge(error)) is not None:
                raise RankError(reason) from error
            raise
        except BaseException as error:  # the user's wish, which comes when it comes
            self._bond.break_all(f"rank {self.rank} was stopped: {type(error).__name__}")
            raise
        else:
            self._outcomes.succeed()
        finally:
            self._outcomes.inside = False

    def _begin(self, request: Callable[[], Call] | None) -> None:
        if request is None:
            self._outcomes.begin()
        elif not self.leads:
            self._outcomes.begin()
            self._agreement.say_call(request())
        elif self.rank == 0:
            send = self._requests.sender(request())
            self._outcomes.begin()
            send()
        elif self._following:
            self._outcomes.begin()
        else:
            raise RuntimeError(f"rank {self.rank} follows rank 0: let it call engine.follow()")

    def check(self) -> None:
        """Raises RankError where no call can be made any more."""
        if self._bond:
            self._bond.check()

    def follow(self, engine: Any) -> None:
        """Make rank 0's calls until it closes its ranks. ``engine`` and rank 0's are of the same model and config.

        Raises RankError where the ranks are no longer alike; RuntimeError on rank 0, or where it does not lead.
        """
        if self._bond is None or not self.leads or self.rank == 0:
            raise RuntimeError("follow is for ranks but the first, made with leads=True")
        while call := self._requests.next(lambda: self._outcomes.has_left(0)):
            target = engine if call.of is None else call.of
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
        if self.leads:
            self._requests.enroll(stream)

    def agree(self, value: Mapping[str, Any]) -> None:
        """Say what must be equal on all ranks, at this point of a call. Where it is not, the ranks break, soon: the
        RankError names what differs."""
        if self._bond:
            self._agreement.say(value)

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

    # What follows runs in the thread that listens.

    def _heard(self, rank: int, message: Message, tensors: Sequence[Tensor]) -> None:
        assert self._bond
        with self._bond.changed:
            match message:
                case {"kind": "call"}:
                    self._requests.hear(message, tensors)
                case {"kind": "said", "point": point, "said": said}:
                    self._agreement.hear(rank, point, said)
                case {"kind": "outcome", "call": call, "error": error}:
                    self._outcomes.hear_outcome(rank, call, error)
                case {"kind": "failed", "call": call, "rank": first, "error": error}:
                    self._outcomes.hear_failed(call, first, error)
                case {"kind": "alike", "call": call}:
                    self._outcomes.hear_alike(call)
                case {"kind": "broken", "reason": reason}:
                    self._bond.hear_broken(reason)
                case {"kind": "done", "calls": calls}:
                    self._outcomes.hear_left(calls)
            self._bond.changed.notify_all()

    def _ended(self, rank: int) -> None:
        assert self._bond
        with self._bond.changed:
            self._outcomes.hear_ended(rank)


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
            return Call(method.__name__, self, list(args), kwargs)

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
