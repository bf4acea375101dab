"""Merges, splits and weighs token files, and writes those of any form as pairs of Megatron-LM's.

python3 -m gpt_mesh.data.megatron_files merge all.bin first.bin second.bin data/*.tfrecords
python3 -m gpt_mesh.data.megatron_files split all.bin --split 969,30,1
python3 -m gpt_mesh.data.megatron_files weigh first.bin second.bin --alpha 0.3
"""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.corpus import Corpus, load_corpus
from gpt_mesh.data.megatron import data_file, index_path
from gpt_mesh.data.megatron_output import PairWriter, id_type
from gpt_mesh.errors import InputError
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.progress import Progress, set_up_logging

PARTS = ("train", "valid", "test")
_TOGETHER = 1024  # documents read at once


def find_files(patterns: Sequence[str]) -> list[str]:
    """The data files that these paths and globs name, in order, a pair by its .bin; the name of a pair will do too.

    Raises:
        InputError: one of them matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) or sorted(glob.glob(f"{pattern}.bin"))
        if not matches:
            raise InputError(f"{pattern}: matches no file; name .bin files of pairs, or TFRecord files")
        found += map(data_file, matches)
    return list(dict.fromkeys(found))


def merge(output: str, paths: Sequence[str], *, n_vocab: int | None = None, overwrite: bool = False) -> int:
    """Write the documents of data files as one pair, in order; returns their number.

    Args:
        output: the .bin.
        n_vocab: decides the type of the ids; default: their largest does.

    Raises:
        InputError: a file cannot be read, or the pair is there already.
    """
    corpus = load_corpus(paths)
    if output in corpus.paths:
        raise InputError(f"{output}: is one of the files to merge; name another output")
    _write(output, corpus, np.arange(len(corpus)), n_vocab, overwrite)
    return len(corpus)


def split(path: str, shares: Sequence[float], *, overwrite: bool = False) -> dict[str, int]:
    """Write parts of a pair's documents beside it, as `NAME_train.bin`, `NAME_valid.bin`, `NAME_test.bin`; returns the
    number of documents in each. The bounds are those that Megatron-LM takes for `--split`.

    Raises:
        InputError: the file cannot be read, or a part is there already.
    """
    corpus = load_corpus([path])
    found = {}
    bounds = split_bounds(shares, len(corpus))
    for name, begin, end in zip(PARTS, bounds, bounds[1:], strict=False):
        if end > begin:
            _write(f"{path.removesuffix('.bin')}_{name}.bin", corpus, np.arange(begin, end), None, overwrite)
            found[name] = end - begin
    return found


def parse_split(text: str) -> list[float]:
    """The shares in Megatron's `969,30,1` or `0.9/0.05/0.05`: one to three numbers.

    Raises:
        InputError: something else.
    """
    try:
        shares = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= len(PARTS) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise InputError(f"--split {text}: must be one to three numbers, such as 969,30,1")
    return shares


def split_bounds(shares: Sequence[float], documents: int) -> list[int]:
    """The first document of each part, and one past the last: as `get_train_valid_test_split_` of Megatron-LM."""
    padded = [*shares, *[0.0] * (len(PARTS) - len(shares))]
    bounds = [0]
    for share in padded:
        bounds.append(bounds[-1] + round(share / sum(padded) * documents))
    excess = bounds[-1] - documents
    return [0, *(bound - excess for bound in bounds[1:])]


def weights_by_documents(documents: Sequence[int], alpha: float = 0.3) -> list[float]:
    """Weights of datasets from their numbers of documents, as GPT-NeoX has them for `weight_by_num_documents`: shares
    to the power of `alpha` (`weighted_sampler_alpha`; Conneau et al., 2019, arXiv:1911.02116), times what each share
    leaves of 1. They add up to 1.
    """
    if len(documents) == 1:
        return [1.0]
    shares = np.asarray(documents, np.float64) / sum(documents)
    raised = shares**alpha / np.sum(shares**alpha)
    weights = raised * (1.0 - shares)
    return [float(weight) for weight in weights / weights.sum()]


def _write(
    output: str, corpus: Corpus, records: NDArray[np.int64], n_vocab: int | None, overwrite: bool
) -> None:
    if not output.endswith(".bin"):
        raise InputError(f"{output}: must end in .bin")
    for path in (output, index_path(output)):
        if storage.exists(path) and not overwrite:
            raise InputError(f"{path}: already exists; add --overwrite, or name another output")
    least, greatest = min(low for low, _ in corpus.id_ranges), max(high for _, high in corpus.id_ranges)
    if n_vocab is not None and greatest >= n_vocab:
        raise InputError(f"{output}: the data holds token id {greatest}, and --n_vocab is {n_vocab}")
    dtype = np.dtype("<i4") if least < 0 else id_type(greatest + 1 if n_vocab is None else n_vocab)
    try:
        with PairWriter(output, dtype) as writer, Progress(len(records), "writing", "documents") as progress:
            for ids in _read(corpus, records):
                writer.add(ids)
                progress.update()
    except storage.errors() as error:
        raise InputError(f"{output}: cannot be written: {storage.reason(error)}") from error


def _read(corpus: Corpus, records: NDArray[np.int64]) -> Iterator[NDArray[np.integer]]:
    for begin in range(0, len(records), _TOGETHER):
        yield from corpus.read_tokens(records[begin : begin + _TOGETHER])


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 success, 1 invalid input."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python3 -m gpt_mesh.data.megatron_files", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", required=True)
    merging = actions.add_parser("merge", help="write the documents of several files as one pair")
    merging.add_argument("output", metavar="OUT.bin")
    merging.add_argument("files", nargs="+", metavar="FILE", help=".bin files of pairs, or TFRecord files; or globs")
    merging.add_argument("--n_vocab", type=int, metavar="N", help="decides the type of ids; default: the largest does")
    splitting = actions.add_parser("split", help="write parts of a pair beside it: _train, _valid and _test")
    splitting.add_argument("file", metavar="FILE.bin")
    splitting.add_argument("--split", default="969,30,1", metavar="SHARES", help="default: 969,30,1")
    for one in (merging, splitting):
        one.add_argument("--overwrite", action="store_true", help="replace what is there")
    weighing = actions.add_parser("weigh", help="print weights of datasets by their numbers of documents")
    weighing.add_argument("files", nargs="+", metavar="FILE")
    weighing.add_argument("--alpha", type=float, default=0.3, metavar="A", help="default: 0.3; 1: in proportion")
    arguments = parser.parse_args(argv)
    set_up_logging()
    try:
        if arguments.action == "merge":
            files = find_files(arguments.files)
            count = merge(arguments.output, files, n_vocab=arguments.n_vocab, overwrite=arguments.overwrite)
            print(f"wrote {arguments.output} and its .idx: {count:,} documents of {len(files)} files")
        elif arguments.action == "split":
            [file] = find_files([arguments.file])
            parts = split(file, parse_split(arguments.split), overwrite=arguments.overwrite)
            print("wrote " + ", ".join(f"{name} {count:,} documents" for name, count in parts.items()))
        else:
            files = find_files(arguments.files)
            counts = [len(load_corpus([file])) for file in files]
            for file, count, weight in zip(
                files, counts, weights_by_documents(counts, arguments.alpha), strict=True
            ):
                print(f"{weight:.6f}  {count:>12,} documents  {os.path.relpath(file)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
