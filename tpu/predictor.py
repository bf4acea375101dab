"""A function of the model in a session that stays open: TPUEstimator's predict, in a thread of its own.

Predict is a generator that reads its input by itself and makes its graph the default one of the thread that runs it. So
a thread runs it, takes the arrays of one call at a time, and hands back what comes of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_mesh.meshes.compat import quiet_estimator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh.tpu.estimator import Host
from gpt_mesh.tpu.feed import Feed
from gpt_mesh.tpu.session import graph_mode


class Predictor:
    """Calls one function with the weights of one checkpoint."""

    def __init__(self, host: Host, forms: Sequence[tf.TensorSpec], checkpoint: str) -> None:
        """`forms`: shape and type of each argument."""
        self._host, self._checkpoint = host, checkpoint
        self._given: queue.SimpleQueue[list[NDArray[Any]] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[dict[str, NDArray[Any]] | BaseException] = queue.SimpleQueue()
        self._calls, self._closed = threading.Semaphore(0), False
        self._feed = Feed({str(i): form for i, form in enumerate(forms)}, lambda step: iter(self._given.get, None))
        self._thread = threading.Thread(target=self._run, name="predict", daemon=True)
        self._thread.start()

    def __call__(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The results for these arguments.

        Raises:
            InputError: the checkpoint does not fit the model.
        """
        self._given.put(list(arrays))
        self._calls.release()
        found = self._found.get()
        if isinstance(found, BaseException):
            raise found
        return [np.asarray(found[str(i)]) for i in range(len(found))]

    def close(self) -> None:
        """End the session."""
        self._closed = True
        self._given.put(None)  # the feed's end
        self._calls.release()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            with quiet_estimator(), graph_mode():  # which the graph needs while it is built, for the first call
                # Only a TPU needs a dataset; TensorFlow 2.15 can crash when it closes a session with such an iterator.
                read = self._feed.input_fn if self._host.tpu.is_rehearsal else self._feed.dataset
                results = self._host.estimator().predict(
                    read, hooks=[self._feed], checkpoint_path=self._checkpoint, yield_single_examples=False
                )
                going = self._answer(results)
            while going:
                going = self._answer(results)
            results.close()
            self._feed.finish()
        except BaseException as error:
            self._found.put(error)

    def _answer(self, results: Iterator[dict[str, NDArray[Any]]]) -> bool:
        """Wait for a call and answer it; returns whether there will be more."""
        self._calls.acquire()
        if self._closed:
            return False
        self._found.put(next(results))
        return True
