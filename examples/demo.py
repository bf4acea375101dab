"""From raw text to a language model that writes, in minutes, on any machine with Python: no download, no GPU.

    python -m examples.demo

Learns Python from the sources of the standard library: splits them into training and held-out files, trains a
tokenizer, encodes the text, trains the GPT of configs/demo.json, evaluates it in bits per byte of the held-out text
beside compressors, generates text, and draws the curves. It shows every command that it runs, for use on other text.

Started again, it continues: an interrupted training resumes from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from examples import baselines, standard_library
from examples.layout import SMOKE_FILES, Demo, read_json_lines, set_up, write_json
from examples.screen import REPOSITORY, run, say, section, short, table
from gpt_mesh.data.encoders import load_encoder
from gpt_mesh.data.manifest import load_manifest
from gpt_mesh.errors import InputError

CHECKPOINTS = 5  # and evaluations along the way
# Not ending in a space: a tokenizer makes it part of the word that follows.
PROMPTS = {"class": "import os\n\n\nclass", "function": "def main("}


# The steps. Each is done when the file that it writes last is there.


def collect_text(demo: Demo, files: int | None) -> None:
    done = demo.folder / "text.json"
    if done.exists():
        say(f"There already: {short(done)}.")
    else:
        shutil.rmtree(demo.text, ignore_errors=True)  # of an interrupted run
        training, held_out = standard_library.split(standard_library.find_sources()[:files])
        facts = {
            "python": platform.python_version(),
            "training_files": len(training),
            "training_bytes": standard_library.write(training, demo.text / "train"),
            "held_out_files": len(held_out),
            "held_out_bytes": standard_library.write(held_out, demo.text / "held_out"),
            "held_out_lines_also_in_training": standard_library.repeated_share(training, held_out),
        }
        write_json(done, facts)
    facts = json.loads(done.read_text())
    say(
        f"The standard library of Python {facts['python']}, split by file:\n"
        f"  {facts['training_bytes']:>9,} bytes in {facts['training_files']:>3} files to train on\n"
        f"  {facts['held_out_bytes']:>9,} bytes in {facts['held_out_files']:>3} files held out; "
        f"{facts['held_out_lines_also_in_training']:.0%} of their longer lines are in training files too"
    )


def train_tokenizer(demo: Demo) -> None:
    if demo.tokenizer.exists():
        say(f"There already: {short(demo.tokenizer)}.")
        return
    size = str(demo.values["n_vocab"])
    run(
        "data/train_tokenizer.py",
        *("--base_dir", demo.text / "train", "--file_type", "py"),
        *("--output_dir", demo.tokenizer.parent, "--vocab_size", size),
    )


def encode(demo: Demo, part: str) -> None:
    found, manifest = sorted(demo.data.glob(f"{part}_*.tfrecords")), load_manifest(str(demo.data), part)
    if found and (manifest is None or manifest.complete):
        say(f"There already: {short(found[0])}.")
        return
    run(
        "data/create_tfrecords.py",
        *("--input_dir", demo.text / part, "--file_type", "py", "--name", part),
        *("--output_dir", demo.data, "--encoder_path", demo.tokenizer, "--resume"),
    )


def measure_baselines(demo: Demo) -> dict[str, float]:
    """Bits per byte of others on the held-out text, all of its files as one stream."""
    done = demo.folder / "baselines.json"
    if not done.exists():
        training, held_out = demo.read("train"), demo.read("held_out")
        encoder = load_encoder(str(demo.tokenizer))
        texts = [document.decode() for document in training], [document.decode() for document in held_out]
        write_json(
            done,
            {
                "unigram model of the tokens": baselines.unigram_bits(encoder, *texts),
                "gzip -9": baselines.gzip_bits(b"".join(held_out)),
                "xz -9": baselines.xz_bits(b"".join(held_out)),
                "xz -9 after the training text": baselines.xz_bits_after(b"".join(training), b"".join(held_out)),
            },
        )
    else:
        say(f"There already: {short(done)}.")
    figures: dict[str, float] = json.loads(done.read_text())
    say("Bits per byte of the held-out text:\n")
    say(table(list(figures.items())))
    return figures


def train(demo: Demo) -> None:
    """Train, or go on training, or evaluate once more what is trained."""
    done = demo.trained_steps()
    model = ("main.py", "--model", demo.config)
    if done >= demo.steps:
        say(f"Trained already, to step {done:,}: evaluating only.")
        run(*model, "--eval")
        return
    if done:
        say(f"Going on from step {done:,}.")
    run(*model, "--steps_per_checkpoint", str(max(1, demo.steps // CHECKPOINTS)))
    if (done := demo.trained_steps()) < demo.steps:
        say(f"\nInterrupted at step {done:,} of {demo.steps:,}: the same command goes on from there.")
        sys.exit(130)


def write_samples(demo: Demo) -> None:
    for name, prompt in PROMPTS.items():
        path = demo.folder / "prompts" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(prompt)
        run("main.py", "--model", demo.config, "--predict", "--prompt", path)


def report(demo: Demo, others: dict[str, float]) -> None:
    """The table and the picture."""
    rows = read_json_lines(demo.folder / "eval.jsonl")
    evaluations = {row["step"]: row for row in rows if row["task"] == "validation"}
    last = evaluations[max(evaluations)]
    facts = json.loads((demo.folder / "text.json").read_text())
    if last["bytes"] != facts["held_out_bytes"]:
        raise InputError(
            f"{short(demo.folder / 'eval.jsonl')}: evaluated on {last['bytes']:,} bytes, but the held-out text has "
            f"{facts['held_out_bytes']:,}; delete {short(demo.folder)} and start again"
        )
    start = baselines.uniform_bits(demo.values["n_vocab"], last["tokens"], last["bytes"])
    ours = {0: start} | {step: row["bits_per_byte"] for step, row in sorted(evaluations.items())}
    picture = demo.folder / "curves.png"
    draw(demo, picture, ours, others, last["tokens"] / last["bytes"])
    lines = [*others.items(), ("GPT untrained: all tokens alike", start)]
    lines += [(f"GPT at step {step:,}", bits) for step, bits in ours.items() if step]
    say(f"Bits per byte of the {last['bytes']:,} held-out bytes (less is better):\n")
    say(table(lines))
    saved = 1 - last["bits_per_byte"] / others["gzip -9"]
    say(f"\nThe model needs {saved:.0%} fewer bits than gzip -9." if saved > 0 else "\nThe model is behind gzip -9.")
    say(f"Curves: {short(picture)}")


def draw(demo: Demo, picture: Path, held_out: dict[int, float], others: dict[str, float], density: float) -> None:
    """density: tokens a byte of the held-out text, taken for the training text's too."""
    from examples.plot import save_curves  # slow to import

    rows = read_json_lines(demo.folder / "metrics.jsonl")
    training = [(row["step"], row["nll"] / math.log(2) * density) for row in rows]
    save_curves(picture, sorted(held_out.items()), training, others)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, metavar="DIR", help="where everything goes (default: runs/demo)")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on a few files, to see that everything runs")
    flags = parser.parse_args(argv)
    folder = flags.output or REPOSITORY / "runs" / ("demo_smoke" if flags.smoke else "demo")
    start = time.monotonic()
    try:
        run_demo(folder.absolute(), flags.smoke)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    say(f"Everything is in {short(folder.absolute())}; {time.monotonic() - start:.0f} s in all.")
    return 0


def run_demo(folder: Path, smoke: bool) -> None:
    demo = set_up(folder, smoke)
    with section("Text"):
        collect_text(demo, SMOKE_FILES if smoke else None)
    with section("Tokenizer"):
        train_tokenizer(demo)
    with section("Encoding"):
        encode(demo, "train")
        encode(demo, "held_out")
    with section("What there is to beat"):
        others = measure_baselines(demo)
    with section("Training"):
        train(demo)
    with section("Python it wrote"):
        write_samples(demo)
    with section("Result"):
        report(demo, others)


if __name__ == "__main__":
    sys.exit(main())
