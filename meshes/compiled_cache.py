"""What XLA compiled, kept on disk, so that the same program starts in seconds the next time.

TensorFlow has such a cache; here is where it lies, when it is safe to use, and what happens when an entry is damaged.
An entry belongs to one TensorFlow with its flags for XLA, one kind of processor and one kind of GPU with its driver, so
each combination has a folder of its own in `cache_root`.
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
# What TensorFlow says of a damaged entry: cut off, not its format, another program's.
_DAMAGE = re.compile(
    r"Read less bytes than requested|Can't parse .*xla_compile_cache|Serialized cache key does not match"
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
    """Tell TensorFlow, which is not yet imported, where the cache is; nothing, if there can be none."""
    flags = environment.get("TF_XLA_FLAGS", "")
    if environment.get("GPT_MESH_CACHE") == "off" or _FLAG in flags:
        return
    folder = _folder(environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _prune(folder)
        usable = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > FREE_BYTES
    except OSError:
        return
    if usable:
        environment["TF_XLA_FLAGS"] = f"{flags} {_FLAG}{folder}".strip()


def directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the cache is that this process uses."""
    found = re.search(rf"{_FLAG}(\S+)", environment.get("TF_XLA_FLAGS", ""))
    return Path(found[1]) if found else None


def removed_damage(error: Exception) -> bool:
    """Whether the error comes from a damaged entry. The entries are gone then: the same call compiles anew."""
    folder = directory()
    if folder is None or not _DAMAGE.search(str(error)):
        return False
    for entry in folder.glob("xla_compile_cache*"):
        entry.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
    """Leave out of standard error what TensorFlow says whenever it reads an entry; all else goes through at once.

    A process of its own filters, so that nothing is lost should this one crash.
    """
    folder, grep = directory(), shutil.which("grep")
    if folder is None or grep is None or not any(folder.glob("xla_compile_cache*")):
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
    """Drop entries that are old, and the oldest of more than KEPT_BYTES."""
    entries = sorted(((entry.stat(), entry) for entry in folder.iterdir()), key=lambda pair: -pair[0].st_mtime)
    total = 0
    for facts, entry in entries:
        total += facts.st_size
        if total > KEPT_BYTES or facts.st_mtime < time.time() - KEPT_DAYS * 86400:
            entry.unlink(missing_ok=True)
