"""One dataset: `dataset_configs/<id>.json`."""

from __future__ import annotations

import glob
import os
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator, Field, WithJsonSchema

from gpt_mesh.config.fields import Count, Flag, Group, Natural, OptionalText, key
from gpt_mesh.config.generation import STRINGS_SCHEMA, strings
from gpt_mesh.config.messages import refuse
from gpt_mesh.errors import InputError


def _globs(value: Any) -> tuple[str, ...]:
    """A glob or a list of globs; an empty string or null is none."""
    return () if value is None or value == "" else strings(value, "must be a path or glob, or a list of them")


Globs = Annotated[tuple[str, ...], BeforeValidator(_globs), WithJsonSchema(STRINGS_SCHEMA)]


class DatasetConfig(Group):
    """One dataset. Paths and globs are kept as given; `files` and `resolve` find them. `source` is its file."""

    source: str = Field(exclude=True)
    path: Globs = key(
        "TFRecord files to train on: a path, a glob or a list of them. Also pairs `X.bin`, `X.idx` of Megatron-LM or "
        "GPT-NeoX, as `X.bin` or `X`.",
        type_text="string or list of strings",
    )
    eval_path: Globs = key(
        "TFRecord files of the validation set.",
        default=(),
        type_text="string or list of strings",
        null_is_default=True,
    )
    n_vocab: Count = key("Size of the vocabulary that the files were encoded with.")
    tokenizer_path: OptionalText = key(
        "Tokenizer file or directory, or a hub name; needed only to encode or decode text.", default=None
    )
    tokenizer_is_pretrained: Flag = key("`tokenizer_path` is a hub name such as `gpt2`.", default=False)
    bos_id: Natural | None = key(
        "Id put before each document and each prompt, as Llama's tokenizer does; null: none.",
        default=None,
    )
    eos_id: Natural | None = key("Id that ends a document, and a text; null: the tokenizer's.", default=None)
    stop_token_ids: tuple[Natural, ...] | None = key(
        "More ids that end a generated text, such as `<|eot_id|>`'s; null: the tokenizer's, if `eos_id` is one of "
        "its ends of text.",
        default=None,
        type_text="list of integers or null",
    )
    padding_id: Natural | None = key("Id that pads; null: the tokenizer's.", default=None)
    chat_template: OptionalText = key(
        "How conversations become text: `alpaca`, `chatml`, `llama3`, `mistral`, `zephyr` or a Jinja file; null: the "
        "tokenizer's own, if it has one.",
        default=None,
    )
    lambada_tokens_path: OptionalText = key(
        "LAMBADA's passages, for that task: `lambada_test.jsonl`, or a `.json` of token ids.", default=None
    )

    def resolve(self, path: str) -> str:
        """`path` from the working directory if it exists there, else from this file's own directory if it exists there.

        What exists in neither place comes back unchanged, so that hub names and remote paths pass through.
        """
        if _is_remote(path):
            return path
        local = os.path.expanduser(path)
        beside = os.path.join(os.path.dirname(self.source), local)
        return next((found for found in (local, beside) if os.path.exists(found)), path)

    def glob(self, pattern: str) -> list[str]:
        """The data files that match, sorted: in the working directory, or if none does, beside this file.

        A pattern that matches nothing may name pairs of files `X.bin`, `X.idx` without their endings. Index files
        (`*.index`) are not data files. Only remote patterns import TensorFlow.

        Raises:
            InputError: a remote place cannot be read.
        """
        if _is_remote(pattern):
            found = self._remote(pattern)
        else:
            local = os.path.expanduser(pattern)
            beside = os.path.join(glob.escape(os.path.dirname(self.source)), local)
            for name in (local, beside, f"{local}.bin", f"{beside}.bin"):
                if found := glob.glob(name, recursive=True):
                    break
        return sorted(str(name) for name in found if not str(name).endswith(".index"))

    def _remote(self, pattern: str) -> list[str]:
        import tensorflow as tf  # type: ignore[import-untyped,unused-ignore]

        try:
            return tf.io.gfile.glob(pattern) or tf.io.gfile.glob(f"{pattern}.bin")
        except tf.errors.OpError as error:  # no network, no such bucket, no right to read it
            why = str(error.message).partition("\n")[0]
            raise InputError(
                f"{self.source}: {pattern}: cannot be read ({why}); name files that can, or bring them here"
            ) from error

    def files(self, which: str = "path") -> list[str]:
        """Every file of the globs under `which` (`path` or `eval_path`), sorted, each once.

        Raises:
            InputError: the key is empty, or one of its globs matches nothing or cannot be read.
        """
        patterns: tuple[str, ...] = getattr(self, which)
        if not patterns:
            self._refuse_none(which)
        found: set[str] = set()
        for pattern in patterns:
            matches = self.glob(pattern)
            if not matches:
                refuse(
                    self.source, which, pattern, "matches no file, from the working directory or beside this file; "
                    "correct the path, or encode your text by data/create_tfrecords.py --write_dataset_config "
                    "configs/dataset_configs/NAME.json and put NAME into datasets of the model's config",
                )  # fmt: skip
            found.update(matches)
        return sorted(found)

    def _refuse_none(self, which: str) -> NoReturn:
        remedy = "name the TFRecord files to read"
        if which == "eval_path":
            remedy = (
                "name files that data/create_tfrecords.py --eval_fraction has written, or other held-out text, or set "
                "eval_steps = 0"
            )
        refuse(self.source, which, "", f"no files are given; {remedy}")


def _is_remote(path: str) -> bool:
    return "://" in path
