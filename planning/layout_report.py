"""The report of `--auto_layout`, and the config that `--apply` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from gpt_mesh.config import CONFIG_DIRECTORY, Config, file_of, parse_config
from gpt_mesh.errors import InputError, shown
from gpt_mesh.meshes.devices import choose_devices
from gpt_mesh.meshes.fitting import fit_sizes
from gpt_mesh.meshes.limits import as_keys, layout_text, shape_text
from gpt_mesh.planning.graph import limits_of
from gpt_mesh.planning.layout_search import Candidate, best_layouts, candidate, mesh_shapes
from gpt_mesh.planning.metrics import human_bytes
from gpt_mesh.storage import files

EFFECTS = {
    "batch": "{size} of {whole} sequences a replica; gradients of the weights are summed over it once per step",
    "sequence": "each sequence is split into {parts} parts; keys and values are gathered in every attention layer",
    "memory_length": "attention weights are split by key; attention outputs are summed over it in every layer",
    "embd": "the residual stream and every matrix are split; each matmul that reads the stream is all-reduced over it",
    "heads": "attention's weights and heads are divided; one sum over it in every attention layer, and one backward",
    "vocab": "the token embedding and the logits are split; embeddings are summed over it, once each way",
    "intermediate_expanded": "feed-forward weights are divided; one sum over it in every such layer, and one backward",
    "embed_sequence": "the position embedding is split; it is gathered once per step",
    "experts": "{size} of {whole} experts a device; tokens travel to their experts and back",
    "expert_hidden": "each expert's hidden layer is split; expert outputs are summed over it",
}


MAX_DEVICES = 2**16  # the meshes of more would be too many to try


def devices_of(config: Config, requested: Sequence[str] | None) -> int:
    """The number of devices to find a layout for: those requested, else the config's mesh, else this host's."""
    if requested is None and config.mesh.size > 1:
        return config.mesh.size
    return len(choose_devices(requested))


def find_layouts(config: Config, devices: int, *, keep_mesh: bool) -> list[Candidate]:
    """`best_layouts` on the config's own mesh (`keep_mesh`), or on any mesh of that many devices.

    Raises:
        InputError: the config's mesh is for another number of devices, or the model cannot be split over so many.
    """
    mesh = config.mesh
    if devices > MAX_DEVICES:
        raise InputError(f"{config.source}: {devices:,} devices: layouts are found for at most {MAX_DEVICES:,}")
    if keep_mesh and mesh.size > 1 and mesh.size != devices:
        raise InputError(
            f'{config.source}: "mesh_shape": "{mesh.mesh_shape}" is for {mesh.size} devices and --auto_layout keeps '
            f"it; for {devices} use --auto_layout_and_mesh_shape"
        )
    own = mesh.shape if mesh.size > 1 else {"all": devices}
    found = best_layouts(config, [own] if keep_mesh else mesh_shapes(devices), _now(config, devices)[0])
    if not found:
        what = f"a mesh of {shape_text(own)}" if keep_mesh else f"{devices} devices"
        raise InputError(
            f"{config.source}: no dimension of the model divides by {what}; "
            + ("use --auto_layout_and_mesh_shape" if keep_mesh else "ask for another number with --devices")
        )
    return found


def report(config: Config, devices: int, found: Sequence[Candidate]) -> list[str]:
    """A table of the layouts and the config's own, and the best one, ready to paste, with its effects."""
    now, remark = _now(config, devices)
    rows = [*([("now", now)] if now else []), *((str(i), each) for i, each in enumerate(found, 1))]
    best = found[0]
    lines = [
        f"{config.source} on {devices} devices: estimates for one of them, in training",
        "",
        *_table(rows, now or found[-1]),
        "",
        *([remark] if remark else []),
        *_described(config, 1, best, _compared(best, now)),
    ]
    faster = [(row, each) for row, each in enumerate(found[1:], 2) if _no_worse(each, now)]
    if faster:
        row, each = faster[0]
        what = f"No slower than now, by the estimate: {human_bytes(each.bytes)}"
        lines += ["", *_described(config, row, each, what)]
    elif len(found) > 1:
        what = f"Least time, by the estimate: {human_bytes(found[-1].bytes)}"
        lines += ["", *_described(config, len(found), found[-1], what)]
    return lines


def _no_worse(each: Candidate, now: Candidate | None) -> bool:
    """Whether a layout is no slower than the config's own, and takes less memory."""
    return now is not None and each.cost.seconds <= now.cost.seconds and each.bytes < now.bytes


def _described(config: Config, row: int, each: Candidate, what: str) -> list[str]:
    """A layout ready to paste, with its effects."""
    keys = as_keys(each.plan.shape, each.plan.rules)
    return [f"{what} (row {row}):", f"  {keys}", *(f"    {line}" for line in _effects(config, each))]


def _now(config: Config, devices: int) -> tuple[Candidate | None, str]:
    """The config's own layout on this number of devices, and a remark about it."""
    mesh, limits = config.mesh, limits_of(config)
    if mesh.size == devices:
        problem = limits.problem(mesh.shape, mesh.rules)
        if problem is None:
            return candidate(config, limits, mesh.shape, mesh.rules), ""
        return None, f'The config\'s layout "{mesh.layout}" cannot work: {problem[1]}.'
    if not mesh.shape:
        return None, "The config has no mesh: it is for one device."
    sizes = fit_sizes(limits, mesh.shape, mesh.rules, devices)
    if sizes is None:
        return None, f'The config\'s "{mesh.mesh_shape}" is for {mesh.size} devices and does not fit {devices}.'
    fitted = candidate(config, limits, sizes, mesh.rules)
    return fitted, f'Row "now": the config\'s "{mesh.mesh_shape}" as --fit_mesh would lay it out.'


def _table(rows: Sequence[tuple[str, Candidate]], measure: Candidate) -> list[str]:
    """One line for each layout; times are relative to that of `measure`."""
    parts = ("weights", "gradients", "optimizer", "activations")
    head = ("", "memory", *parts, "sent a step", "work", "time", "mesh_shape", "layout")
    cells: list[tuple[str, ...]] = [head]
    for name, each in rows:
        held = [human_bytes(each.memory[part]) for part in parts]
        time = each.cost.seconds / measure.cost.seconds
        cost = [human_bytes(each.cost.sent), f"x{each.cost.repeated:.2f}", f"x{time:.2f}"]
        keys = [shape_text(each.plan.shape), layout_text(each.plan.rules)]
        cells.append((name, human_bytes(each.bytes), *held, *cost, *keys))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return [
        "  ".join(
            text.ljust(width) if column in (0, 9, 10) else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _compared(best: Candidate, now: Candidate | None) -> str:
    if now is None:
        return f"Least memory: {human_bytes(best.bytes)}"
    if _groups(best) == _groups(now):
        return f"Least memory: {human_bytes(best.bytes)}, with the config's own layout"
    return f"Least memory: {human_bytes(best.bytes)} instead of {human_bytes(now.bytes)}"


def _groups(each: Candidate) -> set[tuple[int, frozenset[str]]]:
    """A layout independent of the names of mesh dimensions: what each splits, and into how many parts."""
    shape, rules = each.plan.shape, each.plan.rules
    split = {axis: frozenset(name for name in rules if rules[name] == axis) for axis in shape}
    return {(size, split[axis]) for axis, size in shape.items() if size > 1}


def _effects(config: Config, each: Candidate) -> list[str]:
    """The effect of splitting each dimension."""
    limits, lines = limits_of(config), []
    for name, axis in each.plan.rules.items():
        parts, whole = each.plan.shape[axis], limits.splittable[name]
        effect = EFFECTS[name].format(parts=parts, whole=whole, size=whole // parts)
        if name == "heads" and config.model.num_kv_heads == 1 < config.model.n_head:
            effect += "; keys and values, of one head, are whole on each device"
        lines.append(f"{name}:{axis}  {effect}")
    return lines


def write_applied(config: Config, chosen: Candidate, *, replace: bool) -> str:
    """Write the config with another mesh and layout as `<name>_auto.json` beside it. A shipped config is written into
    `configs/` of the working directory, since users do not edit an installed package.

    Returns:
        Its path.

    Raises:
        InputError: another file of that name exists and `replace` is false, or it cannot be written.
    """
    path = f"{os.path.splitext(file_of(config.source))[0]}_auto.json"
    if Path(path).resolve().parent == CONFIG_DIRECTORY:
        path = os.path.join("configs", os.path.basename(path))
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        keys = {"mesh_shape": shape_text(chosen.plan.shape), "layout": layout_text(chosen.plan.rules)}
        values = {**config.given, **keys}
        parse_config(values, path, config.directory)  # never write a config that cannot be read
        text = json.dumps(values, indent=4) + "\n"
        if os.path.exists(path) and not replace:
            with open(path, encoding="utf-8") as file:
                if file.read() != text:
                    raise InputError(f"--apply: {shown(path)} already exists; add --yes to replace it, or move it away")
        files.write_text(path, text)
    except OSError as error:
        raise InputError(
            f"--apply: {shown(path)}: cannot be written ({error.strerror}); copy the config elsewhere"
        ) from None
    return path
