"""The flags that XLA is given on machines with GPUs."""

from __future__ import annotations

import os
import subprocess
import sys

from gpt_mesh.meshes import xla_flags


def test_what_the_user_says_comes_first() -> None:
    environment = {"XLA_FLAGS": "--xla_gpu_enable_cublaslt=true --xla_dump_to=there"}
    xla_flags.choose(environment)
    flags = environment["XLA_FLAGS"].split()
    assert flags == ["--xla_gpu_enable_cublaslt=true", "--xla_dump_to=there", "--xla_gpu_enable_triton_gemm=false"]
    xla_flags.choose(environment)
    assert environment["XLA_FLAGS"].split() == flags
    for given in ("flags.txt", "--xla_gpu_enable_triton_gemm=true --xla_dump_to=there", "--xla_gpu_enable_triton_gemm"):
        environment = {"XLA_FLAGS": given}
        xla_flags.choose(environment)
        assert environment["XLA_FLAGS"] == given


def test_xla_knows_them() -> None:
    """An unknown flag ends the process."""
    environment: dict[str, str] = {}
    xla_flags.choose(environment)
    script = "import tensorflow as tf; print(tf.function(lambda x: x + 1, jit_compile=True)(1.0).numpy())"
    command = [sys.executable, "-c", f"from gpt_mesh.meshes.compat import mtf; {script}"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
