"""Learning from preferences against trl: the losses and gradients of its own trainers, step by step.

    python -m benchmarks.peers.trl_preferences --python TRL/bin/python

TRL is an environment with PyTorch, transformers and trl (1.16 was compared), apart from this project's: trl asks for
`datasets` and `accelerate`. Each of trl's trainers computes its loss on the same weights and batches as our engine, in
float64, and both train for 50 steps. Printed for each: the largest relative differences of losses and gradient norms
(below 0.001: the differences, times 1000).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Judge = Callable[[Any, Any, Any, dict[str, Any]], tuple[Any, Any]]


def loss_of(objective: str, policy: Any, reference: Any, settings: dict[str, Any]) -> Judge:
    """The loss that trl's trainer of an objective computes, from marked ids [batch, 2, n + 1]. Runs where trl is."""
    import torch
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from tests.support.peers import preferences

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "[PAD]": 3}, unk_token="a")),
        pad_token="[PAD]", eos_token="c",
    )  # fmt: skip
    common = {
        "output_dir": tempfile.mkdtemp(), "report_to": [], "use_cpu": True, "gradient_checkpointing": False,
        "bf16": False, "max_length": None, "per_device_train_batch_size": 4,
    }  # fmt: skip
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    if objective == "dpo":
        keys = {"beta": settings["dpo_beta"], "loss_type": settings["dpo_loss"]}
        data = {"train_dataset": Dataset.from_list([row] * 4), "processing_class": tokenizer}
        trainer = trl.DPOTrainer(policy, reference, trl.DPOConfig(**common, **keys), **data)
    elif objective == "kto":
        weights = {name: settings[f"kto_{name}"] for name in ("desirable_weight", "undesirable_weight")}
        args = trl.KTOConfig(**common, beta=settings["kto_beta"], **weights)
        rows = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)] * 2
        data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        trainer = trl.KTOTrainer(policy, reference, args, **data)
    else:
        args = trl.RewardConfig(**common, center_rewards_coefficient=settings["reward_centering"] or None)
        data = {"train_dataset": Dataset.from_list([row] * 4), "processing_class": tokenizer}
        trainer = trl.RewardTrainer(policy, args, **data)
    trainer.model.train()

    def examples(batch: torch.Tensor) -> list[dict[str, Any]]:
        if objective == "kto":
            prompts, answers, labels = preferences.completions(batch)
            parts = zip(prompts, answers, answers[-1:] + answers[:-1], labels, strict=True)
            names = ("prompt_ids", "completion_ids", "KL_completion_ids", "label")
            return [dict(zip(names, part, strict=True)) for part in parts]
        found = []
        for texts in batch.tolist():
            ends = [max(i for i, token in enumerate(text) if token >= 0) + 1 for text in texts]
            begin = next(i for i, token in enumerate(texts[0]) if token >= 0)
            prompt = [~token for token in texts[0][:begin]]
            chosen, rejected = (text[begin:end] for text, end in zip(texts, ends, strict=True))
            whole = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
            apart = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            # A reward is read from the n tokens that a model takes.
            n = batch.shape[-1] - 1
            found.append({k: v[:n] for k, v in whole.items()} if objective == "reward" else apart)
        return found

    def judge(policy: Any, reference: Any, batch: Any, settings: dict[str, Any]) -> tuple[Any, Any]:
        inputs = trainer.data_collator(examples(batch))
        compute = trainer.compute_loss if objective == "reward" else trainer._compute_loss
        loss = compute(trainer.model, inputs, return_outputs=False)
        told = trainer._metrics["train"].get("kl", [0.0])[-1]
        return loss, torch.tensor(told)

    return judge


def main() -> None:
    import numpy as np

    from gpt_mesh.config import load_config
    from tests.support.models import LLAMA
    from tests.support.preference_runs import CASES, job_of, our_steps
    from tests.support.runs import REPOSITORY, make_workspace

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment with trl")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], help="default: all")
    flags = parser.parse_args()
    llama = {**LLAMA, "attention_types": [[["global"], 2]], "num_kv_heads": 2, "scale_attn_weights": True}
    with tempfile.TemporaryDirectory() as root:
        workspace = make_workspace(Path(root))
        for shape, keys in (("GPT-Neo", {}), ("Llama", llama)):
            for case, more in ((case, CASES[case]) for case in flags.cases if case != "free"):  # which trl has not
                name = f"{shape}_{case}"
                unsmoothed = {"dpo_label_smoothing": 0.0}  # trl's sigmoid has none
                path = workspace.config(name, **{**keys, **more, **unsmoothed}, embed_dropout=0, train_batch_size=4)
                config = load_config(str(path))
                folder = Path(root) / f"job_{name}"
                folder.mkdir()
                job, engine = job_of(config, folder, flags.steps)
                question, answer = folder / "job.json", folder / "answer.npz"
                question.write_text(json.dumps({**job, "judge": "trl"}))
                command = [flags.python, "-m", "tests.support.peers.preferences", str(question), str(answer)]
                subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
                ours, theirs = our_steps(engine, np.load(job["batches"])), np.load(answer)
                loss, norm = (
                    np.abs(ours[k] - theirs[k]) / np.maximum(theirs[k], 1e-3) for k in ("loss", "grad_norm")
                )
                print(
                    f"{shape} {case}: loss {loss[0]:.1e} in the first step, {loss.max():.1e} in {flags.steps}; "
                    f"gradient norm {norm[0]:.1e}, {norm.max():.1e}; last loss {theirs['loss'][-1]:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
