"""Every named dimension of the model, in one place.

A layout ("batch:x,heads:y") maps these names, and only these, to mesh dimensions. Layers take their dimensions from a
`Dims`; none of them makes its own.

| name | size | in |
|---|---|---|
| batch | sequences | activations |
| sequence | positions of the queries | activations |
| memory_length | positions of the keys | keys, values, attention weights |
| embd | n_embd | the residual stream, weights |
| heads | n_head, and n_head * head size in weights | queries, keys, values |
| features_per_head | head size | queries, keys, values |
| intermediate_expanded | 4 * n_embd | the feed-forward's inside |
| vocab | n_vocab | embedding, logits |
| embed_sequence | n_ctx | position embedding |
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from config import ModelConfig
from meshes.compat import mtf


@dataclass(frozen=True)
class Dims:
    """The dimensions of one graph: those of the model, and the batch and sequence it is built for."""

    batch: mtf.Dimension
    sequence: mtf.Dimension
    memory_length: mtf.Dimension
    embd: mtf.Dimension
    heads: mtf.Dimension
    features_per_head: mtf.Dimension
    heads_and_features: mtf.Dimension
    intermediate_expanded: mtf.Dimension
    vocab: mtf.Dimension
    embed_sequence: mtf.Dimension

    @classmethod
    def of(cls, model: ModelConfig, batch: int, sequence: int, memory_length: int | None = None) -> Dims:
        """Dimensions for `batch` sequences of `sequence` tokens that attend to `memory_length` positions (default: the
        same).
        """
        return cls(
            batch=mtf.Dimension("batch", batch),
            sequence=mtf.Dimension("sequence", sequence),
            memory_length=mtf.Dimension("memory_length", sequence if memory_length is None else memory_length),
            embd=mtf.Dimension("embd", model.n_embd),
            heads=mtf.Dimension("heads", model.n_head),
            features_per_head=mtf.Dimension("features_per_head", model.n_embd // model.n_head),
            # Weights hold heads and features in one column dimension, head-major. It bears the name of its outer
            # factor, so that a layout that splits "heads" splits the weights alike and the reshape between the two
            # moves nothing.
            heads_and_features=mtf.Dimension("heads", model.n_embd),
            intermediate_expanded=mtf.Dimension("intermediate_expanded", 4 * model.n_embd),
            vocab=mtf.Dimension("vocab", model.n_vocab),
            embed_sequence=mtf.Dimension("embed_sequence", model.n_ctx),
        )

    def all(self) -> list[mtf.Dimension]:
        """Every dimension."""
        return [getattr(self, field.name) for field in fields(self)]

    def tensors(self) -> dict[str, mtf.Shape]:
        """The shapes a layout has to agree with, by what they are (for checks and messages)."""
        return {
            "token batch": mtf.Shape([self.batch, self.sequence]),
            "residual stream": mtf.Shape([self.batch, self.sequence, self.embd]),
            "queries": mtf.Shape([self.batch, self.sequence, self.heads, self.features_per_head]),
            "keys and values": mtf.Shape([self.batch, self.memory_length, self.heads, self.features_per_head]),
            "attention weights": mtf.Shape([self.batch, self.heads, self.sequence, self.memory_length]),
            "feed-forward activations": mtf.Shape([self.batch, self.sequence, self.intermediate_expanded]),
            "logits": mtf.Shape([self.batch, self.sequence, self.vocab]),
            "token embedding": mtf.Shape([self.vocab, self.embd]),
            "position embedding": mtf.Shape([self.embed_sequence, self.embd]),
            "attention kernels": mtf.Shape([self.embd, self.heads_and_features]),
            "feed-forward kernels": mtf.Shape([self.embd, self.intermediate_expanded]),
        }
