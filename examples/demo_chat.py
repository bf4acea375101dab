"""From the demo's language model to one that answers questions: supervised fine-tuning, in minutes.

    python -m examples.demo_chat        (after python -m examples.demo)

Makes questions and answers of the standard library's own docstrings ("What does textwrap.dedent do?"), tunes the model
of the demo on them, and shows what it says about functions that it was not told of, before and after. A model of a
million parameters learns the form of an answer, and to guess from a function's name; it does not know the library.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from examples import standard_library
from examples.layout import SMOKE_FILES, Demo, read_json_lines, set_up, write_json
from examples.screen import REPOSITORY, run, say, section, short, table
from examples.standard_library import Source
from gpt_mesh.errors import InputError

TEMPLATE = "alpaca"
SHOWN = 5
SHORTEST, LONGEST = 20, 120  # characters of an answer
STEPS, SMOKE_STEPS = 400, 4


def pairs(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    """A question and its answer for each public function with a docstring: its first sentence."""
    for source in sources:
        try:
            tree = ast.parse(source.content)
        except SyntaxError:
            continue
        module = source.name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                sentence = first_sentence(ast.get_docstring(node) or "")
                if SHORTEST <= len(sentence) <= LONGEST:
                    yield f"What does {module}.{node.name} do?", sentence


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line; empty if there is none."""
    paragraph = " ".join(docstring.strip().partition("\n\n")[0].split())
    found = re.match(r".*?[.!?](?= |$)", paragraph)
    return found[0] if found else ""


def write_pairs(folder: Path, files: int | None) -> dict[str, list[tuple[str, str]]]:
    """The pairs of the files that the demo trained on, and of those that it held out, as conversations."""
    parts = zip(("train", "held_out"), standard_library.split(standard_library.find_sources()[:files]), strict=True)
    found = {name: list(pairs(sources)) for name, sources in parts}
    for name, rows in found.items():
        path = folder / "pairs" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        roles = ({"messages": [_message("user", q), _message("assistant", a)]} for q, a in rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in roles))
    return found


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def encode(folder: Path, demo: Demo) -> None:
    width = str(demo.values["n_ctx"] + 1)
    for part in ("train", "held_out"):
        run(
            "data/create_tfrecords.py",
            *("--input_dir", folder / "pairs" / f"{part}.jsonl", "--records", "messages"),
            *("--chat_template", TEMPLATE, "--maximum_size", width, "--name", part, "--overwrite"),
            *("--output_dir", folder / "data", "--encoder_path", demo.tokenizer),
        )


def write_config(folder: Path, demo: Demo, steps: int) -> Path:
    """The demo's config with the pairs for data, and `sft` for its objective."""
    dataset = {
        "path": str(folder / "data" / "train_*.tfrecords"),
        "eval_path": str(folder / "data" / "held_out_*.tfrecords"),
        "n_vocab": demo.values["n_vocab"],
        "tokenizer_path": str(demo.tokenizer),
        "chat_template": TEMPLATE,
    }
    (folder / "dataset_configs").mkdir(parents=True, exist_ok=True)
    write_json(folder / "dataset_configs" / "pairs.json", dataset)
    keys = {
        "datasets": [["pairs", 1, "documents_packed", 1.0]], "objective": "sft", "model_path": str(folder / "run"),
        "lr": 5e-4, "warmup_steps": steps // 10, "train_steps": steps, "predict_max_steps": 40, "eval_steps": 0,
    }  # fmt: skip
    config = folder / "demo_chat.json"
    write_json(config, demo.values | keys)
    return config


def copied(base: Path, folder: Path, step: int) -> Path:
    """A copy of the demo's model, whose evaluations are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*base.glob(f"model.ckpt-{step}.*"), base / "config.json"):
        shutil.copy(path, folder)
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-{step}"\n')
    return folder


def held_out_nll(folder: Path) -> float:
    rows = read_json_lines(folder / "eval.jsonl")
    return float(next(row["nll"] for row in reversed(rows) if row["task"] == "validation"))


def answers(config: Path, model_path: Path, questions: Sequence[str], folder: Path) -> list[str]:
    """What a model answers, greedily."""
    prompts = folder / "questions.jsonl"
    rows = ({"prompt": f"### Instruction:\n{question}\n\n### Response:\n", "stop": "\n"} for question in questions)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "answers.jsonl"
    run(
        "main.py", "--model", config, "--set", f"model_path={model_path}",
        *("--predict", "--prompts", prompts, "--temperature", "0"),
        output=out,
    )  # fmt: skip
    return [row["samples"][0]["text"].strip() for row in read_json_lines(out)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, metavar="DIR", help="the demo's folder (default: runs/demo)")
    parser.add_argument("--smoke", action="store_true", help="after a demo with --smoke: to see that everything runs")
    flags = parser.parse_args(argv)
    folder = flags.output or REPOSITORY / "runs" / ("demo_smoke" if flags.smoke else "demo")
    start = time.monotonic()
    try:
        run_demo(folder.absolute(), flags.smoke)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"Everything is in {short(folder.absolute() / 'chat')}; {time.monotonic() - start:.0f} s in all.")
    return 0


def run_demo(base: Path, smoke: bool) -> None:
    demo = set_up(base, smoke)
    if not demo.trained_steps():
        raise InputError(f"{short(base)}: holds no trained model; run `make demo` first")
    folder = base / "chat"
    with section("Questions and answers"):
        found = write_pairs(folder, SMOKE_FILES if smoke else None)
        say(f"{len(found['train']):,} functions to learn from, {len(found['held_out']):,} held out")
        if not found["train"] or not found["held_out"]:
            raise InputError("this Python's standard library has no docstrings; use one that is not stripped")
        encode(folder, demo)
    config = write_config(folder, demo, SMOKE_STEPS if smoke else STEPS)
    asked = found["held_out"][:: max(1, len(found["held_out"]) // SHOWN)][:SHOWN]
    questions = [question for question, _ in asked]
    with section("Before"):
        copy = copied(base, folder / "before", demo.trained_steps())
        run("main.py", "--model", config, "--set", f"model_path={copy}", "--eval")
        before = answers(config, copy, questions, folder), held_out_nll(copy)
    with section("Fine-tuning"):
        run("main.py", "--model", config, "--init_from", base)
        run("main.py", "--model", config, "--eval")
    with section("After"):
        after = answers(config, folder / "run", questions, folder), held_out_nll(folder / "run")
    with section("Result"):
        for (question, answer), old, new in zip(asked, before[0], after[0], strict=True):
            say(f"{question}\n  before:    {old or '(nothing)'}\n  after:     {new}\n  docstring: {answer}\n")
        say("Negative log-likelihood of held-out answers, nats a token:\n")
        say(table([("before", before[1]), ("after", after[1])]))
    say(f"\nTalk to it: python3 main.py --model {short(config)} --interactive")


if __name__ == "__main__":
    sys.exit(main())
