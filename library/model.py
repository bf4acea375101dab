"""A trained model: NumPy and text in, NumPy and text out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.config import Config, generation_settings
from gpt_mesh.data.chat_template import ChatTemplate
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens, special_tokens
from gpt_mesh.engine import checkpoints
from gpt_mesh.errors import InputError
from gpt_mesh.evaluation.scoring import Score, Scorer, checked_tokens, score_document
from gpt_mesh.evaluation.validation import model_encoder
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.generation.generator import Defaults, Generator
from gpt_mesh.generation.requests import seeded_requests
from gpt_mesh.interop import saved_model
from gpt_mesh.library.devices import engine_on
from gpt_mesh.library.save import save
from gpt_mesh.meshes.devices import split_cpu_for
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.objectives.registry import check_has_logits, check_predicts_next
from gpt_mesh.sample import padded_width
from gpt_mesh.storage.progress import alive
from gpt_mesh.training import runs


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
        """See `api.load`. `checkpoint`: default: the newest in the config's `model_path`."""
        self.config = config
        split_cpu_for(devices or [])
        self.checkpoint = runs.find_checkpoint(config, checkpoint)
        self.step = checkpoints.step_of(self.checkpoint)
        with ExitStack() as resources:
            self.engine = resources.enter_context(engine_on(config, self.checkpoint, devices, cluster, tpu))
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
    def chat_template(self) -> ChatTemplate | None:
        """How conversations become text: as the config of the first dataset says, or else the tokenizer's folder; None
        if neither does.

        Raises:
            InputError: the template cannot be read.
        """
        return ChatTemplate.of_dataset(self.config.data.datasets[0].dataset, self.encoder)

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
            InputError: too many tokens, an id outside the vocabulary, or a reward model.
        """
        check_has_logits(self.config)
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
    def reward(self, texts: str) -> float: ...  # type: ignore[overload-overlap]  # a str is a Sequence[str]

    @overload
    def reward(self, texts: Sequence[str]) -> list[float]: ...

    def reward(self, texts: str | Sequence[str]) -> float | list[float]:
        """The reward of each text, read at its last token, by a reward model (`objective` `reward`).

        Args:
            texts: a list of texts, or one text: a prompt and an answer, as the model was trained with. The token
                `bos_id` of the dataset config is put before it, and the end of text after it, where they are known.

        Returns:
            A number for each text; for one text, that number.

        Raises:
            InputError: it is no reward model, or a text has no token, or too many.
        """
        if not self.config.model.reward_head:
            raise InputError(
                f"{self.config.source}: objective = {self.config.training.objective}: gives no rewards; use a model "
                "trained with objective = reward"
            )
        if isinstance(texts, str):
            return self.reward([texts])[0]
        special, n_ctx, found = self.special_tokens, self.config.model.n_ctx, []
        for text, ids in zip(texts, self.encoder.encode_documents(list(texts)), strict=True):
            tokens = [*([] if special.bos_id is None else [special.bos_id]), *ids]
            tokens += [] if special.eos_id is None else [special.eos_id]
            if not 0 < len(tokens) <= n_ctx:
                size = len(tokens)
                raise InputError(f"reward: {text[:40]!r}: has {size} tokens, and must have 1 to n_ctx = {n_ctx}")
            row = np.zeros((1, padded_width(len(tokens), n_ctx)), np.int32)
            row[0, : len(tokens)] = tokens
            found.append(float(np.asarray(self.engine.rewards(row))[0, len(tokens) - 1]))
        return found

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

    def save(self, directory: str | os.PathLike[str]) -> str:
        """Copy the model into a folder that `load` reads: its checkpoint, its config and its tokenizer.

        Training continues from it, with the optimizer's state, as long as the data is where it was.

        Args:
            directory: a new or an empty one, or one in which a model was saved before.

        Returns:
            The path of the checkpoint in it.

        Raises:
            InputError: the directory is in use or cannot be written.
        """
        return save(self.config, self.checkpoint, os.path.expanduser(os.fspath(directory)))

    def export(self, directory: str, *, overwrite: bool = False) -> list[str]:
        """Write a TensorFlow SavedModel, which runs without this package (docs/saved_model.md).

        Args:
            directory: a new or an empty one.
            overwrite: replace a SavedModel that is there.

        Returns:
            The names of its signatures: "logits", and for models that predict the next token "generate" and "greedy".

        Raises:
            InputError: the directory is in use or cannot be written, the tokenizer is missing, or it is a reward model.
        """
        check_has_logits(self.config)
        dataset = self.config.data.datasets[0].dataset
        encoder = None if dataset.tokenizer_path is None else self.encoder
        special = special_tokens(dataset, encoder)
        return saved_model.save(directory, self.config, self.engine.snapshot(), encoder, special, overwrite=overwrite)
