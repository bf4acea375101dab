"""The library's face: train, evaluate and load a model, and use it.

    import gpt_mesh

    gpt_mesh.train("laptop")                          # a config's name or path, or a Config
    print(gpt_mesh.evaluate("laptop")["bits_per_byte"])
    model = gpt_mesh.load("runs/laptop")              # a run's directory, one of its checkpoints, or a config
    print(model.generate(["def main("], max_new_tokens=40)[0][0])
    print(model.score(["import os"])[0].sum)          # log-probability in nats
    print(model.logits([[5, 7, 11]]).shape)           # (1, 3, n_vocab)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, overload

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_mesh.cluster.addresses import Cluster, find_cluster
from gpt_mesh.cluster.chief import hosts_of
from gpt_mesh.config import Config, generation_settings, load_config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens, special_tokens
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.building import make_plan, restored_engine
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.results import result_row
from gpt_mesh.evaluation.scoring import Score, Scorer, checked_tokens, score_document
from gpt_mesh.evaluation.tasks import make_task, tasks_of
from gpt_mesh.evaluation.validation import Validation, model_encoder
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.generation.generator import Defaults, Generator
from gpt_mesh.generation.requests import seeded_requests
from gpt_mesh.interop import saved_model
from gpt_mesh.interop.initial_weights import InitFrom
from gpt_mesh.meshes.devices import split_cpu_for
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.objectives.registry import check_predicts_next
from gpt_mesh.planning import layout_report
from gpt_mesh.planning.layout_search import Candidate
from gpt_mesh.storage.progress import alive, set_up_logging
from gpt_mesh.tpu.devices import find as find_tpu
from gpt_mesh.tpu.engine import tpu_engine
from gpt_mesh.tpu.loop import TpuTrainer
from gpt_mesh.training import report, runs
from gpt_mesh.training.loop import Trainer, TrainResult, finished
from gpt_mesh.training.profiling import Steps

__all__ = ["Model", "Score", "TrainResult", "evaluate", "evaluations", "find_layouts", "load", "train"]


def train(
    config: Config | str,
    *,
    devices: Sequence[str] | None = None,
    fit_mesh: bool = False,
    steps_per_checkpoint: int = 5000,
    sacred_id: str | None = None,
    new: bool = False,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
    init_from: InitFrom | str | None = None,
    profile: tuple[int, int] | int | None = None,
) -> TrainResult:
    """Train a model in its config's `model_path`. A run that has a checkpoint continues from the newest one.

    SIGINT and SIGTERM end the run after the current step, with a checkpoint from which the next call continues.

    Progress goes to standard error, unless the program has set up `logging`: then to the logger "gpt".

    Args:
        config: a Config, or the name or path of one (see `load_config`).
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

    Returns:
        The last step, the newest checkpoint, and the last evaluation.

    Raises:
        InputError: something in the config cannot work, or a worker was lost.
    """
    if not logging.getLogger().handlers:  # a program that set up logging decides itself what is shown
        set_up_logging()
    config = _as_config(config)
    steps = Steps(*profile) if isinstance(profile, tuple) else profile
    if isinstance(steps, Steps):
        steps.check(config)
    begin = InitFrom(init_from) if isinstance(init_from, str) else init_from
    if tpu is not None:
        if begin is not None:
            raise InputError("init_from does not go with a TPU: begin the run elsewhere, and go on there")
        found = find_tpu(tpu, config)
        if not new and (result := finished(config, steps_per_checkpoint, sacred_id)) is not None:
            return result
        with report.claimed(config):
            return TpuTrainer(
                config, found, fit_mesh=fit_mesh, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id,
                new=new,
            ).run()  # fmt: skip
    with hosts_of(_as_cluster(cluster), devices) as hosts, hosts.guarded(lambda: runs.how_to_resume(config)):
        plan = make_plan(config, hosts, fit=fit_mesh, training=True)
        ended = None if new or isinstance(steps, int) else finished(config, steps_per_checkpoint, sacred_id)
        if ended is not None:
            return ended
        with report.claimed(config) as lease:
            return Trainer(
                config, plan, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id, new=new, hosts=hosts,
                init_from=begin, profile=steps, lease=lease,
            ).run()  # fmt: skip


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
        `nll_stderr`, `perplexity`, `bits_per_byte` (None without a tokenizer), `accuracy`, `tokens`, `bytes`.

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
    with _engine(config, path, devices, cluster, tpu) as engine:
        for one in tasks:
            yield result_row(step, one, one.run(engine), config)


def load(
    config_or_checkpoint: Config | str,
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
    config, checkpoint = runs.find(config_or_checkpoint)
    return model(config, checkpoint=checkpoint)


class Model:
    """A trained model: NumPy and text in, NumPy and text out."""

    def __init__(
        self,
        config: Config,
        *,
        checkpoint: str | None = None,
        devices: Sequence[str] | None = None,
        cluster: Cluster | str | None = None,
        tpu: str | None = None,
    ) -> None:
        """See `load`. `checkpoint`: default: the newest in the config's `model_path`."""
        self.config = config
        split_cpu_for(devices or [])
        self.checkpoint = runs.find_checkpoint(config, checkpoint)
        self.step = checkpoints.step_of(self.checkpoint)
        with ExitStack() as resources:
            self.engine = resources.enter_context(_engine(config, self.checkpoint, devices, cluster, tpu))
            self._resources = resources.pop_all()
        self._encoder: Encoder | None = None
        self._generator: Generator | None = None

    def __repr__(self) -> str:
        weights, n_ctx = weight_count(self.config.model), self.config.model.n_ctx
        return f"<Model of {weights:,} parameters at step {self.step:,}, context {n_ctx:,}: {self.checkpoint}>"

    def close(self) -> None:
        """Release the other hosts of a cluster. Does nothing on a single host."""
        self._resources.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, traceback)

    @property
    def encoder(self) -> Encoder:
        """The tokenizer of the config's first dataset.

        Raises:
            InputError: it is missing, or larger than the model's vocabulary.
        """
        if self._encoder is None:
            self._encoder = model_encoder(self.config)
        return self._encoder

    @property
    def special_tokens(self) -> SpecialTokens:
        """What begins and what ends a text: the ids in the config of the first dataset, or else the tokenizer's."""
        return special_tokens(self.config.data.datasets[0].dataset, self.encoder)

    @property
    def eos_id(self) -> int | None:
        """The token that ends documents, the first of those that end a generated text."""
        return self.special_tokens.eos_id

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Logits of the next token at each position.

        Args:
            tokens: ids [batch, n] or [n], with n at most n_ctx.

        Returns:
            float32 [batch, n, n_vocab] or [n, n_vocab]. The softmax of [..., i, :] is the distribution of token i + 1.

        Raises:
            InputError: too many tokens, or an id outside the vocabulary.
        """
        ids = checked_tokens(tokens, self.config.model)
        logits: NDArray[np.float32] = np.asarray(self.engine.logits(np.atleast_2d(ids)))
        return logits[0] if ids.ndim == 1 else logits

    @overload
    def score(self, texts: str) -> Score: ...  # type: ignore[overload-overlap]  # a str is a Sequence[str]

    @overload
    def score(self, texts: Sequence[str]) -> list[Score]: ...

    def score(self, texts: str | Sequence[str]) -> Score | list[Score]:
        """Log-probability of each token of each text. A text has the token `bos_id` of the dataset config before it, if
        that is set; nothing else is added.

        A text longer than the context is scored in windows that overlap by one token, so that each token is scored
        once.

        Args:
            texts: a list of texts, or one text.

        Returns:
            A `Score` for each text; for one text, its `Score`.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        if isinstance(texts, str):
            return self.score([texts])[0]
        documents = zip(self.encoder.encode_documents(list(texts)), texts, strict=True)
        bos_id = self.special_tokens.bos_id
        return [score_document(self.engine, tokens, text, bos_id) for tokens, text in documents]

    @overload
    def generate(
        self,
        prompts: str,
        *,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        samples: int = ...,
        seed: int | None = ...,
        entmax: bool | None = ...,
        **more: Any,
    ) -> list[str]: ...

    @overload
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = ...,
        temperature: float | None = ...,
        samples: int = ...,
        seed: int | None = ...,
        entmax: bool | None = ...,
        **more: Any,
    ) -> list[list[str]]: ...

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        samples: int = 1,
        seed: int | None = None,
        entmax: bool | None = None,
        **more: Any,
    ) -> list[str] | list[list[str]]:
        """Generate continuations. They do not repeat the prompt.

        Args:
            prompts: a list of texts, or one text. An empty text starts from a special token.
            max_new_tokens: default: the config's `predict_max_steps`, or else until the context is full.
            temperature: 0 always takes the most likely token.
            samples: continuations of each prompt.
            seed: default: the config's.
            entmax: draw from the sparse 1.5-entmax instead of the softmax of the logits.
            more: other keys of `config.GenerationSettings`, such as `top_p` or `stop`. (`logprobs` is not one of them;
                use `generator()`.) The config's `generation` gives the values of keys that are not set here.

        Returns:
            For each prompt a list of `samples` texts; for one text, that list. A text ends at an end-of-text token,
            at a stop string, or at its maximal length. Beam search returns the best beam first.

        Raises:
            InputError: an argument out of range, or a model that does not predict the next token (`mlm_training`).
        """
        generator = self.generator()
        texts = [prompts] if isinstance(prompts, str) else prompts
        named = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "entmax": entmax}
        given = {name: value for name, value in named.items() if value is not None} | {"num_samples": samples, **more}
        if more.get("logprobs") is not None:
            raise InputError(
                f"generate: logprobs = {more['logprobs']}: texts have no place for them; use model.generator().generate"
            )
        usual = self.config.training.generation.model_copy(update={"logprobs": None})
        settings = generation_settings(given, "generate", usual)
        requests = seeded_requests(texts, settings, self.config.training.seed)
        with alive("generating"):
            found = [[one.text for one in samples] for samples in generator.generate_samples(requests)]
        return found[0] if isinstance(prompts, str) else found

    def generator(self) -> Generator:
        """The generator behind `generate`: it runs many requests with their own settings at once, and streams.

        Each call returns the same object.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        if self._generator is None:
            model, training = self.config.model, self.config.training
            defaults = Defaults(model.n_ctx, training.predict_max_steps, training.seed)
            special = self.special_tokens
            self._generator = Generator(self.encoder, special, defaults, Decoder(self.engine, special.eos_ids))
        return self._generator

    def scorer(self, top: int) -> Scorer:
        """A scorer for rows of token ids. It also gives the `top` most likely tokens at each position.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        return Scorer(self.engine, top)

    def export(self, directory: str, *, overwrite: bool = False) -> list[str]:
        """Write a TensorFlow SavedModel, which runs without this package (docs/saved_model.md).

        Args:
            directory: a new or an empty one.
            overwrite: replace a SavedModel that is there.

        Returns:
            The names of its signatures: "logits", and for models that predict the next token "generate" and "greedy".

        Raises:
            InputError: the directory is in use or cannot be written, or the tokenizer is missing.
        """
        dataset = self.config.data.datasets[0].dataset
        encoder = None if dataset.tokenizer_path is None else self.encoder
        special = special_tokens(dataset, encoder)
        return saved_model.save(directory, self.config, self.engine.snapshot(), encoder, special, overwrite=overwrite)


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
    return layout_report.find_layouts(_as_config(config), devices, keep_mesh=keep_mesh)


@contextmanager
def _engine(
    config: Config, checkpoint: str, devices: Sequence[str] | None, cluster: Cluster | str | None, tpu: str | None
) -> Iterator[Engine]:
    """An engine on the devices that the arguments name, with the weights of a checkpoint."""
    if tpu is not None:
        with closing(tpu_engine(config, tpu)) as engine:
            engine.restore(checkpoint, finite=True)
            yield engine
        return
    with hosts_of(_as_cluster(cluster), devices) as hosts, hosts.guarded(runs.how_to_repeat):
        yield restored_engine(config, checkpoint, hosts)


def _as_config(config: Config | str) -> Config:
    return load_config(config) if isinstance(config, str) else config


def _as_cluster(cluster: Cluster | str | None) -> Cluster | None:
    return find_cluster(cluster, None, {}) if isinstance(cluster, str) else cluster
