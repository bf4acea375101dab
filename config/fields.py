"""How a key is declared: its type with its range, what it means, and what a change of it touches.

A group of keys is a frozen pydantic model, and each key is one of its fields, declared once:

    n_ctx: Annotated[int, Ge(2), WHOLE] = key("Context length.", unit="tokens", touches="shapes")

Parsing, checking, writing, the reference page and the JSON Schema all read that declaration.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gpt_mesh.config.messages import Refused, show

MAX_INT = 2**63 - 1

# What a change of a key touches: the shapes or the number of the weights, or the function that they compute.
Touches = Literal["shapes", "function"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the type and the default of a field do not say.

    Attributes:
        doc: one or two sentences for the reference page.
        unit: what a number counts.
        touches: what a change of the key changes of a trained model; None: nothing, or its training alone.
        adaptable: weights trained with another value may begin a new run (`--init_from`), which the log then says.
        used: whether the key has an effect, from the values of all keys by name; None: always.
        derive: the default, from the values of all keys by name, where it is not a constant.
        default_text: how the reference page shows a derived default.
        type_text: how the reference page shows a type that has no short name.
        null_is_default: null means the same as leaving the key out.
    """

    doc: str
    unit: str = ""
    touches: Touches | None = None
    adaptable: bool = False
    used: Callable[[Mapping[str, Any]], bool] | None = None
    derive: Callable[[Mapping[str, Any]], Any] | None = None
    default_text: str | None = None
    type_text: str | None = None
    null_is_default: bool = False

    def __call__(self, schema: dict[str, Any]) -> None:
        """Completes the key's JSON Schema; pydantic calls it."""
        schema["description"] = self.doc + (f" Unit: {self.unit}." if self.unit else "")
        if self.derive is not None:
            del schema["default"]
        if self.null_is_default:
            moved = {name: schema.pop(name) for name in list(schema) if name not in ("default", "description")}
            schema["anyOf"] = [*moved.pop("anyOf", [moved]), {"type": "null"}]


def key(doc: str, *, default: Any = PydanticUndefined, **about: Any) -> Any:
    """A field that is a key of a config: required without a `default`. `about` are the attributes of `Key`."""
    declared = Key(doc=doc, **about)
    if declared.derive is not None:
        default = None  # until the other keys are known
    return Field(default=default, json_schema_extra=declared)


def same_as(other: str) -> dict[str, Any]:
    """The attributes of a key whose default is the value of another key."""
    return {"derive": lambda values: values[other], "default_text": f"`{other}`", "null_is_default": True}


class Group(BaseModel):
    """A group of keys: a frozen model that refuses keys it does not have.

    `ModelConfig(n_layer=4, …)` makes one in Python. Defaults that follow from other keys of the group are filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def __init__(self, /, **values: Any) -> None:
        """
        Raises:
            InputError: a key is unknown or missing, or its value cannot work.
        """
        from gpt_mesh.config.making import made  # which reads declarations of groups

        made(self, values, super().__init__)

    # Parsing, which words refusals itself, does not go through __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, values: Any) -> Any:
        """Drop the nulls that stand for a default."""
        if not isinstance(values, Mapping):
            return values
        declared = keys(cls)
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in declared or not declared[name].null_is_default
        }


@functools.cache
def keys(group: type[BaseModel]) -> dict[str, Key]:
    """The keys that a group declares, by name."""
    return {name: key_of(field) for name, field in group.model_fields.items() if is_key(field)}


def is_key(field: FieldInfo) -> bool:
    """Whether a field is a key, and not something that parsing adds."""
    return isinstance(field.json_schema_extra, Key)


def key_of(field: FieldInfo) -> Key:
    """The declaration of a field that is a key."""
    assert isinstance(field.json_schema_extra, Key)
    return field.json_schema_extra


def required(group: type[BaseModel]) -> list[str]:
    """The keys that have no default."""
    return [name for name in keys(group) if group.model_fields[name].is_required()]


# ---------------------------------------------------------------------------------------------------------------------
# Types. Where JSON and Python disagree about numbers, JSON wins: true is no number, and 1e3 is an integer.
# ---------------------------------------------------------------------------------------------------------------------


def whole(value: Any) -> int | float:
    """The value, once it is known to be an integer: `1e3` is one.

    Raises:
        Refused: not an integer, or one of more than 64 bits.
    """
    integral = isinstance(value, int) and not isinstance(value, bool)
    if not integral and not (isinstance(value, float) and math.isfinite(value) and value.is_integer()):
        raise Refused("must be an integer")
    if not -MAX_INT - 1 <= value <= MAX_INT:
        raise Refused(f"must be an integer of at most 64 bits (up to {MAX_INT})")
    assert isinstance(value, (int, float))
    return value


def small(value: int) -> int:
    """The size of a dimension, once it is known to have at most 31 bits, as ids and positions have.

    Raises:
        Refused: it has more.
    """
    if value >= 2**31:
        raise Refused(f"must be at most {2**31 - 1}")
    return value


def number(value: Any) -> int | float:
    """The value, once it is known to be a finite number.

    Raises:
        Refused: not a number, or not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused("must be a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise Refused("must be a finite number")
    return value


def count(what: str, value: Any) -> int:
    """An integer of at least 1 inside a list, named in the refusal.

    Raises:
        Refused: something else.
    """
    try:
        found = int(whole(value))
        if found < 1:
            raise Refused("must be >= 1")
    except Refused as refused:
        raise Refused(f"the {what} {show(value)} cannot work: {refused}") from None
    return found


def _empty_is_null(value: Any) -> Any:
    return None if value == "" else value


WHOLE = BeforeValidator(whole)
NUMBER = BeforeValidator(number)
Count = Annotated[int, Ge(1), WHOLE]
Natural = Annotated[int, Ge(0), WHOLE]
SMALL = AfterValidator(small)
Size = Annotated[int, Ge(1), WHOLE, SMALL]
Positive = Annotated[float, Gt(0), NUMBER]
NonNegative = Annotated[float, Ge(0), NUMBER]
Probability = Annotated[float, Interval(ge=0, le=1), NUMBER]
Rate = Annotated[float, Interval(ge=0, lt=1), NUMBER]
# Above the smallest number that float32 holds with full precision: smaller ones may round to 0.
NORMAL = Ge(1.2e-38)
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), MinLen(1)]
OptionalText = Annotated[Annotated[str, Strict()] | None, BeforeValidator(_empty_is_null)]
