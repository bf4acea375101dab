"""TPUEstimator's model functions over the graph builders: a training step, and any other function of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_mesh.meshes.compat import mtf, tpu_estimator

import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.tpu.devices import Tpu
from gpt_mesh.tpu.session import SaveHook, Saver, State, StepRecorderHook

v1 = tf.compat.v1
Build = Callable[[Sequence[tf.Tensor], Any], Sequence[tf.Tensor]]


class Host:
    """A model function: where it runs, and what it builds there."""

    def __init__(self, config: Config, plan: MeshPlan, tpu: Tpu, batch_size: int, positions: int | None) -> None:
        """
        Args:
            batch_size: of what it is fed.
            positions: of each sequence; None: decoding, where a pass has one position and prompts have any length.
        """
        self.config, self.plan, self.tpu = config, plan, tpu
        self.batch_size, self.positions = batch_size, positions

    def model_fn(self, features: Mapping[str, tf.Tensor], mode: str, params: Mapping[str, Any]) -> Any:
        """The `TPUEstimatorSpec` of a graph of the features. `params`: say where the TPU's cores are."""
        context = params.get("context")
        mesh_impl = self.tpu.mesh(self.plan, context, batch=self.batch_size, positions=self.positions)
        return self.spec(features, mode, mesh_impl)

    def spec(self, features: Mapping[str, tf.Tensor], mode: str, mesh_impl: Any) -> Any:
        """The same on a mesh."""
        raise NotImplementedError

    def estimator(self, iterations: int = 1) -> Any:
        """The TPUEstimator of this model function. `iterations`: training steps in one run of the TPU."""
        api, settings = tpu_estimator(), self.config.training
        tpu_config = api.TPUConfig(
            iterations_per_loop=iterations,
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
            model_dir=settings.model_path,
            tpu_config=tpu_config,
            session_config=session,
            save_checkpoints_steps=None,  # `SaveHook` does it
            save_checkpoints_secs=None,
            save_summary_steps=0,
            log_step_count_steps=None,
            checkpoint_save_graph_def=False,
        )
        return api.TPUEstimator(
            self.model_fn,
            config=run_config,
            use_tpu=not self.tpu.is_rehearsal,
            train_batch_size=settings.train_batch_size,
            predict_batch_size=self.batch_size,
        )


class Training(Host):
    """A training step with what goes on around it: figures, summaries and checkpoints."""

    def __init__(
        self,
        config: Config,
        plan: MeshPlan,
        tpu: Tpu,
        account: StepRecorderHook,
        every: int,
        state: State,
        hooks: Sequence[Any],
    ) -> None:
        """
        Args:
            account: is told of the steps.
            every: the number of steps between checkpoints.
            state: what is saved beside a checkpoint.
            hooks: further ones.
        """
        super().__init__(config, plan, tpu, config.training.train_batch_size, config.model.n_ctx)
        self._account, self._every, self._state, self._hooks = account, every, state, list(hooks)

    def spec(self, features: Mapping[str, tf.Tensor], mode: str, mesh_impl: Any) -> Any:
        """A step on `tokens`, int32 [batch, n_ctx + 1]."""
        global_step = v1.train.get_global_step()
        step = tf.cast(global_step.read_value(), tf.int32)
        given = objective_of(self.config).features(features["tokens"], step_seed(self.config.training.seed, step))
        out = model_fns.build_train(given, self.config, mesh_impl, step)
        figures = {"loss": out.loss, "nll": out.nll, "lr": out.lr, "grad_norm": out.grad_norm, **out.extras}
        with tf.control_dependencies([out.update]):  # which comes after every other reader of the step
            done = global_step.read_value() + 1
        train_op = tf.group(global_step.assign(done, read_value=False), self._account.accumulate(figures))
        directory = self.config.training.model_path
        host_call = _summaries(directory, done, figures)
        with mtf.utils.outside_all_rewrites():
            saver = Saver(self.config.source, sharded=not self.tpu.is_rehearsal)
            save = SaveHook(directory, self._every, saver, mesh_impl, self._state)
            hooks = [mtf.MtfRestoreHook(mesh_impl), self._account, save, *self._hooks]
        return tpu_estimator().TPUEstimatorSpec(
            mode=mode,
            loss=out.loss,
            train_op=train_op,
            host_call=host_call,
            training_hooks=hooks,
            scaffold_fn=lambda: v1.train.Scaffold(saver=saver),
        )


class Function(Host):
    """Any function of the model, from arrays to arrays, as TPUEstimator's predict runs it."""

    def __init__(
        self, config: Config, plan: MeshPlan, tpu: Tpu, build: Build, batch_size: int, positions: int | None
    ) -> None:
        """`build`: from tensors [batch, …] and a mesh to tensors [batch, …]."""
        super().__init__(config, plan, tpu, batch_size, positions)
        self._build = build

    def spec(self, features: Mapping[str, tf.Tensor], mode: str, mesh_impl: Any) -> Any:
        """The arguments and the results go by their numbers."""
        found = self._build([features[str(i)] for i in range(len(features))], mesh_impl)
        with mtf.utils.outside_all_rewrites():
            hooks = [mtf.MtfRestoreHook(mesh_impl)]
        return tpu_estimator().TPUEstimatorSpec(
            mode=mode,
            predictions={str(i): x for i, x in enumerate(found)},
            prediction_hooks=hooks,
            scaffold_fn=lambda: v1.train.Scaffold(saver=Saver(self.config.source)),
        )


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
