"""Find, download and cache the files of evaluation tasks."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpt_mesh.data.encoders import Encoder
from gpt_mesh.errors import InputError, shown
from gpt_mesh.meshes.compiled_cache import cache_root
from gpt_mesh.storage import checksums, strict_json
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import BYTES, Progress, log

_SECONDS = 10.0  # timeout of a connection
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Published:
    """A published data file.

    Attributes:
        names: file names to look for, in order of preference; the first is the one to download.
        urls: addresses of the first, tried in turn.
        size, sha256: of the first, in bytes and in hexadecimal.
    """

    names: tuple[str, ...]
    urls: tuple[str, ...]
    size: int
    sha256: str


def folder() -> str:
    """The folder in which files of tasks are looked up, and cached unless `GPT_MESH_CACHE` is "off"."""
    return cache_root(os.environ)


def find(task: str, published: Published, *, download: bool) -> str:
    """The path of a task's file in `folder()`.

    Args:
        task: name of the task, for messages.
        published: the file.
        download: fetch it if it is missing.

    Raises:
        InputError: it is missing or cannot be fetched; the message says what to bring and where to put it.
    """
    for name in published.names:
        if os.path.exists(path := os.path.join(folder(), name)):
            return path
    target = os.path.join(folder(), published.names[0])
    if download:
        return _download(task, published, target)
    raise InputError(
        f"task {task}: there is no {target}; put {published.urls[0]} there ({published.size:,} bytes), name a file "
        "with --eval --task --file, or let --eval --download fetch it"
    )


def _download(task: str, published: Published, target: str) -> str:
    storage.make_folder(os.path.dirname(target))
    reasons = []
    for url in published.urls:
        try:
            _fetch(url, published, target)
            return target
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reasons.append(f"{url}: {storage.reason(getattr(error, 'reason', None) or error)}")
    raise InputError(
        f"task {task}: could not be downloaded ({'; '.join(reasons)}); bring {published.names[0]} "
        f"({published.size:,} bytes, SHA-256 {published.sha256}) and put it at {target}, or name it with --file"
    )


def _fetch(url: str, published: Published, target: str) -> None:
    """Download, verify, and move into place.

    Raises:
        OSError: no answer, or no space left.
        ValueError: size or checksum differ from the published file.
    """
    digest, size = hashlib.sha256(), 0
    log.info("downloading %s (%s bytes) to %s", url, f"{published.size:,}", shown(target))
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer, storage.replacing(target) as file:
        with Progress(published.size, "downloading", BYTES) as progress:
            while block := answer.read(_BLOCK):
                file.write(block)
                digest.update(block)
                size += len(block)
                progress.update(len(block))
        if (size, digest.hexdigest()) != (published.size, published.sha256):
            raise ValueError(f"{size:,} bytes of SHA-256 {digest.hexdigest()[:12]}… came, not the published file")


def digest(path: str) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return checksums.of_file(path)
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read: {storage.reason(error)}; name a file that can") from error


def encoded(form: str, content: str, encoder: Encoder, make: Callable[[], list[Any]]) -> list[Any]:
    """The result of `make`, cached in `folder()` by content and tokenizer.

    Args:
        form: the task's name and the version of `make`'s result, which must be JSON-serialisable.
        content: `digest` of the file.
    """
    if os.environ.get("GPT_MESH_CACHE") == "off":
        return make()
    key = hashlib.sha256(f"{form} {content} {encoder.fingerprint}".encode()).hexdigest()
    path = os.path.join(folder(), "encoded", f"{key}.json")
    with suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        kept = json.load(file)
        if isinstance(kept, list):
            return kept
    found = make()
    with suppress(OSError):  # without a cache, encoding takes a second or two each time
        os.makedirs(os.path.dirname(path), exist_ok=True)
        strict_json.write(path, found, indent=None)
    return found
