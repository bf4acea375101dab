"""`--score`: the log-likelihood of documents."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from gpt_mesh.commands.devices import HOSTS
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError, shown


class ScoreFile(Mode):
    """Scores the documents of a file: a table on a terminal, JSON lines elsewhere."""

    switches = (
        flag(
            "--score", metavar="FILE",
            help="log-likelihood (or reward) of each document of a .txt or .jsonl file, then exit",
        ),
    )  # fmt: skip
    flags = (
        flag(
            "--json", action="store_true", heading="--score",
            help="with --score: JSON lines on a terminal too, with each token's log-probability",
        ),
        flag(
            "--html", metavar="OUT", heading="--score",
            help="with --score: write a page with the text coloured by how unlikely each token was",
        ),
        *HOSTS,
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        documents = _documents(Path(arguments.score))
        if config.model.reward_head:
            return _rewards(config, arguments, documents)
        from gpt_mesh.evaluation.scoring import table
        from gpt_mesh.evaluation.surprise import page
        from gpt_mesh.storage import files
        from gpt_mesh.storage.progress import track

        shown = (sys.stdout.isatty() or arguments.html is not None) and not arguments.json
        found = []
        with load(config, arguments) as model:
            for document in track(documents, len(documents), "scoring", "documents"):
                found.append(model.score(document))
                if not shown:
                    print(json.dumps(dataclasses.asdict(found[-1])), flush=True)
                    if arguments.html is None:
                        found.clear()
            if arguments.html is not None:
                try:
                    files.write_text(arguments.html, page(arguments.score, found, model.encoder))
                except files.errors() as error:
                    raise InputError(f"--html {arguments.html}: cannot be written: {files.reason(error)}") from None
            if shown:
                print("\n".join(table(found, model.encoder)))
        return 0


def _rewards(config: Config, arguments: argparse.Namespace, documents: list[str]) -> int:
    """Print the reward of each document, a JSON line each."""
    if arguments.html is not None:
        raise InputError(f"--html: {config.source} is a reward model, which gives a text one number; leave it out")
    with load(config, arguments, rewards=True) as model:
        for document in documents:
            print(json.dumps({"reward": model.reward(document), "bytes": len(document.encode())}), flush=True)
    return 0


def _documents(path: Path) -> list[str]:
    """The documents of the file: a .txt file is one, exactly as it stands; a .jsonl file has one in the `text` of each
    line.
    """
    from gpt_mesh.data.documents import read_documents

    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"--score {shown(path)}: give a .txt file (one document) or a .jsonl file (a text each line)")
    return list(read_documents(str(path)))
