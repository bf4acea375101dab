"""Text that a model in training writes after each checkpoint."""

from __future__ import annotations

import tensorflow as tf

from errors import InputError
from evaluation.validation import common_encoder
from sample import Request, Sampler
from training.engine import Engine

TEMPERATURE = 0.9


class SampleWriter:
    """Writes `predict_steps` batches of samples, begun from an end of text, to `<model_path>/predictions/`."""

    def __init__(self, engine: Engine, sacred_id: str | None) -> None:
        """
        Raises:
            InputError: the datasets have no tokenizer here, or it has no end-of-text token.
        """
        self.engine, self.config, self.sacred_id = engine, engine.config, sacred_id
        encoder = common_encoder(self.config)
        eos_id = None if encoder is None else self.config.data.datasets[0].dataset.eos_id
        eos_id = encoder.eos_id if encoder is not None and eos_id is None else eos_id
        if encoder is None or eos_id is None:
            raise InputError(
                f"{self.config.source}: predict_steps = {self.config.training.predict_steps}: sampling needs "
                "one tokenizer with an "
                f"end-of-text token for all datasets; set tokenizer_path in the dataset config, or predict_steps to 0"
            )
        self.encoder, self.eos_id = encoder, eos_id
        self.sampler = Sampler(engine, self.config.training.predict_batch_size, eos_id)

    def write(self, step: int) -> str:
        """Generate, write `predictions/<name>.txt`, and return its text."""
        training, n_ctx = self.config.training, self.config.model.n_ctx
        count = training.predict_steps * training.predict_batch_size
        room = training.predict_max_steps or n_ctx - 1
        requests = [Request([self.eos_id], room, training.seed + step + i) for i in range(count)]
        texts = [self.encoder.decode(tokens) for tokens in self.sampler.generate(requests, TEMPERATURE)]
        text = "\n".join(f"==== sample {i} of step {step} ====\n{text}\n" for i, text in enumerate(texts, 1))
        write_predictions(training.model_path, step, self.sacred_id, text)
        return text


def write_predictions(model_path: str, step: int, sacred_id: str | None, text: str) -> str:
    """Write one file of generated text under `<model_path>/predictions/`; returns its path."""
    io = tf.io.gfile
    directory = io.join(model_path, "predictions")
    io.makedirs(directory)
    path = io.join(directory, f"{sacred_id + '_' if sacred_id else ''}step_{step}.txt")
    with io.GFile(path, "w") as file:
        file.write(text)
    return str(path)
