"""Tasks whose data is one file, which is found, checked and encoded once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gpt_mesh.config import Config
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.special_tokens import SpecialTokens, special_tokens
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation import sources
from gpt_mesh.evaluation.statistics import Metrics
from gpt_mesh.evaluation.validation import common_encoder
from gpt_mesh.inputs import check_stride
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.storage import files as storage


class FileTask(ABC):
    """A task whose data is one file. The encoded items are cached."""

    name: ClassVar[str]
    published: ClassVar[sources.Published]
    slides: ClassVar[bool]
    form: ClassVar[int]  # version of what `load` returns, part of the cache's key

    @classmethod
    def make(cls, config: Config, file: str | None, *, stride: int | None, download: bool) -> FileTask:
        """The task for a config. See `__init__` for the arguments."""
        return cls(config, file, stride=stride, download=download)

    def __init__(
        self, config: Config, file: str | None = None, *, stride: int | None = None, download: bool = False
    ) -> None:
        """
        Args:
            config: gives the tokenizer and the context length.
            file: default: the file that the config names, else the one in `sources.folder()`.
            stride: labels scored per sliding window; default: n_ctx.
            download: fetch the file if it is missing.

        Raises:
            InputError: unusable file, tokenizer or stride, or a model that does not predict the next token.
        """
        objective = objective_of(config)
        if not objective.predicts_next:
            raise InputError(
                f"{config.source}: {objective.setting}: task {self.name} asks how likely text is, which such a model "
                "does not tell; use a model trained without it"
            )
        check_stride(config, stride, None)
        if stride is not None and not self.slides:
            raise InputError(f"stride = {stride}: task {self.name} has no windows that slide; leave it out")
        self.config, self.stride = config, stride
        self.encoder = common_encoder(config)
        if self.encoder.n_vocab > config.model.n_vocab:
            raise InputError(
                f"{config.source}: n_vocab = {config.model.n_vocab} is smaller than the tokenizer's vocabulary "
                f"({self.encoder.n_vocab}); use the tokenizer that made the training data"
            )
        self.path = file or self._configured() or sources.find(self.name, self.published, download=download)
        if not storage.exists(self.path):
            raise InputError(f"task {self.name}: {shown(self.path)}: no such file; {self._remedy()}")
        if storage.is_folder(self.path):
            raise InputError(f"task {self.name}: {shown(self.path)}: is a folder; name the file in it")
        content = sources.digest(self.path)
        self.items = sources.encoded(
            f"{self.name} {self.form}", content, self.encoder, lambda: self.load(self.path, self.encoder)
        )
        self.facts: dict[str, Any] = {"data_sha256": content, "tokenizer_sha256": self.encoder.fingerprint}
        if stride is not None:
            self.facts["stride"] = stride

    def _configured(self) -> str | None:
        """The file that the config names for this task, if any."""
        return None

    def _remedy(self) -> str:
        return f"bring {self.published.names[0]} from {self.published.urls[0]}"

    @property
    def special(self) -> SpecialTokens:
        """The tokens that begin and end a text."""
        return special_tokens(self.config.data.datasets[0].dataset, self.encoder)

    @abstractmethod
    def load(self, path: str, encoder: Encoder) -> list[Any]:
        """The encoded items of a file, JSON-serialisable.

        Raises:
            InputError: it holds something that is not an item.
        """

    @abstractmethod
    def run(self, engine: Engine) -> Metrics:
        """See `EvaluationTask`."""
