"""The token that separates documents and ends a generated text."""

from __future__ import annotations

from gpt_mesh.config import DatasetConfig
from gpt_mesh.data.encoders import Encoder, load_encoder


def end_of_text(dataset: DatasetConfig, encoder: Encoder | None = None) -> int | None:
    """The dataset config's `eos_id`, else its tokenizer's `<|endoftext|>`; None if neither is known.

    Args:
        dataset: the dataset config.
        encoder: its tokenizer, if that is loaded.

    Raises:
        InputError: the tokenizer cannot be loaded.
    """
    if dataset.eos_id is not None:
        return dataset.eos_id
    if encoder is None and dataset.tokenizer_path:
        encoder = load_encoder(dataset.resolve(dataset.tokenizer_path), dataset.tokenizer_is_pretrained)
    return None if encoder is None else encoder.eos_id
