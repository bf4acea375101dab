"""Every mode of the command line, and the flags that all of them take."""

from __future__ import annotations

from gpt_mesh.commands.auto_layout import AutoLayout
from gpt_mesh.commands.check_dataset import CheckDataset
from gpt_mesh.commands.dry_run import DryRun
from gpt_mesh.commands.evaluate import Evaluate
from gpt_mesh.commands.export import Export
from gpt_mesh.commands.find_lr import FindLr
from gpt_mesh.commands.interact import Interact
from gpt_mesh.commands.mode import Table, flag, positive
from gpt_mesh.commands.plot import Plot
from gpt_mesh.commands.predict import Predict
from gpt_mesh.commands.quickstart import Quickstart
from gpt_mesh.commands.replay import Replay
from gpt_mesh.commands.score import ScoreFile
from gpt_mesh.commands.serve import Serve
from gpt_mesh.commands.summary import Summary
from gpt_mesh.commands.train import Train

TABLE = Table(
    modes=(
        Train(),
        Evaluate(),
        Predict(),
        Interact(),
        ScoreFile(),
        Serve(),
        Export(),
        CheckDataset(),
        DryRun(),
        FindLr(),
        Summary(),
        Plot(),
        AutoLayout(),
        Quickstart(),
        Replay(),
    ),
    general=(
        flag(
            "--model", nargs="+", metavar="NAME",
            help="config: a path ending in .json or .yml, or the name of configs/NAME.json; of several, a later one's "
            "keys replace those of an earlier one; or a run's directory, or one of its checkpoints (a --worker needs "
            "none)",
        ),
        flag(
            "--set", action="append", metavar="KEY=VALUE", needs="--model",
            help="set a key of the config, such as lr=0.001 or generation.top_p=0.9; repeat it for more keys",
        ),
        flag(
            "--gpu_ids", nargs="+", metavar="DEVICE",
            help="devices of the mesh, such as device:GPU:0 device:GPU:1",
        ),
        flag("--steps_per_checkpoint", type=positive, default=5000, metavar="N", help="default: 5000"),
        flag("--sacred_id", metavar="ID", help="names this run's outputs"),
        flag("--yes", action="store_true", help="answer yes to what --new asks; let --apply replace a file"),
    ),
)  # fmt: skip
