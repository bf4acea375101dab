"""What curves show: runs that diverged, and metrics that are nearly the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[int, float]]  # step and value, by step

LOSSES = ("training/loss", "training/nll", "validation/nll")
TOLERANCE = 0.01  # relative difference of metrics that share a chart
FEWEST = 3  # points above a limit that are no outliers


def diverged_at(series: Mapping[str, Points]) -> int | None:
    """The step from which a run's loss is beyond recovery up to its end; None: the run did not diverge."""
    losses = (series[name] for name in LOSSES if name in series)
    return next((step for points in losses if (step := _diverged_at(points)) is not None), None)


def _diverged_at(points: Points) -> int | None:
    """The first of the last points that are all not finite, or above both 1.5 times the first value and twice the
    lowest.
    """
    finite = [value for _, value in points if math.isfinite(value)]
    limit = max(1.5 * finite[0], 2 * min(finite)) if finite else 0.0
    beyond: list[tuple[int, float]] = []
    for step, value in reversed(points):
        if math.isfinite(value) and value <= limit:
            break
        beyond.append((step, value))
    if not beyond or (len(beyond) < FEWEST and all(math.isfinite(value) for _, value in beyond)):
        return None
    return beyond[-1][0]


def shared_charts(runs: Sequence[Mapping[str, Points]]) -> dict[str, str]:
    """Metrics that need no chart of their own, each with the one that shows it: `training/nll` where it nearly equals
    `training/loss` in every run.
    """
    loss, nll = LOSSES[:2]
    having = [series for series in runs if nll in series]
    alike = having and all(loss in series and _nearly_same(series[nll], series[loss]) for series in having)
    return {nll: loss} if alike else {}


def _nearly_same(first: Points, second: Points) -> bool:
    if [step for step, _ in first] != [step for step, _ in second]:
        return False
    pairs = [(a, b) for (_, a), (_, b) in zip(first, second, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in pairs)
