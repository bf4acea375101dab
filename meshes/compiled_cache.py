"""A cache of compiled XLA programs on disk, so that a program starts within seconds the next time.

The cache is TensorFlow's. This module decides where it is and when it is safe to use. An entry is valid for one version
of TensorFlow with its XLA flags, one kind of processor, and one kind of GPU with its driver; each combination has a
folder of its own in `cache_root`.

TensorFlow does not validate entries: a flipped bit crashes the process or changes the program. So each entry has a
digest beside it, and entries without a matching digest are removed before TensorFlow is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from gpt_mesh.storage import checksums

KEPT_DAYS = 30
KEPT_BYTES = 4 * 2**30
FREE_BYTES = 2**30  # with less free space the cache is off, since TensorFlow fails if it cannot write an entry

_FLAG = "--tf_xla_persistent_cache_directory="
_ENTRIES = "xla_compile_cache*"
# TensorFlow's errors for an entry that was damaged after the digests were checked (truncated, malformed, or of another
# program), and for a folder that it can no longer write to.
_DAMAGE = re.compile(
    r"Read less bytes than requested|Can't parse .*xla_compile_cache|Serialized (cache key|HLO) does not match|"
    r"xla_compile_cache.*(No space left|Permission denied|Read-only|No such file)|"
    r"(No space left|Permission denied|Read-only|No such file).*xla_compile_cache"
)
# Reading an entry logs two spurious errors: that it is not text, and that XLA's tuning flags (prefer-…) are not
# features of the processor.
_NOISE = r"Error parsing text-format tensorflow.XlaSerializedCacheEntry|Target machine feature \+prefer-no-"


def cache_root(environment: Mapping[str, str]) -> str:
    """The cache folder of this project: `GPT_MESH_CACHE`, else `gpt-mesh` in the user's cache directory.

    The value "off" disables caches and is not a folder.
    """
    named = environment.get("GPT_MESH_CACHE")
    if named and named != "off":
        return os.path.expanduser(named)
    return os.path.join(environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt-mesh")


def switch_on(environment: MutableMapping[str, str]) -> None:
    """Enable the cache for TensorFlow, which must not be imported yet. Does nothing if the cache cannot be used.

    If a parent process has done so already, the entries are only checked.
    """
    flags = environment.get("TF_XLA_FLAGS", "")
    if environment.get("GPT_MESH_CACHE") == "off":
        return
    folder = _folder(environment)
    given = directory(environment)
    if given not in (None, folder):  # the user's choice
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
        _remove_unsealed(folder)
        usable = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > FREE_BYTES
    except OSError:
        usable = False
    if usable and given is None:
        environment["TF_XLA_FLAGS"] = f"{flags} {_FLAG}{folder}".strip()
    elif given is not None and not usable:
        environment["TF_XLA_FLAGS"] = flags.replace(f"{_FLAG}{folder}", "").strip()


def seal() -> None:
    """Write a digest beside each entry that has none. Called after TensorFlow has compiled something."""
    folder = directory()
    if folder is None:
        return
    with contextlib.suppress(OSError):  # without a digest the entry is removed at the next start
        for entry in folder.glob(_ENTRIES):
            if not _seal_of(entry).exists():
                _seal_of(entry).write_text(checksums.of_file(str(entry)))


def directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the cache that this process uses; None if it is off."""
    found = re.search(rf"{_FLAG}(\S+)", environment.get("TF_XLA_FLAGS", ""))
    return Path(found[1]) if found else None


def removed_damage(error: Exception) -> bool:
    """Whether an error comes from the cache. If so, its entries are removed, and the same call will compile again."""
    folder = directory()
    if folder is None or not _DAMAGE.search(str(error)):
        return False
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.glob(_ENTRIES):
            _remove(entry)
    return True


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
    """Remove the spurious errors of reading entries from standard error; everything else is written immediately.

    A separate process filters, so that nothing is lost if this one crashes.
    """
    folder, grep = directory(), shutil.which("grep")
    if folder is None or grep is None or not any(folder.glob(_ENTRIES)):
        yield
        return
    original = os.dup(2)
    command = [grep, "--line-buffered", "-v", "-E", _NOISE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original) as filtering:
        assert filtering.stdin is not None
        os.dup2(filtering.stdin.fileno(), 2)
        filtering.stdin.close()
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


def _folder(environment: Mapping[str, str]) -> Path:
    """The folder for this machine and these flags: entries do not record the XLA flags that they were compiled with."""
    facts = [tensorflow_version(), environment.get("XLA_FLAGS", ""), *hardware()]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Path(cache_root(environment)).absolute() / "compiled" / key[:16]


def hardware() -> list[str]:
    """The hardware that compiled programs depend on: processor features, GPU models, and the GPU driver."""
    found = [os.uname().machine]
    for path in [Path("/proc/cpuinfo"), *sorted(Path("/proc/driver/nvidia").glob("gpus/*/information"))]:
        with contextlib.suppress(OSError):
            lines = path.read_text().splitlines()
            found += sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "Model:"))})
    with contextlib.suppress(OSError):
        found.append(Path("/proc/driver/nvidia/version").read_text())
    return found


def tensorflow_version() -> str:
    """The version of the installed TensorFlow, whatever its package is called, without importing it."""
    try:
        return importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu or a vendor's package; this lookup is slower
        (name, *_) = importlib.metadata.packages_distributions()["tensorflow"]
        return importlib.metadata.version(name)


def _prune(folder: Path) -> None:
    """Remove entries older than KEPT_DAYS, and the oldest ones beyond a total of KEPT_BYTES."""
    entries = sorted(((entry.stat(), entry) for entry in folder.glob(_ENTRIES)), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for facts, entry in entries:
        total += facts.st_size
        if total > KEPT_BYTES or facts.st_mtime < time.time() - KEPT_DAYS * 86400:
            _remove(entry)


def _remove_unsealed(folder: Path) -> None:
    """Remove every entry whose digest is missing or wrong, and digests without an entry."""
    for entry in folder.glob(_ENTRIES):
        try:
            sound = _seal_of(entry).read_text() == checksums.of_file(str(entry))
        except (OSError, UnicodeDecodeError):
            sound = False
        if not sound:
            _remove(entry)
    for seal in folder.glob(f".{_ENTRIES}.sha256"):
        if not folder.joinpath(seal.name[1:].removesuffix(".sha256")).exists():
            seal.unlink(missing_ok=True)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
    _seal_of(entry).unlink(missing_ok=True)


def _seal_of(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.sha256")


