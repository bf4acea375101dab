"""Compiled XLA programs, cached on disk, so that the same program starts in seconds the next time.

TensorFlow has such a cache. This module says where it is and when it is safe to use. An entry belongs to one TensorFlow
with its flags for XLA, one kind of processor and one kind of GPU with its driver, so each combination has a folder of
its own in `cache_root`.

TensorFlow believes what it reads: a flipped bit in an entry ends the process, or changes the program. So each entry has
a digest beside it, and an entry without the right digest is removed before TensorFlow is imported.
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

KEPT_DAYS = 30
KEPT_BYTES = 4 * 2**30
FREE_BYTES = 2**30  # a disk with less is left alone: TensorFlow would fail where it cannot write an entry

_FLAG = "--tf_xla_persistent_cache_directory="
_ENTRIES = "xla_compile_cache*"
# What TensorFlow says of an entry that was damaged after the digests were checked (truncated, not its format, of
# another program) and of a folder that it can no longer write to.
_DAMAGE = re.compile(
    r"Read less bytes than requested|Can't parse .*xla_compile_cache|Serialized (cache key|HLO) does not match|"
    r"xla_compile_cache.*(No space left|Permission denied|Read-only|No such file)|"
    r"(No space left|Permission denied|Read-only|No such file).*xla_compile_cache"
)
# Reading an entry is told as two kinds of errors: that it is not text, and that XLA's own tuning flags (prefer-…) are
# no features of the processor.
_NOISE = r"Error parsing text-format tensorflow.XlaSerializedCacheEntry|Target machine feature \+prefer-no-"


def cache_root(environment: Mapping[str, str]) -> str:
    """What this project keeps on this machine: `GPT_MESH_CACHE`, else `gpt-mesh` in the user's cache directory.

    The variable's value "off" names no folder: nothing is kept then.
    """
    named = environment.get("GPT_MESH_CACHE")
    if named and named != "off":
        return os.path.expanduser(named)
    return os.path.join(environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt-mesh")


def switch_on(environment: MutableMapping[str, str]) -> None:
    """Tell TensorFlow, which is not yet imported, where the cache is. Does nothing where there can be none.

    A parent process may have done so already; the entries are then only checked.
    """
    flags = environment.get("TF_XLA_FLAGS", "")
    if environment.get("GPT_MESH_CACHE") == "off":
        return
    folder = _folder(environment)
    given = directory(environment)
    if given not in (None, folder):  # the user's own
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
    """Write a digest beside each entry that has none: called after TensorFlow has compiled something."""
    folder = directory()
    if folder is None:
        return
    with contextlib.suppress(OSError):  # without a digest the entry is removed at the next start
        for entry in folder.glob(_ENTRIES):
            if not _seal_of(entry).exists():
                _seal_of(entry).write_text(_digest(entry))


def directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the cache is that this process uses."""
    found = re.search(rf"{_FLAG}(\S+)", environment.get("TF_XLA_FLAGS", ""))
    return Path(found[1]) if found else None


def removed_damage(error: Exception) -> bool:
    """Whether the error comes from the cache. Its entries are removed then: the same call compiles anew."""
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
    """Leave out of standard error what TensorFlow says whenever it reads an entry; all else goes through at once.

    A process of its own filters, so that nothing is lost should this one crash.
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
    """Entries do not tell under which of XLA's flags they were compiled: the folder does."""
    facts = [tensorflow_version(), environment.get("XLA_FLAGS", ""), *hardware()]
    key = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Path(cache_root(environment)).absolute() / "compiled" / key[:16]


def hardware() -> list[str]:
    """What compiled programs depend on: the processor's features, the models of GPUs, their driver."""
    found = [os.uname().machine]
    for path in [Path("/proc/cpuinfo"), *sorted(Path("/proc/driver/nvidia").glob("gpus/*/information"))]:
        with contextlib.suppress(OSError):
            lines = path.read_text().splitlines()
            found += sorted({line for line in lines if line.startswith(("flags", "model name", "Features", "Model:"))})
    with contextlib.suppress(OSError):
        found.append(Path("/proc/driver/nvidia/version").read_text())
    return found


def tensorflow_version() -> str:
    """Of the TensorFlow that is installed, under whatever name its package has, without importing it."""
    try:
        return importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:  # tensorflow-cpu, a vendor's: this takes longer to find out
        (name, *_) = importlib.metadata.packages_distributions()["tensorflow"]
        return importlib.metadata.version(name)


def _prune(folder: Path) -> None:
    """Remove entries that are old, and the oldest ones beyond KEPT_BYTES in all."""
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
            sound = _seal_of(entry).read_text() == _digest(entry)
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


def _digest(entry: Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()
