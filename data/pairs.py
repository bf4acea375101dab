"""Preferences in data files: two records an example, the chosen text and the rejected one.

Prompts are marked as not learned (`data.marks`), and completions are learned. An example with one completion, which is
desirable (in the place of the chosen text) or not (of the rejected one), has a record without a learned token in the
other place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.corpus import Corpus, Ints
from gpt_mesh.errors import InputError

Ids = NDArray[np.int32]

NOTHING: Ids = np.array([~0], np.int32)  # a text that is not there
PADDING = ~0


def prompt_length(text: Ids) -> int:
    """The number of tokens before the first one that is learned; all of them if none is."""
    learned = np.flatnonzero(text >= 0)
    return int(learned[0]) if len(learned) else len(text)


def is_missing(text: Ids) -> bool:
    """Whether a text has no token that is learned."""
    return not (text >= 0).any()


def fitted(chosen: Ids, rejected: Ids, width: int) -> Ids:
    """An example as int32 [2, width], padded at the end with tokens that are not learned.

    Where a text is too long, the prompt of both loses its beginning, up to its last token; then completions lose their
    end.
    """
    found = np.full((2, width), PADDING, np.int32)
    texts = [text for text in (chosen, rejected) if not is_missing(text)]
    longest = max((len(text) for text in texts), default=0)
    excess = max(0, min(longest - width, min((prompt_length(text) for text in texts), default=0) - 1))
    for row, text in zip(found, (chosen, rejected), strict=True):
        if not is_missing(text):
            kept = text[excess : excess + width]
            row[: len(kept)] = kept
    return found


def problem_of(chosen: Ids, rejected: Ids) -> str | None:
    """Why two texts are no pair; None if they are one."""
    if is_missing(chosen) or is_missing(rejected):
        return "one of the two has no completion; train on such examples with objective = kto"
    if np.array_equal(chosen, rejected):
        return "the chosen text and the rejected one are equal; remove the pair"
    first, second = prompt_length(chosen), prompt_length(rejected)
    if first != second or not np.array_equal(chosen[:first], rejected[:second]):
        return "their prompts differ"
    return None


class PairRecords:
    """The examples in the records of a corpus, numbered from 0: pairs, or single completions."""

    def __init__(self, corpus: Corpus, width: int, name: str, *, single: bool, prompts: bool = True) -> None:
        """
        Args:
            width: of the texts that are read.
            name: of the dataset, for messages.
            single: an example has one completion: each text of a pair is one.
            prompts: some text must have one; False: it is known that these are preferences.

        Raises:
            InputError: there are no pairs.
        """
        self.corpus, self.width = corpus, width
        odd = len(corpus) % 2
        if odd or (prompts and not any(least < 0 for least, _ in corpus.id_ranges)):
            what = f"its {len(corpus):,} records do not come in pairs" if odd else "its texts have no prompts"
            raise InputError(
                f"{name}: holds no preferences: {what}; this objective learns from chosen and rejected texts: write "
                "the data from rows with prompt, chosen and rejected, or prompt, completion and label"
            )
        missing = np.flatnonzero(corpus.lengths <= len(NOTHING))
        if not single and missing.size:
            raise InputError(
                f"{corpus.where(int(missing[0]))}: has no completion; {name} holds completions with labels: train on "
                "them with objective = kto"
            )
        self._records = np.flatnonzero(corpus.lengths > len(NOTHING)) if single else None

    def __len__(self) -> int:
        return len(self.corpus) // 2 if self._records is None else len(self._records)

    @property
    def n_cut(self) -> int:
        """How many texts are too long, and lose tokens."""
        return int((self.corpus.lengths > self.width).sum())

    def read(self, numbers: Ints) -> Ids:
        """The examples of these numbers, in any order: int32 [n, 2, width].

        Raises:
            InputError: two records are no pair.
        """
        wanted, places = np.unique(numbers, return_inverse=True)
        if self._records is not None:
            return np.stack(self._singles(self._records[wanted]))[places]
        texts = self._texts((2 * wanted[:, None] + np.arange(2)).ravel())
        for number, chosen, rejected in zip(wanted.tolist(), texts[0::2], texts[1::2], strict=True):
            if (problem := problem_of(chosen, rejected)) is not None:
                raise InputError(f"{self.corpus.where(2 * number)} and the next are no pair: {problem}")
        found = [fitted(*both, self.width) for both in zip(texts[0::2], texts[1::2], strict=True)]
        return np.stack(found)[places]

    def _singles(self, records: Ints) -> list[Ids]:
        """Examples of one text each."""
        found = zip(records.tolist(), self._texts(records), strict=True)
        return [fitted(*((NOTHING, text) if record % 2 else (text, NOTHING)), self.width) for record, text in found]

    def _texts(self, records: Ints) -> list[Ids]:
        return [text.astype(np.int32) for text in self.corpus.read_tokens(records)]
