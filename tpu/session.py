"""What a session that trains needs around its steps: variables from checkpoints, checkpoints, figures, and an end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from gpt_mesh.meshes.compat import mtf

import tensorflow as tf

from gpt_mesh.engine import checkpoints
from gpt_mesh.storage.progress import log
from gpt_mesh.training.interrupts import Interrupts

v1 = tf.compat.v1
Figures = dict[str, float]
State = Callable[[Any, int], Mapping[str, Any]]


@contextlib.contextmanager
def graph_mode() -> Iterator[None]:
    """Within it, loops become operations of the graph itself and not of functions that it calls. mesh-tensorflow's TPU
    mesh looks from inside a loop for what stands around it.
    """
    before = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        if before:
            v1.enable_control_flow_v2()


class Saver(tf.compat.v1.train.Saver):
    """Saves and restores as the training loop does: weights that are stored narrower are widened, and optimizer slots
    that a checkpoint does not have keep their initial values.
    """

    def __init__(self, source: str, *, sharded: bool = False) -> None:
        """Of the graph's global variables; call it when they are all there.

        Args:
            source: the config, for messages.
            sharded: a file for each device that has variables, as for a TPU of several hosts.
        """
        self._source = source
        self._variables = {variable.op.name: variable for variable in v1.global_variables()}
        super().__init__(self._variables, sharded=sharded, max_to_keep=0, save_relative_paths=True)

    def restore(self, sess: Any, save_path: str) -> None:
        """
        Raises:
            InputError: see `checkpoints.restore`.
        """
        wanted = {name: variable.shape.as_list() for name, variable in self._variables.items()}
        dtypes, missing = checkpoints.contents(save_path, wanted, self._source)
        if not missing and all(dtype == self._variables[name].dtype.base_dtype for name, dtype in dtypes.items()):
            super().restore(sess, save_path)
            return
        reader = v1.train.NewCheckpointReader(save_path)
        for name, variable in self._variables.items():
            if name in missing:
                sess.run(variable.initializer)
            else:
                variable.load(reader.get_tensor(name).astype(variable.dtype.as_numpy_dtype), sess)


class SaveHook(tf.compat.v1.train.CheckpointSaverHook):
    """Saves every so many steps and at the end. mesh-tensorflow's listener copies slices to masters first."""

    def __init__(self, directory: str, every: int, saver: Saver, mesh_impl: Any, state: State) -> None:
        """`state`: from the session and its step, what else a resumed run needs, JSON-ready."""
        listeners = [mtf.MtfCheckpointSaverListener(mesh_impl), _StateListener(directory, state)]
        super().__init__(directory, save_steps=every, saver=saver, listeners=listeners, save_graph_def=False)
        self._every, self._saved = every, -1

    def after_create_session(self, session: Any, coord: Any) -> None:
        """In place of saving what was just restored, and a description of the graph."""
        del coord
        self._saved = int(session.run(self._global_step_tensor))

    def before_run(self, run_context: Any) -> None:
        """Nothing to fetch: the step is read when the run is over."""

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Save, if it is time."""
        step = int(run_context.session.run(self._global_step_tensor))
        if step // self._every > self._saved // self._every:
            self._save(run_context.session, step)

    def end(self, session: Any) -> None:
        """Save, if there were steps since."""
        step = int(session.run(self._global_step_tensor))
        if step != self._saved:
            self._save(session, step)

    def _save(self, session: Any, step: int) -> bool:
        self._saved = step
        return bool(super()._save(session, step))


class _StateListener(tf.compat.v1.train.CheckpointSaverListener):
    """Writes what stands beside a checkpoint first, and tidies the directory last, as the training loop does."""

    def __init__(self, directory: str, state: State) -> None:
        self._directory, self._state = directory, state

    def before_save(self, session: Any, global_step_value: int) -> None:
        step = int(global_step_value)
        checkpoints.save_state(self._directory, step, self._state(session, step))

    def after_save(self, session: Any, global_step_value: int) -> None:
        checkpoints.finish(self._directory, int(global_step_value))
        log.info("saved %s", tf.io.gfile.join(self._directory, f"model.ckpt-{int(global_step_value)}"))


class StepRecorder(Protocol):
    """Who keeps the figures of a run's steps."""

    def starts(self, step: int) -> None:
        """A session begins at this step; what it was told of later ones is void."""

    def add(self, steps: int, sums: Figures, newest: Figures) -> None:
        """Steps that were done: what each figure sums up to, and the last step's."""

    def log(self, step: int, rate: float | None) -> None:
        """It is time to log. `rate`: steps a second, where it is known."""


class StepRecorderHook(tf.compat.v1.train.SessionRunHook):
    """Sums up the figures of steps where the steps are done (a run of a TPU is many of them), and tells an account."""

    def __init__(self, account: StepRecorder, every: int, last: int) -> None:
        """To be logged after `every` steps and at the step `last`."""
        self._account, self._every, self._last = account, every, last

    def accumulate(self, figures: Mapping[str, tf.Tensor]) -> tf.Operation:
        """The operation of the step that adds its figures, scalars."""
        self._names = list(figures)
        with mtf.utils.outside_all_rewrites(), tf.device(v1.train.get_global_step().device):
            self._sums = v1.get_variable(
                "account/figures",
                [2, len(figures)],
                initializer=v1.zeros_initializer(),
                trainable=False,
                collections=[v1.GraphKeys.LOCAL_VARIABLES],
                use_resource=True,
            )
        newest = tf.stack([tf.cast(tf.reshape(x, []), tf.float32) for x in figures.values()])
        return self._sums.assign(tf.stack([self._sums.read_value()[0] + newest, newest])).op

    def begin(self) -> None:
        """What is needed of the graph, which is closed after this."""
        self._global_step, self._value = v1.train.get_global_step(), self._sums.read_value()

    def after_create_session(self, session: Any, coord: Any) -> None:
        """A new session, or one in place of a lost one."""
        del coord
        self._told = self._logged = int(session.run(self._global_step))
        self._clock: tuple[float, int] | None = None  # the first run compiles
        self._account.starts(self._told)

    def after_run(self, run_context: Any, run_values: Any) -> None:
        """Log, if it is time."""
        del run_values
        step = int(run_context.session.run(self._global_step))
        if self._clock is None:
            self._clock = time.perf_counter(), step
        if step // self._every > self._logged // self._every or step >= self._last > self._logged:
            self._tell(run_context.session, step)
            begin, since = self._clock
            self._account.log(step, (step - since) / (time.perf_counter() - begin) if step > since else None)
            self._logged, self._clock = step, (time.perf_counter(), step)

    def before_save(self, session: Any) -> None:
        """Bring the account up to date."""
        self._tell(session, int(session.run(self._global_step)))

    def _tell(self, session: Any, step: int) -> None:
        if step == self._told:
            return
        sums, newest = (dict(zip(self._names, row.tolist(), strict=True)) for row in session.run(self._value))
        session.run(self._sums.initializer)
        self._account.add(step - self._told, sums, newest)
        self._told = step


class EndHook(tf.compat.v1.train.SessionRunHook):
    """Ends a session after the run in which a signal asked for it."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def after_run(self, run_context: Any, run_values: Any) -> None:
        if self._interrupts.requested:
            run_context.request_stop()
