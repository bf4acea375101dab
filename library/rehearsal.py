"""A rehearsal of training: everything is checked, built and timed, and nothing is written."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from gpt_mesh.cluster.chief import hosts_of
from gpt_mesh.config import Config
from gpt_mesh.data.marks import unmarked
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.building import make_plan
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.tasks import tasks_of
from gpt_mesh.evaluation.validation import Validation, common_encoder
from gpt_mesh.inputs import TrainingData
from gpt_mesh.planning.metrics import human_bytes
from gpt_mesh.storage.files import is_url
from gpt_mesh.storage.progress import alive
from gpt_mesh.training import report
from gpt_mesh.training.runs import check_resumable

SECONDS, STEPS = 5.0, 20  # steps are timed for this long, and at most this many
_ROWS, _CHARACTERS = 2, 600  # of the first batch, shown as text


@contextmanager
def rehearsal_engine(
    config: Config, devices: Sequence[str] | None, *, fit_mesh: bool
) -> Iterator[tuple[DeviceEngine, TrainingData]]:
    """An engine that can take training steps, with fresh weights, and the data. Nothing is written.

    Raises:
        InputError: something in the config cannot work.
    """
    data = TrainingData(config)
    with hosts_of(None, devices) as hosts:
        plan = make_plan(config, hosts, fit=fit_mesh, training=True)
        hosts.start()
        engine = DeviceEngine(config, plan)
        with alive("building the training step"):
            engine.create_variables(training=True)
        yield engine, data


def dry_run(config: Config, devices: Sequence[str] | None = None, *, fit_mesh: bool = False) -> Iterator[str]:
    """What training would do, line by line.

    Raises:
        InputError: something in the config cannot work.
    """
    _check_writable(config)
    checkpoint = checkpoints.latest(config.training.model_path)
    if checkpoint is not None:
        check_resumable(config, checkpoint)
    done = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
    tasks = tasks_of(config, validation=config.training.eval_steps > 0)
    with rehearsal_engine(config, devices, fit_mesh=fit_mesh) as (engine, data):
        yield from report.header(config, engine.plan)
        yield from report.warnings(config, engine.plan)
        yield from data.describe()
        yield from _first_batch(config, data)
        begin = time.perf_counter()
        batch = data.batch(0, config.training.train_batch_size)
        with alive("compiling the training step"):
            loss = float(engine.train_step(batch)["loss"])
        yield f"first step {time.perf_counter() - begin:.1f} s, with its compilation; loss {loss:.4f}"
        rate = _rate(engine, data, config.training.train_batch_size)
        tokens = rate * config.training.train_batch_size * engine.objective.texts * config.model.n_ctx
        left = max(0, config.training.train_steps - done)
        yield f"a step {1 / rate:.4g} s, {tokens:,.0f} tokens/s"
        yield from _peak_memory(engine)
        evaluation = next((_evaluation_seconds(engine, one) for one in tasks if isinstance(one, Validation)), None)
        if evaluation is not None:
            yield f"an evaluation of the held-out text {tqdm.format_interval(evaluation)}, after each checkpoint"
        where = f"from step {done} to {config.training.train_steps}" if done else f"{left} steps"
        yield f"training {where}: {tqdm.format_interval(left / rate)}, without checkpoints, evaluations and samples"


def _check_writable(config: Config) -> None:
    """Refuse a run's directory that cannot be written to, without making it."""
    path = config.training.model_path
    if is_url(path):
        return
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{config.source}: model_path = {path}: cannot be written to; name a directory that can")


def _first_batch(config: Config, data: TrainingData) -> Iterator[str]:
    """The first windows of the first batch, as text if there is a tokenizer."""
    batch = data.batch(0, min(_ROWS, config.training.train_batch_size)).reshape(-1, data.width)
    try:
        encoder = common_encoder(config)
        texts = [encoder.decode(unmarked(row).tolist()) for row in batch]
    except InputError as error:
        yield f"the first batch is shown as ids: {error}"
        texts = [" ".join(map(str, row.tolist())) for row in batch]
    for number, text in enumerate(texts):
        more = f" … ({len(text) - _CHARACTERS} more characters)" if len(text) > _CHARACTERS else ""
        yield f"first batch, row {number}: {text[:_CHARACTERS]!r}{more}"


def _rate(engine: DeviceEngine, data: TrainingData, size: int) -> float:
    """Steps per second, data included. The first two steps are compiled before."""
    loss = engine.train_step(data.batch(size, size))["loss"]
    float(loss)
    begin, steps = time.perf_counter(), 0
    while steps < STEPS and (not steps or time.perf_counter() - begin < SECONDS):
        steps += 1
        float(engine.train_step(data.batch((steps + 1) * size, size))["loss"])
    return steps / (time.perf_counter() - begin)


def _peak_memory(engine: DeviceEngine) -> Iterator[str]:
    """The memory that a GPU has used; TensorFlow does not count that of CPUs."""
    devices = [name.removeprefix("/").removeprefix("device:") for name in engine.plan.devices if "GPU" in name]
    if devices:
        peak = max(tf.config.experimental.get_memory_info(name)["peak"] for name in devices)
        yield f"memory of a device, at most: {human_bytes(peak)}"


def _evaluation_seconds(engine: DeviceEngine, task: Validation) -> float:
    """The time of an evaluation, from one batch of it."""
    tokens, weights = next(iter(task.data.batches(engine.config.training.eval_batch_size, limit=task.n_batches)))
    np.asarray(engine.eval_step(tokens, weights)[0])
    begin = time.perf_counter()
    np.asarray(engine.eval_step(tokens, weights)[0])
    return (time.perf_counter() - begin) * task.n_batches
