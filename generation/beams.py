"""Beam search: the likeliest continuations, found by keeping a number of them at each length."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_mesh.config import GenerationSettings
from gpt_mesh.errors import InputError
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.sample import Row


@dataclass(frozen=True, order=True)
class Beam:
    """A continuation.

    Attributes:
        score: the sum of its log-probabilities, in nats, over its length to the power `length_penalty`. An end of text
            counts in both.
        tokens: ids, without the end of text.
        ended: whether an end of text did, and not the room.
    """

    score: float
    tokens: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class _Path:
    """A beam that may still grow: the sum of its log-probabilities, its tokens, and its row in the batch."""

    total: float
    tokens: tuple[int, ...]
    row: int


def search(
    decoder: Decoder, prompt: Sequence[int], room: int, settings: GenerationSettings, eos_ids: tuple[int, ...]
) -> list[Beam]:
    """The best `num_beams` continuations found, best first.

    It ends when no path that is still growing can come among them: its sum can only fall, and its length at most reach
    `room`.

    Raises:
        InputError: the model gives no token a probability, or its devices cannot reorder a batch.
    """
    if not decoder.can_reorder:
        raise InputError(
            f"num_beams = {settings.num_beams}: the device that this model is on cannot reorder a batch, as beam "
            "search does; set num_beams to 1, or use a GPU or CPU"
        )
    width, power, n_ends = settings.num_beams, settings.length_penalty, max(1, len(eos_ids))
    # More candidates than beams, since the best of each beam may be ends of text, which may not be allowed yet.
    kept = (1 + n_ends) * width
    top = min(kept + n_ends, decoder.n_vocab)
    run = decoder.start([Row(prompt, room, 0, temperature=0.0)] * width, top)
    chunk = run.prefill()
    paths, found = [_Path(0.0, (), 0)], list[Beam]()
    for length in range(1, room + 1):
        assert chunk.top_ids is not None and chunk.top_logprobs is not None
        candidates = [
            (path.total + value, token, path)
            for path in paths
            for token, value in zip(
                chunk.top_ids[path.row, 0].tolist(), chunk.top_logprobs[path.row, 0].tolist(), strict=True
            )
            if math.isfinite(value) and not (token in eos_ids and length <= settings.min_new_tokens)
        ]
        best = heapq.nlargest(kept, candidates, key=lambda candidate: candidate[0])
        found += [Beam(total / length**power, path.tokens, True) for total, token, path in best if token in eos_ids]
        going = [(total, token, path) for total, token, path in best if token not in eos_ids][:width]
        found = heapq.nlargest(width, found)
        paths = [_Path(total, (*path.tokens, token), row) for row, (total, token, path) in enumerate(going)]
        if length == room or not paths:
            break
        longest = room if power > 0 else length + 1
        if len(found) == width and paths[0].total / longest**power <= found[-1].score:
            paths = []
            break
        run.reorder([token for _, token, _ in going], [path.row for _, _, path in going])
        chunk = run.advance(1)
    found += [Beam(path.total / len(path.tokens) ** power, path.tokens, False) for path in paths]
    if not found:
        raise InputError(
            "the model's logits are not numbers (NaN): its weights are damaged, or training diverged; take an earlier "
            "checkpoint"
        )
    return heapq.nlargest(width, found)
