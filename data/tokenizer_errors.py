"""Failures of the tokenizers library, which come from files that are damaged or do not fit together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage


def is_panic(error: BaseException) -> bool:
    """Whether the library's Rust code panicked. Its exception derives from BaseException and has no importable name."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turns failures of the library into InputError, which names the tokenizer's `source`."""
    try:
        yield
    except BaseException as error:
        if not (type(error) is Exception or is_panic(error)):  # the library raises Exception itself
            raise
        raise InputError(
            f"{source}: the tokenizers library cannot use it ({storage.reason(error)[:200]}); it is damaged, or of "
            "another version of the library: get it again"
        ) from error
