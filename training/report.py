"""What a run says of itself: its header, its lines, and the config it leaves in its directory."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from config import Config, DatasetConfig
from errors import InputError
from meshes.devices import MeshPlan
from training.metrics import flops_per_token, human_bytes, training_memory, weight_count


def prepare_directory(path: str) -> None:
    """Create a run's directory and check that it can be written to.

    Raises:
        InputError: it cannot.
    """
    io, probe = tf.io.gfile, tf.io.gfile.join(path, ".writable")
    try:
        io.makedirs(path)
        with io.GFile(probe, "w") as file:
            file.write("")
        io.remove(probe)
    except (tf.errors.OpError, OSError) as error:
        reason = getattr(error, "message", str(error)).splitlines()[0]
        raise InputError(
            f"model_path = {path}: cannot be written to ({reason}); choose a directory that you may write"
        ) from None


def header(config: Config, plan: MeshPlan) -> list[str]:
    """Parameters, memory, devices and the effective config, a line each."""
    memory = training_memory(config)
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in memory.items())
    mesh = ", ".join(f"{name}:{size}" for name, size in plan.shape.items()) or "one device"
    layout = ", ".join(f"{tensor}:{mesh}" for tensor, mesh in plan.rules.items())
    values = {name: value for name, value in config.to_json().items() if value is not None}
    return [
        f"config {config.source}: {json.dumps(values)}",
        f"{weight_count(config.model):,} parameters, {flops_per_token(config.model) / 1e6:.1f} MFLOP a trained token",
        f"memory, about {human_bytes(sum(memory.values()))}: {parts}",
        f"devices {', '.join(name.lstrip('/') for name in plan.devices)}; mesh "
        f"{mesh}{'; layout ' + layout if layout else ''}",
        *([plan.notice] if plan.notice else []),
    ]


def log_line(row: dict[str, Any], total: int, rate: float | None) -> str:
    """One logged step, in words."""
    speed = f", {row['tokens_per_second']:,.0f} tokens/s" if row["tokens_per_second"] else ""
    mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] else ""
    left = f", {tqdm.format_interval((total - row['step']) / rate)} left" if rate else ""
    return (
        f"step {row['step']}/{total}: loss {row['loss']:.4f}, nll {row['nll']:.4f}, lr {row['lr']:.2e}, "
        f"gradient norm {row['grad_norm']:.3f}{speed}{mfu}{left}"
    )


def evaluation_line(step: int, metrics: dict[str, float | None]) -> str:
    """One evaluation, in words."""
    bits = f", {metrics['bits_per_byte']:.4f} bits per byte" if metrics["bits_per_byte"] is not None else ""
    return (
        f"step {step}: validation nll {metrics['nll']:.4f}, perplexity {metrics['perplexity']:.2f}{bits}, "
        f"accuracy {metrics['accuracy']:.2%} over {metrics['tokens']:,} tokens"
    )


def write_config(config: Config) -> None:
    """Leave the config as run, with its dataset configs, in the run's directory: what `api.load(directory)` reads."""
    directory, io = config.training.model_path, tf.io.gfile
    _write_json(io.join(directory, "config.json"), config.to_json())
    for use in config.data.datasets:
        _write_json(io.join(directory, "dataset_configs", f"{use.id}.json"), _dataset_json(use.dataset))


def _dataset_json(dataset: DatasetConfig) -> dict[str, Any]:
    """The dataset config with paths that hold from any directory."""
    values = dataclasses.asdict(dataset)
    source = values.pop("source")
    for key in ("path", "eval_path"):
        values[key] = [_absolute(source, pattern) for pattern in values[key]]
    for key in ("tokenizer_path", "lambada_tokens_path"):
        if values[key] is not None:
            values[key] = _absolute(source, values[key])
    return values


def _absolute(source: str, path: str) -> str:
    """A local path or glob as an absolute one, found as a dataset config finds it; unchanged if there is no such file.
    """
    if "://" not in path:
        for candidate in (path, os.path.join(os.path.dirname(source), path)):
            if glob.glob(os.path.expanduser(candidate), recursive=True):
                return os.path.abspath(os.path.expanduser(candidate))
    return path


def _write_json(path: str, values: dict[str, Any]) -> None:
    io = tf.io.gfile
    io.makedirs(os.path.dirname(path))
    with io.GFile(path + ".writing", "w") as file:
        file.write(json.dumps(values, indent=2) + "\n")
    io.rename(path + ".writing", path, overwrite=True)
