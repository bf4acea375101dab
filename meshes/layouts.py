"""Checks a mesh and a layout against a model and the devices, before any graph is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

from gpt_mesh.config import Config
from gpt_mesh.errors import InputError
from gpt_mesh.meshes.devices import MeshPlan
from gpt_mesh.meshes.fitting import fit_sizes, nearest
from gpt_mesh.meshes.limits import Limits, as_keys, shape_text


def plan_mesh(
    config: Config,
    limits: Limits,
    devices: Sequence[str],
    *,
    fit: bool,
    chosen: bool = False,
    training: bool = False,
) -> MeshPlan:
    """The mesh of a config over these devices.

    Args:
        config: its `mesh_shape` and `layout`.
        limits: what the model allows a layout to split (`planning.graph.limits_of`).
        devices: full device names.
        fit: if the config is for another number of devices, resize its mesh (see `fitting.fit_sizes`) instead of
            raising an error.
        chosen: whether the user named the devices; otherwise a config without a mesh uses the first of them.
        training: all devices must be used; otherwise as many are used as fit.

    Raises:
        InputError: a size does not divide, two dimensions of a tensor are split along one mesh dimension, a mesh
            dimension splits nothing, or the mesh is for another number of devices. The message has the nearest
            layout that works.
    """
    mesh, count = config.mesh, len(devices)
    if mesh.size == count:
        check_layout(config, limits)
        return _plan(config, limits, mesh.shape, mesh.rules, devices, _unused_rules(config, limits))
    if fit:
        return _fitted(config, limits, devices, training)
    if not mesh.shape and not chosen:
        return _first_device(config, limits, devices)
    return _refuse_count(config, limits, devices)


def check_layout(config: Config, limits: Limits) -> None:
    """
    Raises:
        InputError: the config's layout does not work on its mesh.
    """
    mesh = config.mesh
    problem = limits.problem(mesh.shape, mesh.rules)
    if problem is None:
        return
    key, what = problem
    sizes, rules = nearest(limits, mesh.shape, mesh.rules, mesh.size)
    found = math.prod(sizes.values())
    on = "" if found == mesh.size else f", on {_count(found)}"
    value = mesh.layout if key == "layout" else mesh.mesh_shape
    use = f"use the nearest that works{on}: {as_keys(sizes, rules)}"
    raise InputError(f'{config.source}: "{key}": "{value}": {what}; {use}')


def _plan(
    config: Config,
    limits: Limits,
    sizes: Mapping[str, int],
    rules: Mapping[str, str],
    devices: Sequence[str],
    notice: str,
) -> MeshPlan:
    split = limits.effective(sizes, rules)
    notices = [notice, _evaluation_notice(config, sizes[split["batch"]] if "batch" in split else 1)]
    return MeshPlan(dict(sizes), split, tuple(devices), "; ".join(filter(None, notices)))


def _evaluation_notice(config: Config, parts: int) -> str:
    """A notice for evaluation batches that cannot be divided between replicas, or ""."""
    batch = config.training.eval_batch_size
    if not config.training.eval_steps or batch % parts == 0:
        return ""
    divided = -(-batch // parts) * parts
    return (
        f'{config.source}: "eval_batch_size": {batch} does not divide by {parts}: each replica evaluates all of it '
        f"({divided} would be divided)"
    )


def _unused_rules(config: Config, limits: Limits) -> str:
    """A notice for rules about dimensions that the model does not have, or ""."""
    unused = [name for name in config.mesh.rules if name not in limits.splittable]
    return f'{config.source}: "layout": the model has no {" or ".join(unused)}; such rules do nothing' if unused else ""


def _first_device(config: Config, limits: Limits, devices: Sequence[str]) -> MeshPlan:
    sizes, rules = nearest(limits, {"all": len(devices)}, {"batch": "all"}, len(devices))
    more = f"for more: {as_keys(sizes, rules)}"
    notice = f"using {devices[0]} of {len(devices)} devices: the config has no mesh_shape ({more})"
    return _plan(config, limits, {}, {}, devices[:1], notice)


def _fitted(config: Config, limits: Limits, devices: Sequence[str], training: bool) -> MeshPlan:
    """The config's mesh fitted to these devices or, if the layout does not allow that and it is not for training, to as
    many of them as possible.
    """
    mesh, count = config.mesh, len(devices)
    sizes, rules = (mesh.shape, mesh.rules) if mesh.shape else ({"all": 1}, {"batch": "all"})
    where = f'{config.source}: "mesh_shape": "{mesh.mesh_shape}" is for {_count(mesh.size)}'
    if not mesh.shape and not training:
        return _plan(config, limits, {}, {}, devices[:1], f"{where}; using {devices[0]}")
    for used in range(count, 1, -1):
        found = fit_sizes(limits, sizes, rules, used)
        if found is None:
            continue
        if used < count and training:
            _refuse_fit(config, limits, devices, used, found)
        notice = f'{where}; fitted to {_count(used)}: "{shape_text(found)}"'
        if training and mesh.shape:
            notice += _batch_notice(config, found, rules)
        return _plan(config, limits, found, rules, devices[:used], notice)
    if count > 1 and training:
        _refuse_fit(config, limits, devices, 1, {})
    notice = f"{where}; fitted to one ({devices[0]})" + (_batch_notice(config, {}, rules) if training else "")
    return _plan(config, limits, {}, {}, devices[:1], notice)


def _batch_notice(config: Config, sizes: Mapping[str, int], rules: Mapping[str, str]) -> str:
    """A notice if each replica gets more sequences than in the config: the batch size is never changed."""
    if "batch" not in rules:
        return ""
    batch, before = config.training.train_batch_size, config.mesh.shape[rules["batch"]]
    after = sizes.get(rules["batch"], 1)
    if batch % before or after == before:
        return ""
    each = f"; train_batch_size stays {batch}: {batch // after} sequences a replica in place of {batch // before}"
    more = after < before and config.training.tokens_per_mb_per_replica is None
    return each + (" (tokens_per_mb_per_replica makes them microbatches)" if more else "")


def _refuse_fit(
    config: Config, limits: Limits, devices: Sequence[str], used: int, sizes: Mapping[str, int]
) -> NoReturn:
    mesh, count = config.mesh, len(devices)
    where = f'{config.source}: "mesh_shape": "{mesh.mesh_shape}", "layout": "{mesh.layout}"'
    fits = f'"{shape_text(sizes)}"' if sizes else "one device"
    fewer = " ".join(name.lstrip("/") for name in devices[:used])
    raise InputError(
        f"{where}: no mesh of {_count(count)} divides what the layout splits; with --gpu_ids {fewer} it is fitted to "
        f"{fits}, or set {as_keys(*nearest(limits, mesh.shape, mesh.rules or {'batch': 'all'}, count))}"
    )


def _refuse_count(config: Config, limits: Limits, devices: Sequence[str]) -> NoReturn:
    """Raise the error for a mesh of another number of devices. It names what --fit_mesh would do, and the equivalent
    change of the config."""
    mesh, count = config.mesh, len(devices)
    names = ", ".join(name.lstrip("/") for name in devices)
    given = f"{_count(count)} {'was' if count == 1 else 'were'} given ({names})"
    sizes, rules = (mesh.shape, mesh.rules) if mesh.shape else ({"all": 1}, {"batch": "all"})
    found = fit_sizes(limits, sizes, rules, count)
    if count == 1:
        change = f"add --fit_mesh, or set {as_keys({}, {})}"
    elif found is not None:
        change = f'add --fit_mesh to train on "{shape_text(found)}", or set {as_keys(found, rules)}'
    else:
        near, layout = nearest(limits, sizes, rules, count)
        size = math.prod(near.values())
        on = "" if size == count else f"name {_count(size)} and "
        change = f"{on}set {as_keys(near, layout)}"
    raise InputError(
        f'{config.source}: "mesh_shape": "{mesh.mesh_shape}" is for {_count(mesh.size)}, but {given}; {change}, or '
        f"name {_count(mesh.size)} with --gpu_ids"
    )


def _count(devices: int) -> str:
    return f"{devices} device{'s' * (devices != 1)}"
