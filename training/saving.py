"""Writes checkpoints in the background, from a snapshot of the variables."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.storage.progress import alive
from gpt_mesh.training import report


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, one at a time. They equal those of `checkpoints.save`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None

    def start(self, step: int, values: Mapping[str, tf.Tensor], state: Mapping[str, Any]) -> None:
        """Start writing a checkpoint. Only one may be written at a time.

        Args:
            values: from `Engine.snapshot`; they must not change.
            state: copied.
        """
        assert self._writing is None
        training = self._config.training
        retention = checkpoints.Retention(training.keep_last_n_checkpoints, training.keep_every_n_steps)
        self._writing = self._thread.submit(
            checkpoints.save, training.model_path, step, values, copy.deepcopy(dict(state)), retention
        )

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written. Callable from any thread."""
        writing = self._writing
        return writing is not None and not writing.done()

    def written(self, *, wait: bool) -> str | None:
        """The path of the last checkpoint, returned once, when it is complete; None if there is none, or it is not
        complete yet and `wait` is false.

        Raises:
            InputError: it could not be written.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        with alive("writing the checkpoint"):
            error = self._writing.exception()  # a signal may interrupt the wait: then nothing was returned yet
        writing, self._writing = self._writing, None
        if isinstance(error, (tf.errors.OpError, OSError)):
            raise report.unwritable(self._config, error) from error
        return writing.result()

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        try:
            self.written(wait=True)
        finally:
            self._thread.shutdown()
