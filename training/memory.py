"""How much memory a run takes on each of its devices, from the config alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from meshes.compat import mtf

from config import Config
from models.dims import Dims
from models.linear_attention import CHUNK
from models.shapes import weight_shapes
from training.microbatches import microbatch_size


def training_memory(config: Config, splits: Mapping[str, int] | None = None) -> dict[str, int]:
    """Bytes that training takes on one device: exact for weights and optimizer, near for gradients, rough for
    activations.

    Args:
        splits: into how many parts the layout cuts a tensor dimension, by its name; default: none is cut.
    """
    splits = splits or {}
    weights = _stored(weight_shapes(config.model).values(), splits)
    dims = Dims.of(config.model, config.training.train_batch_size, config.model.n_ctx)
    microbatch = microbatch_size(config, dims.batch.size // splits.get("batch", 1))
    microbatches = dims.batch.size // splits.get("batch", 1) // microbatch
    narrow = _activation_bytes(config)
    # Microbatches add theirs to float32 sums.
    gradients = weights * (narrow + 4 if microbatches > 1 else narrow)
    return {
        "weights": 4 * weights,
        "gradients": gradients,
        "optimizer": 4 * _slots(config, splits),
        "activations": int(_activations(config, splits, microbatch)),
    }


def _activation_bytes(config: Config) -> int:
    return 2 if config.training.precision == "bfloat16" else 4


def _elements(shape: mtf.Shape, splits: Mapping[str, int]) -> int:
    """Numbers in one device's part of a tensor."""
    return math.prod(dim.size // splits.get(dim.name, 1) for dim in shape.dims)


def _stored(shapes: Iterable[mtf.Shape], splits: Mapping[str, int]) -> int:
    return sum(_elements(shape, splits) for shape in shapes)


def _slots(config: Config, splits: Mapping[str, int]) -> int:
    """Numbers that the optimizer keeps on one device."""
    shapes = list(weight_shapes(config.model).values())
    if config.optimizer.opt_name == "adam":
        return 2 * _stored(shapes, splits)
    factors = [[shape - shape.dims[-1], shape - shape.dims[-2]] if len(shape) > 1 else [shape] for shape in shapes]
    momentum = _stored(shapes, splits) if config.optimizer.beta1 else 0
    return momentum + sum(_stored(parts, splits) for parts in factors)


def _activations(config: Config, splits: Mapping[str, int], sequences: int) -> float:
    """Bytes that the backward pass of `sequences` sequences reads again: all layers' insides, or, with
    `recompute_grad`, each layer's input and one layer's inside; and the logits with their gradient, in float32.
    """
    model = config.model
    tokens = sequences * model.n_ctx / splits.get("sequence", 1)
    vocab = model.n_vocab / splits.get("vocab", 1)
    layers = [_layer(config, splits, number) for number in range(model.n_layer)]
    stream = model.n_embd / splits.get("embd", 1) * _activation_bytes(config)
    inside = model.n_layer * stream + max(layers) if config.training.recompute_grad else sum(layers)
    return tokens * (inside + 8 * vocab)


def _layer(config: Config, splits: Mapping[str, int], number: int) -> float:
    """Bytes a token inside one block: four times the width of the stream beside attention and four in it, eight in the
    feed-forward, and the weights of attention and their gradients in float32.
    """
    model, size, kind = config.model, _activation_bytes(config), config.model.attention_types[number]
    stream = 4 * model.n_embd / splits.get("embd", 1)
    attention = 0.0 if kind == "none" else 4 * model.n_embd / splits.get("heads", 1)
    heads = model.n_head / splits.get("heads", 1)
    seen = {
        "none": 0.0,
        "linear": min(CHUNK, model.n_ctx) + model.head_size**2 / CHUNK,
    }.get(kind, model.n_ctx / splits.get("memory_length", 1))
    return size * (stream + attention) + 8 * heads * seen + _feed_forwards(config, splits, number)


def _feed_forwards(config: Config, splits: Mapping[str, int], number: int) -> float:
    """Bytes a token in the feed-forward parts of a block: the inside before and after its activation; of a mixture, of
    each place that a token may have at an expert, and which place it has, forward and backward in float32.
    """
    model, moe, size = config.model, config.model.moe_params, _activation_bytes(config)
    dense = (12 if model.mlp_glu else 8) * model.n_embd / splits.get("intermediate_expanded", 1) * size
    before = dense if model.macaron else 0.0
    if number not in model.moe_layers:
        return before + dense
    places = min(moe.moe_capacity_factor_train, moe.moe_num_experts) / splits.get("experts", 1)
    hidden = (moe.moe_hidden_size or 4 * model.n_embd) / splits.get("expert_hidden", 1)
    group = min(moe.moe_group_size, model.n_ctx)
    return before + places * (size * (2 * hidden + 2 * model.n_embd / splits.get("embd", 1)) + 16 * group)
