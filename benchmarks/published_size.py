"""Peak memory and time of a forward pass of a shipped config at full size, on a checkpoint of the published form with
random weights.

    python -m benchmarks.published_size [--config gpt_neo_1-3B] [--folder /tmp]

Scores a short text with `main.py --score`: weights have the published checkpoint's type (bfloat16 for 1.3B, float32 for
2.7B) and are read into float32 masters, on the CPU. Leaves nothing in --folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
from benchmarks.conversion_memory import measured, show, write_tokenizer  # noqa: E402

STORED = {"gpt_neo_1-3B": "bfloat16"}  # the type of the weights in the published checkpoint; the others': float32
TEXT = "In the beginning was the mesh, and the mesh was laid out over devices. " * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="gpt_neo_1-3B", help="the name of a config")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--make", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.make:
        make(Path(flags.make), flags.config)
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory(dir=flags.folder, prefix="published-") as temporary:
        root = Path(temporary)
        measured(["-m", "benchmarks.published_size", "--config", flags.config, "--make", temporary])
        size = sum(path.stat().st_size for path in (root / "run").glob("model.ckpt-*"))
        (root / "text.txt").write_text(TEXT)
        command = ["main.py", "--model", str(root / "model.json"), "--score", str(root / "text.txt")]
        peak, seconds = measured(command, root / "score.json")
        score = json.loads((root / "score.json").read_text())
        assert math.isfinite(score["sum"]), score
        print("| step | peak memory | time |\n|---|---|---|")
        kind = STORED.get(flags.config, "float32")
        show(f"score {len(score['tokens'])} tokens by {size / 1e9:.1f} GB of {kind} weights", peak, seconds)


def make(root: Path, name: str) -> None:
    """The config with its checkpoint and a tokenizer, all in one folder."""
    import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

    import numpy as np
    import tensorflow as tf

    from gpt_mesh.config import load_config
    from gpt_mesh.engine import checkpoint_stream
    from gpt_mesh.interop.weights import weight_sizes

    shipped = json.loads((ROOT / "configs" / f"{name}.json").read_text())
    write_tokenizer(root)
    dataset = {"path": "none", "n_vocab": shipped["n_vocab"], "tokenizer_path": "../tokenizer.json", "eos_id": 0}
    (root / "dataset_configs").mkdir()
    (root / "dataset_configs" / "made_up.json").write_text(json.dumps(dataset))
    keys = {"datasets": [["made_up", 25, "documents_random", 1.0]], "model_path": str(root / "run")}
    (root / "model.json").write_text(json.dumps(shipped | keys))
    sizes = weight_sizes(load_config(str(root / "model.json")).model)
    block = (0.02 * np.random.default_rng(0).standard_normal(max(map(math.prod, sizes.values())))).astype(np.float32)
    kind = tf.as_dtype(STORED.get(name, "float32")).as_numpy_dtype

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for weight, size in sizes.items():
            values = block[: math.prod(size)].reshape(size) + (1 if weight.endswith("/g") else 0)
            yield weight, values.astype(kind)

    (root / "run").mkdir()
    checkpoint_stream.write(str(root / "run"), 0, arrays(), {})


if __name__ == "__main__":
    main()
