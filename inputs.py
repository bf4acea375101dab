"""From a config to batches of token windows.

Every training window is a pure function of (seed, position), where position is the number of samples before it. There
is no shuffle buffer, and iterators have no state. So a run that resumes at a position sees exactly the samples that it
would have seen without the interruption, whatever its batch size is from then on.

A window is n_ctx + 1 tokens, of which the first n_ctx are the inputs and the last n_ctx the labels (`split`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.config import Config, DatasetUse
from gpt_mesh.data.bytes import byte_lengths
from gpt_mesh.data.check import as_sampled, misfits, record_kinds
from gpt_mesh.data.corpus import Corpus, Ints, Pieces, copy_pieces, data_files, load_corpus
from gpt_mesh.data.encoders import Encoder
from gpt_mesh.data.manifest import text_bytes
from gpt_mesh.data.marks import beginning
from gpt_mesh.data.mixture import Mixture
from gpt_mesh.data.packing import Packing, one_each, packed
from gpt_mesh.data.pairs import PairRecords
from gpt_mesh.data.permutation import derive_key, keyed_uint64, permute
from gpt_mesh.data.prefetch import Prefetcher
from gpt_mesh.data.special_tokens import end_of_text
from gpt_mesh.data.tokenizer_check import tokenizer_misfits
from gpt_mesh.data.windows import PAD_ID, DocumentWindows, PackedWindows
from gpt_mesh.errors import InputError

Tokens = NDArray[np.int32]
Weights = NDArray[np.float32]

CHUNK_TOKENS = 2**17  # batches are drawn in chunks of this many tokens, to amortise the cost of a call


def split(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Windows [..., n_ctx + 1] -> (inputs, labels), each [..., n_ctx]: a label is the token after its input."""
    return tokens[..., :-1], tokens[..., 1:]


@dataclass(frozen=True)
class _Samples:
    """One dataset as an endless sequence of windows. A window's number, from 0, is its rank."""

    corpus: Corpus
    mode: str  # documents_random, documents_fixed or chunks
    stitch: int  # documents joined for one sample; 1 for chunks
    shuffled: bool
    width: int  # tokens of a window: n_ctx + 1
    bos_id: int | None  # before each document
    eos_id: int  # between stitched documents; unused when stitch is 1
    name: str  # seeds this dataset's random numbers
    seed: int

    @property
    def per_epoch(self) -> int:
        """Samples in one pass over the records.

        If stitch does not divide the number of documents, the remaining ones are skipped in that epoch (different ones
        in each epoch, as the order is shuffled). Fewer documents than `stitch` make one sample, which repeats them.
        """
        return max(1, len(self.corpus) // self.stitch)

    def pieces(self, ranks: Ints) -> tuple[Pieces, tuple[Ints, Ints]]:
        """What to read for the windows of these ranks (row r of the result is for ranks[r]), and the rows and columns
        where `bos_id` is.
        """
        epochs, numbers = np.divmod(ranks, self.per_epoch)
        places = (numbers[:, None] * self.stitch + np.arange(self.stitch)) % len(self.corpus)
        if self.shuffled:
            keys = keyed_uint64(derive_key("order", self.seed, self.name), epochs)
            places = permute(places, len(self.corpus), keys[:, None])
        lead = 0 if self.bos_id is None else 1
        lengths = self.corpus.lengths[places].astype(np.int64) + lead  # [samples, stitch]
        # Document i of a sample is [begins, ends) of the joined text, with one eos_id between neighbours.
        ends = np.cumsum(lengths + 1, axis=1) - 1
        begins = ends - lengths
        window_begins = self._window_begins(epochs, numbers, ends[:, -1])[:, None]
        first = np.maximum(begins, window_begins)
        last = np.minimum(ends, window_begins + self.width)
        rows, documents = np.nonzero(first < last)
        chosen = (rows, documents)
        starts, columns, lengths = (first - begins)[chosen], (first - window_begins)[chosen], (last - first)[chosen]
        begun = starts < lead  # pieces that begin with bos_id, which no record holds
        pieces = Pieces(
            records=places[chosen],
            starts=np.maximum(starts - lead, 0),
            rows=rows,
            columns=columns + begun,
            lengths=lengths - begun,
        )
        return pieces.chosen(pieces.lengths > 0), (rows[begun], columns[begun])

    def _window_begins(self, epochs: Ints, numbers: Ints, joined_lengths: Ints) -> Ints:
        if self.mode != "documents_random":
            return np.zeros_like(numbers)
        keys = keyed_uint64(derive_key("window", self.seed, self.name), epochs)
        choices = (joined_lengths - self.width + 1).astype(np.uint64)
        return (keyed_uint64(keys, numbers) % choices).astype(np.int64)


@dataclass(frozen=True)
class _WholeSamples:
    """One dataset as an endless sequence of windows of whole documents, each of which is a sample of its own."""

    corpus: Corpus
    mode: str  # documents_packed or documents_padded
    packing: Packing
    name: str
    seed: int
    stitch: int = 1
    shuffled: bool = True
    bos_id: int | None = None
    eos_id: int = 0

    @property
    def per_epoch(self) -> int:
        """Windows in one pass over the records."""
        return self.packing.n_windows

    def pieces(self, ranks: Ints) -> Pieces:
        """What to read for the windows of these ranks (row r of the result is for ranks[r]): a sample a piece."""
        epochs, numbers = np.divmod(ranks, self.per_epoch)
        windows = permute(numbers, self.per_epoch, keyed_uint64(derive_key("order", self.seed, self.name), epochs))
        firsts, counts = self.packing.first[windows], np.diff(self.packing.first)[windows]
        rows = np.repeat(np.arange(len(ranks)), counts)
        places = np.arange(len(rows)) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
        documents, columns = self.packing.documents[places], self.packing.columns[places]
        lengths = self.corpus.lengths[documents].astype(np.int64)
        return Pieces(documents, np.zeros_like(documents), rows, columns, lengths)


def _training_samples(config: Config, number: int, progress: bool) -> _Samples | _WholeSamples:
    """The samples of entry `number` of `datasets`; raises InputError if its data cannot be used that way."""
    use = config.data.datasets[number]
    corpus = _fitting_corpus(config, use, "path", progress)
    chunks = use.sampling_mode == "chunks"
    stitch = 1 if chunks else use.stitch
    # The entries of a dataset that is listed twice have different orders.
    listed_before = sum(other.id == use.id for other in config.data.datasets[:number])
    name, width = f"{use.id} {listed_before}", config.model.n_ctx + 1
    if use.whole_documents:
        lengths, packs = corpus.lengths.astype(np.int64), use.sampling_mode == "documents_packed"
        packing = packed(lengths, width, name, config.training.seed) if packs else one_each(lengths)
        return _WholeSamples(corpus, use.sampling_mode, packing, name, config.training.seed)
    return _Samples(
        corpus=corpus,
        mode=use.sampling_mode,
        stitch=stitch,
        shuffled=config.data.shuffle_input_filenames or not chunks,
        width=width,
        bos_id=None if chunks else use.dataset.bos_id,
        eos_id=(end_of_text(use.dataset) or 0) if stitch > 1 else 0,
        name=name,
        seed=config.training.seed,
    )


@dataclass(frozen=True)
class _Pairs:
    """One dataset of preferences as an endless sequence of examples. An example's number, from 0, is its rank."""

    records: PairRecords
    name: str  # seeds this dataset's random numbers
    seed: int

    @property
    def corpus(self) -> Corpus:
        return self.records.corpus

    @property
    def per_epoch(self) -> int:
        """Examples in one pass over the records."""
        return len(self.records)

    def read(self, ranks: Ints) -> Tokens:
        """The examples of these ranks: int32 [n, 2, width]."""
        epochs, numbers = np.divmod(ranks, self.per_epoch)
        keys = keyed_uint64(derive_key("order", self.seed, self.name), epochs)
        return self.records.read(permute(numbers, self.per_epoch, keys))


def _training_pairs(config: Config, number: int, progress: bool) -> _Pairs:
    """The examples of entry `number` of `datasets`; raises InputError if it has no preferences."""
    use = config.data.datasets[number]
    listed_before = sum(other.id == use.id for other in config.data.datasets[:number])
    return _Pairs(_pair_records(config, use, "path", progress), f"{use.id} {listed_before}", config.training.seed)


def _pair_records(config: Config, use: DatasetUse, key: str, progress: bool) -> PairRecords:
    corpus = _fitting_corpus(config, use, key, progress)
    single = config.training.objective == "kto"
    known = bool(record_kinds(corpus))
    name = f"{use.dataset.source}: {key}"
    found = PairRecords(corpus, config.model.n_ctx + 1, name, single=single, prompts=not known)
    if key == "path" and single and len(found) < 2:
        raise InputError(f"{use.dataset.source}: {key}: holds {len(found)} completions; kto needs more than one")
    return found


def _fitting_corpus(config: Config, use: DatasetUse, key: str, progress: bool) -> Corpus:
    corpus = load_corpus(data_files(use.dataset, key), progress=progress)
    corpus = corpus if config.training.learns_pairs else as_sampled(use, corpus)
    for misfit in misfits(config, use, corpus, held_out=key == "eval_path"):
        raise InputError(misfit)
    return corpus


class TrainingData:
    """The training samples of a config: an endless, fixed sequence, numbered from 0."""

    fingerprint: str
    """A hex digest of all that decides the samples: seed, mixture, modes, and every record's length. The position in a
    checkpoint with another fingerprint means nothing here: it was trained on other data."""

    def __init__(self, config: Config, *, progress: bool = True) -> None:
        """Reads the index of every data file.

        Args:
            progress: show on standard error which files are being indexed.

        Raises:
            InputError: the data does not fit the config, as far as that can be known before training.
        """
        self.width = config.model.n_ctx + 1
        self._uses = config.data.datasets
        for misfit in tokenizer_misfits(config):
            raise InputError(misfit)
        numbers = range(len(self._uses))
        self._sources: list[_Samples | _WholeSamples] = []
        self._pairs: list[_Pairs] = []
        if config.training.learns_pairs:
            self._pairs = [_training_pairs(config, number, progress) for number in numbers]
        else:
            self._sources = [_training_samples(config, number, progress) for number in numbers]
        self._mixture = Mixture([use.weight for use in self._uses], config.training.seed)
        self.fingerprint = self._fingerprint(config.training.seed)

    @property
    def n_tokens(self) -> int:
        """Tokens of all datasets; those of preferences as windows are counted, with padding."""
        pairs = sum(source.per_epoch for source in self._pairs)
        return sum(source.corpus.n_tokens for source in self._sources) + pairs * (self.width - 1)

    def sample(self, position: int) -> Tokens:
        """The window at `position`: int32 [n_ctx + 1]; or the pair, [2, n_ctx + 1]."""
        row: Tokens = self.batch(position, 1)[0]
        return row

    def batch(self, position: int, size: int) -> Tokens:
        """The windows at position … position + size - 1: int32 [size, n_ctx + 1]; or pairs, [size, 2, n_ctx + 1]."""
        if position < 0 or size < 1:
            raise ValueError(f"position {position}, size {size}: a batch has at least one sample, from position 0 on")
        datasets, ranks = self._mixture.locate(np.arange(position, position + size, dtype=np.int64))
        if self._pairs:
            return self._pairs_of(datasets, ranks)
        tokens = np.empty((size, self.width), np.int32)
        parts, whole = [], []
        for number in np.unique(datasets):
            source = self._sources[number]
            rows = np.flatnonzero(datasets == number)
            if isinstance(source, _WholeSamples):
                tokens[rows] = ~PAD_ID
                pieces = source.pieces(ranks[rows]).moved_to(rows)
                # The first token of each sample, and what follows it: another sample, or padding.
                whole += [(pieces.rows, pieces.columns), (pieces.rows, pieces.columns + pieces.lengths)]
                parts.append((source.corpus, pieces))
                continue
            pieces, begun = source.pieces(ranks[rows])
            tokens[rows] = source.eos_id  # pieces leave only the places between documents
            if source.bos_id is not None:
                tokens[rows[begun[0]], begun[1]] = source.bos_id
            parts.append((source.corpus, pieces.moved_to(rows)))
        copy_pieces(parts, tokens)
        for rows, columns in whole:
            inside = columns < self.width
            place = rows[inside], columns[inside]
            tokens[place] = beginning(tokens[place])
        return tokens

    def _pairs_of(self, datasets: Ints, ranks: Ints) -> Tokens:
        """The examples of these datasets and ranks: int32 [n, 2, n_ctx + 1]."""
        tokens = np.empty((len(ranks), 2, self.width), np.int32)
        for number in np.unique(datasets):
            rows = np.flatnonzero(datasets == number)
            tokens[rows] = self._pairs[number].read(ranks[rows])
        return tokens

    def batches(self, position: int, size: int, *, prefetch: int = 4) -> Prefetcher[Tokens]:
        """Endless batches from `position` on; a background thread keeps `prefetch` of them ready.

        Close the result, or use it in a `with` statement, to end the thread.
        """

        def generate() -> Iterator[Tokens]:
            yield self.batch(position, size)  # alone, to be ready soon; several together cost less each
            start, together = position + size, max(1, CHUNK_TOKENS // (size * self.width))
            while True:
                yield from self._together(start, size, together)
                start += together * size

        return Prefetcher(generate(), prefetch)

    def _together(self, position: int, size: int, count: int) -> Iterator[Tokens]:
        """`count` batches, drawn together; or one by one if a record cannot be read, to return those before it."""
        try:
            batches: Iterable[Tokens] = np.split(self.batch(position, count * size), count)
        except InputError:
            batches = (self.batch(position + number * size, size) for number in range(count))
        yield from batches

    def describe(self) -> list[str]:
        """One line per dataset: its size and how it is sampled."""
        shares = self._mixture.quotas / self._mixture.block
        if self._pairs:
            return [
                f"{use.id}: {len(source.corpus.paths):,} files, {source.per_epoch:,} examples, "
                f"{source.records.n_cut:,} texts cut to {self.width} tokens, {share:.2%} of the samples"
                for use, source, share in zip(self._uses, self._pairs, shares, strict=True)
            ]
        return [
            f"{use.id}: {len(source.corpus.paths):,} files, {len(source.corpus):,} "
            f"{'chunks' if source.mode == 'chunks' else 'documents'}, {source.corpus.n_tokens:,} tokens, "
            f"{source.per_epoch * (self.width - 1):,} tokens per epoch ({source.mode}), {share:.2%} of the samples"
            for use, source, share in zip(self._uses, self._sources, shares, strict=True)
        ]

    def _fingerprint(self, seed: int) -> str:
        facts = {
            "seed": seed,
            "width": self.width,
            "quotas": self._mixture.quotas.tolist(),
            "datasets": [
                {
                    "name": source.name,
                    "mode": source.mode,
                    "stitch": source.stitch,
                    "shuffled": source.shuffled,
                    "eos_id": source.eos_id,
                    **({} if source.bos_id is None else {"bos_id": source.bos_id}),
                    "records_per_file": np.diff(source.corpus.first_records).tolist(),
                    "sizes": hashlib.sha256(source.corpus.sizes.data).hexdigest(),
                    "lengths": hashlib.sha256(source.corpus.lengths.data).hexdigest(),
                }
                for source in self._sources
            ],
        }
        if self._pairs:
            facts["preferences"] = [
                {
                    "name": source.name,
                    "examples": source.per_epoch,
                    "lengths": hashlib.sha256(source.corpus.lengths.data).hexdigest(),
                }
                for source in self._pairs
            ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class PairEvaluationData:
    """The held-out preferences (`eval_path`) of every dataset, in the order of the files."""

    def __init__(self, config: Config, *, progress: bool = True) -> None:
        """
        Raises:
            InputError: there are none, or they cannot be used.
        """
        self._sources = [_pair_records(config, use, "eval_path", progress) for use in config.data.datasets]
        self._first = np.cumsum([0] + [len(source) for source in self._sources])
        self.n_examples = int(self._first[-1])
        if not self.n_examples:
            raise InputError(f"{config.source}: eval_path of its datasets holds no preferences")

    def batches(self, size: int, *, limit: int | None = None) -> Iterator[Tokens]:
        """Batches int32 [size, 2, n_ctx + 1]. The last one is filled with examples from the beginning.

        `limit`: the largest number of examples; the first ones are taken.
        """
        count = min(self.n_examples, limit or self.n_examples)
        starts = range(0, count, size)
        with Prefetcher((self._batch(np.arange(start, start + size) % count) for start in starts), 4) as ready:
            yield from ready

    def _batch(self, numbers: Ints) -> Tokens:
        sources = np.searchsorted(self._first, numbers, side="right") - 1
        width = self._sources[0].width
        tokens = np.empty((len(numbers), 2, width), np.int32)
        for number in np.unique(sources):
            rows = np.flatnonzero(sources == number)
            tokens[rows] = self._sources[number].read(numbers[rows] - self._first[number])
        return tokens


class EvaluationData:
    """The held-out text (`eval_path`) of every dataset, as windows in a fixed order that predict every token once.

    `data.windows` defines how documents become windows. A chunk is a window. The datasets' weights are not used.
    """

    def __init__(
        self, config: Config, *, stride: int | None = None, packed: int | None = None, progress: bool = True
    ) -> None:
        """
        Args:
            stride: the number of labels that each window after a document's first scores; None: windows do not overlap.
            packed: the number of tokens in a window, of consecutive documents, if windows must be full; None: a window
                holds one document and may be padded (`Objective.packed`).
            progress: show on standard error which files are being indexed.

        Raises:
            InputError: the stride is out of range, or the held-out text cannot be used.
        """
        self.width = config.model.n_ctx + 1
        check_stride(config, stride, packed)
        self._sources = [_held_out_windows(config, use, progress, stride, packed) for use in config.data.datasets]
        self._first_windows = np.cumsum([0] + [source.n_windows for source in self._sources])
        self.n_windows = int(self._first_windows[-1])
        if not self.n_windows:
            names = ", ".join(sorted({use.dataset.source for use in config.data.datasets}))
            raise InputError(f"{names}: eval_path names files without a single token to predict; give it held-out text")

    def batches(self, size: int, *, limit: int | None = None) -> Iterator[tuple[Tokens, Weights]]:
        """Batches of (tokens [size, n_ctx + 1], weights [size, n_ctx] of the labels: 1 counts, 0 is padding).

        The last batch is padded with rows of weight 0, so that all have one shape.

        Args:
            size: windows in a batch.
            limit: the largest number of batches. If there are more windows, evenly spaced ones are taken, always the
                same.
        """
        windows = self._select(size, limit)
        starts = range(0, len(windows), size)
        with Prefetcher((self._batch(windows[start : start + size], size) for start in starts), 4) as ready:
            yield from ready

    def token_bytes(self, encoder: Encoder, size: int = 1, *, limit: int | None = None) -> int:
        """UTF-8 bytes of the text that `batches(size, limit=limit)` scores; special tokens count 0."""
        table = byte_lengths(encoder)
        return sum(count_bytes(table, tokens, weights) for tokens, weights in self.batches(size, limit=limit))

    def manifest_bytes(self) -> int | None:
        """UTF-8 bytes of all the held-out text according to its manifests, whatever the tokenizer.

        None if a file has no manifest, or some token is not predicted: the first of each document if neither bos_id nor
        eos_id is known, and the first of each chunk.
        """
        found = [text_bytes(source.corpus.paths) for source in self._sources if source.predicts_all]
        known = [size for size in found if size is not None]
        return sum(known) if len(known) == len(self._sources) else None

    def _select(self, size: int, limit: int | None) -> Ints:
        if size < 1 or (limit is not None and limit < 1):
            raise ValueError(f"size {size}, limit {limit}: at least one window and one batch are needed")
        count = self.n_windows if limit is None else min(self.n_windows, size * limit)
        return np.arange(count, dtype=np.int64) * self.n_windows // count

    def _batch(self, windows: Ints, size: int) -> tuple[Tokens, Weights]:
        tokens = np.full((size, self.width), PAD_ID, np.int32)
        weights = np.zeros((size, self.width - 1), np.float32)
        datasets = np.searchsorted(self._first_windows, windows, side="right") - 1
        parts = []
        for number in np.unique(datasets):
            source = self._sources[number]
            rows = np.flatnonzero(datasets == number)
            pieces, weights[rows] = source.pieces(windows[rows] - self._first_windows[number])
            tokens[rows] = source.empty(windows[rows] - self._first_windows[number])
            parts.append((source.corpus, pieces.moved_to(rows)))
        copy_pieces(parts, tokens)
        return tokens, weights


def check_stride(config: Config, stride: int | None, packed: int | None) -> None:
    """
    Args:
        stride, packed: as for `EvaluationData`.

    Raises:
        InputError: windows of this model cannot have the stride.
    """
    if stride is None:
        return
    if not 1 <= stride <= config.model.n_ctx:
        raise InputError(f"stride = {stride}: must be from 1 to n_ctx = {config.model.n_ctx} of {config.source}")
    if packed is not None:
        raise InputError(
            f"stride = {stride}: {config.source} has objective = {config.training.objective}, whose windows do not "
            "overlap; leave the stride out"
        )


def count_bytes(table: Ints, tokens: Tokens, weights: Weights) -> int:
    """UTF-8 bytes of the labels with a weight.

    Args:
        table: `byte_lengths` of the tokenizer.
        tokens, weights: a batch of `EvaluationData`.

    Raises:
        InputError: a label is not in the tokenizer's vocabulary.
    """
    labels = split(tokens)[1][weights > 0]
    labels = labels[labels >= 0]  # others are not learned (`data.marks`), and not scored
    if labels.size and labels.max() >= len(table):
        raise InputError(
            f"the held-out data holds token id {labels.max()}, but its tokenizer has only {len(table)} tokens; "
            "set tokenizer_path to the tokenizer that made the data"
        )
    return int(table[labels].sum())


def _held_out_windows(
    config: Config, use: DatasetUse, progress: bool, stride: int | None, packed: int | None
) -> DocumentWindows | PackedWindows:
    corpus = _fitting_corpus(config, use, "eval_path", progress)
    width = config.model.n_ctx + 1
    if use.sampling_mode == "chunks" or use.whole_documents:
        return DocumentWindows(corpus, width, None, stride)
    bos_id, eos_id = use.dataset.bos_id, end_of_text(use.dataset)
    if packed is None:
        return DocumentWindows(corpus, width, eos_id if bos_id is None else bos_id, stride)
    windows = PackedWindows(corpus, width, bos_id, eos_id, packed)
    if 0 < windows.n_tokens < windows.payload:
        raise InputError(
            f"{use.dataset.source}: eval_path: holds {windows.n_tokens} tokens in all, which do not fill one window of "
            f"n_ctx = {config.model.n_ctx} ({config.source}); a masked model sees padding: give it more held-out text"
        )
    return windows
