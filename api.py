"""The library's face: train, evaluate, load a model and use it. `main.py` is written on it.

import api

api.train("laptop")                                # a config's name or path, or a Config
print(api.evaluate("laptop")["bits_per_byte"])
model = api.load("runs/laptop")                    # a run's directory, one of its checkpoints, or a config
print(model.generate(["def main("], max_new_tokens=40)[0][0])
print(model.score(["import os"])[0].sum)           # log-probability in nats
print(model.logits([[5, 7, 11]]).shape)            # (1, 3, n_vocab)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_mesh.cluster.addresses import Cluster, find_cluster
from gpt_mesh.cluster.chief import Hosts, hosts_of
from gpt_mesh.config import Config, generation_settings, load_config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.engine import checkpoints
from gpt_mesh.engine.engine import Engine
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.results import result_row
from gpt_mesh.evaluation.scoring import Scorer
from gpt_mesh.evaluation.tasks import make_task, tasks_of
from gpt_mesh.evaluation.validation import Validation, required_encoder
from gpt_mesh.generation.decoder import AtOnce, Batches, Decoder
from gpt_mesh.generation.generator import Generator, Limits
from gpt_mesh.generation.requests import GenerationRequest
from gpt_mesh.interop import saved_model
from gpt_mesh.interop.initial_weights import InitFrom
from gpt_mesh.meshes.devices import MeshPlan, choose_devices, split_cpu_for
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.models.dims import layout_tensors
from gpt_mesh.planning import layout_report
from gpt_mesh.planning.layout_search import Candidate
from gpt_mesh.sample import padded_width
from gpt_mesh.storage.progress import alive, log
from gpt_mesh.tpu.devices import find as find_tpu
from gpt_mesh.tpu.estimator import TpuEngine, TpuSampler
from gpt_mesh.tpu.loop import TpuTrainer
from gpt_mesh.training import runs
from gpt_mesh.training.loop import Trainer, TrainResult, finished
from gpt_mesh.training.profiling import Steps


@dataclass(frozen=True)
class Score:
    """How likely a model finds a document.

    Attributes:
        tokens: ids of the document.
        logprobs: natural log-probability of each token given those before it; None for the first, which nothing
            predicts.
        sum: of the log-probabilities, in nats.
        bytes: of the document, in UTF-8.
    """

    tokens: list[int]
    logprobs: list[float | None]
    sum: float
    bytes: int


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
    profile: tuple[int, int] | None = None,
) -> TrainResult:
    """Train in the config's `model_path`, going on from its newest checkpoint if there is one.

    SIGINT and SIGTERM end the run after the step it is in, with a checkpoint from which the next call goes on.

    Args:
        config: a Config, or what `load_config` takes.
        devices: such as ["device:GPU:0"]; default: every visible GPU, else the CPU.
        fit_mesh: lay the config's mesh over these devices when it is for another number of them
            (`meshes.fitting.fit_sizes` has the rule); the batch stays as it is.
        steps_per_checkpoint: how often to save (and to evaluate and sample, if the config asks for it).
        sacred_id: a name for this run's outputs.
        new: delete the run's checkpoints, once everything else is known to work, and start at step 0.
        cluster: "host0:port,host1:port": train on the devices of these hosts; this one is the first, and
            `main.py --worker` runs on the others. `devices` are those of each host then. One such call a process, and
            before TensorFlow computes anything. If a worker is lost and TensorFlow goes on waiting for it, the process
            ends.
        tpu: train on this TPU in place of `devices`, through TPUEstimator: a name, "colab", "local", or "cpu" to
            rehearse (docs/tpu.md). Needs TensorFlow 2.15.
        init_from: begin a new run with these weights: a checkpoint, a run's directory, a Hugging Face folder, or an
            `InitFrom` of one, which says what else may differ (docs/fine_tuning.md). A run that has a checkpoint goes
            on from that.
        profile: the first and the last step of a TensorBoard profile, written into the run's directory.

    Raises:
        InputError: something the config names cannot work, or a worker was lost.
    """
    config = _as_config(config)
    steps = None if profile is None else Steps(*profile)
    if steps is not None and steps.first > config.training.train_steps:
        raise InputError(
            f"--profile {steps.first}:{steps.last}: {config.source} ends at train_steps {config.training.train_steps}; "
            "name steps up to that"
        )
    begin = InitFrom(init_from) if isinstance(init_from, str) else init_from
    if tpu is not None:
        if begin is not None:
            raise InputError("init_from does not go with a TPU: begin the run elsewhere, and go on there")
        found = find_tpu(tpu, config)
        if not new and (result := finished(config, steps_per_checkpoint, sacred_id)) is not None:
            return result
        return TpuTrainer(
            config, found, fit_mesh=fit_mesh, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id, new=new
        ).run()
    with hosts_of(_as_cluster(cluster), devices) as hosts, hosts.guarded(lambda: _whence_to_resume(config)):
        plan = make_plan(config, hosts, fit=fit_mesh, training=True)
        if not new and (result := finished(config, steps_per_checkpoint, sacred_id)) is not None:
            return result
        return Trainer(
            config, plan, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id, new=new, hosts=hosts,
            init_from=begin, profile=steps,
        ).run()  # fmt: skip


def _whence_to_resume(config: Config) -> str:
    path = checkpoints.latest(config.training.model_path)
    if path is None:
        return "there is no checkpoint yet: the same commands, on all hosts, start again"
    return f"the newest checkpoint is {path}: the same commands, on all hosts, go on from there"


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
    """Score a checkpoint, the newest of `model_path` by default, on one task.

    Args:
        config: a Config, or what `load_config` takes.
        task: "validation" (the held-out set, `eval_path`), "lambada" or "wikitext" (docs/evaluation.md).
        file: of a task in a file; default: where it is looked for.
        stride: labels that a window scores after a text's first, where windows slide.
        download: fetch the task's file if it is not there.
        devices, cluster, tpu: as for `train`. A TPU scores the held-out set only.

    Returns:
        `step`, and the task's metrics, each with its standard error: of "validation" `nll` (nats a token),
        `nll_stderr`, `perplexity`, `bits_per_byte` (None without a tokenizer), `accuracy`, `tokens`, `bytes`.

    Raises:
        InputError: no checkpoint, no held-out data, or no file of the task.
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
    """The same, as rows of `eval.jsonl` (`evaluation.results.result_row`), as they come.

    `task`: None: those of the config: the held-out set, if `eval_steps` > 0 or there are no others, and `eval_tasks`.
    """
    config = _as_config(config)
    split_cpu_for(devices or [])  # before the held-out set is looked at, which TensorFlow starts for
    path = runs.find_checkpoint(config, checkpoint)
    if task is not None:
        tasks = [make_task(config, task, file=file, stride=stride, download=download)]
    else:
        held_out = config.training.eval_steps > 0 or not config.training.eval_tasks
        tasks = tasks_of(config, validation=held_out, stride=stride, download=download)
    step = checkpoints.step_of(path)
    if tpu is not None:
        for one in tasks:
            if not isinstance(one, Validation):
                raise InputError(f"task {one.name}: a TPU scores the held-out set only; leave --tpu out, or --task")
            yield result_row(step, one, _tpu_engine(config, tpu).evaluate(one, path), config)
        return
    with hosts_of(_as_cluster(cluster), devices) as hosts, hosts.guarded(_what_to_repeat):
        engine = _restored_engine(config, path, hosts)
        for one in tasks:
            yield result_row(step, one, one.run(engine), config)


def _what_to_repeat() -> str:
    return "nothing was changed: start the same commands again, on all hosts"


def load(
    config_or_checkpoint: Config | str,
    *,
    devices: Sequence[str] | None = None,
    cluster: Cluster | str | None = None,
    tpu: str | None = None,
) -> Model:
    """A trained model, ready to use.

    Args:
        config_or_checkpoint: a config (its newest checkpoint is taken), the directory of a run, or a checkpoint in it
            ("runs/laptop/model.ckpt-500").
        devices: as for `train`; a config made for more devices is fitted to these.
        cluster: as for `train`. `Model.close`, or a `with` block, releases the other hosts.
        tpu: as for `train`. Such a model generates, but does not score.

    Raises:
        InputError: no such config, run or checkpoint.
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
        """`checkpoint`: default: the newest of the config's `model_path`."""
        self.config = config
        split_cpu_for(devices or [])
        self.checkpoint = runs.find_checkpoint(config, checkpoint)
        self.step = checkpoints.step_of(self.checkpoint)
        self._engine: Engine | TpuEngine
        with ExitStack() as resources:
            if tpu is not None:
                self._engine = _tpu_engine(config, tpu)
            else:
                hosts = resources.enter_context(hosts_of(_as_cluster(cluster), devices))
                resources.enter_context(hosts.guarded(_what_to_repeat))
                self._engine = _restored_engine(config, self.checkpoint, hosts)
            self._resources = resources.pop_all()
        self._encoder: Encoder | None = None
        self._generator: Generator | None = None

    def close(self) -> None:
        """Release the other hosts of a cluster. On one host there is nothing to do."""
        self._resources.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, traceback)

    @property
    def encoder(self) -> Encoder:
        """The tokenizer of the config's first dataset."""
        if self._encoder is None:
            self._encoder = required_encoder(self.config)
            if self._encoder.n_vocab > self.config.model.n_vocab:
                raise InputError(
                    f"{self.config.source}: n_vocab = {self.config.model.n_vocab} is smaller than the "
                    "tokenizer's vocabulary "
                    f"({self._encoder.n_vocab}); use the tokenizer that made the training data"
                )
        return self._encoder

    @property
    def eos_id(self) -> int | None:
        """Where a continuation ends: the dataset's `eos_id`, else the tokenizer's."""
        own = self.config.data.datasets[0].dataset.eos_id
        return self.encoder.eos_id if own is None else own

    def logits(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Scores of each next token.

        Args:
            tokens: ids [batch, n] or [n], n at most n_ctx.

        Returns:
            float32 [batch, n, n_vocab], or [n, n_vocab]; the softmax of [.., i, :] is the distribution of token i + 1.

        Raises:
            InputError: too long, or an id out of range.
        """
        ids = self._checked(tokens)
        scores: NDArray[np.float32] = self.engine.logits(np.atleast_2d(ids)).numpy()
        return scores[0] if ids.ndim == 1 else scores

    def _checked(self, tokens: ArrayLike) -> NDArray[np.int32]:
        """The tokens as an array of ids that the model can take."""
        model = self.config.model
        try:
            ids = np.asarray(tokens)
        except ValueError:
            raise InputError("tokens: the rows differ in length; give one length, or one call for each") from None
        if ids.ndim not in (1, 2) or not ids.size or ids.shape[-1] > model.n_ctx:
            raise InputError(
                f"tokens of shape {list(ids.shape)}: give [batch, n] or [n], with n from 1 to n_ctx = {model.n_ctx}"
            )
        if ids.dtype.kind not in "iu":
            raise InputError(f"tokens of type {ids.dtype}: give integers, the ids that encoder.encode makes of a text")
        if ids.min() < 0 or ids.max() >= model.n_vocab:
            raise InputError(
                f"tokens from {ids.min()} to {ids.max()}: ids must be from 0 to n_vocab - 1 = {model.n_vocab - 1}"
            )
        return ids.astype(np.int32)

    def score(self, texts: Sequence[str]) -> list[Score]:
        """The log-probability of each token of each text, exactly as it stands.

        A text longer than the context is scored in windows, each token once; a window begins with the last token of the
        one before.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        _refuse_single_text(texts, "texts")
        return [self._score_one(text) for text in texts]

    def _score_one(self, text: str) -> Score:
        tokens = self.encoder.encode_documents([text])[0]
        found: list[float | None] = [None] if tokens else []
        for start in range(0, len(tokens) - 1, self.config.model.n_ctx):
            found += self._score_window(tokens[start : start + self.config.model.n_ctx + 1])
        total = float(sum(value for value in found if value is not None))
        return Score(tokens, found, total, len(text.encode()))

    def _score_window(self, tokens: list[int]) -> list[float]:
        """Log-probabilities of all but the first of at most n_ctx + 1 tokens. Padded, so that few lengths are compiled.
        """
        labels = len(tokens) - 1
        padded = np.zeros((1, padded_width(labels, self.config.model.n_ctx) + 1), np.int32)
        padded[0, : labels + 1] = tokens
        found: list[float] = self.engine.log_probabilities(padded).numpy()[0, :labels].tolist()
        return found

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        samples: int = 1,
        seed: int | None = None,
        entmax: bool | None = None,
        **more: Any,
    ) -> list[list[str]]:
        """Continuations of each prompt, without the prompt.

        Args:
            prompts: texts. An empty one is begun from the end-of-text token.
            max_new_tokens: at most so many; default: the config's `predict_max_steps`, else until the context is full.
            temperature: 0 takes the likeliest token each time.
            samples: continuations of each prompt.
            seed: default: the config's.
            entmax: draw from the sparse 1.5-entmax of the scores in place of softmax.
            more: other keys of `config.GenerationSettings`, such as `top_p` or `stop`, but no `logprobs`, which
                `generator()` gives. Whatever is not given is as the config's `generation` has it.

        Returns:
            `samples` texts for each prompt, each ended by the end-of-text token, a stop string or its length. Beams
            come best first.

        Raises:
            InputError: an argument out of range, or a model that does not predict the next token (`mlm_training`).
        """
        generator = self.generator()
        _refuse_single_text(prompts, "prompts")
        named = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed, "entmax": entmax}
        given = {name: value for name, value in named.items() if value is not None} | {"num_samples": samples, **more}
        if more.get("logprobs") is not None:
            raise InputError(
                f"generate: logprobs = {more['logprobs']}: texts have no place for them; use model.generator().generate"
            )
        usual = self.config.training.generation.model_copy(update={"logprobs": None})
        settings = generation_settings(given, "generate", usual)
        first = self.config.training.seed if settings.seed is None else settings.seed
        requests = [
            GenerationRequest(prompt, settings.model_copy(update={"seed": first + 7919 * number}))
            for number, prompt in enumerate(prompts)
        ]
        with alive("generating"):
            return [[one.text for one in found] for found in generator.generate_samples(requests)]

    def generator(self) -> Generator:
        """What continues many prompts at once, each with its own settings, and streams them. Always the same.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        if self._generator is None:
            model, training = self.config.model, self.config.training
            limits = Limits(model.n_ctx, training.predict_max_steps, training.seed)
            self._generator = Generator(self.encoder, self.eos_id, limits, self._batches())
        return self._generator

    def _batches(self) -> Batches:
        if not isinstance(self._engine, TpuEngine):
            return Decoder(self._engine, self.eos_id)
        sampler = partial(TpuSampler, self._engine, lambda: self.checkpoint)
        return AtOnce(lambda size: sampler(size, self.eos_id), self.config.model.n_vocab, self.eos_id)

    def scorer(self, top: int) -> Scorer:
        """What scores rows of token ids, with the `top` likeliest alternatives at each place.

        Raises:
            InputError: the model does not predict the next token (`mlm_training`).
        """
        check_predicts_next(self.config)
        return Scorer(self.engine, top)

    def export(self, directory: str, *, overwrite: bool = False) -> list[str]:
        """Write a TensorFlow SavedModel, which needs none of this code to run (docs/saved_model.md).

        Args:
            directory: new, or empty.
            overwrite: replace the SavedModel that is there.

        Returns:
            The names of its signatures: "logits", and of a model that predicts the next token "generate" and "greedy".

        Raises:
            InputError: the directory is in use or cannot be written, the tokenizer is not there, or it is a model on a
                TPU.
        """
        dataset = self.config.data.datasets[0].dataset
        encoder = None if dataset.tokenizer_path is None else self.encoder
        eos_id = dataset.eos_id if encoder is None else self.eos_id
        return saved_model.save(directory, self.config, self.engine.store, encoder, eos_id, overwrite=overwrite)

    @property
    def engine(self) -> Engine:
        """The functions behind this model, which share its weights.

        Raises:
            InputError: it is on a TPU, where there are none to call.
        """
        if isinstance(self._engine, TpuEngine):
            raise InputError("a model on a TPU generates, but does not score: load it without tpu")
        return self._engine


def _tpu_engine(config: Config, name: str) -> TpuEngine:
    """For evaluation and sampling on a TPU."""
    tpu = find_tpu(name, config)
    plan = tpu.plan(config, layout_tensors(config.model, config.training.train_batch_size))
    if plan.notice:
        log.info(plan.notice)
    return TpuEngine(config, plan, tpu)


def make_plan(config: Config, hosts: Hosts, *, fit: bool, training: bool = False) -> MeshPlan:
    """The mesh of a config over the hosts' devices; `fit`: as far as they go, if it is made for another number."""
    tensors = layout_tensors(config.model, config.training.train_batch_size)
    try:
        return plan_mesh(config, tensors, hosts.devices, fit=fit, chosen=hosts.chosen, training=training)
    except InputError as error:
        if hosts.per_host and config.mesh.size != len(hosts.devices):
            raise InputError(f"{error}; devices of each host: {hosts.per_host}") from None
        raise


def mesh_devices(config: Config, devices: Sequence[str] | None) -> int:
    """How many devices a layout is asked for: those named, else those of the config's mesh, else those that are here.
    """
    if devices is None and config.mesh.size > 1:
        return config.mesh.size
    return len(choose_devices(devices))


def find_layouts(config: Config | str, *, devices: int, keep_mesh: bool = False) -> list[Candidate]:
    """The layouts of least memory in training, by estimate, over so many devices, which need not be here; nothing is
    built.

    Args:
        config: a Config, or what `load_config` takes.
        devices: how many.
        keep_mesh: only on a mesh of the config's own `mesh_shape`.

    Returns:
        First the one of least memory, then those that take more for less work and communication. `plan.shape` and
        `plan.rules` are the mesh and the layout.

    Raises:
        InputError: the config's mesh is for another number, or the model cannot be split over so many.
    """
    return layout_report.find_layouts(_as_config(config), devices, keep_mesh=keep_mesh)


def check_predicts_next(config: Config) -> None:
    """
    Raises:
        InputError: the model fills masks from both sides (`mlm_training`), so it has no probability of what comes next.
    """
    if config.mlm.mlm_training:
        raise InputError(
            f"{config.source}: mlm_training = true: mlm_training models fill masks from both sides; they do not "
            "generate or score text; use a model trained without it"
        )


def _refuse_single_text(texts: Sequence[str], name: str) -> None:
    """A string is a sequence of strings too, but never the one that is meant."""
    if isinstance(texts, str):
        raise InputError(f"{name} = {texts[:40]!r}: give a list of texts, such as [{texts[:40]!r}]")


def _as_config(config: Config | str) -> Config:
    return load_config(config) if isinstance(config, str) else config


def _as_cluster(cluster: Cluster | str | None) -> Cluster | None:
    return find_cluster(cluster, None, {}) if isinstance(cluster, str) else cluster


def _restored_engine(config: Config, checkpoint: str, hosts: Hosts) -> Engine:
    plan = make_plan(config, hosts, fit=True)
    if plan.notice:
        log.info(plan.notice)
    hosts.start()
    engine = Engine(config, plan)
    with alive("building the model"):
        engine.create_variables(training=False)
    engine.restore(checkpoint, finite=True)
    log.info("restored %s on %s", checkpoint, ", ".join(name.lstrip("/") for name in plan.devices))
    return engine
