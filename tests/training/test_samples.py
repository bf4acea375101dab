"""Text that a run writes after its checkpoints: drawn as the config says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt_mesh.config import load_config
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.sample import Row
from gpt_mesh.training.samples import SampleWriter
from tests.support.runs import Workspace


class SameTokens(Decoder):
    """Gives the same tokens to every row, and keeps the rows."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.rows = tokens, list[Row]()

    def generate(self, rows: Sequence[Row], batch_size: int) -> list[list[int]]:
        self.rows += rows
        return [self.tokens for _ in rows]


def test_samples_are_drawn_as_the_configs_generation_says(workspace: Workspace) -> None:
    generation = {
        "temperature": 0.3, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.2, "entmax": True, "min_new_tokens": 2,
        "max_new_tokens": 7, "seed": 40, "stop": ["two", "END"],
    }  # fmt: skip
    path = workspace.config("sampled", generation=generation, predict_steps=1, predict_batch_size=2)
    decoder = SameTokens([])
    writer = SampleWriter(load_config(str(path)), lambda eos_ids: decoder, None)
    decoder.tokens = writer.encoder.encode("one END two")
    writer.write(step=3)
    assert decoder.rows == [
        Row([writer.prefix], 7, 43 + i, 0.3, 5, 0.8, 1.2, True, min_new_tokens=2) for i in range(2)
    ]
    text = Path(workspace.root / "sampled" / "predictions" / "samples_step_3.txt").read_text()
    assert text.count("one \n") == 2 and "END" not in text


def test_without_settings_they_are_as_always(workspace: Workspace) -> None:
    decoder = SameTokens([])
    path = workspace.config("sampled_plainly", predict_steps=1, seed=11, predict_max_steps=9)
    SampleWriter(load_config(str(path)), lambda eos_ids: decoder, None).write(step=3)
    (asked,) = decoder.rows
    assert (asked.max_new_tokens, asked.seed, asked.temperature, asked.top_p) == (9, 14, 0.9, 1.0)
