"""`--profile STEPS`: a TensorBoard profile of some steps, and a table of the time they took."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage.progress import log

# Parts of a step on the host, as the training loop marks them (`part`), with their names in the table.
PARTS = {"read": "reading the batch", "train": "training step", "log": "fetching figures, logging"}
SMALL = 0.01  # operations below this share of the total are combined into one line
# Kernels that only call others; counting them too would count time twice.
_CALLS = ("Call", "PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf")


class Steps(NamedTuple):
    """The first and the last step to profile; steps count from 1."""

    first: int
    last: int

    def check(self, config: Config) -> None:
        """
        Raises:
            InputError: the run ends before the first of them.
        """
        if self.first > config.training.train_steps:
            raise InputError(
                f"--profile {self.first}:{self.last}: {config.source} ends at train_steps "
                f"{config.training.train_steps}; choose steps up to that"
            )


def part(name: str, **metadata: int) -> Any:
    """Mark a part of a step in the profile; costs almost nothing when nothing is profiled."""
    return tf.profiler.experimental.Trace(name, **metadata)


class Profiler:
    """Profiles the given steps of a run. With None it does nothing."""

    def __init__(self, directory: str, steps: Steps | int | None, done: int) -> None:
        """
        Args:
            directory: the run's directory.
            steps: the steps to profile, or their number, after the step that compiles.
            done: number of steps done before. The next step compiles, which would dominate the profile.
        """
        if isinstance(steps, int):
            steps = Steps(done + 2, done + 1 + steps)
        self._directory, self._steps, self._active = directory, steps, False
        if steps is not None and steps.last < done + 2:
            log.warning("--profile %d:%d: these steps are already done, or compile: nothing to profile", *steps)
            self._steps = None
        elif steps is not None and steps.first < done + 2:
            self._steps = Steps(done + 2, steps.last)
            log.info("--profile: step %d compiles; the profile starts at step %d", done + 1, done + 2)

    def before(self, step: int, wait: Callable[[], None]) -> None:
        """Called before each step. `wait`: a function that waits until the device has finished earlier steps."""
        if self._steps is None or step != self._steps.first:
            return
        wait()
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(self._directory, options=options)
        self._active, self._begin, self._first = True, time.perf_counter(), step

    def after(self, step: int, wait: Callable[[], None]) -> bool:
        """Called after each step; writes the profile after its last step, and returns whether it did."""
        if self._steps is None or not self._active or step != self._steps.last:
            return False
        self.close(step, wait)
        return True

    def close(self, step: int, wait: Callable[[], None]) -> None:
        """Write the profile up to this step, if profiling is active."""
        if not self._active:
            return
        self._active, self._steps = False, None
        wait()
        seconds = time.perf_counter() - self._begin
        tf.profiler.experimental.stop()
        count = step - self._first + 1
        io = tf.io.gfile
        folder = sorted(io.glob(io.join(self._directory, "plugins", "profile", "*")))[-1]
        lines = [f"profile of steps {self._first} to {step}, for TensorBoard: {shown(folder)}"]
        lines += table(_spaces(folder), count, seconds)
        with io.GFile(io.join(folder, "summary.txt"), "w") as file:
            file.write("\n".join(lines) + "\n")
        for line in lines:
            log.info(line)


def _spaces(folder: str) -> list[Any]:
    """The files that the profiler wrote, one for each host."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    found = []
    for path in tf.io.gfile.glob(tf.io.gfile.join(folder, "*.xplane.pb")):
        space = xplane_pb2.XSpace()
        with tf.io.gfile.GFile(path, "rb") as file:
            space.ParseFromString(file.read())
        found.append(space)
    return found


def table(spaces: list[Any], count: int, seconds: float) -> list[str]:
    """The time of `count` steps, which took `seconds` in total: on the host, and by kind of operation."""
    step_ms = 1e3 * seconds / count
    lines = [f"{step_ms:.1f} ms per step, of which on the host:", f"  {'':28} {'time':>9}    {'share':>6}"]
    parts = {name: milliseconds / count for name, milliseconds in host_parts(spaces).items()}
    parts["rest"] = max(0.0, step_ms - sum(parts.values()))
    lines += [f"  {PARTS.get(name, name):28} {ms:9.2f} ms {ms / step_ms:6.1%}" for name, ms in parts.items()]
    kinds = {kind: ms / count for kind, ms in operations(spaces).items()}
    if not kinds:
        return lines
    total = sum(kinds.values())
    lines.append(f"operations, {total:.1f} ms per step over all devices or threads, forward and backward:")
    lines.append(f"  {'':28} {'forward':>9} {'backward':>9}    {'share':>6}")
    names = sorted({name for name, _ in kinds}, key=lambda name: -_both(kinds, name))
    shown = [name for name in names if _both(kinds, name) >= SMALL * total]
    for name in shown:
        forward, backward = kinds.get((name, False), 0.0), kinds.get((name, True), 0.0)
        lines.append(f"  {name:28} {forward:9.2f} {backward:9.2f} ms {(forward + backward) / total:6.1%}")
    if rest := sum(_both(kinds, name) for name in names if name not in shown):
        lines.append(f"  {f'{len(names) - len(shown)} others':28} {'':9} {rest:9.2f} ms {rest / total:6.1%}")
    return lines


def _both(kinds: dict[tuple[str, bool], float], name: str) -> float:
    return kinds.get((name, False), 0.0) + kinds.get((name, True), 0.0)


def host_parts(spaces: list[Any]) -> dict[str, float]:
    """Milliseconds in each part of a step (`PARTS`)."""
    found = dict.fromkeys(PARTS, 0.0)
    for plane, event, _ in _events(spaces):
        name = plane.event_metadata[event.metadata_id].name
        if plane.name == "/host:CPU" and name in found:
            found[name] += event.duration_ps / 1e9
    return found


def operations(spaces: list[Any]) -> dict[tuple[str, bool], float]:
    """Milliseconds by operation of the mesh graph (einsum, attend, …) and whether it belongs to the backward pass.

    Measured for GPU kernels, else for XLA's instructions on the CPU, else for TensorFlow's own kernels.
    """
    origins = _origins(spaces)
    by_source: dict[str, dict[tuple[str, bool], float]] = {"gpu": {}, "xla": {}, "tensorflow": {}}
    for plane, event, line in _events(spaces):
        name = plane.event_metadata[event.metadata_id].name
        if plane.name.startswith("/device:") and line.name.startswith("Stream"):
            hlo = _hlo_op(plane, event)
            source, origin = "gpu", origins.get(hlo, hlo) if hlo else "copies"
        elif hlo := _hlo_op(plane, event):
            source, origin = "xla", origins.get(hlo, hlo)
        elif plane.name == "/host:CPU" and (match := re.fullmatch(r"([\w./-]+):_?([A-Z]\w*)", name)):
            if match[2] in _CALLS:
                continue
            source, origin = "tensorflow", match[1]
        else:
            continue
        kinds = by_source[source]
        kind = kind_of(origin)
        kinds[kind] = kinds.get(kind, 0.0) + event.duration_ps / 1e9
    return next((kinds for kinds in by_source.values() if kinds), {})


def kind_of(origin: str) -> tuple[str, bool]:
    """The operation of the mesh graph that an operation comes from, and whether it belongs to the backward pass.

    "einsum_5/gradients/einsum_1/parallel_0/einsum/Einsum" belongs to the gradient of an einsum. A fusion for which XLA
    records no origin keeps its kind: "wrapped_reduce-window.10" is a reduce-window.
    """
    first = origin.partition("/")[0]
    name = re.sub(r"[._]\d+$", "", first).removeprefix("wrapped_")
    return name, "gradients/" in origin


def _origins(spaces: list[Any]) -> dict[str, str]:
    """The names of the graph operations that XLA's instructions come from, by instruction."""
    from tensorflow.compiler.xla.service import hlo_pb2

    found: dict[str, str] = defaultdict(str)
    for space in spaces:
        for plane in space.planes:
            for metadata in plane.event_metadata.values() if plane.name == "/host:metadata" else ():
                for stat in metadata.stats:
                    program = hlo_pb2.HloProto()
                    program.ParseFromString(stat.bytes_value)
                    for computation in program.hlo_module.computations:
                        for instruction in computation.instructions:
                            if instruction.metadata.op_name:
                                found[instruction.name] = instruction.metadata.op_name
    return dict(found)


def _events(spaces: list[Any]) -> Iterator[tuple[Any, Any, Any]]:
    for space in spaces:
        for plane in space.planes:
            for line in plane.lines:
                for event in line.events:
                    yield plane, event, line


def _hlo_op(plane: Any, event: Any) -> str | None:
    """The XLA instruction that an event is an execution of; None if it is not one."""
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "hlo_op":
            return stat.str_value or plane.stat_metadata[stat.ref_value].name
    return None
