"""Training on CPUs and GPUs: steps, logs, checkpoints, evaluation and samples along the way."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf

from config import Config
from errors import InputError
from evaluation.validation import Validation
from inputs import TrainingData
from meshes.devices import MeshPlan
from training import checkpoints, report
from training.engine import Engine
from training.metrics import JsonLines, device_peak, flops_per_token
from training.progress import Progress, log
from training.samples import SampleWriter


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended.

    Attributes:
        step: steps done, over the whole life of the run.
        interrupted: whether a signal ended it before `train_steps`.
        checkpoint: the newest.
        evaluation: metrics of the last evaluation of this call, if there was one.
    """

    step: int
    interrupted: bool
    checkpoint: str
    evaluation: dict[str, float | None] | None


@dataclass
class _Interval:
    """Sums since the last logged step. Kept in checkpoints, so that a resumed run logs the same averages."""

    steps: int = 0
    loss: float = 0.0
    nll: float = 0.0
    pending: list[dict[str, tf.Tensor]] = field(default_factory=list)

    def fetch(self) -> dict[str, float]:
        """Add what the device has computed since; return the newest step's values."""
        newest: dict[str, float] = {}
        for outputs in self.pending:
            newest = {name: float(value) for name, value in outputs.items()}
            self.steps += 1
            self.loss += newest["loss"]
            self.nll += newest["nll"]
        self.pending.clear()
        return newest

    def state(self) -> dict[str, float]:
        return {"steps": self.steps, "loss": self.loss, "nll": self.nll}


class Trainer:
    """One training run in `model_path`, new or resumed."""

    def __init__(
        self, config: Config, plan: MeshPlan, *, steps_per_checkpoint: int, sacred_id: str | None = None
    ) -> None:
        """Checks everything that can be wrong before the first step.

        Raises:
            InputError: data, checkpoint or directory cannot be used.
        """
        self.config, self.plan = config, plan
        self.directory = config.training.model_path
        self.steps_per_checkpoint = steps_per_checkpoint
        report.prepare_directory(self.directory)
        self.checkpoint = checkpoints.latest(self.directory)
        self.data = TrainingData(config)
        self.validation = Validation(config) if config.training.eval_steps else None
        self.engine = Engine(config, plan)
        self.samples = SampleWriter(self.engine, sacred_id) if config.training.predict_steps else None
        self.metrics = JsonLines(tf.io.gfile.join(self.directory, "metrics.jsonl"))
        self.evaluations = JsonLines(tf.io.gfile.join(self.directory, "eval.jsonl"))
        self.interval = _Interval()
        self.step, self.position = 0, 0
        self.log_every = min(config.training.iterations, steps_per_checkpoint)
        self.peak = device_peak(list(plan.devices), config.training.precision)
        self._stop = False
        self._restore()

    def _restore(self) -> None:
        self.engine.create_variables(training=True)
        if self.checkpoint is not None:
            missing = self.engine.restore(self.checkpoint)
            if missing:
                log.info(
                    "%s has no optimizer slots for %d weights: they start at zero", self.checkpoint, len(missing) // 2
                )
            self.step = int(self.engine.global_step.numpy())
            state = checkpoints.restore_state(self.checkpoint)
            self.position = int(state.get("samples", self.step * self.config.training.train_batch_size))
            self.interval = _Interval(**state.get("interval", {}))
            if state.get("data", self.data.fingerprint) != self.data.fingerprint:
                log.warning(
                    "the data, its mixture or the seed changed since %s: going on from sample %d of the new order",
                    self.checkpoint,
                    self.position,
                )
        self.metrics.rewind(self.step)
        self.evaluations.rewind(self.step)

    def run(self) -> TrainResult:
        """Train to `train_steps` or until SIGINT or SIGTERM, whichever comes first; both leave a checkpoint."""
        total = self.config.training.train_steps
        evaluation = None
        if self.step >= total:
            assert self.checkpoint is not None
            log.info("%s is at step %d of %d already: nothing to train", self.checkpoint, self.step, total)
            return TrainResult(self.step, False, self.checkpoint, None)
        report.write_config(self.config)
        for line in [*report.header(self.config, self.plan), *self.data.describe()]:
            log.info(line)
        where = f"from {self.checkpoint}" if self.checkpoint else "new run"
        log.info("training steps %d to %d, %s", self.step, total, where)
        size = self.config.training.train_batch_size
        writer = tf.summary.create_file_writer(self.directory)
        progress = Progress(total, self.step, "training", "steps")
        with self._signals(), writer.as_default(), self.data.batches(self.position, size) as batches:
            clock = _Clock()
            while self.step < total and not self._stop:
                self._one_step(next(batches), clock, progress)
                if self.step % self.steps_per_checkpoint == 0 or self.step == total or self._stop:
                    with clock.paused():
                        self._save()
                        if not self._stop:
                            evaluation = self._after_checkpoint()
            progress.close()
        assert self.checkpoint is not None
        if self.step < total:
            log.info(
                "interrupted at step %d of %d; saved %s: the same command goes on from there",
                self.step,
                total,
                self.checkpoint,
            )
        return TrainResult(self.step, self.step < total, self.checkpoint, evaluation)

    def _one_step(self, tokens: np.ndarray, clock: _Clock, progress: Progress) -> None:
        first = clock.steps == 0
        if first:
            log.info("compiling the training step")
        self.interval.pending.append(self.engine.train_step(tokens))
        self.step += 1
        self.position += len(tokens)
        if first:
            self._check_finite(self.interval.fetch())
            log.info("compiled in %.0f s", clock.start())
        else:
            clock.steps += 1
        if self.step % self.log_every == 0:
            row = self._log(clock)
            progress.update(loss=f"{row['loss']:.4f}", tokens_per_second=f"{row['tokens_per_second'] or 0:.0f}")
        else:
            progress.update()

    def _log(self, clock: _Clock) -> dict[str, Any]:
        newest = self.interval.fetch()
        self._check_finite(newest)
        rate = clock.rate()
        tokens_per_second = rate * self.config.training.train_batch_size * self.config.model.n_ctx if rate else None
        row = {
            "step": self.step,
            "loss": self.interval.loss / self.interval.steps,
            "nll": self.interval.nll / self.interval.steps,
            "lr": newest["lr"],
            "grad_norm": newest["grad_norm"],
            "tokens_per_second": tokens_per_second,
            "mfu": tokens_per_second * flops_per_token(self.config.model) / self.peak
            if tokens_per_second and self.peak
            else None,
        }
        self.interval = _Interval()
        self.metrics.append(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                tf.summary.scalar(f"training/{name}", value, step=self.step)
        log.info(report.log_line(row, self.config.training.train_steps, rate))
        return row

    def _check_finite(self, newest: dict[str, float]) -> None:
        if newest and not math.isfinite(newest["loss"]):
            kept = self.checkpoint or "none yet"
            raise InputError(
                f"{self.config.source}: the loss became {newest['loss']} by step {self.step}; the newest "
                f"checkpoint is {kept}; "
                f"train with a lower lr ({self.config.optimizer.lr}) or more warmup_steps "
                f"({self.config.optimizer.warmup_steps})"
            )

    def _save(self) -> None:
        self._check_finite(self.interval.fetch())
        state = {"samples": self.position, "data": self.data.fingerprint, "interval": self.interval.state()}
        self.checkpoint = self.engine.save(self.directory, self.step, state)
        log.info("saved %s", self.checkpoint)

    def _after_checkpoint(self) -> dict[str, float | None] | None:
        metrics = None
        if self.validation is not None:
            metrics = self.validation.run(self.engine)
            self.evaluations.append({"step": self.step, "task": "validation", **metrics})
            for name, value in metrics.items():
                if value is not None:
                    tf.summary.scalar(f"validation/{name}", value, step=self.step)
            log.info(report.evaluation_line(self.step, metrics))
        if self.samples is not None:
            text = self.samples.write(self.step)
            tf.summary.text("samples", text, step=self.step)
        tf.summary.flush()
        return metrics

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the current step; a second one ends it at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            log.info("%s: saving after this step (once more ends at once)", signal.Signals(number).name)

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: signals are the caller's
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Clock:
    """Time spent on steps: without compiling, and without what comes between them."""

    def __init__(self) -> None:
        self.steps = 0
        self._begin = time.perf_counter()

    def start(self) -> float:
        """Begin to count, after the first step; returns the seconds until now."""
        before, self._begin, self.steps = self._begin, time.perf_counter(), 1
        self._counted = 0
        return self._begin - before

    def rate(self) -> float | None:
        """Steps a second since the last call; None if there were none."""
        now, done = time.perf_counter(), self.steps - 1 - self._counted
        elapsed, self._begin, self._counted = now - self._begin, now, self.steps - 1
        return done / elapsed if done else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` or `eval.jsonl`."""
    with tf.io.gfile.GFile(path) as file:
        return [json.loads(line) for line in file.read().splitlines()]
