"""The ids of texts by tiktoken, of given ranks and of given special tokens."""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
import tiktoken


def main(question: str, answer: str) -> None:
    with open(question, encoding="utf-8") as file:
        job = json.load(file)
    ranks = {base64.b64decode(token): rank for token, rank in job["ranks"].items()}
    judge = tiktoken.Encoding(
        "judge", pat_str=job["pattern"], mergeable_ranks=ranks, special_tokens=job["special_tokens"]
    )
    named = [judge.encode(text, allowed_special="all") for text in job["texts"]]
    plain = [judge.encode(text, disallowed_special=()) for text in job["texts"]]
    lengths = [[len(ids) for ids in found] for found in (named, plain)]
    flat = [np.concatenate([np.array(ids, np.int64) for ids in found]) for found in (named, plain)]
    np.savez(answer, named=flat[0], plain=flat[1], lengths=np.array(lengths))


if __name__ == "__main__":
    main(*sys.argv[1:])
