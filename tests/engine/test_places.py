"""What comes before what when tensors go from place to place, with CUDA streams that only remember it."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch

from longlive_optimized.engine.places import Place

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Stream:
    """``before``: all that is done before what comes next."""

    def __init__(self, device: torch.device, priority: int = 0):
        self.device, self.before = device, frozenset()

    def do(self, work: str) -> None:
        self.before |= {work}

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before


class Pictures:
    """A tensor on ``device``, and the streams that its memory must outlive."""

    def __init__(self, cuda: Cuda, device: torch.device):
        self.cuda, self.device, self.used_on = cuda, device, []

    def copy_(self, other: Pictures, non_blocking: bool) -> Pictures:
        """In the order in which torch copies from GPU to GPU: each waits for the other."""
        assert non_blocking
        here, there = self.cuda.current_stream(self.device), self.cuda.current_stream(other.device)
        there.wait_stream(here)
        there.do("copy")
        here.wait_stream(there)
        return self

    def to(self, device: torch.device) -> Pictures:
        return self if device == self.device else Pictures(self.cuda, device).copy_(self, True)

    def record_stream(self, stream: Stream) -> None:
        self.used_on.append(stream)


class Cuda:
    """The part of ``torch.cuda`` that says which stream is in use."""

    Stream = Stream

    def __init__(self) -> None:
        self.current = {device: Stream(device) for device in (FIRST, SECOND)}

    def current_stream(self, device: torch.device) -> Stream:
        return self.current[device]

    @contextlib.contextmanager
    def stream(self, stream: Stream):
        before, self.current = self.current, self.current | {stream.device: stream}
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    found = Cuda()
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    monkeypatch.setattr(torch, "empty_like", lambda x, device: Pictures(found, device))
    return found


def work(place: Place, *names: str) -> None:
    with place.here():
        for name in names:
            torch.cuda.current_stream(place.device).do(name)


@pytest.mark.parametrize("device", [FIRST, SECOND])
def test_neither_waits_for_the_others_other_work(device, cuda):
    model, decoder = Place(FIRST), Place(device, apart=True)
    work(decoder, "block 0 decoded")
    work(model, "block 1 denoised")
    there = decoder.bring(Pictures(cuda, FIRST), model)
    assert there.device == device and there.used_on == [decoder.cuda_stream]
    assert {"block 1 denoised", "copy"} <= decoder.cuda_stream.before
    assert model.cuda_stream.before == {"block 1 denoised", "copy"}  # the copy, before its source is written over
    work(model, "block 2 denoised")
    assert "block 2 denoised" not in decoder.cuda_stream.before


def test_torchs_own_copy_would_wait(cuda):
    """What the test above is about."""
    model, decoder = Place(FIRST), Place(SECOND, apart=True)
    work(decoder, "block 0 decoded")
    with decoder.here():
        Pictures(cuda, FIRST).to(SECOND)
    assert "block 0 decoded" in model.cuda_stream.before


@pytest.mark.parametrize("device", [FIRST, SECOND])
def test_what_is_encoded_comes_back_without_the_decoder(device, cuda):
    model, decoder, encoder = Place(FIRST), Place(device, apart=True), Place(device, apart=True, urgent=True)
    work(decoder, "block 0 decoded")
    work(model, "block 0 in the ring")
    work(encoder, "video encoded")
    model.bring(Pictures(cuda, device), encoder)
    assert {"video encoded", "copy"} <= model.cuda_stream.before
    assert "block 0 decoded" not in model.cuda_stream.before | encoder.cuda_stream.before
    assert encoder.cuda_stream.before == {"video encoded", "copy"}


@pytest.mark.parametrize("device", [FIRST, SECOND])
def test_the_caller_comes_behind_what_it_is_given(device, cuda):
    decoder, caller, pictures = Place(device, apart=True), cuda.current_stream(device), Pictures(cuda, device)
    work(decoder, "block 0 decoded")
    assert decoder.hand_out(pictures) is pictures and pictures.used_on == [caller]
    caller.do("block 0 copied to the host")
    work(decoder, "block 1 decoded")
    assert caller.before == {"block 0 decoded", "block 0 copied to the host"}
    assert decoder.cuda_stream.before == {"block 0 decoded", "block 1 decoded"}


def test_the_callers_pictures_are_waited_for_where_they_lie(cuda):
    encoder = Place(SECOND, apart=True)
    for device in (FIRST, SECOND):
        cuda.current_stream(device).do(f"written on {device}")
    elsewhere, here = Pictures(cuda, FIRST), Pictures(cuda, SECOND)
    encoder.receive([elsewhere])
    assert not encoder.cuda_stream.before and not elsewhere.used_on  # the copy will wait
    encoder.receive([elsewhere, here, here])
    assert encoder.cuda_stream.before == {"written on cuda:1"} and {*here.used_on} == {encoder.cuda_stream}


def test_in_one_order_nothing_is_copied(cuda):
    one, other = Place(FIRST), Place(FIRST)
    pictures = Pictures(cuda, FIRST)
    for source, target in itertools.product((one, other), repeat=2):
        assert target.bring(pictures, source) is pictures
    one.receive([pictures])
    assert one.hand_out(pictures) is pictures and not pictures.used_on and not cuda.current_stream(FIRST).before


def test_it_is_left_as_it_was_entered(cuda):
    mine = Stream(FIRST)
    decoder = Place(SECOND, apart=True)
    with cuda.stream(mine):
        with decoder.here():
            assert cuda.current_stream(SECOND) is decoder.cuda_stream and cuda.current_stream(FIRST) is mine
            assert Place(FIRST).cuda_stream is mine
        assert cuda.current_stream(SECOND) is not decoder.cuda_stream
