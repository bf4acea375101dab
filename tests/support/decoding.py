"""Text of a model as token ids, by the one way that there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpt_mesh.engine.interface import Engine
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.sample import Row


def generate(
    engine: Engine,
    rows: Sequence[Row],
    temperature: float | None = None,
    *,
    batch: int = 4,
    eos_ids: tuple[int, ...] = (),
    sparse: bool = False,
) -> list[list[int]]:
    """The new tokens of each row. `temperature`: of all of them, in place of their own; `sparse`: draw by entmax."""
    if temperature is not None:
        rows = [dataclasses.replace(row, temperature=temperature) for row in rows]
    if sparse:
        rows = [dataclasses.replace(row, sparse=True) for row in rows]
    return Decoder(engine, eos_ids).generate(rows, batch)
