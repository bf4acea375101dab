"""A folder that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage


def check(folder: str, overwrite: bool) -> None:
    """
    Raises:
        InputError: it is no folder on this machine, or there is something in it that `overwrite` does not give up.
    """
    if storage.is_url(folder):
        raise InputError(f"{folder}: give a local folder, and copy it there afterwards")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder}: is a file; name a new folder")
    if os.path.isdir(folder) and os.listdir(folder) and not overwrite:
        raise InputError(f"{folder}: is not empty; name a new folder, or add --overwrite to replace it")


@contextmanager
def replaced(folder: str) -> Iterator[str]:
    """A temporary folder beside this one, which takes its place when the block ends well.

    Raises:
        InputError: it cannot be written.
    """
    temporary = folder.rstrip("/") + ".writing"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        os.makedirs(temporary)
        yield temporary
        if os.path.isdir(folder):
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def tensorflow_writes(folder: str) -> Iterator[None]:
    """Within it, what TensorFlow cannot do is that it cannot write `folder`.

    Raises:
        InputError: so it was.
    """
    try:
        yield
    except storage.errors() as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: str, error: Exception) -> InputError:
    return InputError(f"{folder}: cannot be written ({storage.reason(error)}); make room, or name another folder")
