"""Peak memory and time of converting a full-size GPT-Neo with random weights from Hugging Face's form, and back.

    python -m benchmarks.conversion_memory [--size 2.7B] [--folder /tmp]

Needs twice the model's size (21 GB for 2.7B) in --folder, and leaves nothing there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = {  # layers, features, heads
    "tiny": (2, 64, 4),
    "125M": (12, 768, 12),
    "1.3B": (24, 2048, 16),
    "2.7B": (32, 2560, 20),
}
VOCABULARY, CONTEXT = 50257, 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="2.7B")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--make", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.make:
        make(Path(flags.make), *SIZES[flags.size])
        return
    print("| step | peak memory | time |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=flags.folder, prefix="conversion-") as temporary:
        root = Path(temporary)
        measured(["-m", "benchmarks.conversion_memory", "--size", flags.size, "--make", str(root / "theirs")])
        size = sum(path.stat().st_size for path in (root / "theirs").glob("*.safetensors"))
        tool = ["-m", "gpt_mesh.interop.huggingface"]
        config = ["--name", "neo", "--config_dir", str(root), "--model_path", str(root / "run")]
        show(f"import {size / 1e9:.1f} GB", *measured([*tool, "import", str(root / "theirs"), *config]))
        shutil.rmtree(root / "theirs")
        show("export", *measured([*tool, "export", str(root / "neo.json"), str(root / "back")]))


def measured(command: list[str], output: Path | None = None) -> tuple[int, float]:
    """Peak resident bytes and seconds of a Python command. This process stays small: a child begins with its peak.

    `output`: a file for what it writes to standard output.
    """
    begin = time.perf_counter()
    with open(output, "w") if output else contextlib.nullcontext() as stdout:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=stdout)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(child.returncode)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - begin


def show(what: str, peak: int, seconds: float) -> None:
    print(f"| {what} | {peak / 1e9:.2f} GB | {seconds:.0f} s |", flush=True)


def make(folder: Path, n_layer: int, n_embd: int, n_head: int) -> None:
    """A model's folder: a shard a layer, of one block of random numbers again and again."""
    import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

    import numpy as np
    from safetensors.numpy import save_file

    from gpt_mesh.config import parse_model
    from gpt_mesh.interop.architectures.gpt_neo import GPTNeo
    from gpt_mesh.interop.weights import weight_sizes

    folder.mkdir()
    config = {
        "model_type": "gpt_neo", "vocab_size": VOCABULARY, "hidden_size": n_embd, "num_layers": n_layer,
        "num_heads": n_head, "max_position_embeddings": CONTEXT, "window_size": 256, "eos_token_id": 0,
        "attention_types": [[["global", "local"], n_layer // 2]],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    model = parse_model(GPTNeo().read(config, "made up"), "made up")
    block = (0.02 * np.random.default_rng(0).standard_normal(VOCABULARY * n_embd)).astype(np.float32)
    sizes, places = weight_sizes(model), {}
    shards: dict[str, dict[str, np.ndarray]] = {}
    for exchange in GPTNeo().exchanges(model):
        [shape], [name] = exchange.shapes(sizes), exchange.theirs
        file = f"model-{exchange.ours[0].split('/')[1]}.safetensors"
        shards.setdefault(file, {})[name] = block[: int(np.prod(shape))].reshape(shape)
        places[name] = file
        for whole in [other for other in shards if other != file]:
            save_file(shards.pop(whole), folder / whole)
    for file, arrays in shards.items():
        save_file(arrays, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, with as many tokens as GPT-2's: the characters that stand for bytes, and made-up ones."""
    from tokenizers import models, pre_tokenizers

    from gpt_mesh.data.encoders import byte_level_bpe

    names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"token{i}" for i in range(len(names), VOCABULARY)]
    vocabulary = {name: i for i, name in enumerate(names)}
    byte_level_bpe(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    main()
