"""Every named dimension of the model, in one place.

A layout ("batch:x,heads:y") maps these names, and only these, to mesh dimensions. Layers take their dimensions from a
`Dims`; none of them makes its own.

| name | size | in |
|---|---|---|
| batch | sequences | activations |
| sequence | positions of the queries | activations |
| memory_length | positions of the keys | keys, values, attention weights |
| embd | n_embd | the residual stream, weights |
| heads | n_head, or num_kv_heads; times head_dim in weights | queries; keys and values |
| features_per_head | head_dim | queries, keys, values |
| intermediate_expanded | intermediate_size; twice that with interleaved GLU columns | the feed-forward's inside |
| vocab | n_vocab | embedding, logits |
| embed_sequence | n_ctx | position embedding |
| experts | moe_num_experts | weights and activations of a mixture of experts |
| expert_hidden | moe_hidden_size, moe_shared_expert_size | an expert's inside |

Those below are never split: no layout can name them.

| name | size | in |
|---|---|---|
| glu_halves | 2 | the gated feed-forward: value and gate |
| learned_memory | num_mem_kv | learned keys and values |
| new_positions | of the tokens that decoding adds | keys, values beside those of the prompt |
| kv_heads | 1, or head_dim in weights | keys and values of multi-query attention |
| query_group | n_head / num_kv_heads | queries that share a head of keys and values |
| value_features | head_dim | sums of key times value in linear attention |
| axial_rows, axial_columns | of axial_pos_emb | axial position embeddings |
| whole_sequence | positions | what is gathered before it is summed over positions |
| whole_vocab | n_vocab | what is gathered before a token is chosen |
| groups, group_tokens | of a sequence | tokens that compete for experts |
| expert_capacity | tokens of a group | slots of an expert |
| expert_choices | moe_top_k | the experts of a token |
| pair | 2 | a preference: the chosen text and the rejected one |
| rewards | 1 | the output of a reward model |
| optimizer_part | of a weight's dimension | optimizer state that `split_optimizer_state` cuts as the batch is cut |
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from gpt_mesh.meshes.compat import mtf

from gpt_mesh.config import ModelConfig


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
    kv_heads: mtf.Dimension
    kv_heads_and_features: mtf.Dimension
    query_group: mtf.Dimension
    intermediate_expanded: mtf.Dimension
    vocab: mtf.Dimension
    embed_sequence: mtf.Dimension
    glu_halves: mtf.Dimension
    gated_expanded: mtf.Dimension
    learned_memory: mtf.Dimension
    new_positions: mtf.Dimension
    value_features: mtf.Dimension
    axial_rows: mtf.Dimension
    axial_columns: mtf.Dimension
    whole_sequence: mtf.Dimension
    whole_vocab: mtf.Dimension
    experts: mtf.Dimension
    expert_hidden: mtf.Dimension
    shared_expert_hidden: mtf.Dimension
    expert_choices: mtf.Dimension
    pair: mtf.Dimension
    rewards: mtf.Dimension

    @classmethod
    def of(
        cls, model: ModelConfig, batch: int, sequence: int, memory_length: int | None = None, new_positions: int = 0
    ) -> Dims:
        """Dimensions for `batch` sequences of `sequence` tokens that attend to `memory_length` positions (default: the
        same) and, in decoding, to `new_positions` after them.
        """
        # A layout that splits "heads" gives each device heads of queries together with those of keys and values that
        # they read. A single head of keys and values is read by all of them: it is whole on each device, and its group
        # is split.
        multi_query = model.num_kv_heads == 1 < model.n_head
        kv_name, group_name = ("kv_heads", "heads") if multi_query else ("heads", "query_group")
        return cls(
            batch=mtf.Dimension("batch", batch),
            sequence=mtf.Dimension("sequence", sequence),
            memory_length=mtf.Dimension("memory_length", sequence if memory_length is None else memory_length),
            embd=mtf.Dimension("embd", model.n_embd),
            heads=mtf.Dimension("heads", model.n_head),
            features_per_head=mtf.Dimension("features_per_head", model.head_dim),
            # Weights hold heads and features in one column dimension, head-major. It bears the name of its outer
            # factor, so that a layout that splits "heads" splits the weights alike and the reshape between the two
            # moves nothing.
            heads_and_features=mtf.Dimension("heads", model.n_head * model.head_dim),
            kv_heads=mtf.Dimension(kv_name, model.num_kv_heads),
            kv_heads_and_features=mtf.Dimension(kv_name, model.num_kv_heads * model.head_dim),
            query_group=mtf.Dimension(group_name, model.heads_per_kv_head),
            intermediate_expanded=mtf.Dimension("intermediate_expanded", model.intermediate_size),
            vocab=mtf.Dimension("vocab", model.n_vocab),
            embed_sequence=mtf.Dimension("embed_sequence", model.n_ctx),
            glu_halves=mtf.Dimension("glu_halves", 2),
            # Column-major in the feature, so that a layout that splits the features keeps value and gate together.
            gated_expanded=mtf.Dimension("intermediate_expanded", 2 * model.intermediate_size),
            learned_memory=mtf.Dimension("learned_memory", model.num_mem_kv),
            new_positions=mtf.Dimension("new_positions", new_positions),
            value_features=mtf.Dimension("value_features", model.head_dim),
            axial_rows=mtf.Dimension("axial_rows", (model.axial_pos_emb or (1, 1))[0]),
            axial_columns=mtf.Dimension("axial_columns", (model.axial_pos_emb or (1, 1))[1]),
            whole_sequence=mtf.Dimension("whole_sequence", sequence),
            whole_vocab=mtf.Dimension("whole_vocab", model.n_vocab),
            experts=mtf.Dimension("experts", model.moe_params.moe_num_experts if model.moe_layers else 0),
            expert_hidden=mtf.Dimension("expert_hidden", model.moe_params.moe_hidden_size or 4 * model.n_embd),
            shared_expert_hidden=mtf.Dimension("expert_hidden", model.moe_params.moe_shared_expert_size),
            expert_choices=mtf.Dimension("expert_choices", model.moe_params.moe_top_k),
            pair=mtf.Dimension("pair", 2),
            rewards=mtf.Dimension("rewards", 1),
        )

    @property
    def grouped_heads(self) -> list[mtf.Dimension]:
        """The heads of queries as heads of keys and values, and groups that share one if there are such groups."""
        return [self.kv_heads] if self.kv_heads == self.heads else [self.kv_heads, self.query_group]

    def all(self) -> list[mtf.Dimension]:
        """Every dimension."""
        return [getattr(self, field.name) for field in fields(self)]


def whole(dim: mtf.Dimension) -> mtf.Dimension:
    """The same dimension under a name that no layout splits."""
    return mtf.Dimension(f"whole_{dim.name}", dim.size)


def token_groups(dims: Dims, tokens: int, capacity: int) -> tuple[mtf.Dimension, mtf.Dimension, mtf.Dimension]:
    """How a mixture of experts divides a sequence: groups, the `tokens` of each, and an expert's slots for a group."""
    assert dims.sequence.size % tokens == 0, (dims.sequence, tokens)
    sizes = {"groups": dims.sequence.size // tokens, "group_tokens": tokens, "expert_capacity": capacity}
    groups, group_tokens, slots = (mtf.Dimension(name, size) for name, size in sizes.items())
    return groups, group_tokens, slots
