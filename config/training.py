"""Where a run lives, how long it is and how it computes."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args

from annotated_types import Interval
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from gpt_mesh.config.fields import WHOLE, Count, Flag, Group, Natural, Size, Text, count, key, same_as
from gpt_mesh.config.generation import GenerationSettings, agreeing
from gpt_mesh.config.messages import Refused
from gpt_mesh.storage.files import SCHEMES, path_problem

# Tasks by the names that a config gives them. evaluation/tasks.py has a table of these names.
EvalTask = Literal["lambada", "wikitext"]
EVAL_TASKS: tuple[EvalTask, ...] = get_args(EvalTask)
# Objectives by the names that a config gives them: files of objectives/.
Objective = Literal["next_token", "sft", "masked", "dpo", "kto", "reward"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

# A local path, or a URL with one of the schemes that files.py knows.
_PATH_SCHEMA = {"type": "string", "minLength": 1, "pattern": f"^(({'|'.join(SCHEMES)})://|(?![^/]*://))"}


def _model_path(value: str) -> str:
    """The path with `~` replaced. Raises Refused for one that nothing can be written to."""
    if (problem := path_problem(value)) is not None:
        raise Refused(problem)
    return os.path.expanduser(value)


def _batch_ramp(value: Any) -> tuple[tuple[int, int], ...]:
    """`[[batch, steps], ...]`."""
    shape = Refused("must be a list of [batch, steps] pairs such as [[32, 1000], [64, 1000]]")
    if not isinstance(value, (list, tuple)):
        raise shape
    stages = []
    for stage in value:
        if not isinstance(stage, (list, tuple)) or len(stage) != 2:
            raise shape
        stages.append((count("batch", stage[0]), count("number of steps", stage[1])))
    return tuple(stages)


BatchRamp = Annotated[
    tuple[tuple[int, int], ...],
    BeforeValidator(_batch_ramp),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
        }
    ),
]


class TrainingConfig(Group):
    """Where a run lives, how long it is and how it computes."""

    model_path: Annotated[Text, AfterValidator(_model_path), WithJsonSchema(_PATH_SCHEMA)] = key(
        "Directory of the run: everything it writes goes there; local (`~`: your home directory) or `gs://`."
    )
    objective: Objective = key(
        "What the model learns: the next token; `sft`: the next token where the data says that it is learned "
        "(its other ids have inverted bits); with `mlm_training`, masked tokens; or preferences: `dpo`, `kto`, or a "
        "`reward` for each text.",
        touches="function",
        adaptable=True,  # `mlm_training` tells models that fill masks from others
        derive=lambda values: "masked" if values["mlm_training"] else "next_token",
        default_text="`masked` with `mlm_training`, else `next_token`",
        null_is_default=True,
    )
    train_batch_size: Size = key("Batch of a training step, over all replicas.", unit="sequences")
    eval_batch_size: Size = key(
        "Batch of an evaluation step, over all replicas.", unit="sequences", **same_as("train_batch_size")
    )
    predict_batch_size: Size = key("Samples generated together.", default=1)
    batch_ramp: BatchRamp = key(
        "Smaller batches at the beginning: `[[batch, steps], ...]`, one after the other, then `train_batch_size`. Each "
        "size is compiled once.",
        default=(),
        type_text="list of [integer, integer]",
        null_is_default=True,
    )
    train_steps: Count = key("Step at which training ends.", unit="steps")
    keep_last_n_checkpoints: Count = key("The newest checkpoints that are kept.", default=5, unit="checkpoints")
    keep_every_n_steps: Count | None = key(
        "Checkpoints of steps that this divides are kept for good; null: none.", default=None, unit="steps"
    )
    eval_interval: Count | None = key(
        "Steps between evaluations; null: one after each checkpoint.", default=None, unit="steps"
    )
    eval_steps: Natural = key("Batches of an evaluation; 0: none.", default=0, unit="batches")
    predict_steps: Natural = key("Batches sampled after each checkpoint; 0: none.", default=0, unit="batches")
    predict_max_steps: Count | None = key(
        "New tokens per sample, less than `n_ctx`; null: fill the context.", default=None, unit="tokens"
    )
    generation: Annotated[GenerationSettings, AfterValidator(agreeing)] = key(
        "How text is generated, from the table below.",
        default=GenerationSettings(),
        type_text="object",
        default_text="`{}`",
        null_is_default=True,
    )
    iterations: Count = key(
        "Steps per device loop on TPU; elsewhere the default of `log_interval`.", default=500, unit="steps"
    )
    log_interval: Count = key("Steps between rows of `metrics.jsonl`.", unit="steps", **same_as("iterations"))
    precision: Literal["float32", "bfloat16"] = key(
        "Type of the activations; weights, optimizer state, softmax and loss stay float32.", default="float32"
    )
    recompute_grad: Flag = key("Recompute each block's activations in the backward pass.", default=False)
    tokens_per_mb_per_replica: Count | None = key(
        "Microbatch size of a replica; null: no microbatches.", default=None, unit="tokens"
    )
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1), WHOLE] = key(
        "Seeds initialisation, dropout, data order and sampling.", default=1
    )
    eval_tasks: tuple[EvalTask, ...] = key(
        "Tasks evaluated after each checkpoint, besides the validation set.", default=(), null_is_default=True
    )
    fused_ops: Flag = key("Use the faster form of operations that have one; false: the plain one.", default=True)
    on_nonfinite: Literal["stop", "skip"] = key(
        "A step whose loss or gradients are not finite ends the run (`stop`), or leaves weights and optimizer state as "
        "they are and is counted (`skip`; not on TPU).",
        default="stop",
    )
    max_nonfinite_steps: Count = key(
        "With `on_nonfinite` `skip`: as many skipped steps in a row end the run.", default=10, unit="steps"
    )
    background_checkpoints: Flag = key(
        "Write checkpoints during training, from a second copy of weights and optimizer state in the host's "
        "memory; false: wait for them.",
        default=True,
    )
    log_grads: Flag = key("Log gradient norms by variable.", default=False)
    remove_partial_sequences: Flag = key("Leave the prompt out of generated text.", default=False)

    @property
    def learns_pairs(self) -> bool:
        """Whether the objective learns from preferences, and examples are pairs of texts."""
        return self.objective in ("dpo", "kto", "reward")
