"""The queue and the thread that owns the model, over a model of which every step is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from gpt_mesh.config import GenerationSettings
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.scoring import TokenScores
from gpt_mesh.generation.requests import Event, FinishReason, GenerationRequest
from gpt_mesh.serving.errors import ApiError
from gpt_mesh.serving.worker import SequenceTask, TaskUpdate, Worker

SECONDS = 20


class Stream:
    """Counts from a prompt's first token, a number an event, as far as it is let."""

    def __init__(self, model: Model, requests: Sequence[GenerationRequest]) -> None:
        self._model, self._requests, self._cancelled = model, requests, set[int]()

    def cancel(self, index: int) -> None:
        self._cancelled.add(index)

    def __iter__(self) -> Iterator[Event]:
        left = dict(enumerate(self._requests))
        for step in range(1000):
            assert self._model.steps.acquire(timeout=SECONDS)
            for index, request in list(left.items()):
                most = request.settings.max_new_tokens or 1
                last: FinishReason | None
                last = "cancelled" if index in self._cancelled else "length" if step + 1 == most else None
                if last:
                    del left[index]
                tokens = () if last == "cancelled" else (int(request.prompt[0]) + step,)
                yield Event(index, tokens, "", None, last)
            if not left:
                return


class Model:
    """A model whose steps the test allows, one by one."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def stream(self, requests: Sequence[GenerationRequest]) -> Stream:
        self.batches.append([int(request.prompt[0]) for request in requests])
        if requests[0].prompt[0] == 666:
            raise InputError("cannot be")
        if requests[0].prompt[0] == 667:
            raise RuntimeError("a defect")
        return Stream(self, requests)

    def score(self, rows: Sequence[Sequence[int]]) -> Iterator[TokenScores]:
        self.batches.append([-row[0] for row in rows])
        for row in rows:
            yield TokenScores(np.array(row[1:], np.float32), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))


class Listener:
    """A task's update, and when they come."""

    def __init__(self, first: int, tokens: int = 1, *, score: bool = False) -> None:
        self.update: list[TaskUpdate] = []
        self._came = threading.Condition()
        settings = GenerationSettings(max_new_tokens=tokens)
        self.task = SequenceTask((first, first + 1) if score else GenerationRequest([first], settings), self._hear)

    def _hear(self, update: TaskUpdate) -> None:
        with self._came:
            self.update.append(update)
            self._came.notify()

    def wait(self, count: int = 1) -> list[TaskUpdate]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.update) >= count, SECONDS), self.update
        return self.update

    @property
    def tokens(self) -> list[int]:
        return [token for update in self.update if isinstance(update, Event) for token in update.tokens]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def model() -> Model:
    return Model()


@contextmanager
def working(model: Model, max_wait: float) -> Iterator[Worker]:
    worker = Worker(model, max_batch=3, max_waiting=6, max_wait=max_wait)
    try:
        yield worker
    finally:
        worker.close()
        model.steps.release(1000)
        assert not worker._thread.ident or worker.join(SECONDS)


@pytest.fixture
def worker(model: Model) -> Iterator[Worker]:
    with working(model, 0.05) as worker:
        yield worker


def test_what_waits_together_runs_together_in_order(worker: Worker, model: Model) -> None:
    listeners = [Listener(10 * number, 2) for number in range(1, 6)]
    worker.submit([listener.task for listener in listeners])
    assert worker.waiting == 5
    worker.start()
    model.steps.release(4)
    for listener in listeners:
        listener.wait(2)
    assert model.batches == [[10, 20, 30], [40, 50]]
    assert [listener.tokens for listener in listeners] == [[10, 11], [20, 21], [30, 31], [40, 41], [50, 51]]


def test_the_first_waits_a_moment_for_others(model: Model) -> None:
    """A moment that no slow machine misses; a third one fills the batch and ends it."""
    listeners = [Listener(10), Listener(20), Listener(30)]
    with working(model, SECONDS) as worker:
        worker.start()
        model.steps.release(5)
        for listener in listeners:
            worker.submit([listener.task])
        for listener in listeners:
            listener.wait()
    assert model.batches == [[10, 20, 30]]


def test_scoring_and_generating_are_batches_of_their_own(worker: Worker, model: Model) -> None:
    listeners = [Listener(10), Listener(20, score=True), Listener(30), Listener(40, score=True)]
    worker.submit([listener.task for listener in listeners])
    model.steps.release(2)
    worker.start()
    for listener in listeners:
        listener.wait()
    assert model.batches == [[10, 30], [-20, -40]]
    assert isinstance(listeners[1].update[0], TokenScores) and listeners[1].update[0].logprobs.tolist() == [21.0]


def test_a_full_queue_refuses_but_never_a_request_that_waits_alone(worker: Worker) -> None:
    worker.submit([Listener(1).task for _ in range(7)])
    with pytest.raises(ApiError) as caught:
        worker.submit([Listener(2).task])
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "1"})
    assert worker.waiting == 7


def test_a_cancelled_task_leaves_the_queue_or_the_batch(worker: Worker, model: Model) -> None:
    running, other, waiting = Listener(10, 100), Listener(20, 3), Listener(30)
    worker.submit([running.task, other.task])
    worker.start()
    model.steps.release(1)
    running.wait(), other.wait()
    worker.submit([waiting.task])
    worker.cancel([running.task, waiting.task])
    assert (worker.waiting, worker.running) == (0, 2)
    model.steps.release(2)
    other.wait(3)
    until(lambda: worker.running == 0)
    assert running.tokens == [10] and other.tokens == [20, 21, 22], "the other is not disturbed"
    assert model.batches == [[10, 20]] and waiting.update == []


@pytest.mark.parametrize(("first", "status"), [(666, 400), (667, 500)])
def test_a_batch_that_fails_is_told_and_the_next_one_runs(
    worker: Worker, model: Model, first: int, status: int
) -> None:
    worker.start()
    bad, good = Listener(first), Listener(10)
    worker.submit([bad.task])
    (update,) = bad.wait()
    assert isinstance(update, ApiError) and update.status == status
    worker.submit([good.task])
    model.steps.release(1)
    good.wait()
    assert good.tokens == [10]


def test_closed_it_finishes_what_it_has_and_takes_nothing_new(worker: Worker, model: Model) -> None:
    listeners = [Listener(number) for number in range(1, 5)]
    worker.submit([listener.task for listener in listeners])
    worker.close()
    with pytest.raises(ApiError) as caught:
        worker.submit([Listener(9).task])
    assert caught.value.status == 503
    worker.start()
    model.steps.release(2)
    assert worker.join(SECONDS)
    assert [listener.tokens for listener in listeners] == [[1], [2], [3], [4]]


def test_abandoned_it_tells_everyone_and_ends(worker: Worker, model: Model) -> None:
    running, waiting = [Listener(n, 100) for n in (1, 2, 3)], Listener(4)
    worker.submit([*(listener.task for listener in running), waiting.task])
    worker.start()
    model.steps.release(1)
    running[0].wait()
    until(lambda: worker.running == 3)
    worker.abandon()
    for listener in [*running, waiting]:
        last = listener.update[-1]
        assert isinstance(last, ApiError) and last.status == 503
    model.steps.release(1)
    assert worker.join(SECONDS)
