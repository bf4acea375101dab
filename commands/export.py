"""`--export`: the model as a TensorFlow SavedModel."""

from __future__ import annotations

import argparse

from gpt_mesh.commands.mode import Mode, flag
from gpt_mesh.config import Config
from gpt_mesh.errors import shown


class Export(Mode):
    """Writes a SavedModel."""

    switches = (
        flag(
            "--export", metavar="DIR",
            help="write a TensorFlow SavedModel, for plain TensorFlow or TensorFlow Serving",
        ),
    )  # fmt: skip
    flags = (
        flag(
            "--overwrite", action="store_true", heading="--export",
            help="with --export: replace the SavedModel in DIR",
        ),
    )  # fmt: skip

    def run(self, config: Config, arguments: argparse.Namespace) -> int:
        from gpt_mesh import api
        from gpt_mesh.interop import saved_model
        from gpt_mesh.storage.progress import log

        saved_model.check_folder(arguments.export, arguments.overwrite)  # first: building the model takes longer
        with api.Model(config, checkpoint=arguments.checkpoint, devices=arguments.gpu_ids) as model:
            signatures = model.export(arguments.export, overwrite=arguments.overwrite)
        log.info("wrote %s with the signatures %s", shown(arguments.export), ", ".join(signatures))
        return 0
