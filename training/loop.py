"""The training loop on CPUs and GPUs: steps, logs, checkpoints, evaluations and samples."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import tensorflow as tf

from gpt_mesh.cluster.chief import Hosts
from gpt_mesh.config import Config
from gpt_mesh.data.prefetch import Prefetcher
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation.results import result_row
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.tasks import tasks_of
from gpt_mesh.evaluation.validation import Validation
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.inputs import TrainingData
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.context import REFERENCE, is_reference
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.planning.metrics import device_peak, flops_per_token
from gpt_mesh.storage.json_lines import JsonLines
from gpt_mesh.storage.lease import Lease
from gpt_mesh.storage.progress import Progress, alive, log
from gpt_mesh.training import report
from gpt_mesh.training.divergence import StepJudge
from gpt_mesh.training.events import Event, EventHandler
from gpt_mesh.training.interrupts import Interrupts, termination_raises
from gpt_mesh.training.interval import Interval, is_finite
from gpt_mesh.training.profiling import Profiler, Steps, part
from gpt_mesh.training.ramp import check_ramp, ramped_batches, samples_before
from gpt_mesh.training.runs import check_resumable
from gpt_mesh.training.samples import SampleWriter, predictions_path
from gpt_mesh.training.saving import CheckpointWriter

FETCH_SECONDS = 1.0  # how far the host may run ahead of the device
STAGED = 2  # batches copied ahead to the device: while one step runs and one is queued, a third is copied


@dataclass(frozen=True)
class TrainResult:
    """How a training run ended.

    Attributes:
        step: total number of steps of the run, over all calls.
        interrupted: whether a signal ended it early.
        checkpoint: path of the newest checkpoint.
        evaluation: metrics of the last evaluation in this call, if there was one: of the held-out set or, if that is
            not evaluated, of the first of `eval_tasks`.
    """

    step: int
    interrupted: bool
    checkpoint: str
    evaluation: dict[str, float | None] | None


class InitialValues(Protocol):
    """Initial weights of a new run, checked against its config."""

    @property
    def source(self) -> str:
        """Their path."""

    def fill(self, variables: Mapping[str, tf.Variable]) -> None:
        """Assign them to the whole ("master") variables, by name."""


class WeightSource(Protocol):
    """A source of initial weights for a new run."""

    @property
    def path(self) -> str:
        """The path as the user gave it."""

    def open(self, config: Config) -> InitialValues:
        """Open the weights. Raises InputError if they cannot be read, or do not fit the config."""


class Trainer:
    """One training run in `model_path`, new or resumed."""

    def __init__(
        self,
        config: Config,
        plan: MeshPlan,
        *,
        steps_per_checkpoint: int,
        sacred_id: str | None = None,
        new: bool = False,
        hosts: Hosts | None = None,
        init_from: WeightSource | None = None,
        profile: Steps | int | None = None,
        lease: Lease | None = None,
        watch: EventHandler | None = None,
    ) -> None:
        """Check everything that can be checked before the first step, then start the hosts' devices.

        Args:
            new: ignore existing checkpoints.
            hosts: the hosts whose devices are in `plan`; default: this host.
            init_from: initial weights of a run without a checkpoint.
            profile: the steps to profile, or the number of next steps to profile.
            lease: the lock of `model_path`; once another process has taken it over, nothing more is written.
            watch: called with what the run logs.

        Raises:
            InputError: data, checkpoint, directory or initial weights cannot be used.
        """
        self.config, self.plan, self.new, self.sacred_id, self.lease = config, plan, new, sacred_id, lease
        self.directory, self.watch = config.training.model_path, watch
        self.steps_per_checkpoint = steps_per_checkpoint
        self.checkpoint = None if new else checkpoints.latest(self.directory)
        if self.checkpoint is not None:
            check_resumable(config, self.checkpoint)
        self.initial = self._initial_weights(init_from)
        self.data = TrainingData(config)
        if self.checkpoint is None and self.initial is None and objective_of(config).needs_reference:
            raise InputError(
                f"{config.source}: objective = {config.training.objective}: its reference is the model that the run "
                "begins with: name its weights with --init_from"
            )
        self.judge = StepJudge(config, self.data)
        self.tasks = tasks_of(config, validation=config.training.eval_steps > 0)
        self.interval, self.interrupts = Interval(), Interrupts()
        if hosts is not None:
            hosts.request_end, hosts.is_saving = self.interrupts.request, lambda: self.saving.is_writing
            hosts.start()
        self.engine = DeviceEngine(config, plan)
        decoder = partial(Decoder, self.engine)
        self.samples = SampleWriter(config, decoder, sacred_id) if config.training.predict_steps else None
        self.metrics = JsonLines(tf.io.gfile.join(self.directory, "metrics.jsonl"))
        self.evaluations = JsonLines(tf.io.gfile.join(self.directory, "eval.jsonl"))
        self.saving = CheckpointWriter(config)
        self.step, self.position = 0, 0
        check_ramp(config, plan)
        self.log_every = min(config.training.log_interval, steps_per_checkpoint)
        self.peak = device_peak(list(plan.devices), config.training.precision)
        self._restore()
        self.profiler = Profiler(self.directory, profile, self.step)
        self.profile_after_end = profile if isinstance(profile, int) and self.step >= config.training.train_steps else 0

    def _initial_weights(self, init_from: WeightSource | None) -> InitialValues | None:
        """The initial weights, if they are given and the run has no checkpoint."""
        if init_from is None:
            return None
        if self.checkpoint is None:
            return init_from.open(self.config)
        log.info("--init_from %s is ignored: this run continues from %s", shown(init_from.path), self.checkpoint)
        return None

    def _restore(self) -> None:
        with alive("building the training step"):
            self.engine.create_variables(training=True)
        self.begun_from = None if self.initial is None else self.initial.source
        if self.checkpoint is None:
            if self.initial is not None:
                with alive("reading the initial weights"):
                    self._fill(self.initial)
                self.engine.store.scatter()
            return
        missing = self.engine.restore(self.checkpoint)
        if missing:
            weights = {name.rpartition("/")[0] for name in missing}  # a weight may have several slots
            log.info("%s has no optimizer state for %d weights: it starts at zero", self.checkpoint, len(weights))
        self.step = int(self.engine.global_step.numpy())
        state = checkpoints.restore_state(self.checkpoint)
        self.position = int(state.get("samples", samples_before(self.config, self.step)))
        self.interval = Interval.of(state.get("interval", {}))
        self.begun_from = state.get("init_from")
        if state.get("data", self.data.fingerprint) != self.data.fingerprint:
            log.warning(
                "the data, its mixture or the seed changed since %s: continuing from sample %d of the new order",
                self.checkpoint,
                self.position,
            )

    def _fill(self, initial: InitialValues) -> None:
        """Give all weights their initial values, those of the reference model the same as the trained ones."""
        masters = self.engine.store.masters
        initial.fill({name: variable for name, variable in masters.items() if not is_reference(name)})
        for name in filter(is_reference, masters):
            masters[name].assign(masters[name.removeprefix(REFERENCE)])

    def run(self) -> TrainResult:
        """Train until `train_steps`, SIGINT or SIGTERM, and save a checkpoint.

        Raises:
            InputError: a step is not finite (see `on_nonfinite`), or files cannot be read or written.
        """
        with report.file_errors_explained(self.config), termination_raises():
            return self._run()

    def _run(self) -> TrainResult:
        self._begin()
        evaluation, cut_short = None, False
        writer = tf.summary.create_file_writer(self.directory)
        progress = Progress(self.config.training.train_steps, "training", "steps", done=self.step)
        self.logged = (self.step, self.position)
        batches = ramped_batches(self.config, self.data, self.step, self.position)
        staged = Prefetcher(map(self.engine.stage, batches), STAGED)
        with self._writing_ended(), closing(writer), writer.as_default(), closing(progress), closing(batches), staged:
            try:
                evaluation = self._after_checkpoint(progress)  # which an interruption may have prevented
                clock = _Clock()
                while self.step < self.config.training.train_steps and not self.interrupts.requested:
                    with self.interrupts.deferred():
                        self._train_to_pause(staged, clock, progress)
                    if not self.interrupts.requested:
                        with clock.paused():
                            evaluation = self._after_checkpoint(progress) or evaluation
                self._profile_after_end(staged, clock, progress)
                cut_short = self.interrupts.requested
            except KeyboardInterrupt:  # not within a step, so nothing is lost
                cut_short = True
            with self.interrupts.deferred():
                self._note_written(wait=True)
        if self.checkpoint is None:  # interrupted before the first step
            raise KeyboardInterrupt
        return self._end(evaluation, cut_short)

    @contextmanager
    def _writing_ended(self) -> Iterator[None]:
        """Finish writing the checkpoint whatever ends the run, without hiding the original exception."""
        try:
            yield
        except BaseException:
            try:
                self._note_written(wait=True)
            except InputError as error:
                log.warning("%s", error)
            raise
        finally:
            self.saving.close()

    def _begin(self) -> None:
        if self.new:
            checkpoints.delete_all(self.directory)
        for rows in (self.metrics, self.evaluations):
            rows.rewind(self.step)
        report.write_config(self.config)
        for line in [*report.header(self.config, self.plan), *self.data.describe()]:
            log.info(line)
        for line in report.warnings(self.config, self.plan):
            log.warning(line)
        begun = f"new run with the weights of {self.begun_from}" if self.begun_from else "new run"
        where = f"from {self.checkpoint}" if self.checkpoint else begun
        log.info("training steps %d to %d, %s", self.step, self.config.training.train_steps, where)

    def _end(self, evaluation: dict[str, float | None] | None, interrupted: bool) -> TrainResult:
        assert self.checkpoint is not None
        if interrupted:
            log.info(report.interrupted_line(self.step, self.config.training.train_steps, self.checkpoint))
        return TrainResult(self.step, interrupted, self.checkpoint, evaluation)

    def _train_to_pause(self, batches: Iterator[tf.Tensor], clock: _Clock, progress: Progress) -> None:
        """Train until a checkpoint or an evaluation is due, or a signal asks the run to end; save a checkpoint unless
        only an evaluation is due.
        """
        last, evaluate_every = self.config.training.train_steps, self.config.training.eval_interval
        while True:
            self._one_step(batches, clock, progress)
            with part("log"):
                if clock.tick():
                    self._fetch()
                if self.step % self.log_every == 0 or self.step == last:
                    self._log(clock, progress)
                self._note_written(wait=False)
            progress.update()
            with clock.paused():
                self.profiler.after(self.step, self._fetch)
            saves = self.step % self.steps_per_checkpoint == 0 or self.step >= last or self.interrupts.requested
            if saves or (evaluate_every is not None and self.step % evaluate_every == 0):
                break
        with clock.paused():
            self.profiler.close(self.step, self._fetch)  # only steps, not what happens between them
            if saves:
                self._save()

    def _one_step(self, batches: Iterator[tf.Tensor], clock: _Clock, progress: Progress) -> None:
        """Queue the next step on the device."""
        self.profiler.before(self.step + 1, self._fetch)
        with part("read"):
            tokens = next(batches)
        with part("train", step_num=self.step + 1, _r=1):
            if clock.started:
                outputs = self.engine.train_step(tokens)
            else:
                outputs = self._first_step(tokens, progress)
        self.interval.pending.append(outputs)
        self.step += 1
        self.position += len(tokens)

    def _profile_after_end(self, batches: Iterator[tf.Tensor], clock: _Clock, progress: Progress) -> None:
        """Profile steps of a run that was already finished when it was restored. They are neither logged nor saved."""
        if not self.profile_after_end:
            return
        last = self.step
        log.info("the run is finished: the next %d steps are profiled, and not saved", self.profile_after_end)
        with self.interrupts.deferred():
            while self.step <= last + self.profile_after_end and not self.interrupts.requested:
                self._one_step(batches, clock, progress)
                with part("log"):
                    if clock.tick():
                        self._fetch()
                self.profiler.after(self.step, self._fetch)
            self.profiler.close(self.step, self._fetch)
        self.step = last

    def _first_step(self, tokens: tf.Tensor, progress: Progress) -> dict[str, tf.Tensor]:
        compiled = self.engine.training_compiled
        log.info("compiling the training step" if compiled else "setting up the devices")
        begin = time.perf_counter()
        with alive("still compiling" if compiled else "still setting up"):
            outputs = self.engine.train_step(tokens)
            float(outputs["loss"])  # wait: so far the step may only have been queued
        log.info("first step done after %.0f s", time.perf_counter() - begin)
        progress.restart()
        return outputs

    def _fetch(self) -> None:
        """Add pending steps to the interval.

        Raises:
            InputError: one of them is not finite, and the run is to end.
        """
        fetched = self.interval.fetch()
        if not all(map(is_finite, fetched)):
            self._note_written(wait=True)
        for back, values in zip(reversed(range(len(fetched))), fetched, strict=True):
            position = self.position - back * self.config.training.train_batch_size
            self.judge.check(self.step - back, position, values, self.checkpoint)

    def _log(self, clock: _Clock, progress: Progress) -> None:
        self._fetch()
        values, rate = self.interval.values(), clock.rate()
        if self.config.training.on_nonfinite == "skip":
            values["skipped_steps"] = self.interval.skipped
        steps, samples = self.step - self.logged[0], self.position - self.logged[1]
        tokens = self.config.model.n_ctx * self.engine.objective.texts
        tokens_per_second = rate * samples / steps * tokens if rate else None
        self.logged = (self.step, self.position)
        row = report.metrics_row(self.step, values, tokens_per_second, self._mfu(tokens_per_second))
        self.metrics.append(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                tf.summary.scalar(f"training/{name}", value, step=self.step)
        self.interval = Interval()
        log.info(report.log_line(row, self.config.training.train_steps, rate))
        self._tell("metrics", row)
        progress.restart()
        progress.show(loss=f"{row['loss']:.4f}", tokens_per_second=f"{tokens_per_second or 0:,.0f}")

    def _tell(self, kind: Literal["metrics", "evaluation", "samples"], values: Mapping[str, Any]) -> None:
        """Tell the caller what was logged; it may ask the run to end."""
        if self.watch is not None and self.watch(Event(kind, self.step, values)) is True:
            self.interrupts.request()

    def _mfu(self, tokens_per_second: float | None) -> float | None:
        """Model FLOPs utilisation; None if the devices' peak is not known."""
        if tokens_per_second is None or self.peak is None:
            return None
        return tokens_per_second * flops_per_token(self.config) / self.peak

    def _save(self) -> None:
        """Start writing a checkpoint, after the previous one is complete.

        Raises:
            InputError: another process has taken over the run, the previous checkpoint could not be written, or weights
                are not finite.
        """
        if self.lease is not None:
            self.lease.check()
        self._fetch()
        self._note_written(wait=True)
        if names := self.engine.nonfinite_variables():
            what = f"after step {self.step} {names[0]} has elements that are not finite, so it is not saved"
            self.judge.stop(self.step, self.position, what, self.checkpoint)
        state = {"samples": self.position, "data": self.data.fingerprint, "interval": self.interval.state()}
        if self.begun_from is not None:
            state["init_from"] = self.begun_from
        self.saving.start(self.step, self.engine.snapshot(), state)
        tf.summary.flush()
        if not self.config.training.background_checkpoints:
            self._note_written(wait=True)

    def _note_written(self, *, wait: bool) -> None:
        """Record and log a checkpoint that is complete; with `wait`, wait until it is.

        Raises:
            InputError: it could not be written.
        """
        path = self.saving.written(wait=wait)
        if path is not None:
            self.checkpoint = path
            log.info("saved %s", path)

    def _after_checkpoint(self, progress: Progress) -> dict[str, float | None] | None:
        """Run the evaluations and samples that are due at this step and not done yet; returns the first evaluation's
        metrics.

        They use the weights of the checkpoint, which may still be being written; results are recorded after that.
        """
        due = due_outputs(self.config, self.step, self.steps_per_checkpoint, self.sacred_id)
        found: list[Metrics] = []
        for task in self.tasks:
            if task.name in due.tasks:
                found.append(task.run(self.engine))
                self._note_written(wait=True)
                row = result_row(self.step, task, found[-1], self.config)
                report.keep_evaluation(self.evaluations, row)
                self._tell("evaluation", row)
        if self.samples is not None and due.samples:
            self._note_written(wait=True)
            self._tell("samples", self.samples.write(self.step))
        tf.summary.flush()
        progress.restart()
        return found[0] if found else None


@dataclass(frozen=True)
class Due:
    """What is still due at a step: evaluations, by the names of their tasks, and samples."""

    tasks: tuple[str, ...]
    samples: bool


def due_outputs(config: Config, step: int, steps_per_checkpoint: int, sacred_id: str | None) -> Due:
    """What the checkpoint of this step should be folldue by and was not, because the run was interrupted there."""
    settings, io = config.training, tf.io.gfile
    if step == 0:
        return Due((), False)
    at_end, evaluate_every = step >= settings.train_steps, settings.eval_interval or steps_per_checkpoint
    wanted = [*([Validation.name] if settings.eval_steps else []), *settings.eval_tasks]
    if step % evaluate_every and not at_end:
        wanted = []
    samples = settings.predict_steps > 0 and (step % steps_per_checkpoint == 0 or at_end)
    rows = JsonLines(io.join(settings.model_path, "eval.jsonl")).rows() if wanted else []
    done = {row.get("task") for row in rows if row.get("step") == step}
    return Due(
        tasks=tuple(name for name in wanted if name not in done),
        samples=samples and not io.exists(predictions_path(settings.model_path, step, sacred_id)),
    )


def finished(config: Config, steps_per_checkpoint: int, sacred_id: str | None) -> TrainResult | None:
    """The result of a run that is already complete; None if it is not."""
    checkpoint, total = checkpoints.latest(config.training.model_path), config.training.train_steps
    if checkpoint is None or (step := checkpoints.step_of(checkpoint)) < total:
        return None
    if due_outputs(config, step, steps_per_checkpoint, sacred_id) != Due((), False):
        return None
    log.info(
        "%s is at step %d of %d: nothing to train; raise train_steps in %s to continue, or start again with --new",
        checkpoint,
        step,
        total,
        config.source,
    )
    return TrainResult(step, False, checkpoint, None)


class _Clock:
    """Time spent on steps since the last logged one, excluding the first step, which compiles, and pauses."""

    def __init__(self) -> None:
        self.started = False
        self._steps = 0
        self._begin = self._fetched = time.perf_counter()

    def tick(self) -> bool:
        """Count a step that was queued on the device; returns whether it is time to wait for it."""
        now = time.perf_counter()
        if not self.started:
            self.started, self._begin = True, now
            return True
        self._steps += 1
        if now - self._fetched < FETCH_SECONDS:
            return False
        self._fetched = now
        return True

    def rate(self) -> float | None:
        """Steps per second since the last call; None if there were no steps."""
        now = time.perf_counter()
        elapsed, done = now - self._begin, self._steps
        self._begin, self._steps = now, 0
        return done / elapsed if done else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin
