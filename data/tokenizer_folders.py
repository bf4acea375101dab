"""Tokenizers in folders as transformers saves them: in one file or in parts, with added tokens and settings beside.

They are read by transformers itself, so that texts have the ids that it gives them. It is imported for these alone,
and reads nothing but the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from gpt_mesh.data.tokenizer_errors import is_panic
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")


def is_saved(folder: str) -> bool:
    """Whether a folder holds a tokenizer with settings beside it, without which it would give other ids."""
    return any(storage.exists(f"{folder}/{name}") for name in _SETTINGS) and any(
        storage.exists(f"{folder}/{name}") for name in _VOCABULARIES
    )


def load_saved(folder: str) -> Tokenizer:
    """The tokenizer of such a folder.

    Raises:
        InputError: transformers cannot read it, or it is not one of the tokenizers library.
    """
    transformers = _library(folder)
    with _local(folder) as path:
        try:
            found = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except BaseException as error:
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            reason = storage.reason(error)[:300].replace(path, folder)
            needs = [name for name in ("sentencepiece", "tiktoken") if name in str(error)]
            remedy = f"pip install {needs[0]}, or " if needs else ""
            raise InputError(
                f"{folder}: transformers cannot read its tokenizer ({type(error).__name__}: {reason}); {remedy}"
                "give the folder all files that it was saved with, or name its tokenizer.json alone"
            ) from error
    tokenizer = getattr(found, "backend_tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"{folder}: its tokenizer ({type(found).__name__}) is not one of the tokenizers library; convert it to a "
            "tokenizer.json"
        )
    return _without_empty_template(tokenizer)


def _without_empty_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as it was saved: transformers gives one without a post-processor a template that adds nothing."""
    definition = json.loads(tokenizer.to_str())
    step = definition["post_processor"] or {}
    if step.get("type") != "TemplateProcessing" or step["special_tokens"]:
        return tokenizer
    return Tokenizer.from_str(json.dumps({**definition, "post_processor": None}))


def _library(folder: str) -> Any:
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # that PyTorch is not there: it is not needed
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        import transformers
        from transformers import AutoTokenizer  # noqa: F401  (imported when it is first asked for)
    except ImportError as error:
        raise InputError(
            f"{folder}: holds a tokenizer as transformers saves it, which needs the package transformers "
            f"({storage.reason(error)}); pip install 'transformers>=5'"
        ) from error
    finally:
        if before is None:
            del os.environ[quiet]
        else:
            os.environ[quiet] = before
    return transformers


@contextlib.contextmanager
def _local(folder: str) -> Iterator[str]:
    """The folder, or a copy of its tokenizer's files on this machine."""
    if not storage.is_url(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as path:
        for name in (*_SETTINGS, *_VOCABULARIES):
            if storage.exists(f"{folder}/{name}"):
                with storage.open_binary(f"{folder}/{name}") as source, open(f"{path}/{name}", "wb") as target:
                    target.write(source.read())
        yield path
