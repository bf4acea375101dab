"""Running an iterator ahead of its consumer, in a background thread."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _Buffer(Generic[T]):
    """What the two threads share: the items that are ready, and whether either side has finished."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: deque[T] = deque()
        self.error: BaseException | None = None
        self.exhausted = False
        self.closed = False
        self.changed = threading.Condition()

    def fill(self, source: Iterator[T]) -> None:
        """The background thread: draw from `source` until it ends, fails, or the consumer closes."""
        error: BaseException | None = None
        try:
            while self._wait_for_room():
                item = next(source)
                with self.changed:
                    self.items.append(item)
                    self.changed.notify_all()
        except StopIteration:
            pass
        except BaseException as caught:  # handed to the consumer, whatever it is: nobody looks at this thread
            error = caught
        with self.changed:
            self.error = error
            self.exhausted = True
            self.changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.size)
            return not self.closed

    def close(self, thread: threading.Thread) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if thread is not threading.current_thread():  # garbage collection may run in any thread, this one included
            thread.join()
        self.items.clear()


class Prefetcher(Iterator[T]):
    """Iterates over `source`, of which a background thread keeps up to `size` items ready.

    An exception of the source is raised to the consumer after the items that came before it. The thread ends when the
    source does, when `close` is called or a `with` block is left, when this object is garbage, or with the program.
    """

    def __init__(self, source: Iterator[T], size: int) -> None:
        if size < 1:
            raise ValueError(f"a prefetch of {size} items: at least 1 is needed")
        # The thread holds the buffer and not this object, so that an abandoned iterator can be collected and closed.
        self._buffer: _Buffer[T] = _Buffer(size)
        self._thread = threading.Thread(target=self._buffer.fill, args=(source,), name="prefetch", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._buffer.close, self._thread)

    def __next__(self) -> T:
        buffer = self._buffer
        with buffer.changed:
            buffer.changed.wait_for(lambda: buffer.items or buffer.exhausted or buffer.closed)
            if buffer.items and not buffer.closed:
                item = buffer.items.popleft()
                buffer.changed.notify_all()
                return item
            error, buffer.error = buffer.error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it; may be called more than once."""
        self._finalizer()

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
