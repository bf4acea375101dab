"""`rope_scaling`: rotary positions beyond the context that a model was first trained with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge
from pydantic import model_validator

from gpt_mesh.config.fields import NUMBER, Count, Flag, Group, NonNegative, Positive, key
from gpt_mesh.config.messages import Refused

RopeType = Literal["linear", "dynamic", "llama3", "yarn"]
ROPE_TYPES: tuple[RopeType, ...] = get_args(RopeType)
_CONTEXT = "original_max_position_embeddings"
_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
# The keys that each type has beside `factor`, and those of them that it requires.
_KEYS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (_CONTEXT,),
    "llama3": (_CONTEXT, "low_freq_factor", "high_freq_factor"),
    "yarn": (_CONTEXT, *_YARN),
}
_REQUIRED: dict[str, tuple[str, ...]] = {"llama3": _KEYS["llama3"]}


def _key(doc: str, **about: Any) -> Any:
    """A setting that changes the function, and with which weights trained without it may begin a new run."""
    return key(doc, touches="function", adaptable=True, **about)


class RopeScaling(Group):
    """Scaling of the frequencies of rotary positions, with the keys, defaults and formulas of Hugging Face."""

    example: ClassVar[str] = '{"rope_type": "linear", "factor": 2.0}'

    rope_type: RopeType = _key(
        "`linear`: all frequencies divided by `factor` (arXiv:2306.15595). `dynamic`: a larger base, as NTK-aware "
        "scaling has it for a sequence of `n_ctx` tokens; every pass uses that length, so that decoding agrees with "
        "scoring. `llama3`: low frequencies divided by `factor`, as in Llama 3.1. `yarn`: the same with a linear ramp, "
        "and larger logits (arXiv:2309.00071)."
    )
    factor: Annotated[float, Ge(1), NUMBER] = _key("How many times longer the context becomes.")
    original_max_position_embeddings: Count | None = _key(
        "The context before scaling; required by `llama3`. null: `n_ctx`, with which `dynamic` changes nothing.",
        default=None,
        unit="tokens",
    )
    low_freq_factor: Positive | None = _key(
        "`llama3`: frequencies with fewer than this many periods in the original context are divided by `factor`.",
        default=None,
    )
    high_freq_factor: Positive | None = _key(
        "`llama3`: frequencies with more than this many periods there stay as they are.", default=None
    )
    beta_fast: Positive = _key(
        "`yarn`: frequencies with more than this many periods in the original context stay as they are.",
        default=32.0,
        null_is_default=True,
    )
    beta_slow: Positive = _key(
        "`yarn`: frequencies with fewer than this many periods there are divided by `factor`.",
        default=1.0,
        null_is_default=True,
    )
    attention_factor: Positive | None = _key(
        "`yarn`: what queries and keys are multiplied by; null: 0.1 x ln(`factor`) + 1, or with `mscale` and "
        "`mscale_all_dim` the quotient of 0.1 x `mscale` x ln(`factor`) + 1 and the same of `mscale_all_dim`.",
        default=None,
    )
    mscale: NonNegative | None = _key("`yarn`: see `attention_factor`; 0 counts as null.", default=None)
    mscale_all_dim: NonNegative | None = _key("`yarn`: see `attention_factor`; 0 counts as null.", default=None)
    truncate: Flag = _key("`yarn`: round the ends of the ramp to whole features.", default=True)

    @model_validator(mode="after")
    def _check(self) -> RopeScaling:
        """Refuse keys of another type, and a type without its keys."""
        for name, field in type(self).model_fields.items():
            known = name in ("rope_type", "factor", *_KEYS[self.rope_type])
            if not known and getattr(self, name) != field.default:
                raise Refused(f"rope_type {self.rope_type} has no {name}; remove it")
            if name in _REQUIRED.get(self.rope_type, ()) and getattr(self, name) is None:
                raise Refused(f"rope_type {self.rope_type} needs {name}; add it")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise Refused(f"low_freq_factor = {low} must be less than high_freq_factor = {high}")
        if self.beta_slow > self.beta_fast:
            raise Refused(f"beta_slow = {self.beta_slow} must not be more than beta_fast = {self.beta_fast}")
        return self
