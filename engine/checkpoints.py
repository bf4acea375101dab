"""Name-based checkpoints that a kill at any moment leaves whole.

A checkpoint is `model.ckpt-<step>` (TensorFlow's own format: an `.index` and a `.data` file, one entry a variable,
under the names of the published GPT-Neo checkpoints) and `model.ckpt-<step>.json`, the state that a resumed run needs
beside them: the position in the data and the averages of the current logging interval, with a checksum. Each file is
written under a temporary name, flushed to disk, and moved into place. The `checkpoint` file, which names the newest
checkpoint, comes last, so a kill or a power cut leaves the newest complete checkpoint usable.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format

from gpt_mesh.errors import InputError, shown
from gpt_mesh.models.context import is_reference
from gpt_mesh.optimizers.registry import is_slot
from gpt_mesh.storage import checksums, files, strict_json
from gpt_mesh.storage.progress import log

_PREFIX = "model.ckpt-"
TEMPORARY = ".writing"
_LAYER = re.compile(r"gpt2/h(\d+)/")
_CHECKSUM = "sha256"  # key of the state's checksum in its file
_SUFFIXES = (".index", ".data-00000-of-00001", ".json")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run are kept.

    Attributes:
        last: the number of newest ones.
        every: those of steps that this divides; None: no others.
    """

    last: int = 5
    every: int | None = None

    def kept(self, steps: list[int]) -> list[int]:
        """The steps to keep, of those that there are, in ascending order."""
        milestones = [step for step in steps[: -self.last] if self.every is not None and step % self.every == 0]
        return [*milestones, *steps[-self.last :]]


def save(
    directory: str,
    step: int,
    values: Mapping[str, tf.Tensor | tf.Variable],
    state: Mapping[str, Any],
    retention: Retention = Retention(),
) -> str:
    """Write a checkpoint, make it the newest, and delete those that are not kept.

    Args:
        directory: of the run; it exists.
        step: training steps done.
        values: by the names they get in the checkpoint.
        state: JSON-ready, returned by `restore_state`.
        retention: which ones are kept.

    Returns:
        The checkpoint's path, `<directory>/model.ckpt-<step>`.
    """
    path = files.absolute(os.path.join(directory, f"{_PREFIX}{step}"))
    temporary = path + TEMPORARY
    names = sorted(values)
    with tf.device("/device:CPU:0"):
        tensors = [tf.convert_to_tensor(values[name]) for name in names]
        tf.raw_ops.SaveV2(prefix=temporary, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)
    files.write_text(temporary + ".json", _with_checksum(state))
    move_into_place(temporary, path, _SUFFIXES)
    finish(directory, step, retention)
    return path


def move_into_place(temporary: str, path: str, suffixes: Iterable[str]) -> None:
    """Flush the files of a checkpoint to disk, then rename them from one prefix to the other."""
    found = sorted(suffixes, key=lambda suffix: suffix == ".index")  # the index last: it makes the checkpoint visible
    for suffix in found:
        files.sync(temporary + suffix)
    for suffix in found:
        files.move(temporary + suffix, path + suffix)
    files.sync(os.path.dirname(path) or ".")


def copy(path: str, directory: str) -> str:
    """Copy a checkpoint into another directory, as its only one; returns its path there.

    Args:
        path: of the checkpoint, without a suffix.
        directory: exists.
    """
    source, name = os.path.split(path)
    target = os.path.join(directory, name)
    suffixes = [found.removeprefix(name) for found in files.list_folder(source or ".") if found.startswith(f"{name}.")]
    for suffix in suffixes:
        with files.open_binary(path + suffix) as read, files.create_binary(target + TEMPORARY + suffix) as written:
            shutil.copyfileobj(read, written, 1 << 20)
    move_into_place(target + TEMPORARY, target, suffixes)
    finish(directory, step_of(target))
    return target


def finish(directory: str, step: int, retention: Retention = Retention()) -> None:
    """Point the `checkpoint` file at this step, then delete old checkpoints and unfinished files of a killed run."""
    kept = retention.kept([n for n in steps(directory) if n <= step])
    names = [f"{_PREFIX}{n}" for n in kept]
    proto = tf.compat.v1.train.generate_checkpoint_state_proto(".", names[-1], names)
    files.write_text(os.path.join(directory, "checkpoint"), text_format.MessageToString(proto), durable=True)
    for name in files.list_folder(directory):
        match = re.match(rf"{re.escape(_PREFIX)}(\d+)\.|checkpoint\.\d+\.tmp$", name)
        if match and (match[1] is None or int(match[1]) not in kept or TEMPORARY in name or name.endswith(".tmp")):
            files.remove(os.path.join(directory, name))


def steps(directory: str) -> list[int]:
    """Steps of the whole checkpoints in a directory, in ascending order; none if there is no such directory."""
    names = set(files.list_folder(directory))
    found = [re.fullmatch(rf"{re.escape(_PREFIX)}(\d+)\.index", name) for name in names]
    return sorted(int(m[1]) for m in found if m and any(n.startswith(f"{_PREFIX}{m[1]}.data-") for n in names))


def latest(directory: str) -> str | None:
    """The checkpoint that a run resumes from, as the path that `restore` takes; None if there is none.

    The one that the `checkpoint` file names, if it is whole; else the whole one of the highest step.
    """
    named = _named(directory)
    if named is not None and _is_whole(named):
        return files.absolute(named)
    found = steps(directory)
    return files.absolute(os.path.join(directory, f"{_PREFIX}{found[-1]}")) if found else None


def _named(directory: str) -> str | None:
    """The path in the `checkpoint` file; None if there is no such file or nothing in it, as after a power cut."""
    if not files.exists(os.path.join(directory, "checkpoint")):
        return None
    try:
        state = tf.train.get_checkpoint_state(directory)
    except ValueError:
        return None
    return None if state is None else str(state.model_checkpoint_path)


def _is_whole(path: str) -> bool:
    directory, name = os.path.split(path)
    data = (other for other in files.list_folder(directory or ".") if other.startswith(name + ".data-"))
    return files.exists(path + ".index") and any(data)


def step_of(path: str) -> int:
    """The step in a checkpoint's name."""
    match = re.search(r"-(\d+)$", path)
    if match is None:
        raise InputError(f"{shown(path)}: not a checkpoint's name; it ends in its step, as in model.ckpt-5000")
    return int(match[1])


def delete_all(directory: str) -> int:
    """Delete the checkpoints of a directory, with their logs and samples; returns how many checkpoints there were."""
    count = len(steps(directory))
    for name in files.list_folder(directory):
        if name.startswith((_PREFIX, "events.out.tfevents")) or name in ("checkpoint", "metrics.jsonl", "eval.jsonl"):
            files.remove(os.path.join(directory, name))
    predictions = os.path.join(directory, "predictions")
    for name in files.list_folder(predictions):
        if re.search(r"samples_step_\d+\.txt$", name):
            files.remove(os.path.join(predictions, name))
    return count


def restore(path: str, variables: Mapping[str, tf.Variable], source: str, *, finite: bool = False) -> list[str]:
    """Fill variables from a checkpoint, one at a time. What else it holds is left out; the log names the weights in it.

    Args:
        path: of the checkpoint, without a suffix.
        variables: by their names in the checkpoint. Stored bfloat16 weights are widened to the variable's type.
        source: the config, for messages.
        finite: refuse elements that are not finite numbers.

    Returns:
        Names of optimizer slots that the checkpoint does not have; they keep their values.

    Raises:
        InputError: no such checkpoint, an unreadable one, a missing weight, one of another shape, or more layers; one
            that is not `finite`.
    """
    dtypes, missing = contents(path, {name: v.shape.as_list() for name, v in variables.items()}, source)
    with tf.device("/device:CPU:0"):
        for name, variable in variables.items():
            if name in missing:
                continue
            try:
                (value,) = tf.raw_ops.RestoreV2(
                    prefix=path, tensor_names=[name], shape_and_slices=[""], dtypes=[dtypes[name]]
                )
            except tf.errors.OpError as error:
                raise InputError(
                    f"{shown(path)}: variable {name} cannot be read ({error.message.splitlines()[0]}); the file is "
                    "damaged: delete this "
                    f"checkpoint to go on from the one before it"
                ) from None
            value = tf.cast(value, variable.dtype)
            if finite:
                check_finite(path, name, value)
            variable.assign(value)
    return missing


def check_finite(path: str, name: str, value: Any) -> None:
    """
    Raises:
        InputError: a variable of a checkpoint has an element that is not a finite number.
    """
    value = tf.convert_to_tensor(value)
    if value.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(value)):
        raise InputError(
            f"{shown(path)}: {name} has elements that are not finite numbers (NaN or infinity), so the model's output "
            "would "
            "mean nothing; take a checkpoint from before the training diverged"
        )


def values(path: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each variable of a checkpoint, one at a time; bfloat16 is widened to float32."""
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    for name, dtype in sorted(reader.get_variable_to_dtype_map().items()):
        value = reader.get_tensor(name)
        yield name, value.astype(np.float32) if dtype == tf.bfloat16 else value


def contents(path: str, wanted: Mapping[str, list[int]], source: str) -> tuple[dict[str, tf.DType], list[str]]:
    """What a checkpoint has of the variables `wanted`, given with their shapes: types by name, and the names of
    optimizer slots that it does not have. The arguments and errors are those of `restore`.
    """
    try:
        # Not tf.train.load_checkpoint, which takes the path for a folder where a file system has no folders (ram://).
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(f"{shown(path)}: not a readable checkpoint ({str(error).splitlines()[0]})") from None
    _check_depth(path, shapes, wanted, source)
    missing = []
    for name, shape in wanted.items():
        if name not in shapes:
            if not is_slot(name):
                raise InputError(
                    f"{shown(path)}: has no variable {name}, which {source} asks for; is it another model's checkpoint?"
                )
            missing.append(name)
        elif list(shapes[name]) != shape:
            raise InputError(
                f"{shown(path)}: variable {name} has shape {list(shapes[name])}, but {source} makes it "
                f"{shape}; use the config that the checkpoint was trained with, or another model_path"
            )
    if unused := sorted(name for name in {*shapes} - {*wanted} if not is_slot(name) and not is_reference(name)):
        more = ", …" if len(unused) > 3 else ""
        log.warning("%s: %s does not use %s%s", path, source, ", ".join(unused[:3]), more)
    return {name: dtypes[name] for name in wanted if name not in missing}, missing


def save_state(directory: str, step: int, state: Mapping[str, Any]) -> None:
    """Write the state of the checkpoint of this step, for `restore_state`, when other code saves its variables."""
    files.write_text(os.path.join(directory, f"{_PREFIX}{step}.json"), _with_checksum(state), durable=True)


def _with_checksum(state: Mapping[str, Any]) -> str:
    values = strict_json.finite(dict(state))
    return strict_json.dumps({**values, _CHECKSUM: checksums.of_json(values)})


def _check_depth(path: str, stored: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Refuse a checkpoint with layers that the model does not have: it would be silently cut off."""
    layers = {match[1] for name in wanted if (match := _LAYER.match(name))}
    for name in sorted(stored):
        match = _LAYER.match(name)
        if layers and match and match[1] not in layers:
            raise InputError(
                f"{shown(path)}: variable {name} is of layer {match[1]}, and {source} has {len(layers)} layers; use "
                "the "
                "config that the checkpoint was trained with, or another model_path"
            )


def restore_state(path: str) -> dict[str, Any]:
    """The `state` that `save` was given; empty for a checkpoint of another program.

    Raises:
        InputError: the file is damaged.
    """
    name = path + ".json"
    if not files.exists(name):
        return {}
    damaged = InputError(
        f"{shown(name)}: is damaged; it holds the position of {path} in the data: restore it, or delete it to "
        "continue after "
        "as many batches as the checkpoint has steps"
    )
    try:
        state = json.loads(files.read_bytes(name))
    except (ValueError, RecursionError):
        raise damaged from None
    # Checkpoints of earlier versions have no checksum.
    if not isinstance(state, dict) or state.pop(_CHECKSUM, None) not in (None, checksums.of_json(state)):
        raise damaged
    return state
