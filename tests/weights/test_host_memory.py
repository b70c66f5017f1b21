"""Pinned host memory: of just its size, registered while it is used, and not a moment longer."""

import gc

import pytest
import torch

from longlive_optimized.weights.host_memory import pinned_empty


@pytest.fixture
def registered(monkeypatch):
    """CUDA's registrations, in a stand-in: bytes by address."""
    known = {}

    class Cudart:
        status = 0

        def cudaHostRegister(self, address, nbytes, flags):
            if not self.status:
                assert flags == 0 and address % 4096 == 0
                known[address] = nbytes
            return self.status

        def cudaHostUnregister(self, address):
            del known[address]

    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    return known, cudart


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 10_000_001])
def test_is_registered_as_long_as_a_view_of_it_lives(registered, nbytes):
    known, _ = registered
    memory = pinned_empty(nbytes)
    assert memory.shape == (nbytes,) and memory.dtype == torch.uint8 and list(known.values()) == [max(nbytes, 1)]
    view = memory.fill_(7)[: nbytes // 2].view(-1)
    del memory
    gc.collect()
    assert len(known) == 1 and view.eq(7).all()
    del view
    gc.collect()
    assert not known


def test_a_system_that_pins_no_more(registered):
    known, cudart = registered
    cudart.status = 2
    with pytest.raises(OSError, match=r"^text_residence must not be parked here: the system pins no 4096 bytes"):
        pinned_empty(4096)
    gc.collect()
    assert not known
