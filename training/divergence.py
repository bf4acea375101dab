"""Notices steps that are not finite, and spikes of the loss."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import deque
from collections.abc import Mapping
from typing import NoReturn

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError, shown
from gpt_mesh.inputs import TrainingData
from gpt_mesh.storage import strict_json
from gpt_mesh.storage.progress import log
from gpt_mesh.training.interval import is_finite

WINDOW = 100  # steps whose losses a new one is compared with
LEAST = 20  # of them
SPIKE = 10.0  # times the median distance from the median
DUMP = "nonfinite.json"


class StepJudge:
    """Judges each step of a run by its loss and its gradients.

    A loss is a spike if it is above the median of the last 100 by more than ten times their median distance from it.
    """

    def __init__(self, config: Config, data: TrainingData) -> None:
        self._config, self._data = config, data
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._in_spike = False
        self._in_row = 0

    def check(self, step: int, position: int, values: Mapping[str, float], checkpoint: str | None) -> None:
        """Look at a step that is done.

        Args:
            position: in the data, after the step.
            values: the step's outputs.
            checkpoint: the newest, for the message.

        Raises:
            InputError: its loss or its gradients are not finite, and `on_nonfinite` says to stop, or too many steps in
                a row were skipped.
        """
        settings = self._config.training
        if is_finite(values):
            self._in_row = 0
            self._look_for_spike(step, values["loss"])
            return
        self._in_row += 1
        what = f"the loss of step {step} is {values['loss']}, the norm of its gradients {values['grad_norm']}"
        if settings.on_nonfinite == "skip":
            if self._in_row < settings.max_nonfinite_steps:
                log.warning("%s: its batch is skipped", what)
                return
            what = f"{what}, and it is skipped step {self._in_row} in a row (max_nonfinite_steps)"
        self.stop(step, position, what, checkpoint)

    def stop(self, step: int, position: int, what: str, checkpoint: str | None) -> NoReturn:
        """End the run at a step, with a file that says where to replay it.

        Raises:
            InputError: always. It says `what` happened.
        """
        config = self._config
        first, size = position - config.training.train_batch_size, config.training.train_batch_size
        tokens = self._data.batch(first, size)
        path = os.path.join(config.training.model_path, DUMP)
        strict_json.write(path, {
            "step": step, "what": what, "checkpoint": checkpoint, "first_sample": first, "samples": size,
            "tokens_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(), "data": self._data.fingerprint,
        })  # fmt: skip
        raise InputError(
            f"{config.source}: {what}; its batch begins at sample {first:,} ({shown(path)}; --replay_step {step} runs "
            f"it again); {_newest(checkpoint, step)} with a lower lr ({config.optimizer.lr}) or more warmup_steps "
            f"({config.optimizer.warmup_steps}), or on_nonfinite = skip"
        )

    def _look_for_spike(self, step: int, loss: float) -> None:
        spike = False
        if len(self._losses) >= LEAST:
            middle = statistics.median(self._losses)
            spread = statistics.median(abs(one - middle) for one in self._losses)
            spike = loss - middle > SPIKE * spread
            if spike and not self._in_spike:
                log.warning(
                    "step %d: the loss %.4f is a spike: the median of the %d steps before is %.4f",
                    step, loss, len(self._losses), middle,
                )  # fmt: skip
        self._in_spike = spike
        self._losses.append(loss)


def _newest(checkpoint: str | None, step: int) -> str:
    """Where to continue from, as the beginning of a sentence."""
    if checkpoint is None:
        return "there is no checkpoint yet: start again"
    if checkpoints.step_of(checkpoint) < step - 1:
        return f"the newest checkpoint is {shown(checkpoint)}: continue"
    return (
        f"the newest checkpoint is {shown(checkpoint)}, of the step before: delete its files if this recurs, and "
        "continue"
    )
