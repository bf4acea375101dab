"""WikiText: word and byte perplexity of Wikipedia articles, comparable across tokenizers."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from gpt_mesh.data.documents import read_documents
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.readers.reader import Reading
from gpt_mesh.engine.interface import Engine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.evaluation import sources
from gpt_mesh.evaluation.file_task import FileTask
from gpt_mesh.evaluation.spans import SpanScorer, rolling
from gpt_mesh.evaluation.statistics import Metrics, exponential, ratio, scaled, token_metrics, with_error
from gpt_mesh.storage import files as storage

# WikiText-2 and WikiText-103 share the test set.
WIKITEXT = sources.Published(
    names=("wikitext-103-raw-v1.zip", "wikitext-2-raw-v1.zip", "wiki.test.raw", "wiki.test.tokens"),
    urls=(
        "https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-raw-v1.zip",
    ),
    size=191_984_949,
    sha256="91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
)
TEST_FILE = re.compile(r"(^|/)wiki\.test\.(raw|tokens)$")


class WikiText(FileTask):
    """The test articles of WikiText (Merity et al., 2016, arXiv:1609.07843), each scored on its own in sliding windows,
    starting from the end-of-text token.

    As in the published evaluations, the model reads detokenised text, and the total is divided by the number of words
    and bytes of the original text.
    """

    name: ClassVar[str] = "wikitext"
    published: ClassVar[sources.Published] = WIKITEXT
    slides: ClassVar[bool] = True
    form: ClassVar[int] = 1

    def load(self, path: str, encoder: Encoder) -> list[Any]:
        """`[tokens, words, bytes, bytes after detokenisation]` of each article."""
        pages = list(articles(_text(path)) if not _holds_pages(path) else _pages(path))
        if not any(page.strip() for page in pages):
            raise InputError(
                f"{shown(path)}: holds no article; bring {self.published.names[0]} from {self.published.urls[0]}"
            )
        texts = [detokenize(page) for page in pages]
        tokens = encoder.encode_documents(texts)
        return [
            [ids, len(re.split(r"\s+", page)), len(page.encode()), len(text.encode())]
            for ids, page, text in zip(tokens, pages, texts, strict=True)
        ]

    def run(self, engine: Engine) -> Metrics:
        """`word_perplexity`, `byte_perplexity` and `bits_per_byte` per word and byte of the file; `nll`, `perplexity`
        and `accuracy` per token, with standard errors; `articles`, `words`, `tokens`, `bytes`, and
        `detokenized_bytes`, the size of the text that the model reads.
        """
        n_ctx = self.config.model.n_ctx
        parts = [rolling(tokens, self.special.prefix, n_ctx, self.stride) for tokens, *_ in self.items]
        found = SpanScorer(engine).score([span for part in parts for span in part], self.name)
        starts = np.cumsum([0] + [len(part) for part in parts])

        def by_article(values: Any) -> np.ndarray:
            sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[starts]
            return np.diff(sums)

        nll = by_article(-found.logprobs)
        scored = by_article([span.scored for part in parts for span in part])
        words, size, read = np.array([item[1:] for item in self.items]).T
        by_tokens = token_metrics(nll, by_article(found.correct), scored, None)
        per_byte = ratio(nll, size)
        return {
            **with_error("word_perplexity", exponential(ratio(nll, words))),
            **with_error("byte_perplexity", exponential(per_byte)),
            **by_tokens,
            **with_error("bits_per_byte", scaled(per_byte, 1 / np.log(2))),
            "articles": len(self.items),
            "words": int(words.sum()),
            "bytes": int(size.sum()),
            "detokenized_bytes": int(read.sum()),
        }


def _holds_pages(path: str) -> bool:
    """Whether each record of the file is an article under `page`, as in Hugging Face's export."""
    if not path.endswith((".jsonl", ".parquet")):
        return False
    try:
        next(read_documents(path, Reading(text_key="page")), None)
    except InputError:
        return False
    return True


def _pages(path: str) -> Iterator[str]:
    return read_documents(path, Reading(text_key="page"))


def _text(path: str) -> str:
    """The text of `wiki.test.raw`, `wiki.test.tokens`, a .zip with one of them, or of a file of one-line records."""
    if path.endswith((".jsonl", ".parquet")):  # exported line by line, without the white space of empty lines
        lines = [line.rstrip("\n") for line in read_documents(path)]
        return "\n".join(line or " " for line in lines) + "\n"
    if not path.endswith(".zip"):
        return "".join(read_documents(path))
    try:
        with storage.open_binary(path) as file, zipfile.ZipFile(io.BytesIO(file.read())) as archive:
            name = next((name for name in archive.namelist() if TEST_FILE.search(name)), None)
            if name is None:
                raise InputError(f"{shown(path)}: holds no wiki.test.raw; bring the published archive")
            return archive.read(name).decode("utf-8")
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)}: is damaged ({storage.reason(error)}); bring the published archive") from error
    except storage.errors() as error:
        raise InputError(f"{shown(path)}: cannot be read ({storage.reason(error)}); name a file that can") from error


def articles(text: str) -> Iterator[str]:
    """Split a WikiText file at headings of the form ` = Title = `. Text before the first heading is an article too,
    unless it is white space.
    """
    held: list[str] = []
    for line in text.split("\n"):
        marks = line.replace("= = =", "===").replace("= =", "==").strip()
        if marks.startswith("= ") and marks.endswith(" ="):
            if "\n".join(held).strip():
                yield "\n".join(held)
            held = []
        held.append(line)
    yield "\n".join(held)


# The published replacement rules, in order (lm-evaluation-harness, task wikitext, after Megatron-LM). They are cruder
# than `data.cleaning.detokenize`: " N " becomes a number, as in Penn Treebank, and spaces inside single quotes are
# removed. Published figures assume them. One rule is omitted: it matches slashes around an apostrophe and a digit, and
# would write its own pattern into the text.
_RULES = (
    *[(re.compile(re.escape(old)), new) for old, new in (
        ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
        *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    )],
    *[(re.compile(rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"), rf"{left}\1{right}")
      for left, right in ("()", "[]", "{}", '""', "''")],
    *[(re.compile(re.escape(old)), new) for old, new in (
        ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"),
        (" N ", " 1 "), (" 's", "'s"),
    )],
)  # fmt: skip


def detokenize(page: str) -> str:
    """An article as published evaluations present it to the model."""
    for pattern, new in _RULES:
        page = pattern.sub(new, page)
    return page
