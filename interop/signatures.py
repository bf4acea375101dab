"""The functions of a SavedModel, which take plain tensors of any batch size and length.

A mesh graph has a fixed batch size and length. So each function has graphs for a few lengths, pads its input to the
next of them (no token sees later ones), and runs the graph that fits. `logits` is vectorised over its rows;
`generate` runs them in groups (`interop/continuation.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh import model_fns
from gpt_mesh.config import Config
from gpt_mesh.data.special_tokens import SpecialTokens
from gpt_mesh.generation.requests import SEED_STRIDE
from gpt_mesh.interop.branches import for_size, separate
from gpt_mesh.interop.continuation import Continuation, ReadingMesh, lengths_of, to_length
from gpt_mesh.meshes.variables import VariableStore
from gpt_mesh.models.next_token import Controls, is_any
from gpt_mesh.objectives.registry import objective_of


class Signatures:
    """The functions of one model, which share the weights of a store. They run on one device, without XLA."""

    def __init__(self, config: Config, store: VariableStore, special: SpecialTokens) -> None:
        self._config, self._model, self._store, self._special = config, config.model, store, special
        self._mesh_impl = ReadingMesh(store)

    def functions(self) -> dict[str, Any]:
        """`tf.function`s by their names; without those that generate if the model does not predict the next
        token.
        """
        whole = _needs_whole_context(self._config)
        tokens = tf.TensorSpec([None, self._model.n_ctx if whole else None], tf.int32, "tokens")
        found = {"logits": _function(self.logits, [tokens])}
        if not objective_of(self._config).predicts_next:
            return found
        shapes = {"prompts": [None, None], "lengths": [None]}  # the others: a scalar, or one for each row
        types = {"temperature": tf.float32, "top_p": tf.float32, "repetition_penalty": tf.float32}
        names = ["prompts", "lengths", "max_new_tokens"]
        more = ["temperature", "top_k", "top_p", "repetition_penalty", "min_new_tokens", "seed"]
        specs = [tf.TensorSpec(shapes.get(name), types.get(name, tf.int32), name) for name in names + more]
        generate = _function(self.generate, specs)

        def greedy(prompts: tf.Tensor, lengths: tf.Tensor, max_new_tokens: tf.Tensor) -> dict[str, tf.Tensor]:
            found: dict[str, tf.Tensor] = generate(prompts, lengths, max_new_tokens, 0.0, 0, 1.0, 1.0, 0, 0)
            return found

        return {**found, "generate": generate, "greedy": _function(greedy, specs[:3])}

    def logits(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """`logits`, float32 [batch, n, n_vocab], of each next token, for int32 [batch, n], n from 1 to n_ctx."""
        count, n_ctx = tf.shape(tokens)[1], self._model.n_ctx
        checks = [
            _check(tf.shape(tokens)[0] >= 1, "tokens: at least one row", tf.shape(tokens)),
            _check(tf.logical_and(count >= 1, count <= n_ctx), f"tokens: a row has from 1 to n_ctx = {n_ctx}", count),
            self._check_ids(tokens, "tokens"),
        ]
        with tf.control_dependencies(checks):
            tokens = tf.identity(tokens)
        lengths = [n_ctx] if _needs_whole_context(self._config) else lengths_of(n_ctx)
        logits = for_size(lengths, count, lambda length: separate(partial(self._logits, length))(tokens))
        return {"logits": logits[:, :count]}

    def _logits(self, length: int, tokens: tf.Tensor) -> tf.Tensor:
        """[batch, length, n_vocab], from the graph of this length."""

        def one(row: tf.Tensor) -> tf.Tensor:
            with self._store.scope():
                return model_fns.build_logits(row[None], self._config, self._mesh_impl)[0]

        return tf.vectorized_map(one, to_length(tokens, length))

    def generate(
        self,
        prompts: tf.Tensor,
        lengths: tf.Tensor,
        max_new_tokens: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        repetition_penalty: tf.Tensor,
        min_new_tokens: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Continue prompts.

        Args:
            prompts: int32 [batch, width]; of a row only its first `lengths` tokens count.
            lengths: int32 [batch]. A row without tokens begins with `bos_id`, or with the end of text; one that is
                longer than the context leaves room for keeps its end.
            max_new_tokens: how many tokens are added, unless the context ends first.
            seed: of the draws. A scalar is the first row's; each row then has `SEED_STRIDE` more than the one before.
            temperature and the others: see `config.GenerationSettings`. These, `max_new_tokens` and `seed` are scalars,
                or [batch].

        Returns:
            `tokens`, int32 [batch, longest]: the new ones, without the end of text that ended them; after them a row is
            filled with the first end of text (zeros where there is none). `lengths`, int32 [batch]: how many are new.
        """
        rows, n_ctx = tf.shape(prompts)[0], self._model.n_ctx
        with tf.control_dependencies([_check(rows >= 1, "prompts: at least one row", tf.shape(prompts))]):
            seeds = _by_row("seed", seed, rows)
        seeds += tf.where(tf.equal(tf.size(seed), 1), SEED_STRIDE, 0) * tf.range(rows)
        wanted, temperature = _by_row("max_new_tokens", max_new_tokens, rows), _by_row("temperature", temperature, rows)
        top_k, top_p = _by_row("top_k", top_k, rows), _by_row("top_p", top_p, rows)
        penalty = _by_row("repetition_penalty", repetition_penalty, rows)
        min_new = _by_row("min_new_tokens", min_new_tokens, rows)
        least = 0 if self._special.prefix is not None else 1
        checks = [
            _check(tf.equal(tf.size(lengths), rows), "lengths: one for each row of prompts", lengths),
            _check(tf.logical_and(lengths >= least, lengths <= tf.shape(prompts)[1]),
                   "lengths: of each row's prompt, at most the width of prompts; 0 only where there is an end of text",
                   lengths),
            self._check_ids(tf.where(tf.sequence_mask(lengths, tf.shape(prompts)[1]), prompts, 0), "prompts"),
            _check(wanted >= 1, "max_new_tokens: at least 1", wanted),
            _check(tf.logical_and(temperature >= 0, temperature < float("inf")), "temperature: a number from 0 on",
                   temperature),
            _check(tf.logical_and(top_p > 0, top_p <= 1), "top_p: above 0, at most 1", top_p),
            _check(tf.logical_and(penalty > 0, penalty < float("inf")), "repetition_penalty: above 0", penalty),
        ]  # fmt: skip
        with tf.control_dependencies(checks):
            prompts, lengths = self._fit(prompts, lengths, wanted)
        room = tf.minimum(wanted, n_ctx - lengths)
        seeds, min_length = tf.bitwise.bitwise_and(seeds, tf.int32.max), lengths + tf.clip_by_value(min_new, 0, n_ctx)
        sparse = tf.fill([rows], int(self._config.training.generation.entmax))
        controls = Controls(seeds, temperature, tf.maximum(top_k, 0), top_p, penalty, sparse, min_length)
        continuation = Continuation(self._config, self._store, self._special.eos_ids)
        found = continuation.of(prompts, lengths, lengths + room, controls)
        return self._trimmed(found, room)

    def _fit(self, prompts: tf.Tensor, lengths: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Truncate prompts to the context, like `sample.fit_prompt`; returns them and their lengths."""
        n_ctx = self._model.n_ctx
        kept = tf.where(lengths < n_ctx, lengths, n_ctx - tf.clip_by_value(wanted, 1, n_ctx - 1))
        columns = tf.range(tf.maximum(1, tf.reduce_max(kept)))
        prompts = tf.pad(prompts, [[0, 0], [0, 1]])  # there may be no column at all
        places = tf.minimum((lengths - kept)[:, None] + columns, tf.shape(prompts)[1] - 1)
        filler = self._special.prefix or 0  # the beginning of a row without tokens
        tokens = tf.where(columns < kept[:, None], tf.gather(prompts, places, batch_dims=1), filler)
        return tokens, tf.maximum(kept, 1)

    def _trimmed(self, tokens: tf.Tensor, room: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `generate` returns, of new tokens [batch, max_new], of which a row may have `room`."""
        counts = room
        if self._special.eos_ids:
            before = tf.cumsum(tf.cast(is_any(tokens, self._special.eos_ids), tf.int32), axis=1)
            counts = tf.minimum(room, tf.reduce_sum(tf.cast(tf.equal(before, 0), tf.int32), 1))
        inside = tf.sequence_mask(counts, tf.shape(tokens)[1])
        filled = tf.where(inside, tokens, self._special.eos_id or 0)
        return {"tokens": filled[:, : tf.maximum(0, tf.reduce_max(counts))], "lengths": counts}

    def _check_ids(self, tokens: tf.Tensor, name: str) -> tf.Operation:
        n_vocab = self._model.n_vocab
        inside = tf.logical_and(tokens >= 0, tokens < n_vocab)
        return _check(inside, f"{name}: ids are from 0 to n_vocab - 1 = {n_vocab - 1}", tokens)


def _needs_whole_context(config: Config) -> bool:
    """Whether padding would change the logits of tokens before it: in bidirectional models, and if tokens compete for
    experts.
    """
    crowded = bool(config.model.moe_layers) and config.model.moe_params.moe_capacity_factor_eval is not None
    return not objective_of(config).causal or crowded


def _function(python: Callable[..., Any], specs: Sequence[tf.TensorSpec]) -> Any:
    return tf.function(python, input_signature=specs, autograph=False)


def _check(true: tf.Tensor, message: str, value: tf.Tensor) -> tf.Operation:
    """Fail with an invalid-argument error unless all of `true` holds."""
    return tf.debugging.Assert(tf.reduce_all(true), [message + "; given: ", value])


def _by_row(name: str, x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """[rows], of a scalar or of that shape."""
    size = tf.size(x)
    fits = tf.logical_or(tf.equal(size, 1), tf.equal(size, rows))
    with tf.control_dependencies([_check(fits, f"{name}: one value, or one for each row", x)]):
        return tf.broadcast_to(tf.reshape(x, [-1]), [rows])
