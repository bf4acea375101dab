"""The reference model: what the trained model was at the beginning."""

from __future__ import annotations

import dataclasses

from gpt_mesh.models.context import Context


def reference_context(ctx: Context) -> Context:
    """A context in the same graph in which a pass computes the reference model, without dropout.

    Its weights are a second set of variables, `reference/<weight>`, which nothing trains: `training.loop` fills it with
    the initial weights of the run, and checkpoints hold it. Where the trained weights are additions to fixed ones,
    this is the place to leave them out instead of keeping a second set.
    """
    return dataclasses.replace(ctx, seed=None, reference=True, observe=lambda name, x: None)
