"""The prefetching iterator: order, bounds, errors, and an end to its thread in every case."""

from __future__ import annotations

import gc
import itertools
import threading
import time

import pytest

from gpt_mesh.data.prefetch import Prefetcher


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 5
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prefetch_threads() == []


def test_items_come_in_order_and_end():
    prefetcher = Prefetcher(iter(range(20)), 3)
    assert list(prefetcher) == list(range(20))
    assert list(prefetcher) == []


def test_no_more_than_size_items_are_drawn_ahead():
    drawn: list[int] = []

    def draw():
        for i in itertools.count():
            drawn.append(i)
            yield i

    with Prefetcher(draw(), 3) as prefetcher:
        for _ in range(5):
            next(prefetcher)
        time.sleep(0.1)
        assert 5 <= len(drawn) <= 8


def test_an_error_reaches_the_consumer_after_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise RuntimeError("disk on fire")

    prefetcher = Prefetcher(source(), 4)
    assert [next(prefetcher), next(prefetcher)] == [1, 2]
    with pytest.raises(RuntimeError, match="disk on fire"):
        next(prefetcher)
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_close_ends_the_thread_and_the_iteration():
    prefetcher = Prefetcher(itertools.count(), 2)
    next(prefetcher)
    prefetcher.close()
    prefetcher.close()
    assert prefetch_threads() == []
    assert list(prefetcher) == []


def test_leaving_the_block_by_an_exception_ends_the_thread():
    with pytest.raises(KeyError), Prefetcher(itertools.count(), 2):
        raise KeyError
    assert prefetch_threads() == []


def test_an_abandoned_iterator_ends_its_thread():
    prefetcher = Prefetcher(itertools.count(), 2)
    next(prefetcher)
    del prefetcher
    gc.collect()
    assert prefetch_threads() == []


def test_a_size_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Prefetcher(iter([]), 0)
