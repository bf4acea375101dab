"""`--replay_step`: one training step of a run again, to see which layer's numbers are not what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.inputs import TrainingData
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.storage.files import absolute
from gpt_mesh.storage.progress import Progress, alive
from gpt_mesh.training.runs import check_resumable


def replay(config: Config, plan: MeshPlan, step: int, checkpoint: str | None = None) -> list[str]:
    """Continue from a checkpoint up to a step, without saving anything, and tell the sizes of its numbers.

    The batches and random draws are those of the run, so the step is repeated exactly on the same machine. Microbatches
    are not used for the sizes of activations and gradients.

    Args:
        step: which one, counted from 1.
        checkpoint: where to begin; default: the newest before the step, or the initial weights of a run of which no
            checkpoint was deleted.

    Returns:
        A table for a terminal.

    Raises:
        InputError: no checkpoint is before the step.
    """
    begin = checkpoint or _checkpoint_before(config, step)
    done = 0 if begin is None else checkpoints.step_of(begin)
    if done >= step:
        raise InputError(f"--replay_step {step}: {shown(str(begin))} is not before that step; name an earlier one")
    data, size = TrainingData(config), config.training.train_batch_size
    engine = DeviceEngine(config, plan)
    with alive("building the training step"):
        engine.create_variables(training=True)
    position = 0
    if begin is not None:
        check_resumable(config, begin)
        engine.restore(begin)
        position = int(checkpoints.restore_state(begin).get("samples", done * size))
    with Progress(step - 1, "replaying", "steps", done=done) as progress:
        for _ in range(done, step - 1):
            engine.train_step(data.batch(position, size))
            position += size
            progress.update()
    tokens = data.batch(position, size)
    with alive("looking at the step"):
        sizes = engine.inspect(tokens)
        outputs = {name: float(value) for name, value in engine.train_step(tokens).items()}
        damaged = engine.nonfinite_variables()
    return [
        f"step {step} from {'the initial weights' if begin is None else shown(begin)}, on samples {position:,} to "
        f"{position + size - 1:,}: loss {outputs['loss']:.6g}, gradient norm {outputs['grad_norm']:.6g}, "
        f"lr {outputs['lr']:.3g}",
        *_table(sizes.items()),
        _damaged(damaged),
    ]


def _damaged(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"not finite after the step: {', '.join(names[:5]) or 'nothing'}{more}"


def _checkpoint_before(config: Config, step: int) -> str | None:
    directory = config.training.model_path
    there = checkpoints.steps(directory)
    before = [one for one in there if one < step]
    if before:
        return absolute(f"{directory}/model.ckpt-{before[-1]}")
    if there:
        raise InputError(
            f"--replay_step {step}: the oldest checkpoint in {shown(directory)} is of step {there[0]}; give a later "
            "step"
        )
    return None


def _table(sizes: Iterable[tuple[str, tuple[float, float, int]]]) -> list[str]:
    """Rows of name, norm, largest absolute value, and how many elements are not finite; `!` marks what is not."""
    lines = [f"  {'':48} {'norm':>11} {'largest':>11} {'not finite':>11}"]
    for name, (norm, largest, count) in sizes:
        mark = "!" if count or not math.isfinite(norm) else " "
        lines.append(f"{mark} {name:48} {norm:11.4g} {largest:11.4g} {count:11,}")
    return lines
