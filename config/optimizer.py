"""The optimizer, its schedule and what is added to the loss."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Literal, get_args

from annotated_types import Gt
from pydantic import BeforeValidator, WithJsonSchema

from gpt_mesh.config.fields import (
    NORMAL,
    NUMBER,
    Count,
    Flag,
    Group,
    Natural,
    NonNegative,
    Positive,
    Rate,
    key,
    number,
    same_as,
)

# Optimizers and schedules by the names that a config gives them. optimizers/ implements these names.
Optimizer = Literal["adam", "adafactor"]
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
Schedule = Literal["cosine", "linear", "none"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def _number_or_text(value: Any) -> int | float:
    """A number, also one written as a string: the published 2.7B config has `"ada_epsilon1": "1e-30"`."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    return number(value)


NUMBER_OR_TEXT = BeforeValidator(_number_or_text)


def _schema(lower: dict[str, float]) -> WithJsonSchema:
    return WithJsonSchema({"type": ["number", "string"], **lower})


class OptimizerConfig(Group):
    """The optimizer, its schedule and what is added to the loss."""

    opt_name: Optimizer = key("Optimizer.", default="adam")
    lr: Positive = key("Peak learning rate.")
    lr_decay: Schedule = key("Shape of the decay from `lr` to 0.1 x `lr`.", default="cosine")
    lr_decay_end: Count = key("Step at which the decay ends.", unit="steps", **same_as("train_steps"))
    warmup_steps: Natural = key("Warm-up: the learning rate rises linearly from 0.", default=0, unit="steps")
    beta1: Rate = key("Decay rate of the first moment; with Adafactor, 0 saves its memory.", default=0.9)
    beta2: Rate = key("Decay rate of Adam's second moment.", default=0.95)
    epsilon: Annotated[float, NORMAL, NUMBER] = key("Adam's addend to the root of the second moment.", default=1e-8)
    ada_epsilon1: Annotated[float, NORMAL, NUMBER_OR_TEXT, _schema({"minimum": NORMAL.ge})] = key(
        "Adafactor's addend to the squared gradient.", default=1e-30
    )
    ada_epsilon2: Annotated[float, Gt(0), NUMBER_OR_TEXT, _schema({"exclusiveMinimum": 0})] = key(
        "Adafactor's minimum parameter scale.", default=1e-3
    )
    ada_decay_rate: Annotated[float, Gt(0), NUMBER_OR_TEXT, _schema({"exclusiveMinimum": 0})] = key(
        "Exponent of Adafactor's second-moment decay.", default=0.8
    )
    weight_decay: NonNegative = key("Decoupled weight decay, on matrices only.", default=0.0)
    gradient_clipping: Positive | None = key("Maximum global gradient norm; null: off.", default=1.0)
    split_optimizer_state: Flag = key(
        "Each device of the mesh dimension that splits `batch` keeps and updates a part of the optimizer's state "
        "(ZeRO, stage 1); the numbers stay the same.",
        default=False,
    )
    z_loss: NonNegative = key(
        "Weight of the squared log-partition term of the loss; `entmax_loss` has no such term.", default=1e-4
    )
    entmax_loss: Flag = key(
        "The Fenchel-Young loss of 1.5-entmax in place of that of softmax (arXiv:1905.05702). The `nll` reported is "
        "still that of softmax: entmax can give labels probability 0.",
        default=False,
        touches="function",
        adaptable=True,
    )
