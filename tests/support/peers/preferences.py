"""Learning from preferences in PyTorch: python -m tests.support.peers.preferences JOB.json OUT.npz

The models are Hugging Face's, and the losses are written from the papers: DPO (arXiv:2305.18290, equation 7; smoothed:
ericmitchell.ai/cdpo.pdf), IPO (arXiv:2310.12036, equation 17, on means over tokens), hinge (arXiv:2309.06657), KTO
(arXiv:2402.01306, section 4), and Bradley-Terry for rewards (arXiv:2203.02155). With "judge": "trl" they are trl's own
trainers, which need an environment with trl (benchmarks/peers/trl_preferences.py).

JOB.json: "objective"; "policy" and "reference": folders; "settings": the keys of preferences; "optimizer": keys of this
project's config; "batches": a .npy file of marked ids [steps, batch, 2, n + 1]. OUT.npz has `loss` and `grad_norm`
[steps], `logps` of policy and reference in the first batch, and rewards [steps, …] where the judge tells them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.support.peers.training import step

Loss = Callable[[Any, Any, torch.Tensor, dict[str, Any]], tuple[torch.Tensor, torch.Tensor]]


def log_probabilities(model: Any, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the learned tokens of marked texts [batch, n + 1]: the sum, and the number: [batch] each."""
    ids, learned = torch.maximum(texts, -1 - texts), texts[:, 1:] >= 0
    logp = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logp * learned).sum(-1), learned.sum(-1)


def dpo(policy: Any, reference: Any, batch: torch.Tensor, o: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the log-ratios of both texts [batch, 2]."""
    flat = batch.flatten(0, 1)
    sums, counts = log_probabilities(policy, flat)
    with torch.no_grad():
        known = 0.0 if o["dpo_reference_free"] else log_probabilities(reference, flat)[0]
    ratios = (sums - known).view(-1, 2)
    beta, smoothing = o["dpo_beta"], o["dpo_label_smoothing"]
    margin = ratios[:, 0] - ratios[:, 1]
    if o["dpo_loss"] == "sigmoid":
        loss = -(1 - smoothing) * F.logsigmoid(beta * margin) - smoothing * F.logsigmoid(-beta * margin)
    elif o["dpo_loss"] == "hinge":
        loss = torch.clamp(1 - beta * margin, min=0)
    else:
        means = ratios / counts.view(-1, 2)
        loss = (means[:, 0] - means[:, 1] - 1 / (2 * beta)) ** 2
    return loss.mean(), ratios


def completions(batch: torch.Tensor) -> tuple[list[list[int]], list[list[int]], list[bool]]:
    """Prompts, completions and labels of examples with one completion each, from [batch, 2, n + 1]."""
    prompts, answers, labels = [], [], []
    for chosen, rejected in batch.tolist():
        label = any(token >= 0 for token in chosen)
        text = chosen if label else rejected
        first = next(i for i, token in enumerate(text) if token >= 0)
        prompts.append([~token for token in text[:first]])
        answers.append([token for token in text[first:] if token >= 0])
        labels.append(label)
    return prompts, answers, labels


def kto(policy: Any, reference: Any, batch: torch.Tensor, o: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the divergence."""
    prompts, answers, labels = completions(batch)
    width = batch.shape[-1]

    def rows(answers: list[list[int]]) -> torch.Tensor:
        texts = [[~token for token in prompt] + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return torch.tensor([(text + [~0] * width)[:width] for text in texts])

    def ratios(texts: torch.Tensor) -> Any:
        with torch.no_grad():
            known = log_probabilities(reference, texts)[0]
        return log_probabilities(policy, texts)[0] - known

    with torch.no_grad():
        divergence = ratios(rows(answers[-1:] + answers[:-1])).mean().clamp(min=0)
    own, desirable = ratios(rows(answers)), torch.tensor(labels)
    gain = 1 - torch.sigmoid(o["kto_beta"] * (own - divergence))
    loss = 1 - torch.sigmoid(o["kto_beta"] * (divergence - own))
    weighted = torch.where(desirable, o["kto_desirable_weight"] * gain, o["kto_undesirable_weight"] * loss)
    return weighted.mean(), divergence


def last_places(flat: torch.Tensor) -> torch.Tensor:
    """The last learned token among those that a model reads, of marked texts [batch, n + 1]."""
    n = flat.shape[1] - 1
    return torch.where(flat[:, :-1] >= 0, torch.arange(n), 0).amax(-1)


def reward(policy: Any, reference: Any, batch: torch.Tensor, o: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the rewards [batch, 2]."""
    flat = batch.flatten(0, 1)
    ids = torch.maximum(flat, -1 - flat)[:, :-1]
    features = policy.base_model(ids).last_hidden_state[torch.arange(len(flat)), last_places(flat)]
    rewards = policy.score(features)[:, 0].view(-1, 2)
    loss = -F.logsigmoid(rewards[:, 0] - rewards[:, 1]) + o["reward_centering"] * rewards.sum(-1) ** 2
    return loss.mean(), rewards


LOSSES: dict[str, Loss] = {"dpo": dpo, "kto": kto, "reward": reward}


def load(folder: str, objective: str) -> Any:
    """A model of Hugging Face's, in float64."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if objective == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    model.get_input_embeddings().padding_idx = None  # else the row of this id is not trained
    return model


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    objective, settings, optimizer = job["objective"], job["settings"], job["optimizer"]
    batches = torch.from_numpy(np.load(job["batches"]).astype(np.int64))
    policy = load(job["policy"], objective)
    reference = load(job["reference"], objective) if "reference" in job else None
    judge = LOSSES[objective]
    if job.get("judge") == "trl":
        from benchmarks.peers.trl_preferences import loss_of

        judge = loss_of(objective, policy, reference, settings)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    state = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    found: dict[str, Any] = {"loss": [], "grad_norm": [], "told": []}
    if reference is not None:
        flat = batches[0].flatten(0, 1)
        with torch.no_grad():
            found["logps"] = np.stack([log_probabilities(m, flat)[0].numpy() for m in (policy, reference)])
    for batch in batches:
        loss, told = judge(policy, reference, batch, settings)
        loss.backward()
        with torch.no_grad():
            norm = step(weights, state, optimizer["lr"], optimizer)
        found["loss"].append(loss.item())
        found["grad_norm"].append(norm)
        found["told"].append(told.detach().numpy())
    arrays: Any = {name: np.array(value) for name, value in found.items()}
    np.savez(sys.argv[2], **arrays)


if __name__ == "__main__":
    main()
