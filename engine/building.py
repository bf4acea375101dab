"""From a config and the devices at hand to an engine."""

from __future__ import annotations

from gpt_mesh.cluster.chief import Hosts
from gpt_mesh.config import Config
from gpt_mesh.engine.engine import DeviceEngine
from gpt_mesh.errors import InputError, shown
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.layouts import plan_mesh
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.memory import check_memory
from gpt_mesh.storage.progress import alive, log


def make_plan(config: Config, hosts: Hosts, *, fit: bool, training: bool = False) -> MeshPlan:
    """The config's mesh over the devices of these hosts.

    Args:
        config: says the mesh and the layout.
        hosts: whose devices to use.
        fit: change the sizes of a mesh that is made for another number of devices.
        training: whether the plan is for training, which has a batch size of its own.

    Raises:
        InputError: the mesh or the layout does not work on these devices.
    """
    limits = limits_of(config)
    try:
        plan = plan_mesh(config, limits, hosts.devices, fit=fit, chosen=hosts.chosen, training=training)
        check_memory(config, plan)
        return plan
    except InputError as error:
        if hosts.per_host and config.mesh.size != len(hosts.devices):
            raise InputError(f"{error}; devices of each host: {hosts.per_host}") from None
        raise


def restored_engine(config: Config, checkpoint: str, hosts: Hosts) -> DeviceEngine:
    """An engine that holds the weights of a checkpoint. A mesh for another number of devices is fitted to these.

    Raises:
        InputError: see `make_plan`; or the checkpoint is of another model, damaged, or has values that are not finite.
    """
    plan = make_plan(config, hosts, fit=True)
    if plan.notice:
        log.info(plan.notice)
    hosts.start()
    engine = DeviceEngine(config, plan)
    with alive("building the model"):
        engine.create_variables(training=False)
    engine.restore(checkpoint, finite=True)
    log.info("restored %s on %s", shown(checkpoint), ", ".join(name.lstrip("/") for name in plan.devices))
    return engine
