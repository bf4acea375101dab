"""Training on a TPU: what `training.loop` does on other devices, as far as TPUEstimator allows it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.results import result_row
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.tasks import tasks_of
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.inputs import TrainingData
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.storage import heartbeat
from gpt_mesh.storage.json_lines import JsonLines
from gpt_mesh.storage.progress import alive, log
from gpt_mesh.tpu.devices import Tpu
from gpt_mesh.tpu.engine import TpuEngine
from gpt_mesh.tpu.estimator import Training
from gpt_mesh.tpu.session import EndHook, Figures, StepRecorderHook
from gpt_mesh.training import report
from gpt_mesh.training.interrupts import Interrupts
from gpt_mesh.training.interval import Interval
from gpt_mesh.training.loop import TrainResult, due_outputs
from gpt_mesh.training.runs import check_resumable
from gpt_mesh.training.samples import SampleWriter


class TpuTrainer:
    """One training run in `model_path`, new or resumed, here or by `training.loop`.

    Where there is something to do after each checkpoint (`eval_steps`, `predict_steps`), training stops for it and goes
    on from the checkpoint with a graph built anew; otherwise it runs through.
    """

    def __init__(
        self,
        config: Config,
        tpu: Tpu,
        *,
        steps_per_checkpoint: int,
        fit_mesh: bool = False,
        sacred_id: str | None = None,
        new: bool = False,
    ) -> None:
        """Checks everything that can be wrong before the first step.

        Args:
            fit_mesh: fit the config's mesh to the TPU's cores.
            new: as if there were no checkpoint.

        Raises:
            InputError: data, mesh or directory cannot be used.
        """
        if config.training.on_nonfinite == "skip":
            raise InputError(f"{config.source}: on_nonfinite = skip: --tpu has no such thing; leave the key out")
        self.config, self.tpu, self.new, self.sacred_id = config, tpu, new, sacred_id
        self.directory, self.steps_per_checkpoint = config.training.model_path, steps_per_checkpoint
        plan = tpu.plan(config, limits_of(config), training=True, fit=fit_mesh)
        self.checkpoint = None if new else checkpoints.latest(self.directory)
        if self.checkpoint is not None:
            check_resumable(config, self.checkpoint)
        self.data = TrainingData(config)
        self.tasks = tasks_of(config, validation=config.training.eval_steps > 0)
        self.log_every = steps_per_run(config, steps_per_checkpoint)
        self.engine = TpuEngine(config, plan, tpu)
        decoder = partial(Decoder, self.engine)
        self.samples = SampleWriter(config, decoder, sacred_id) if config.training.predict_steps else None
        self.metrics = JsonLines(tf.io.gfile.join(self.directory, "metrics.jsonl"))
        self.evaluations = JsonLines(tf.io.gfile.join(self.directory, "eval.jsonl"))
        self.interval, self.interrupts = Interval(), Interrupts()
        self.step, self.position = 0, 0
        self._resume()

    def _resume(self) -> None:
        """Where the run stands: its step, and the sample that step 0 would have begun at."""
        if self.checkpoint is None:
            return
        self.step = checkpoints.step_of(self.checkpoint)
        size = self.config.training.train_batch_size
        state = checkpoints.restore_state(self.checkpoint)
        self.position = int(state.get("samples", self.step * size)) - self.step * size
        if state.get("data", self.data.fingerprint) != self.data.fingerprint:
            log.warning(
                "the data, its mixture or the seed changed since %s: going on from sample %d of the new order",
                self.checkpoint,
                self.position + self.step * size,
            )

    def run(self) -> TrainResult:
        """Train to `train_steps` or until SIGINT or SIGTERM, whichever comes first; both leave a checkpoint."""
        self._begin()
        last, evaluation, cut_short = self.config.training.train_steps, None, False
        try:
            evaluation = self._after_checkpoint()  # what an interruption may have left undone
            while self.step < last and not self.interrupts.requested:
                with self.interrupts.deferred(), alive("training"):
                    self._train_to(self._next_stop())
                if not self.interrupts.requested:
                    evaluation = self._after_checkpoint()
        except KeyboardInterrupt:
            if self.checkpoint is None:
                raise
            cut_short = True
        finally:
            self.engine.close()
        assert self.checkpoint is not None
        interrupted = cut_short or self.interrupts.requested
        if interrupted:
            log.info(report.interrupted_line(self.step, last, self.checkpoint))
        return TrainResult(self.step, interrupted, self.checkpoint, evaluation)

    def _begin(self) -> None:
        if self.new:
            checkpoints.delete_all(self.directory)
        elif self.checkpoint is not None:  # TPUEstimator takes the one that the `checkpoint` file names
            checkpoints.finish(self.directory, self.step)
        for rows in (self.metrics, self.evaluations):
            rows.rewind(self.step)
        report.write_config(self.config)
        for line in [*report.header(self.config, self.engine.plan), *self.data.describe()]:
            log.info(line)
        where = f"from {self.checkpoint}" if self.checkpoint else "new run"
        log.info("training steps %d to %d, %s", self.step, self.config.training.train_steps, where)

    def _next_stop(self) -> int:
        """The step at which a session has to end."""
        last, every = self.config.training.train_steps, self.steps_per_checkpoint
        if not self.tasks and self.samples is None and self.step % every == 0:
            return last
        return min(last, (self.step // every + 1) * every)

    def _train_to(self, stop: int) -> None:
        account = StepRecorderHook(self, self.log_every, self.config.training.train_steps)

        def state(session: Any, step: int) -> dict[str, Any]:
            account.before_save(session)
            samples = self.position + step * self.config.training.train_batch_size
            return {"samples": samples, "data": self.data.fingerprint, "interval": self.interval.state()}

        training = Training(
            self.config, self.engine.plan, self.tpu, account=account, every=self.steps_per_checkpoint, state=state,
            hooks=[EndHook(self.interrupts)],
        )  # fmt: skip
        try:
            self.engine.train(training, self.data, self.position, stop, self.log_every)
        except tf.compat.v1.train.NanLossDuringTrainingError:
            raise report.diverged(self.config, math.nan, self.step, checkpoints.latest(self.directory)) from None
        self.checkpoint = checkpoints.latest(self.directory)
        assert self.checkpoint is not None
        self.step = checkpoints.step_of(self.checkpoint)

    def starts(self, step: int) -> None:
        """See `StepRecorder`."""
        self.step = step
        path = tf.io.gfile.join(self.directory, f"model.ckpt-{step}")
        self.interval = Interval.of(checkpoints.restore_state(path).get("interval", {})) if step else Interval()
        self.metrics.rewind(step)

    def add(self, steps: int, sums: Figures, newest: Figures) -> None:
        """See `StepRecorder`."""
        heartbeat.worked()
        self.step += steps
        self.interval.add(steps, sums, newest)
        if not math.isfinite(newest["loss"]):
            raise report.diverged(self.config, newest["loss"], self.step, checkpoints.latest(self.directory))

    def log(self, step: int, rate: float | None) -> None:
        """See `StepRecorder`."""
        tokens_per_second = rate * self.config.training.train_batch_size * self.config.model.n_ctx if rate else None
        row = report.metrics_row(step, self.interval.values(), tokens_per_second, None)
        self.metrics.append(row)
        log.info(report.log_line(row, self.config.training.train_steps, rate))
        self.interval = Interval()

    def _after_checkpoint(self) -> dict[str, float | None] | None:
        """The evaluation and the samples that this step owes and does not have yet; returns the evaluation's metrics.
        """
        due = due_outputs(self.config, self.step, self.steps_per_checkpoint, self.sacred_id)
        if due.tasks or due.samples:
            self.engine.restore(str(self.checkpoint))
        found: list[Metrics] = []
        writer = tf.summary.create_file_writer(self.directory)
        with writer.as_default():
            for task in self.tasks:
                if task.name in due.tasks:
                    with alive(task.name):
                        found.append(task.run(self.engine))
                    report.keep_evaluation(self.evaluations, result_row(self.step, task, found[-1], self.config))
            if self.samples is not None and due.samples:
                self.samples.write(self.step)
        writer.close()
        return found[0] if found else None


def steps_per_run(config: Config, steps_per_checkpoint: int) -> int:
    """How many steps a TPU does in one run: `iterations`, or fewer, so that runs end where checkpoints are due."""
    most = min(config.training.iterations, steps_per_checkpoint)
    return max(n for n in range(1, most + 1) if steps_per_checkpoint % n == 0)

