"""Signed distance to every structure, once, on one grid round where a needle may go.

Whatever a structure is (solid, label map, mesh), it is reduced to foot points: for each voxel at
its surface, the nearest point of the surface to sub-voxel precision. An exact feature transform
(Maurer C. R. et al., IEEE PAMI 2003;25:265, in SciPy) then gives each voxel the foot point of its
nearest surface voxel, and the distance to it. A plain distance transform of a mask would be off by
half a voxel.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.anatomy import Grid
from hybrid_guidance.simulation.shapes import Field, Shape

BAND = 0.025
SPACING = 0.0007
# Beyond what parts melt over: else many absent parts would melt into one that is there.
_NEWTON = 2
_EPSILON = 2e-5
_STRIDES = (3, 1)
_NOWHERE = np.float32(1.0)


class MapError(ValueError):
    """Structures that no map can be made of; the message says what and what to do."""


@dataclass(frozen=True)
class Feet:
    """A structure's surface on a grid.

    Attributes:
        inside: (Z, Y, X) whether a voxel's centre is inside.
        seeds: (Z, Y, X) which voxels are at the surface.
        points: (N, 3) m, for each seed in the order of the array the nearest surface point.
    """

    inside: NDArray[np.bool_]
    seeds: NDArray[np.bool_]
    points: Points


class Source(Protocol):
    """A structure, from whatever it comes."""

    @property
    def lower(self) -> Array:
        """(3,) m, corner of a box that holds it."""
        ...

    @property
    def upper(self) -> Array:
        """(3,) m, the opposite corner."""
        ...

    def feet(self, grid: Grid) -> Feet:
        """Return the surface on a grid."""
        ...


@dataclass(frozen=True)
class SolidSource:
    """A solid of the digital patient, or anything with a signed distance.

    Its field need be right only near its surface, as that of a blended solid is.

    Attributes:
        shape: the solid.
    """

    shape: Shape

    @property
    def lower(self) -> Array:
        """(3,) m."""
        return self.shape.lower

    @property
    def upper(self) -> Array:
        """(3,) m."""
        return self.shape.upper

    def feet(self, grid: Grid) -> Feet:
        """Return the surface on a grid, each foot by Newton steps along the gradient."""
        inside = _sample(grid, self.shape, 4.0 * grid.spacing) < 0.0
        seeds = _parted(inside)
        points = grid.origin + grid.spacing * np.argwhere(seeds)[:, ::-1]
        for _ in range(_NEWTON):
            values, slopes = _slopes(self.shape, points, 4.0 * grid.spacing)
            steep = np.maximum(np.sum(slopes**2, axis=1, keepdims=True), 0.25)
            points = points - values[:, None] * slopes / steep
        return Feet(inside, seeds, points)


@dataclass(frozen=True)
class LabelSource:
    """One structure of a label map: its surface runs half way between voxels in and out.

    Attributes:
        mask: (Z, Y, X) bool or uint8.
        patient_T_voxel: (4, 4) affine, takes (x, y, z) indices to metres in ``patient``.
    """

    mask: NDArray[Any]
    patient_T_voxel: Transform

    @cached_property
    def _held(self) -> Array:
        """(2, 3) first and last (x, y, z) index of the structure."""
        reach = [np.flatnonzero(self.mask.any(axis=axes)) for axes in ((0, 1), (0, 2), (1, 2))]
        if not reach[0].size:
            raise MapError('a structure of the label map has no voxel; name a label that is there')
        return np.array([[line[end] for line in reach] for end in (0, -1)], dtype=float)

    @cached_property
    def _box(self) -> Array:
        """(2, 3) corners in ``patient``, a voxel beyond the outermost centres."""
        low, high = self._held + [[-1.0], [1.0]]
        choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
        places = transform_points(self.patient_T_voxel, np.where(choice, high, low))
        return np.stack([places.min(axis=0), places.max(axis=0)])

    @property
    def lower(self) -> Array:
        """(3,) m."""
        return np.asarray(self._box[0])

    @property
    def upper(self) -> Array:
        """(3,) m."""
        return np.asarray(self._box[1])

    def feet(self, grid: Grid) -> Feet:
        """Return the surface on a grid."""
        full = np.zeros(grid.shape, np.float32)
        window = grid.window(self.lower, self.upper)
        inner = _window(grid, window)
        if min(inner.shape) > 0:
            low, high = (self._held + [[-1.0], [1.0]]).astype(int)
            first = np.maximum(low, 0)
            crop = self.mask[tuple(slice(int(a), int(b) + 1) for a, b in
                                   zip(first[::-1], high[::-1], strict=True))]
            voxel_T_patient: Transform = np.asarray(np.linalg.inv(self.patient_T_voxel), float)
            start = transform_points(voxel_T_patient, inner.origin) - first
            # Index order of the arrays is z, y, x.
            matrix = voxel_T_patient[:3, :3][::-1, ::-1] * grid.spacing
            if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
                matrix = np.diag(matrix).copy()  # along the axes SciPy is quicker
            full[window] = ndimage.affine_transform(
                crop.astype(np.float32), matrix, start[::-1], output_shape=inner.shape, order=1,
                mode='constant')
        return feet_of_field(grid, np.float32(0.5) - full)


@dataclass(frozen=True)
class MeshSource:
    """A closed triangle mesh.

    Attributes:
        vertices: (V, 3) m, in ``patient``.
        triangles: (T, 3) indices.
    """

    vertices: Points
    triangles: NDArray[np.int64]

    @property
    def lower(self) -> Array:
        """(3,) m."""
        return np.asarray(self.vertices.min(axis=0))

    @property
    def upper(self) -> Array:
        """(3,) m."""
        return np.asarray(self.vertices.max(axis=0))

    def feet(self, grid: Grid) -> Feet:
        """Return the surface on a grid."""
        import open3d

        scene = open3d.t.geometry.RaycastingScene()
        # Metres are small for float32's rays: in units of a voxel nothing is.
        local = np.asarray((self.vertices - grid.origin) / grid.spacing, np.float32)
        tensor = open3d.core.Tensor.from_numpy
        scene.add_triangles(tensor(local), tensor(self.triangles.astype(np.uint32)))
        seeds = _rasterised(grid.shape, local, self.triangles)
        # What no surface parts is all inside or all outside: one voxel tells of its region.
        regions, _ = ndimage.label(~seeds)
        first = np.unique(regions, return_index=True)[1][int(seeds.any()):]
        asked = np.concatenate([np.argwhere(seeds), np.stack(
            np.unravel_index(first, grid.shape), axis=-1)])[:, ::-1].astype(np.float32)
        known = scene.compute_occupancy(tensor(np.ascontiguousarray(asked))).numpy() > 0.5
        number = int(seeds.sum())
        inside = np.concatenate([[False], known[number:]])[regions]
        inside[seeds] = known[:number]
        places = tensor(np.ascontiguousarray(asked[:number]))
        points = scene.compute_closest_points(places)['points'].numpy()
        return Feet(inside, seeds, grid.origin + grid.spacing * points.astype(float))


@dataclass(frozen=True)
class AnatomyMap:
    """Signed distances on one grid.

    Attributes:
        grid: where the voxels are, in ``patient``.
        band: m; a distance beyond ±band is stored as ±band.
        distances: name to (Z, Y, X) float32, m, negative inside.
        least: name to the least of its distances, m.
    """

    grid: Grid
    band: float
    distances: Mapping[str, NDArray[np.float32]]
    least: Mapping[str, float]

    def at(self, name: str, points: Points) -> Array:
        """Return the (...,) signed distances of (..., 3) points, at most the band.

        Beside the grid it is a distance that the structure is at least away.

        Raises:
            MapError: no such structure.
        """
        if name not in self.distances:
            raise MapError(f'no structure "{name}" in the map; there are '
                           f'{", ".join(sorted(self.distances))}')
        points = np.asarray(points, dtype=float)
        index = (points - self.grid.origin) / self.grid.spacing
        held = np.clip(index, 0.0, np.array(self.grid.shape[::-1]) - 1.0)
        values = ndimage.map_coordinates(
            self.distances[name], np.moveaxis(held[..., ::-1], -1, 0).reshape(3, -1),
            order=1, mode='nearest', output=np.float64).reshape(points.shape[:-1])
        beside = np.linalg.norm(index - held, axis=-1) * self.grid.spacing
        return np.asarray(values - beside)

    def holds(self, points: Points) -> NDArray[np.bool_]:
        """Tell which (..., 3) points lie between the grid's voxels."""
        index = (points - self.grid.origin) / self.grid.spacing
        return np.asarray(np.all((index >= 0.0) & (index <= np.array(self.grid.shape[::-1]) - 1.0),
                                 axis=-1))


def build_map(sources: Mapping[str, Source | Shape], lower: Points, upper: Points,
              spacing: float = SPACING, band: float = BAND, workers: int = 2) -> AnatomyMap:
    """Return the signed distances in a box of ``patient``.

    Args:
        sources: name to structure.
        lower: (3,) m, corner of the region of interest.
        upper: (3,) m, the opposite corner.
        spacing: of the grid, m.
        band: how far away distances are of interest, m.
        workers: threads.

    Raises:
        MapError: the box is empty.
    """
    if not np.all(np.asarray(upper) - lower > spacing):
        raise MapError(f'the region of interest from {lower} to {upper} is empty; enlarge it')
    grid = Grid.covering(np.asarray(lower), np.asarray(upper), spacing)
    with ThreadPoolExecutor(workers) as pool:
        fields = list(pool.map(lambda source: _distances(grid, source, band), [
            SolidSource(source) if isinstance(source, Shape) else source
            for source in sources.values()]))
    distances = dict(zip(sources, fields, strict=True))
    return AnatomyMap(grid, band, distances,
                      {name: float(field.min()) for name, field in distances.items()})


def _distances(grid: Grid, source: Source, band: float) -> NDArray[np.float32]:
    """Return (Z, Y, X) distances, each structure only where it is nearer than the band."""
    result = np.full(grid.shape, band, np.float32)
    # Surface outside the grid counts, up to the band.
    first = np.floor((np.maximum(source.lower, grid.origin) - grid.origin - band)
                     / grid.spacing).astype(int) - 1
    end = grid.origin + (np.array(grid.shape[::-1]) - 1) * grid.spacing
    last = np.ceil((np.minimum(source.upper, end) - grid.origin + band)
                   / grid.spacing).astype(int) + 1
    if np.any(last - first < 2):
        return result
    domain = Grid(grid.origin + first * grid.spacing, grid.spacing,
                  tuple(int(n) for n in (last - first + 1)[::-1]))  # type: ignore[arg-type]
    offset = first[::-1]
    low = np.maximum(offset, 0)
    high = np.minimum(offset + domain.shape, grid.shape)
    if np.any(high <= low):
        return result
    to = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    within = tuple(slice(int(a), int(b)) for a, b in
                   zip(low - offset, high - offset, strict=True))
    result[to] = _signed(domain, source.feet(domain), within, band)
    return result


def _signed(domain: Grid, feet: Feet, window: tuple[slice, ...],
            band: float) -> NDArray[np.float32]:
    """Return the signed distances, within ±band, in a window of the domain of the feet."""
    inside = feet.inside[window]
    if not feet.seeds.any():
        return np.where(inside, np.float32(-band), np.float32(band))
    nearest = ndimage.distance_transform_edt(~feet.seeds, return_distances=False,
                                             return_indices=True)
    # Some more all round, whose feet may be nearer to a voxel of the window than its own.
    wide = tuple(slice(max(piece.start - _STRIDES[0], 0), piece.stop + _STRIDES[0])
                 for piece in window)
    number = np.zeros(domain.shape, np.int32)
    number[feet.seeds] = np.arange(len(feet.points), dtype=np.int32)
    _, height, width = domain.shape
    flat = (nearest[0][wide] * height + nearest[1][wide]) * width + nearest[2][wide]
    owner = number.ravel().take(flat)
    grid = _window(domain, tuple(slice(piece.start, piece.start + size)
                                 for piece, size in zip(wide, owner.shape, strict=True)))
    local = np.ascontiguousarray((feet.points - grid.origin).T, np.float32)
    squares = _squares(grid, local, owner)
    _exchange(grid, local, owner, squares)
    inner = tuple(slice(piece.start - outer.start, piece.stop - outer.start)
                  for piece, outer in zip(window, wide, strict=True))
    distance = np.minimum(np.sqrt(squares[inner]), np.float32(band))
    return np.where(inside, -distance, distance)


def _squares(grid: Grid, feet: NDArray[np.float32], owner: NDArray[np.int32]) -> Field:
    """Return the squared distance of each voxel to the foot that it owns (its numbers)."""
    squares = np.zeros(owner.shape, np.float32)
    for axis, coordinate in enumerate(grid.axes()):
        offset = feet[axis].take(owner)
        offset -= coordinate - np.float32(grid.origin[axis])
        offset *= offset
        squares += offset
    return squares


def _exchange(grid: Grid, feet: NDArray[np.float32], owner: NDArray[np.int32],
              squares: Field) -> None:
    """Let voxels take the foot of another voxel that is nearer than their own, in place.

    The nearest surface voxel is up to one voxel off the nearest foot along the normal, and so,
    far away, many voxels beside it.
    """
    for stride in _STRIDES:
        for axis in range(3):
            for there, here in ((slice(None, -stride), slice(stride, None)),
                                (slice(stride, None), slice(None, -stride))):
                to, source = [slice(None)] * 3, [slice(None)] * 3
                to[axis], source[axis] = here, there
                window = tuple(slice(*piece.indices(size))
                               for piece, size in zip(to, grid.shape, strict=True))
                candidate = owner[tuple(source)]
                found = _squares(_window(grid, window), feet - np.float32(grid.spacing) * np.array(
                    [[piece.start] for piece in window][::-1], np.float32), candidate)
                nearer = found < squares[window]
                np.copyto(owner[window], candidate, where=nearer)
                np.minimum(squares[window], found, out=squares[window])


def feet_of_field(grid: Grid, field: Field) -> Feet:
    """Return the surface where a (Z, Y, X) field, negative inside, passes through zero.

    Where it does so between a voxel and its neighbours, three such places span a plane; the
    voxel's foot is the nearest point of that plane. Signs must be right everywhere; values count
    only at the surface.
    """
    inside = field < 0.0
    inverse = np.zeros((*grid.shape, 3), np.float32)
    for axis in range(3):
        low, high = ([slice(None)] * 3, [slice(None)] * 3)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        crossed = np.nonzero(inside[tuple(low)] != inside[tuple(high)])
        first, second = field[tuple(low)][crossed], field[tuple(high)][crossed]
        share = np.clip(first / (first - second), 1e-3, 1.0 - 1e-3)
        beyond = tuple(index + (which == axis) for which, index in enumerate(crossed))
        component = inverse[..., 2 - axis]
        # A voxel crossed on both sides keeps the nearer one.
        component[crossed] = _stronger(component[crossed], 1.0 / share)
        component[beyond] = _stronger(component[beyond], -1.0 / (1.0 - share))
    seeds = np.any(inverse != 0.0, axis=-1)
    slopes = inverse[seeds].astype(float)
    steps = slopes / np.sum(slopes**2, axis=1, keepdims=True)
    places = np.argwhere(seeds)[:, ::-1] + steps
    return Feet(inside, seeds, grid.origin + grid.spacing * places)


def _stronger(first: Field, second: Field) -> Field:
    return np.asarray(np.where(np.abs(first) > np.abs(second), first, second))


def _sample(grid: Grid, shape: Shape, margin: float) -> Field:
    """Return a solid's field on a grid, each part only near itself; far outside it is large."""
    field = np.full(grid.shape, _NOWHERE, np.float32)
    window = grid.window(shape.lower - margin, shape.upper + margin)
    if any(piece.stop <= piece.start for piece in window):
        return field
    inner = _window(grid, window)
    if not shape.parts:
        field[window] = shape.distance(*inner.axes())
        return field
    # Parts melt into each other as far as the blend.
    for part in shape.parts:
        values = _sample(inner, part, margin + shape.blend)
        field[window] = shapes.smooth_minimum(field[window], values, shape.blend)
    return field


def _window(grid: Grid, window: tuple[slice, ...]) -> Grid:
    start = np.array([piece.start for piece in window][::-1])
    shape = tuple(piece.stop - piece.start for piece in window)
    return Grid(grid.origin + start * grid.spacing, grid.spacing, shape)


def _parted(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which voxels have a neighbour on the other side."""
    seeds = np.zeros(inside.shape, bool)
    for axis in range(3):
        low, high = ([slice(None)] * 3, [slice(None)] * 3)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        crossed = inside[tuple(low)] != inside[tuple(high)]
        seeds[tuple(low)] |= crossed
        seeds[tuple(high)] |= crossed
    return seeds


def _slopes(shape: Shape, points: Points, reach: float) -> tuple[Array, Array]:
    """Return (N,) values and (N, 3) gradients of a solid's field at (N, 3) points."""
    steps = np.vstack([np.zeros(3), _EPSILON * np.eye(3)])
    values = _near(shape, (points + steps[:, None]).reshape(-1, 3), reach).reshape(4, -1)
    return values[0], (values[1:] - values[0]).T / _EPSILON


def _near(shape: Shape, points: Points, reach: float) -> Array:
    """Return a solid's field at (N, 3) points, each part only within reach of itself."""
    if not shape.parts:
        return shape.at(points)
    field = np.full(len(points), float(_NOWHERE))
    margin = reach + shape.blend
    for part in shape.parts:
        held = np.flatnonzero(np.all((points > part.lower - margin)
                                     & (points < part.upper + margin), axis=1))
        if held.size:
            field[held] = shapes.smooth_minimum(
                field[held], _near(part, points[held], margin), shape.blend)
    return field


def _rasterised(shape: tuple[int, int, int], vertices: NDArray[np.float32],
                triangles: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which voxels are near a mesh given in voxels: every one within half a voxel of it."""
    corners = vertices[triangles]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    hit = np.zeros(shape, bool)
    for count in np.unique(np.ceil(2.0 * edges).astype(int)):
        chosen = corners[np.ceil(2.0 * edges).astype(int) == count]
        steps = max(int(count), 1)
        first, second = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1))
        kept = first + second <= steps
        u, v = first[kept] / steps, second[kept] / steps
        weights = np.stack([1.0 - u - v, u, v], axis=-1)
        places = np.rint(np.einsum('kc,tcx->tkx', weights, chosen)).astype(int).reshape(-1, 3)
        held = np.all((places >= 0) & (places < np.array(shape[::-1])), axis=1)
        hit[tuple(places[held].T[::-1])] = True
    # A voxel that the surface only grazes must part inside from outside, too.
    return np.asarray(ndimage.binary_dilation(hit, np.ones((3, 3, 3))))
