"""What pydantic refuses, as the one line that a user reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gpt_mesh.config.fields import Group, keys, required
from gpt_mesh.config.messages import Refused, nearest, one_of, refuse, show

AnyGroup = TypeVar("AnyGroup", bound=Group)

# Reasons that depend on nothing but the type of pydantic's error.
_REASONS = {
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_unicode": "must be text that UTF-8 can write; it has half of a surrogate pair",
    "tuple_type": "must be a list",
}


def read(group: type[AnyGroup], values: Mapping[str, Any], source: str, written: Mapping[str, str]) -> AnyGroup:
    """A group of checked values.

    Args:
        values: by key, all of them keys of the group.
        source: the file they came from, for messages.
        written: keys that the file has under another name, which a message then gives.

    Raises:
        InputError: for the first key whose value cannot work.
    """
    try:
        return group.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    refuse(source, written.get(name, name), values.get(name), reason(group, first))


def check_complete(groups: Iterable[type[Group]], values: Mapping[str, Any], source: str) -> None:
    """Raises InputError naming every required key that `values` lacks."""
    missing = [name for group in groups for name in required(group) if name not in values]
    if missing:
        refuse(source, missing[0], None, f"required but missing; add {', '.join(missing)}")


def reason(group: type[Group], error: ErrorDetails, *, named: bool = True) -> str:
    """Why a value of a group was refused, and what would work. `named`: say which element of a list or an object."""
    if error["type"] == "missing":
        return f"{error['loc'][-1]} is missing in it; add it"
    found: Any = group
    place: int | str = ""
    for place in error["loc"]:
        if isinstance(place, str) and error["type"] == "extra_forbidden" and place not in _bare(found).model_fields:
            return f"unknown key {show(place)} in it{nearest(place, keys(_bare(found))) or '; remove it'}"
        if isinstance(place, int):
            found = get_args(_bare(found))[0]
        else:
            found = _bare(found).model_fields[place].rebuild_annotation()
    because = _because(found, error)
    if len(error["loc"]) == 1 or not named:
        return because
    return f"the {'element' if isinstance(place, int) else place} {show(error['input'])} cannot work: {because}"


def _because(annotation: Any, error: ErrorDetails) -> str:
    """The reason without the place: the value was to be of the type `annotation`."""
    kind, value = error["type"], error["input"]
    if kind == "value_error" and isinstance(refused := error["ctx"]["error"], Refused):
        return str(refused)
    if kind == "literal_error":
        return str(one_of(value, choices(annotation), "name")) if isinstance(value, str) else "must be a string"
    if kind.startswith(("greater_than", "less_than")):
        return f"must be {bounds(annotation)}{' or null' if is_nullable(annotation) else ''}"
    if kind == "model_type":
        return f"must be an object such as {_bare(annotation).example}{' or null' if is_nullable(annotation) else ''}"
    return _REASONS[kind]


def _bare(annotation: Any) -> Any:
    """A type without its metadata, and without null."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    others = [part for part in get_args(annotation) if part is not type(None)]
    return others[0] if type(None) in get_args(annotation) and len(others) == 1 else annotation


def _parts(annotation: Any) -> Iterable[Any]:
    """A type and all that it is made of, its metadata included."""
    yield annotation
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    for part in (*inner, *getattr(annotation, "__metadata__", ())):
        yield from _parts(part)


def bounds(annotation: Any) -> str:
    """The numbers that a type allows, in words such as `>= 1` or `in [0, 1)`; empty: any."""
    limits = {
        name: limit
        for part in _parts(annotation)
        for name in ("gt", "ge", "lt", "le")
        if (limit := getattr(part, name, None)) is not None
    }
    if not limits:
        return ""
    low = f"({limits['gt']}" if "gt" in limits else f"[{limits['ge']}"
    if "lt" in limits or "le" in limits:
        return f"in {low}, " + (f"{limits['lt']})" if "lt" in limits else f"{limits['le']}]")
    return f"> {limits['gt']}" if "gt" in limits else f">= {limits['ge']}"


def choices(annotation: Any) -> tuple[str, ...]:
    """The names that a type allows; none: it does not list them."""
    return next((get_args(part) for part in _parts(annotation) if get_origin(part) is Literal), ())


def is_nullable(annotation: Any) -> bool:
    """Whether null is a value of a type."""
    return any(part is type(None) for part in _parts(annotation))
