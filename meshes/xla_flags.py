"""What is asked of XLA beyond TensorFlow's own choices, on machines with NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

# XLA's own kernels for products (by Triton) are no faster than cuBLAS's, and trying them out is half of the time to
# compile. cuBLASLt's, which also add biases and apply GELU on the way, are left to who asks for them: in float32 XLA
# ends there with "workspace_addr != nullptr && new_size >= workspace_size" (TensorFlow 2.21, H200, cuBLAS 13).
GPU_FLAGS = {"--xla_gpu_enable_triton_gemm": "false"}


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
