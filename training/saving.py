"""Checkpoints written beside training, from a snapshot of the variables."""

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
    """Writes the checkpoints of a run one at a time, in a thread: as `checkpoints.save` would at once.

    What went wrong in the thread is raised by the next call of any method.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[str] | None = None

    def start(self, step: int, values: Mapping[str, tf.Tensor], state: Mapping[str, Any]) -> None:
        """Begin to write these values, which stay as they are (`Engine.snapshot`), and `state` as it is now.

        Nothing else may be being written.
        """
        assert self._writing is None
        directory = self._config.training.model_path
        self._writing = self._thread.submit(checkpoints.save, directory, step, values, copy.deepcopy(dict(state)))

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written, as any thread may ask."""
        writing = self._writing
        return writing is not None and not writing.done()

    def written(self, *, wait: bool) -> str | None:
        """The path of the checkpoint begun last, told once, when it is whole; None if there is none, or not yet.

        Raises:
            InputError: it could not be written.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        with alive("writing the checkpoint"):
            error = self._writing.exception()  # a signal may end the wait: then nothing was told yet
        writing, self._writing = self._writing, None
        if isinstance(error, (tf.errors.OpError, OSError)):
            raise report.unwritable(self._config, error) from error
        return writing.result()

    def close(self) -> None:
        """Wait for what is being written."""
        try:
            self.written(wait=True)
        finally:
            self._thread.shutdown()
