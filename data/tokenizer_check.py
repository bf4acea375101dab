"""Whether the datasets of a config were made with one tokenizer, and one that fits the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt_mesh.config import Config, DatasetUse
from gpt_mesh.data.corpus import data_files
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.manifest import TokenizerFacts, manifests_of
from gpt_mesh.errors import InputError


@dataclass(frozen=True)
class Made:
    """A dataset and a tokenizer that made files of it; facts: None where no manifest tells."""

    use: DatasetUse
    facts: TokenizerFacts | None


def tokenizers_of(uses: Sequence[DatasetUse], keys: Sequence[str] = ("path", "eval_path")) -> list[Made]:
    """What made the files of each dataset under these keys. Missing files are for other checks to tell."""
    found: dict[tuple[str, str], Made] = {}
    for use in uses:
        facts: list[TokenizerFacts | None] = []
        for key in keys:
            try:
                paths = data_files(use.dataset, key) if getattr(use.dataset, key) else []
                facts += [manifest.tokenizer for manifest in manifests_of(paths)]
            except InputError:
                continue
        for fact in facts or [None]:
            found.setdefault((use.id, fact.fingerprint if fact else ""), Made(use, fact))
    return list(found.values())


def tokenizer_misfits(config: Config) -> Iterator[str]:
    """What is wrong with the tokenizers of all datasets together, one line each."""
    made = tokenizers_of(config.data.datasets)
    n_vocab = config.model.n_vocab
    for one in made:
        if one.facts is not None and one.facts.n_vocab > n_vocab:
            yield (
                f"{one.use.dataset.source}: was made with a tokenizer of {one.facts.n_vocab} tokens "
                f"({one.facts.source}), and n_vocab of {config.source} is {n_vocab}; set n_vocab to at least "
                f"{one.facts.n_vocab}, or encode the data with a smaller tokenizer"
            )
    first = made[0]
    for other in made[1:]:
        if first.facts is not None and other.facts is not None:
            if first.facts.fingerprint != other.facts.fingerprint:
                yield (
                    f"{config.source}: datasets mixes tokenizers: {_told(first, first.facts)} and "
                    f"{_told(other, other.facts)}; encode all of them with one tokenizer"
                )
        elif first.use.dataset.n_vocab != other.use.dataset.n_vocab:
            yield (
                f"{config.source}: datasets mixes vocabularies: {first.use.id} of {first.use.dataset.n_vocab} tokens "
                f"and {other.use.id} of {other.use.dataset.n_vocab}; encode all of them with one tokenizer, or correct "
                f"n_vocab of {other.use.dataset.source} if they were"
            )


def _told(made: Made, facts: TokenizerFacts) -> str:
    return f"{made.use.id} was made with {facts.source} (SHA-256 {facts.fingerprint[:8]}…)"


def wrong_tokenizer(use: DatasetUse, encoder: Encoder) -> Iterator[str]:
    """One line when the dataset's `tokenizer_path` is another tokenizer than the one that made its files."""
    for made in tokenizers_of([use]):
        if made.facts is not None and made.facts.fingerprint != encoder.fingerprint:
            yield (
                f"{use.dataset.source}: tokenizer_path {use.dataset.tokenizer_path} is not the tokenizer that made the "
                f"data ({made.facts.source}, SHA-256 {made.facts.fingerprint[:8]}…); set it to that one"
            )
