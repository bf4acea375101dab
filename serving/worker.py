"""The one thread that uses the model: it combines waiting tasks into batches and reports their results."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.scoring import TokenScores
from gpt_mesh.generation.requests import Event, GenerationRequest
from gpt_mesh.serving.errors import ApiError, queue_full, shutting_down
from gpt_mesh.storage.progress import log


class EventStream(Protocol):
    """Events of a batch, as they are generated."""

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self, index: int) -> None:
        """Cancel one request of the batch. Callable from any thread."""


class ServedModel(Protocol):
    """The methods of a model that the worker uses."""

    def stream(self, requests: Sequence[GenerationRequest]) -> EventStream:
        """Continue prompts."""

    def score(self, rows: Sequence[Sequence[int]]) -> Iterable[TokenScores]:
        """Score given tokens."""


TaskUpdate = Event | TokenScores | ApiError


@dataclass(eq=False)
class SequenceTask:
    """One sequence to generate or to score.

    Attributes:
        work: a prompt with its settings, or tokens to score.
        report: called in the worker's thread with each event, with the scores, or with the error that ends the task.
    """

    work: GenerationRequest | tuple[int, ...]
    report: Callable[[TaskUpdate], None]
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def generates(self) -> bool:
        return isinstance(self.work, GenerationRequest)


class Worker:
    """A queue of tasks and the thread that processes it."""

    def __init__(self, model: ServedModel, max_batch: int, max_waiting: int, max_wait: float) -> None:
        """
        Args:
            model: used by this thread only from now on.
            max_batch: maximum number of sequences in a batch.
            max_waiting: maximum number of tasks in the queue.
            max_wait: seconds that the first task waits for others to join its batch.
        """
        self._model, self._max_batch, self._max_waiting, self._max_wait = model, max_batch, max_waiting, max_wait
        self._waiting: deque[SequenceTask] = deque()
        self._running: list[SequenceTask] = []
        self._stream: EventStream | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def waiting(self) -> int:
        """Number of tasks in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of tasks in the current batch."""
        return len(self._running)

    def submit(self, tasks: Sequence[SequenceTask]) -> None:
        """Queue the tasks of one request.

        Raises:
            ApiError: the queue is full, or the server is shutting down.
        """
        with self._changed:
            if self._closing:
                raise shutting_down()
            # An empty queue accepts a request with any number of sequences.
            if self._waiting and len(self._waiting) + len(tasks) > self._max_waiting:
                raise queue_full()
            self._waiting.extend(tasks)
            self._changed.notify()

    def cancel(self, tasks: Iterable[SequenceTask]) -> None:
        """Remove tasks from the queue, or from the batch at the next opportunity."""
        with self._changed:
            for task in tasks:
                task.cancelled = True
                if self._stream is not None and task in self._running:
                    self._stream.cancel(self._running.index(task))
            self._waiting = deque(task for task in self._waiting if not task.cancelled)

    def close(self) -> None:
        """Accept no more tasks. The thread ends when the accepted ones are done."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def abandon(self) -> None:
        """Fail all tasks, and end as soon as the model returns."""
        self.close()
        with self._changed:
            left = [task for task in [*self._running, *self._waiting] if not task.cancelled]
        self.cancel(left)
        for task in left:
            task.report(shutting_down())

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; returns whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except InputError as error:
                self._fail(batch, ApiError(400, str(error)))
            except Exception as error:  # the failure of a batch must not end the server
                log.exception("a batch of %d failed", len(batch))
                self._fail(batch, ApiError(500, f"the model failed ({type(error).__name__}); its log says more"))
            finally:
                with self._changed:
                    self._running, self._stream = [], None

    def _next_batch(self) -> list[SequenceTask]:
        """The tasks that have waited longest and can run together; empty when the worker is closed."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                left = self._waiting[0].since + self._max_wait - time.monotonic()
                if left <= 0 or len(self._waiting) >= self._max_batch or self._closing:
                    return self._take()
                self._changed.wait(left)

    def _take(self) -> list[SequenceTask]:
        first = self._waiting[0]
        alike = [task for task in self._waiting if task.generates == first.generates]
        self._running = alike[: self._max_batch]
        taken = set(map(id, self._running))
        self._waiting = deque(task for task in self._waiting if id(task) not in taken)
        return self._running

    def _run(self, batch: Sequence[SequenceTask]) -> None:
        if not batch[0].generates:
            rows = [task.work for task in batch if not isinstance(task.work, GenerationRequest)]
            for task, scores in zip(batch, self._model.score(rows), strict=True):
                self._report(task, scores)
            return
        stream = self._model.stream([task.work for task in batch if isinstance(task.work, GenerationRequest)])
        with self._changed:
            self._stream = stream
            for index, task in enumerate(batch):
                if task.cancelled:  # after the batch was formed
                    stream.cancel(index)
        for event in stream:
            self._report(batch[event.index], event)

    def _fail(self, batch: Sequence[SequenceTask], error: ApiError) -> None:
        for task in batch:
            self._report(task, error)

    def _report(self, task: SequenceTask, update: TaskUpdate) -> None:
        if not task.cancelled:
            task.report(update)
