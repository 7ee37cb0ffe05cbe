"""How far the tip is from what it must not touch, less what is not known of the tip."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from hybrid_guidance.geometry.covariance import distance_deviation
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.planning.anatomy_map import Source, build_map
from hybrid_guidance.planning.path import Path
from hybrid_guidance.simulation.shapes import Shape

Distance = Callable[[Points], Array]
"""(..., 3) m to (...,) signed distance in m, negative inside."""

_STEP = 1e-4
# How far round the paths, and how far away, a needle is told the way to a structure, m.
_ROUND, _FAR = 0.020, 0.030
_OFFSETS = _STEP * np.vstack([np.zeros(3), np.eye(3), -np.eye(3)])


@dataclass(frozen=True)
class Nearest:
    """The nearest structure to avoid.

    Attributes:
        name: of the structure.
        point: (3,) m, its nearest point, in ``patient``; None if it is only known to be far.
        distance: m, negative inside; where it is only known to be far, what it is at least.
        clearance: m, the distance less k σ of the tip along the way to it.
    """

    name: str
    point: Points | None
    distance: float
    clearance: float


def true_distances(sources: Mapping[str, Source | Shape], lower: Points,
                   upper: Points) -> dict[str, Distance]:
    """Return the distance to each structure: where a solid's own field is none, from a map.

    Rods have a closed form. The field of parts that melt into each other is right only near the
    surface; further off it is up to 6 mm too small.

    Args:
        sources: name to structure.
        lower: (3,) m, corner of the box of all paths.
        upper: (3,) m, the opposite corner.
    """
    exact: dict[str, Distance] = {
        name: source.at for name, source in sources.items()
        if isinstance(source, Shape) and source.rods is not None}
    others = {name: source for name, source in sources.items() if name not in exact}
    if others:
        anatomy = build_map(others, lower - _ROUND, upper + _ROUND, band=_FAR)
        exact |= {name: partial(anatomy.at, name) for name in others}
    return exact


class Clearance:
    """Distances to structures.

    A signed distance changes no faster than the tip moves, so what was far away a moment ago is
    not measured again until it could be the nearest.

    Args:
        structures: name to signed distance, in ``patient``.
        sigmas: k, how many σ of the tip are taken off.
    """

    def __init__(self, structures: Mapping[str, Distance], sigmas: float) -> None:
        self._structures = dict(structures)
        self._sigmas = sigmas
        self._known: dict[str, tuple[Points, float]] = {}

    def nearest(self, tip: Points, covariance: Array) -> Nearest | None:
        """Return the structure with the least clearance, or None without structures.

        Args:
            tip: (3,) m, in ``patient``.
            covariance: (3, 3) or (6, 6), of the tip.
        """
        slack = self._sigmas * float(np.linalg.eigvalsh(covariance[:3, :3])[-1]) ** 0.5
        best: Nearest | None = None
        for bound, name in sorted((self._bound(name, tip), name) for name in self._structures):
            if best is None or bound - slack < best.clearance:
                found = self._measure(name, tip, covariance)
                best = found if best is None or found.clearance < best.clearance else best
        return best

    def _bound(self, name: str, tip: Points) -> float:
        """Return a distance that the structure is at least away."""
        if name not in self._known:
            return -np.inf
        place, distance = self._known[name]
        return distance - float(np.linalg.norm(tip - place))

    def describe(self, path: Path) -> str:
        """Return in words how long a path is and how clear of what to avoid."""
        least = self.along(path)
        return f'{path.length * 1e3:.1f} mm from entry to target' + (
            f', {least * 1e3:.1f} mm clear of what to avoid' if np.isfinite(least) else
            ', no anatomy to keep clear of')

    def along(self, path: Path, spacing: float = 0.0005) -> float:
        """Return the least distance in m of a whole path; infinite without structures."""
        count = int(np.ceil(path.length / spacing)) + 1
        points = path.entry + np.linspace(0.0, 1.0, count)[:, None] * (path.target - path.entry)
        return min((float(np.min(distance(points))) for distance in self._structures.values()),
                   default=np.inf)

    def _measure(self, name: str, tip: Points, covariance: Array) -> Nearest:
        distance = self._structures[name]
        # One call for the value and its central differences.
        values = np.asarray(distance(tip + _OFFSETS), dtype=float)
        gradient = (values[1:4] - values[4:7]) / (2 * _STEP)
        length = float(np.linalg.norm(gradient))
        far = length < 0.5
        away = np.array([0.0, 0.0, 1.0]) if far else gradient / length
        here = float(values[0])
        self._known[name] = (tip, here)
        sigma = (float(np.linalg.eigvalsh(covariance[:3, :3])[-1]) ** 0.5 if far
                 else distance_deviation(covariance, away))
        return Nearest(name, None if far else tip - here * away, here,
                       here - self._sigmas * sigma)
