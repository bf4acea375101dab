"""Train a byte-level BPE tokenizer on a corpus.

python3 data/train_tokenizer.py --base_dir texts --output_dir tokenizer --file_type txt --vocab_size 50257

Of a corpus larger than --sample_mb, evenly spaced parts are used, always the same ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

if not __package__:  # run as a file: its checkout is the package
    import runpy

    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "gpt_mesh.py"))

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gpt_mesh.data.encoders import END_OF_TEXT, PADDING, TOKENIZER_FILE, byte_level_bpe
from gpt_mesh.data.sources import Source, add_source_flags, open_sources
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.files import make_folder
from gpt_mesh.storage.progress import BYTES, Progress, set_up_logging

SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
SAMPLE_MB = 1000

_PIECE_CHARACTERS = 1 << 16


@dataclass
class Sample:
    """An even sample of sources: pieces of their text, taken so that what is used keeps step with what is read.

    limit: bytes of text that may be used; about a piece more is. read, used: bytes of text so far.
    """

    sources: Sequence[Source]
    limit: int
    read: int = 0
    used: int = 0

    def texts(self) -> Iterator[str]:
        """The pieces that are used. All of them when there is no more text than limit / 16, or than the limit where
        the files are equally compressed."""
        total = sum(source.size for source in self.sources)
        ahead = self.limit // 16
        with Progress(total, "reading", BYTES) as progress:
            for source in self.sources:
                for piece, _ in source.pieces(_PIECE_CHARACTERS, progress.update):
                    if piece is None:
                        continue
                    size = len(piece.encode())
                    self.read += size
                    if self.used <= ahead + (self.limit - ahead) * progress.done // max(total, 1):
                        self.used += size
                        yield piece

    def describe(self) -> str:
        """What was used, once texts() has ended."""
        if self.used == self.read:
            return f"used all {self.read:,} bytes of text of {len(self.sources):,} sources"
        return (
            f"used {self.used:,} of {self.read:,} bytes of text ({self.used / self.read:.1%}), spread evenly over "
            f"{len(self.sources):,} sources; --sample_mb sets how much"
        )


def train_tokenizer(
    sample: Sample | Sequence[Source], vocab_size: int, *, nfkc: bool = False, prefix_space: bool = False
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, trained on the sample, or on all of some sources; ids 0 and 1 are the
    special tokens. nfkc, prefix_space: see byte_level_bpe().

    The 256 bytes are always in it, so that it encodes any text. The same sources in the same order give the same
    tokenizer. There are fewer tokens than asked for when the corpus holds no more pairs that occur twice.

    Raises InputError when vocab_size cannot hold bytes and special tokens, there is no text, or it cannot be read.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"--vocab_size {vocab_size} is too small: 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"need {SMALLEST_VOCABULARY} or more"
        )
    if not isinstance(sample, Sample):
        sample = Sample(sample, sys.maxsize)
    tokenizer = byte_level_bpe(models.BPE(), nfkc=nfkc, prefix_space=prefix_space)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample.texts(), trainer)
    if not sample.read:
        raise InputError(f"{shown(sample.sources[0].path)}: holds no text, nor does anything else that was given")
    return tokenizer


def save(tokenizer: Tokenizer, folder: str) -> str:
    """Write the tokenizer into `folder`, which is made if need be and otherwise left as it is. Returns the path."""
    path = os.path.join(folder, TOKENIZER_FILE)
    make_folder(folder)
    try:
        with storage.replacing(path) as file:
            file.write(tokenizer.to_str(pretty=True).encode())
    except storage.errors() as error:
        raise InputError(
            f"{shown(path)}: cannot be written: {storage.reason(error)}; give another --output_dir"
        ) from error
    return path


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a byte-level BPE tokenizer on a corpus.")
    add_source_flags(parser, "--base_dir")
    add = parser.add_argument
    add("--output_dir", required=True, help=f"folder for {TOKENIZER_FILE}")
    add("--vocab_size", type=int, default=50257, help="tokens, the special ones included (%(default)s)")
    add(
        "--sample_mb",
        type=_positive,
        default=SAMPLE_MB,
        metavar="MB",
        help="of more text than so many megabytes, use evenly spaced parts, always the same (default: %(default)s)",
    )
    add("--nfkc", action="store_true", help="bring text into Unicode's form NFKC, which changes it for good")
    add("--prefix_space", action="store_true", help="put a space before text that begins with none")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    flags = _arguments(argv)
    set_up_logging()
    try:
        sample = Sample(open_sources(flags.base_dir, flags), round(flags.sample_mb * 1e6))
        make_folder(flags.output_dir)  # before the work, not after it
        print(f"training on {len(sample.sources):,} sources", flush=True)
        tokenizer = train_tokenizer(sample, flags.vocab_size, nfkc=flags.nfkc, prefix_space=flags.prefix_space)
        print(sample.describe())
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
