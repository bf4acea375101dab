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

from gpt_mesh import model_fns, sample
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
from gpt_mesh.optimizers.registry import is_slot
from gpt_mesh.sample import Batch, BatchState, Chunk


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


class DeviceEngine:
    """The functions of one run on this host's devices, or on those of several hosts: see `engine.interface.Engine`.

    Each is traced and compiled when it is first called; all share the weights in `store`.
    """

    can_reorder = True

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
            self.training_mesh.cpu_kernels = False
        self._train = self.function(self._train_step, compiled=self.training_compiled)
        self._eval = self.function(self._eval_step)
        self._score = self.function(self._score_step)
        self._logits = self.function(self._logits_step)
        self._compare = self.function(self._compare_step)
        self._rewards = self.function(self._rewards_step)
        self._keyed: dict[tuple[Any, ...], MeshFunction] = {}
        self._restored: str | None = None  # the checkpoint that the weights are of

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
        on_one_cpu = self.compiled and len(self.plan.devices) == 1 and "CPU" in self.plan.devices[0]
        mesh.cpu_kernels = on_one_cpu and self.config.training.fused_ops
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

    def compare(self, tokens: np.ndarray) -> list[tf.Tensor]:
        """The loss, the nll, the rewards of the chosen and of the rejected text, and whether they are in the right
        order (1.0 or 0.0), of each of the pairs int32 [batch, 2, n + 1]: float32 [batch] each.
        """
        known = set(self.store.masters)
        self._compare.traced(tf.TensorSpec(tokens.shape, tf.int32))
        if self._restored is not None and self.store.masters.keys() - known:  # the reference's weights are new
            self.restore(self._restored, finite=True)
        return list(self._compare(tokens))

    def rewards(self, tokens: np.ndarray) -> tf.Tensor:
        """The reward of the text up to each position, by a reward model: float32 [batch, n], for int32 [batch, n]."""
        return self._rewards(tokens)

    def score(self, tokens: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """The log-probability of each token but the first, and 1.0 where it is the likeliest one, else 0.0: float32
        [batch, n] both, for int32 [batch, n + 1].
        """
        return self._score(tokens)

    def score_alternatives(self, tokens: np.ndarray, top: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The log-probability of each token but the first, and the `top` likeliest ids at its place with theirs:
        float32 [batch, n], int32 and float32 [batch, n, top], for int32 [batch, n + 1].
        """

        def build(tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            batch, width = tokens.shape.as_list()
            return model_fns.build_alternatives(tokens, self.config, self.mesh_for(batch, width - 1), top)

        return self._by_key(("score_alternatives", top), build)(tokens)

    def logits(self, tokens: np.ndarray) -> tf.Tensor:
        """float32 [batch, n, n_vocab], for int32 [batch, n]."""
        return self._logits(tokens)

    def prefill(
        self, batch: Batch, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """Read prompts and add a first token to each: see `sample.build_prefill`. Compiled once for each shape."""

        def build(*arrays: tf.Tensor) -> list[tf.Tensor]:
            given = Batch.from_arrays(arrays)
            mesh_impl = self.mesh_for(given.prompts.shape[0], None)
            return sample.build_prefill(given, config=self.config, mesh_impl=mesh_impl, eos_ids=eos_ids, top=top)

        found = self._by_key(("prefill", eos_ids, top), build)(*batch.arrays)
        n = sample.count_outputs(top)
        drawn, seen, caches = found[:n], found[n], found[n + 1 :]
        state = BatchState(drawn[0], batch.lengths, batch.ends, seen, batch.controls, caches)
        return Chunk(*(x.numpy()[:, None] for x in drawn)), state

    def advance(
        self, state: BatchState, limit: int, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """Add up to `limit` tokens, and at most `sample.CHUNK`, to each row: see `sample.build_advance`. Compiled once
        for each number of rows and room of the caches, which doubles as they fill.
        """
        limit = min(limit, sample.CHUNK)

        def build(limit: tf.Tensor, *arrays: tf.Tensor) -> list[tf.Tensor]:
            given = BatchState.from_arrays(arrays)
            mesh_impl = self.mesh_for(given.newest.shape[0], None)
            return sample.build_advance(given, limit, config=self.config, mesh_impl=mesh_impl, eos_ids=eos_ids, top=top)

        state = sample.with_room(state, limit, self.config.model)
        count, *found = self._by_key(("advance", eos_ids, top), build)(np.int32(limit), *state.arrays)
        n, added = sample.count_outputs(top), int(count)
        drawn, seen, caches = found[:n], found[n], found[n + 1 :]
        if added:
            lengths = state.lengths + np.int32(added)
            state = dataclasses.replace(state, newest=drawn[0][:, added - 1], lengths=lengths)
        return Chunk(*(x.numpy()[:, :added] for x in drawn)), dataclasses.replace(state, seen=seen, caches=caches)

    def reorder(self, state: BatchState, tokens: Sequence[int], parents: Sequence[int]) -> BatchState:
        """The state in which each row is what the row `parents` of it was, with another newest token: a step of a beam
        search. Rows beyond the given ones continue row 0.
        """
        missing = [0] * (len(state.ends) - len(tokens))
        rows = tf.constant([*parents, *missing], tf.int32)
        caches = [tf.gather(cache, rows) for cache in state.caches]
        return dataclasses.replace(state, newest=np.array([*tokens, *missing], np.int32), caches=caches)

    def _by_key(self, key: tuple[Any, ...], build: Callable[..., Any]) -> MeshFunction:
        """`build` as a function, always the same for one key."""
        if key not in self._keyed:
            self._keyed[key] = self.function(build)
        return self._keyed[key]

    def _train_step(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        global_step = self.training_mesh.local("global_step")
        step = global_step.read_value()
        tokens = tf.cast(tokens, tf.int32)
        features = self.objective.features(tokens, step_seed(self.config.training.seed, step))
        out = model_fns.build_train(features, self.config, self.training_mesh, step)
        global_step.assign(step + 1)
        return {"loss": out.loss, "nll": out.nll, "grad_norm": out.grad_norm, "lr": out.lr, **out.extras}

    def inspect(self, tokens: np.ndarray) -> dict[str, tuple[float, float, int]]:
        """The sizes of a training step's activations and gradients, by name (see `model_fns.build_inspection`): norm,
        largest absolute value, number of elements that are not finite. Nothing is updated.
        """
        names: list[str] = []

        def build(tokens: tf.Tensor) -> tf.Tensor:
            step = self.training_mesh.local("global_step").read_value()
            features = self.objective.features(tf.cast(tokens, tf.int32), step_seed(self.config.training.seed, step))
            return model_fns.build_inspection(features, self.config, self.training_mesh, step, names)

        found = self.function(build, compiled=self.training_compiled)(tokens).numpy().tolist()
        return {name: (norm, largest, int(count)) for name, (norm, largest, count) in zip(names, found, strict=True)}

    def nonfinite_variables(self) -> list[str]:
        """The names of weights and optimizer slots that have elements that are not finite numbers, or so large (from
        about 1e19 on) that the sum of their squares is not.
        """
        self.store.gather()
        names = [name for name, variable in self.store.masters.items() if variable.dtype.is_floating]

        def size(name: str) -> tf.Tensor:
            value = self.store.masters[name].read_value()
            # Squared gradients may be large.
            return tf.reduce_sum(tf.abs(value) if is_slot(name) else tf.square(value))

        with tf.device(self.plan.master_device):
            flags = tf.math.is_finite(tf.stack([size(name) for name in names])).numpy().tolist()
        return [name for name, flag in zip(names, flags, strict=True) if not flag]

    def _eval_step(self, tokens: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        features = self.objective.features(tokens, weights=weights)
        out = model_fns.build_eval(features, self.config, self.mesh_for(*features["inputs"].shape.as_list()))
        return out.nll, out.correct, out.weight

    def _score_step(self, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = self.objective.features(tokens)
        return model_fns.build_score(features, self.config, self.mesh_for(*features["inputs"].shape.as_list()))

    def _compare_step(self, tokens: tf.Tensor) -> list[tf.Tensor]:
        features = self.objective.features(tokens)
        batch, _, width = tokens.shape.as_list()
        return model_fns.build_comparison(features, self.config, self.mesh_for(batch, width - 1))

    def _rewards_step(self, tokens: tf.Tensor) -> tf.Tensor:
        return model_fns.build_rewards(tokens, self.config, self.mesh_for(*tokens.shape.as_list()))

    def _logits_step(self, tokens: tf.Tensor) -> tf.Tensor:
        return model_fns.build_logits(tokens, self.config, self.mesh_for(*tokens.shape.as_list()))

    def restore(self, checkpoint: str, *, finite: bool = False) -> list[str]:
        """Fill every variable from a checkpoint; returns the names of optimizer slots that it does not have.

        `finite`: refuse one with weights that are not finite numbers.
        """
        self._restored = checkpoint
        missing = checkpoints.restore(checkpoint, self.store.masters, self.config.source, finite=finite)
        self.store.scatter()
        return missing

    def save(self, directory: str, step: int, state: Mapping[str, Any]) -> str:
        """Write every variable as a checkpoint; returns its path."""
        return checkpoints.save(directory, step, self.snapshot(), state)

    def snapshot(self) -> dict[str, tf.Tensor]:
        """Every variable's value by its name, in the host's memory: later steps leave it as it is.

        On one CPU device nothing is copied here: TensorFlow gives a variable new memory when it changes while somebody
        holds its value.
        """
        self.store.gather()
        with tf.device("/device:CPU:0"):
            return {name: tf.identity(variable.read_value()) for name, variable in self.store.masters.items()}

    def close(self) -> None:
        """Nothing to release: what was compiled goes with the engine."""

    def create_variables(self, *, training: bool) -> None:
        """Create every variable with its initial value: what a restore fills. `training`: the optimizer's too."""
        settings, width = self.config.training, self.config.model.n_ctx + 1
        if training:
            shape = self.objective.batch_shape(settings.train_batch_size, width)
            self._train.traced(tf.TensorSpec(shape, self.staged_type))
        elif self.config.model.reward_head:
            self._rewards.traced(tf.TensorSpec((1, width - 1), tf.int32))
        else:
            self._score.traced(tf.TensorSpec((1, width), tf.int32))
