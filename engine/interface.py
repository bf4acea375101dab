"""What every engine does, whatever its devices are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gpt_mesh.config import Config
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.sample import Batch, BatchState, Chunk


class Engine(Protocol):
    """The functions of one model with the weights of a checkpoint. Arrays come back as NumPy's or TensorFlow's.

    `engine.engine.DeviceEngine` is the one of this host's devices (or of several hosts'), and trains too; each TPU has
    its own.
    """

    config: Config
    plan: MeshPlan
    can_reorder: bool

    def eval_step(self, tokens: np.ndarray, weights: np.ndarray) -> tuple[Any, Any, Any]:
        """Sums over each row of nll, of correct predictions and of weights, [batch] each, for int32 [batch, n + 1] and
        float32 [batch, n].
        """

    def compare(self, tokens: np.ndarray) -> Sequence[Any]:
        """The loss, the nll, the rewards of the chosen and of the rejected text, and whether they are in the right
        order (1.0 or 0.0), of each of the pairs int32 [batch, 2, n + 1]: float32 [batch] each.
        """

    def rewards(self, tokens: np.ndarray) -> Any:
        """The reward of the text up to each position, by a reward model: float32 [batch, n], for int32 [batch, n]."""

    def score(self, tokens: np.ndarray) -> tuple[Any, Any]:
        """The log-probability of each token but the first, and 1.0 where it is the likeliest one, else 0.0: float32
        [batch, n] both, for int32 [batch, n + 1].
        """

    def score_alternatives(self, tokens: np.ndarray, top: int) -> tuple[Any, Any, Any]:
        """The log-probability of each token but the first, and the `top` likeliest ids at its place with theirs:
        float32 [batch, n], int32 and float32 [batch, n, top], for int32 [batch, n + 1].
        """

    def logits(self, tokens: np.ndarray) -> Any:
        """float32 [batch, n, n_vocab], for int32 [batch, n]."""

    def prefill(
        self, batch: Batch, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """Read prompts and add a first token to each: see `sample.build_prefill`."""

    def advance(
        self, state: BatchState, limit: int, *, eos_ids: tuple[int, ...] = (), top: int | None = None
    ) -> tuple[Chunk, BatchState]:
        """Add up to `limit` tokens to each row, perhaps fewer in one call: see `sample.build_advance`."""

    def reorder(self, state: BatchState, tokens: Sequence[int], parents: Sequence[int]) -> BatchState:
        """A step of a beam search: row i of the new state continues row `parents[i]` of the old one, and `tokens[i]` is
        its newest token. Only engines with `can_reorder` do this.
        """

    def restore(self, checkpoint: str, *, finite: bool = False) -> list[str]:
        """Take the variables of a checkpoint; returns the names of optimizer slots that it does not have.

        Args:
            finite: refuse one with weights that are not finite numbers.

        Raises:
            InputError: see `engine.checkpoints.restore`.
        """

    def snapshot(self) -> Mapping[str, Any]:
        """Every variable's value by its name in checkpoints, in the host's memory."""

    def close(self) -> None:
        """Release what runs beside this thread."""
