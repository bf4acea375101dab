"""`--score`: the log-likelihood of documents."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from gpt_mesh.commands.devices import HOSTS
from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.commands.trained import load
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError


class ScoreFile(Mode):
    """Scores the documents of a file, one JSON line each."""

    switches = (
        flag("--score", metavar="FILE", help="log-likelihood of each document of a .txt or .jsonl file, then exit"),
    )
    flags = HOSTS

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        documents = _documents(Path(arguments.score))
        from gpt_mesh.storage.progress import track

        with load(config, arguments) as model:
            for document in track(documents, len(documents), "scoring", "documents"):
                print(json.dumps(dataclasses.asdict(model.score([document])[0])), flush=True)
        return 0


def _documents(path: Path) -> list[str]:
    """The documents of the file: a .txt file is one, exactly as it stands; a .jsonl file has one in the `text` of each
    line.
    """
    from gpt_mesh.data.documents import read_documents

    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"--score {path}: give a .txt file (one document) or a .jsonl file (a text each line)")
    return list(read_documents(str(path)))
