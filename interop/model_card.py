"""The README.md of an exported model: what it is, what it was trained on, how well it does, how to use it."""

from __future__ import annotations

from gpt_mesh.config import Config
from gpt_mesh.engine import checkpoints
from gpt_mesh.interop.architecture import Architecture
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.storage.json_lines import JsonLines


def text(config: Config, kind: Architecture, checkpoint: str, name: str, n_vocab: int, licence: str | None) -> str:
    """The card, in markdown with Hugging Face's header.

    Args:
        kind: as which architecture it is exported.
        name: what the model is called.
        n_vocab: tokens of its tokenizer.
        licence: an identifier such as "mit"; None leaves the choice open.
    """
    model, step = config.model.model_copy(update={"n_vocab": n_vocab}), checkpoints.step_of(checkpoint)
    task = "classification" if model.reward_head else "generation"
    header = ["library_name: transformers", f"pipeline_tag: text-{task}", "tags:", f"- {kind.model_type}"]
    if licence is not None:
        header.insert(0, f"license: {licence}")
    kinds = {kind: model.attention_types.count(kind) for kind in dict.fromkeys(model.attention_types)}
    layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    rows = [
        (
            "architecture",
            f"{kind.title}: {model.n_layer} layers ({layers}), {model.n_embd} features, {model.n_head} heads",
        ),
        ("parameters", f"{weight_count(model):,}"),
        ("context", f"{model.n_ctx:,} tokens"),
        ("vocabulary", f"{n_vocab:,} tokens"),
        *([("local attention sees", f"{model.local_attention_radius} tokens")] if "local" in kinds else []),
        *_training(config, checkpoint, step),
        *_scores(config, step),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""---
{chr(10).join(header)}
---

# {name}

A {"reward" if model.reward_head else "language"} model trained with mesh-tensorflow.

| | |
|---|---|
{table}

## Use

{(_REWARD_USE if model.reward_head else _LANGUAGE_USE).format(name=name)}"""


_LANGUAGE_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("Some text to go on from", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

## Limits

It continues text as its training data would. What it says may be false, biased or offensive, and may repeat passages of
the data. It was not trained to follow instructions.
"""

_REWARD_USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}")
print(model(**tokenizer("A prompt, and an answer to it", return_tensors="pt")).logits.item())
```

## Limits

A reward says which of two answers to a prompt the people behind the data would have preferred. It is not a measure of
truth or quality.
"""


def _training(config: Config, checkpoint: str, step: int) -> list[tuple[str, str]]:
    settings, optimizer = config.training, config.optimizer
    begin = checkpoints.restore_state(checkpoint).get("init_from")
    rows = [("began from", str(begin).rstrip("/").rpartition("/")[2])] if begin else []
    if step:
        tokens = step * settings.train_batch_size * config.model.n_ctx
        data = ", ".join(f"{use.id} ({use.weight:g})" for use in config.data.datasets)
        rows += [
            ("training", f"{step:,} steps of {settings.train_batch_size:,} sequences, {tokens:,} tokens"),
            ("data", data),
            ("optimizer", f"{optimizer.opt_name}, learning rate {optimizer.lr:g}, {optimizer.lr_decay} decay"),
        ]
    return rows


def _scores(config: Config, step: int) -> list[tuple[str, str]]:
    """The held-out scores of this step, as the run has kept them."""
    rows = JsonLines(f"{config.training.model_path}/eval.jsonl").rows()
    scores = {row.get("task", "validation"): row for row in rows if row["step"] == step}
    names = {"nll": "nats a token", "perplexity": "perplexity", "bits_per_byte": "bits a byte", "accuracy": "accuracy"}
    return [
        (task, ", ".join(f"{row[key]:.4g} {words}" for key, words in names.items() if row.get(key) is not None))
        for task, row in scores.items()
    ]
