"""Encode a corpus into TFRecord files.

    python3 data/create_tfrecords.py --input_dir texts --name mine --output_dir encoded \\
        --encoder_path tokenizer/byte-level-bpe.tokenizer.json --write_dataset_config configs/dataset_configs/mine.json

Mode `documents` writes one record a document. Mode `chunks` joins the documents, a separator after each, and cuts them
into records of exactly `--chunk_size` tokens. The output is the same whatever the number of processes, and however
often it is stopped and gone on with (`--resume`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

if not __package__:  # run as a file: its checkout is the package
    import runpy

    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "gpt_mesh.py"))

import numpy as np
from numpy.typing import NDArray

from gpt_mesh.data.account import nothing_written
from gpt_mesh.data.bytes import byte_lengths
from gpt_mesh.data.chat_template import NAMED, ChatTemplate
from gpt_mesh.data.cleaning import Cleaning
from gpt_mesh.data.dataset_file import files_glob, write_dataset_config
from gpt_mesh.data.encoders import GPT2, Encoder, load_encoder
from gpt_mesh.data.encoding import Recipe, encode_pieces
from gpt_mesh.data.manifest import InputFacts, Manifest, SplitState, TokenizerFacts, shard_pattern
from gpt_mesh.data.output import Output, check_free
from gpt_mesh.data.reading import Selection, read_corpus
from gpt_mesh.data.rendering import Rendering
from gpt_mesh.data.shards import Chunks, Documents, Packer, Split
from gpt_mesh.data.sources import Source, add_records_flags, add_source_flags, open_sources
from gpt_mesh.errors import InputError, shown
from gpt_mesh.storage import files as storage
from gpt_mesh.storage.lease import lease
from gpt_mesh.storage.progress import BYTES, Progress, set_up_logging


def create_tfrecords(flags: argparse.Namespace) -> None:
    """What the command does: see the flags. Raises InputError when it cannot be done, or nothing would be written."""
    _check_runner(flags)
    encoder = load_encoder(GPT2, pretrained=True) if flags.use_gpt2_tokenizer else load_encoder(flags.encoder_path)
    separator = _separator(flags, encoder)
    recipe = Recipe(encoder, _cleaning(flags), _rendering(flags, encoder))
    sources = open_sources(flags.input_dir, flags)
    wanted = _manifest(flags, encoder, separator, sources)
    _check_output(flags, wanted)
    stays = "" if flags.runner else "; what is complete stays, and --resume goes on from there"
    held = f"{flags.output_dir}/.{flags.name}.lock"
    with _explained(flags.output_dir, stays), lease(held, f"an encoder that writes --name {flags.name}"):
        output = Output(flags.output_dir, wanted, resume=flags.resume, overwrite=flags.overwrite)
        if output.manifest.complete:
            print("all of it is there already")
        else:
            _write(flags, sources, recipe, output, separator)
        output.complete()
    manifest = output.manifest
    for name, split in manifest.splits.items():
        print("\n".join([f"{name}:"] * (len(manifest.splits) > 1) + split.account.lines()))
    if flags.write_dataset_config:
        write_dataset_config(
            *(flags.write_dataset_config, flags.output_dir, manifest, encoder),
            eos_id=flags.separator[-1] if flags.separator else None,
            pretrained=flags.use_gpt2_tokenizer,
            chat_template=flags.chat_template,
        )
    for name, split in manifest.splits.items():
        print(f"files: {len(split.shards):,}, {os.path.join(flags.output_dir, shard_pattern(manifest.prefix(name)))}")


def _write(
    flags: argparse.Namespace, sources: Sequence[Source], recipe: Recipe, output: Output, separator: Sequence[int]
) -> None:
    """Write what is not there yet; the manifest knows all of it afterwards."""
    new_packer: Callable[[], Packer] = Documents
    if flags.mode == "chunks":
        new_packer = functools.partial(Chunks, flags.chunk_size, separator, _byte_lengths(recipe.encoder))
    size = sum(source.size for source in sources)
    where = f"by {flags.runner}" if flags.runner else f"in {flags.processes} processes"
    print(f"files to encode: {len(sources):,}, {size:,} bytes, {where}", flush=True)
    if recipe.rendering is not None:
        _show_example(sources, recipe.rendering)
    output.save()
    try:
        if flags.runner:
            logging.disable(logging.WARNING)  # Beam warns of parts of it that are not installed
            from gpt_mesh.data.beam import run_pipeline  # only this needs apache_beam

            logging.disable(logging.NOTSET)
            run_pipeline(flags.runner, flags.runner_arg, sources, recipe, new_packer, output)
        else:
            _write_here(flags, sources, recipe, output, new_packer)
        _check_written(flags, output.manifest)
    except BaseException:
        output.stop()
        raise


def _show_example(sources: Sequence[Source], rendering: Rendering) -> None:
    """Print the first usable record on standard error, with what is learned marked."""
    for text in (text for source in sources for text in source.documents()):
        if not rendering(text).dropped:
            in_colour = sys.stderr.isatty()
            marks = "in green" if in_colour else "between « and »"
            example = rendering.shown(text, colour=in_colour)
            print(f"the first record, what is learned {marks}:\n{example}", file=sys.stderr)
            return


def _write_here(
    flags: argparse.Namespace,
    sources: Sequence[Source],
    recipe: Recipe,
    output: Output,
    new_packer: Callable[[], Packer],
) -> None:
    manifest = output.manifest
    splits = []
    for name, state in manifest.splits.items():
        splits.append(
            Split(
                *(output.folder, manifest.prefix(name), new_packer(), state),
                minimum_size=flags.minimum_size,
                records_per_file=flags.records_per_file,
                on_shard=functools.partial(output.enter, name),
            )
        )
    done = [state.position for state in manifest.splits.values()]
    selection = Selection(flags.eval_fraction, flags.deduplicate, (done[0], done[-1]))
    if output.resumed:
        print(f"going on after {len(manifest.shards):,} files that are written", flush=True)
    try:
        with Progress(sum(source.size for source in sources), "encoding", BYTES) as progress:
            pieces = read_corpus(sources, selection, size=recipe.piece_size, progress=progress.update)
            with contextlib.closing(encode_pieces(pieces, recipe, processes=flags.processes)) as documents:
                for document in documents:
                    splits[document.origin.held_out].add(document)
        for split in splits:
            split.finish()
    finally:
        for split in splits:
            split.abandon()


def _check_written(flags: argparse.Namespace, manifest: Manifest) -> None:
    if not manifest.splits["train"].shards:
        accounts = [split.account for split in manifest.splits.values()]
        if any(split.shards for split in manifest.splits.values()):
            raise InputError(
                f"--eval_fraction {flags.eval_fraction}: holds out every document that can be written; give a smaller "
                "one, with --overwrite"
            )
        raise InputError(f"{flags.input_dir or flags.tfds}: {nothing_written(accounts)}")
    for name, split in manifest.splits.items():
        if not split.shards:
            print(f"note: no document fell to {name}; give more text, or a larger --eval_fraction")


@contextlib.contextmanager
def _explained(folder: str, stays: str) -> Iterator[None]:
    """Turn failures to write into InputError. stays: what is told of the files that are written."""
    try:
        yield
    except storage.errors() as error:
        raise InputError(
            f"{shown(folder)}: cannot be written: {storage.reason(error)}; make room or give another{stays}"
        ) from error


def _manifest(
    flags: argparse.Namespace, encoder: Encoder, separator: Sequence[int], sources: Sequence[Source]
) -> Manifest:
    """The manifest of a run that has not written anything."""
    chunks = {"chunk_size": flags.chunk_size, "separator": list(separator)} if flags.mode == "chunks" else {}
    names = ("mode", "minimum_size", "records_per_file", "text_key", "errors", "ftfy", "wikitext_detokenize")
    settings = {name: getattr(flags, name) for name in (*names, "eval_fraction", "deduplicate")}
    roles = ("skip_unusable", "chat_template", "maximum_size")
    settings |= {name: getattr(flags, name) for name in ("format", "skip_null", *roles) if getattr(flags, name)}
    if flags.records != "text":
        settings["records"] = flags.records
    return Manifest(
        name=flags.name,
        tokenizer=TokenizerFacts(encoder.source, encoder.fingerprint, encoder.n_vocab),
        settings=settings | chunks,
        inputs=[_facts(source) for source in sources],
        splits={name: SplitState() for name in (("train", "eval") if flags.eval_fraction else ("train",))},
    )


def _facts(source: Source) -> InputFacts:
    a_file = source.mtime_ns is not None and not storage.is_url(source.path)
    return InputFacts(os.path.abspath(source.path) if a_file else source.path, source.size, source.mtime_ns)


def _byte_lengths(encoder: Encoder) -> NDArray[np.int64] | None:
    try:
        return byte_lengths(encoder)
    except InputError:  # not a byte-level tokenizer
        return None


def _check_runner(flags: argparse.Namespace) -> None:
    if not flags.runner:
        if flags.runner_arg:
            raise InputError(f"--runner_arg {flags.runner_arg[0]}: goes with --runner, which is not given")
        return
    if flags.resume:
        raise InputError(
            "--resume: not with --runner, which repeats by itself what fails; give --overwrite to start anew"
        )
    if importlib.util.find_spec("apache_beam") is None:
        raise InputError(
            f"--runner {flags.runner}: the package apache_beam is not installed; pip install apache-beam, or "
            "`make beam-env` and .venv-beam/bin/python"
        )


def _cleaning(flags: argparse.Namespace) -> Cleaning:
    if flags.ftfy and importlib.util.find_spec("ftfy") is None:
        raise InputError("--ftfy: the package ftfy is not installed; pip install ftfy, or --no-ftfy")
    return Cleaning(ftfy=flags.ftfy, wikitext=flags.wikitext_detokenize)


def _rendering(flags: argparse.Namespace, encoder: Encoder) -> Rendering | None:
    """How records with roles become tokens; None: records are texts."""
    if flags.records == "text":
        for name in ("chat_template", "maximum_size", "skip_unusable"):
            if getattr(flags, name):
                raise InputError(f"--{name}: goes with --records of another kind than text")
        return None
    for name, given in (("mode chunks", flags.mode == "chunks"), ("ftfy", flags.ftfy),
                        ("wikitext_detokenize", flags.wikitext_detokenize)):  # fmt: skip
        if given:
            raise InputError(f"--{name}: goes with --records text only; leave it out")
    named = flags.chat_template
    try:
        template = ChatTemplate.of(encoder.source, encoder) if named is None else ChatTemplate.named(named, encoder)
    except InputError as error:
        raise InputError(f"--chat_template: {error}" if named is not None else str(error)) from None
    return Rendering(flags.records, encoder, template, flags.maximum_size)


def _separator(flags: argparse.Namespace, encoder: Encoder) -> list[int]:
    """Ids that follow a document; in chunks, the default is the end of text and what begins the next document. []: none
    are given, and the tokenizer has none.

    Raises:
        InputError: they are not in the vocabulary, more than one id for documents, or none for chunks.
    """
    separator: list[int] | None = flags.separator
    if separator is None:
        if encoder.eos_id is None and flags.mode == "chunks":
            raise InputError(f'{encoder.where}: has no <|endoftext|> to separate documents; give --separator "[ID]"')
        own = [encoder.eos_id, encoder.bos_id if flags.mode == "chunks" else None]
        return [token for token in own if token is not None]
    for token in separator:
        if not 0 <= token < encoder.n_vocab:
            raise InputError(
                f"--separator {separator}: {token} is no id of {encoder.where} (0 to {encoder.n_vocab - 1})"
            )
    if flags.mode == "documents" and len(separator) > 1:
        raise InputError(
            f"--separator {separator}: in mode documents it is put between documents when they are read, as eos_id "
            "of the dataset config, which is one id; give one, or --mode chunks"
        )
    return separator


def _check_output(flags: argparse.Namespace, wanted: Manifest) -> None:
    """Refuse now what would be refused after hours of work."""
    folder, name, config = flags.output_dir, flags.name, flags.write_dataset_config
    if not name or set(name) & set("/\\*?[]"):
        raise InputError(f"--name {name!r}: must be part of a file name, with none of / \\ * ? [ ]")
    if not (flags.overwrite or flags.resume):
        check_free(folder, wanted)
        if config and storage.exists(config):
            raise InputError(f"{shown(config)}: is there already; give another --write_dataset_config, or --overwrite")
    storage.make_folder(folder)
    if config:
        own = re.compile(rf"{re.escape(name)}(_eval)?_\d+_\d+\.tfrecords")
        others = [path for path in storage.glob(files_glob(folder, name)) if not own.fullmatch(os.path.basename(path))]
        if others:
            raise InputError(
                f"{shown(others[0])}: would be taken for a file of --name {name}; give another name or --output_dir"
            )
        storage.make_folder(os.path.dirname(config) or ".")


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
    add_records_flags(parser)
    add(
        "--chat_template",
        metavar="NAME",
        help=f"how messages become text, instead of the tokenizer's own template: {', '.join(NAMED)}, or a Jinja file",
    )
    add(
        "--maximum_size",
        type=_at_least(2),
        metavar="N",
        help="tokens of a record with roles, n_ctx + 1: longer conversations are cut after an answer, others left out",
    )
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
    add("--runner", metavar="NAME", help="let an Apache Beam runner do it, such as DirectRunner: see docs/beam.md")
    add(
        "--runner_arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of Beam's, which is given --KEY=VALUE; may be repeated",
    )
    add(
        "--write_dataset_config",
        metavar="PATH",
        help="also write a dataset config, such as configs/dataset_configs/X.json",
    )
    add(
        "--eval_fraction",
        type=_fraction,
        default=0.0,
        metavar="F",
        help="hold out this share of the documents, in files NAME_eval_<index>_<records>.tfrecords; a hash of the text "
        "decides, so that the same document always goes the same way (default: none)",
    )
    add(
        "--deduplicate",
        action="store_true",
        help="leave out documents whose text came before (25 bytes of memory each)",
    )
    switch = argparse.BooleanOptionalAction
    add("--ftfy", action=switch, default=False, help="mend wrongly decoded text with ftfy (default: no)")
    add(
        "--wikitext_detokenize",
        "--wikitext-detokenize",
        action=switch,
        default=False,
        help="undo the tokenisation of WikiText-103 (default: no)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on where a run that was stopped left off")
    again.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run with this name")
    return parser.parse_args(argv)


def _fraction(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0 and less than 1")
    return float(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    flags = _arguments(argv)
    set_up_logging()
    try:
        create_tfrecords(flags)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        what = (
            "nothing of it stays"
            if flags.runner
            else "the same command with --resume goes on after the last complete file"
        )
        print(f"interrupted; {what}", file=sys.stderr)
        return 130  # as the shell reports a program that Ctrl-C ended
    return 0


if __name__ == "__main__":
    sys.exit(main())
