"""What is asked of XLA beyond TensorFlow's own choices, on machines with NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

# Products by cuBLASLt, which adds biases and applies GELU on the way: 3 % of a training step of the 124M model. XLA's
# own kernels for products (by Triton) are no faster there, and trying them out is half of the time to compile.
GPU_FLAGS = {"--xla_gpu_enable_cublaslt": "true", "--xla_gpu_enable_triton_gemm": "false"}


def has_nvidia_driver() -> bool:
    """Whether this machine has one; /dev/dxg is Windows' WSL 2."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


def choose(environment: MutableMapping[str, str]) -> None:
    """Set them in XLA_FLAGS, which XLA reads when it is first used. A flag that is there already stays, and so does the
    name of a file of flags.
    """
    given = environment.get("XLA_FLAGS", "").split()
    if given and not given[0].startswith("-"):
        return
    names = {word.partition("=")[0] for word in given}
    chosen = [f"{flag}={value}" for flag, value in GPU_FLAGS.items() if flag not in names]
    environment["XLA_FLAGS"] = " ".join([*given, *chosen])
