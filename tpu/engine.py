"""The functions of a model on a TPU: see `engine.interface.Engine`."""

from __future__ import annotations

import atexit
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_mesh.meshes.compat import quiet_estimator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh import model_fns, sample
from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.inputs import TrainingData
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.sample import Batch, BatchState, Chunk
from gpt_mesh.storage.progress import log
from gpt_mesh.tpu import devices
from gpt_mesh.tpu.devices import Tpu
from gpt_mesh.tpu.estimator import Build, Function, Training
from gpt_mesh.tpu.feed import Feed
from gpt_mesh.tpu.predictor import Predictor
from gpt_mesh.tpu.session import graph_mode


class TpuEngine:
    """Runs a model through TPUEstimator, with weights from checkpoints in `model_path`.

    The TPU holds one graph at a time, with its weights: a function stays there until another one, or another shape of
    its arguments, is asked for. TPUEstimator owns the loop of training steps, so `train` takes the place of a step.
    """

    can_reorder = False  # a batch is generated whole, in one graph

    def __init__(self, config: Config, plan: MeshPlan, tpu: Tpu) -> None:
        self.config, self.plan, self.tpu = config, plan, tpu
        self._checkpoint = ""
        self._key: Any = None
        self._predictor: Predictor | None = None

    def train(self, training: Training, data: TrainingData, position: int, last: int, iterations: int) -> None:
        """Train from the newest checkpoint to the step `last`, or until a hook ends it; saves at the end.

        Args:
            position: of step 0 in the data: where it would have begun, had all steps had this batch size.
            iterations: training steps in one run of the TPU.
        """
        self.close()
        size = self.config.training.train_batch_size
        form = {"tokens": tf.TensorSpec([size, data.width], tf.int32)}
        feed = Feed(form, lambda step: data.batches(position + step * size, size))
        try:
            with quiet_estimator(), graph_mode():
                training.estimator(iterations).train(feed.input_fn, hooks=[feed], max_steps=last)
        finally:
            feed.finish()

    def eval_step(self, tokens: np.ndarray, weights: np.ndarray) -> tuple[Any, Any, Any]:
        """See `Engine`."""

        def build(arrays: Sequence[tf.Tensor], mesh_impl: Any) -> Sequence[tf.Tensor]:
            features = objective_of(self.config).features(arrays[0], weights=arrays[1])
            out = model_fns.build_eval(features, self.config, mesh_impl)
            return out.nll, out.correct, out.weight

        nll, correct, weight = self._call("eval_step", build, [tokens, weights], tokens.shape[1] - 1)
        return nll, correct, weight

    def compare(self, tokens: np.ndarray) -> Sequence[Any]:
        """Not on a TPU."""
        raise InputError(f"{self.config.source}: preferences are not evaluated on a TPU; use CPUs or GPUs")

    def rewards(self, tokens: np.ndarray) -> Any:
        """Not on a TPU."""
        raise InputError(f"{self.config.source}: rewards are not computed on a TPU; use CPUs or GPUs")

    def score(self, tokens: np.ndarray) -> tuple[Any, Any]:
        """See `Engine`."""

        def build(arrays: Sequence[tf.Tensor], mesh_impl: Any) -> Sequence[tf.Tensor]:
            return model_fns.build_score(objective_of(self.config).features(arrays[0]), self.config, mesh_impl)

        logprobs, correct = self._call("score", build, [tokens], tokens.shape[1] - 1)
        return logprobs, correct

    def score_alternatives(self, tokens: np.ndarray, top: int) -> tuple[Any, Any, Any]:
        """See `Engine`."""

        def build(arrays: Sequence[tf.Tensor], mesh_impl: Any) -> Sequence[tf.Tensor]:
            return model_fns.build_alternatives(arrays[0], self.config, mesh_impl, top)

        logprobs, ids, values = self._call(("score_alternatives", top), build, [tokens], tokens.shape[1] - 1)
        return logprobs, ids, values

    def logits(self, tokens: np.ndarray) -> Any:
        """See `Engine`."""

        def build(arrays: Sequence[tf.Tensor], mesh_impl: Any) -> Sequence[tf.Tensor]:
            return [model_fns.build_logits(arrays[0], self.config, mesh_impl)]

        return self._call("logits", build, [tokens], tokens.shape[1])[0]

    def prefill(
        self, batch: Batch, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """See `Engine`. Prefill and advance run in one graph (`sample.build_generate`); the state's caches hold the
        tokens that `advance` has not given yet.
        """

        def build(arrays: Sequence[tf.Tensor], mesh_impl: Any) -> Sequence[tf.Tensor]:
            given = Batch.from_arrays(arrays)
            return sample.build_generate(given, config=self.config, mesh_impl=mesh_impl, eos_ids=eos_ids, top=top)

        found = self._call(("generate", eos_ids, top), build, batch.arrays, None)
        state = BatchState(None, batch.lengths, batch.ends, None, batch.controls, [x[:, 1:] for x in found])
        return Chunk(*(x[:, :1] for x in found)), state

    def advance(
        self, state: BatchState, limit: int, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """See `Engine`."""
        del eos_ids, top
        left = [x[:, limit:] for x in state.caches]
        after = dataclasses.replace(state, lengths=state.lengths + np.int32(limit), caches=left)
        return Chunk(*(x[:, :limit] for x in state.caches)), after

    def reorder(self, state: BatchState, tokens: Sequence[int], parents: Sequence[int]) -> BatchState:
        """See `Engine`."""
        raise AssertionError("can_reorder says no")

    def restore(self, checkpoint: str, *, finite: bool = False) -> list[str]:
        """See `Engine`. The checkpoint is read where it is used: whether it fits the model is known then."""
        self.close()
        self._checkpoint = checkpoint
        if finite:
            for name, value in checkpoints.values(checkpoint):
                checkpoints.check_finite(checkpoint, name, value)
        return []

    def snapshot(self) -> Mapping[str, Any]:
        """See `Engine`: the variables of the checkpoint."""
        return dict(checkpoints.values(self._checkpoint))

    def close(self) -> None:
        """End the session that is open."""
        if self._predictor is not None:
            self._predictor.close()
            self._predictor = None
            atexit.unregister(self.close)

    def _call(self, key: Any, build: Build, arrays: Sequence[NDArray[Any]], positions: int | None) -> list[NDArray]:
        """What `build` makes of the arrays, in the open session if that is of this function, else in a new one."""
        forms = tuple(tf.TensorSpec(x.shape, x.dtype) for x in arrays)
        if self._predictor is None or self._key != (key, forms):
            self.close()
            function = Function(self.config, self.plan, self.tpu, build, len(arrays[0]), positions)
            self._key = key, forms
            self._predictor = Predictor(function, forms, self._checkpoint)
            atexit.register(self.close)  # before what TensorFlow does at exit, which has to find no session
        try:
            return self._predictor(arrays)
        except BaseException:
            self.close()
            raise


def tpu_engine(config: Config, name: str) -> TpuEngine:
    """An engine on the TPU of that name, for evaluation and generation: the mesh is fitted to its cores.

    Raises:
        InputError: see `devices.find`.
    """
    tpu = devices.find(name, config)
    plan = tpu.plan(config, limits_of(config))
    if plan.notice:
        log.info(plan.notice)
    return TpuEngine(config, plan, tpu)
