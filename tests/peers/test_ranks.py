"""Files of tiktoken's ranks have the ids that tiktoken gives, special tokens included."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.tiktoken_files import Family, cl100k, llama_3
from tests.support.model_files import trained_ranks, write_ranks
from tests.support.outside import ask

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("family", [llama_3(1256, scaled=True), cl100k(1256)], ids=["llama 3", "cl100k"])
def test_the_ids_of_tiktoken(tmp_path: Path, family: Family) -> None:
    corpus = [path.read_text() for path in sorted(Path(json.__path__[0]).glob("*.py"))]
    ranks = trained_ranks(corpus, 1200)
    write_ranks(tmp_path / "tokenizer.model", ranks)
    settings = {"pat_str": family.pattern, "special_tokens": family.special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    rng, names = random.Random(0), [*family.special][:5]
    texts = [*corpus, "", " ", "I'LL 12345 it's\r\n\r\n x", "é e\u0301 中文 😀", f"{names[0]}a{names[1]} {names[2]}\n"]
    texts += ["".join(rng.choice("abe  \n0123'st中é😀_.") for _ in range(100)) for _ in range(100)]
    job = {"ranks": {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}, "texts": texts}
    judged = ask("ranks", {**job, "pattern": family.pattern, "special_tokens": family.special}, tmp_path)
    encoder = load_encoder(str(tmp_path))
    named, plain = [encoder.encode(text) for text in texts], encoder.encode_documents(texts)
    assert judged["lengths"].tolist() == [[*map(len, named)], [*map(len, plain)]]
    assert judged["named"].tolist() == [token for ids in named for token in ids]
    assert judged["plain"].tolist() == [token for ids in plain for token in ids]
