"""`--auto_layout` and `--auto_layout_and_mesh_shape`: the layout that takes the least memory."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag, positive
from gpt_mesh.config import Config
from gpt_mesh.errors import InputError

HEADING = "--auto_layout, --auto_layout_and_mesh_shape"


class AutoLayout(Mode):
    """Prints layouts, and writes a config with one of them."""

    switches = (
        flag(
            "--auto_layout", action="store_true",
            help="print the layout of least memory on the config's mesh, then exit",
        ),
        flag("--auto_layout_and_mesh_shape", action="store_true", help="the same on any mesh of as many devices"),
    )  # fmt: skip
    flags = (
        flag(
            "--devices", type=positive, metavar="N", heading=HEADING,
            help="with --auto_layout...: for N devices, which need not be here",
        ),
        flag(
            "--apply", type=positive, nargs="?", const=1, metavar="ROW", heading=HEADING,
            help="with --auto_layout...: write the config with the layout of that row (default: 1) as NAME_auto.json",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh.planning.layout_report import devices_of, find_layouts, report, write_applied

        devices = arguments.devices or devices_of(config, arguments.gpu_ids)
        if devices == 1:
            print("One device holds everything: there is nothing to split. For more: --devices N")
            return 0
        found = find_layouts(config, devices, keep_mesh=arguments.auto_layout)
        row = arguments.apply or 1
        if row > len(found):
            raise InputError(f"--apply {row}: there are rows 1 to {len(found)}")
        print("\n".join(report(config, devices, found)))
        if arguments.apply is not None:
            print(f"wrote {write_applied(config, found[row - 1], replace=arguments.yes)} with row {row}")
        return 0
