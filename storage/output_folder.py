"""Output folders that are replaced as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.lease import lease


def check(folder: str, overwrite: bool) -> None:
    """
    Raises:
        InputError: it is not a local folder, or it is not empty and `overwrite` is false.
    """
    if storage.is_url(folder):
        raise InputError(f"{shown(folder)}: give a local folder, and copy it there afterwards")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{shown(folder)}: is a file; name a new folder")
    if os.path.isdir(folder) and os.listdir(folder) and not overwrite:
        raise InputError(f"{shown(folder)}: is not empty; name a new folder, or add --overwrite to replace it")


@contextmanager
def replaced(folder: str) -> Iterator[str]:
    """A temporary folder that replaces this one when the block ends without an exception.

    The old folder is moved aside, the new one is moved in, and the old one is deleted last. If that is interrupted, the
    next call restores the old folder, if it is missing, and removes what is left.

    Raises:
        InputError: it cannot be written, or another process is writing it.
    """
    parent, name = os.path.split(os.path.abspath(folder))
    new, old = (os.path.join(parent, f".{name}.gpt-mesh-{which}") for which in ("new", "old"))
    try:
        os.makedirs(parent, exist_ok=True)
        with lease(os.path.join(parent, f".{name}.gpt-mesh-lock"), f"an export to {folder}"):
            if os.path.isdir(old) and not os.path.isdir(folder):
                os.replace(old, folder)
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
            os.makedirs(new)
            try:
                yield new
                if os.path.isdir(folder):
                    os.replace(folder, old)
                os.replace(new, folder)
            finally:
                for left in (new, old):
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


@contextmanager
def tensorflow_writes(folder: str) -> Iterator[None]:
    """Errors of TensorFlow in the block become an InputError that says that `folder` cannot be written."""
    try:
        yield
    except storage.errors() as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: str, error: Exception) -> InputError:
    return InputError(
        f"{shown(folder)}: cannot be written ({storage.reason(error)}); make room, or name another folder"
    )
