"""Model FLOPs, peak FLOP/s of devices, and byte counts for reports."""

from __future__ import annotations

import re

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.planning.graph import model_flops

# Dense matmul peaks in FLOP/s from data sheets, by a part of the device's name and by precision. float32 is TF32 if the
# device supports it, which TensorFlow uses by default.
PEAK_FLOPS: dict[str, dict[str, float]] = {
    "H200": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "H100": {"bfloat16": 989.4e12, "float32": 494.7e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12},
    "A10": {"bfloat16": 125e12, "float32": 62.5e12},
    "L40S": {"bfloat16": 362e12, "float32": 183e12},
    "L4": {"bfloat16": 121e12, "float32": 60e12},
    "RTX 4090": {"bfloat16": 165.2e12, "float32": 82.6e12},
    "RTX 3090": {"bfloat16": 71e12, "float32": 35.6e12},
}


def flops_per_token(config: Config) -> float:
    """Matmul FLOPs to train on one token: forward, and twice that backward.

    Counted as in PaLM (Chowdhery et al., 2022, arXiv:2204.02311, appendix B): two for each weight of a matmul, plus
    the logits and weighted sums of attention over every position of the context, or of the window in local attention.
    Recomputation is not counted, and masked positions are not subtracted. A mixture of experts counts for its training
    capacity; the matmuls that dispatch tokens do not count.
    """
    texts = config.training.train_batch_size * objective_of(config).texts
    return model_flops(config) / (texts * config.model.n_ctx)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak matmul FLOP/s of a device by its name ("NVIDIA H100 80GB HBM3"), None if it is not known."""
    for part, peaks in PEAK_FLOPS.items():
        if re.search(rf"\b{part}(?!\d)", device_name):  # an "L40" is not an "L4"
            return peaks[precision]
    return None


def device_peak(devices: list[str], precision: str) -> float | None:
    """Sum of the peaks of GPUs by their full names ("/device:GPU:0"); None if any is not known."""
    gpus = tf.config.list_physical_devices("GPU")
    total = 0.0
    for name in devices:
        kind, index = name.rsplit(":", 2)[1:]
        if kind != "GPU" or int(index) >= len(gpus):
            return None
        peak = peak_flops(tf.config.experimental.get_device_details(gpus[int(index)]).get("device_name", ""), precision)
        if peak is None:
            return None
        total += peak
    return total


def human_bytes(count: float) -> str:
    """A byte count with a unit: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
