"""Checks a mesh and a layout against a model and its devices, before any graph is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshes.compat import mtf

from config import Config
from errors import InputError
from meshes.devices import MeshPlan


def plan_mesh(
    config: Config, tensors: Mapping[str, mtf.Shape], devices: Sequence[str], *, fit: bool, chosen: bool = False
) -> MeshPlan:
    """The mesh of a config over these devices.

    Args:
        config: its `mesh_shape` and `layout`.
        tensors: the shapes that the layout has to agree with, by what they are.
        devices: full device names.
        fit: use what fits the devices when the config asks for another number of them (prediction, evaluation), instead
            of
            refusing.
        chosen: whether the user named the devices; otherwise a config without a mesh takes the first of them.

    Raises:
        InputError: sizes that do not divide, two dimensions of a tensor on one mesh dimension, a mesh that is not of
            the devices' number.
    """
    mesh, count, first = config.mesh, len(devices), devices[0]
    where = f'{config.source}: "mesh_shape": "{mesh.mesh_shape}"'
    if mesh.size == count:
        # mesh-tensorflow counts a mesh dimension of size 1, which splits nothing, as a split.
        rules = {tensor: mesh_dim for tensor, mesh_dim in mesh.rules.items() if mesh.shape[mesh_dim] > 1}
        _check_layout(config, tensors, rules)
        return MeshPlan(mesh.shape, rules, tuple(devices))
    if not mesh.shape and not chosen:
        whole = f'"mesh_shape": "all:{count}", "layout": "batch:all"'
        return MeshPlan(
            {}, {}, (first,), f"using {first} of {count} devices: the config has no mesh_shape (for all: {whole})"
        )
    if fit:
        return MeshPlan({}, {}, (first,), f"{where} is for {mesh.size} devices; fitted to one ({first})")
    suggestion = (
        '"mesh_shape": "", "layout": ""' if count == 1 else f'"mesh_shape": "all:{count}", "layout": "batch:all"'
    )
    if config.training.train_batch_size % count:
        suggestion += f" and train_batch_size to a multiple of {count}"
    names = ", ".join(name.lstrip("/") for name in devices)
    raise InputError(
        f"{where} is for {_count(mesh.size)}, but {_count(count)} {'was' if count == 1 else 'were'} given ({names}); "
        f"set {suggestion}, or name {_count(mesh.size)} with --gpu_ids"
    )


def _count(devices: int) -> str:
    return f"{devices} device{'s' * (devices != 1)}"


def _check_layout(config: Config, tensors: Mapping[str, mtf.Shape], rules: Mapping[str, str]) -> None:
    sizes = config.mesh.shape
    where = f'{config.source}: "layout": "{config.mesh.layout}"'
    for what, shape in tensors.items():
        split_by: dict[str, str] = {}
        for dim in shape.dims:
            mesh_dim = rules.get(dim.name)
            if mesh_dim is None:
                continue
            if dim.size % sizes[mesh_dim]:
                raise InputError(
                    f"{where}: {dim.name} ({dim.size}) does not divide by mesh dimension {mesh_dim} "
                    f"({sizes[mesh_dim]}); "
                    f"{_divisors(dim.size, sizes[mesh_dim])}"
                )
            if mesh_dim in split_by:
                raise InputError(
                    f"{where}: {what} [{', '.join(shape.dimension_names)}] would be split twice along {mesh_dim}, by "
                    f"{split_by[mesh_dim]} and {dim.name}; put one of them on another mesh dimension or leave it out"
                )
            split_by[mesh_dim] = dim.name


def _divisors(size: int, wanted: int) -> str:
    """Which mesh sizes near the wanted one would do."""
    fitting = [n for n in range(1, 2 * wanted + 1) if size % n == 0]
    nearest = sorted(fitting, key=lambda n: (abs(n - wanted), -n))[:2]
    return f"sizes that divide it: {', '.join(map(str, sorted(nearest)))}"
