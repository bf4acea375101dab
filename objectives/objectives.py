"""From windows of tokens to what a model is trained or scored on: inputs, labels, and which labels count."""

from __future__ import annotations

import numpy as np

from gpt_mesh.config import Config, MlmConfig
from gpt_mesh.data.check import known_padding_id
from gpt_mesh.models.dropout import mixed_key, row_keys, uniform

import tensorflow as tf  # isort: skip

EVALUATION_SEED = 0x5EED


def features(
    config: Config, tokens: tf.Tensor, seed: tf.Tensor | int = EVALUATION_SEED, weights: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """`inputs`, `labels` and, where not every label counts, `weights`: [batch, n] each.

    Next-token prediction: a label is the token after its input. Masked language modelling: see `mask`; the window's
    first token, which is nobody's label, is left out.

    Args:
        tokens: int32 [batch, n + 1].
        seed: int32 scalar for the draws of masked language modelling: the step's in training; always the same in
            evaluation.
        weights: float32 [batch, n]: 0 where the label is padding.
    """
    if config.mlm.mlm_training:
        return mask(config, tokens[:, 1:], tf.convert_to_tensor(seed, tf.int32), weights)
    found = {"inputs": tokens[:, :-1], "labels": tokens[:, 1:]}
    return found if weights is None else {**found, "weights": weights}


def mask(config: Config, tokens: tf.Tensor, seed: tf.Tensor, weights: tf.Tensor | None) -> dict[str, tf.Tensor]:
    """Hide some tokens, which are then the labels (Devlin et al., 2018, arXiv:1810.04805).

    A token is chosen with probability `mlm_mask_prob`, unless it is special. Of the chosen, a share stays as it is, a
    share becomes a random token that is not special, and the rest becomes `mlm_mask_id`. The three draws of a token
    (whether, how, which) are independent; all are functions of the seed, the window's tokens and the position, so that
    they do not depend on where in a batch a window stands. `mlm_cls_token_id`, if there is one, is put before the
    window, whose last token makes room.

    Args:
        tokens: int32 [batch, n].
        weights: float32 [batch, n]: 0 where a token is padding and cannot be chosen.
    """
    mlm = config.mlm
    special = _special_ids(config)
    candidates = tf.ones_like(tokens, tf.float32) if weights is None else weights
    if mlm.mlm_cls_token_id is not None:
        tokens = tf.concat([tf.fill([tokens.shape[0], 1], mlm.mlm_cls_token_id), tokens[:, :-1]], 1)
        candidates = tf.concat([tf.zeros([tokens.shape[0], 1]), candidates[:, :-1]], 1)
    whether, how, which = _draws(tokens, seed)
    chosen = tf.logical_and(whether < mlm.mlm_mask_prob, candidates > 0)
    for token in special:
        chosen = tf.logical_and(chosen, tf.not_equal(tokens, token))
    inputs = tf.where(chosen, _replacement(config, mlm, special, tokens, how, which), tokens)
    return {"inputs": inputs, "labels": tokens, "weights": tf.cast(chosen, tf.float32)}


def _replacement(
    config: Config, mlm: MlmConfig, special: list[int], tokens: tf.Tensor, how: tf.Tensor, which: tf.Tensor
) -> tf.Tensor:
    """What each token becomes if it is chosen."""
    vocabulary = max(use.dataset.n_vocab for use in config.data.datasets)
    ordinary = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), np.array(special, np.int32))
    random_tokens = tf.gather(ordinary, tf.cast(which * float(len(ordinary)), tf.int32))
    same, changed = mlm.mlm_same_token_prob, mlm.mlm_same_token_prob + mlm.mlm_random_token_prob
    masked = tf.fill(tokens.shape, tf.constant(mlm.mlm_mask_id, tf.int32))
    return tf.where(how < same, tokens, tf.where(how < changed, random_tokens, masked))


def _special_ids(config: Config) -> list[int]:
    """Ids that are neither chosen nor put in a chosen token's place."""
    mlm = config.mlm
    paddings = [known_padding_id(use.dataset) for use in config.data.datasets]
    known = [mlm.mlm_mask_id, mlm.mlm_cls_token_id, *paddings, *mlm.mlm_mask_ignore_ids]
    return sorted({token for token in known if token is not None})


def _draws(tokens: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
    """Three independent float32 [batch, n] in [0, 1)."""
    keys = row_keys(tokens, seed)
    shape = tokens.shape.as_list()
    streams = [mixed_key(keys, tf.constant(stream, tf.int32))[:, None] for stream in (1, 2, 3)]
    return [uniform(shape, (0, 0), [0, 1], key) for key in streams]
