"""The library in C: compiled once, kept, and done without where it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_mesh.meshes import native

import tensorflow as tf  # isort: skip  (after compat, which quiets its start-up)

COMPILER = native.find_compiler()
HEADER = Path(tf.sysconfig.get_include()) / "xla/ffi/api/c_api.h"
needs_compiler = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")

NOT_COMPILED = "the C sources could not be compiled and loaded: "

SCRIPT = """
import logging, sys
import numpy as np, tensorflow as tf
logging.basicConfig(format="%(message)s", level=logging.INFO)
from gpt_mesh.meshes import cpu_matmul, native
x, w = np.ones([4, 256], np.float32), np.full([256, 256], 0.5, np.float32)
function = tf.function(lambda x, w: cpu_matmul.einsum("ab,bc->ac", x, w), jit_compile=True, autograph=False)
for _ in range(2):
    assert (function(x, w).numpy() == 128).all()
print(native.known())
"""


def run(cache: Path | str, **environment: str) -> tuple[str, list[str]]:
    """What a process of its own prints, and what it logs of this CPU."""
    given = {**os.environ, "GPT_MESH_CACHE": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), [line for line in done.stderr.splitlines() if line.startswith("this CPU")]


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert run(tmp_path) == ("True", [])
    (library,) = (tmp_path / "native").iterdir()
    written = library.stat()
    assert run(tmp_path) == ("True", [])
    assert [library] == list((tmp_path / "native").iterdir())
    assert library.stat().st_mtime_ns == written.st_mtime_ns


@needs_compiler
def test_a_damaged_library_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_MESH_CACHE", str(tmp_path))
    assert native.load(COMPILER, HEADER).gpt_mesh_register
    (library,) = (tmp_path / "native").iterdir()
    library.unlink()  # and not written over: it is open
    library.write_bytes(b"\x7fELF, once")
    assert native.load(COMPILER, HEADER).gpt_mesh_register


@needs_compiler
@pytest.mark.slow
def test_another_compiler_header_or_owner_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_MESH_CACHE", str(tmp_path))
    header = tmp_path / "c_api.h"
    header.write_bytes(HEADER.read_bytes() + b"\n")
    for compiler, given in [(COMPILER, HEADER), (COMPILER, header), ([*COMPILER, "-g"], HEADER), (COMPILER, HEADER)]:
        assert native.load(compiler, given).gpt_mesh_register
    libraries = set((tmp_path / "native").iterdir())
    assert len(libraries) == 3
    before = {path: path.stat().st_ino for path in libraries}
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    native.load(COMPILER, HEADER)
    assert len([path for path in libraries if path.stat().st_ino != before[path]]) == 1


@needs_compiler
def test_nothing_is_kept_where_nothing_is_to_be(tmp_path: Path) -> None:
    found = run("off", TMPDIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert found == ("True", [])
    assert not [path for path in tmp_path.rglob("*") if "gpt_mesh" in path.name or "gpt-mesh" in path.name]


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "cache") == ("True", [])


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("/nowhere/cc", "there is no C compiler (cc, gcc, clang, or what CC names)"),
        ("false", NOT_COMPILED),
        (f"{sys.executable} -V", NOT_COMPILED),  # says a version, makes no file
        pytest.param("cc -include /nowhere.h", NOT_COMPILED, marks=needs_compiler),
    ],
)
def test_without_a_compiler_it_is_said_once_and_all_works(tmp_path: Path, compiler: str, reason: str) -> None:
    known, lines = run(tmp_path, CC=compiler)
    assert known == "False"
    (line,) = lines
    assert line.startswith(f"this CPU is slower than it could be: {reason}")
    assert not list((tmp_path / "native").glob("*"))
