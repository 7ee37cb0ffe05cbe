"""The best few paths, so unlike one another that there is something to choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Points
from hybrid_guidance.planning.anatomy_map import AnatomyMap, Source, build_map
from hybrid_guidance.planning.candidates import (
    Candidates,
    Task,
    Term,
    housing,
    in_unit,
    search,
)
from hybrid_guidance.planning.path import Path
from hybrid_guidance.simulation.shapes import Shape

APART = 0.006


@dataclass(frozen=True)
class TermValue:
    """What one path was judged by.

    Attributes:
        value: m, rad or share; of a clearance less needle and k·σ.
        unit: ``mm``, ``°`` or empty, in which people read it.
        limit: the worst value allowed, NaN without.
        cost: its part of the path's cost.
        at_least: whether the value is no more than a bound: it is that far away, or further.
    """

    value: float
    unit: str
    limit: float
    cost: float
    at_least: bool = False

    def shown(self) -> str:
        """Return it for people."""
        return ('> ' if self.at_least else '') + in_unit(self.value, self.unit)


@dataclass(frozen=True)
class RankedPath:
    """One path of a plan.

    Attributes:
        path: entry and target.
        cost: sum of the terms' costs.
        terms: name to value.
    """

    path: Path
    cost: float
    terms: Mapping[str, TermValue]

    @property
    def nearest(self) -> tuple[str, float]:
        """Name and clearance (m) of what is nearest of all that has a margin, past its margin."""
        past = {name: term.value - term.limit for name, term in self.terms.items()
                if term.unit == 'mm' and name not in NOT_CLEARANCES and np.isfinite(term.limit)}
        name = min(past, key=lambda key: past[key])
        return name, self.terms[name].value


NOT_CLEARANCES = ('length', 'out_of_slice', 'probe')


def choose(found: Candidates, count: int = 5, apart: float = APART) -> tuple[RankedPath, ...]:
    """Return the best paths, each entering at least ``apart`` metres from every better one.

    Args:
        found: the judged paths.
        count: how many at most.
        apart: m, on the skin.
    """
    cost = found.cost.copy()
    chosen: list[RankedPath] = []
    while len(chosen) < count:
        best = int(np.argmin(cost))
        if not np.isfinite(cost[best]):
            break
        chosen.append(ranked(found, best))
        cost[np.linalg.norm(found.entries - found.entries[best], axis=1) < apart] = np.inf
    return tuple(chosen)


def ranked(found: Candidates, index: int) -> RankedPath:
    """Return one candidate with what it was judged by."""
    return RankedPath(
        Path(found.entries[index], found.target),
        float(sum(term.cost[index] for term in found.terms.values())),
        {name: _value(term, index) for name, term in found.terms.items()})


def _value(term: Term, index: int) -> TermValue:
    value = float(term.value[index])
    return TermValue(value, term.unit, float(term.limit), float(term.cost[index]),
                     bool(value >= term.capped))


def table(paths: tuple[RankedPath, ...]) -> str:
    """Return the ranked paths as a table for people."""
    lines = ['rank  cost  length    to skin  nearest to avoid (less needle and k·σ)  '
             'out of slice  to beam  to X-ray']
    for rank, path in enumerate(paths, start=1):
        terms = path.terms
        name = path.nearest[0]
        lines.append(
            f'{rank:4d}  {path.cost:4.2f}  {terms["length"].shown():8}  '
            f'{terms["skin_angle"].shown():>7}  {name + " " + terms[name].shown():38}  '
            f'{terms["out_of_slice"].shown():>12}  {terms["beam_angle"].shown():>7}  '
            f'{terms["ray_angle"].shown():>8}')
    return '\n'.join(lines)


class Chooser:
    """Chooses paths again and again, with one map as long as it holds them.

    Args:
        task: the problem; its target and window may move.
        sources: name to structure: the skin, and all that is to be avoided.
    """

    def __init__(self, task: Task, sources: Mapping[str, Source | Shape]) -> None:
        self._task = task
        self._sources = {name: sources[name] for name in ('skin', *task.avoid)}
        self._made: tuple[Task, AnatomyMap] | None = None

    def choose(self, target: Points, window: Points,
               count: int = 5) -> tuple[Candidates, tuple[RankedPath, ...]]:
        """Return all judged paths and the best few.

        Args:
            target: (3,) m, in ``patient``.
            window: (3,) m, middle of the entry window.
            count: how many at most.

        Raises:
            PlanError: no path keeps every limit; the message says which refuses, by how much.
        """
        task = replace(self._task, target=target, window=window)
        if self._made is None or not (np.array_equal(self._made[0].target, target)
                                      and np.array_equal(self._made[0].window, window)):
            self._made = task, build_map(self._sources, *task.region(), band=task.band)
        found = search(task, self._made[1])
        return found, choose(found, count)


def probe_outline(task: Task) -> Points:
    """Return the (4, 3) corners, m in ``patient``, of the probe's housing at the skin."""
    half = housing(task.probe)
    corners = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]]) * (half[0], 0.0, half[1])
    return transform_points(task.patient_T_image, corners)
