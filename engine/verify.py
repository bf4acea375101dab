"""Checks that checkpoints are complete and undamaged.

    python3 -m gpt_mesh.engine.verify PATH...

PATH is a run's directory (all of its checkpoints) or one checkpoint, such as runs/demo/model.ckpt-500. Reads every
variable, which TensorFlow compares with the checksums in the index, and the state beside them. Exits with status 1 if
anything is damaged.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
from gpt_mesh.storage import files


def faults(path: str) -> Iterator[str]:
    """What is wrong with a checkpoint, a line each.

    Args:
        path: of the checkpoint, without a suffix.
    """
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(path)
        names = sorted(reader.get_variable_to_shape_map())
    except (tf.errors.OpError, ValueError) as error:
        yield f"{path}: not a readable checkpoint ({files.reason(error)})"
        return
    for name in names:
        try:
            value = np.asarray(reader.get_tensor(name))
        except (tf.errors.OpError, ValueError) as error:
            yield f"{path}: variable {name} cannot be read ({files.reason(error)})"
            continue
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"{path}: variable {name} has elements that are not finite numbers"
    try:
        checkpoints.restore_state(path)
    except InputError as error:
        yield str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 all is well, 1 something is damaged, 2 wrong flags."""
    parser = argparse.ArgumentParser(
        prog="python3 -m gpt_mesh.engine.verify", description="Check that checkpoints are complete and undamaged."
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run's directory, or a checkpoint in it")
    found = []
    for path in parser.parse_args(argv).paths:
        steps = checkpoints.steps(path)
        for one in [os.path.join(path, f"model.ckpt-{step}") for step in steps] or [path]:
            wrong = list(faults(one))
            found += wrong
            print("\n".join(wrong or [f"{one}: complete and undamaged"]), flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
