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
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from gpt_mesh.data.tokenizer_errors import is_panic
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage

_MODEL_SETTINGS = ("config.json", "generation_config.json")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", *_MODEL_SETTINGS)
MAX_BYTES = 1 << 30
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")


def is_saved(folder: str) -> bool:
    """Whether a folder has a tokenizer with settings beside it, which may change its ids."""
    return any(storage.exists(f"{folder}/{name}") for name in _SETTINGS) and any(
        storage.exists(f"{folder}/{name}") for name in _VOCABULARIES
    )


@dataclass(frozen=True)
class Saved:
    """A tokenizer with what the files beside it say.

    Attributes:
        tokenizer: of the tokenizers library.
        eos_ids: ids that end texts; those that the model's files name come first.
        pad_id: the id that pads texts, if there is one.
    """

    tokenizer: Tokenizer
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None


def load_saved(folder: str) -> Saved:
    """The tokenizer of such a folder.

    Raises:
        InputError: transformers cannot read it, or it is not one of the tokenizers library.
    """
    ends = model_ends(folder)
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
    if found.eos_token is not None:
        ends = (*ends, found.eos_token_id)
    pad_id = None if found.pad_token is None else found.pad_token_id
    known = dict.fromkeys(token for token in ends if token >= 0 and tokenizer.id_to_token(token) is not None)
    return Saved(_without_empty_template(tokenizer), tuple(known), pad_id)


def model_ends(folder: str) -> tuple[int, ...]:
    """The ids that end texts according to a model's config.json and generation_config.json, which may name several.

    Raises:
        InputError: one of the files is not a JSON object.
    """
    found: list[Any] = []
    for name in _MODEL_SETTINGS:
        if storage.exists(path := f"{folder}/{name}"):
            named = read_object(path).get("eos_token_id")
            found += named if isinstance(named, list) else [named]
    return tuple(dict.fromkeys(token for token in found if type(token) is int))


def read_object(path: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it cannot be read, or something else is in it.
    """
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: is not JSON ({storage.reason(error)[:200]}); download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{shown(path)}: must hold one JSON object; download it again")
    return values


def read_text(path: str, limit: int = MAX_BYTES) -> str:
    """The text of a tokenizer's file.

    Raises:
        InputError: it cannot be read, is larger than `limit` bytes, or is not UTF-8.
    """
    try:
        with storage.open_binary(path) as file:
            data = file.read(limit + 1)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}") from error
    if len(data) > limit:
        raise InputError(f"{shown(path)}: is larger than {limit >> 20} MiB, so it is no tokenizer")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: is not UTF-8 text (byte {error.start}), so it is no tokenizer") from error


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
