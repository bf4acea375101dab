"""Small data to train and test on: TFRecord files, tokenizers, dataset configs and model configs, all under a folder.

add_dataset(tmp_path, "numbers", numbered_documents([9, 12, 30]), eos_id=0) and then
model_config(tmp_path, [["numbers", 2, "documents_random", 1.0]], n_ctx=8) make a config that can be trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gpt_mesh.config import Config, load_config
from gpt_mesh.data.tfrecords import write_records

TOKENIZER_FILE = "byte-level-bpe.tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"

TEXTS = (
    "The mill stood where the river bends, and its wheel turned night and day.",
    "In the morning the miller's daughter carried flour to the village; in the evening she carried news back.",
    "Ni dieu, ni maître… Über allen Gipfeln ist Ruh. Καλημέρα κόσμε, и снова: 世界 🌍🚀!",
    'def area(width, height):\n    """Square metres."""\n    return width * height\n\n\nprint(area(3, 4))  # 12\n',
    "1, 2, 3 — 10 % of   many      spaces\tand tabs\t\t, and a line\r\nor two\n",
)

Documents = Sequence[Sequence[int]]


def numbered_documents(lengths: Iterable[int], first: int = 1) -> list[list[int]]:
    """Documents of these lengths in which every token of the whole corpus is another id, counting up from `first`.

    A window over them tells which documents it was made of, and where it was cut.
    """
    documents = []
    for length in lengths:
        documents.append(list(range(first, first + length)))
        first += length
    return documents


def random_documents(seed: int, lengths: Iterable[int], n_vocab: int) -> list[list[int]]:
    """Documents of these lengths of uniformly random ids below `n_vocab`."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_vocab, length).tolist() for length in lengths]


def write_corpus(folder: Path, documents: Documents, *, files: int = 1, name: str = "part_{}.tfrecords") -> str:
    """Write the documents, in order, to `files` TFRecord files; returns the glob that matches them."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = [len(documents) * i // files for i in range(files + 1)]
    for number in range(files):
        write_records(folder / name.format(number), documents[bounds[number] : bounds[number + 1]])
    return str(folder / "*.tfrecords")


def add_dataset(
    root: Path,
    name: str,
    documents: Documents | None,
    *,
    held_out: Documents | None = None,
    files: int = 1,
    **keys: Any,
) -> Path:
    """Write documents and held-out documents as TFRecord files, and the dataset config that names them.

    keys: of the dataset config; they replace the ones made here (`n_vocab` is a million, for numbered documents).
    Returns the dataset config's path.
    """
    values: dict[str, Any] = {"n_vocab": 1_000_000}
    if documents is not None:
        values["path"] = write_corpus(root / name / "train", documents, files=files)
    if held_out is not None:
        values["eval_path"] = write_corpus(root / name / "held_out", held_out, files=files)
    path = root / "dataset_configs" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values | keys))
    return path


def model_config(root: Path, datasets: list[Any], **keys: Any) -> Config:
    """Write `root`/model.json for a very small model over datasets of `add_dataset`, and load it.

    keys: of the model config; they replace the ones made here.
    """
    values: dict[str, Any] = {
        "n_head": 2,
        "n_embd": 16,
        "n_layer": 2,
        "n_ctx": 8,
        "n_vocab": 1_000_000,
        "lr": 1e-3,
        "train_batch_size": 4,
        "train_steps": 10,
        "model_path": str(root / "run"),
        "datasets": datasets,
    }
    path = root / "model.json"
    path.write_text(json.dumps(values | keys))
    return load_config(str(path))


def make_tokenizer(folder: Path, *, n_vocab: int = 400, texts: Iterable[str] = TEXTS) -> Path:
    """Train a byte-level BPE tokenizer with <|endoftext|> (id 0) and <|padding|> (id 1); returns its file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TOKENIZER_FILE
    tokenizer.save(str(path))
    return path
