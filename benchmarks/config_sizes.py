"""Size and cost of each shipped config, from its graph, without allocating anything.

    python -m benchmarks.config_sizes [config ...]

FLOPs are for training on one token. Memory is for one device of the config's own mesh, as training prints it: exact for
weights and optimizer, rough for activations.
"""

from __future__ import annotations

import argparse

from gpt_mesh.config import load_config, shipped_configs
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.models.shapes import weight_count
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.memory import training_memory
from gpt_mesh.planning.metrics import flops_per_token, human_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("configs", nargs="*", default=shipped_configs(), help="default: all that are shipped")
    flags = parser.parse_args()
    print("| config | parameters | GFLOP a token | devices | memory of each | weights and optimizer | activations |")
    print("|---|---|---|---|---|---|---|")
    for name in flags.configs:
        config = load_config(name)
        devices = [f"/device:GPU:{number}" for number in range(config.mesh.size)]
        plan = plan_mesh(config, limits_of(config), devices, fit=False)
        memory = training_memory(config, plan)
        state = memory["weights"] + memory["optimizer"]
        print(
            f"| `{name}` | {weight_count(config.model) / 1e6:,.1f} M | {flops_per_token(config) / 1e9:,.3f} | "
            f"{config.mesh.size} | {human_bytes(sum(memory.values()))} | {human_bytes(state)} | "
            f"{human_bytes(memory['activations'])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
