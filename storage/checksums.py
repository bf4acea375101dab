"""SHA-256 of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from gpt_mesh.storage import files

_BLOCK = 1 << 20


def of_file(path: str) -> str:
    """SHA-256 of a file, in hexadecimal. Raises one of files.errors()."""
    found = hashlib.sha256()
    with files.open_binary(path) as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def of_json(value: Any) -> str:
    """SHA-256 of a JSON value, in hexadecimal, whatever the order of its keys and its white space."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
