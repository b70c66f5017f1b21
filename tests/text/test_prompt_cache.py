"""The prompt cache: least recently used goes first, counters, threads."""

import threading

import pytest
import torch

from longlive_optimized.text.prompt_cache import PromptCache


class Encoder:
    def __init__(self):
        self.calls = []

    def __call__(self, prompts):
        self.calls += prompts
        return torch.tensor([[[float(len(self.calls))]]])


def test_hits_misses_and_order():
    encode = Encoder()
    cache = PromptCache(encode, 2)
    first = cache.get("one")
    assert cache.get("one") is first
    cache.get("two")
    cache.get("one")  # now two is the older
    cache.get("three")
    assert cache.get("one") is first and len(cache) == 2
    cache.get("two")
    assert encode.calls == ["one", "two", "three", "two"]
    assert (cache.hits, cache.misses) == (3, 4)


def test_key_is_the_cleaned_text():
    encode = Encoder()
    cache = PromptCache(encode, 4)
    assert cache.get("a  cat &amp; dog\n") is cache.get("a cat & dog")
    assert cache.get("A cat & dog") is not cache.get("a cat & dog")
    assert encode.calls == ["a  cat &amp; dog\n", "A cat & dog"]


def test_size_zero_keeps_nothing():
    encode = Encoder()
    cache = PromptCache(encode, 0)
    assert cache.get("a") is not cache.get("a")
    assert (len(cache), cache.hits, cache.misses) == (0, 0, 2)


def test_clear():
    cache = PromptCache(Encoder(), 2)
    first = cache.get("a")
    cache.clear()
    assert len(cache) == 0 and cache.get("a") is not first


def test_one_encoding_for_many_threads():
    encode = Encoder()
    cache = PromptCache(encode, 4)
    start, found = threading.Barrier(8), []

    def work():
        start.wait()
        found.append(cache.get("the same"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encode.calls == ["the same"] and all(f is found[0] for f in found)
    assert (cache.hits, cache.misses) == (7, 1)


def test_a_hit_does_not_wait_for_an_encoding():
    entered, release = threading.Event(), threading.Event()

    def encode(prompts):
        if prompts == ["slow"]:
            entered.set()
            assert release.wait(30)
        return torch.zeros(1, 1, 1)

    cache = PromptCache(encode, 4)
    known, slow = cache.get("known"), threading.Thread(target=cache.get, args=("slow",))
    slow.start()
    try:
        assert entered.wait(30)
        assert cache.get("known") is known  # would hang here
    finally:
        release.set()
        slow.join()


def test_a_failed_encoding_is_not_kept():
    def encode(prompts):
        raise RuntimeError("out of memory")

    cache = PromptCache(encode, 4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            cache.get("a")
    assert len(cache) == 0


@pytest.mark.parametrize("size", [-1, 2.0, True, None])
def test_bad_size(size):
    with pytest.raises(ValueError, match="size"):
        PromptCache(Encoder(), size)


def test_bad_prompts_reach_no_encoder():
    encode = Encoder()
    cache = PromptCache(encode, 4)
    with pytest.raises(ValueError, match="prompt"):
        cache.get("  ")
    with pytest.raises(TypeError, match="prompt"):
        cache.get(7)
    assert encode.calls == []
