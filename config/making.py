"""Groups of keys that a program makes in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from gpt_mesh.config.fields import Group, keys
from gpt_mesh.config.messages import refuse
from gpt_mesh.config.names import check_known
from gpt_mesh.config.reading import check_complete, reason


def made(group: Group, values: Mapping[str, Any], fill: Callable[..., None]) -> None:
    """Give a new group its checked values, and the defaults that follow from them.

    Args:
        fill: pydantic's constructor.

    Raises:
        InputError: a key is unknown or missing, or its value cannot work.
    """
    kind = type(group)
    fields = [name for name in kind.model_fields if name not in keys(kind)]
    check_known(values, [*keys(kind), *fields], kind.__name__)
    check_complete([kind], values, kind.__name__)
    try:
        fill(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        refuse(kind.__name__, name, values.get(name), reason(kind, first))
    read = {name: getattr(group, name) for name in keys(kind)}
    for name, declared in keys(kind).items():
        if declared.derive is not None and read[name] is None:
            with suppress(KeyError):  # it follows from another group's keys
                group.__dict__[name] = declared.derive(read)
