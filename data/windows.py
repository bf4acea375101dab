"""How held-out text is cut into windows, so that every token is scored once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.corpus import Corpus, Ints, Pieces

PAD_ID = 0  # fills what carries no weight; any id would do


class DocumentWindows:
    """Windows of one document each, numbered from 0 in the order of the text: what predicts the next token.

    The first window of a document begins with `prefix`, if there is one, so that the first token is predicted too.

    Without a stride, windows lie side by side, overlapping by the one token that the first label is predicted from; the
    last of a document is padded at its end, which a causal model does not see. A label has from 1 to width - 1 tokens
    of context.

    With one, the first window is the same, and each further one scores the next `stride` labels and reaches back as far
    as it is wide: a label in it has at least width - stride tokens of context.
    """

    def __init__(self, corpus: Corpus, width: int, prefix: int | None, stride: int | None = None) -> None:
        """
        Args:
            width: tokens of a window, n_ctx + 1.
            prefix: the token before each document: one that begins texts, or the end of the document before.
            stride: 1 to n_ctx.
        """
        self.corpus, self.width, self._prefix = corpus, width, prefix
        self.predicts_all = prefix is not None
        self._stride, self._slides = stride or width - 1, stride is not None
        self._lead = 0 if prefix is None else 1  # tokens put before each document
        self._predicted = np.maximum(corpus.lengths.astype(np.int64) + self._lead - 1, 0)
        further = np.maximum(self._predicted - (width - 1), 0)
        counts = (self._predicted > 0) + -(-further // self._stride)
        self._first_windows = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_windows = int(self._first_windows[-1])

    def empty(self, windows: Ints) -> NDArray[np.int32]:
        """These windows without the tokens of the documents, int32 [windows, width]."""
        tokens = np.full((len(windows), self.width), PAD_ID, np.int32)
        if self._prefix is not None:
            tokens[:, 0] = self._prefix  # overwritten in windows that do not begin where a document does
        return tokens

    def pieces(self, windows: Ints) -> tuple[Pieces, NDArray[np.bool_]]:
        """What to read for these windows (row r for windows[r]), and which labels count: [windows, width - 1]."""
        records = np.searchsorted(self._first_windows, windows, side="right") - 1
        numbers, n_labels = windows - self._first_windows[records], self.width - 1
        # In labels of the document, whose first is its first token if there is a prefix: the window is [begins, ends],
        # and scores from `scored` on.
        ends = np.minimum(n_labels + numbers * self._stride, self._predicted[records])
        scored = np.where(numbers > 0, n_labels + (numbers - 1) * self._stride, 0)
        begins = np.maximum(ends - n_labels, 0) if self._slides else scored
        starts = np.maximum(begins - self._lead, 0)
        columns = starts + self._lead - begins
        lengths = ends - begins + 1 - columns
        positions = np.arange(n_labels)
        counted = (positions >= (scored - begins)[:, None]) & (positions < (ends - begins)[:, None])
        return Pieces(records, starts, np.arange(len(windows)), columns, lengths), counted


class PackedWindows:
    """Windows over all documents joined, as training joins them: what fills masks from both sides.

    Such a model would see padding, and was not trained with any. So documents follow each other, with `eos_id` between
    them and `bos_id` before each, if these are known, and every window is full: the last one reaches back into text
    that was scored already. Tokens put between documents are not scored.
    """

    def __init__(self, corpus: Corpus, width: int, bos_id: int | None, eos_id: int | None, payload: int) -> None:
        """width: tokens of a window, of which the first is nobody's label and left open.

        payload: how many of the others the model sees: n_ctx, or one less where it puts a token before them.
        """
        self.corpus, self.width, self.payload = corpus, width, payload
        self._bos_id, self._eos_id = bos_id, eos_id
        self.predicts_all = bos_id is not None or eos_id is not None
        lengths = corpus.lengths.astype(np.int64)
        lead, separator = 0 if bos_id is None else 1, 0 if eos_id is None else 1
        self._begins = np.cumsum(lengths + lead + separator) - lengths - separator
        self._ends = self._begins + lengths
        self.n_tokens = int(self._ends[-1]) if len(corpus) else 0
        # Text that does not fill a window gives none; whoever asks for it refuses.
        self.n_windows = -(-self.n_tokens // payload) if self.n_tokens >= payload else 0

    def empty(self, windows: Ints) -> NDArray[np.int32]:
        """These windows without the tokens of the documents, int32 [windows, width]."""
        tokens = np.full((len(windows), self.width), PAD_ID if self._eos_id is None else self._eos_id, np.int32)
        if self._bos_id is not None:
            begins = np.minimum(windows * self.payload, self.n_tokens - self.payload)
            first, after = (np.searchsorted(self._begins - 1, x) for x in (begins, begins + self.payload))
            rows = np.repeat(np.arange(len(windows)), after - first)
            numbers = np.arange(len(rows)) + np.repeat(after - np.cumsum(after - first), after - first)  # of documents
            # bos_id is one token before the document, and the window begins in column 1.
            tokens[rows, self._begins[numbers] - begins[rows]] = self._bos_id
        return tokens

    def pieces(self, windows: Ints) -> tuple[Pieces, NDArray[np.bool_]]:
        """What to read for these windows (row r for windows[r]), and which labels count: [windows, width - 1]."""
        scored = windows * self.payload
        begins = np.minimum(scored, self.n_tokens - self.payload)
        ends = begins + self.payload
        first = np.searchsorted(self._ends, begins, side="right")  # documents, of which a window has a part
        counts = np.searchsorted(self._begins, ends, side="left") - first
        rows = np.repeat(np.arange(len(windows)), counts)
        documents = np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        starts = np.maximum(self._begins[documents], begins[rows])
        lengths = np.minimum(self._ends[documents], ends[rows]) - starts
        rows, documents, starts, lengths = (x[lengths > 0] for x in (rows, documents, starts, lengths))
        columns = starts - begins[rows]
        counted = _covered(rows, columns, lengths, (len(windows), self.width - 1))
        counted &= np.arange(self.width - 1) >= (scored - begins)[:, None]
        return Pieces(documents, starts - self._begins[documents], rows, columns + 1, lengths), counted


def _covered(rows: Ints, columns: Ints, lengths: Ints, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Boolean mask of that shape: True inside the pieces."""
    steps = np.zeros((shape[0], shape[1] + 1), np.int64)
    np.add.at(steps, (rows, columns), 1)
    np.add.at(steps, (rows, columns + lengths), -1)
    return np.cumsum(steps, axis=1)[:, :-1] > 0
