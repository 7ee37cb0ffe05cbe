"""The least clearance of every path to one target from every structure, by branch and bound.

All paths meet at the target: where a share of them is left to go, they are as much nearer to one
another than their entries are. So neighbours and a few samples along them make a node: the
distance at its middle, and how far its members are from there, bound the distances of all of them
(a distance changes no faster than the place where it is taken; as in sphere tracing, Hart J. C.,
The Visual Computer 1996;12:527). Nodes that cannot hold the least of any of their paths are left
out, the others split, down to single samples of single paths. What is found is the same as if
every sample of every path were read.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import perpendiculars
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.planning.anatomy_map import AnatomyMap, trilinear
from hybrid_guidance.planning.doubt import Doubt

LEVELS = ((512, 2), (64, 1), (8, 1), (1, 1))
"""Paths and samples of a node, from coarse to fine."""
STEEPEST = 1.6
"""By how many voxels neighbours in a map differ at most: 1, and at edges the map's own errors."""
# A value between voxels is off the distance by no more than a cell's half diagonal and those.
_OFF = 3**0.5 / 2 + 0.3
# Of float32, m.
_ROUNDING = 1e-6
# 8 bits with a zero between any two.
_SPREAD = np.sum([((np.arange(256) >> bit) & 1) << 2 * bit for bit in range(8)],
                 axis=0).astype(np.uint16)

Single = NDArray[np.float32]
Index = NDArray[np.intp]


class LeastClearances:
    """Finds the least clearance of paths to one target.

    Args:
        anatomy: the map; it holds all of the paths.
        target: (3,) m.
        doubt: how much is taken off a distance.
        radius: of the needle, m; taken off, too.
        horizons: name to the clearance that is far enough, m: more is told as this.
        longest: path, m.
        step: between its samples, m.

    Attributes:
        names: of the S structures that any path may be within the horizon of.
    """

    def __init__(self, anatomy: AnatomyMap, target: Points, doubt: Doubt, radius: float,
                 horizons: Mapping[str, float], longest: float, step: float) -> None:
        self._anatomy, self._doubt, self._radius = anatomy, doubt, radius
        self._spacing = anatomy.grid.spacing
        self._start = ((target - anatomy.grid.origin) / self._spacing).astype(np.float32)
        most = radius + float(doubt.slack(np.array(longest)))
        self.names = [name for name, horizon in horizons.items()
                      if anatomy.least[name] - most <= horizon]
        self._fields = (np.array([anatomy.names.index(name) for name in self.names], int)
                        * int(np.prod(anatomy.grid.shape)))
        self._horizons = np.array([horizons[name] for name in self.names])
        samples = LEVELS[0][1] * int(np.ceil((longest / step + 1) / LEVELS[0][1]))
        self._shares = np.linspace(0.0, 1.0, samples, dtype=np.float32)

    def __call__(self, ways: Points) -> Array:
        """Return (S, N) the least clearance along each of (N, 3) ways from the target, all in m."""
        least = np.repeat(self._horizons[:, None], len(ways), axis=1)
        if not least.size:
            return least
        rays = (ways.T / self._spacing).astype(np.float32)
        order = _neighbours(rays)
        order = np.append(order, np.repeat(order[-1:], -len(order) % LEVELS[0][0]))
        rays = rays.take(order, axis=1)
        # Of each node: its structure, its bundle of paths, its block of samples.
        which, bundle, block = np.indices((len(least), rays.shape[1] // LEVELS[0][0],
                                           len(self._shares) // LEVELS[0][1])).reshape(3, -1)
        bundles = bundle[None]
        for (size, length), (finer, shorter) in pairwise([*LEVELS, (1, 1)]):
            values, spread = self._read(_bundled(rays, size), length, which, bundles, block)
            first = np.flatnonzero(np.append(True, (which[1:] != which[:-1])
                                             | (bundle[1:] != bundle[:-1])))
            best = np.minimum(np.minimum.reduceat(values + spread, first, axis=1),
                              self._horizons[which[first]])
            if size == 1:
                least[which[first], order[bundles[:, first]]] = best
                break
            kept = values - spread <= np.float32(best + _ROUNDING).repeat(
                np.diff(first, append=len(which)), axis=1)
            child, node = np.nonzero(kept)
            parts, times = size // finer, length // shorter
            which, bundle = (index.repeat(times) for index in (which[node], bundles[child, node]))
            block = (block[node][:, None] * times + np.arange(times)).ravel()
            bundles = bundle * parts + np.arange(parts)[:, None]
        return least

    def _read(self, bundled: Single, length: int, which: Index, bundles: Index,
              block: Index) -> tuple[Single, Single | float]:
        """Return (C, K) clearances in the middle of nodes, and how far off their members may be.

        Args:
            bundled: (5, B) middle x, y, z of each bundle, length, and how far entries are off it,
                in voxels.
            length: samples of a block.
            which: (K,) structure of each node.
            bundles: (C, K) of each node.
            block: (K,) of each node.
        """
        shares = self._shares.reshape(-1, length)
        middle = shares.mean(axis=1)[block]
        x, y, z = (start + middle * line.take(bundles)
                   for start, line in zip(self._start, bundled, strict=False))
        values: Single = trilinear(self._anatomy.fields, x, y, z, self._fields[which])
        values -= self._doubt.slack(
            (np.float32(self._spacing) * bundled[3]).take(bundles) * middle)
        values -= np.float32(self._radius)
        if length == 1 and not bundled[4].any():
            return values, 0.0
        away = (shares[:, -1][block] * bundled[4].take(bundles)
                + np.float32(np.ptp(shares[0]) / 2) * bundled[3].take(bundles))
        changes = np.minimum(np.float32(3**0.5 * STEEPEST) * away, away + np.float32(2 * _OFF))
        changes += np.float32(self._doubt.sigmas * self._doubt.turn) * away
        return values, np.float32(self._spacing) * changes


def _bundled(rays: Single, size: int) -> Single:
    """Return (5, B): x, y, z and length of the middle of each ``size`` rays, the rest's distance.

    Args:
        rays: (3, N).
        size: it divides N.
    """
    members = rays.reshape(3, -1, size)
    middle = members.mean(axis=2) if size > 1 else rays
    away = (np.sqrt(((members - middle[:, :, None]) ** 2).sum(axis=0).max(axis=1)) if size > 1
            else np.zeros(rays.shape[1], np.float32))
    return np.stack([*middle, np.sqrt((middle**2).sum(axis=0)), away])


def _neighbours(rays: Single) -> Index:
    """Return an order of (3, N) rays in which neighbours follow one another (Morton's)."""
    middle = rays.mean(axis=1)
    across = perpendiculars(middle / np.linalg.norm(middle)).astype(np.float32) @ rays
    across -= across.min(axis=1, keepdims=True)
    u, v = _SPREAD.take((across * (255.9 / max(float(across.max()), 1e-6))).astype(np.uint8))
    return np.argsort(u | v << np.uint16(1), kind='stable')
