"""Asking the peers' environment: a script of tests/support/peers, run by its Python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import ModelConfig
from tests.support.runs import REPOSITORY

PEERS_PYTHON = REPOSITORY / os.environ.get("PEERS_VENV", ".venv-peers") / "bin" / "python"


TRANSFORMERS_5 = PEERS_PYTHON.parent.parent / "transformers-5"


def ask(
    script: str, job: Any, folder: Path, *, site: Path | None = None, timeout: float = 240
) -> dict[str, np.ndarray]:
    """What tests/support/peers/<script>.py makes of a job, which is JSON-ready.

    folder: for the files between us. site: a folder of packages that go before the environment's own.
    timeout: in seconds.
    """
    if site is not None and not site.exists():
        pytest.fail(f"{site}: not there; `make peers-env` makes it", pytrace=False)
    if not PEERS_PYTHON.exists():
        pytest.fail(f"{PEERS_PYTHON}: not there; `make peers-env` makes that environment", pytrace=False)
    question, answer = folder / f"{script}.json", folder / f"{script}.npz"
    question.write_text(json.dumps(job))
    done = subprocess.run(
        [str(PEERS_PYTHON), "-m", f"tests.support.peers.{script}", str(question), str(answer)],
        cwd=REPOSITORY,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            **({"PYTHONPATH": str(site)} if site else {}),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(answer) as arrays:
        return dict(arrays)


def hugging_face_keys(model: ModelConfig) -> dict[str, Any]:
    """The same model as keys of Hugging Face's GPTNeoConfig."""
    assert model.activation_function == "gelu"
    return {
        "vocab_size": model.n_vocab,
        "max_position_embeddings": model.n_ctx,
        "hidden_size": model.n_embd,
        "num_layers": model.n_layer,
        "num_heads": model.n_head,
        "attention_types": [[list(model.attention_types), 1]],
        "window_size": model.local_attention_radius,
    }
