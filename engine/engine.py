"""Mesh graphs as compiled functions over one store of variables.

On one device the whole step is compiled by XLA into one program. A mesh of several devices runs as one TensorFlow graph
over all of them: XLA compiles for one device at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.meshes import compiled_cache, processor
from gpt_mesh.meshes.collectives import CompiledCollectives, RuntimeCollectives
from gpt_mesh.meshes.devices import MeshPlan, have_tensor_cores
from gpt_mesh.meshes.placement import PlacementMesh
from gpt_mesh.meshes.spmd import Program, SpmdMesh
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.dropout import step_seed
from gpt_mesh.objectives.registry import objective_of


class MeshFunction:
    """A function that builds a mesh graph: traced, compiled and kept once for each form of its arguments."""

    def __init__(
        self, build: Callable[..., Any], store: VariableStore, device: str, compiled: bool, program: Program | None
    ) -> None:
        def trace(*args: tf.Tensor) -> Any:
            with store.scope():
                return build(*args)

        self._trace, self._device, self._compiled, self._program = trace, device, compiled, program
        self._traced: dict[tuple[tf.TensorSpec, ...], Callable[..., Any]] = {}
        self._called: set[tuple[tf.TensorSpec, ...]] = set()

    def __call__(self, *args: Any) -> Any:
        with tf.device(self._device):
            tensors = [tf.convert_to_tensor(x) for x in args]
            form = tuple(tf.TensorSpec(x.shape, x.dtype) for x in tensors)
            if form not in self._called:
                return self._first_call(form, tensors)
            return self._traced[form](*tensors)

    def _first_call(self, form: tuple[tf.TensorSpec, ...], tensors: list[tf.Tensor]) -> Any:
        """Compiles, unless the program is in the cache of an earlier process."""
        with compiled_cache.quiet_reading():
            try:
                found = self.traced(*form)(*tensors)
            except tf.errors.OpError as error:
                if not compiled_cache.removed_damage(error):
                    raise
                del self._traced[form]  # TensorFlow remembers of each function that it could not be compiled
                found = self.traced(*form)(*tensors)
        compiled_cache.seal()
        self._called.add(form)
        return found

    def traced(self, *form: tf.TensorSpec) -> Callable[..., Any]:
        """The graph for arguments of this form. Building it creates its variables, but compiles and runs nothing."""
        if form not in self._traced and self._program is not None:
            self._traced[form] = self._program.function(self._trace, form)
        elif form not in self._traced:
            with tf.device(self._device):
                function = tf.function(self._trace, autograph=False, jit_compile=self._compiled or None)
                self._traced[form] = function.get_concrete_function(*form)
        return self._traced[form]


class Engine:
    """The functions of one run. Each is traced and compiled when it is first called; all share the weights in `store`.
    """

    def __init__(
        self, config: Config, plan: MeshPlan, *, compiled: bool | None = None, spmd: bool | None = None
    ) -> None:
        """Everything that runs on the plan's devices.

        Args:
            compiled: whether XLA compiles; default: what the plan says.
            spmd: whether each of several devices runs a program of its own, or one graph spans them all; default: what
                the plan says.
        """
        spmd = plan.spmd if spmd is None else spmd and len(plan.devices) > 1
        if spmd:  # XLA and TensorFlow number the devices of a group in this order
            plan = dataclasses.replace(plan, devices=tuple(sorted(plan.devices)))
        self.config, self.plan, self.objective = config, plan, objective_of(config)
        self.compiled = plan.compiled if compiled is None else compiled
        self.store = VariableStore(plan.master_device)
        collectives = CompiledCollectives(plan.devices) if self.compiled else RuntimeCollectives(plan.devices)
        self.program = Program(plan.devices, self.store, collectives, self.compiled) if spmd else None
        self.global_step = self.store.scalar("global_step", tf.int64)
        self.mesh_impl = self._mesh()
        # TensorFlow keeps int32 tensors in the host's memory.
        self.staged_type = tf.int64 if len(plan.devices) == 1 and "GPU" in plan.master_device else tf.int32
        self.training_compiled = self.compiled and (compiled is True or not self._is_faster_uncompiled())
        self.training_mesh = self.mesh_impl
        if self.training_compiled != self.compiled:  # on one CPU, without what is made for compiled graphs
            self.training_mesh = self._mesh()
            self.training_mesh.cpu_products = False
        self._train = self.function(self._train_step, compiled=self.training_compiled)
        self._eval = self.function(self._eval_step)
        self._score = self.function(self._score_step)
        self._logits = self.function(self._logits_step)

    def _is_faster_uncompiled(self) -> bool:
        """Whether the training step is: on a CPU with fast bfloat16, which XLA makes no use of."""
        on_cpu = len(self.plan.devices) == 1 and "CPU" in self.plan.devices[0]
        wins = on_cpu and processor.bfloat16_wins(self.config.model.n_embd)
        return wins is True and self.config.training.precision == "bfloat16"

    def function(self, build: Callable[..., Any], *, compiled: bool | None = None) -> MeshFunction:
        """`build`, which makes a mesh graph of its arguments, as a function that shares this engine's weights.

        `compiled`: whether XLA compiles it; default: as the engine's others.
        """
        compiled = self.compiled if compiled is None else compiled
        return MeshFunction(build, self.store, self.plan.master_device, compiled, self.program)

    def mesh_for(self, batch: int, positions: int | None) -> PlacementMesh | SpmdMesh:
        """The mesh for batches of that size: what does not divide by the layout's mesh dimension is left whole.

        `positions`: of each sequence; None: decoding, where a pass has one position and prompts have any length.
        """
        sizes = {"batch": batch, "sequence": positions or 1, "memory_length": positions or 1}
        splits = {name: self.plan.shape[self.plan.rules[name]] for name in sizes if name in self.plan.rules}
        whole = [name for name, parts in splits.items() if sizes[name] % parts]
        return self._mesh(whole) if whole else self.mesh_impl

    def _mesh(self, unsplit: Sequence[str] = ()) -> PlacementMesh | SpmdMesh:
        mesh = self.plan.implementation(self.store, self.program, unsplit=unsplit)
        mesh.tensor_cores = self.compiled and have_tensor_cores(self.plan.devices)
        if isinstance(mesh, PlacementMesh):
            on_cpu = self.compiled and len(self.plan.devices) == 1 and "CPU" in self.plan.devices[0]
            mesh.cpu_products = on_cpu and self.config.training.fused_ops
        return mesh

    def stage(self, tokens: np.ndarray) -> tf.Tensor:
        """A batch for `train_step`, on the device if that is one GPU. Any thread may call it while steps run.

        A copy to a GPU waits for what that was given before, so it is to begin before the step before is given to it.
        """
        with tf.device("/device:CPU:0"):
            staged = tf.constant(tokens.astype(self.staged_type.as_numpy_dtype))
        if self.staged_type == tf.int32:
            return staged
        with tf.device(self.plan.master_device):
            return tf.identity(staged)  # an operation: while it waits other threads can run

    def train_step(self, tokens: np.ndarray | tf.Tensor) -> dict[str, tf.Tensor]:
        """Update the weights with one batch, int32 [train_batch_size, n_ctx + 1]: `loss`, `nll`, `grad_norm`, `lr`.

        `tokens`: as they are, or what `stage` made of them.
        """
        return self._train(tokens if tf.is_tensor(tokens) else self.stage(tokens))

    def eval_step(self, tokens: np.ndarray, weights: np.ndarray) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sums over each row of nll, of correct predictions and of weights, [batch] each, for int32 [batch, n + 1] and
        float32 [batch, n].
        """
        return self._eval(tokens, weights)

    def log_probabilities(self, tokens: np.ndarray) -> tf.Tensor:
        """float32 [batch, n]: of each token but the first, for int32 [batch, n + 1]."""
        return self.scores(tokens)[0]

    def scores(self, tokens: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """`log_probabilities`, and 1.0 where the token is the likeliest one, else 0.0: float32 [batch, n] both."""
        return self._score(tokens)

    def logits(self, tokens: np.ndarray) -> tf.Tensor:
        """float32 [batch, n, n_vocab], for int32 [batch, n]."""
        return self._logits(tokens)

    def _train_step(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        global_step = self.training_mesh.local("global_step")
        step = global_step.read_value()
        tokens = tf.cast(tokens, tf.int32)
        features = self.objective.features(tokens, step_seed(self.config.training.seed, step))
        out = model_fns.build_train(features, self.config, self.training_mesh, step)
        global_step.assign(step + 1)
        return {"loss": out.loss, "nll": out.nll, "grad_norm": out.grad_norm, "lr": out.lr, **out.extras}

    def _eval_step(self, tokens: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        features = self.objective.features(tokens, weights=weights)
        out = model_fns.build_eval(features, self.config, self.mesh_for(*features["inputs"].shape.as_list()))
        return out.nll, out.correct, out.weight

    def _score_step(self, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = self.objective.features(tokens)
        return model_fns.build_score(features, self.config, self.mesh_for(*features["inputs"].shape.as_list()))

    def _logits_step(self, tokens: tf.Tensor) -> tf.Tensor:
        return model_fns.build_logits(tokens, self.config, self.mesh_for(*tokens.shape.as_list()))

    def restore(self, checkpoint: str, *, finite: bool = False) -> list[str]:
        """Fill every variable from a checkpoint; returns the names of optimizer slots that it does not have.

        `finite`: refuse one with weights that are no numbers.
        """
        missing = checkpoints.restore(checkpoint, self.store.masters, self.config.source, finite=finite)
        self.store.scatter()
        return missing

    def save(self, directory: str, step: int, state: Mapping[str, Any]) -> str:
        """Write every variable as a checkpoint; returns its path."""
        return checkpoints.save(directory, step, self.snapshot(), state)

    def snapshot(self) -> dict[str, tf.Tensor]:
        """Every variable's value, in the host's memory: later steps leave it as it is.

        On one CPU device nothing is copied here: TensorFlow gives a variable new memory when it changes while somebody
        holds its value.
        """
        self.store.gather()
        with tf.device("/device:CPU:0"):
            return {name: tf.identity(variable.read_value()) for name, variable in self.store.masters.items()}

    def create_variables(self, *, training: bool) -> None:
        """Create every variable with its initial value: what a restore fills. `training`: the optimizer's too."""
        settings, width = self.config.training, self.config.model.n_ctx + 1
        if training:
            self._train.traced(tf.TensorSpec((settings.train_batch_size, width), self.staged_type))
        else:
            self._score.traced(tf.TensorSpec((1, width), tf.int32))
