"""Standard JSON: `null` for NaN and infinities, which Python would write and others cannot read."""

from __future__ import annotations

import json
import math
from typing import Any

from gpt_mesh.storage import files


def dumps(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """`json.dumps` with `null` for numbers that are not finite."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None in place of numbers that are not finite, in containers of any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def write(path: str, value: Any, *, indent: int | None = 2, durable: bool = False) -> None:
    """Replace a file by this value and a newline. Raises one of files.errors()."""
    files.write_text(path, dumps(value, indent=indent) + "\n", durable=durable)
