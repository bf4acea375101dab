"""A training run on the devices that a caller names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gpt_mesh.cluster.addresses import Cluster
from gpt_mesh.cluster.chief import hosts_of
from gpt_mesh.config import Config
from gpt_mesh.engine.building import make_plan
from gpt_mesh.errors import InputError
from gpt_mesh.interop.initial_weights import InitFrom
from gpt_mesh.library.devices import as_cluster
from gpt_mesh.library.model import Model
from gpt_mesh.objectives.registry import objective_of
from gpt_mesh.storage.progress import set_up_logging
from gpt_mesh.tpu.devices import find as find_tpu
from gpt_mesh.tpu.loop import TpuTrainer
from gpt_mesh.training import report, runs
from gpt_mesh.training.events import EventHandler
from gpt_mesh.training.loop import Trainer, TrainResult, finished
from gpt_mesh.training.profiling import Steps


@dataclass(frozen=True)
class Trained(TrainResult):
    """How a training run ended, and its model.

    Attributes:
        config: of the run.
        devices: that it was given.
    """

    config: Config = field(repr=False)
    devices: Sequence[str] | None = field(default=None, repr=False)

    @cached_property
    def model(self) -> Model:
        """The model of the newest checkpoint, on the devices that it was trained on; loaded on first use."""
        return Model(self.config, checkpoint=self.checkpoint, devices=self.devices)


def show_progress() -> None:
    """Log to standard error, unless the program has set up logging: then it decides itself what is shown."""
    if not logging.getLogger().handlers:
        set_up_logging()


def run(
    config: Config,
    *,
    devices: Sequence[str] | None,
    fit_mesh: bool,
    steps_per_checkpoint: int,
    sacred_id: str | None,
    new: bool,
    cluster: Cluster | str | None,
    tpu: str | None,
    init_from: InitFrom | None,
    profile: Steps | int | None,
    watch: EventHandler | None,
) -> TrainResult:
    """Train: see `api.train` for the arguments."""
    if isinstance(profile, Steps):
        profile.check(config)
    if tpu is not None:
        if init_from is not None:
            raise InputError("init_from does not go with a TPU: begin the run elsewhere, and go on there")
        if objective_of(config).pairs:
            raise InputError(
                f"{config.source}: objective = {config.training.objective}: does not go with a TPU; train on CPUs or "
                "GPUs"
            )
        if watch is not None:
            raise InputError("watch does not go with a TPU, whose steps run in a loop of their own: read metrics.jsonl")
        for key in ("batch_ramp", "eval_interval", "keep_every_n_steps"):
            if value := getattr(config.training, key):
                raise InputError(f"{config.source}: {key} = {value}: does not go with a TPU; remove it")
        found = find_tpu(tpu, config)
        if not new and (result := finished(config, steps_per_checkpoint, sacred_id)) is not None:
            return result
        with report.claimed(config):
            return TpuTrainer(
                config, found, fit_mesh=fit_mesh, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id,
                new=new,
            ).run()  # fmt: skip
    with hosts_of(as_cluster(cluster), devices) as hosts, hosts.guarded(lambda: runs.how_to_resume(config)):
        plan = make_plan(config, hosts, fit=fit_mesh, training=True)
        ended = None if new or isinstance(profile, int) else finished(config, steps_per_checkpoint, sacred_id)
        if ended is not None:
            return ended
        with report.claimed(config) as lease:
            return Trainer(
                config, plan, steps_per_checkpoint=steps_per_checkpoint, sacred_id=sacred_id, new=new, hosts=hosts,
                init_from=init_from, profile=profile, lease=lease, watch=watch,
            ).run()  # fmt: skip
