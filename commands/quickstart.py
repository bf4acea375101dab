"""`--quickstart`: from a folder of text to a trained model and a sample, each step a command that is shown."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown

MINUTES = 10
HELD_OUT = (0.05, 0.25, 0.0)  # shares of the documents to hold out: the first that holds out some, but not all
TRIAL_STEPS = 30  # steps that measure the speed of training
EPOCHS = 40  # a small corpus is not read more often than this: the model would know it by heart
MINIMUM_SIZE = 16  # tokens; shorter documents are dropped
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


class Quickstart(Mode):
    """Trains a first model on a folder of text. Started again, it continues after the last complete step."""

    switches = (flag("--quickstart", metavar="FOLDER", help="train a first model on a folder of text, in runs/FOLDER"),)
    flags = (
        flag(
            "--minutes", type=_minutes, metavar="N", heading="--quickstart",
            help=f"with --quickstart: minutes that training may take; default: {MINUTES}",
        ),
    )  # fmt: skip
    needs_model = False

    def config(self, arguments: argparse.Namespace) -> tuple[Config, str | None]:
        """The config that fits text, device and time. Text is encoded and training is timed, unless that is done."""
        from gpt_mesh.config import load_config

        files = Files.of(arguments.quickstart)
        if not os.path.exists(files.config):
            dataset = _encoded(files)
            _write_config(files, dataset, arguments.minutes or MINUTES)
        else:
            _say(f"{files.config} is there: continuing (delete {files.folder} to start again)")
        return load_config(files.config), None

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        files, steps = Files.of(arguments.quickstart), config.training.train_steps
        _command("main.py", "--model", files.config, "--steps_per_checkpoint", str(max(1, math.ceil(steps / 5))))
        _command("main.py", "--model", files.folder, "--predict", "--text", "The", "--max_new_tokens", "60")
        _say(f"\nThe model is in {files.folder}. What to type next:")
        for more in (
            ["--predict", "--text", "Once upon a time"], ["--interactive"], ["--serve"], ["--eval"],
        ):  # fmt: skip
            if more != ["--eval"] or config.training.eval_steps:
                _say(f"  {_shown('main.py', '--model', files.folder, *more)}")
        _say(f"To train longer, raise train_steps in {files.config} and run --quickstart again.")
        return 0


@dataclass(frozen=True)
class Files:
    """Where a quickstart keeps what it makes. `folder` is also the run's directory."""

    text: str
    name: str
    folder: str

    @classmethod
    def of(cls, text: str) -> Files:
        """For a folder of text.

        Raises:
            InputError: there is no such folder.
        """
        if not os.path.isdir(text):
            raise InputError(f"--quickstart {shown(text)}: is not a folder; name a folder of text files")
        name = re.sub(r"[^\w-]+", "_", os.path.basename(os.path.abspath(text))).strip("_") or "text"
        return cls(text, name, os.path.join("runs", name))

    @property
    def tokenizer(self) -> str:
        return os.path.join(self.folder, "tokenizer")

    @property
    def config(self) -> str:
        return os.path.join(self.folder, f"{self.name}.json")

    @property
    def dataset_config(self) -> str:
        return os.path.join(self.folder, "dataset_configs", f"{self.name}.json")


def _encoded(files: Files) -> dict[str, Any]:
    """The dataset config of the encoded text, with `tokens`, the number of tokens to train on."""
    from gpt_mesh.data.encoders import TOKENIZER_FILE
    from gpt_mesh.data.manifest import load_manifest

    tokenizer = os.path.join(files.tokenizer, TOKENIZER_FILE)
    if not os.path.exists(tokenizer):
        size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(files.text) for name in names)
        _command(
            "data/train_tokenizer.py", "--base_dir", files.text, "--output_dir", files.tokenizer, "--vocab_size",
            str(_vocabulary(size)),
        )  # fmt: skip
    os.makedirs(os.path.dirname(files.dataset_config), exist_ok=True)
    for share in HELD_OUT:
        folder = os.path.join(files.folder, f"data_{share:.0%}".rstrip("%"))
        manifest = load_manifest(folder, files.name) if os.path.isdir(folder) else None
        if manifest is None or not manifest.complete or not os.path.exists(files.dataset_config):
            with suppress(FileNotFoundError):
                os.remove(files.dataset_config)  # of another share
            status = _command(
                "data/create_tfrecords.py", "--input_dir", files.text, "--name", files.name, "--output_dir", folder,
                "--encoder_path", tokenizer, "--minimum_size", str(MINIMUM_SIZE), "--eval_fraction", str(share),
                "--write_dataset_config", files.dataset_config, *(["--resume"] if manifest else []),
                may_fail=share > 0,
            )  # fmt: skip
            if status:  # every document fell to it; what else is wrong comes again without held-out text
                continue
            manifest = load_manifest(folder, files.name)
        assert manifest is not None, folder
        if share == 0 or (manifest.splits["train"].shards and manifest.splits["eval"].shards):
            break
    assert manifest is not None, files.text
    with open(files.dataset_config, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return {**found, "tokens": sum(shard.tokens for shard in manifest.splits["train"].shards)}


def _vocabulary(size: int) -> int:
    """Tokens of the vocabulary for this many bytes of text."""
    return next((tokens for below, tokens in ((1e6, 1024), (1e7, 4096), (1e9, 8192)) if size < below), 32768)


def _model(tokens: int, minutes: float, gpu: bool) -> dict[str, Any]:
    """Keys of a model that this many tokens can teach something, and that the device can train in the time."""
    if not gpu:
        width = 256 if tokens > 5e6 and minutes >= 60 else 128
        return {"n_layer": 4, "n_embd": width, "n_head": 4, "n_ctx": 128, "train_batch_size": 16, "lr": 0.001}
    large = tokens > 5e7 and minutes >= 60
    layers, width, context = (12, 768, 1024) if large else (8, 512, 512)
    return {
        "n_layer": layers, "n_embd": width, "n_head": width // 64, "n_ctx": context, "train_batch_size": 16,
        "lr": 0.0006, "precision": "bfloat16",
    }  # fmt: skip


def _write_config(files: Files, dataset: dict[str, Any], minutes: float) -> None:
    """Write the config of the run, after a trial that measures how many steps the time is enough for."""
    import tensorflow as tf

    from gpt_mesh.storage import strict_json
    from gpt_mesh.storage.json_lines import JsonLines

    model = _model(dataset["tokens"], minutes, bool(tf.config.list_physical_devices("GPU")))
    stitch = max(10, math.ceil((model["n_ctx"] + 1) / MINIMUM_SIZE))
    values = {
        **model, "n_vocab": dataset["n_vocab"], "attention_types": [[["global", "local"], model["n_layer"] // 2]],
        "local_attention_radius": model["n_ctx"] // 4, "opt_name": "adam", "beta2": 0.95, "weight_decay": 0.1,
        "datasets": [[files.name, stitch, "documents_random", 1.0]], "model_path": files.folder,
    }  # fmt: skip
    trial, trial_config = os.path.join(files.folder, "trial"), os.path.join(files.folder, "trial.json")
    shutil.rmtree(trial, ignore_errors=True)
    strict_json.write(trial_config, {**values, "train_steps": TRIAL_STEPS, "iterations": 10, "model_path": trial})
    _say(f"{TRIAL_STEPS} steps, to measure how fast this machine trains:")
    _command("main.py", "--model", trial_config)
    rate = JsonLines(os.path.join(trial, "metrics.jsonl")).rows()[-1]["tokens_per_second"]
    shutil.rmtree(trial)
    os.remove(trial_config)
    step = model["train_batch_size"] * model["n_ctx"]
    steps = max(TRIAL_STEPS, min(int(rate * 60 * minutes / step), EPOCHS * dataset["tokens"] // step))
    values |= {
        "train_steps": steps, "warmup_steps": min(100, steps // 10), "iterations": max(1, min(50, steps // 10)),
        "eval_steps": 20 if dataset["eval_path"] else 0,
    }  # fmt: skip
    strict_json.write(files.config, values)
    _say(
        f"{files.config}: {steps:,} steps of {step:,} tokens, about {steps * step / rate / 60:.1f} minutes at "
        f"{rate:,.0f} tokens/s, {steps * step / dataset['tokens']:.1f} times the {dataset['tokens']:,} tokens of text"
    )
    if not dataset["eval_path"]:
        _say("no text is held out, as there are too few documents: more, smaller files give a score of unseen text")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _command(script: str, *arguments: str, may_fail: bool = False) -> int:
    """Show a command, run it, and return its status. Unless it may fail, a status other than 0 ends the program.

    Ctrl-C and SIGTERM reach the command, which may have something to save; then the program ends too.
    """
    _say(f"\n$ {_shown(script, *arguments)}")
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    shown = None if "--predict" in arguments else sys.stderr  # standard output is for the sample
    child = subprocess.Popen([sys.executable, os.path.join(PACKAGE, script), *arguments], stdout=shown)
    try:
        status = child.wait()
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit):  # the terminal sends Ctrl-C to the command, nothing sends it SIGTERM
            child.terminate()
        child.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if status and not may_fail:
        sys.exit(status if status > 0 else 128 - status)
    return status


def _shown(script: str, *arguments: str) -> str:
    """The command as one would type it."""
    path = os.path.join(PACKAGE, script)
    local = os.path.relpath(path)
    return shlex.join(["python3", path if local.startswith("..") else local, *arguments])
