"""XLA flags that differ from TensorFlow's defaults, for machines with NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

# XLA's Triton matmul kernels are no faster than cuBLAS's, and autotuning them takes half of the compile time.
# cuBLASLt's kernels, which also fuse biases and GELU, are not enabled: in float32 XLA fails with "workspace_addr !=
# nullptr && new_size >= workspace_size" (TensorFlow 2.21, H200, cuBLAS 13).
GPU_FLAGS = {"--xla_gpu_enable_triton_gemm": "false"}


def has_nvidia_driver() -> bool:
    """Whether this machine has an NVIDIA driver; /dev/dxg is that of WSL 2."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))


def choose(environment: MutableMapping[str, str]) -> None:
    """Add the flags to XLA_FLAGS, which XLA reads on first use. Flags that are set already are kept, and so is the
    name of a flag file.
    """
    given = environment.get("XLA_FLAGS", "").split()
    if given and not given[0].startswith("-"):
        return
    names = {word.partition("=")[0] for word in given}
    chosen = [f"{flag}={value}" for flag, value in GPU_FLAGS.items() if flag not in names]
    environment["XLA_FLAGS"] = " ".join([*given, *chosen])
