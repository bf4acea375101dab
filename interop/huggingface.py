"""Imports and exports models in Hugging Face's format.

    python3 -m gpt_mesh.interop.huggingface import FOLDER --name NAME
    python3 -m gpt_mesh.interop.huggingface export MODEL FOLDER

The first converts a model's folder (config.json, safetensors or .bin files, a tokenizer) to a checkpoint and configs,
which `main.py --model NAME` trains and samples. The second converts a checkpoint to such a folder. See
docs/huggingface.md.
"""

from __future__ import annotations

import argparse
import re
import sys

import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

from gpt_mesh.errors import InputError, shown
from gpt_mesh.interop.architectures import ARCHITECTURES
from gpt_mesh.interop.export_model import DTYPES, SHARD_BYTES, export_model
from gpt_mesh.interop.import_model import import_model
from gpt_mesh.storage.progress import log, set_up_logging
from gpt_mesh.training import runs


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags; wrong ones end the program with status 2."""
    parser = argparse.ArgumentParser(
        prog="python3 -m gpt_mesh.interop.huggingface", description="Models in Hugging Face's format, in and out."
    )
    actions = parser.add_subparsers(dest="action", required=True)
    read = actions.add_parser("import", help="a Hugging Face model as a checkpoint with its configs")
    read.add_argument("folder", help="config.json, safetensors or .bin files, tokenizer files")
    read.add_argument("--name", required=True, help="of the configs, and of the run")
    read.add_argument("--config_dir", default="configs", metavar="DIR", help="default: configs")
    read.add_argument("--model_path", metavar="DIR", help="where the checkpoint goes; default: runs/NAME")
    read.add_argument("--tokenizer", metavar="PATH", help="a tokenizer's file or folder in place of the model's own")
    write = actions.add_parser("export", help="a checkpoint as a folder that transformers loads")
    write.add_argument("model", help="a config's name or path, a run's directory, or a checkpoint")
    write.add_argument("folder", help="to write; new or empty")
    write.add_argument("--architecture", choices=sorted(ARCHITECTURES), help="if several can express the model")
    write.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the weights; default: float32")
    write.add_argument(
        "--max_shard_size", type=_size, default=SHARD_BYTES, metavar="SIZE", help="of a weight file; default: 2GB"
    )
    write.add_argument("--license", metavar="ID", help="for the model card, such as mit")
    for action in (read, write):
        action.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    if arguments.action == "import" and not re.fullmatch(r"[\w.-]+", arguments.name):
        parser.error("--name is part of file names: letters, digits, ., - and _ only")
    return arguments


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMG]?)B?", text)
    if match is None or not (size := int(float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 2GB")
    return size


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 success, 1 invalid input, 2 wrong flags."""
    arguments = parse_arguments(argv)
    set_up_logging()
    try:
        if arguments.action == "import":
            done = import_model(
                arguments.folder,
                arguments.name,
                config_dir=arguments.config_dir,
                model_path=arguments.model_path,
                tokenizer=arguments.tokenizer,
                overwrite=arguments.overwrite,
            )
            log.info("wrote %s and %s; to sample: python3 main.py --model %s --predict --prompt FILE",
                     shown(done.checkpoint), shown(done.tokenizer), done.config)  # fmt: skip
        else:
            config, checkpoint = runs.find(arguments.model)
            files = export_model(
                config,
                runs.find_checkpoint(config, checkpoint),
                arguments.folder,
                architecture=arguments.architecture,
                dtype=arguments.dtype,
                shard_bytes=arguments.max_shard_size,
                licence=arguments.license,
                overwrite=arguments.overwrite,
            )
            log.info("wrote %s: %s", shown(arguments.folder), ", ".join(files))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
