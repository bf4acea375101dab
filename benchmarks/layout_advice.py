"""The fastest estimated layout that fits, by model size and number of devices: the table of docs/parallelism.md.

    python -m benchmarks.layout_advice [--memory 24 80]

Every model uses bfloat16, recompute_grad, microbatches of one sequence, and a vocabulary that divides.
"""

from __future__ import annotations

import argparse
from typing import Any

from gpt_mesh.config import load_config, replace
from gpt_mesh.meshes.limits import layout_text, shape_text
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.layout_search import Candidate, candidate, layouts, mesh_shapes
from gpt_mesh.planning.metrics import human_bytes

MODELS = {
    "125 M": "gpt_neo_125M", "1.3 B": "gpt_neo_1-3B", "2.7 B": "gpt_neo_2-7B", "6.7 B": "gpt3_6-7B_256",
    "13 B": "gpt3_13B_256",
}  # fmt: skip
DEVICES = (1, 2, 4, 8, 16, 64)
SAVERS: dict[str, Any] = {
    "precision": "bfloat16",
    "recompute_grad": True,
    "tokens_per_mb_per_replica": 2048,
    "n_vocab": 50304,
}
# What the estimate may miss: collectives' buffers, the compiler's own.
USABLE = 0.85


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, nargs="+", default=[24, 80], help="GiB of each device")
    budgets = parser.parse_args().memory
    print("| parameters | devices | " + " | ".join(f"of {budget:g} GiB" for budget in budgets) + " |")
    print("|---|---|" + "---|" * len(budgets))
    for size, name in MODELS.items():
        for devices in DEVICES:
            found = every_layout(name, devices)
            cells = [fastest(found, budget * USABLE * 2**30) for budget in budgets]
            print(f"| {size} | {devices} | " + " | ".join(cells) + " |", flush=True)


def every_layout(name: str, devices: int) -> list[Candidate]:
    """All layouts of a model on all meshes of so many devices."""
    config = replace(load_config(name), mesh_shape="", layout="", **SAVERS)
    limits = limits_of(config)
    if devices == 1:
        return [candidate(config, limits, {}, {})]
    return [
        candidate(config, limits, sizes, rules) for sizes in mesh_shapes(devices) for rules in layouts(limits, sizes)
    ]


def fastest(found: list[Candidate], limit: float) -> str:
    """The layout of least time among those that take at most `limit` bytes; of nearly equal ones the simplest."""
    fitting = [each for each in found if each.bytes <= limit]
    if not fitting:
        return f"no: {human_bytes(min(each.bytes for each in found))} at least"
    least = 1.02 * min(each.cost.seconds for each in fitting)
    best = min(
        (each for each in fitting if each.cost.seconds <= least), key=lambda each: (len(each.plan.rules), each.bytes)
    )
    text = f"`{shape_text(best.plan.shape)}` `{layout_text(best.plan.rules)}`" if best.plan.shape else "one device"
    return f"{text}, {human_bytes(best.bytes)}"


if __name__ == "__main__":
    main()
