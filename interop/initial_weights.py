"""Initial weights of a new run (`--init_from`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gpt_mesh.config import Change, Config, changes, values_of_config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.architecture import TOKEN_WEIGHTS
from gpt_mesh.interop.weights import Weights, local_tokenizer, open_weights, weight_sizes
from gpt_mesh.models.context import is_reference
from gpt_mesh.optimizers.registry import is_slot
from gpt_mesh.storage.progress import log

EMBEDDING, POSITIONS, REWARD = "gpt2/wte", "gpt2/wpe", "gpt2/reward"
# What a reward model has no use for: the output layer of logits.
_HEADS = ("gpt2/linear_out/kernel", "gpt2/linear_out/bias", *(
    f"gpt2/wte_final_linear/conv1d_main/linear_out/{part}" for part in ("kernel", "bias")
))  # fmt: skip
# Shapes that flags allow to change.
_RESIZABLE = ("n_vocab", "n_ctx", "n_positions")


@dataclass(frozen=True)
class InitFrom:
    """The source of initial weights, and what may differ.

    Attributes:
        path: a checkpoint, a run's directory, or a Hugging Face folder.
        keep_optimizer: also load the optimizer state.
        resize_vocab: the config may have another vocabulary.
        extend_context: the config may have a longer context.
    """

    path: str
    keep_optimizer: bool = False
    resize_vocab: bool = False
    extend_context: bool = False

    def open(self, config: Config) -> InitialWeights:
        """Open the weights. Raises InputError if they do not fit the config."""
        return InitialWeights(self, config)


class InitialWeights:
    """Initial weights that fit a config."""

    def __init__(self, init: InitFrom, config: Config) -> None:
        """
        Raises:
            InputError: the weights cannot be read, belong to another model, or differ in something that no flag allows.
        """
        self.init, self.config = init, config
        self.weights: Weights = open_weights(init.path)
        self._wanted = weight_sizes(config.model)
        self._check_architecture()
        self._rows = self._rows_of_tokens()
        self._check_shapes()
        if init.keep_optimizer and not any(is_slot(name) for name in self.weights.shapes):
            raise InputError(f"--keep_optimizer: {self.weights.source} has no optimizer state; leave the flag out")

    @property
    def source(self) -> str:
        """The path of the weights."""
        return self.weights.source

    def fill(self, variables: Mapping[str, tf.Variable]) -> None:
        """Assign all weights, and with `keep_optimizer` all slots, one at a time.

        Args:
            variables: whole ("master") variables by name. `global_step` keeps its 0.
        """
        fresh = []
        for name, variable in variables.items():
            if name == "global_step" or (is_slot(name) and not self.init.keep_optimizer):
                continue
            shape = tuple(variable.shape.as_list())
            if self._begins_at_random(name.rpartition("/")[0] if is_slot(name) else name):
                continue
            if is_slot(name) and not self._slot_fits(name, shape):
                fresh.append(name.rpartition("/")[0])
                continue
            value = self._fitted(name, shape)
            variable.assign(tf.cast(value, variable.dtype))
        for line in self.changes():
            log.info(line)
        if fresh:
            log.info("%s has no optimizer state of the right form for %d weights: it starts at zero",
                     self.weights.source, len(set(fresh)))  # fmt: skip

    def _begins_at_random(self, weight: str) -> bool:
        """Whether a weight is a reward's, which a language model does not have."""
        return weight == REWARD and weight not in self.weights.shapes

    def changes(self) -> list[str]:
        """Descriptions of all changes."""
        lines: list[str] = []
        new = self.config.model
        if (old := self._size(EMBEDDING)) != new.n_vocab or self._rows is not None:
            kept = int((self._rows >= 0).sum()) if self._rows is not None else min(old, new.n_vocab)
            how = "found by their text" if self._rows is not None else "by their ids"
            lines.append(
                f"vocabulary of {new.n_vocab} for {old}: {kept} tokens keep their embeddings, {how}; the other "
                f"{new.n_vocab - kept} begin at the mean of all"
            )
        if POSITIONS in self.weights.shapes and (old := self._size(POSITIONS)) != new.n_ctx:
            more = f"; positions from {old} on begin as those before them, repeated" if new.n_ctx > old else ""
            lines.append(f"context of {new.n_ctx} for {old}{more}")
        if self.config.model.reward_head and self._begins_at_random(REWARD):
            lines.append("the head of rewards begins at random")
        for change in self._changed_keys():
            was, now = _short(change.was), _short(change.now)
            lines.append(f"{change.key} was {was} and is {now} now: the same weights in another model")
        return lines

    def _changed_keys(self) -> list[Change]:
        """The changed keys that affect the weights or the computed function."""
        found = changes(self.weights.config, values_of_config(self.config))
        return [change for change in found if change.touches is not None and change.key not in _RESIZABLE]

    def _check_architecture(self) -> None:
        """Refuse weights that have the right shapes but another meaning."""
        for change in self._changed_keys():
            if not change.adaptable:
                raise InputError(
                    f"{self.config.source}: {change.key} = {_short(change.now)}, but --init_from "
                    f"{shown(self.init.path)} has "
                    f"{_short(change.was)}; make them equal"
                )

    def _check_shapes(self) -> None:
        source, found, wanted = self.config.source, self.weights.shapes, self._wanted
        layers = {name.split("/")[1] for name in found if name.startswith("gpt2/h")}
        if beyond := sorted(layers - {name.split("/")[1] for name in wanted}):
            raise InputError(
                f"--init_from {shown(self.init.path)}: has a layer {beyond[0]}, and {source} has n_layer = "
                f"{self.config.model.n_layer}; make them equal"
            )
        for name, shape in wanted.items():
            if self._begins_at_random(name):
                continue
            if name not in found:
                raise InputError(
                    f"--init_from {shown(self.init.path)}: has no variable {name}, which {source} asks for; is it "
                    "another "
                    "model's?"
                )
            if found[name] != shape:
                self._check_change(name, found[name], shape)
        apart = {"global_step", *(filter(is_reference, found)), *(_HEADS if self.config.model.reward_head else ())}
        if unused := sorted(name for name in {*found} - {*wanted} - apart if not is_slot(name)):
            raise InputError(
                f"--init_from {shown(self.init.path)}: has {unused[0]}{' and others' if len(unused) > 1 else ''}, "
                "which "
                f"{source} has no place for; is it another model's?"
            )

    def _check_change(self, name: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        source, begin = self.config.source, f"--init_from {self.init.path}"
        if self._unsized(name, old) == self._unsized(name, new):
            if name in TOKEN_WEIGHTS and not self.init.resize_vocab:
                raise InputError(
                    f"{source}: n_vocab = {self.config.model.n_vocab}, but {begin} has {old[self._axis(name) or 0]}; "
                    "make them equal, or add --resize_vocab"
                )
            if name == POSITIONS and new[0] > old[0] and not self.init.extend_context:
                raise InputError(
                    f"{source}: n_ctx = {new[0]}, but {begin} has {old[0]}; make n_ctx that or less, or add "
                    "--extend_context"
                )
            return
        raise InputError(f"{begin}: variable {name} has shape {list(old)}, but {source} makes it {list(new)}")

    def _unsized(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape without the dimension that may change."""
        axis = self._axis(name)
        return shape if axis is None else shape[:axis] + shape[axis + 1 :]

    @staticmethod
    def _axis(name: str) -> int | None:
        """The dimension of a weight, or of its slot of the same form, that may change."""
        weight = name.rpartition("/")[0] if is_slot(name) else name
        return {**TOKEN_WEIGHTS, POSITIONS: 0}.get(weight)

    def _size(self, name: str) -> int:
        """Of the dimension that may change."""
        return self.weights.shapes[name][self._axis(name) or 0]

    def _slot_fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the optimizer's state is there, in a form that can be used.

        Where rows of a weight come or go, only what has a row for each of them can follow: Adafactor's means over rows
        and those over columns belong together, so both begin anew.
        """
        old = self.weights.shapes.get(name)
        if old is None:
            return False
        if self._is_resized(name.rpartition("/")[0]):
            return len(old) == len(shape) == 2 and self._unsized(name, old) == self._unsized(name, shape)
        return old == shape

    def _is_resized(self, weight: str) -> bool:
        """Whether the rows of a weight are not those that it had."""
        other = self._rows is not None and weight in TOKEN_WEIGHTS
        return other or self.weights.shapes[weight] != self._wanted[weight]

    def _fitted(self, name: str, shape: tuple[int, ...]) -> NDArray:
        """The value of a variable, with as many rows as this config has."""
        value = self.weights.read(name)
        axis = self._axis(name)
        if axis is None or (value.shape == shape and (self._rows is None or POSITIONS in name)):
            return value
        rows = np.moveaxis(value.astype(np.float32), axis, 0)
        count = shape[axis]
        if POSITIONS in name:
            resized = rows[np.arange(count) % len(rows)]
        else:
            ids = np.arange(count)
            places = np.where(ids < len(rows), ids, -1) if self._rows is None else self._rows
            beginning = 0.0 if is_slot(name) else rows.mean(0)
            is_kept = (places >= 0).reshape(-1, *[1] * (rows.ndim - 1))
            resized = np.where(is_kept, rows[places], beginning)
        return np.moveaxis(resized, 0, axis)

    def _rows_of_tokens(self) -> NDArray[np.int64] | None:
        """For each id of this config's vocabulary, that of the same token before, or -1; None where ids mean the same.
        """
        old, new = self.weights.tokenizer, local_tokenizer(self.config)
        if old is None or new is None or _same_ids(old, new):
            return None
        if not self.init.resize_vocab:
            raise InputError(
                f"{new.source}: is another tokenizer than {old.source}, which the weights of --init_from "
                f"{self.init.path} were trained with; encode the data with that one, or add --resize_vocab"
            )
        places, before = np.full(self.config.model.n_vocab, -1), old.tokenizer.get_vocab(with_added_tokens=True)
        rows = self.weights.shapes.get(EMBEDDING, (0,))[0]  # a tokenizer may have more tokens than its model
        for token, number in new.tokenizer.get_vocab(with_added_tokens=True).items():
            if number < len(places) and before.get(token, rows) < rows:
                places[number] = before[token]
        return places


def _same_ids(old: Encoder, new: Encoder) -> bool:
    """Whether each id that both tokenizers have is the same token."""
    first, second = (
        {number: token for token, number in encoder.tokenizer.get_vocab(with_added_tokens=True).items()}
        for encoder in (old, new)
    )
    return all(second[number] == token for number, token in first.items() if number in second)


def _short(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
