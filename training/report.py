"""What a run reports: its header, its log lines, and the config in its directory."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from gpt_mesh.config import GROUPS, Config, DatasetConfig, Group, keys, origins_line
from gpt_mesh.errors import InputError, shown
from gpt_mesh.meshes import processor
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning.memory import training_memory
from gpt_mesh.planning.metrics import flops_per_token, human_bytes
from gpt_mesh.storage import files, strict_json
from gpt_mesh.storage.files import reason
from gpt_mesh.storage.json_lines import JsonLines
from gpt_mesh.storage.lease import Lease, lease
from gpt_mesh.storage.progress import log


def prepare_directory(config: Config) -> None:
    """Create a run's directory and check that it can be written to.

    Raises:
        InputError: it cannot be written to.
    """
    path = config.training.model_path
    probe = os.path.join(path, ".writable")
    try:
        tf.io.gfile.makedirs(path)
        files.write_bytes(probe, b"")
        files.remove(probe)
    except files.errors() as error:
        raise InputError(
            f"{config.source}: model_path = {shown(path)}: cannot be written to ({reason(error)}); name a directory "
            "that can"
        ) from None


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Lease]:
    """Create a run's directory and lock it for the duration of the block.

    Raises:
        InputError: it cannot be written to, or another process is using it.
    """
    prepare_directory(config)
    path = config.training.model_path
    with lease(os.path.join(path, ".run.lock"), "a run") as held:
        for folder in (path, os.path.join(path, "dataset_configs"), os.path.join(path, "predictions")):
            files.remove_leftovers(folder)
        yield held


@contextlib.contextmanager
def file_errors_explained(config: Config) -> Iterator[None]:
    """Convert exceptions about files that cannot be read or written to InputError."""
    try:
        yield
    except (tf.errors.OpError, OSError) as error:  # OpError has many other causes, such as lack of memory
        if not isinstance(error, OSError) and _system_error(error) is None:
            raise
        raise unwritable(config, error) from error


def unwritable(config: Config, error: Exception) -> InputError:
    """The error of a run that cannot read or write a file."""
    path, found = config.training.model_path, _system_error(error)
    full = found in (errno.ENOSPC, errno.EDQUOT)
    why, remedy = (os.strerror(found), "make room") if found and full else (reason(error), "fix that")
    named = str(getattr(error, "filename", None) or path)
    ours = named.startswith(path)
    what = f"model_path = {shown(path)}: cannot be written to" if ours else f"{shown(named)}: cannot be used"
    return InputError(
        f"{config.source}: {what} ({why}); {remedy}, and the same command continues from the newest checkpoint"
    )


# System errors about files, which TensorFlow passes on as text.
_SYSTEM_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR,
    errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.ENODEV, errno.ENXIO,
)  # fmt: skip


def _system_error(error: Exception) -> int | None:
    """The errno of an exception, or the one in its message; None if there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    return next((number for number in _SYSTEM_ERRORS if os.strerror(number) in str(error)), None)


def header(config: Config, plan: MeshPlan) -> list[str]:
    """The effective config, parameters, memory and devices, in lines that fit a terminal."""
    memory = training_memory(config, plan)
    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in memory.items())
    mesh = ", ".join(f"{name}:{size}" for name, size in plan.shape.items()) or "one device"
    layout = ", ".join(f"{tensor}:{mesh}" for tensor, mesh in plan.rules.items())
    as_run = shown(tf.io.gfile.join(config.training.model_path, "config.json"))
    return [
        f"config {config.source} (every key as run: {as_run})",
        *([f"keys: {origins}"] if (origins := origins_line(config.source)) else []),
        *_settings(config),
        f"{weight_count(config.model):,} parameters, {flops_per_token(config) / 1e6:.1f} MFLOP a trained token",
        f"memory of each device, about {human_bytes(sum(memory.values()))}: {parts}",
        *_snapshot_line(config),
        f"devices {', '.join(name.lstrip('/') for name in plan.devices)}; mesh "
        f"{mesh}{'; layout ' + layout if layout else ''}",
        *([plan.notice] if plan.notice else []),
    ]


def _snapshot_line(config: Config) -> list[str]:
    """The host memory for writing checkpoints."""
    if not config.training.background_checkpoints:
        return []
    whole = training_memory(config)
    size = human_bytes(whole["weights"] + whole["optimizer"])
    return [f"while a checkpoint is written, {size} of the host's memory more (background_checkpoints = false: less)"]


def warnings(config: Config, plan: MeshPlan) -> list[str]:
    """Warnings about settings that work but have a cost."""
    width, on_cpu = config.model.n_embd, len(plan.devices) == 1 and "CPU" in plan.devices[0]
    if config.training.precision != "bfloat16" or not on_cpu or processor.bfloat16_wins(width) is not False:
        return []
    fast = processor.bfloat16_wins(processor.MIN_BFLOAT16_WIDTH)
    why = f"at n_embd = {width}, less than {processor.MIN_BFLOAT16_WIDTH}" if fast else "on this CPU"
    return [f"{config.source}: precision = bfloat16: is slower than float32 {why}; leave the key out to train here"]


def _settings(config: Config) -> list[str]:
    """The keys that differ from their constant defaults, one paragraph for each group."""
    values, lines = config.to_json(), []
    for group in GROUPS:
        settings: Group = getattr(config, group)
        fields = type(settings).model_fields
        shown = [
            f"{name} {_plain(values[name])}"
            for name in keys(type(settings))
            if getattr(settings, name) != fields[name].default
        ]
        lines += _wrapped(f"  {group:9} ", shown) if shown else []
    return lines


def _wrapped(title: str, items: list[str]) -> list[str]:
    """Items after a title, in lines that only break between items."""
    unbroken = ", ".join(item.replace(" ", "\0") for item in items)
    lines = textwrap.wrap(
        unbroken, 118, initial_indent=title, subsequent_indent=" " * len(title), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\0", " ") for line in lines]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def metrics_row(
    step: int, values: Mapping[str, float], tokens_per_second: float | None, mfu: float | None
) -> dict[str, Any]:
    """A line of `metrics.jsonl`: the metrics of every run, then those of this model."""
    first = ("loss", "nll", "lr", "grad_norm")
    return {
        "step": step,
        **{name: values[name] for name in first},
        "tokens_per_second": tokens_per_second,
        "mfu": mfu,
        **{name: value for name, value in values.items() if name not in first},
    }


_REWARDS = ("rewards/margin", "rewards/accuracy", "kl")


def log_line(row: dict[str, Any], total: int, rate: float | None) -> str:
    """The log line of a training step."""
    speed = f", {row['tokens_per_second']:,.0f} tokens/s" if row["tokens_per_second"] else ""
    mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] else ""
    loads = [value for name, value in row.items() if name.startswith("load/")]
    rewards = [f", {name.removeprefix('rewards/')} {row[name]:.4f}" for name in _REWARDS if name in row]
    experts = f", expert load {min(loads):.3f} to {max(loads):.3f}" if loads else ""
    left = f", {tqdm.format_interval((total - row['step']) / rate)} left" if rate else ""
    return (
        f"step {row['step']}/{total}: loss {row['loss']:.4f}, nll {row['nll']:.4f}, lr {row['lr']:.2e}, "
        f"gradient norm {row['grad_norm']:.3f}{experts}{''.join(rewards)}{speed}{mfu}{left}"
    )


def evaluation_line(row: Mapping[str, Any]) -> str:
    """The log line of a row of `eval.jsonl`."""
    if row["task"] != "validation":
        shown = [name for name in row if f"{name}_stderr" in row and row[name] is not None]
        found = ", ".join(f"{name} {row[name]:,.6g}{_error(row, name)}" for name in shown)
        return f"step {row['step']}: {row['task']} {found} over {row['tokens']:,} tokens"
    if "margin" in row:
        margin = "" if row["margin"] is None else f", margin {row['margin']:.4f}"
        return (
            f"step {row['step']}: validation loss {row['loss']:.4f}, accuracy {row['accuracy']:.2%}{margin} over "
            f"{row['examples']:,} examples"
        )
    bits = f", {row['bits_per_byte']:.4f} bits per byte" if row["bits_per_byte"] is not None else ""
    return (
        f"step {row['step']}: validation nll {row['nll']:.4f}, perplexity {row['perplexity']:.2f}{bits}, "
        f"accuracy {row['accuracy']:.2%} over {row['tokens']:,} tokens"
    )


def _error(row: Mapping[str, Any], name: str) -> str:
    error = row[f"{name}_stderr"]
    return "" if error is None else f" ± {float(f'{error:.2g}'):,.6g}"  # two significant digits, without an exponent


def keep_evaluation(rows: JsonLines, row: Mapping[str, Any]) -> None:
    """Write the result of an evaluation during training to `eval.jsonl` (`rows`), TensorBoard and the log."""
    for name, value in row.items():
        if name != "step" and isinstance(value, (int, float)):
            tf.summary.scalar(f"{row['task']}/{name}", value, step=row["step"])
    rows.append(row)
    log.info(evaluation_line(row))


def interrupted_line(step: int, total: int, checkpoint: str) -> str:
    """The log line of a run that a signal ended."""
    return f"interrupted at step {step} of {total}, saved in {checkpoint}: the same command continues from there"


def diverged(config: Config, loss: float, step: int, checkpoint: str | None) -> InputError:
    """The error of a run on a TPU whose loss is not finite. `checkpoint`: the newest, if there is one."""
    return InputError(
        f"{config.source}: the loss became {loss} by step {step}; the newest checkpoint is {checkpoint or 'none yet'}; "
        f"train with a lower lr ({config.optimizer.lr}) or more warmup_steps ({config.optimizer.warmup_steps})"
    )


def write_config(config: Config) -> None:
    """Write the config and its dataset configs into the run's directory. `gpt_mesh.load(directory)` reads them."""
    directory = config.training.model_path
    files.make_folder(os.path.join(directory, "dataset_configs"))
    strict_json.write(os.path.join(directory, "config.json"), config.to_json(), durable=True)
    for use in config.data.datasets:
        path = os.path.join(directory, "dataset_configs", f"{use.id}.json")
        strict_json.write(path, dataset_json(use.dataset), durable=True)


def dataset_json(dataset: DatasetConfig) -> dict[str, Any]:
    """The dataset config with absolute paths."""
    values = dataset.model_dump(mode="json")
    for key in ("path", "eval_path"):
        values[key] = [_absolute(dataset.source, pattern) for pattern in values[key]]
    for key in ("tokenizer_path", "lambada_tokens_path"):
        if values[key] is not None:
            values[key] = _absolute(dataset.source, values[key])
    return values


def _absolute(source: str, path: str) -> str:
    """A local path or glob, resolved like those in dataset configs, as an absolute path; unchanged if there is no such
    file."""
    if "://" not in path:
        for candidate in (path, os.path.join(os.path.dirname(source), path)):
            if glob.glob(os.path.expanduser(candidate), recursive=True):
                return os.path.abspath(os.path.expanduser(candidate))
    return path
