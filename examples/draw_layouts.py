"""Draws docs/images/layout_*.svg: which part of each tensor each device holds, under three layouts.

python -m examples.draw_layouts
"""

from __future__ import annotations

import math
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
# By file name: mesh shape and layout, as in a config.
PICTURES = {
    "layout_data": ("x:4", "batch:x"),
    "layout_tensor": ("y:4", "heads:y,intermediate_expanded:y,vocab:y"),
    "layout_mixed": ("x:2,y:2", "batch:x,heads:y,intermediate_expanded:y,vocab:y"),
}
# Rows and columns of what is drawn; the colour tells weights from activations.
TENSORS = {
    "tokens": ("batch", "sequence", "#c77d2e"),
    "queries, keys, values": ("batch", "heads", "#c77d2e"),
    "attention weights": ("embd", "heads", "#2f6f9f"),
    "feed-forward weights": ("embd", "intermediate_expanded", "#2f6f9f"),
    "token embedding": ("vocab", "embd", "#2f6f9f"),
}
SIDE, GAP, TOP, LEFT = 64, 24, 100, 210


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, (mesh_shape, layout) in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw(mesh_shape, layout), encoding="utf-8")


def draw(mesh_shape: str, layout: str) -> str:
    """A column for each device and a row for each tensor; a device's part is filled."""
    sizes = {name: int(size) for name, size in _pairs(mesh_shape)}
    rules = dict(_pairs(layout))
    devices = math.prod(sizes.values())
    width, height = LEFT + devices * (SIDE + GAP), TOP + len(TENSORS) * (SIDE + GAP)
    parts = [_text(GAP, 24, f'"mesh_shape": "{mesh_shape}"', 14), _text(GAP, 42, f'"layout": "{layout}"', 14)]
    for device in range(devices):
        place = _coordinates(device, sizes)
        x = LEFT + device * (SIDE + GAP)
        parts.append(_text(x, TOP - 24, f"device {device}", 13))
        parts.append(_text(x, TOP - 8, ", ".join(f"{name} = {at}" for name, at in place.items()), 11))
        for row, (rows, columns, colour) in enumerate(TENSORS.values()):
            y = TOP + row * (SIDE + GAP)
            top, tall = _part(rows, sizes, rules, place)
            start, wide = _part(columns, sizes, rules, place)
            parts.append(_box(x, y, SIDE, SIDE, "none"))
            parts.append(_box(x + start * SIDE, y + top * SIDE, wide * SIDE, tall * SIDE, colour))
    for row, (name, (rows, columns, _)) in enumerate(TENSORS.items()):
        middle = TOP + row * (SIDE + GAP) + SIDE // 2
        parts += [_text(GAP, middle, name, 13), _text(GAP, middle + 16, f"[{rows}, {columns}]", 11)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, _filled(0, 0, width, height, "white"), *parts, "</svg>"]) + "\n"


def _pairs(text: str) -> list[tuple[str, str]]:
    """ "a:b,c:d" as pairs."""
    return [(name, value) for name, value in (item.split(":") for item in text.split(","))]


def _coordinates(device: int, sizes: dict[str, int]) -> dict[str, int]:
    """Where a device stands in the mesh; the last dimension counts fastest, as in mesh-tensorflow."""
    place = {}
    for name in reversed(sizes):
        device, place[name] = divmod(device, sizes[name])
    return dict(reversed(place.items()))


def _part(dimension: str, sizes: dict[str, int], rules: dict[str, str], place: dict[str, int]) -> tuple[float, float]:
    """Where a device's part of a dimension begins and how long it is, as shares of the whole."""
    axis = rules.get(dimension)
    return (0.0, 1.0) if axis is None else (place[axis] / sizes[axis], 1.0 / sizes[axis])


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'{shape} fill="{fill}" fill-opacity="0.85" stroke="#444" stroke-width="1"/>'


def _filled(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def _text(x: float, y: float, text: str, size: int) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<text x="{x:g}" y="{y:g}" font-family="sans-serif" font-size="{size}" fill="#222">{escaped}</text>'


if __name__ == "__main__":
    main()
