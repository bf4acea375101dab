"""`--profile STEPS`: a TensorBoard profile of some steps, and a table of where their time went."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.storage.progress import log

# Parts of a step on the host, as the training loop marks them (`part`), with what the table calls them.
PARTS = {"read": "reading the batch", "train": "training step", "log": "fetching figures, logging"}
SMALL = 0.01  # operations of less than this share are one line
# Kernels that only call others, whose time would count twice.
_CALLS = ("Call", "PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf")


class Steps(NamedTuple):
    """The first and the last step to profile; the first of a run is step 1."""

    first: int
    last: int

    def check(self, config: Config) -> None:
        """
        Raises:
            InputError: the run ends before them.
        """
        if self.first > config.training.train_steps:
            raise InputError(
                f"--profile {self.first}:{self.last}: {config.source} ends at train_steps "
                f"{config.training.train_steps}; name steps up to that"
            )


def part(name: str, **metadata: int) -> Any:
    """Marks a part of a step in the profile; costs next to nothing when there is none."""
    return tf.profiler.experimental.Trace(name, **metadata)


class Profiler:
    """Profiles the given steps of a run, once they come. Without any, does nothing."""

    def __init__(self, directory: str, steps: Steps | int | None, done: int) -> None:
        """
        Args:
            directory: of the run.
            steps: which ones; a number: that many, after the one that compiles.
            done: steps that the run has done before. The next one compiles, which would hide all else.
        """
        if isinstance(steps, int):
            steps = Steps(done + 2, done + 1 + steps)
        self._directory, self._steps, self._active = directory, steps, False
        if steps is not None and steps.last < done + 2:
            log.warning("--profile %d:%d: these steps are done or compile: nothing to profile", *steps)
            self._steps = None
        elif steps is not None and steps.first < done + 2:
            self._steps = Steps(done + 2, steps.last)
            log.info("--profile: step %d compiles; the profile begins at step %d", done + 1, done + 2)

    def before(self, step: int, wait: Callable[[], None]) -> None:
        """A step is about to be done. `wait`: until the device has done those before it."""
        if self._steps is None or step != self._steps.first:
            return
        wait()
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(self._directory, options=options)
        self._active, self._begin, self._first = True, time.perf_counter(), step

    def after(self, step: int, wait: Callable[[], None]) -> bool:
        """A step was done; returns whether it was the last one of the profile, which is written then."""
        if self._steps is None or not self._active or step != self._steps.last:
            return False
        self.close(step, wait)
        return True

    def close(self, step: int, wait: Callable[[], None]) -> None:
        """Write the profile up to this step, if one is being made."""
        if not self._active:
            return
        self._active, self._steps = False, None
        wait()
        seconds = time.perf_counter() - self._begin
        tf.profiler.experimental.stop()
        count = step - self._first + 1
        io = tf.io.gfile
        folder = sorted(io.glob(io.join(self._directory, "plugins", "profile", "*")))[-1]
        lines = [f"profile of steps {self._first} to {step}, for TensorBoard: {folder}"]
        lines += table(_spaces(folder), count, seconds)
        with io.GFile(io.join(folder, "summary.txt"), "w") as file:
            file.write("\n".join(lines) + "\n")
        for line in lines:
            log.info(line)


def _spaces(folder: str) -> list[Any]:
    """What the profiler wrote, a file for each host."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    found = []
    for path in tf.io.gfile.glob(tf.io.gfile.join(folder, "*.xplane.pb")):
        space = xplane_pb2.XSpace()
        with tf.io.gfile.GFile(path, "rb") as file:
            space.ParseFromString(file.read())
        found.append(space)
    return found


def table(spaces: list[Any], count: int, seconds: float) -> list[str]:
    """Where the time of `count` steps went that took so many seconds: on the host, and by kind of operation."""
    step_ms = 1e3 * seconds / count
    lines = [f"{step_ms:.1f} ms a step, of which on the host:", f"  {'':28} {'time':>9}    {'share':>6}"]
    parts = {name: milliseconds / count for name, milliseconds in host_parts(spaces).items()}
    parts["rest"] = max(0.0, step_ms - sum(parts.values()))
    lines += [f"  {PARTS.get(name, name):28} {ms:9.2f} ms {ms / step_ms:6.1%}" for name, ms in parts.items()]
    kinds = {kind: ms / count for kind, ms in operations(spaces).items()}
    if not kinds:
        return lines
    total = sum(kinds.values())
    lines.append(f"operations, {total:.1f} ms a step over all devices or threads, forward and backward:")
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
    """Milliseconds in each part that the training loop marks."""
    found = dict.fromkeys(PARTS, 0.0)
    for plane, event, _ in _events(spaces):
        name = plane.event_metadata[event.metadata_id].name
        if plane.name == "/host:CPU" and name in found:
            found[name] += event.duration_ps / 1e9
    return found


def operations(spaces: list[Any]) -> dict[tuple[str, bool], float]:
    """Milliseconds by operation of the mesh graph (einsum, attend, …) and whether it is of the backward pass.

    From GPU kernels, else from what XLA ran on the CPU, else from TensorFlow's own kernels.
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
    """The operation of the mesh graph that made an operation, and whether it is of the backward pass.

    "einsum_5/gradients/einsum_1/parallel_0/einsum/Einsum" is of an einsum's gradient. A fusion that XLA gave no origin
    keeps its kind: "wrapped_reduce-window.10" is a reduce-window.
    """
    first = origin.partition("/")[0]
    name = re.sub(r"[._]\d+$", "", first).removeprefix("wrapped_")
    return name, "gradients/" in origin


def _origins(spaces: list[Any]) -> dict[str, str]:
    """The names that the graph's operations gave XLA's instructions, from the programs in the profile."""
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
    """The instruction of XLA's program that an event is the running of."""
    for stat in event.stats:
        if plane.stat_metadata[stat.metadata_id].name == "hlo_op":
            return stat.str_value or plane.stat_metadata[stat.ref_value].name
    return None
