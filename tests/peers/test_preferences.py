"""Learning from preferences in PyTorch: equal weights, references and batches give equal losses at every step.

On the other side the models are Hugging Face's, from our exports, and the losses are written from the papers
(tests/support/peers/preferences.py). trl's own trainers are held against the same steps by
`python -m benchmarks.peers.trl_preferences`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_mesh.config import load_config
from tests.support.models import LLAMA
from tests.support.outside import ask
from tests.support.preference_runs import CASES, job_of, our_steps
from tests.support.runs import Workspace

pytestmark = pytest.mark.peers

STEPS = 50
_LLAMA = {**LLAMA, "attention_types": [[["global"], 2]], "num_kv_heads": 2, "scale_attn_weights": True}
SHAPES: dict[str, dict[str, Any]] = {"gpt_neo": {}, "llama": _LLAMA}


@pytest.mark.parametrize("case", ["sigmoid", "ipo", "kto", "reward"])
def test_fifty_steps_have_the_same_losses(workspace: Workspace, tmp_path: Path, case: str) -> None:
    shape = "llama" if case in ("ipo", "kto", "reward") else "gpt_neo"
    keys = {**SHAPES[shape], **CASES[case], "embed_dropout": 0, "train_batch_size": 4, "train_steps": STEPS}
    config = load_config(str(workspace.config(f"preferences_{case}", **keys)))
    job, engine = job_of(config, tmp_path, STEPS)
    theirs = ask("preferences", job, tmp_path)
    ours = our_steps(engine, np.load(job["batches"]))
    if "logps" in theirs:
        logps = theirs["logps"][0].reshape(-1, 2)
        if config.training.objective == "dpo":
            np.testing.assert_allclose(ours["logps/chosen"][0], logps[:, 0].mean(), rtol=1e-5)
            np.testing.assert_allclose(ours["logps/rejected"][0], logps[:, 1].mean(), rtol=1e-5)
        assert np.abs(theirs["logps"][0] - theirs["logps"][1]).max() > 0.1
    np.testing.assert_allclose(ours["loss"][0], theirs["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(ours["grad_norm"][0], theirs["grad_norm"][0], rtol=1e-4)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4, atol=1e-5)
    if case == "kto":
        np.testing.assert_allclose(ours["kl"], theirs["told"], rtol=1e-4, atol=1e-4)
        assert (theirs["told"] > 0.01).sum() > 5
    assert theirs["loss"][-5:].mean() < theirs["loss"][:5].mean()
