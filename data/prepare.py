"""Fetch a text that many train on, check it, encode it, and write its dataset config.

python3 data/prepare.py tiny_shakespeare

A download that was stopped goes on where it was. Without a network, put the file that the message names into place.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator

if not __package__:  # run as a file: its checkout is the package
    import runpy

    runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "gpt_mesh.py"))

import numpy as np

from gpt_mesh.data.characters import byte_encoder, character_encoder
from gpt_mesh.data.dataset_file import relative_to_config
from gpt_mesh.data.encoders import Encoder, load_encoder
from gpt_mesh.data.megatron_output import PairWriter, id_type
from gpt_mesh.data.published import PUBLISHED, Published
from gpt_mesh.errors import InputError
from gpt_mesh.storage import checksums, files, strict_json
from gpt_mesh.storage.progress import BYTES, Progress, log, set_up_logging

SECONDS = 20.0  # without an answer, or between two parts of one
_BLOCK = 1 << 20
_PIECE = 1 << 20  # characters encoded at once


def prepare(name: str, published: Published, folder: str, config: str, tokenizer: str | None = None) -> None:
    """Fetch, check, encode, and write the dataset config.

    Args:
        name: for messages.
        folder: for the download, the encoded text and the tokenizer.
        config: path of the dataset config.
        tokenizer: "characters", "bytes", a path, or a name on the Hugging Face hub; default: the text's usual one.

    Raises:
        InputError: the text cannot be fetched or is another one, or something cannot be written.
    """
    try:
        files.make_folder(folder)
        archive = fetch(name, published, folder)
        texts = {"train": _text(archive, published.train), "valid": _text(archive, published.valid)}
        encoder = _encoder(tokenizer or published.tokenizer, texts["train"])
        own = os.path.join(folder, "tokenizer.json")
        files.write_text(own, encoder.tokenizer.to_str())
        for part, text in texts.items():
            _encode(os.path.join(folder, f"{part}.bin"), text, encoder, part)
        files.make_folder(os.path.dirname(os.path.abspath(config)))
        values = {
            "path": relative_to_config(os.path.join(folder, "train.bin"), config),
            "eval_path": relative_to_config(os.path.join(folder, "valid.bin"), config),
            "n_vocab": encoder.n_vocab,
            "tokenizer_path": relative_to_config(own, config),
            "eos_id": encoder.eos_id,
        }
        strict_json.write(config, values)
    except files.errors() as error:
        raise InputError(f"{folder}: cannot be written: {files.reason(error)}") from error


def fetch(name: str, published: Published, folder: str) -> str:
    """The path of the published file in `folder`, downloaded unless it is there.

    Raises:
        InputError: no address gives it; says what to bring, and where to put it.
    """
    path = os.path.join(folder, published.file)
    if os.path.exists(path):
        if (found := checksums.of_file(path)) != published.sha256:
            raise InputError(
                f"{path}: has SHA-256 {found[:12]}…, and {name} has {published.sha256[:12]}…; remove it, or bring the "
                "published file"
            )
        return path
    reasons = []
    for url in published.urls:
        try:
            _download(url, published, path)
            return path
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            reasons.append(f"{url}: {files.reason(getattr(error, 'reason', None) or error)}")
    raise InputError(
        f"{name}: could not be downloaded ({'; '.join(reasons)}); bring {published.file} ({published.size:,} bytes, "
        f"SHA-256 {published.sha256}) and put it at {path}, or start again to go on"
    )


def _download(url: str, published: Published, path: str) -> None:
    """Download a file, from where an earlier attempt stopped, verify it, and move it into place.

    Raises:
        OSError: no answer, or no room.
        ValueError: it is another file than the published one.
    """
    partial = f"{path}.partial"
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    if have >= published.size:
        os.remove(partial)
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    log.info("downloading %s (%s bytes) to %s%s", url, f"{published.size:,}", path, f" from {have:,}" if have else "")
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        goes_on = have > 0 and answer.status == http.client.PARTIAL_CONTENT
        have = have if goes_on else 0
        with (
            open(partial, "ab" if goes_on else "wb") as file,
            Progress(published.size, "downloading", BYTES, done=have) as progress,
        ):
            while have <= published.size and (block := answer.read(_BLOCK)):
                file.write(block)
                have += len(block)
                progress.update(len(block))
    if have < published.size:
        raise ConnectionError(f"the connection ended after {have:,} of {published.size:,} bytes")
    found = checksums.of_file(partial)
    if (have, found) != (published.size, published.sha256):
        os.remove(partial)
        raise ValueError(f"{have:,} bytes of SHA-256 {found[:12]}… came, not the published file")
    os.replace(partial, path)


def _text(path: str, part: str | tuple[int | None, int | None]) -> str:
    """A part of a text: a member of an archive, or a range of bytes."""
    with contextlib.ExitStack() as stack:
        if path.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = part if isinstance(part, str) else archive.namelist()[0]
            data = archive.read(member)
        else:
            with open(path, "rb") as file:
                data = file.read()
    begin, end = (None, None) if isinstance(part, str) else part
    return data[begin:end].decode("utf-8", errors="replace")


def _encoder(name: str, text: str) -> Encoder:
    if name == "characters":
        return character_encoder([text])
    return byte_encoder() if name == "bytes" else load_encoder(os.path.expanduser(name), pretrained=True)


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line, where there are lines."""
    begin = 0
    while begin < len(text):
        end = text.rfind("\n", begin, begin + _PIECE) + 1 if len(text) - begin > _PIECE else len(text)
        end = end if end > begin else begin + _PIECE
        yield text[begin:end]
        begin = end


def _encode(path: str, text: str, encoder: Encoder, what: str) -> None:
    """Write a text as a pair of token files of one document."""
    parts = []
    with Progress(len(text), f"encoding {what}", "characters") as progress:
        for piece in _pieces(text):
            parts.append(np.array(encoder.encode_documents([piece])[0], id_type(encoder.n_vocab)))
            progress.update(len(piece))
    with PairWriter(path, id_type(encoder.n_vocab)) as writer:
        writer.add(np.concatenate(parts))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<17} {one.about}" for name, one in PUBLISHED.items())
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"texts:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help="one of those below")
    parser.add_argument("--output_dir", metavar="DIR", help="default: prepared/NAME")
    parser.add_argument(
        "--dataset_config", metavar="FILE", help="default: configs/dataset_configs/NAME.json in this folder"
    )
    parser.add_argument(
        "--tokenizer", metavar="T", help="characters, bytes, gpt2, or a path; default: the text's usual one"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 success, 1 failure, 130 interrupted."""
    arguments = _arguments(argv)
    set_up_logging()
    name = arguments.name
    config = arguments.dataset_config or os.path.join("configs", "dataset_configs", f"{name}.json")
    try:
        prepare(
            name, PUBLISHED[name], arguments.output_dir or os.path.join("prepared", name), config, arguments.tokenizer
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f'wrote {config}; put [["{name}", 1, "documents_random", 1.0]] into datasets of a model config')
    return 0


if __name__ == "__main__":
    sys.exit(main())
