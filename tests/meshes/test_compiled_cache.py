"""The cache of compiled programs: where it lies, what it keeps, and a damaged entry."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from gpt_mesh.meshes import compiled_cache
from tests.support.runs import REPOSITORY

STEP = """
from gpt_mesh.meshes.compat import mtf
from tests.support.models import make_engine, tiny_config, token_batch
engine = make_engine(tiny_config(n_layer=1, attention_types=[[["global"], 1]]), compiled=True)
print(float(engine.train_step(token_batch(engine.config))["loss"]))
"""


def switched_on(tmp_path: Path, **more: str) -> dict[str, str]:
    environment = {"GPT_MESH_CACHE": str(tmp_path / "cache"), **more}
    compiled_cache.switch_on(environment)
    return environment


def test_joins_the_flags_that_are_there(tmp_path: Path) -> None:
    environment = switched_on(tmp_path, TF_XLA_FLAGS="--tf_xla_auto_jit=1")
    folder = compiled_cache.directory(environment)
    assert folder is not None and folder.is_dir() and folder.parent == tmp_path / "cache" / "compiled"
    assert environment["TF_XLA_FLAGS"].startswith("--tf_xla_auto_jit=1 ")


def test_programs_compiled_under_other_flags_lie_elsewhere(tmp_path: Path) -> None:
    flags = ["", "--xla_cpu_enable_fast_math=true"]
    plain, fast = (compiled_cache.directory(switched_on(tmp_path, XLA_FLAGS=given)) for given in flags)
    assert plain != fast and plain == compiled_cache.directory(switched_on(tmp_path))


def test_is_off_when_told_so_or_named_by_the_user(tmp_path: Path) -> None:
    assert compiled_cache.directory(switched_on(tmp_path) | {"TF_XLA_FLAGS": ""}) is None
    environment = {"GPT_MESH_CACHE": "off"}
    compiled_cache.switch_on(environment)
    assert environment == {"GPT_MESH_CACHE": "off"}
    own = {"TF_XLA_FLAGS": "--tf_xla_persistent_cache_directory=/mine", "GPT_MESH_CACHE": str(tmp_path)}
    before = dict(own)
    compiled_cache.switch_on(own)
    assert own == before and compiled_cache.directory(own) == Path("/mine")


def test_does_without_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    environment = {"GPT_MESH_CACHE": str(tmp_path / "file")}
    compiled_cache.switch_on(environment)
    assert "TF_XLA_FLAGS" not in environment
    monkeypatch.setattr(compiled_cache, "FREE_BYTES", 2**80)
    assert "TF_XLA_FLAGS" not in switched_on(tmp_path)


def test_drops_what_is_old_and_what_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiled_cache.directory(switched_on(tmp_path))
    assert folder is not None
    for name, age in (("new", 0), ("newer", 1), ("week", 7), ("old", 31)):
        entry = folder / f"xla_compile_cache_{name}"
        entry.write_bytes(b"x" * 10)
        moment = time.time() - age * 86400
        os.utime(entry, (moment, moment))
    monkeypatch.setenv("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder}")
    compiled_cache.seal()

    def kept() -> set[str]:
        switched_on(tmp_path)
        entries = {entry.name.removeprefix("xla_compile_cache_") for entry in folder.glob("xla*")}
        assert {seal.name for seal in folder.glob(".xla*")} == {f".xla_compile_cache_{name}.sha256" for name in entries}
        return entries

    assert kept() == {"new", "newer", "week"}
    monkeypatch.setattr(compiled_cache, "KEPT_BYTES", 20)
    assert kept() == {"new", "newer"}


def test_an_entry_without_the_right_digest_is_removed_before_tensorflow_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = switched_on(tmp_path)
    folder = compiled_cache.directory(environment)
    assert folder is not None
    names = [f"xla_compile_cache_{i}" for i in range(6)]
    for name in names:
        (folder / name).write_bytes(b"a program")
    monkeypatch.setenv("TF_XLA_FLAGS", environment["TF_XLA_FLAGS"])
    compiled_cache.seal()
    (folder / names[1]).write_bytes(b"a prograM")
    (folder / names[2]).write_bytes(b"")
    (folder / f".{names[3]}.sha256").unlink()
    (folder / f".{names[4]}.sha256").write_bytes(b"\xff\xfe")
    (folder / names[5]).unlink()
    (folder / names[5]).mkdir()
    compiled_cache.switch_on(environment)  # as a child process does, for which its parent has set the flags
    assert sorted(path.name for path in folder.iterdir()) == [f".{names[0]}.sha256", names[0]]


def test_a_child_does_without_an_unusable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = switched_on(tmp_path, TF_XLA_FLAGS="--tf_xla_auto_jit=1")
    monkeypatch.setattr(compiled_cache, "FREE_BYTES", 2**80)
    compiled_cache.switch_on(environment)
    assert environment["TF_XLA_FLAGS"] == "--tf_xla_auto_jit=1"


def test_only_damage_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_XLA_FLAGS", switched_on(tmp_path)["TF_XLA_FLAGS"])
    folder = compiled_cache.directory()
    assert folder is not None
    (folder / "xla_compile_cache__1.pb").write_bytes(b"")
    assert not compiled_cache.removed_damage(tf.errors.ResourceExhaustedError(None, None, "out of memory"))
    assert list(folder.iterdir())
    assert compiled_cache.removed_damage(tf.errors.OutOfRangeError(None, None, "Read less bytes than requested"))
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_compiled_and_replaces_it_when_damaged(tmp_path: Path) -> None:
    def step() -> str:
        environment = {**os.environ, "GPT_MESH_CACHE": str(tmp_path), "TF_XLA_FLAGS": ""}
        done = subprocess.run(
            [sys.executable, "-c", STEP], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not re.search(r"XlaSerializedCacheEntry|Target machine feature", done.stderr), done.stderr
        return done.stdout

    def entries() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.rglob("xla_compile_cache*")}

    first = step()
    compiled = entries()
    assert len(compiled) == 1 and step() == first and entries() == compiled
    for path in tmp_path.rglob("xla_compile_cache*"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 4
        path.write_bytes(damaged)
    assert step() == first and entries().keys() == compiled.keys()
    for path in tmp_path.rglob("xla_compile_cache*"):  # damaged later than the digest is checked: TensorFlow notices
        path.write_bytes(path.read_bytes()[:1000])
        path.with_name(f".{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert step() == first
    assert all(len(entry) > 1000 for entry in entries().values())
