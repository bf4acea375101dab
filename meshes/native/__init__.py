"""CPU kernels in C: compiled on the machine where they run, for its processor, and registered with XLA.

Matmuls of a few rows (few_rows.c) and of many rows (matmul.c), attention (attention.c), norms (norms.c), GELU (gelu.c),
gated activations (gates.c), the loss over the vocabulary (vocabulary_loss.c) and optimizer updates. They need a C
compiler (`CC`, else cc, gcc or clang) and a TensorFlow with XLA's foreign function interface. Without these everything
works, but slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt_mesh.meshes.compat import mtf  # noqa: F401  (before TensorFlow, which it keeps quiet)

import tensorflow as tf

from gpt_mesh.meshes import compiled_cache, stablehlo
from gpt_mesh.storage import files

FOLDER = Path(__file__).parent
SOURCES, HEADERS = sorted(FOLDER.glob("*.c")), sorted(FOLDER.glob("*.h"))
NAME = "gpt_mesh"
# The compilers' names for "this processor": -march on x86 and for GCC everywhere, -mcpu for Clang on ARM. For some
# processors GCC splits fused multiply-adds again in loops that are chains of them, so that the rounding of a row would
# depend on the number of rows.
TUNED: tuple[list[str], ...] = (
    ["-march=native", "--param=avoid-fma-max-bits=0"],
    ["-march=native"],
    ["-mcpu=native"],
    [],
)
# ISO C does not fuse multiplications and additions by default, which halves the throughput.
COMMON = ["-O3", "-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-fvisibility=hidden", "-fPIC", "-shared"]
SECONDS = 120  # time limit of the compiler

log = logging.getLogger("gpt")
_one_at_a_time = threading.Lock()


def known() -> bool:
    """Whether the targets are registered with XLA. The first call compiles them, if no earlier process has."""
    with _one_at_a_time:
        return not _reason()


@functools.cache
def _reason() -> str:
    """The result of `_make_known`, which is also logged."""
    reason = _make_known()
    if reason:
        log.info("this CPU is slower than it could be: %s", reason)
    return reason


def _make_known() -> str:
    """Register the targets; returns why that failed, or "" if it did not."""
    header = Path(tf.sysconfig.get_include()) / "xla/ffi/api/c_api.h"
    framework = next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*"), None)
    if framework is None or not header.exists():
        return f"TensorFlow {tf.__version__} has no foreign function interface of XLA"
    try:
        compiler = find_compiler()
        if not compiler:
            return "there is no C compiler (cc, gcc, clang, or what CC names)"
        library = load(compiler, header)
        interface = ctypes.CDLL(str(framework)).XLA_FFI_GetApi
    except (OSError, AttributeError, ValueError, subprocess.SubprocessError) as error:
        return f"the C sources could not be compiled and loaded: {_last_line(error)}"
    interface.restype = ctypes.c_void_p
    library.gpt_mesh_register.argtypes, library.gpt_mesh_register.restype = [ctypes.c_void_p], ctypes.c_bool
    return "" if library.gpt_mesh_register(interface()) else f"TensorFlow {tf.__version__} rejects them"


def find_compiler() -> list[str]:
    """The compiler's command; empty if there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    return []


def load(compiler: list[str], header: Path) -> ctypes.CDLL:
    """The library that an earlier process compiled from the same sources with the same compiler; else compile it."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=SECONDS).stdout
    sources = [path.read_bytes() for path in [*SOURCES, *HEADERS, header]]
    facts = [*sources, version, os.fsencode("\n".join([*compiler, *COMMON]))]
    facts.append("\n".join(compiled_cache.hardware()).encode())
    name = f"{NAME}-{hashlib.sha256(b'|'.join(facts)).hexdigest()[:16]}.so"
    kept = _folder()
    if kept:
        with contextlib.suppress(OSError):  # missing, damaged, or in a folder mounted noexec
            return ctypes.CDLL(str(_own(kept / name)))
        with contextlib.suppress(OSError):
            kept.mkdir(parents=True, exist_ok=True)
            _compile(compiler, kept / name)
            return ctypes.CDLL(str(kept / name))
    with tempfile.TemporaryDirectory() as folder:
        _compile(compiler, Path(folder) / name)
        return ctypes.CDLL(str(Path(folder) / name))


def _folder() -> Path | None:
    """Where compiled libraries are cached; None if the cache is off."""
    if os.environ.get("GPT_MESH_CACHE") == "off":
        return None
    return Path(compiled_cache.cache_root(os.environ)).absolute() / "native"


def _own(library: Path) -> Path:
    """The same path.

    Raises:
        OSError: there is no such file, or it belongs to another user.
    """
    if library.stat().st_uid != os.getuid():
        raise PermissionError(f"{library} belongs to another user")
    return library


def _compile(compiler: list[str], library: Path) -> None:
    """Write `library`. It gets a temporary name first, since other processes may be looking for it.

    Raises:
        OSError: it cannot be compiled (with the compiler's message) or written.
    """
    descriptor, unfinished = tempfile.mkstemp(dir=library.parent, prefix=f"{NAME}-")
    os.close(descriptor)
    try:
        for tuned in TUNED:
            command = [*compiler, *COMMON, *tuned, f"-I{tf.sysconfig.get_include()}", *map(str, SOURCES), "-lm"]
            command += ["-o", unfinished]
            done = subprocess.run(command, capture_output=True, timeout=SECONDS)
            if not done.returncode and os.path.getsize(unfinished):
                files.move(unfinished, str(library))
                return
        raise OSError(done.stderr.decode(errors="replace") or "the compiler wrote nothing")
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def call(
    target: str,
    operands: Sequence[tf.Tensor],
    results: Sequence[tf.TensorSpec],
    attributes: Mapping[str, int | float] | None = None,
    in_place: Mapping[int, int] | None = None,
) -> list[tf.Tensor]:
    """Call a target, inside a function that XLA compiles for a CPU. Requires `known()`.

    Args:
        target: its name, without the common prefix.
        operands: with static shapes.
        results: their specs, with static shapes; the memory layout is row-major.
        attributes: numbers that the target gets, by name.
        in_place: the indices of results that reuse the memory of operands, with the indices of those.
    """
    module = stablehlo.Module(operands)
    settings = {
        "api_version": "4 : i32",
        "output_operand_aliases": stablehlo.aliases(in_place or {}),
        "backend_config": stablehlo.dictionary(attributes or {}),
    }
    return module.run(module.custom_call(f"gpt_mesh_{target}", module.arguments, results, settings), platform="CPU")
