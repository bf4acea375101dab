"""Token ids with a role: what begins a text, what ends it, and what separates documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt_mesh.config import DatasetConfig
from gpt_mesh.data.encoders import Encoder, load_encoder


@dataclass(frozen=True)
class SpecialTokens:
    """
    Attributes:
        bos_id: put before each document and each prompt, as Llama's tokenizer does; None: nothing is.
        eos_ids: each of them ends a generated text, and the first one ends documents; empty: none is known.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def eos_id(self) -> int | None:
        """The token that ends documents."""
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def prefix(self) -> int | None:
        """The token before a document, from which its first token is predicted: `bos_id`, or the end of the document
        before.
        """
        return self.eos_id if self.bos_id is None else self.bos_id

    def begun(self, tokens: Sequence[int]) -> list[int]:
        """The tokens of a text with `bos_id` before them, unless they begin with it already."""
        lacks = self.bos_id is not None and (not tokens or tokens[0] != self.bos_id)
        return [self.bos_id, *tokens] if lacks and self.bos_id is not None else list(tokens)


def special_tokens(dataset: DatasetConfig, encoder: Encoder | None) -> SpecialTokens:
    """The special tokens that a dataset config names; ends that it leaves out are those of its tokenizer, if given."""
    own = () if encoder is None else encoder.eos_ids
    first = dataset.eos_id if dataset.eos_id is not None else next(iter(own), None)
    more = dataset.stop_token_ids
    if more is None:  # the tokenizer's, unless documents end with a token that it does not know as an end
        more = own if first in own else ()
    ends = dict.fromkeys(token for token in (first, *more) if token is not None)
    return SpecialTokens(dataset.bos_id, tuple(ends))


def end_of_text(dataset: DatasetConfig) -> int | None:
    """The token that ends documents: `eos_id`, or the tokenizer's; None if neither is known.

    Raises:
        InputError: the tokenizer is needed, and cannot be loaded.
    """
    if dataset.eos_id is not None or not dataset.tokenizer_path:
        return dataset.eos_id
    return load_encoder(dataset.resolve(dataset.tokenizer_path), dataset.tokenizer_is_pretrained).eos_id
