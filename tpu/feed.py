"""Batches for a session, fed to it by a thread of this process.

TPUEstimator's input functions may run on a TPU's own host, where there is no Python of ours and no file system but
`gs://`. So batches are made here, and a queue on that host takes them in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

CAPACITY = 8  # batches on the way

v1 = tf.compat.v1


class Feed(tf.compat.v1.train.SessionRunHook):
    """A hook that fills a queue, and the input function that empties it."""

    def __init__(self, forms: dict[str, tf.TensorSpec], batches: Callable[[int], Iterable[Any]]) -> None:
        """
        Args:
            forms: shape and type of each feature.
            batches: from the global step of the session, which may have been restored, the batches from there on: an
                array, or a tuple of them, one a feature. If it is a context manager, it is entered.
        """
        self._forms, self._batches = forms, batches
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def input_fn(self, params: Any) -> dict[str, tf.Tensor]:
        """The next batch, as TPUEstimator's input functions give it."""
        del params
        dequeue = self._make_queue()
        return dequeue()

    def dataset(self, params: Any) -> tf.data.Dataset:
        """All batches, as TPUEstimator's predict wants them."""
        del params
        dequeue = self._make_queue()
        return tf.data.Dataset.from_tensors(0).repeat().map(lambda _: dequeue())

    def _make_queue(self) -> Callable[[], dict[str, tf.Tensor]]:
        """A queue in the graph at hand; returns what takes a batch from it."""
        forms = self._forms.values()
        queue = v1.FIFOQueue(CAPACITY, [form.dtype for form in forms], [form.shape for form in forms])
        self._slots = [v1.placeholder(form.dtype, form.shape) for form in forms]
        self._enqueue = queue.enqueue(self._slots)
        self._close = queue.close(cancel_pending_enqueues=True)
        self._global_step = v1.train.get_global_step()

        def dequeue() -> dict[str, tf.Tensor]:
            taken = queue.dequeue()
            taken = taken if isinstance(taken, (list, tuple)) else [taken]
            for tensor, form in zip(taken, forms, strict=True):
                tensor.set_shape(form.shape)
            return dict(zip(self._forms, taken, strict=True))

        return dequeue

    def after_create_session(self, session: Any, coord: Any) -> None:
        """Start feeding; after a lost session, from where the new one stands."""
        del coord
        self._join()
        self._stop.clear()
        step = int(session.run(self._global_step))
        self._thread = threading.Thread(target=self._fill, args=(session, step), name="feed", daemon=True)
        self._thread.start()

    def _fill(self, session: Any, step: int) -> None:
        try:
            source = self._batches(step)
            with source if isinstance(source, AbstractContextManager) else nullcontext():
                for arrays in source:
                    if self._stop.is_set():
                        return
                    given = [arrays] if isinstance(arrays, np.ndarray) else arrays
                    session.run(self._enqueue, dict(zip(self._slots, given, strict=True)))
        except Exception as error:
            # A session that ended takes nothing more; anything else has to end the session, which waits for a batch.
            if not self._stop.is_set() and not isinstance(error, (tf.errors.CancelledError, RuntimeError)):
                self._error = error
                session.run(self._close)

    def end(self, session: Any) -> None:
        """The session needs no more."""
        self._stop.set()
        session.run(self._close)
        self._join()

    def finish(self) -> None:
        """After the session, however it ended: ends the thread, and raises what went wrong with the data."""
        self._stop.set()
        self._join()
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join(timeout=60)
            self._thread = None
