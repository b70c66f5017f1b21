"""What ranks make of each other's calls: threads of one process, over the links that processes have."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from longlive_optimized.engine.rank_calls import Call
from longlive_optimized.engine.rank_link import Link
from longlive_optimized.engine.rank_start import Standing
from longlive_optimized.engine.ranks import RankError, Ranks


@pytest.fixture
def joined():
    """``joined(count, timeout)``: ranks that have found each other."""
    made = []

    def join(count=2, timeout=20.0):
        store = dist.HashStore()

        def one(rank):
            ranks = Ranks()
            # Without a process group there is none to be destroyed, as with NCCL.
            mine = Standing(rank, count, torch.device("cpu"), "nccl")
            ranks._join(mine, Link.meet(store, rank, count, 20), leads=False, timeout=timeout)
            return ranks

        with ThreadPoolExecutor(count) as pool:
            made.extend(pool.map(one, range(count)))
        return made

    yield join
    for ranks in made:
        ranks._bond.closed = True
        ranks._bond.close()


def on_each(ranks, *works):
    """What each rank's work returns, or the error that it raises; all at a time."""

    def run(rank, work):
        try:
            return work(rank)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return [*pool.map(run, ranks, works)]


def calls(error=None, request=None):
    """A call that raises ``error``."""

    def work(ranks):
        with ranks.call(request):
            if error is not None:
                raise error
        return "made"

    return work


def until_it_breaks(ranks):
    """What has failed elsewhere is told as a call ends, or as the next one begins."""
    calls()(ranks)
    outcomes, changed = ranks._outcomes, ranks._bond.changed
    with changed:
        assert changed.wait_for(lambda: ranks.broken or outcomes._failed or outcomes._left, 10)
    calls()(ranks)


def test_what_all_raise_alike_is_an_error_like_any_other(joined):
    ranks = joined(3)
    for text in ("bad", "worse"):
        errors = on_each(ranks, *[calls(ValueError(text))] * 3)
        assert [str(error) for error in errors] == [text] * 3 and {*map(type, errors)} == {ValueError}
        assert on_each(ranks, *[calls()] * 3) == ["made"] * 3
    assert all(each.broken is None for each in ranks)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ValueError("a"), ValueError("b")),
        (ValueError("a"), TypeError("a")),
        (torch.OutOfMemoryError("none left"), torch.OutOfMemoryError("none left")),  # never at the same point
        (ValueError("a"), RankError("it waited")),
    ],
)
def test_what_they_raise_differently_breaks_all(joined, first, second):
    ranks = joined()
    errors = on_each(ranks, calls(first), calls(second))
    assert {*map(type, errors)} == {RankError}
    assert all("has failed: " in str(error) and "start all of them anew" in str(error) for error in errors)
    assert {*map(type, on_each(ranks, calls(), calls()))} == {RankError}


def test_what_one_raises_alone_breaks_those_that_went_on(joined):
    ranks = joined(3)
    errors = on_each(ranks, until_it_breaks, calls(KeyError("gone")), until_it_breaks)
    assert {*map(type, errors)} == {RankError}
    assert all("rank 1 has failed: KeyError: 'gone'; the ranks are no longer alike" in str(error) for error in errors)
    assert isinstance(errors[1].__cause__, KeyError)


def test_a_judgement_that_does_not_come_is_not_waited_for(joined):
    ranks = joined(timeout=0.3)
    error = on_each(ranks[:1], calls(ValueError("bad")))[0]
    assert isinstance(error, RankError) and "rank 0 has failed: ValueError: bad" in str(error)


def test_the_users_wish_is_raised_here_and_an_error_elsewhere(joined):
    ranks = joined()
    stopped, other = on_each(ranks, calls(KeyboardInterrupt()), until_it_breaks)
    assert isinstance(stopped, KeyboardInterrupt) and str(other) == "rank 0 was stopped: KeyboardInterrupt"


def test_a_part_of_a_call_is_no_call(joined):
    ranks = joined()

    def nested(each):
        with each.call(), pytest.raises(ValueError, match="inside"), each.call():
            raise ValueError("inside")

    assert on_each(ranks, nested, nested) == [None, None]
    assert on_each(ranks, calls(), calls()) == ["made", "made"]


def test_calls_and_what_is_said_must_be_equal(joined):
    def request(*args):
        return lambda: Call("reset", None, [*args], {})

    ranks = joined()
    assert on_each(ranks, *[calls(request=request(7))] * 2) == ["made", "made"]

    def asks(seed):
        def work(each):
            calls(request=request(seed))(each)
            until_it_breaks(each)

        return work

    errors = on_each(ranks, asks(1), asks(2))
    wanted = "rank 1 differs from rank 0 in arguments of reset: all must be started alike, and call alike"
    assert [str(error) for error in errors] == [wanted] * 2


def test_who_leaves_and_who_ends(joined):
    ranks, heard = joined(3), threading.Event()
    assert on_each(ranks, *[calls()] * 3) == ["made"] * 3
    ranks[0].on_broken = lambda error: heard.set()
    ranks[1].close(0.0)
    errors = on_each([ranks[0], ranks[2]], until_it_breaks, until_it_breaks)
    assert all("rank 1 has left, rank " in str(error) and "makes another call" in str(error) for error in errors)
    assert heard.wait(10)
    with pytest.raises(RankError, match="rank 1 has closed its ranks"):
        calls()(ranks[1])


def test_a_link_that_ends_breaks_all(joined):
    ranks, heard = joined(3), threading.Event()
    ranks[2].on_broken = lambda error: heard.set()
    ranks[1]._bond.close()
    assert heard.wait(10)
    for each in (ranks[0], ranks[2]):
        with pytest.raises(RankError, match="rank 1 has ended: start all 3 anew"):
            each.check()
