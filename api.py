"""The library's face: train, evaluate and load a model, and use it.

    import gpt_mesh

    model = gpt_mesh.train(data=[text], train_steps=1000).model   # in memory: a list, an array, a generator, a table
    model.save("my_model")

    gpt_mesh.train("laptop", train_steps=500)         # a config's name or path, with keys above it
    print(gpt_mesh.evaluate("laptop")["bits_per_byte"])
    model = gpt_mesh.load("runs/laptop")              # a run's directory, one of its checkpoints, or a config
    print(model.generate(["def main("], max_new_tokens=40)[0][0])
    print(model.score(["import os"])[0].sum)          # log-probability in nats
    print(model.logits([[5, 7, 11]]).shape)           # (1, 3, n_vocab)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.config import Config, load_config
from gpt_mesh.data.in_memory import Data
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.results import result_row
from gpt_mesh.evaluation.scoring import Score
from gpt_mesh.evaluation.tasks import make_task, tasks_of
from gpt_mesh.evaluation.validation import Validation
from gpt_mesh.interop.initial_weights import InitFrom
from gpt_mesh.library.devices import engine_on
from gpt_mesh.library.model import Model
from gpt_mesh.library.run import Trained, run, show_progress
from gpt_mesh.meshes.devices import split_cpu_for
from gpt_mesh.planning import layout_report
from gpt_mesh.planning.layout_search import Candidate
from gpt_mesh.training import runs
from gpt_mesh.training.epochs import with_epochs
from gpt_mesh.training.events import Event, EventHandler
from gpt_mesh.training.in_python import AnyModel, AnyTokenizer, InMemory, config_of, config_with_data, plain
from gpt_mesh.training.loop import TrainResult
from gpt_mesh.training.profiling import Steps

__all__ = [
    "Event", "Model", "Score", "TrainResult", "Trained", "evaluate", "evaluations", "find_layouts", "load", "train",
]  # fmt: skip


def train(
    model: AnyModel | None = None,
    *,
    data: Data | None = None,
    eval_data: Data | None = None,
    tokenizer: AnyTokenizer | None = None,
    watch: EventHandler | None = None,
    epochs: float | None = None,
    devices: Sequence[str] | None = None,
    fit_mesh: bool = False,
    steps_per_checkpoint: int = 5000,
    sacred_id: str | None = None,
    new: bool = False,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
    init_from: InitFrom | str | os.PathLike[str] | None = None,
    profile: tuple[int, int] | int | None = None,
    **keys: Any,
) -> Trained:
    """Train a model in its config's `model_path`. A run that has a checkpoint continues from the newest one.

    SIGINT (Ctrl-C, also in a notebook) and SIGTERM end the run after the current step, with a checkpoint from which the
    next call continues: the result has the model as it is then.

    Progress goes to standard error, unless the program has set up `logging`: then to the logger "gpt".

    Args:
        model: a config's name or path, a run's directory, a Config, a `ModelConfig`, or a dictionary of keys
            (docs/parameters.md). With `data`, keys that are given nowhere have defaults (`training.in_python`): a
            model of 4 layers of 128 features. Without `model_path`, such a run is in a temporary folder.
        data: documents to train on, instead of the config's `datasets`: texts; token ids, as lists or arrays [n] or
            [documents, n]; pairs (prompt, completion), of which only the completion is learned; pairs (ids, mask),
            where the mask says which ids are learned; or rows with `text`, `prompt` and `completion`, or `input_ids`
            with `loss_mask` or `labels`, as a Hugging Face dataset yields them. Of an iterator only as much is read as
            the steps take. Rows of n_ctx + 1 ids are samples as they are; other documents are joined, with an
            end-of-text token between them, and windows are drawn from that.
            With `objective="dpo"`, "kto" or "reward": preferences, as rows with `prompt`, `chosen` and `rejected`, or
            `prompt`, `completion` and `label`.
        eval_data: the same, held out: it is evaluated after each checkpoint.
        tokenizer: of the texts: a path, a name on the Hugging Face hub, or an object of tokenizers or transformers.
            Default: the config's, or else one of the texts' characters.
        watch: called with each `Event`: metrics every `log_interval` steps, evaluations, samples. If it returns True,
            the run ends after the current step, as by Ctrl-C.
        epochs: passes over the data, instead of `train_steps`.
        devices: such as ["device:GPU:0"]; default: all visible GPUs, or the CPU if there are none.
        fit_mesh: use a mesh made for another number of devices, with its sizes changed to fit these
            (`meshes.fitting.fit_sizes` has the rule). The batch size stays the same.
        steps_per_checkpoint: steps between checkpoints. Evaluation and samples follow each checkpoint, if the config
            asks for them.
        sacred_id: a name for this run's outputs.
        new: delete the run's checkpoints and start at step 0. Nothing is deleted before all other input was checked.
        cluster: "host0:port,host1:port": train on the devices of these hosts. This host is the first one;
            `main.py --worker` runs on each of the others, and `devices` are those of each host. Call this once in a
            process, before TensorFlow has computed anything. If a worker is lost while TensorFlow waits for it, the
            process ends.
        tpu: train on this TPU instead of `devices`: a name, "colab", "local", or "cpu" for a rehearsal (docs/tpu.md).
            Needs TensorFlow 2.15.
        init_from: start a new run with the weights of a checkpoint, a run's directory or a Hugging Face folder. An
            `InitFrom` also says what may differ from the config (docs/fine_tuning.md). Ignored if the run has a
            checkpoint.
        profile: first and last step to profile, or a number n: the next n steps. A finished run then takes n steps
            that it does not save. The profile, for TensorBoard, is written into the run's directory.
        keys: keys of the config, above those of `model`, such as `train_steps=500`.

    Returns:
        The last step, the newest checkpoint, the last evaluation, and the model.

    Raises:
        InputError: something in the config or the data cannot work, or a worker was lost.
    """
    show_progress()
    keys = plain(keys)
    if data is not None:
        config = config_with_data(model, keys, InMemory(data, eval_data, tokenizer), new=new)
    elif eval_data is not None or tokenizer is not None:
        raise InputError("train(): eval_data and tokenizer go with data; a config's datasets have their own")
    elif model is None:
        raise InputError("train(): there is nothing to train on: give data, or a config that names datasets")
    else:
        config = config_of(model, keys)
    if epochs is not None:
        config = with_epochs(config, epochs, "epochs")
    result = run(
        config,
        devices=devices,
        fit_mesh=fit_mesh,
        steps_per_checkpoint=steps_per_checkpoint,
        sacred_id=sacred_id,
        new=new,
        cluster=cluster,
        tpu=tpu,
        init_from=InitFrom(os.fspath(init_from)) if isinstance(init_from, (str, os.PathLike)) else init_from,
        profile=Steps(*profile) if isinstance(profile, tuple) else profile,
        watch=watch,
    )
    return Trained(result.step, result.interrupted, result.checkpoint, result.evaluation, config, devices)


def evaluate(
    config: Config | str,
    *,
    task: str = Validation.name,
    file: str | None = None,
    stride: int | None = None,
    download: bool = False,
    devices: Sequence[str] | None = None,
    checkpoint: str | None = None,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
) -> dict[str, float | None]:
    """Evaluate a checkpoint on one task.

    Args:
        config: as for `load`.
        task: "validation" (the held-out text, `eval_path`), "lambada" or "wikitext" (docs/evaluation.md).
        file: the task's file; default: the place where the task looks for it.
        stride: use sliding windows. Each window after the first of a text scores this many new tokens.
        download: fetch the task's file if it is missing.
        devices: as for `train`. A mesh made for another number of devices is fitted to these.
        checkpoint: default: the one that `config` names, or else the newest of the run.
        cluster, tpu: as for `train`.

    Returns:
        `step`, and the task's metrics with their standard errors. For "validation": `nll` (nats per token),
        `nll_stderr`, `perplexity`, `bits_per_byte` (None without a tokenizer), `accuracy`, `tokens`, `bytes`; of
        preferences `loss`, `nll`, `accuracy`, `margin`, `examples`.

    Raises:
        InputError: there is no checkpoint, no held-out text, or the task's file is missing.
    """
    [row] = evaluations(
        config, task=task, file=file, stride=stride, download=download, devices=devices, checkpoint=checkpoint,
        cluster=cluster, tpu=tpu,
    )  # fmt: skip
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def evaluations(
    config: Config | str,
    *,
    task: str | None = None,
    file: str | None = None,
    stride: int | None = None,
    download: bool = False,
    devices: Sequence[str] | None = None,
    checkpoint: str | None = None,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Evaluate a checkpoint on several tasks, one after the other.

    Args:
        task: only this one. Default: all tasks of the config: `eval_tasks`, and the held-out text if `eval_steps` > 0
            or there are no other tasks.
        config, file, stride, download, devices, checkpoint, cluster, tpu: as for `evaluate`.

    Yields:
        A row of `eval.jsonl` for each task, as soon as it is done (`evaluation.results.result_row`).

    Raises:
        InputError: as for `evaluate`.
    """
    if isinstance(config, str):
        config, named = runs.find(config)
        checkpoint = checkpoint or named
    split_cpu_for(devices or [])  # must come before reading held-out text, which starts TensorFlow
    path = runs.find_checkpoint(config, checkpoint)
    if task is not None:
        tasks = [make_task(config, task, file=file, stride=stride, download=download)]
    else:
        held_out = config.training.eval_steps > 0 or not config.training.eval_tasks
        tasks = tasks_of(config, validation=held_out, stride=stride, download=download)
    step = checkpoints.step_of(path)
    with engine_on(config, path, devices, cluster, tpu) as engine:
        for one in tasks:
            yield result_row(step, one, one.run(engine), config)


def load(
    config_or_checkpoint: Config | str | os.PathLike[str],
    *,
    devices: Sequence[str] | None = None,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
) -> Model:
    """Load a trained model.

    Args:
        config_or_checkpoint: a config (its newest checkpoint is loaded), a run's directory, or one of its checkpoints
            ("runs/laptop/model.ckpt-500").
        devices: as for `train`. A mesh made for another number of devices is fitted to these.
        cluster: as for `train`. `Model.close`, or a `with` block, releases the other hosts.
        tpu: as for `train`. A model on a TPU has no beam search.

    Raises:
        InputError: there is no such config, run or checkpoint.
    """
    model = partial(Model, devices=devices, cluster=cluster, tpu=tpu)
    if isinstance(config_or_checkpoint, Config):
        return model(config_or_checkpoint)
    config, checkpoint = runs.find(os.fspath(config_or_checkpoint))
    return model(config, checkpoint=checkpoint)


def find_layouts(config: Config | str, *, devices: int, keep_mesh: bool = False) -> list[Candidate]:
    """Find the layouts that take the least memory in training. Memory is estimated; nothing is built.

    Args:
        config: a Config, or the name or path of one.
        devices: how many devices to use. They need not be visible here.
        keep_mesh: only consider a mesh of the config's own `mesh_shape`.

    Returns:
        The layout that takes the least memory, then others that take more memory for less work and communication.
        `plan.shape` and `plan.rules` are the mesh and the layout.

    Raises:
        InputError: the config's mesh is for another number of devices, or the model cannot be split over this many.
    """
    config = load_config(config) if isinstance(config, str) else config
    return layout_report.find_layouts(config, devices, keep_mesh=keep_mesh)
