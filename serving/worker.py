"""The one thread that uses the model: it takes what waits together as a batch, and hands on news of each part."""

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


class Stream(Protocol):
    """Events of a batch, as they come."""

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self, index: int) -> None:
        """End one request of the batch; from any thread."""


class Model(Protocol):
    """What the worker needs of a model."""

    def stream(self, requests: Sequence[GenerationRequest]) -> Stream:
        """Continue prompts."""

    def score(self, rows: Sequence[Sequence[int]]) -> Iterable[TokenScores]:
        """Score given tokens."""


News = Event | TokenScores | ApiError


@dataclass(eq=False)
class Task:
    """One sequence to generate or to score.

    Attributes:
        work: a prompt with its settings, or tokens to score.
        report: takes each event, or the scores, or why there will be none; called in the worker's thread.
    """

    work: GenerationRequest | tuple[int, ...]
    report: Callable[[News], None]
    since: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def generates(self) -> bool:
        return isinstance(self.work, GenerationRequest)


class Worker:
    """A queue of tasks and the thread that works it off."""

    def __init__(self, model: Model, max_batch: int, max_waiting: int, max_wait: float) -> None:
        """
        Args:
            model: used by no one else from now on.
            max_batch: most sequences at once.
            max_waiting: most tasks in the queue.
            max_wait: seconds that the first task waits for others to share its batch.
        """
        self._model, self._max_batch, self._max_waiting, self._max_wait = model, max_batch, max_waiting, max_wait
        self._waiting: deque[Task] = deque()
        self._running: list[Task] = []
        self._stream: Stream | None = None
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
        """Tasks that nothing has been done for yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Tasks of the batch in hand."""
        return len(self._running)

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue the tasks of one request.

        Raises:
            ApiError: there is no room for them, or the server is shutting down.
        """
        with self._changed:
            if self._closing:
                raise shutting_down()
            # One request may always wait alone, however many sequences it has.
            if self._waiting and len(self._waiting) + len(tasks) > self._max_waiting:
                raise queue_full()
            self._waiting.extend(tasks)
            self._changed.notify()

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Nobody wants these any more: they leave the queue, or the batch at the next opportunity."""
        with self._changed:
            for task in tasks:
                task.cancelled = True
                if self._stream is not None and task in self._running:
                    self._stream.cancel(self._running.index(task))
            self._waiting = deque(task for task in self._waiting if not task.cancelled)

    def close(self) -> None:
        """Take no more tasks. The thread ends when those it has are done."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def abandon(self) -> None:
        """Tell everyone that nothing more comes, and end as soon as the model lets go."""
        self.close()
        with self._changed:
            left = [task for task in [*self._running, *self._waiting] if not task.cancelled]
        self.cancel(left)
        for task in left:
            task.report(shutting_down())

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; whether it came."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._run(batch)
            except InputError as error:
                self._fail(batch, ApiError(400, str(error)))
            except Exception as error:  # one batch's failure is not the server's
                log.exception("a batch of %d failed", len(batch))
                self._fail(batch, ApiError(500, f"the model failed ({type(error).__name__}); its log says more"))
            finally:
                with self._changed:
                    self._running, self._stream = [], None

    def _next_batch(self) -> list[Task]:
        """The tasks that have waited longest and can run together; none when the worker is closed."""
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

    def _take(self) -> list[Task]:
        first = self._waiting[0]
        alike = [task for task in self._waiting if task.generates == first.generates]
        self._running = alike[: self._max_batch]
        taken = set(map(id, self._running))
        self._waiting = deque(task for task in self._waiting if id(task) not in taken)
        return self._running

    def _run(self, batch: Sequence[Task]) -> None:
        if not batch[0].generates:
            rows = [task.work for task in batch if not isinstance(task.work, GenerationRequest)]
            for task, scores in zip(batch, self._model.score(rows), strict=True):
                self._tell(task, scores)
            return
        stream = self._model.stream([task.work for task in batch if isinstance(task.work, GenerationRequest)])
        with self._changed:
            self._stream = stream
            for index, task in enumerate(batch):
                if task.cancelled:  # since the batch was taken
                    stream.cancel(index)
        for event in stream:
            self._tell(batch[event.index], event)

    def _fail(self, batch: Sequence[Task], error: ApiError) -> None:
        for task in batch:
            self._tell(task, error)

    def _tell(self, task: Task, news: News) -> None:
        if not task.cancelled:
            task.report(news)
