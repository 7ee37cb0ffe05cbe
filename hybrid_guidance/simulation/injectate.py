"""Fluid that leaves the needle: overlapping ellipsoids that grow with the volume injected."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Points, Transform


@dataclass(frozen=True)
class Injectate:
    """A depot of fluid in tissue, growing without changing its form.

    The lobes together hold the volume; where they overlap, more of it is in one place.

    Attributes:
        pose: (4, 4) patient_T_injectate; origin where the fluid leaves the needle.
        volume: m³ so far.
        iodine: kg/m³ of iodine (300 is undiluted contrast medium); 0 is no contrast.
        stretch: how far it spreads along x, y, z of its frame, against each other.
        seed: of the lobes.
        lobes: how many.
    """

    pose: Transform
    volume: float
    iodine: float = 0.0
    stretch: tuple[float, float, float] = (1.0, 0.55, 1.3)
    seed: int = 0
    lobes: int = 6

    @cached_property
    def ellipsoids(self) -> tuple[Points, Array]:
        """The (N, 3) centres in its frame and (N, 3) semi-axes of the lobes, metres."""
        shares, ways = _lobes(self.seed, self.lobes)
        stretch = np.array(self.stretch)
        unit = stretch / np.cbrt(stretch.prod())
        size = (3.0 * self.volume / (4.0 * np.pi)) ** (1.0 / 3.0)
        return 0.7 * size * ways * unit, size * np.cbrt(shares)[:, None] * unit

    @property
    def reach(self) -> float:
        """Metres from the origin to the farthest point, at most."""
        centres, radii = self.ellipsoids
        return float((np.sqrt((centres**2).sum(axis=1)) + radii.max(axis=1)).max())

    def chords(self, source: Points, rotation: Array, u: Array, v: Array) -> NDArray[np.float32]:
        """Return the metres of fluid along rays from a source, (H, W).

        A ray is ``rotation @ (u, v, 1)`` in its frame: what it has in common with an ellipsoid
        are quadratic forms of u and v.

        Args:
            source: (3,) metres, in its frame.
            rotation: (3, 3) from the rays' frame to its own.
            u: (W,) tangents.
            v: (H,) tangents.
        """
        u, v = _float32(u)[None, :], _float32(v)[:, None]
        total = np.zeros((v.shape[0], u.shape[1]), np.float32)
        for centre, radii in zip(*self.ellipsoids, strict=True):
            way = rotation / radii[:, None]
            start = (source - centre) / radii
            form, line = _float32(way.T @ way), _float32(start @ way)
            a = ((form[0][0] * u + 2 * form[0][2]) * u + form[2][2]
                 + (form[1][1] * v + 2 * form[1][2]) * v + 2 * form[0][1] * (u * v))
            b = line[0] * u + line[2] + line[1] * v
            root = b * b - a * np.float32(start @ start - 1.0)
            total += 2.0 * np.sqrt(np.maximum(root, 0.0)) / a
        return np.asarray(total * np.sqrt(1.0 + u * u + v * v), np.float32)

    def level(self, fluid_T_image: Transform, x: NDArray[np.float32],
              y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return of places (H, W) x, y of a slice how far out they are: below 1 in some lobe."""
        terms = np.empty((6, *x.shape), np.float32)
        np.multiply(x, x, out=terms[0])
        np.multiply(x, y, out=terms[1])
        np.multiply(y, y, out=terms[2])
        terms[3], terms[4], terms[5] = x, y, 1.0
        centres, radii = self.ellipsoids
        # Of every lobe: ways (N, 3) along x and y of the slice, and where its origin lies.
        along, across = (fluid_T_image[:3, axis] / radii for axis in (0, 1))
        start = (fluid_T_image[:3, 3] - centres) / radii
        lobes = np.stack([(first * second).sum(axis=1) * share for first, second, share in (
            (along, along, 1.0), (along, across, 2.0), (across, across, 1.0),
            (start, along, 2.0), (start, across, 2.0), (start, start, 1.0))], axis=-1)
        squares = _float32(lobes) @ terms.reshape(6, -1)
        result = np.maximum(squares.min(axis=0), 0.0).reshape(x.shape)
        return np.asarray(np.sqrt(result), np.float32)


@cache
def _lobes(seed: int, count: int) -> tuple[Array, Points]:
    """Return the (N,) shares of the volume, and the (N, 3) directions, of lobes."""
    rng = np.random.default_rng((seed, 7))
    shares = rng.uniform(0.5, 1.5, count)
    shares[0] = 0.6 * shares.sum()
    ways = rng.normal(size=(count, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    ways[0] = 0.0
    return shares / shares.sum(), ways


def _float32(values: Array) -> Any:
    return np.asarray(values, np.float32)
