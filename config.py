"""Model and dataset configs: every key, its default, its checks and its reference page.

A config is one flat JSON object in the format of the published GPT-Neo configs. `load_config` checks it whole, before
any graph is built, and returns frozen dataclasses that group the keys. Each key is declared once, as a field of the
dataclass it lands in; parsing, checking, `to_json` and the reference page all read that declaration.

`python config.py` prints the reference page, which is kept in `docs/parameters.md`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import glob
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from gpt_mesh.errors import InputError
from gpt_mesh.storage.files import path_problem

CONFIG_DIRECTORY = Path(__file__).resolve().parent / "configs"

ATTENTION_TYPES = ("global", "local", "linear", "none")
SAMPLING_MODES = ("documents_random", "documents_fixed", "chunks")
SAMPLING_MODE_ALIASES = {"random_sample": "documents_random"}
EVAL_TASKS = ("lambada", "wikitext")
OBJECTIVES = ("next_token", "masked")  # files of objectives/
OPTIMIZERS = ("adam", "adafactor")  # files of optimizers/
SCHEDULES = ("cosine", "linear", "none")
SECOND_EXPERT_POLICIES = ("all", "none", "threshold", "random")
FIXED_SECOND_EXPERT_POLICIES = ("all", "none", "threshold")

# The single list of activation functions; models/activations.py holds one function for each name.
ACTIVATIONS = (
    "gelu", "relu", "sigmoid", "tanh", "selu", "elu", "abs", "sin", "cos", "sign", "silu", "softplus", "lrelu001",
    "lrelu020", "id", "triangle_relax", "square_relax", "spike", "spike2", "tanhshrink", "softsign", "softmax",
    "logsoftmax", "bipolarsigmoid", "rrelu", "elish", "arcsinh", "aria", "prelu", "parcsinh", "psoftplus", "proottanh",
    "maxsig", "cosid", "minsin", "maxtanh", "mish", "tanhexp", "lisht", "seagull", "snake", "roottanh", "softplusmone",
)  # fmt: skip

# Tensor dimensions that a layout may split, by their mesh-tensorflow names.
TENSOR_DIMENSIONS = (
    "batch", "sequence", "embd", "heads", "vocab", "memory_length", "intermediate_expanded", "embed_sequence",
    "experts", "expert_hidden",
)  # fmt: skip

# Stitch, sampling mode and weight of a dataset that is named without them.
DATASET_DEFAULTS = (25, "documents_random", 1.0)
# A JSON list, or what Python callers give for one.
LIST = (list, tuple)

MAX_LAYERS = 10_000
MAX_LOGPROBS = 100
MAX_INT = 2**63 - 1


# ---------------------------------------------------------------------------------------------------------------------
# Declaring a key
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, each end included unless said."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>' if self.open_low else '>='} {self.low}"
        return f"in {'(' if self.open_low else '['}{self.low}, {self.high}{')' if self.open_high else ']'}"


POSITIVE = Interval(low=0, open_low=True)
NON_NEGATIVE = Interval(low=0)
AT_LEAST_ONE = Interval(low=1)
NORMAL = Interval(low=1.2e-38)  # the least that float32 holds with full precision; less may round to 0
PROBABILITY = Interval(low=0, high=1)
RATE = Interval(low=0, high=1, open_high=True)
SEEDS = Interval(low=0, high=2**31 - 1)
LAYERS = Interval(low=1, high=MAX_LAYERS)


@dataclass(frozen=True)
class Key:
    """How one JSON key is checked and documented; the type and the default are the dataclass field's own.

    Attributes:
        doc: one sentence for the reference page.
        interval: the numbers allowed (each of them, where the value is a list).
        choices: the strings allowed.
        derive: the default, computed from the other keys' values, where it is not a constant.
        default_text: how the reference page shows a derived default.
        parse: replaces the check by type; raises `_Refused`.
        type_text: how the reference page shows the type where `parse` is given.
        null_is_default: null means the same as leaving the key out.
        numeric_text: numbers written as strings pass (the published 2.7B config has `"ada_epsilon1": "1e-30"`).
    """

    doc: str
    interval: Interval | None = None
    choices: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Any]], Any] | None = None
    default_text: str | None = None
    parse: Callable[[Any], Any] | None = None
    type_text: str | None = None
    null_is_default: bool = False
    numeric_text: bool = False


def key(doc: str, *, default: Any = dataclasses.MISSING, **checks: Any) -> Any:
    """A dataclass field that is a config key, required without a default; `checks` are the attributes of `Key`."""
    return dataclasses.field(default=default, metadata={"key": Key(doc, **checks)})


def _same_as(other: str) -> dict[str, Any]:
    """The checks of a key whose default is another key's value."""
    return {"derive": lambda values: values[other], "default_text": f"`{other}`", "null_is_default": True}


class _Refused(Exception):
    """Why a value cannot work and what would, without the file and key, which the caller knows."""


def _nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` for the known name nearest to `name`, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _one_of(name: str, known: Sequence[str], what: str) -> _Refused:
    """The refusal of a name that is not in `known`."""
    listed = ", ".join(known) if len(known) <= 12 else "the names listed in docs/parameters.md"
    return _Refused(f"unknown {what}; use {'one of ' if len(known) > 1 else ''}{listed}{_nearest(name, known)}")


def _parse_attention_types(value: Any) -> tuple[str, ...]:
    """`[[["global", "local"], 2]]` -> `("global", "local", "global", "local")`."""
    shape = _Refused('must be a list of [list of types, repeats] pairs such as [[["global", "local"], 12]]')
    if not isinstance(value, LIST) or not value:
        raise shape
    types: list[str] = []
    for pair in value:
        if not isinstance(pair, LIST) or len(pair) != 2 or not isinstance(pair[0], LIST) or not pair[0]:
            raise shape
        names, repeats = list(pair[0]), _element("number of repeats", int, pair[1], Key("", interval=AT_LEAST_ONE))
        for name in names:
            if not isinstance(name, str):
                raise shape
            if name not in ATTENTION_TYPES:
                raise _one_of(name, ATTENTION_TYPES, f"attention type {_show(name)}")
        if len(types) + len(names) * repeats > MAX_LAYERS:
            raise _Refused(f"describes more than {MAX_LAYERS} layers; the total must equal n_layer")
        types += names * repeats
    return tuple(types)


def _parse_axial(value: Any) -> tuple[int, int] | None:
    """`[d1, d2]`, or null for learned positions."""
    if value is None:
        return None
    if not isinstance(value, LIST) or len(value) != 2:
        raise _Refused("must be a pair [d1, d2] with d1 * d2 = n_ctx, or null")
    first, second = (_element("size", int, size, Key("", interval=AT_LEAST_ONE)) for size in value)
    return first, second


def _parse_globs(value: Any) -> tuple[str, ...]:
    """A glob or a list of globs; an empty string or null is none."""
    globs = [value] if isinstance(value, str) else value
    if value is None or value == "":
        return ()
    if not isinstance(globs, LIST) or not all(isinstance(item, str) and item for item in globs):
        raise _Refused("must be a path or glob, or a list of them")
    return tuple(globs)


def _parse_model_path(value: Any) -> str:
    if not isinstance(value, str):
        raise _Refused("must be a string")
    if not value:
        raise _Refused("must not be empty")
    if (problem := path_problem(value)) is not None:
        raise _Refused(problem)
    return os.path.expanduser(value)


def _parse_datasets(value: Any) -> tuple[tuple[str, int, str, float], ...]:
    """`[[id, stitch, sampling_mode, weight], ...]` or `[id, ...]`; null stands for a default."""
    shape = _Refused('must be a list such as [["my_dataset", 25, "documents_random", 1.0]] or ["my_dataset"]')
    if not isinstance(value, LIST) or not value:
        raise shape
    uses = []
    for entry in value:
        fields = [entry] if isinstance(entry, str) else entry
        if not isinstance(fields, LIST) or not 1 <= len(fields) <= 4 or not isinstance(fields[0], str) or not fields[0]:
            raise shape
        given = [*fields, None, None, None][1:4]
        stitch, mode, weight = (
            default if item is None else item for item, default in zip(given, DATASET_DEFAULTS, strict=True)
        )
        mode = SAMPLING_MODE_ALIASES.get(mode, mode) if isinstance(mode, str) else mode
        uses.append(
            (
                fields[0],
                _element("stitch", int, stitch, Key("", interval=AT_LEAST_ONE)),
                _element("sampling mode", str, mode, Key("", choices=SAMPLING_MODES)),
                _element("weight", float, weight, Key("", interval=POSITIVE)),
            )
        )
    return tuple(uses)


def _element(what: str, hint: Any, value: Any, declared: Key) -> Any:
    """`_convert` for one element of a list, naming the element in the refusal."""
    try:
        return _convert(hint, value, declared)
    except _Refused as refused:
        raise _Refused(f"the {what} {_show(value)} cannot work: {refused}") from None


def _parse_pairs(text: str, what: str) -> tuple[tuple[str, str], ...]:
    """`"a:b,c:d"` -> `(("a", "b"), ("c", "d"))`; `;` separates as well. Left-hand names must differ."""
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in re.split("[,;]", text))):
        match = re.fullmatch(r"(\w+)\s*:\s*(\w+)", item)
        if match is None:
            raise _Refused(f"cannot read {_show(item)}; write it as {what}")
        if match[1] in pairs:
            raise _Refused(f"names {match[1]} twice; write each name once, as in {what}")
        pairs[match[1]] = match[2]
    return tuple(pairs.items())


def _parse_mesh_shape(value: Any) -> str:
    """A mesh shape that `MeshConfig.shape` can read."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Refused('must be a string such as "x:4,y:2"')
    for name, size in _parse_pairs(value, '"x:4,y:2"'):
        if not re.fullmatch("[0-9]{1,9}", size) or int(size) < 1:
            raise _Refused(f'the size of mesh dimension {name} must be a whole number >= 1, as in "x:4,y:2"')
    return value


def _parse_layout(value: Any) -> str:
    """A layout that `MeshConfig.rules` can read, naming only tensor dimensions that exist."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Refused('must be a string such as "batch:x,heads:y"')
    for name, _ in _parse_pairs(value, '"batch:x,heads:y"'):
        if name not in TENSOR_DIMENSIONS:
            raise _one_of(name, TENSOR_DIMENSIONS, f"tensor dimension {name}")
    return value


def _parse_moe_params(value: Any) -> MoeParams:
    """The object of mixture-of-experts settings, checked like the config itself."""
    return MoeParams(**_parse_object(MoeParams, value, '{"moe_num_experts": 8}'))


def _parse_generation(value: Any) -> GenerationSettings:
    """The object of generation settings, checked like the config itself."""
    settings = GenerationSettings(**_parse_object(GenerationSettings, value, '{"temperature": 0.8}'))
    if clash := _generation_clash(settings):
        raise _Refused(f"{clash[0]} = {_show(_to_json(getattr(settings, clash[0])))} in it cannot work: {clash[1]}")
    return settings


def _parse_object(group: type[Any], value: Any, example: str) -> dict[str, Any]:
    """The checked values of an object whose keys are those of `group`."""
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise _Refused(f"must be an object such as {example}")
    known = _keys(group)
    for name in value:
        if name not in known:
            raise _Refused(f"unknown key {_show(name)} in it{_nearest(str(name), known) or '; remove it'}")
    return {name: _element(name, known[name].hint, given, known[name].key) for name, given in value.items()}


def _generation_clash(settings: GenerationSettings) -> tuple[str, str] | None:
    """A key that another one excludes, and why; None: all agree."""
    most, least, beams = settings.max_new_tokens, settings.min_new_tokens, settings.num_beams
    if most is not None and least > most:
        return "min_new_tokens", f"more than max_new_tokens = {most}; lower it"
    if beams > 1:
        for name in ("top_k", "top_p", "repetition_penalty", "entmax", "logprobs"):
            if getattr(settings, name) != getattr(_DEFAULT_GENERATION, name):
                return name, f"does not go with num_beams = {beams}, which draws nothing; leave out one of the two"
        if (settings.num_samples or 1) > beams:
            return "num_samples", f"more than num_beams = {beams}; raise num_beams"
    return None


def _parse_stop(value: Any) -> tuple[str, ...]:
    """A string or a list of strings, none of them empty; null or an empty list is none."""
    strings = [value] if isinstance(value, str) else value
    if strings is None:
        return ()
    if not isinstance(strings, LIST) or not all(isinstance(item, str) and item for item in strings):
        raise _Refused("must be a string, or a list of them, none empty")
    return tuple(strings)


# ---------------------------------------------------------------------------------------------------------------------
# The keys
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MoeParams:
    """Settings of the mixture-of-experts layers (Shazeer et al. 2017, arXiv:1701.06538; GShard, arXiv:2006.16668)."""

    moe_num_experts: int = key("Experts in each mixture.", default=16, interval=Interval(low=2))
    moe_hidden_size: int | None = key(
        "Hidden features of one expert; null: 4 x `n_embd`.", default=None, interval=AT_LEAST_ONE
    )
    moe_loss_coef: float = key("Weight of the balance loss.", default=1e-2, interval=NON_NEGATIVE)
    moe_group_size: int = key(
        "Most tokens that share one set of expert capacities. Groups are equal parts of a sequence.",
        default=1024,
        interval=AT_LEAST_ONE,
    )
    moe_capacity_factor_train: float = key(
        "Room of each expert in training, relative to an even split of first choices, but for at least 4 tokens of a "
        "group. Tokens beyond it skip the expert.",
        default=1.25,
        interval=POSITIVE,
    )
    moe_capacity_factor_eval: float | None = key(
        "The same outside training; null: room for every token, so that what becomes of a token does not depend on its "
        "neighbours, and generation agrees with scoring. A number makes full passes cheaper, at that price.",
        default=None,
        interval=POSITIVE,
    )
    moe_gating: str = key("How tokens choose experts.", default="top_2", choices=("top_2",))
    moe_use_second_place_loss: bool = key("Balance the second choices too.", default=False)
    moe_second_policy_train: str = key(
        "When a token also goes to its second expert, in training; `random`: with probability gate / threshold.",
        default="random",
        choices=SECOND_EXPERT_POLICIES,
    )
    moe_second_policy_eval: str = key(
        "The same outside training, where nothing is random.", default="all", choices=FIXED_SECOND_EXPERT_POLICIES
    )
    moe_second_threshold_train: float = key(
        "Gate, as a share of the two gates' sum, above which `threshold` and `random` use the second expert, in "
        "training.",
        default=0.2,
        interval=PROBABILITY,
    )
    moe_second_threshold_eval: float = key("The same, outside training.", default=0.2, interval=PROBABILITY)
    moe_dropout_rate: float = key("Dropout inside the experts, in training only.", default=0.0, interval=RATE)


_DEFAULT_MOE = MoeParams()


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How a prompt is continued: the config's `generation`, and what a flag or a request says otherwise."""

    temperature: float = key(
        "Scores are divided by it before a token is drawn; 0: the likeliest token each time.",
        default=0.9,
        interval=Interval(low=0, high=100),
    )
    top_k: int = key("Draw only from so many of the likeliest tokens; 0: from all.", default=0, interval=NON_NEGATIVE)
    top_p: float = key(
        "Draw only from the fewest of the likeliest tokens that together have this probability (arXiv:1904.09751).",
        default=1.0,
        interval=Interval(low=0, high=1, open_low=True),
    )
    repetition_penalty: float = key(
        "Scores of tokens that the text has already are divided by it where positive, else multiplied "
        "(arXiv:1909.05858); 1: not.",
        default=1.0,
        interval=Interval(low=0.01, high=100),
    )
    entmax: bool = key("Draw from the sparse 1.5-entmax of the scores in place of softmax.", default=False)
    num_beams: int = key(
        "Above 1: beam search for so many likeliest texts; nothing is drawn.",
        default=1,
        interval=Interval(low=1, high=64),
    )
    length_penalty: float = key(
        "Beams are ranked by the sum of log-probabilities divided by length to this power.",
        default=1.0,
        interval=Interval(low=-10, high=10),
    )
    num_samples: int | None = key(
        "Continuations of each prompt; null: `predict_batch_size` with `--predict`, else 1.",
        default=None,
        interval=AT_LEAST_ONE,
    )
    max_new_tokens: int | None = key(
        "At most so many are added; null: `predict_max_steps`, else until the context is full.",
        default=None,
        interval=AT_LEAST_ONE,
    )
    min_new_tokens: int = key("The text does not end before it has so many.", default=0, interval=NON_NEGATIVE)
    stop: tuple[str, ...] = key(
        "Strings before which the text ends.", default=(), parse=_parse_stop, type_text="string or list of strings"
    )
    seed: int | None = key(
        "Of the draws: the same seed gives the same text, whatever else is generated beside it; null: the config's.",
        default=None,
        interval=Interval(low=-(2**63), high=2**63 - 1),
    )
    logprobs: int | None = key(
        "Report the log-probability of each token, and those of so many of the likeliest; null: none.",
        default=None,
        interval=Interval(low=0, high=MAX_LOGPROBS),
    )


_DEFAULT_GENERATION = GenerationSettings()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture."""

    model: str = key("Model family.", default="GPT", choices=("GPT",))
    n_head: int = key("Attention heads; must divide `n_embd`.", interval=AT_LEAST_ONE)
    n_embd: int = key("Features of the residual stream.", interval=AT_LEAST_ONE)
    n_layer: int = key("Transformer blocks.", interval=LAYERS)
    n_ctx: int = key("Context length, in tokens.", interval=Interval(low=2))
    n_vocab: int = key("Rows of the token embedding; at least every dataset's `n_vocab`.", interval=AT_LEAST_ONE)
    n_positions: int = key(
        "Another name for the context length, for converters; must equal `n_ctx`.",
        interval=AT_LEAST_ONE,
        **_same_as("n_ctx"),
    )
    attention_types: tuple[str, ...] = key(
        'Attention of each layer: `[[["global", "local"], 12]]` repeats each list that often, and the total must equal '
        "`n_layer`. Types: " + ", ".join(f"`{name}`" for name in ATTENTION_TYPES) + ".",
        parse=_parse_attention_types,
        type_text="list of [list of strings, integer]",
        derive=lambda values: ("global",) * values["n_layer"],
        default_text="all `global`",
        null_is_default=True,
    )
    local_attention_radius: int = key(
        "Window of `local` attention: the keys a query sees, itself included.", default=256, interval=AT_LEAST_ONE
    )
    activation_function: str = key(
        "Activation of the feed-forward layers, one of the names below (alias `activation_fn`).",
        default="gelu",
        choices=ACTIVATIONS,
    )
    embed_dropout: float = key("Dropout after the embeddings, in training only.", default=0.0, interval=RATE)
    attn_dropout: float = key("Dropout of the attention weights, in training only.", default=0.0, interval=RATE)
    res_dropout: float = key("Dropout of each residual branch, in training only.", default=0.0, interval=RATE)
    scale_by_depth: bool = key(
        "Divide the initial standard deviation of each block's last projection by sqrt(`n_layer`).", default=True
    )
    scale_by_in: bool = key(
        "Divide the initial standard deviation of dense kernels by the square root of their inputs.", default=False
    )
    axial_pos_emb: tuple[int, int] | None = key(
        "Axial position embeddings of sizes `[d1, d2]`, d1 x d2 = `n_ctx` (arXiv:1912.12180).",
        default=None,
        parse=_parse_axial,
        type_text="[integer, integer] or null",
    )
    rotary_emb: bool = key("Rotary position embeddings (arXiv:2104.09864).", default=False)
    mlp_glu: bool = key("Gated linear units in the feed-forward layers (arXiv:2002.05202).", default=False)
    scalenorm: bool = key("ScaleNorm in place of layer norm (arXiv:1910.05895).", default=False)
    rezero: bool = key("ReZero gains in place of norms (arXiv:2003.04887).", default=False)
    macaron: bool = key("Half-weight feed-forward before attention and after it (arXiv:1906.02762).", default=False)
    share_parameters: bool = key("One set of block weights for all layers.", default=False)
    no_weight_tie: bool = key("An output projection of its own in place of the token embedding.", default=False)
    num_mem_kv: int = key(
        "Learned keys and values that every query sees (arXiv:1907.01470).", default=0, interval=NON_NEGATIVE
    )
    moe_layers: tuple[int, ...] = key(
        "Layers, counted from 0, whose feed-forward is a mixture of experts.",
        default=(),
        interval=NON_NEGATIVE,
        null_is_default=True,
    )
    moe_params: MoeParams = key(  # noqa: RUF009 -- the default is frozen
        "Settings of the mixtures, from the table below.",
        default=_DEFAULT_MOE,
        parse=_parse_moe_params,
        type_text="object",
        default_text="`{}`",
    )
    moe_activation: str = key("Activation inside the experts.", default="relu", choices=ACTIVATIONS)

    @property
    def head_size(self) -> int:
        """Features per attention head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, its schedule and what is added to the loss."""

    opt_name: str = key("Optimizer.", default="adam", choices=OPTIMIZERS)
    lr: float = key("Peak learning rate.", interval=POSITIVE)
    lr_decay: str = key("Shape of the decay from `lr` to 0.1 x `lr`.", default="cosine", choices=SCHEDULES)
    lr_decay_end: int = key("Step at which the decay ends.", interval=AT_LEAST_ONE, **_same_as("train_steps"))
    warmup_steps: int = key(
        "Steps over which the learning rate rises linearly from 0.", default=0, interval=NON_NEGATIVE
    )
    beta1: float = key(
        "Decay rate of the first moment; with Adafactor, 0 saves its memory.", default=0.9, interval=RATE
    )
    beta2: float = key("Decay rate of Adam's second moment.", default=0.95, interval=RATE)
    epsilon: float = key("Adam's addend to the root of the second moment.", default=1e-8, interval=NORMAL)
    ada_epsilon1: float = key(
        "Adafactor's addend to the squared gradient.", default=1e-30, interval=NORMAL, numeric_text=True
    )
    ada_epsilon2: float = key("Adafactor's least parameter scale.", default=1e-3, interval=POSITIVE, numeric_text=True)
    ada_decay_rate: float = key(
        "Exponent of Adafactor's second-moment decay.", default=0.8, interval=POSITIVE, numeric_text=True
    )
    weight_decay: float = key("Decoupled weight decay, on matrices only.", default=0.0, interval=NON_NEGATIVE)
    gradient_clipping: float | None = key("Largest global gradient norm; null: off.", default=1.0, interval=POSITIVE)
    split_optimizer_state: bool = key(
        "Each device of the mesh dimension that splits `batch` keeps and updates a part of the optimizer's state "
        "(ZeRO, stage 1); the numbers stay the same.",
        default=False,
    )
    z_loss: float = key(
        "Weight of the squared log-partition term of the loss; `entmax_loss` has no such term.",
        default=1e-4,
        interval=NON_NEGATIVE,
    )
    entmax_loss: bool = key(
        "The Fenchel-Young loss of 1.5-entmax in place of that of softmax (arXiv:1905.05702). The `nll` reported is "
        "still that of softmax: entmax can give labels probability 0.",
        default=False,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Where a run lives, how long it is and how it computes."""

    model_path: str = key(
        "Directory of the run: everything it writes goes there; local (`~`: your home directory) or `gs://`.",
        parse=_parse_model_path,
        type_text="string",
    )
    objective: str = key(
        "What the model learns: the next token, or (with `mlm_training`) masked tokens.",
        choices=OBJECTIVES,
        derive=lambda values: "masked" if values["mlm_training"] else "next_token",
        default_text="`masked` with `mlm_training`, else `next_token`",
        null_is_default=True,
    )
    train_batch_size: int = key("Sequences per training step, over all replicas.", interval=AT_LEAST_ONE)
    eval_batch_size: int = key("Sequences per evaluation step.", interval=AT_LEAST_ONE, **_same_as("train_batch_size"))
    predict_batch_size: int = key("Samples generated together.", default=1, interval=AT_LEAST_ONE)
    train_steps: int = key("Step at which training ends.", interval=AT_LEAST_ONE)
    eval_steps: int = key("Batches evaluated after each checkpoint; 0: none.", default=0, interval=NON_NEGATIVE)
    predict_steps: int = key("Batches sampled after each checkpoint; 0: none.", default=0, interval=NON_NEGATIVE)
    predict_max_steps: int | None = key(
        "New tokens per sample, less than `n_ctx`; null: fill the context.", default=None, interval=AT_LEAST_ONE
    )
    generation: GenerationSettings = key(  # noqa: RUF009 -- the default is frozen
        "How text is generated, from the table below.",
        default=_DEFAULT_GENERATION,
        parse=_parse_generation,
        type_text="object",
        default_text="`{}`",
    )
    iterations: int = key(
        "Steps per device loop on TPU; on CPU and GPU the logging interval, in steps.",
        default=500,
        interval=AT_LEAST_ONE,
    )
    precision: str = key(
        "Type of the activations; weights, optimizer state, softmax and loss stay float32.",
        default="float32",
        choices=("float32", "bfloat16"),
    )
    recompute_grad: bool = key("Recompute each block's activations in the backward pass.", default=False)
    tokens_per_mb_per_replica: int | None = key(
        "Microbatch size, in tokens per replica; null: the batch in one piece.", default=None, interval=AT_LEAST_ONE
    )
    seed: int = key("Seeds initialisation, dropout, data order and sampling.", default=1, interval=SEEDS)
    eval_tasks: tuple[str, ...] = key(
        "Tasks evaluated after each checkpoint, beside the validation set.",
        default=(),
        choices=EVAL_TASKS,
        null_is_default=True,
    )
    fused_ops: bool = key("Use the faster form of operations that have one; false: the plain one.", default=True)
    background_checkpoints: bool = key(
        "Write checkpoints while training goes on, from a second copy of weights and optimizer state in the host's "
        "memory; false: wait for them.",
        default=True,
    )
    log_grads: bool = key("Log gradient norms by variable.", default=False)
    remove_partial_sequences: bool = key("Leave the prompt out of generated text.", default=False)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset: `dataset_configs/<id>.json`. Paths and globs are kept as given; `files` and `resolve` find them."""

    source: str
    path: tuple[str, ...] = key(
        "TFRecord files to train on: a path, a glob or a list of them. Also pairs `X.bin`, `X.idx` of Megatron-LM or "
        "GPT-NeoX, as `X.bin` or `X`.",
        parse=_parse_globs,
        type_text="string or list of strings",
    )
    eval_path: tuple[str, ...] = key(
        "TFRecord files of the validation set.",
        default=(),
        parse=_parse_globs,
        type_text="string or list of strings",
        null_is_default=True,
    )
    n_vocab: int = key("Size of the vocabulary the files were encoded with.", interval=AT_LEAST_ONE)
    tokenizer_path: str | None = key(
        "Tokenizer file or directory, or a hub name; needed only to encode or decode text.", default=None
    )
    tokenizer_is_pretrained: bool = key("`tokenizer_path` is a hub name such as `gpt2`.", default=False)
    eos_id: int | None = key("Id that ends a document; null: the tokenizer's.", default=None, interval=NON_NEGATIVE)
    padding_id: int | None = key("Id that pads; null: the tokenizer's.", default=None, interval=NON_NEGATIVE)
    lambada_tokens_path: str | None = key(
        "LAMBADA's passages, for that task: `lambada_test.jsonl`, or a `.json` of token ids.", default=None
    )

    def resolve(self, path: str) -> str:
        """`path` from the working directory if it exists there, else from this file's own directory if it exists there.

        What exists in neither place comes back unchanged, so that hub names and remote paths pass through.
        """
        if _is_remote(path):
            return path
        local = os.path.expanduser(path)
        beside = os.path.join(os.path.dirname(self.source), local)
        return next((found for found in (local, beside) if os.path.exists(found)), path)

    def glob(self, pattern: str) -> list[str]:
        """The data files that match, sorted: in the working directory, or where none does, beside this file.

        A pattern that matches nothing may name pairs of files `X.bin`, `X.idx` without their endings. Index files
        (`*.index`) are no data files. Only remote patterns import TensorFlow.

        Raises:
            InputError: a remote place cannot be read.
        """
        if _is_remote(pattern):
            import tensorflow as tf  # type: ignore[import-untyped,unused-ignore]

            try:
                found = tf.io.gfile.glob(pattern) or tf.io.gfile.glob(f"{pattern}.bin")
            except tf.errors.OpError as error:  # no network, no such bucket, no right to read it
                why = str(error.message).partition("\n")[0]
                raise InputError(
                    f"{self.source}: {pattern}: cannot be read ({why}); name files that can, or bring them here"
                ) from error
        else:
            local = os.path.expanduser(pattern)
            beside = os.path.join(glob.escape(os.path.dirname(self.source)), local)
            for name in (local, beside, f"{local}.bin", f"{beside}.bin"):
                if found := glob.glob(name, recursive=True):
                    break
        return sorted(str(name) for name in found if not str(name).endswith(".index"))

    def files(self, which: str = "path") -> list[str]:
        """Every file of the globs under `which` (`path` or `eval_path`), sorted, each once.

        Raises:
            InputError: the key is empty, or one of its globs matches nothing or cannot be read.
        """
        patterns: tuple[str, ...] = getattr(self, which)
        if not patterns:
            remedy = "name the TFRecord files to read"
            if which == "eval_path":
                remedy = "name TFRecord files of held-out text, or set eval_steps = 0"
            _refuse(self.source, which, "", f"no files are given; {remedy}")
        found: set[str] = set()
        for pattern in patterns:
            matches = self.glob(pattern)
            if not matches:
                _refuse(
                    self.source, which, pattern, "matches no file, from the working directory or beside this file; "
                    "correct the path or create the files with data/create_tfrecords.py",
                )  # fmt: skip
            found.update(matches)
        return sorted(found)


@dataclass(frozen=True)
class DatasetUse:
    """One entry of `datasets`: a dataset, how its documents become sequences, and its share of the batch."""

    id: str
    stitch: int
    sampling_mode: str
    weight: float
    dataset: DatasetConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, in which proportions and order."""

    datasets: tuple[DatasetUse, ...] = key(
        "`[[id, stitch, sampling_mode, weight], ...]` or `[id, ...]`. An id names `dataset_configs/<id>.json` beside "
        "the model config, else in `configs/` of the working directory, else of this package. Stitch (>= 1): documents "
        "joined before a window is taken. Modes: "
        + ", ".join(f"`{mode}`" for mode in SAMPLING_MODES)
        + ". Weight (> 0): relative share of the batch. Left out or null: "
        + ", ".join(f"`{value}`" for value in DATASET_DEFAULTS)
        + ".",
        parse=_parse_datasets,
        type_text="list",
    )
    shuffle_input_filenames: bool = key(
        "Shuffle the records; false with `chunks`: read them in file order.", default=True
    )
    eos_id: int | None = key(
        "`eos_id` of the datasets whose own config gives none (published configs have it here).",
        default=None,
        interval=NON_NEGATIVE,
    )
    padding_id: int | None = key(
        "`padding_id` of the datasets whose own config gives none.", default=None, interval=NON_NEGATIVE
    )


@dataclass(frozen=True, kw_only=True)
class MlmConfig:
    """Masked language modelling (Devlin et al. 2018, arXiv:1810.04805)."""

    mlm_training: bool = key("Train on masked tokens, with attention in both directions.", default=False)
    mlm_mask_id: int | None = key(
        "Id of the mask token; required with `mlm_training`. Best one that the data does not use.",
        default=None,
        interval=NON_NEGATIVE,
    )
    mlm_cls_token_id: int | None = key(
        "Id put before every sequence and never masked; null: none.", default=None, interval=NON_NEGATIVE
    )
    mlm_mask_prob: float = key(
        "Probability that a token is chosen.", default=0.15, interval=Interval(low=0, high=1, open_low=True)
    )
    mlm_same_token_prob: float = key("Share of the chosen tokens left as they are.", default=0.10, interval=PROBABILITY)
    mlm_random_token_prob: float = key(
        "Share of the chosen tokens replaced by random ones.", default=0.10, interval=PROBABILITY
    )
    mlm_mask_ignore_ids: tuple[int, ...] = key(
        "Ids that are never chosen.", default=(), interval=NON_NEGATIVE, null_is_default=True
    )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The mesh of devices and how tensors are split over it."""

    mesh_shape: str = key(
        'Mesh dimensions and their sizes, such as `"x:4,y:2"`; empty: one device.',
        default="",
        parse=_parse_mesh_shape,
        type_text="string",
    )
    layout: str = key(
        'Tensor dimensions and the mesh dimensions that split them, such as `"batch:x,heads:y"`. Tensor dimensions: '
        + ", ".join(f"`{name}`" for name in TENSOR_DIMENSIONS)
        + ".",
        default="",
        parse=_parse_layout,
        type_text="string",
    )

    @property
    def shape(self) -> dict[str, int]:
        """Size of each mesh dimension, in the order given."""
        return {name: int(size) for name, size in _parse_pairs(self.mesh_shape, "mesh_shape")}

    @property
    def rules(self) -> dict[str, str]:
        """Mesh dimension that splits each tensor dimension, in the order given."""
        return dict(_parse_pairs(self.layout, "layout"))

    @property
    def size(self) -> int:
        """Devices in the mesh."""
        return math.prod(self.shape.values())


@dataclass(frozen=True)
class Config:
    """A checked model config with its datasets. `source` names the file in messages."""

    source: str
    model: ModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    data: DataConfig
    mlm: MlmConfig
    mesh: MeshConfig
    directory: Path | None = dataclasses.field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Every key with its effective value, flat and JSON-ready; `parse_config` reads it to an equal config."""
        flat: dict[str, Any] = {}
        for name, group in GROUPS.items():
            values = getattr(self, name)
            flat.update({item: _to_json(getattr(values, item)) for item in _keys(group)})
        flat["attention_types"] = _compact(self.model.attention_types)
        flat["datasets"] = [[use.id, use.stitch, use.sampling_mode, use.weight] for use in self.data.datasets]
        return flat


GROUPS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "training": TrainingConfig,
    "data": DataConfig,
    "mlm": MlmConfig,
    "mesh": MeshConfig,
}

ALIASES = {"activation_fn": "activation_function"}

# Keys of older GPT-Neo configs and common slips, each with what to do instead.
RETIRED_KEYS = {
    "dataset_ids": "remove it: the ids stand in datasets",
    "n_heads": "use n_head",
    "n_layers": "use n_layer",
    "d_model": "use n_embd",
    "causal": "remove it: attention is causal unless mlm_training is true",
    "use_tpu": "remove it: devices come from --gpu_ids",
    "gpu_ids": "remove it: devices come from --gpu_ids",
    "num_cores": "remove it: the number of devices comes from mesh_shape",
    "steps_per_checkpoint": "remove it: it comes from --steps_per_checkpoint",
    "encoder_path": "name the tokenizer in the dataset config, as tokenizer_path",
    "stop_at_token": "remove it: generation stops at the dataset's eos_id",
}


# ---------------------------------------------------------------------------------------------------------------------
# Declared but not built
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unbuilt:
    """A declared feature that no code implements yet; a config that uses it is refused, never half-obeyed.

    Attributes:
        key: `group.key`.
        feature: what is missing, as the subject of a sentence.
        example: flat keys of a config that uses it.
    """

    key: str
    feature: str
    example: Mapping[str, Any]


# Building a feature ends with removing its entry here.
NOT_BUILT: tuple[Unbuilt, ...] = ()


def _check_built(config: Config) -> None:
    """Raises InputError for the first feature in use that is not built."""
    for unbuilt in NOT_BUILT:
        group, name = unbuilt.key.split(".")
        value = getattr(getattr(config, group), name)
        if value:
            default = _keys(GROUPS[group])[name].default_text()
            _refuse(
                config.source,
                name,
                _to_json(value),
                f"{unbuilt.feature} is not built yet; leave the key out (default: {default})",
            )


# ---------------------------------------------------------------------------------------------------------------------
# Reading values
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Declared:
    """A key as declared: its checks, its type and its constant default (`dataclasses.MISSING`: none)."""

    key: Key
    hint: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING and self.key.derive is None

    def default_text(self) -> str:
        if self.required:
            return "required"
        return self.key.default_text or f"`{json.dumps(_to_json(self.default))}`"


_declared_keys: dict[type[Any], dict[str, _Declared]] = {}


def _keys(group: type[Any]) -> dict[str, _Declared]:
    """The keys declared by a dataclass, by name."""
    if group not in _declared_keys:
        hints = get_type_hints(group)
        _declared_keys[group] = {
            item.name: _Declared(item.metadata["key"], hints[item.name], item.default)
            for item in dataclasses.fields(group)
            if "key" in item.metadata
        }
    return _declared_keys[group]


def _optional(hint: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); X -> (X, False)."""
    args = get_args(hint)
    if type(None) in args:
        return next(arg for arg in args if arg is not type(None)), True
    return hint, False


def _convert(hint: Any, value: Any, declared: Key) -> Any:
    """The JSON `value` as a `hint`, checked against the declaration.

    Raises:
        _Refused: wrong type, out of range or not among the choices.
    """
    if declared.parse is not None:
        return declared.parse(value)
    hint, nullable = _optional(hint)
    if value is None and nullable:
        return None
    if get_origin(hint) is tuple:
        if not isinstance(value, LIST):
            raise _Refused("must be a list")
        return tuple(_element("element", get_args(hint)[0], item, declared) for item in value)
    number = _SCALARS[hint](value, declared)
    if declared.interval is not None and number not in declared.interval:
        raise _Refused(f"must be {declared.interval}{' or null' if nullable else ''}")
    if declared.choices and number not in declared.choices:
        raise _one_of(number, declared.choices, "name")
    if hint is str and number == "":
        if nullable:
            return None
        raise _Refused("must not be empty")
    return number


def _to_bool(value: Any, declared: Key) -> bool:
    if not isinstance(value, bool):
        raise _Refused("must be true or false")
    return value


def _to_int(value: Any, declared: Key) -> int:
    integral = isinstance(value, int) and not isinstance(value, bool)
    if not integral and not (isinstance(value, float) and math.isfinite(value) and value.is_integer()):
        raise _Refused("must be an integer")
    if not -MAX_INT - 1 <= value <= MAX_INT:
        raise _Refused(f"must be an integer of at most 64 bits (up to {MAX_INT})")
    return int(value)


def _to_float(value: Any, declared: Key) -> float:
    if declared.numeric_text and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Refused("must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Refused("must be a finite number")
    return number


def _to_str(value: Any, declared: Key) -> str:
    if not isinstance(value, str):
        raise _Refused("must be a string")
    return value


_SCALARS: dict[Any, Callable[[Any, Key], Any]] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}


def _read(
    keys: Mapping[str, _Declared], values: Mapping[str, Any], source: str, written: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Every key's checked value, defaults filled in. Raises InputError for the first that cannot work.

    written: keys that the file has under another name, which the error then gives.
    """
    written = written or {}
    missing = [name for name, declared in keys.items() if declared.required and name not in values]
    if missing:
        _refuse(source, missing[0], None, f"required but missing; add {', '.join(missing)}")
    read: dict[str, Any] = {}
    for name, declared in keys.items():
        if name not in values or (values[name] is None and declared.key.null_is_default):
            read[name] = declared.default
            continue
        try:
            read[name] = _convert(declared.hint, values[name], declared.key)
        except _Refused as refused:
            _refuse(source, written.get(name, name), values[name], str(refused))
    for name, declared in keys.items():
        if read[name] is dataclasses.MISSING:
            assert declared.key.derive is not None
            read[name] = declared.key.derive(read)
    return read


Group = TypeVar("Group")


def _build(group: type[Group], values: Mapping[str, Any]) -> Group:
    """The part of `values` that belongs to one dataclass."""
    return group(**{name: values[name] for name in _keys(group)})


# ---------------------------------------------------------------------------------------------------------------------
# Checks across keys
# ---------------------------------------------------------------------------------------------------------------------


def _check_model(source: str, model: ModelConfig) -> None:
    """Combinations of architecture keys that cannot work."""
    refuse = functools.partial(_refuse, source)
    if model.n_embd % model.n_head:
        refuse("n_embd", model.n_embd, f"not divisible by n_head = {model.n_head}; make n_embd a multiple of n_head")
    if len(model.attention_types) != model.n_layer:
        types = _compact(model.attention_types)
        refuse(
            "attention_types", types, f"describes {len(model.attention_types)} layers but n_layer = {model.n_layer}; "
            "make the two equal",
        )  # fmt: skip
    if model.n_positions != model.n_ctx:
        refuse("n_positions", model.n_positions, f"must equal n_ctx = {model.n_ctx}; set it so or leave it out")
    if model.axial_pos_emb is not None and math.prod(model.axial_pos_emb) != model.n_ctx:
        product = math.prod(model.axial_pos_emb)
        axes = list(model.axial_pos_emb)
        refuse("axial_pos_emb", axes, f"the product is {product}; choose two sizes with product n_ctx = {model.n_ctx}")
    if model.rotary_emb and model.axial_pos_emb is not None:
        refuse("rotary_emb", True, "cannot be combined with axial_pos_emb; choose one position embedding")
    if model.rotary_emb and model.head_size % 2:
        refuse("rotary_emb", True, f"needs an even head size, but n_embd / n_head = {model.head_size}; change n_head")
    if model.scalenorm and model.rezero:
        refuse("scalenorm", True, "cannot be combined with rezero, which replaces the norms; choose one")
    _check_moe(source, model)


def _check_moe(source: str, model: ModelConfig) -> None:
    """The layers listed for mixtures of experts exist, once each, and agree with parameter sharing."""
    listed = list(model.moe_layers)
    outside = [layer for layer in listed if layer >= model.n_layer]
    if outside:
        problem = f"layer {outside[0]} does not exist; use layers from 0 to {model.n_layer - 1}"
        _refuse(source, "moe_layers", listed, problem)
    if len(set(listed)) != len(listed):
        _refuse(source, "moe_layers", listed, "names a layer twice; list each once")
    if model.share_parameters and listed and len(listed) != model.n_layer:
        problem = "with share_parameters all layers are the same; list every layer or none"
        _refuse(source, "moe_layers", listed, problem)


def _check_mlm(source: str, mlm: MlmConfig, n_vocab: int) -> None:
    """Masked language modelling has a mask token, its ids are in the vocabulary, and its shares add up."""
    if mlm.mlm_training and mlm.mlm_mask_id is None:
        _refuse(source, "mlm_mask_id", None, "required with mlm_training; give the id of the mask token")
    for name in ("mlm_mask_id", "mlm_cls_token_id", "mlm_mask_ignore_ids"):
        value = getattr(mlm, name)
        ids = value if isinstance(value, tuple) else () if value is None else (value,)
        if any(number >= n_vocab for number in ids):
            _refuse(source, name, _to_json(value), f"outside the vocabulary; ids must be less than n_vocab = {n_vocab}")
    if mlm.mlm_training and mlm.mlm_cls_token_id == mlm.mlm_mask_id:
        _refuse(source, "mlm_cls_token_id", mlm.mlm_cls_token_id, "is mlm_mask_id too; give each an id of its own")
    if mlm.mlm_training and len({mlm.mlm_mask_id, *mlm.mlm_mask_ignore_ids}) >= n_vocab:
        problem = "with mlm_mask_id these are all ids of the vocabulary; leave some to be learned"
        _refuse(source, "mlm_mask_ignore_ids", _to_json(mlm.mlm_mask_ignore_ids), problem)
    share = mlm.mlm_same_token_prob + mlm.mlm_random_token_prob
    if share > 1:
        problem = f"with mlm_same_token_prob = {mlm.mlm_same_token_prob} the sum exceeds 1; lower one of the two"
        _refuse(source, "mlm_random_token_prob", mlm.mlm_random_token_prob, problem)


def _check_mesh(source: str, mesh: MeshConfig) -> None:
    """Every mesh dimension that the layout names is in the mesh shape."""
    for tensor_dimension, mesh_dimension in mesh.rules.items():
        if mesh_dimension not in mesh.shape:
            shape = f"mesh_shape = {_show(mesh.mesh_shape)}"
            near = difflib.get_close_matches(mesh_dimension, mesh.shape, n=1, cutoff=0) or [""]
            correct = ((name, near[0] if axis not in mesh.shape else axis) for name, axis in mesh.rules.items())
            layout = ",".join(f"{name}:{axis}" for name, axis in correct if axis)
            _refuse(
                source, "layout", mesh.layout, f"splits {tensor_dimension} over mesh dimension {mesh_dimension}, which "
                f"{shape} does not have; add {mesh_dimension} to mesh_shape or correct the layout, to {_show(layout)}",
            )  # fmt: skip


def _check_datasets(config: Config) -> None:
    """The model's vocabulary covers each dataset's, and its special ids."""
    n_vocab = config.model.n_vocab
    for use in config.data.datasets:
        dataset = use.dataset
        if n_vocab < dataset.n_vocab:
            file = _display(dataset.source)
            problem = f"less than n_vocab = {dataset.n_vocab} of {file}; raise it to at least {dataset.n_vocab}"
            _refuse(config.source, "n_vocab", n_vocab, problem)
        # padding_id may lie outside the vocabulary: GPT-2's is 50257 of 50257, and padding never reaches the model.
        if dataset.eos_id is not None and dataset.eos_id >= dataset.n_vocab:
            source = config.source if dataset.eos_id == config.data.eos_id else dataset.source
            problem = f"outside the vocabulary; it must be less than the dataset's n_vocab = {dataset.n_vocab}"
            _refuse(source, "eos_id", dataset.eos_id, problem)


def _check(config: Config) -> None:
    """Every check that needs more than one key."""
    _check_model(config.source, config.model)
    if (config.training.objective == "masked") != config.mlm.mlm_training:
        problem = f"with mlm_training = {_show(config.mlm.mlm_training)}; leave objective out, or change one of the two"
        _refuse(config.source, "objective", config.training.objective, problem)
    _check_mlm(config.source, config.mlm, config.model.n_vocab)
    _check_mesh(config.source, config.mesh)
    _check_datasets(config)
    steps = config.training.predict_max_steps
    if steps is not None and steps >= config.model.n_ctx:
        problem = f"leaves no room for a prompt; it must be less than n_ctx = {config.model.n_ctx}"
        _refuse(config.source, "predict_max_steps", steps, problem)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def config_folders() -> list[Path]:
    """Where a config is looked up by its name: `configs/` of the working directory, then the one of this package."""
    own = Path.cwd() / "configs"
    return [own, CONFIG_DIRECTORY] if own.is_dir() and own != CONFIG_DIRECTORY else [CONFIG_DIRECTORY]


def load_config(name_or_path: str, *, allow_unbuilt: bool = False) -> Config:
    """Reads and checks a model config.

    Args:
        name_or_path: a path ending in `.json`, or the name of `configs/<name>.json` in one of the `config_folders`.
        allow_unbuilt: accept features that are declared but not built, for listing and estimates.

    Raises:
        InputError: the file is missing, is not JSON, or holds something that cannot work.
    """
    path = Path(name_or_path)
    if not name_or_path.endswith(".json"):
        places = [folder / f"{name_or_path}.json" for folder in config_folders()]
        path = next(filter(os.path.isfile, places), places[0])
    if not os.path.isfile(path):
        known = sorted({name for folder in config_folders() for name in _names(folder)})
        hint = _nearest(path.stem, known) or f"; shipped configs: {', '.join(_names(CONFIG_DIRECTORY))}"
        raise InputError(f"{_display(str(path))}: no such model config; give a path ending in .json or a name{hint}")
    return parse_config(_read_json(path), str(path), path.resolve().parent, allow_unbuilt=allow_unbuilt)


def parse_config(
    values: Mapping[str, Any], source: str, directory: Path | None = None, *, allow_unbuilt: bool = False
) -> Config:
    """Checks the flat `values` of a model config.

    Args:
        values: the parsed JSON object.
        source: the file it came from, for messages.
        directory: where `dataset_configs/` is looked for before the `config_folders`.
        allow_unbuilt: accept features that are declared but not built.

    Raises:
        InputError: something in it cannot work.
    """
    keys = {name: declared for group in GROUPS.values() for name, declared in _keys(group).items()}
    renamed = _known(_without_aliases(values, source), keys, source, _keys(DatasetConfig), "dataset config")
    read = _read(keys, renamed, source, {name: alias for alias, name in ALIASES.items() if alias in values})
    read["datasets"] = tuple(_resolve_dataset(use, read, source, directory) for use in read["datasets"])
    groups = {name: _build(group, read) for name, group in GROUPS.items()}
    config = Config(source=source, directory=directory, **groups)
    _check(config)
    if not allow_unbuilt:
        _check_built(config)
    return config


def parse_model(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The architecture alone, from its flat keys.

    Raises:
        InputError: something in it cannot work.
    """
    keys = _keys(ModelConfig)
    model = _build(ModelConfig, _read(keys, _known(values, keys, source, (), ""), source))
    _check_model(source, model)
    return model


def replace(config: Config, *, allow_unbuilt: bool = False, **flat_keys: Any) -> Config:
    """`config` with some keys changed, checked again.

    A key that stands at its derived default follows what it is derived from: changing `train_steps` moves
    `lr_decay_end` along, unless that was set apart.
    """
    values = config.to_json()
    read = {name: value for group in GROUPS for name, value in vars(getattr(config, group)).items()}
    for group in GROUPS.values():
        for name, declared in _keys(group).items():
            if declared.key.derive is not None and read[name] == declared.key.derive(read):
                del values[name]
    values.update(flat_keys)
    return parse_config(values, config.source, config.directory, allow_unbuilt=allow_unbuilt)


def generation_settings(
    values: Mapping[str, Any], source: str, base: GenerationSettings | None = None
) -> GenerationSettings:
    """Settings of text generation, checked.

    Args:
        values: keys of `GenerationSettings`, as JSON has them.
        source: who gave them, for messages.
        base: the settings of the keys not given; default: each key's own default.

    Raises:
        InputError: an unknown key, or a value that cannot work.
    """
    keys = _keys(GenerationSettings)
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in keys:
            _refuse(source, name, value, f"unknown key{_nearest(str(name), keys) or '; remove it'}")
        try:
            read[name] = _convert(keys[name].hint, value, keys[name].key)
        except _Refused as refused:
            _refuse(source, name, value, str(refused))
    settings = dataclasses.replace(base or _DEFAULT_GENERATION, **read)
    if clash := _generation_clash(settings):
        _refuse(source, clash[0], _to_json(getattr(settings, clash[0])), clash[1])
    return settings


def _without_aliases(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`values` with aliases under their declared names."""
    if not isinstance(values, Mapping):
        raise InputError(f"{_display(source)}: must hold one JSON object of keys and values, not {_show(values)}")
    renamed = dict(values)
    for alias, name in ALIASES.items():
        if alias in renamed:
            if name in renamed:
                _refuse(source, alias, renamed[alias], f"another name of {name}, which is given too; remove one")
            renamed[name] = renamed.pop(alias)
    return renamed


def _known(
    values: Mapping[str, Any], keys: Iterable[str], source: str, elsewhere: Iterable[str], elsewhere_name: str
) -> Mapping[str, Any]:
    """`values`, once every key is known to be among `keys`; `elsewhere` are the keys of the other kind of config."""
    keys, elsewhere = list(keys), list(elsewhere)
    for name, value in values.items():
        if name in keys:
            continue
        if name in elsewhere:
            remedy = f"; it belongs in the {elsewhere_name}, move it there"
        elif name in RETIRED_KEYS:
            remedy = f"; {RETIRED_KEYS[name]}"
        else:
            remedy = _nearest(str(name), [*keys, *ALIASES]) or "; remove it: docs/parameters.md lists the keys"
        _refuse(source, name, value, f"unknown key{remedy}")
    return values


def _resolve_dataset(
    use: tuple[str, int, str, float], values: Mapping[str, Any], source: str, directory: Path | None
) -> DatasetUse:
    """An entry of `datasets` with its dataset config read, found beside the model config or in the `config_folders`."""
    name = use[0]
    roots = [root / "dataset_configs" for root in (directory, *config_folders()) if root is not None]
    places = list(dict.fromkeys(root.resolve() for root in roots))
    for place in places:
        if name in _names(place):
            dataset = _load_dataset(place / f"{name}.json")
            return DatasetUse(*use, dataset=_fill_ids(dataset, values, source))
    known = sorted({known for place in places for known in _names(place)})
    looked = " and ".join(_display(str(place)) for place in places)
    problem = f"no dataset config {_show(f'{name}.json')} in {looked}; create it or use one of the ids that exist"
    _refuse(source, "datasets", name, f"{problem} ({', '.join(known) or 'none'}){_nearest(name, known)}")


def _load_dataset(path: Path) -> DatasetConfig:
    """Reads and checks one dataset config."""
    source = str(path)
    values = _read_json(path)
    if not isinstance(values, Mapping):
        raise InputError(f"{_display(source)}: must hold one JSON object of keys and values, not {_show(values)}")
    keys = _keys(DatasetConfig)
    model_keys = [name for group in GROUPS.values() for name in _keys(group)]
    read = _read(keys, _known(values, keys, source, model_keys, "model config"), source)
    if not read["path"]:
        _refuse(source, "path", values["path"], "must name at least one file or glob")
    if read["tokenizer_is_pretrained"] and read["tokenizer_path"] is None:
        _refuse(source, "tokenizer_is_pretrained", True, 'needs tokenizer_path; give a hub name such as "gpt2"')
    return DatasetConfig(source=source, **read)


def _fill_ids(dataset: DatasetConfig, values: Mapping[str, Any], source: str) -> DatasetConfig:
    """`dataset` with the special ids of the model config where it gives none. Both giving different ones is refused."""
    filled = {}
    for name in ("eos_id", "padding_id"):
        own, outer = getattr(dataset, name), values[name]
        if own is not None and outer is not None and own != outer:
            file = _display(dataset.source)
            _refuse(source, name, outer, f"{file} has {name} = {own}; make the two equal or remove it here")
        filled[name] = outer if own is None else own
    return dataclasses.replace(dataset, **filled)


def _read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        InputError: unreadable, not UTF-8, not JSON (with line and column), or a key given twice.
    """
    source = _display(str(path))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                _refuse(source, name, value, f"given twice (first {_show(values[name])}); remove one")
            values[name] = value
        return values

    def constant(name: str) -> NoReturn:
        raise InputError(f"{source}: {name} is not JSON; write a finite number")

    def integer(digits: str) -> int:
        if len(digits) > 400:  # longer than any float, and past 4300 int() itself refuses
            raise InputError(f"{source}: {digits[:20]}... has {len(digits)} digits; write a smaller number")
        return int(digits)

    try:
        text = path.read_text("utf-8-sig")
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"{source}: not valid JSON at {place}: {error.msg}; correct it there") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}; check the path and its permissions") from None
    except RecursionError:
        raise InputError(f"{source}: not a config: brackets are nested too deeply; remove them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text (byte {error.start}); write JSON as UTF-8 text") from None


def _names(directory: Path) -> list[str]:
    """The configs in a directory, without `.json`, sorted."""
    return sorted(path.stem for path in directory.glob("*.json")) if directory.is_dir() else []


def _is_remote(path: str) -> bool:
    return "://" in path


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def _refuse(source: str, name: str, value: Any, problem: str) -> NoReturn:
    """Raises the one-line InputError of a key."""
    shown = _show(name).strip('"')
    given = "" if value is None else f" = {_show(value)}"
    raise InputError(f"{_display(source)}: {shown}{given}: {problem}")


def _show(value: Any) -> str:
    """A value as JSON on one line, shortened."""
    try:
        text = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(repr(type(value)))
    return text if len(text) <= 100 else f"{text[:97]}..."


def _display(source: str) -> str:
    """A path on one line, and relative where it lies under the working directory."""
    if os.path.isabs(source) and not os.path.relpath(source).startswith(".."):
        source = os.path.relpath(source)
    return source if source.isprintable() else ascii(source)[1:-1]


def _to_json(value: Any) -> Any:
    """A field's value as JSON."""
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _compact(types: tuple[str, ...]) -> list[list[Any]]:
    """Attention types as the shortest list that, repeated, gives them: the inverse of `_parse_attention_types`."""
    size = len(types)
    period = next(n for n in range(1, size + 1) if size % n == 0 and types[:n] * (size // n) == types)
    return [[list(types[:period]), size // period]]


def _type_text(declared: _Declared) -> str:
    """A key's type for the reference page."""
    if declared.key.type_text is not None:
        return declared.key.type_text
    words = {bool: "true or false", int: "integer", float: "number", str: "string"}
    hint, nullable = _optional(declared.hint)
    if get_origin(hint) is tuple:
        return f"list of {words[get_args(hint)[0]]}s"
    return words[hint] + (" or null" if nullable else "")


def _range_text(declared: _Declared) -> str:
    """A key's range for the reference page."""
    if declared.key.choices == ACTIVATIONS:
        return "see below"
    return ", ".join(f"`{choice}`" for choice in declared.key.choices) or str(declared.key.interval or "")


def reference_page() -> str:
    """The reference of every key, as markdown: the text of `docs/parameters.md`."""
    lines = [
        "# Parameters",
        "",
        "Generated by `python config.py > docs/parameters.md`; edit the declarations in `config.py`, not this page.",
        "",
        "A model config is one flat JSON object of the keys below. Unknown keys are refused.",
    ]
    titles = {
        "Model": ModelConfig, "Mixture of experts (`moe_params`)": MoeParams, "Optimizer": OptimizerConfig,
        "Training": TrainingConfig, "Generation (`generation`)": GenerationSettings,
        "Data": DataConfig, "Masked language modelling": MlmConfig, "Mesh": MeshConfig,
        "Dataset config (`dataset_configs/<id>.json`)": DatasetConfig,
    }  # fmt: skip
    for title, group in titles.items():
        lines += ["", f"## {title}", "", "| key | type | default | range | meaning |", "|---|---|---|---|---|"]
        for name, declared in _keys(group).items():
            cells = (
                f"`{name}`",
                _type_text(declared),
                declared.default_text(),
                _range_text(declared),
                declared.key.doc,
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Relative paths are looked up from the working directory, then from the dataset config's directory."]
    lines += ["", "## Activation functions", "", ", ".join(f"`{name}`" for name in ACTIVATIONS)]
    if NOT_BUILT:
        lines += ["", "## Not built yet", "", "A config that uses one of these is refused.", ""]
        lines += [f"- `{unbuilt.key.split('.')[1]}`: {unbuilt.feature}" for unbuilt in NOT_BUILT]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference_page(), end="")
