"""What of this project is written in C: compiled on the machine where it runs, for its processor, and told to XLA.

There must be a C compiler (`CC`, else cc, gcc or clang), and a TensorFlow that XLA's foreign function interface comes
with. Where one is missing, all works, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from meshes import compiled_cache

SOURCE = Path(__file__).with_name("few_rows.c")
# The compilers' names for "this processor": -march on x86 and for GCC everywhere, -mcpu for Clang on ARM.
TUNED: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
SECONDS = 120  # in which a compiler has to be done

log = logging.getLogger("gpt")


_once = threading.Lock()


def few_rows_known() -> bool:
    """Whether XLA knows the targets of few_rows.c in this process. Compiles it, unless an earlier process has."""
    with _once:
        return not _reason()


@functools.cache
def _reason() -> str:
    """`_make_known`, told in the log."""
    reason = _make_known()
    if reason:
        log.info("decoding on this CPU is slower than it could be: %s", reason)
    return reason


def _make_known() -> str:
    """Nothing, or why they are not known."""
    headers = Path(tf.sysconfig.get_include())
    framework = next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*"), None)
    if framework is None or not (headers / "xla/ffi/api/c_api.h").exists():
        return f"TensorFlow {tf.__version__} has no interface for it"
    compiler = find_compiler()
    if not compiler:
        return "there is no C compiler (cc, gcc, clang, or what CC names)"
    try:
        library = load(compiler, headers)
        interface = ctypes.CDLL(str(framework)).XLA_FFI_GetApi
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return f"{SOURCE.name} could not be compiled and loaded: {_last_line(error)}"
    interface.restype = ctypes.c_void_p
    library.gpt_mesh_register.argtypes, library.gpt_mesh_register.restype = [ctypes.c_void_p], ctypes.c_bool
    return "" if library.gpt_mesh_register(interface()) else f"TensorFlow {tf.__version__} does not take it"


def find_compiler() -> list[str]:
    """The command, or nothing."""
    named = os.environ.get("CC", "").split()
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    return []


def load(compiler: list[str], headers: Path) -> ctypes.CDLL:
    """What an earlier process compiled from the same source in the same way, else what is compiled now."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
    facts = [SOURCE.read_bytes(), version, "\n".join([*compiler, str(headers), *compiled_cache.hardware()]).encode()]
    name = f"{SOURCE.stem}-{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"
    with contextlib.ExitStack() as stack:
        folder = _folder() or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if (folder / name).exists():
            with contextlib.suppress(OSError):  # damaged
                return ctypes.CDLL(str(folder / name))
        return ctypes.CDLL(str(_compiled(compiler, headers, folder / name)))


def _folder() -> Path | None:
    """Where libraries are kept on this machine; None: nowhere."""
    folder = Path(compiled_cache.cache_root(os.environ)).absolute() / "native"
    if os.environ.get("GPT_MESH_CACHE") == "off":
        return None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else None


def _compiled(compiler: list[str], headers: Path, library: Path) -> Path:
    """`library`, written under another name first: another process may be looking for it."""
    unfinished = library.with_suffix(f".{os.getpid()}")
    for tuned in TUNED:
        command = [*compiler, "-O3", *tuned, "-std=c11", "-fPIC", "-shared", f"-I{headers}", str(SOURCE)]
        done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, timeout=SECONDS)
        if not done.returncode:
            return unfinished.replace(library)
    unfinished.unlink(missing_ok=True)
    raise OSError(done.stderr.decode(errors="replace"))


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
