"""Train a byte-level BPE tokenizer on a folder of text.

python3 data/train_tokenizer.py --base_dir texts --output_dir tokenizer --file_type txt --vocab_size 50257
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

if __name__ in ("__main__", "__mp_main__"):  # run as a file: import from the repository, not from this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data import storage
from data.encoders import END_OF_TEXT, PADDING, TOKENIZER_FILE, byte_level_bpe
from data.progress import Progress
from data.sources import Source, add_source_flags, open_sources
from data.storage import make_folder
from errors import InputError

SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

_PIECE_CHARACTERS = 1 << 20


def train_tokenizer(sources: Sequence[Source], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, trained on all of every source; ids 0 and 1 are the special tokens.

    The 256 bytes are always in it, so that it encodes any text. The same sources in the same order give the same
    tokenizer. There are fewer tokens than asked for when the corpus holds no more pairs that occur twice.

    Raises InputError when vocab_size cannot hold bytes and special tokens, or a file cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"--vocab_size {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"need {SMALLEST_VOCABULARY} or more"
        )
    tokenizer = byte_level_bpe(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with Progress(sum(source.size for source in sources), "reading") as progress:
        tokenizer.train_from_iterator(_texts(sources, progress), trainer)
    return tokenizer


def _texts(sources: Sequence[Source], progress: Progress) -> Iterator[str]:
    for source in sources:
        for piece, _ in source.pieces(_PIECE_CHARACTERS, progress.update):
            yield piece


def save(tokenizer: Tokenizer, folder: str) -> str:
    """Write the tokenizer into `folder`, which is made if need be and otherwise left as it is. Returns the path."""
    path = os.path.join(folder, TOKENIZER_FILE)
    make_folder(folder)
    try:
        with storage.replacing(path) as file:
            file.write(tokenizer.to_str(pretty=True).encode())
    except storage.errors() as error:
        raise InputError(f"{path}: cannot be written: {storage.reason(error)}; give another --output_dir") from error
    return path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer on text files, all of every file.")
    add_source_flags(parser, "--base_dir")
    parser.add_argument("--output_dir", required=True, help=f"folder for {TOKENIZER_FILE}")
    parser.add_argument("--vocab_size", type=int, default=50257, help="tokens, the special ones included (%(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    flags = _arguments(argv)
    try:
        sources = open_sources(flags.base_dir, flags)
        make_folder(flags.output_dir)  # before the work, not after it
        print(f"training on {len(sources):,} files")
        tokenizer = train_tokenizer(sources, flags.vocab_size)
        found = tokenizer.get_vocab_size()
        if found < flags.vocab_size:
            print(f"{found:,} tokens, not {flags.vocab_size:,}: the text has no more pairs that occur twice")
        print(f"tokenizer saved at {save(tokenizer, flags.output_dir)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
