"""Solid shapes as signed distances in metres: negative inside, first order near the surface.

Coordinates come as three arrays that broadcast, so that a grid costs no (N, 3) array.
Formulas: I. Quilez, "Distance functions", https://iquilezles.org/articles/distfunctions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import inverse, transform_points
from hybrid_guidance.geometry.types import Array, Transform

Field = NDArray[Any]
"""Broadcastable coordinates or distances, float32 or float64, metres."""

Distance = Callable[[Field, Field, Field], Field]


_FEW = 1000
"""Points, up to which all rods of a solid are worth measuring at once."""


@dataclass(frozen=True)
class Rods:
    """Rods with round ends, measured all at once.

    Attributes:
        start: (P, 3) metres.
        axis: (P, 3) metres, from start to end.
        radius: (P,) metres, at the start.
        growth: (P,) metres, of the radius from start to end.
    """

    start: Array
    axis: Array
    radius: Array
    growth: Array

    def at(self, points: Array) -> Array:
        """Return the (...,) signed distances of (..., 3) points from the nearest rod."""
        offset = points[..., None, :] - self.start
        along = (offset * self.axis).sum(axis=-1) / (self.axis * self.axis).sum(axis=-1)
        along = np.minimum(np.maximum(along, 0.0), 1.0)
        offset -= along[..., None] * self.axis
        across = np.sqrt((offset * offset).sum(axis=-1))
        return np.asarray((across - self.radius - self.growth * along).min(axis=-1))

    def placed(self, a_T_b: Transform, scale: float) -> 'Rods':
        """Take the rods from frame b to frame a, after scaling them about b's origin."""
        return Rods(transform_points(a_T_b, scale * self.start),
                    scale * self.axis @ a_T_b[:3, :3].T, scale * self.radius, scale * self.growth)

    @classmethod
    def joined(cls, parts: Sequence['Rods']) -> 'Rods':
        """Return the rods of all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts])
                     for name in ('start', 'axis', 'radius', 'growth')))


@dataclass(frozen=True)
class Shape:
    """A solid.

    Attributes:
        distance: x, y, z to signed distance, metres.
        lower: (3,) corner of a box that holds the solid.
        upper: (3,) opposite corner.
        parts: what the solid is a smooth union of; empty if it is no union.
        blend: metres over which the parts melt into each other.
        rods: the solid once more, where it is made of rods alone.
    """

    distance: Distance
    lower: Array
    upper: Array
    parts: tuple['Shape', ...] = ()
    blend: float = 0.0
    rods: Rods | None = None

    def at(self, points: Array) -> Array:
        """Return the (...,) signed distances of (..., 3) points."""
        points = np.asarray(points, dtype=float)
        if self.rods is not None and points.size < 3 * _FEW:
            return self.rods.at(points)
        return np.asarray(self.distance(points[..., 0], points[..., 1], points[..., 2]))


def smooth_minimum(first: Field, second: Field, blend: float) -> Field:
    """Polynomial smooth minimum; with ``blend`` zero the plain minimum."""
    lower = np.minimum(first, second)
    if blend <= 0.0:
        return np.asarray(lower)
    overlap = np.maximum(blend - np.abs(first - second), 0.0)
    return np.asarray(lower - overlap * overlap * np.float32(0.25 / blend))


def capsule(start: Array, end: Array, radius: float, end_radius: float | None = None) -> Shape:
    """Return a rod with round ends whose radius changes linearly from start to end."""
    start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
    axis = end - start
    scaled = axis / float(axis @ axis)
    growth = (radius if end_radius is None else end_radius) - radius

    def distance(x: Field, y: Field, z: Field) -> Field:
        px, py, pz = x - start[0].item(), y - start[1].item(), z - start[2].item()
        along = px * scaled[0].item() + py * scaled[1].item() + pz * scaled[2].item()
        along = np.clip(along, 0.0, 1.0)
        across = ((px - along * axis[0].item()) ** 2 + (py - along * axis[1].item()) ** 2
                  + (pz - along * axis[2].item()) ** 2)
        return np.asarray(np.sqrt(across) - (radius + growth * along))

    thickest = max(radius, radius + growth)
    rods = Rods(start[None], axis[None], np.array([radius]), np.array([growth]))
    return Shape(distance, np.minimum(start, end) - thickest, np.maximum(start, end) + thickest,
                 rods=rods)


def ellipsoid(centre: Array, radii: Array) -> Shape:
    """Return an ellipsoid with its axes along x, y, z."""
    centre, radii = np.asarray(centre, dtype=float), np.asarray(radii, dtype=float)

    def distance(x: Field, y: Field, z: Field) -> Field:
        squares = [((value - middle.item()) / radius.item()) ** 2
                   for value, middle, radius in zip((x, y, z), centre, radii, strict=True)]
        level = np.sqrt(squares[0] + squares[1] + squares[2])
        slope = np.sqrt(sum(square / radius.item() ** 2
                            for square, radius in zip(squares, radii, strict=True)))
        inside = -radii.min().item() * (1.0 - level)
        return np.asarray(np.where(level > 0.2, level * (level - 1.0) / (slope + 1e-9), inside))

    return Shape(distance, centre - radii, centre + radii)


def box(centre: Array, half: Array, rounding: float) -> Shape:
    """Return a box of half sizes ``half``, its edges rounded by ``rounding``."""
    centre, half = np.asarray(centre, dtype=float), np.asarray(half, dtype=float)
    core = half - rounding

    def distance(x: Field, y: Field, z: Field) -> Field:
        excess = [np.abs(value - middle.item()) - size.item()
                  for value, middle, size in zip((x, y, z), centre, core, strict=True)]
        outside = np.sqrt(sum(np.maximum(value, 0.0) ** 2 for value in excess))
        inside = np.minimum(np.maximum(np.maximum(excess[0], excess[1]), excess[2]), 0.0)
        return np.asarray(outside + inside - rounding)

    return Shape(distance, centre - half, centre + half)


def superquadric(centre: Array, radii: Array, power: float) -> Shape:
    """Return a superellipsoid: an ellipsoid for ``power`` 2, nearer a box the higher it is.

    First-order distance: level over its gradient (Taubin, IEEE PAMI 1991;13:1115).
    """
    centre, radii = np.asarray(centre, dtype=float), np.asarray(radii, dtype=float)

    def distance(x: Field, y: Field, z: Field) -> Field:
        ratios = [np.abs(value - middle.item()) / radius.item()
                  for value, middle, radius in zip((x, y, z), centre, radii, strict=True)]
        level = sum(ratio**power for ratio in ratios) ** (1.0 / power) + 1e-6
        slope = np.sqrt(sum(((ratio / level) ** (power - 1.0) / radius.item()) ** 2
                            for ratio, radius in zip(ratios, radii, strict=True)))
        # Near the middle the gradient vanishes, where only "deep inside" matters.
        return np.asarray((level - 1.0) / np.maximum(slope, 0.5 / radii.max().item()))

    return Shape(distance, centre - radii, centre + radii)


def drum(centre: Array, half: Array, rounding: float, waist: float = 0.0,
         notch: float = 0.0, dome: float = 0.0) -> Shape:
    """Return an elliptic cylinder about z with rounded rims: a vertebral body or a disc.

    Args:
        centre: (3,) metres.
        half: (3,) half width (x), half depth (y), half height (z).
        rounding: radius of the rims.
        waist: how much narrower it is half way up.
        notch: depth of the hollow of its posterior (+y) face.
        dome: how much lower (a vertebra's hollow end plate) the middle of each end is;
            negative where it bulges (a disc).
    """
    centre, half = np.asarray(centre, dtype=float), np.asarray(half, dtype=float)
    a, b, c = (float(value) for value in half)

    def distance(x: Field, y: Field, z: Field) -> Field:
        px, py, pz = x - centre[0].item(), y - centre[1].item(), z - centre[2].item()
        across = np.sqrt((px / a) ** 2 + (py / b) ** 2)
        side = (across - 1.0) * min(a, b)
        side = side + waist * np.maximum(1.0 - (pz / c) ** 2, 0.0)
        if notch:
            side = side + notch * np.exp(-(px / (0.4 * a)) ** 2) * (py > 0)
        end = np.abs(pz) - c + dome * np.maximum(1.0 - across * across, 0.0)
        side, end = side + rounding, end + rounding
        outside = np.sqrt(np.maximum(side, 0.0) ** 2 + np.maximum(end, 0.0) ** 2)
        return np.asarray(outside + np.minimum(np.maximum(side, end), 0.0) - rounding)

    reach = half + np.array([0.0, 0.0, max(-dome, 0.0)])
    return Shape(distance, centre - reach, centre + reach)


def union(parts: Sequence[Shape], blend: float = 0.0) -> Shape:
    """Melt solids into one, over ``blend`` metres."""
    def distance(x: Field, y: Field, z: Field) -> Field:
        result = parts[0].distance(x, y, z)
        for part in parts[1:]:
            result = smooth_minimum(result, part.distance(x, y, z), blend)
        return result

    rods = [part.rods for part in parts if part.rods is not None]
    return Shape(distance, np.min([part.lower for part in parts], axis=0) - blend / 4,
                 np.max([part.upper for part in parts], axis=0) + blend / 4,
                 tuple(parts), blend,
                 Rods.joined(rods) if len(rods) == len(parts) and not blend else None)


def offset(shape: Shape, amount: float) -> Shape:
    """Grow a solid by ``amount`` metres (shrink it if negative)."""
    def distance(x: Field, y: Field, z: Field) -> Field:
        return np.asarray(shape.distance(x, y, z) - amount)

    return Shape(distance, shape.lower - amount, shape.upper + amount)


def cut(shape: Shape, point: Array, normal: Array) -> Shape:
    """Take away what lies on the side of a plane that its normal points to."""
    unit = np.asarray(normal, dtype=float) / float(np.linalg.norm(normal))
    level = float(unit @ point)

    def distance(x: Field, y: Field, z: Field) -> Field:
        plane = x * unit[0].item() + y * unit[1].item() + z * unit[2].item() - level
        return np.asarray(np.maximum(shape.distance(x, y, z), plane))

    return Shape(distance, shape.lower, shape.upper)


def carved(shape: Shape, centre: Array, radius: float) -> Shape:
    """Take a ball out of a solid: the socket of a joint."""
    if shape.parts:
        return union([carved(part, centre, radius) for part in shape.parts], shape.blend)
    middle = np.asarray(centre, dtype=float)

    def distance(x: Field, y: Field, z: Field) -> Field:
        squares = [(value - place.item()) ** 2
                   for value, place in zip((x, y, z), middle, strict=True)]
        ball = np.sqrt(squares[0] + squares[1] + squares[2]) - radius
        return np.asarray(np.maximum(shape.distance(x, y, z), -ball))

    return Shape(distance, shape.lower, shape.upper)


def tube(points: Array, radius: float, samples: int = 4) -> Shape:
    """Return a tube of one radius along a Catmull-Rom spline through (N, 3) points."""
    line = spline(np.asarray(points, dtype=float), samples)
    return union([capsule(start, end, radius) for start, end in pairwise(line)])


def band(points: Array, radius: float, wide: Array, strands: int = 5) -> Shape:
    """Return a flat muscle or tendon: tubes side by side, melted together.

    Args:
        points: (N, 3) its middle line.
        radius: half its thickness, metres.
        wide: (3,) from the middle to the last strand on either side.
        strands: how many.
    """
    lines = [tube(points + share * wide, radius, 2) for share in np.linspace(-1.0, 1.0, strands)]
    # Flat, so that each piece is sampled only near itself.
    return union([piece for line in lines for piece in line.parts], 0.25 * radius)


def spline(points: Array, samples: int) -> Array:
    """Return the (M, 3) points of a Catmull-Rom spline, ``samples`` to each interval."""
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = np.arange(samples)[:, None] / samples
    pieces = [0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
                     + (3 * b - a - 3 * c + d) * t**3)
              for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)]
    return np.vstack([*pieces, points[-1:]])


def mirrored(shape: Shape) -> Shape:
    """Add the mirror image at x = 0 of a solid that lies on the left (x > 0)."""
    def distance(x: Field, y: Field, z: Field) -> Field:
        return shape.distance(np.abs(x), y, z)

    lower, upper = shape.lower.copy(), shape.upper.copy()
    lower[0], upper[0] = -shape.upper[0], shape.upper[0]
    return Shape(distance, lower, upper)


def placed(shape: Shape, a_T_b: Transform, scale: float = 1.0) -> Shape:
    """Take a solid from frame b to frame a, after scaling it about b's origin."""
    if scale == 1.0 and np.array_equal(a_T_b, np.eye(4)):
        return shape
    if shape.parts:
        return union([placed(part, a_T_b, scale) for part in shape.parts], shape.blend * scale)
    b_T_a = inverse(a_T_b)
    b_T_a[:3] /= scale
    rows = [[value.item() for value in row] for row in b_T_a[:3]]

    def distance(x: Field, y: Field, z: Field) -> Field:
        local = [row[0] * x + row[1] * y + (row[2] * z + row[3]) for row in rows]
        return np.asarray(shape.distance(local[0], local[1], local[2]) * scale)

    choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
    corners = transform_points(a_T_b, scale * np.where(choice, shape.upper, shape.lower))
    return Shape(distance, corners.min(axis=0), corners.max(axis=0),
                 rods=None if shape.rods is None else shape.rods.placed(a_T_b, scale))
