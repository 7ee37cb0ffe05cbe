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
# Voxels, beyond any region of interest.
_FAR = 10_000


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

    Its field need be right only near its surface, as that of a blended solid is: further off
    such a field tells less than the distance, by several millimetres.

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

    Where a structure reaches the end of the map, it goes on beyond: the scan ended there, not
    the body.

    Attributes:
        mask: (Z, Y, X) bool or uint8.
        patient_T_voxel: (4, 4) affine, takes (x, y, z) indices to metres in ``patient``.
    """

    mask: NDArray[Any]
    patient_T_voxel: Transform

    @cached_property
    def _held(self) -> NDArray[np.int64]:
        """(2, 3) first and last (x, y, z) index of the structure."""
        reach = [np.flatnonzero(self.mask.any(axis=axes)) for axes in ((0, 1), (0, 2), (1, 2))]
        if not reach[0].size:
            raise MapError('a structure of the label map has no voxel; name a label that is there')
        return np.array([[line[end] for line in reach] for end in (0, -1)])

    @cached_property
    def _box(self) -> Array:
        """(2, 3) corners in ``patient``, a voxel beyond the outermost centres."""
        low, high = self._held + [[-1], [1]]
        low = np.where(low < 0, -_FAR, low)
        high = np.where(high >= self.mask.shape[::-1], _FAR, high)
        choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
        places = transform_points(self.patient_T_voxel, np.where(choice, high, low).astype(float))
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
        field = np.full(grid.shape, 0.5, np.float32)
        window = grid.window(self.lower, self.upper)
        inner = _window(grid, window)
        if min(inner.shape) > 0:
            low, high = self._held + [[-1], [1]]
            first = np.maximum(low, 0)
            crop = self.mask[tuple(slice(int(a), int(b) + 1) for a, b in
                                   zip(first[::-1], high[::-1], strict=True))]
            voxel_T_patient: Transform = np.asarray(np.linalg.inv(self.patient_T_voxel), float)
            start = transform_points(voxel_T_patient, inner.origin) - first
            # Index order of the arrays is z, y, x.
            matrix = voxel_T_patient[:3, :3][::-1, ::-1] * grid.spacing
            field[window] -= _resampled(crop, matrix, start[::-1], inner.shape)
        return feet_of_field(grid, field)


def _resampled(mask: NDArray[Any], matrix: Array, start: Array,
               shape: tuple[int, int, int]) -> Field:
    """Return a mask's trilinear values at ``start + matrix @ (z, y, x)``; its edge goes on."""
    values: Field = mask.astype(np.float32)
    if not np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
        return np.asarray(ndimage.affine_transform(values, matrix, start, output_shape=shape,
                                                   order=1, mode='nearest'))
    # Along the axes one after the other, which is five times as quick.
    for axis, count in enumerate(shape):
        places = np.clip(start[axis] + matrix[axis, axis] * np.arange(count), 0,
                         mask.shape[axis] - 1)
        below = np.floor(places).astype(np.intp)
        share = (places - below).astype(np.float32).reshape(
            [-1 if which == axis else 1 for which in range(3)])
        first = values.take(below, axis)
        if share.any():
            first += share * (values.take(np.minimum(below + 1, mask.shape[axis] - 1), axis)
                              - first)
        values = first
    return values


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
        names: of the S structures.
        fields: (S, Z, Y, X) distances, m, negative inside.
        least: name to the least of its distances, m.
        boxes: name to the (3,) corners of a box that holds the structure, m.
    """

    grid: Grid
    band: float
    names: tuple[str, ...]
    fields: Field
    least: Mapping[str, float]
    boxes: Mapping[str, tuple[Points, Points]]

    def at(self, name: str, points: Points) -> Array:
        """Return the (...,) signed distances of (..., 3) points, at most the band.

        Beside the grid it is a distance that the structure is at least away.

        Raises:
            MapError: no such structure.
        """
        if name not in self.names:
            raise MapError(f'no structure "{name}" in the map; there are '
                           f'{", ".join(sorted(self.names))}')
        points = np.asarray(points, dtype=float)
        places = [((points[..., axis] - origin) / self.grid.spacing).astype(np.float32)
                  for axis, origin in enumerate(self.grid.origin)]
        held = [np.clip(place, 0, size - 1)
                for place, size in zip(places, self.grid.shape[::-1], strict=True)]
        values: Array = trilinear(self.fields[self.names.index(name)], *held).astype(float)
        if all(map(np.array_equal, places, held)):
            return values
        lower, upper = self.boxes[name]
        from_box = np.linalg.norm(np.maximum(np.maximum(lower - points, points - upper), 0.0),
                                  axis=-1)
        off = np.linalg.norm(np.subtract(places, held), axis=0) * self.grid.spacing
        return np.where(off > 0.0, np.maximum(values - off, from_box), values)

    def holds(self, points: Points) -> NDArray[np.bool_]:
        """Tell which (..., 3) points lie between the grid's voxels."""
        held = np.ones(points.shape[:-1], bool)
        for axis, (origin, size) in enumerate(zip(self.grid.origin, self.grid.shape[::-1],
                                                  strict=True)):
            place = (points[..., axis] - origin) / self.grid.spacing
            held &= (place >= 0.0) & (place <= size - 1.0)
        return held


def trilinear(values: Field, x: Array, y: Array, z: Array, start: Any = 0) -> Any:
    """Return a volume's values between its voxels.

    Args:
        values: (..., Z, Y, X); all that is before Z is reached by ``start`` only.
        x: (...,) places, in voxels; y and z, too. float32 gives float32, in half the time.
        y: of them.
        z: of them.
        start: (...,) index of the first voxel of the volume to read, in the array laid flat.
    """
    depth, height, width = values.shape[-3:]
    cells = [np.maximum(np.minimum(place.astype(np.int32), size - 2), 0)
             for place, size in ((x, width), (y, height), (z, depth))]
    # An int32 beside a float32 would make a float64.
    x, y, z = (place - cell.astype(place.dtype)
               for place, cell in zip((x, y, z), cells, strict=True))
    base = (cells[2] * height + cells[1]) * width + cells[0] + np.asarray(start, np.intp)
    flat = values.ravel()

    def between(first: Any, second: Any, share: Any) -> Any:
        second -= first
        second *= share
        second += first
        return second

    def line(offset: int) -> Any:
        return between(flat[offset:].take(base), flat[offset + 1:].take(base), x)

    near, far = (between(line(layer), line(layer + width), y) for layer in (0, height * width))
    return between(near, far, z)


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
    made = {name: SolidSource(source) if isinstance(source, Shape) else source
            for name, source in sources.items()}
    # The largest first: one begun last would keep one thread busy and the others waiting.
    order = sorted(made, key=lambda name: -float(np.prod(np.maximum(
        np.minimum(made[name].upper, upper) - np.maximum(made[name].lower, lower), 0.0) + band)))
    fields = np.empty((len(made), *grid.shape), np.float32)
    of = dict(zip(made, fields, strict=True))
    with ThreadPoolExecutor(workers) as pool:
        least = dict(zip(order, pool.map(
            lambda name: _distances(grid, made[name], band, of[name]), order), strict=True))
    return AnatomyMap(grid, band, tuple(made), fields, least,
                      {name: (source.lower, source.upper) for name, source in made.items()})


def _distances(grid: Grid, source: Source, band: float, result: Field) -> float:
    """Write (Z, Y, X) distances, and return the least; worked out only where within the band."""
    result.fill(band)
    # Surface outside the grid counts, up to the band.
    first = np.floor((np.maximum(source.lower, grid.origin) - grid.origin - band)
                     / grid.spacing).astype(int) - 1
    end = grid.origin + (np.array(grid.shape[::-1]) - 1) * grid.spacing
    last = np.ceil((np.minimum(source.upper, end) - grid.origin + band)
                   / grid.spacing).astype(int) + 1
    if np.any(last - first < 2):
        return band
    domain = Grid(grid.origin + first * grid.spacing, grid.spacing,
                  tuple(int(n) for n in (last - first + 1)[::-1]))  # type: ignore[arg-type]
    offset = first[::-1]
    low = np.maximum(offset, 0)
    high = np.minimum(offset + domain.shape, grid.shape)
    if np.any(high <= low):
        return band
    to = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    within = tuple(slice(int(a), int(b)) for a, b in
                   zip(low - offset, high - offset, strict=True))
    found = result[to] = _signed(domain, source.feet(domain), within, band)
    return min(band, float(found.min()))


def _signed(domain: Grid, feet: Feet, window: tuple[slice, ...],
            band: float) -> NDArray[np.float32]:
    """Return the signed distances, within ±band, in a window of the domain of the feet."""
    result = np.where(feet.inside[window], np.float32(-band), np.float32(band))
    if not len(feet.points):
        return result
    places = np.argwhere(feet.seeds)
    # No voxel further from all seeds than this has its surface within the band.
    reach = int(np.ceil(band / domain.spacing)) + 3
    near = tuple(slice(max(piece.start, int(first) - reach), min(piece.stop, int(last) + 1 + reach))
                 for piece, first, last in zip(window, places.min(axis=0), places.max(axis=0),
                                               strict=True))
    if any(piece.stop <= piece.start for piece in near):
        return result
    # Seeds beside it count, and voxels there, whose feet may be nearer than its own.
    wide = tuple(slice(max(piece.start - reach, 0), piece.stop + reach) for piece in near)
    start = [piece.start for piece in wide]
    seeds = feet.seeds[wide]
    kept = np.all((places >= start) & (places < np.add(start, seeds.shape)), axis=1)
    if not kept.any():
        return result
    spots = (feet.points[kept] - domain.origin)[:, ::-1] / domain.spacing - start
    squares = _squares(seeds, spots.T.astype(np.float32))[_within(near, wide)]
    distance = np.float32(domain.spacing) * np.sqrt(squares)
    to = _within(near, window)
    result[to] = np.copysign(np.minimum(distance, np.float32(band)), result[to])
    return result


def _within(inner: tuple[slice, ...], outer: tuple[slice, ...]) -> tuple[slice, ...]:
    """Return a window of an array as one of another window of it."""
    return tuple(slice(piece.start - whole.start, piece.stop - whole.start)
                 for piece, whole in zip(inner, outer, strict=True))


def _squares(seeds: NDArray[np.bool_], spots: Field) -> Field:
    """Return (Z, Y, X) the squared distance of each voxel to the nearest foot, in voxels.

    Args:
        seeds: (Z, Y, X) which voxels have a foot.
        spots: (3, N) z, y, x of the feet, in the order of the array.
    """
    nearest = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    number = np.zeros(seeds.shape, np.int32)
    number[seeds] = np.arange(spots.shape[1], dtype=np.int32)
    _, height, width = seeds.shape
    owner = number.ravel().take((nearest[0] * height + nearest[1]) * width + nearest[2])
    ways = [line.take(owner) for line in spots]
    for axis, way in enumerate(ways):
        way -= np.arange(seeds.shape[axis], dtype=np.float32).reshape(
            [-1 if which == axis else 1 for which in range(3)])
    squares = ways[0]**2 + ways[1]**2 + ways[2]**2
    for stride in _STRIDES:
        _exchange(ways, squares, stride)
    return np.asarray(squares)


def _exchange(ways: list[Field], squares: Field, stride: int) -> None:
    """Let voxels take the foot of another voxel that is nearer than their own, in place.

    The nearest surface voxel is up to one voxel off the nearest foot along the normal, and so,
    far away, many voxels beside it.

    Args:
        ways: (Z, Y, X) each, along z, y, x from a voxel to its foot, in voxels.
        squares: their squared length.
        stride: how far away the other voxel is.
    """
    for axis in range(3):
        for step in (stride, -stride):
            to, source = [slice(None)] * 3, [slice(None)] * 3
            to[axis] = slice(step, None) if step > 0 else slice(None, step)
            source[axis] = slice(None, -step) if step > 0 else slice(-step, None)
            there, here = tuple(source), tuple(to)
            # |w - s e|² without a sum over the axes.
            found = squares[there] - np.float32(2 * step) * ways[axis][there] + np.float32(step**2)
            nearer = found < squares[here]
            for which, way in enumerate(ways):
                candidate = way[there] - np.float32(step) if which == axis else way[there]
                np.copyto(way[here], candidate, where=nearer)
            np.minimum(squares[here], found, out=squares[here])


def feet_of_field(grid: Grid, field: Field) -> Feet:
    """Return the surface where a (Z, Y, X) field, negative inside, passes through zero.

    Where it does so between a voxel and its neighbours, three such places span a plane; the
    voxel's foot is the nearest point of that plane. Signs must be right everywhere; values count
    only at the surface.
    """
    inside = field < 0.0
    seeds = _parted(inside)
    count = int(np.count_nonzero(seeds))
    number = np.zeros(grid.shape, np.int32)
    number[seeds] = np.arange(count, dtype=np.int32)
    slopes = np.zeros((count, 3))
    for axis in range(3):
        low, high = ([slice(None)] * 3, [slice(None)] * 3)
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        crossed = np.nonzero(inside[tuple(low)] != inside[tuple(high)])
        first, second = field[tuple(low)][crossed], field[tuple(high)][crossed]
        share = np.clip(first / (first - second), 1e-3, 1.0 - 1e-3)
        here, beyond = number[tuple(low)][crossed], number[tuple(high)][crossed]
        component = slopes[:, 2 - axis]
        # A voxel crossed on both sides keeps the nearer one.
        component[here] = _stronger(component[here], 1.0 / share)
        component[beyond] = _stronger(component[beyond], -1.0 / (1.0 - share))
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
