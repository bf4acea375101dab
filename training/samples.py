"""Samples of a model in training, written after each checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from gpt_mesh.config import Config
from gpt_mesh.data.special_tokens import special_tokens
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation.validation import common_encoder
from gpt_mesh.generation.decoder import Decoder
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.sample import Row
from gpt_mesh.storage import files
from gpt_mesh.storage.progress import alive, log


class SampleWriter:
    """Writes `predict_steps` batches of samples of whole texts to `model_path`/predictions.

    The config's `generation` settings apply, except `num_beams`, `num_samples` and `logprobs`.
    """

    def __init__(self, config: Config, decoder: Callable[[tuple[int, ...]], Decoder], sacred_id: str | None) -> None:
        """
        Args:
            decoder: makes a decoder, given the ids that end a text.

        Raises:
            InputError: the datasets have no common tokenizer, it has no end-of-text token, or the model does not
                predict the next token.
        """
        self.config, self.sacred_id = config, sacred_id
        where = f"{self.config.source}: predict_steps = {self.config.training.predict_steps}"
        objective = objective_of(config)
        if not objective.predicts_next:
            raise InputError(f"{where}: {objective.task}; they do not generate; set predict_steps to 0")
        try:
            self.encoder = common_encoder(self.config)
        except InputError as error:
            raise InputError(f"{where}: samples cannot be decoded: {error}; or set predict_steps to 0") from None
        special = special_tokens(self.config.data.datasets[0].dataset, self.encoder)
        if special.prefix is None:
            raise InputError(
                f"{where}: samples start from an end-of-text token, and {self.encoder.where} has no <|endoftext|>; "
                "set eos_id in the dataset config, or predict_steps to 0"
            )
        self.prefix = special.prefix
        self.decoder = decoder(special.eos_ids)

    def write(self, step: int) -> dict[str, str]:
        """Write samples to `predictions/<name>.txt` and, if there is a default writer, to TensorBoard; returns their
        `path` and `text`.
        """
        training, n_ctx = self.config.training, self.config.model.n_ctx
        count = training.predict_steps * training.predict_batch_size
        settings = training.generation
        room = settings.max_new_tokens or training.predict_max_steps or n_ctx - 1
        first = (training.seed if settings.seed is None else settings.seed) + step
        rows = [Row.of([self.prefix], room, first + i, settings) for i in range(count)]
        with alive("sampling"):
            found = self.decoder.generate(rows, training.predict_batch_size)
        texts = [_before(self.encoder.decode(tokens), settings.stop) for tokens in found]
        text = "\n".join(f"==== sample {i} of step {step} ====\n{text}\n" for i, text in enumerate(texts, 1))
        path = write_predictions(training.model_path, step, self.sacred_id, text)
        tf.summary.text("samples", text, step=step)
        log.info("step %d: wrote samples to %s", step, shown(path))
        return {"path": path, "text": text}


def _before(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def write_predictions(model_path: str, step: int, sacred_id: str | None, text: str, kind: str = "samples") -> str:
    """Write one file of generated text under `<model_path>/predictions/`; returns its path."""
    io = tf.io.gfile
    io.makedirs(io.join(model_path, "predictions"))
    path = predictions_path(model_path, step, sacred_id, kind)
    files.write_text(path, text)
    return path


def predictions_path(model_path: str, step: int, sacred_id: str | None, kind: str = "samples") -> str:
    """The path of a step's generated text. `kind`: "samples" of training, or the text for a "prompt"."""
    name = f"{kind}_step_{step}.txt"
    return str(tf.io.gfile.join(model_path, "predictions", f"{sacred_id}_{name}" if sacred_id else name))
