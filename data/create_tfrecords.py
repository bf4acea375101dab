"""Encode a corpus into TFRecord files.

    python3 data/create_tfrecords.py --input_dir texts --name mine --output_dir encoded \\
        --encoder_path tokenizer/byte-level-bpe.tokenizer.json --write_dataset_config configs/dataset_configs/mine.json

Mode `documents` writes one record a document. Mode `chunks` joins the documents, a separator after each, and cuts them
into records of exactly `--chunk_size` tokens. The output is the same whatever the number of processes.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Callable, Sequence

if __name__ in ("__main__", "__mp_main__"):  # run as a file: import from the repository, not from this folder
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from data import storage
from data.encoders import GPT2, Encoder, load_encoder
from data.encoding import encode_files
from data.progress import Progress
from data.shards import Account, check_free, chunks, long_enough, shard_names, shard_pattern, write_shards
from data.sources import add_source_flags, open_sources
from errors import InputError


def create_tfrecords(flags: argparse.Namespace) -> None:
    """What the command does: see the flags. Raises InputError when it cannot be done, or nothing would be written."""
    encoder = load_encoder(GPT2, pretrained=True) if flags.use_gpt2_tokenizer else load_encoder(flags.encoder_path)
    separator = _separator(flags, encoder)
    _check_output(flags)
    sources = open_sources(flags.input_dir, flags)
    total = sum(source.size for source in sources)
    print(f"files to encode: {len(sources):,}, {total:,} bytes, in {flags.processes} processes", flush=True)
    account = Account()
    with Progress(total, "encoding") as progress:
        documents = encode_files(sources, encoder, processes=flags.processes, progress=progress.update)
        records = long_enough(account.read(documents), flags.minimum_size, account)
        if flags.mode == "chunks":
            records = chunks(records, separator, flags.chunk_size, account)
        names = write_shards(
            account.written(records),
            flags.output_dir,
            flags.name,
            records_per_file=flags.records_per_file,
            overwrite=flags.overwrite,
        )
    account.check()
    if not names:
        raise InputError(f"{flags.input_dir}: {account.nothing_written()}")
    print("\n".join(account.lines()))
    if flags.write_dataset_config:
        _write_config(flags, encoder, separator)
    print(f"files: {len(names):,}, {os.path.join(flags.output_dir, shard_pattern(flags.name))}")


def _separator(flags: argparse.Namespace, encoder: Encoder) -> list[int]:
    """Ids that end a document; [] when none is asked for, or the tokenizer has none and none is needed."""
    separator: list[int] | None = flags.separator
    if separator is None:
        if encoder.eos_id is None and flags.mode == "chunks":
            raise InputError(f'{encoder.source}: has no <|endoftext|> to separate documents; give --separator "[ID]"')
        return [] if encoder.eos_id is None else [encoder.eos_id]
    for token in separator:
        if not 0 <= token < encoder.n_vocab:
            raise InputError(
                f"--separator {separator}: {token} is no id of {encoder.source} (0 to {encoder.n_vocab - 1})"
            )
    if flags.mode == "documents" and len(separator) > 1:
        raise InputError(
            f"--separator {separator}: in mode documents it is put between documents when they are read, as eos_id "
            "of the dataset config, which is one id; give one, or --mode chunks"
        )
    return separator


def _check_output(flags: argparse.Namespace) -> None:
    """Refuse now what would be refused after hours of work."""
    folder, name, config = flags.output_dir, flags.name, flags.write_dataset_config
    if not name or set(name) & set("/\\*?[]"):
        raise InputError(f"--name {name!r}: must be part of a file name, with none of / \\ * ? [ ]")
    if not flags.overwrite:
        check_free(folder, name)
        if config and storage.exists(config):
            raise InputError(f"{config}: is there already; give another --write_dataset_config, or --overwrite")
    storage.make_folder(folder)
    if config:
        own = shard_names(folder, name)
        others = [path for path in storage.glob(_glob(flags)) if os.path.basename(path) not in own]
        if others:
            raise InputError(
                f"{others[0]}: would be taken for a file of --name {name}; give another name or --output_dir"
            )
        storage.make_folder(os.path.dirname(config) or ".")


# The dataset config


def _glob(flags: argparse.Namespace) -> str:
    folder = flags.output_dir if storage.is_url(flags.output_dir) else glob.escape(flags.output_dir)
    return os.path.join(folder, shard_pattern(flags.name))


def _write_config(flags: argparse.Namespace, encoder: Encoder, separator: Sequence[int]) -> None:
    path = flags.write_dataset_config
    config: dict[str, object] = {
        "path": _relative(_glob(flags), path),
        "eval_path": "",
        "n_vocab": encoder.n_vocab,
        "tokenizer_path": encoder.source if flags.use_gpt2_tokenizer else _relative(encoder.source, path),
        "tokenizer_is_pretrained": flags.use_gpt2_tokenizer,
        "eos_id": separator[-1] if separator else encoder.eos_id,
        "padding_id": encoder.padding_id,
    }
    content = {key: value for key, value in config.items() if value is not None}
    try:
        with storage.replacing(path) as file:
            file.write(f"{json.dumps(content, indent=2)}\n".encode())
    except storage.errors() as error:
        raise InputError(f"{path}: cannot be written: {storage.reason(error)}; write it by hand: {content}") from error
    print(f"dataset config: {path}")


def _relative(path: str, config_path: str) -> str:
    """`path` as seen from the config's folder, so that both can move together; absolute when they share no folder."""
    if storage.is_url(path):
        return path
    path = os.path.abspath(path)
    if storage.is_url(config_path):
        return path
    folder = os.path.dirname(os.path.abspath(config_path))
    try:
        shared = os.path.commonpath([path, folder])
    except ValueError:  # two drives
        return path
    return path if os.path.dirname(shared) == shared else os.path.relpath(path, folder)


# The command line


def _at_least(smallest: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is less than {smallest}")
        return int(text)

    return number


def _ids(text: str) -> list[int]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    ids = value if isinstance(value, list) else [value]
    if not all(type(token) is int for token in ids):
        raise argparse.ArgumentTypeError(f'{text!r} is no list of ids such as "[0]"')
    return ids


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encode a corpus into TFRecord files of token ids.")
    add = parser.add_argument
    add("--mode", choices=("documents", "chunks"), default="documents", help="what a record is (default: %(default)s)")
    add_source_flags(parser, "--input_dir")
    add("--name", required=True, help="files are called NAME_<index>_<records>.tfrecords")
    add("--output_dir", required=True, help="where they go")
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--use_gpt2_tokenizer", action="store_true", help="GPT-2's, from the Hugging Face hub")
    tokenizer.add_argument("--encoder_path", help="tokenizer JSON, or a folder with vocab.json and merges.txt")
    add(
        "--separator",
        type=_ids,
        metavar="IDS",
        help='ids after each document, such as "[0]" (the tokenizer\'s end of text)',
    )
    add(
        "--minimum_size", type=_at_least(0), default=0, metavar="N", help="drop documents of fewer tokens (%(default)s)"
    )
    add(
        "--chunk_size",
        type=_at_least(2),
        default=2049,
        metavar="N",
        help="tokens of a record in mode chunks: n_ctx + 1 (default: %(default)s)",
    )
    add("--records_per_file", type=_at_least(1), default=10_000, metavar="N", help="(default: %(default)s)")
    add("--processes", type=_at_least(1), default=_cores(), metavar="N", help="(default: one for each core)")
    add(
        "--write_dataset_config",
        metavar="PATH",
        help="also write a dataset config, such as configs/dataset_configs/X.json",
    )
    add("--overwrite", action="store_true", help="replace the files of an earlier run with this name")
    return parser.parse_args(argv)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    flags = _arguments(argv)
    try:
        create_tfrecords(flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
