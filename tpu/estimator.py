"""TPUEstimator over the graph builders: what it needs beside `tpu.model_fn`, which calls them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_mesh.meshes.compat import mtf, quiet_estimator, tpu_estimator

import numpy as np
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.validation import Validation
from gpt_mesh.inputs import TrainingData
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.next_token import Controls
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.sample import Batch, Inputs, Request, build_sample, with_changes
from gpt_mesh.storage.progress import log
from gpt_mesh.tpu.devices import Tpu, find
from gpt_mesh.tpu.feed import Feed
from gpt_mesh.tpu.model_fn import Host, model_fn
from gpt_mesh.tpu.session import AccountHook, SaveHook, Saver, State, graph_mode

v1 = tf.compat.v1


class TpuEngine:
    """A run's TPUEstimator: trains, evaluates and samples through sessions, from and to checkpoints in `model_path`.

    Each call builds its graph, restores a checkpoint, and leaves nothing on the TPU: that is how TPUEstimator works.
    """

    def __init__(self, config: Config, plan: MeshPlan, tpu: Tpu, iterations: int = 1) -> None:
        """`iterations`: training steps in one run of the TPU."""
        self.config, self.plan, self.tpu = config, plan, tpu
        self.directory = config.training.model_path
        self._iterations = iterations

    def train(self, training: Training, data: TrainingData, position: int, last: int) -> None:
        """Train from the newest checkpoint to the step `last`, or until a hook ends it; saves at the end.

        Args:
            position: of step 0 in the data: where it would have begun, had all steps had this batch size.
        """
        size = self.config.training.train_batch_size
        form = {"tokens": tf.TensorSpec([size, data.width], tf.int32)}
        feed = Feed(form, lambda step: data.batches(position + step * size, size))
        self._run(feed, lambda: self._estimator(training).train(feed.input_fn, hooks=[feed], max_steps=last))

    def evaluate(self, validation: Validation, checkpoint: str) -> Metrics:
        """The held-out score of a checkpoint: what `Validation.run` gives, without standard errors."""
        size, width = self.config.training.eval_batch_size, validation.data.width
        forms = {
            "tokens": tf.TensorSpec([size, width], tf.int32),
            "weights": tf.TensorSpec([size, width - 1], tf.float32),
        }
        feed = Feed(forms, lambda step: validation.batches())
        sums = self._run(
            feed,
            lambda: self._estimator(Evaluation(self)).evaluate(
                feed.input_fn, steps=validation.n_batches, hooks=[feed], checkpoint_path=checkpoint
            ),
        )
        return validation.metrics(*(float(sums[name]) for name in ("nll", "correct", "weight")))

    def decode(self, batch: Batch, checkpoint: str, decoding: Decoding) -> np.ndarray:
        """New tokens, int32 [rows, n_ctx]: see `sample.build_sample`."""
        arrays = {"prompts": batch.prompts, "lengths": batch.lengths, "ends": batch.ends, "seen": batch.seen}
        arrays |= batch.controls._asdict()

        def input_fn(params: Any) -> tf.data.Dataset:
            del params
            return tf.data.Dataset.from_tensor_slices(arrays).batch(decoding.batch_size, drop_remainder=True)

        with quiet_estimator(), graph_mode():
            estimator = self._estimator(decoding, decoding.batch_size)
            return np.stack([row["tokens"] for row in estimator.predict(input_fn, checkpoint_path=checkpoint)])

    def _run(self, feed: Feed, call: Callable[[], Any]) -> Any:
        try:
            with quiet_estimator(), graph_mode():
                return call()
        finally:
            feed.finish()

    def _estimator(self, host: Host, predict_batch_size: int = 1) -> Any:
        api, settings = tpu_estimator(), self.config.training
        tpu_config = api.TPUConfig(
            iterations_per_loop=self._iterations,
            num_shards=self.tpu.cores,
            num_cores_per_replica=1,  # the mesh is made of cores, each a replica that is fed the same batch
            per_host_input_for_training=api.InputPipelineConfig.BROADCAST,
        )
        session = v1.ConfigProto(allow_soft_placement=True, isolate_session_state=True)
        if self.tpu.is_rehearsal:
            session.device_count["CPU"] = self.tpu.cores
            # Optimising the graph would take longer than the few steps of a rehearsal.
            session.graph_options.rewrite_options.disable_meta_optimizer = True
        run_config = api.RunConfig(
            cluster=self.tpu.resolver,
            model_dir=self.directory,
            tpu_config=tpu_config,
            session_config=session,
            save_checkpoints_steps=None,  # `SaveHook` does it
            save_checkpoints_secs=None,
            save_summary_steps=0,
            log_step_count_steps=None,
            checkpoint_save_graph_def=False,
        )
        return api.TPUEstimator(
            functools.partial(model_fn, host=host),
            config=run_config,
            use_tpu=not self.tpu.is_rehearsal,
            train_batch_size=settings.train_batch_size,
            eval_batch_size=settings.eval_batch_size,
            predict_batch_size=predict_batch_size,
        )


def tpu_engine(config: Config, name: str) -> TpuEngine:
    """An engine for evaluation and sampling on the TPU of this name.

    Raises:
        InputError: no such TPU, or the config's mesh does not fit it.
    """
    tpu = find(name, config)
    plan = tpu.plan(config, limits_of(config))
    if plan.notice:
        log.info(plan.notice)
    return TpuEngine(config, plan, tpu)


class _Host:
    """What a model function is told of where it runs."""

    def __init__(self, engine: TpuEngine) -> None:
        self.engine, self.config = engine, engine.config

    def mesh(self, params: Mapping[str, Any], batch: int, positions: int | None) -> Any:
        """See `Tpu.mesh`."""
        return self.engine.tpu.mesh(self.engine.plan, params.get("context"), batch=batch, positions=positions)


class Training(_Host):
    """A training step with what goes on around it: figures, summaries and checkpoints."""

    def __init__(self, engine: TpuEngine, account: AccountHook, every: int, state: State, hooks: Sequence[Any]) -> None:
        """
        Args:
            account: is told of the steps.
            every: steps after which a checkpoint is saved, ...
            state: ... with what this gives beside it.
            hooks: more of them.
        """
        super().__init__(engine)
        self.account, self.every, self.state, self.hooks = account, every, state, list(hooks)

    def spec(self, out: model_fns.TrainTensors, mesh_impl: Any) -> Any:
        """The step, as TPUEstimator wants it."""
        figures = {"loss": out.loss, "nll": out.nll, "lr": out.lr, "grad_norm": out.grad_norm, **out.extras}
        global_step = v1.train.get_global_step()
        with tf.control_dependencies([out.update]):  # which comes after every other reader of the step
            done = global_step.read_value() + 1
        train_op = tf.group(global_step.assign(done, read_value=False), self.account.accumulate(figures))
        host_call = _summaries(self.engine.directory, done, figures)
        with mtf.utils.outside_all_rewrites():
            saver = Saver(self.config.source, sharded=not self.engine.tpu.is_rehearsal)
            save = SaveHook(self.engine.directory, self.every, saver, mesh_impl, self.state)
            hooks = [mtf.MtfRestoreHook(mesh_impl), self.account, save, *self.hooks]
        return tpu_estimator().TPUEstimatorSpec(
            mode="train",
            loss=out.loss,
            train_op=train_op,
            host_call=host_call,
            training_hooks=hooks,
            scaffold_fn=lambda: v1.train.Scaffold(saver=saver),
        )


class Evaluation(_Host):
    """Sums over batches, kept on the host."""

    def spec(self, out: model_fns.EvalTensors, mesh_impl: Any) -> Any:
        return tpu_estimator().TPUEstimatorSpec(
            mode="eval",
            loss=tf.math.divide_no_nan(tf.reduce_sum(out.nll), tf.reduce_sum(out.weight)),
            eval_metrics=(_add_up, [out.nll, out.correct, out.weight]),
            evaluation_hooks=[_restore_hook(mesh_impl)],
            scaffold_fn=lambda: v1.train.Scaffold(saver=Saver(self.config.source)),
        )


class Decoding(_Host):
    """Continuations of prompts: see `sample.build_sample`."""

    def __init__(self, engine: TpuEngine, batch_size: int, eos_id: int | None) -> None:
        super().__init__(engine)
        self.batch_size, self._eos_id = batch_size, eos_id

    def spec(self, features: Mapping[str, tf.Tensor], mesh_impl: Any) -> Any:
        given = [features[name] for name in ("prompts", "lengths", "ends", "seen", *Controls._fields)]
        [tokens] = build_sample(Inputs.of(given), config=self.config, mesh_impl=mesh_impl, eos_id=self._eos_id)
        return tpu_estimator().TPUEstimatorSpec(
            mode="infer",
            predictions={"tokens": tokens},
            prediction_hooks=[_restore_hook(mesh_impl)],
            scaffold_fn=lambda: v1.train.Scaffold(saver=Saver(self.config.source)),
        )


def _restore_hook(mesh_impl: Any) -> Any:
    with mtf.utils.outside_all_rewrites():
        return mtf.MtfRestoreHook(mesh_impl)


def _summaries(directory: str, step: tf.Tensor, figures: Mapping[str, tf.Tensor]) -> tuple[Callable[..., Any], list]:
    """A host call that writes each step's figures for TensorBoard, under the names that the training loop uses."""
    names = list(figures)

    def write(step: tf.Tensor, values: tf.Tensor) -> Any:
        with tf.summary.create_file_writer(directory).as_default():
            for name, value in zip(names, tf.unstack(values, num=len(names)), strict=True):
                tf.summary.scalar(f"training/{name}", value, step=tf.cast(step[0], tf.int64))
            return v1.summary.all_v2_summary_ops()

    values = tf.stack([tf.cast(tf.reshape(x, []), tf.float32) for x in figures.values()])
    return write, [tf.reshape(tf.cast(step, tf.int32), [1]), values]


def _add_up(nll: tf.Tensor, correct: tf.Tensor, weight: tf.Tensor) -> dict[str, tuple[tf.Tensor, tf.Operation]]:
    """Each sum over the batches, and what adds a batch to it."""
    return {name: _total(name, x) for name, x in (("nll", nll), ("correct", correct), ("weight", weight))}


def _total(name: str, x: tf.Tensor) -> tuple[tf.Tensor, tf.Operation]:
    total = v1.get_variable(
        f"total/{name}",
        [],
        tf.float64,
        initializer=v1.zeros_initializer(),
        trainable=False,
        collections=[v1.GraphKeys.LOCAL_VARIABLES],
        use_resource=True,
    )
    return total.read_value(), total.assign_add(tf.cast(tf.reduce_sum(x), tf.float64), read_value=False)


class TpuSampler:
    """Generates with the weights of a checkpoint: see `sample.Generates`."""

    def __init__(
        self,
        engine: TpuEngine,
        checkpoint: Callable[[], str],
        batch_size: int,
        eos_id: int | None,
        *,
        sparse: bool = False,
    ) -> None:
        """`checkpoint`: which one, when it is asked to generate. The others are those of `sample.Sampler`."""
        self._engine, self._checkpoint, self._eos_id, self._sparse = engine, checkpoint, eos_id, sparse
        self._decoding = Decoding(engine, batch_size, eos_id)

    def generate(self, requests: Sequence[Request], temperature: float | None = None) -> list[list[int]]:
        """The new tokens of each request."""
        if not requests:
            return []
        size = self._decoding.batch_size
        rows = -(-len(requests) // size) * size
        batch = Batch.of(with_changes(requests, temperature, self._sparse), rows, self._engine.config.model)
        tokens = self._engine.decode(batch, self._checkpoint(), self._decoding)
        return batch.continuations(tokens, self._eos_id)[: len(requests)]
