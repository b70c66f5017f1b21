"""Who is where and who waits, without Ray and without waiting."""

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'longlive-optimized[cluster]'")

from longlive_optimized.demo.serving.directory import COMING, PATIENCE, SETTLING, SILENT, Directory, Entry, Report


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directory(clock):
    return Directory(2, 60.0, lambda data: data, clock)


def report(directory, replica="a", sessions=(), draining=False, seats=1):
    return directory.report(Report(replica, f"http://{replica}", 1, seats, [*sessions], draining))


def open_at(directory, name, replica="a"):
    assert directory.enter(name).kind == "go"
    directory.placed(name, replica)


def test_a_session_is_opened_once_and_then_found(directory):
    report(directory)
    assert directory.enter("one") == Entry("go")
    assert directory.enter("one") == Entry("soon")
    directory.placed("one", "a")
    assert directory.enter("one") == Entry("at", "http://a") and directory.address("one") == "http://a"


def test_those_who_wait_have_places_and_go_in_their_order(directory, clock):
    report(directory)
    open_at(directory, "one")
    assert [directory.enter(name).position for name in ("two", "three", "two")] == [1, 2, 1]
    assert directory.enter("four").kind == "full"
    clock.now += SETTLING + 1
    report(directory)  # the first has left
    assert directory.enter("three") == Entry("wait", position=2)
    assert directory.enter("two").kind == "go"
    assert directory.position("three") == 1


def test_one_address_may_have_so_many_open_or_waiting(clock):
    directory = Directory(9, 60.0, lambda data: data, clock, per_client=2)
    report(directory, seats=1)
    assert directory.enter("one", client="x").kind == "go"
    directory.placed("one", "a")
    assert directory.enter("two", client="x").kind == "wait"
    assert directory.enter("three", client="x").kind == "many" and directory.position("three") is None
    assert directory.enter("three", client="y").kind == "wait"
    assert directory.enter("one", client="x").kind == "at" and directory.enter("two", client="x").kind == "wait"
    assert directory.enter("one", moves=True).kind == "wait"  # nobody's wish
    clock.now += PATIENCE + 1
    report(directory, sessions=["one"])  # the second has given up
    assert directory.enter("three", client="x").kind == "wait"


def test_who_does_not_ask_again_loses_the_place(directory, clock):
    report(directory)
    open_at(directory, "one")
    directory.enter("two")
    clock.now += PATIENCE - 1
    report(directory, sessions=["one"])
    directory.enter("three")
    clock.now += 2
    report(directory, sessions=["one"])
    assert directory.enter("three").position == 1 and directory.position("two") is None


def test_a_lost_session_goes_first_and_from_what_was_kept(directory, clock):
    report(directory), report(directory, "b")
    open_at(directory, "one"), open_at(directory, "two", "b")
    directory.keep("one", "a", b"state"), directory.keep("one", "b", b"of a stranger")
    directory.enter("new")
    directory.lost("a")
    assert directory.address("one") is None and directory.saved("one") == [b"state"]
    assert directory.enter("one").position == 1 and directory.enter("new").position == 2
    report(directory, "c")
    assert directory.enter("one").kind == "go"
    directory.placed("one", "c")
    clock.now += SETTLING + 1
    report(directory, "c"), report(directory, "b", ["two"])
    assert directory.saved("one") == [] and directory.status()["open"] == 1


def test_a_replica_that_is_silent_is_lost_and_its_sessions_are_kept_for_a_while(directory, clock):
    report(directory)
    open_at(directory, "one")
    directory.keep("one", "a", b"state")
    clock.now += SILENT + 1
    assert directory.addresses() == {} and directory.status()["lost"] == 1
    clock.now += 61
    assert directory.status()["lost"] == 0 and directory.saved("one") == []


def test_a_session_of_a_replica_that_is_to_go_moves_and_is_given_up_there(directory, clock):
    report(directory)
    open_at(directory, "one")
    assert report(directory, sessions=["one"], draining=True) == []
    assert directory.enter("one", moves=True).kind == "wait"
    report(directory, "b")
    assert directory.enter("one", moves=True).kind == "go"
    assert report(directory, "b", ["one"]) == []  # it is being opened there
    assert directory.enter("one").kind == "at"  # viewers are still led to the old one
    directory.placed("one", "b")
    assert directory.address("one") == "http://b"
    assert report(directory, sessions=["one"], draining=True) == ["one"]


def test_a_seat_is_free_again_where_a_session_could_not_be_opened(directory, clock):
    report(directory)
    assert directory.enter("one").kind == "go"
    directory.failed("one")
    assert directory.enter("two").kind == "go"
    clock.now += COMING + 1
    report(directory)
    assert directory.enter("three").kind == "go"


def test_a_directory_that_begins_anew_learns_from_reports(directory):
    report(directory, sessions=["one"])
    assert directory.enter("one") == Entry("at", "http://a") and directory.status()["free"] == 0
