"""Command line: train, evaluate, score and sample language models. `python3 main.py --help` lists the flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_mesh.cluster.addresses import Cluster, find_cluster
from gpt_mesh.config import Config, load_config
from gpt_mesh.errors import InputError
from gpt_mesh.generation import flags as generation_flags
from gpt_mesh.serving.address import DEFAULT_ADDRESS, listen

if TYPE_CHECKING:  # each mode imports what it needs: TensorFlow takes seconds
    from gpt_mesh import api


def make_parser() -> argparse.ArgumentParser:
    """Every flag; `parse_arguments` says which go together."""
    parser = argparse.ArgumentParser(description=__doc__.split(".", 1)[0] + ".", allow_abbrev=False)
    parser.add_argument(
        "--model", help="config: a path ending in .json, or the name of configs/NAME.json (a --worker needs none)"
    )
    parser.add_argument(
        "--gpu_ids", nargs="+", metavar="DEVICE", help="devices of the mesh, such as device:GPU:0 device:GPU:1"
    )
    parser.add_argument(
        "--fit_mesh", action="store_true", help="train on the devices there are, where mesh_shape is for another number"
    )
    parser.add_argument(
        "--cluster",
        metavar="HOST:PORT,…",
        help="use the devices of several hosts: their addresses, the chief's (where the program runs) first; "
        "TF_CONFIG in the environment does the same",
    )
    parser.add_argument(
        "--worker", type=_count, metavar="I", help="this host's place in --cluster: 0, the chief, or lend its devices"
    )
    parser.add_argument(
        "--cluster_timeout", type=_positive, metavar="S", help="seconds that the chief waits for workers; default: 300"
    )
    parser.add_argument(
        "--tpu", metavar="NAME", help="use a Cloud TPU: its name, colab, or local; needs TensorFlow 2.15 (make tpu-env)"
    )
    parser.add_argument("--steps_per_checkpoint", type=_positive, default=5000, metavar="N", help="default: 5000")
    parser.add_argument("--new", action="store_true", help="delete this run's checkpoints and start at step 0")
    parser.add_argument("--yes", action="store_true", help="answer yes to what --new asks; let --apply replace a file")
    parser.add_argument(
        "--init_from", metavar="PATH", help="begin a new run with the weights of a checkpoint, a run's directory, or a "
        "Hugging Face folder",
    )  # fmt: skip
    parser.add_argument(
        "--keep_optimizer", action="store_true", help="with --init_from: take the optimizer's state too"
    )
    parser.add_argument(
        "--resize_vocab", action="store_true", help="with --init_from: the config may have another vocabulary"
    )
    parser.add_argument(
        "--extend_context", action="store_true", help="with --init_from: the config may have a longer context"
    )
    parser.add_argument("--sacred_id", metavar="ID", help="names this run's outputs")
    parser.add_argument(
        "--profile", type=_steps, metavar="START:STOP", help="profile these steps, for TensorBoard and as a table"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--eval", action="store_true", help="evaluate the newest checkpoint, then exit")
    mode.add_argument("--predict", action="store_true", help="generate text, then exit")
    mode.add_argument("--interactive", action="store_true", help="continue lines that are typed, until their end")
    mode.add_argument(
        "--score", metavar="FILE", help="log-likelihood of each document of a .txt or .jsonl file, then exit"
    )
    mode.add_argument(
        "--serve", metavar="HOST:PORT", nargs="?", const=DEFAULT_ADDRESS,
        help=f"answer requests for completions as OpenAI's interface has them; default: {DEFAULT_ADDRESS}",
    )  # fmt: skip
    mode.add_argument(
        "--export", metavar="DIR", help="write a TensorFlow SavedModel, for plain TensorFlow or TensorFlow Serving"
    )
    mode.add_argument("--check_dataset", action="store_true", help="check the config's data, then exit")
    mode.add_argument(
        "--auto_layout", action="store_true", help="print the layout of least memory on the config's mesh, then exit"
    )
    mode.add_argument(
        "--auto_layout_and_mesh_shape", action="store_true", help="the same on any mesh of as many devices"
    )
    parser.add_argument(
        "--devices", type=_positive, metavar="N", help="with --auto_layout...: for N devices, which need not be here"
    )
    parser.add_argument(
        "--apply", type=_positive, nargs="?", const=1, metavar="ROW",
        help="with --auto_layout...: write the config with the layout of that row (default: 1) as NAME_auto.json",
    )  # fmt: skip
    parser.add_argument(
        "--serve_batch", type=_positive, metavar="N",
        help="with --serve: most sequences generated together; default: 32, or as many as fit in 4 GiB",
    )  # fmt: skip
    parser.add_argument(
        "--serve_queue", type=_positive, metavar="N", help="with --serve: most sequences that wait; default: 256"
    )
    parser.add_argument("--overwrite", action="store_true", help="with --export: replace the SavedModel in DIR")
    parser.add_argument(
        "--task", metavar="T", help="with --eval: only this: validation, lambada or wikitext; default: the config's"
    )
    parser.add_argument("--file", metavar="F", help="with --eval --task: the file that the task is in")
    parser.add_argument(
        "--stride", type=_positive, metavar="N",
        help="with --eval: slide windows by N tokens, so that each token has more context (validation, wikitext)",
    )  # fmt: skip
    parser.add_argument("--download", action="store_true", help="with --eval: fetch a task's file that is not here")
    parser.add_argument(
        "--check_files", type=_positive, metavar="N", help="with --check_dataset: only N files of each path"
    )
    parser.add_argument("--prompt", metavar="FILE", help="text to continue with --predict; - is standard input")
    parser.add_argument(
        "--prompts", metavar="FILE", help="with --predict: a prompt a line; in a .jsonl file with settings of its own"
    )
    generation_flags.add_flags(parser)
    return parser


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The flags; wrong ones end the program with status 2."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.predict != (arguments.prompt is not None or arguments.prompts is not None):
        parser.error("--predict and --prompt (or --prompts) go together")
    if arguments.prompt is not None and arguments.prompts is not None:
        parser.error("--prompt goes without --prompts")
    if arguments.sacred_id is not None and not arguments.sacred_id.replace("-", "").replace("_", "").isalnum():
        parser.error("--sacred_id is part of file names: letters, digits, - and _ only")
    generates = run_mode(arguments) in (predict, interact)
    if given := [] if generates else list(generation_flags.given_flags(arguments)):
        flag = generation_flags.OTHER_NAMES.get(given[0], given[0])
        parser.error(f"--{flag} goes with --predict and --interactive only")
    for flag in ("num_samples", "logprobs"):
        if getattr(arguments, flag) is not None and arguments.interactive:
            parser.error(f"--{flag} goes without --interactive, which shows one text")
    if arguments.check_files is not None and not arguments.check_dataset:
        parser.error("--check_files goes with --check_dataset only")
    _check_cluster_flags(parser, arguments)
    _check_tpu_flag(parser, arguments)
    for flag in ("devices", "apply"):
        if getattr(arguments, flag) is not None and run_mode(arguments) is not auto_layout:
            parser.error(f"--{flag} goes with --auto_layout or --auto_layout_and_mesh_shape only")
    for flag in ("serve_batch", "serve_queue"):
        if getattr(arguments, flag) is not None and arguments.serve is None:
            parser.error(f"--{flag} goes with --serve only")
    if arguments.overwrite and arguments.export is None:
        parser.error("--overwrite goes with --export only")
    for flag in ("task", "file", "stride", "download"):
        if getattr(arguments, flag) and not arguments.eval:
            parser.error(f"--{flag} goes with --eval only")
    if arguments.file is not None and arguments.task is None:
        parser.error("--file goes with --task")
    for flag in ("keep_optimizer", "resize_vocab", "extend_context"):
        if getattr(arguments, flag) and arguments.init_from is None:
            parser.error(f"--{flag} goes with --init_from only")
    if arguments.init_from is not None and arguments.tpu is not None:
        parser.error("--init_from goes without --tpu")
    for flag in ("new", "fit_mesh", "init_from", "profile"):
        if getattr(arguments, flag) and run_mode(arguments) is not train:
            parser.error(f"--{flag} goes with training only")
    return arguments


def _check_cluster_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.worker is not None and arguments.cluster is None and "TF_CONFIG" not in os.environ:
        parser.error("--worker goes with --cluster")
    if arguments.cluster_timeout is not None and arguments.cluster is None and "TF_CONFIG" not in os.environ:
        parser.error("--cluster_timeout goes with --cluster")
    if arguments.cluster is not None and not _uses_devices(arguments):
        parser.error("--cluster goes with training, --eval, --predict and --score only")
    # A worker needs no model; TF_CONFIG may say that this is one.
    lends = arguments.worker or (_uses_devices(arguments) and "TF_CONFIG" in os.environ)
    if arguments.model is None and not lends:
        parser.error("the following arguments are required: --model")


def _check_tpu_flag(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.tpu is None:
        return
    if arguments.gpu_ids is not None or arguments.cluster is not None:
        parser.error("--tpu goes without --gpu_ids and --cluster")
    if arguments.profile is not None:
        parser.error("--profile goes without --tpu")
    if run_mode(arguments) not in (train, evaluate, predict, interact):
        parser.error("--tpu goes with training, --eval and --predict only")


def _uses_devices(arguments: argparse.Namespace) -> bool:
    return run_mode(arguments) in (train, evaluate, predict, interact, score)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _steps(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not START:STOP, two steps such as 100:110")
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def train(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh.storage.progress import log
    from gpt_mesh.training.interrupts import watch

    with watch():
        try:
            return _train(config, arguments)
        except KeyboardInterrupt:
            log.info("interrupted before the first step: nothing is lost, the same command starts from the same place")
            return 0


def _train(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh import api
    from gpt_mesh.interop.initial_weights import InitFrom

    if arguments.new and not _agreed_to_delete(config, arguments.yes):
        return 1
    init_from = None
    if arguments.init_from is not None:
        init_from = InitFrom(
            arguments.init_from, arguments.keep_optimizer, arguments.resize_vocab, arguments.extend_context
        )
    api.train(
        config,
        devices=arguments.gpu_ids,
        fit_mesh=arguments.fit_mesh,
        steps_per_checkpoint=arguments.steps_per_checkpoint,
        sacred_id=arguments.sacred_id,
        new=arguments.new,
        cluster=arguments.hosts,
        tpu=arguments.tpu,
        init_from=init_from,
        profile=arguments.profile,
    )
    return 0


def _agreed_to_delete(config: Config, yes: bool) -> bool:
    """Whether the user agrees that the run's checkpoints are deleted."""
    from gpt_mesh.engine import checkpoints

    directory = config.training.model_path
    steps = checkpoints.steps(directory)
    if yes or not steps:
        return True
    what = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)} (up to step {steps[-1]}) in {directory}"
    if not sys.stdin.isatty():
        raise InputError(f"--new would delete {what}; add --yes to agree")
    print(f"Delete {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    print("nothing deleted", file=sys.stderr)
    return False


def evaluate(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh import api
    from gpt_mesh.evaluation.results import table
    from gpt_mesh.storage.json_lines import JsonLines

    rows = []
    for row in api.evaluations(
        config,
        task=arguments.task,
        file=arguments.file,
        stride=arguments.stride,
        download=arguments.download,
        devices=arguments.gpu_ids,
        cluster=arguments.hosts,
        tpu=arguments.tpu,
    ):
        rows.append(row)
        _keep(lambda row=row: JsonLines(f"{config.training.model_path}/eval.jsonl").append(row))  # type: ignore[misc]
    print("\n".join(table(rows)))
    return 0


def predict(config: Config, arguments: argparse.Namespace) -> int:
    settings = generation_flags.prediction_settings(config, arguments)
    from gpt_mesh.generation import files, output
    from gpt_mesh.training.samples import write_predictions

    if arguments.prompts is not None:
        lines = files.read_prompts(arguments.prompts, settings, config.model.n_vocab)
    else:
        lines = [output.one_prompt(_read_prompt(arguments.prompt), settings)]
    with _load(config, arguments) as model:
        form = output.Form.of(arguments.prompts, lines, with_prompt=not config.training.remove_partial_sequences)
        text = output.write(model.generator(), lines, form)
    _keep(lambda: write_predictions(config.training.model_path, model.step, arguments.sacred_id, text, kind="prompt"))
    return 0


def interact(config: Config, arguments: argparse.Namespace) -> int:
    settings = generation_flags.settings_of(config, arguments)
    from gpt_mesh.generation.session import Session

    with _load(config, arguments) as model:
        Session(model.generator(), settings, sys.stdin, sys.stdout).run()
    return 0


def _load(config: Config, arguments: argparse.Namespace) -> api.Model:
    """The trained model, once it is known to predict text and its tokenizer to be there: building takes longer."""
    from gpt_mesh import api
    from gpt_mesh.evaluation.validation import required_encoder

    api.check_predicts_next(config)
    required_encoder(config)
    return api.load(config, devices=arguments.gpu_ids, cluster=arguments.hosts, tpu=arguments.tpu)


def _keep(write: Callable[[], object]) -> None:
    """Keep a result in the run's directory too, which may be somebody else's."""
    import tensorflow as tf

    from gpt_mesh.storage.files import reason
    from gpt_mesh.storage.progress import log

    try:
        write()
    except (OSError, tf.errors.OpError) as error:
        log.warning("not kept in model_path: %s", reason(error))


def score(config: Config, arguments: argparse.Namespace) -> int:
    documents = _documents(Path(arguments.score))
    from gpt_mesh.storage.progress import track

    with _load(config, arguments) as model:
        for document in track(documents, len(documents), "scoring", "documents"):
            print(json.dumps(dataclasses.asdict(model.score([document])[0])), flush=True)
    return 0


def serve(config: Config, arguments: argparse.Namespace) -> int:
    with listen(arguments.serve) as bound:  # an address that is taken is no surprise after minutes
        from gpt_mesh.serving.server import ServerSettings, default_batch, run

        with _load(config, arguments) as model:
            batch, queue = arguments.serve_batch or default_batch(model), arguments.serve_queue
            settings = ServerSettings(batch) if queue is None else ServerSettings(batch, queue)
            run(model, bound, settings)
    return 0


def export(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh import api
    from gpt_mesh.interop import saved_model
    from gpt_mesh.storage.progress import log

    saved_model.check_folder(arguments.export, arguments.overwrite)  # building the model takes longer
    with api.load(config, devices=arguments.gpu_ids) as model:
        signatures = model.export(arguments.export, overwrite=arguments.overwrite)
    log.info("wrote %s with the signatures %s", arguments.export, ", ".join(signatures))
    return 0


def check_dataset(config: Config, arguments: argparse.Namespace) -> int:
    import gpt_mesh.meshes.compat  # noqa: F401  (before TensorFlow, which it keeps quiet)

    from gpt_mesh.data.check import check_dataset

    report = check_dataset(config, files=arguments.check_files)
    print("\n".join(report.lines()))
    return 0 if report.ok else 1


def auto_layout(config: Config, arguments: argparse.Namespace) -> int:
    from gpt_mesh import api
    from gpt_mesh.planning.layout_report import report, write_applied

    devices = arguments.devices or api.mesh_devices(config, arguments.gpu_ids)
    if devices == 1:
        print("One device holds everything: there is nothing to split. For more: --devices N")
        return 0
    found = api.find_layouts(config, devices=devices, keep_mesh=arguments.auto_layout)
    row = arguments.apply or 1
    if row > len(found):
        raise InputError(f"--apply {row}: there are rows 1 to {len(found)}")
    print("\n".join(report(config, devices, found)))
    if arguments.apply is not None:
        print(f"wrote {write_applied(config, found[row - 1], replace=arguments.yes)} with row {row}")
    return 0


def _documents(path: Path) -> list[str]:
    """What --score scores: a .txt file as one document, exactly as it stands; the `text` of each line of a .jsonl file.
    """
    from gpt_mesh.data.documents import read_documents

    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"--score {path}: give a .txt file (one document) or a .jsonl file (a text each line)")
    return list(read_documents(str(path)))


def _read_prompt(name: str) -> str:
    """The text of --prompt, exactly as it stands."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(f"--prompt {name}: cannot be read ({error.strerror}); name a text file, or -") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt {name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from None
    if not text:
        raise InputError(f"--prompt {name}: is empty; give some text to continue")
    return text


def run_mode(arguments: argparse.Namespace) -> Callable[[Config, argparse.Namespace], int]:
    """The function of the mode that the flags ask for."""
    modes = {
        evaluate: arguments.eval,
        predict: arguments.predict,
        interact: arguments.interactive,
        score: arguments.score is not None,
        serve: arguments.serve is not None,
        export: arguments.export is not None,
        check_dataset: arguments.check_dataset,
        auto_layout: arguments.auto_layout or arguments.auto_layout_and_mesh_shape,
    }
    return next((mode for mode, wanted in modes.items() if wanted), train)


def _find_hosts(arguments: argparse.Namespace) -> Cluster | None:
    """The cluster that flags or TF_CONFIG name; None for one host, and for what uses no devices."""
    if arguments.tpu is not None or not _uses_devices(arguments):
        return None
    cluster = find_cluster(arguments.cluster, arguments.worker, os.environ)
    if arguments.model is None and (cluster is None or cluster.is_chief):
        raise InputError("--model is missing: only a worker does without it, and TF_CONFIG does not make this one")
    if cluster is not None and arguments.cluster_timeout is not None:
        cluster = dataclasses.replace(cluster, wait=float(arguments.cluster_timeout))
    return cluster


def lend(cluster: Cluster) -> int:
    """Lend this host's devices to the chief of a cluster, for one run."""
    from gpt_mesh.cluster import worker
    from gpt_mesh.storage.progress import set_up_logging

    set_up_logging()
    return worker.leave(worker.serve(cluster))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 the input cannot work, 2 wrong flags."""
    arguments = parse_arguments(argv)
    try:
        arguments.hosts = _find_hosts(arguments)
        if arguments.hosts is not None and not arguments.hosts.is_chief:
            return lend(arguments.hosts)
        config = load_config(arguments.model)
        import gpt_mesh.meshes.compat  # noqa: F401  (says so where there is no TensorFlow)

        from gpt_mesh.storage.progress import set_up_logging

        set_up_logging()
        return run_mode(arguments)(config, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as the shell reports a program that Ctrl-C ended
    except BrokenPipeError:  # the reader of standard output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 0


def run() -> None:
    """The console script `gpt-mesh`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
