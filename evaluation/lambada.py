"""LAMBADA in OpenAI's form: predict the last word of a passage."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np

from gpt_mesh.data.documents import read_documents
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.readers import compressed
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation import sources
from gpt_mesh.evaluation.file_task import FileTask
from gpt_mesh.evaluation.spans import SpanScorer, ending
from gpt_mesh.evaluation.statistics import Metrics, exponential, ratio, with_error
from gpt_mesh.storage import files as storage

LAMBADA = sources.Published(
    names=("lambada_test.jsonl",),
    urls=(
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        "https://storage.googleapis.com/gpt-2/data/lambada_test.jsonl",
    ),
    size=1_819_752,
    sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
)
ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")


class Lambada(FileTask):
    """Passages whose last word can be guessed from the whole passage but not from its last sentence alone (Paperno et
    al., 2016, arXiv:1606.06031), in the form of Radford et al. (2019): raw text in `{"text": …}` lines.

    The last word starts at the last space, which belongs to it. It is correct if each of its tokens is the most likely
    one given the passage and the word's earlier tokens.
    """

    name: ClassVar[str] = "lambada"
    published: ClassVar[sources.Published] = LAMBADA
    slides: ClassVar[bool] = False
    form: ClassVar[int] = 2

    def _configured(self) -> str | None:
        dataset = self.config.data.datasets[0].dataset
        path = dataset.lambada_tokens_path
        if path is None:
            return None
        found = dataset.resolve(path)
        if not storage.exists(found):
            raise InputError(
                f"{dataset.source}: lambada_tokens_path = {path}: no such file; bring {self.published.names[0]} from "
                f"{self.published.urls[0]}, or leave the key out"
            )
        return found

    def load(self, path: str, encoder: Encoder) -> list[Any]:
        """`[tokens before the last word, tokens of the last word, bytes of the last word]` of each passage.

        Reads `.jsonl`, `.json` and Parquet files, possibly compressed, with the passage under `text`; and `.json` files
        of token ids, to which the original's `lambada_tokens_path` points.
        """
        name = path.lower()
        while name.endswith(compressed.ENDINGS):
            name = name[: name.rindex(".")]
        if not name.endswith(ENDINGS):  # any other file would be read as one passage
            raise InputError(
                f"{shown(path)}: passages are read from {', '.join(ENDINGS)} files, which may be compressed; write "
                'each as a line {"text": "…"} of a .jsonl file'
            )
        texts = [text.rstrip() for text in _token_texts(path, encoder) or read_documents(path)]
        if not texts:
            raise InputError(
                f"{shown(path)}: holds no passage; bring {self.published.names[0]} from {self.published.urls[0]}"
            )
        for number, text in enumerate(texts, 1):
            if " " not in text:
                raise InputError(
                    f"{shown(path)}: passage {number} ({text[:40]!r}) is one word; bring the published file"
                )
        # The space belongs to the word, so that byte-level BPE tokenizes it as in running text.
        contexts = [text[: text.rindex(" ")] for text in texts]
        items = []
        encoded = zip(encoder.encode_documents(texts), encoder.encode_documents(contexts), strict=True)
        for (whole, before), text, context in zip(encoded, texts, contexts, strict=True):
            items.append([whole[: len(before)], whole[len(before) :], len(text[len(context) :].encode())])
        return items

    def run(self, engine: Engine) -> Metrics:
        """`accuracy`, `nll` (nats per word) and `perplexity` = exp(nll) of the last words, with standard errors;
        `passages`, `truncated` (those cut on the left to fit the context), `tokens` and `bytes` of the last words.
        """
        n_ctx = self.config.model.n_ctx
        spans, cut = [], 0
        for before, word, _ in self.items:
            span, truncated = ending(self.special.begun(before) or self._begin(), word, n_ctx)
            spans.append(span)
            cut += truncated
        found = SpanScorer(engine).score(spans, self.name)
        scored = np.array([span.scored for span in spans])
        ones = np.ones(len(spans))
        nll = ratio(-found.logprobs, ones)
        return {
            **with_error("accuracy", ratio(found.correct == scored, ones)),
            **with_error("nll", nll),
            **with_error("perplexity", exponential(nll)),
            "passages": len(spans),
            "truncated": cut,
            "tokens": int(scored.sum()),
            "bytes": sum(size for *_, size in self.items),
        }

    def _begin(self) -> list[int]:
        """The context of a word that has nothing before it."""
        assert self.special.prefix is not None  # each passage has at least two words, each of at least one token
        return [self.special.prefix]


def _token_texts(path: str, encoder: Encoder) -> list[str] | None:
    """The passages of a file with one array of token ids per passage; None if the file has another form."""
    if not path.endswith(".json"):
        return None
    with storage.open_binary(path) as file:
        try:
            passages = json.loads(file.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    if not isinstance(passages, list) or not passages or not isinstance(passages[0], list):
        return None
    for number, ids in enumerate(passages, 1):
        if not isinstance(ids, list) or not all(isinstance(x, int) and 0 <= x < encoder.n_vocab for x in ids):
            raise InputError(
                f"{shown(path)}: passage {number} is no list of ids of {encoder.where}; use its own tokenizer"
            )
    return [encoder.decode(ids) for ids in passages]
