"""The digital patient: labelled solids from a YAML file, sampled into voxels.

A region is a file of ``config/anatomy``. Nothing below knows which region it is: outlines are
painted slice by slice, solids over them, bones last. Patients differ by a seeded similarity of
the solids about the region's ``fixed_point``, by the size of single bones, lordosis and fat;
the skin of the back stays, so that a procedure's target and entry hold in every patient.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from hybrid_guidance.geometry.rigid import (
    inverse,
    rotation_from_vector,
    transform,
    transform_points,
)
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.resources import resource
from hybrid_guidance.simulation import shapes
from hybrid_guidance.simulation.layers import Layers
from hybrid_guidance.simulation.outlines import Outlines
from hybrid_guidance.simulation.shapes import Field, Shape
from hybrid_guidance.simulation.tissues import Tissue, density_table

FOLDER = 'config/anatomy'
CORTEX = 0.0013
SURROUND_STEP = 6
SURROUND_REACH = 0.200
# Over so many of its voxels the surround takes over from the fine ones.
_RAMP = 2
# Voxels worked on at once.
_SLAB = 40000

Voxels = NDArray[np.uint8]


class AnatomyError(Exception):
    """An anatomy that cannot be built; the message says what, where and what to do."""


@dataclass(frozen=True)
class Grid:
    """Where voxels are.

    Attributes:
        origin: (3,) centre of voxel (0, 0, 0), metres, in ``patient``.
        spacing: edge of a voxel, metres.
        shape: voxels along (z, y, x): the order of the array's axes.
    """

    origin: Points
    spacing: float
    shape: tuple[int, int, int]

    @classmethod
    def covering(cls, lower: Points, upper: Points, spacing: float) -> 'Grid':
        """Return the grid of voxels that fill the box from lower to upper (and a little)."""
        counts = np.ceil((np.asarray(upper) - lower) / spacing - 1e-6).astype(int)
        return cls(np.asarray(lower) + spacing / 2, spacing,
                   (int(counts[2]), int(counts[1]), int(counts[0])))

    def axes(self) -> tuple[Field, Field, Field]:
        """Return x, y, z of the voxel centres, float32, shaped to broadcast."""
        x, y, z = (np.float32(start) + np.float32(self.spacing) * np.arange(count, dtype=np.float32)
                   for start, count in zip(self.origin, self.shape[::-1], strict=True))
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def window(self, lower: Points, upper: Points) -> tuple[slice, slice, slice]:
        """Return the index range (z, y, x) of the voxels inside a box; may be empty."""
        first = np.floor((lower - self.origin) / self.spacing).astype(int)
        last = np.ceil((upper - self.origin) / self.spacing).astype(int) + 1
        limits = np.array(self.shape[::-1])
        first, last = np.clip(first, 0, limits), np.clip(last, 0, limits)
        return tuple(slice(int(a), int(b)) for a, b in
                     zip(first[::-1], last[::-1], strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Surround:
    """What of the body lies outside the voxels, coarse: X-rays pass it too.

    Attributes:
        grid: where its voxels are; of the fine volume's box it has what is not left to that.
        density: (Z, Y, X) uint8, ``WATER_LEVEL`` for water.
        left: along z, y and x, the share of each fine voxel's density that is left to it, (Z,),
            (Y,), (X,): their product counts. None: the density of the fine voxels is theirs as it
            is.
    """

    grid: Grid
    density: Voxels
    left: tuple[Array, Array, Array] | None = None


@dataclass(frozen=True)
class Patient:
    """A patient in voxels and solids, all in ``patient`` (LPS, metres).

    A CT becomes one by filling the same arrays (``imported``); what is not known may be zero.

    Attributes:
        region: name of the anatomy.
        seed: which patient.
        grid: of all fine volumes.
        labels: (Z, Y, X) uint8, values of ``Tissue``.
        mineral: (Z, Y, X) uint8, bone mineral; 255 is compact bone.
        bone: (Z, Y, X) uint8, how much of a voxel's place is bone; 128 on the surface.
        sheets: (Z, Y, X) uint8, strength of fascia and septa, thinner than a voxel.
        structures: name to solid.
        surround: coarse body round the volume.
        density: (Z, Y, X) uint8, ``WATER_LEVEL`` for water, of what is not mineral; None is what
            the labels' tissues have.
    """

    region: str
    seed: int
    grid: Grid
    labels: Voxels
    mineral: Voxels
    bone: Voxels
    sheets: Voxels
    structures: Mapping[str, Shape]
    surround: Surround | None = None
    density: Voxels | None = None

    def distance(self, name: str, points: Points) -> Array:
        """Return the signed distances (metres, negative inside) of (..., 3) points.

        Args:
            name: one of ``structures``; ``bone`` is all bones together.
            points: metres, in ``patient``.

        Raises:
            AnatomyError: no such structure; the message lists them.
        """
        if name not in self.structures:
            raise AnatomyError(f'{self.region}: no structure "{name}"; use one of: '
                               f'{", ".join(sorted(self.structures))}')
        return self.structures[name].at(points)


@dataclass(frozen=True)
class _Variation:
    """What makes one patient: factors are 1 and offsets 0 in the mean patient."""

    pose: Transform
    scale: float
    body: float
    lordosis: float
    process: float
    fat: float


def build_patient(region: str, seed: int, fixed_point: Points | None = None) -> Patient:
    """Build a patient.

    Args:
        region: name of a file of ``config/anatomy``, or the path of such a file; that of an
            imported patient (see ``imported``) is one patient, whatever seed and fixed point.
        seed: which patient; 0 is the mean one.
        fixed_point: (3,) metres, what patients have in common: a procedure's target. None is
            the region's own.

    Raises:
        AnatomyError: no such region.
    """
    content = _read(region)
    if 'voxels' in content:
        from hybrid_guidance.simulation.imported import load_imported
        return load_imported(Path(region)).patient(seed)
    variation = _draw(content, seed, fixed_point)
    grid = _grid(content)
    solids = _Solids(content, variation)
    outlines = _soft_tissue(content, variation)
    labels, sheets = outlines.paint(grid.origin, grid.spacing, grid.shape)
    for name, shape in solids.soft.items():
        _paint(grid, labels, sheets, shape, solids.tissue[name])
    bone, mineral = _bones(grid, labels, sheets, solids.bones, seed)
    structures = {**solids.named(), 'skin': outlines.skin}
    return Patient(region, seed, grid, labels, mineral, bone, sheets, structures,
                   _surround(outlines, grid))


def build_structures(region: str, seed: int,
                     fixed_point: Points | None = None) -> dict[str, Shape]:
    """Return the solids of ``build_patient`` (same arguments), no voxels, in milliseconds.

    Raises:
        AnatomyError: no such region.
    """
    content = _read(region)
    if 'voxels' in content:
        from hybrid_guidance.simulation.imported import load_solids
        return load_solids(Path(region))
    variation = _draw(content, seed, fixed_point)
    skin = _soft_tissue(content, variation).skin
    return {**_Solids(content, variation).named(), 'skin': skin}


def _soft_tissue(content: Mapping[str, Any], variation: '_Variation') -> Outlines | Layers:
    """Return the soft tissue that solids are painted over: outlines or layers under a skin."""
    if 'layers' not in content:
        return Outlines(content['outlines'], variation.fat)
    skin = shapes.union([_soft_shape(part) for part in content['skin']['parts'].values()],
                        content['skin']['blend'])
    return Layers(skin, content['layers'], variation.fat)


def _grid(content: Mapping[str, Any]) -> Grid:
    """Return the region's grid, filled up to whole voxels of the surround."""
    lower, spacing = np.array(content['lower']), float(content['spacing'])
    step = SURROUND_STEP * spacing
    whole = np.ceil((np.array(content['upper']) - lower) / step - 1e-6)
    return Grid.covering(lower, lower + whole * step, spacing)


def _read(region: str) -> dict[str, Any]:
    path = Path(region) if region.endswith('.yaml') else resource(FOLDER) / f'{region}.yaml'
    if not path.is_file():
        names = ', '.join(sorted(file.stem for file in resource(FOLDER).glob('*.yaml')))
        raise AnatomyError(f'anatomy "{region}" is unknown; use one of: {names}')
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding='utf-8'))
    return content


def _draw(content: Mapping[str, Any], seed: int, fixed_point: Points | None) -> _Variation:
    spread = content['variation']
    rng = np.random.default_rng(seed)
    draws = np.clip(rng.standard_normal(9), -2.0, 2.0) * (seed != 0)
    scale = 1.0 + spread['scale'] * float(draws[0])
    fixed = np.array(content['fixed_point'] if fixed_point is None else fixed_point)
    rotation = rotation_from_vector(np.radians(spread['rotation_deg']) * draws[1:4])
    return _Variation(transform(rotation, fixed - scale * rotation @ fixed), scale,
                      1.0 + spread['body'] * float(draws[4]),
                      float(np.radians(spread.get('lordosis_deg', 0.0)) * draws[5]),
                      1.0 + spread['process'] * float(draws[6]),
                      spread['fat'] * float(draws[7]))


class _Solids:
    """The solids of a region for one patient, in ``patient``."""

    def __init__(self, content: Mapping[str, Any], variation: _Variation) -> None:
        self._variation = variation
        self._frames = {name: _frame(value)
                        for name, value in content.get('frames', {}).items()}
        self._bend(content)
        self.bones: dict[str, Shape] = {}
        self.soft: dict[str, Shape] = {}
        self.tissue: dict[str, Tissue] = {}
        for name, value in content['structures'].items():
            self._add_soft(name, value)
        for name, value in content.get('discs', {}).items():
            self._add_disc(name, *value['between'])
        for name, value in content.get('vertebrae', {}).items():
            self.bones[name] = self._vertebra(content['vertebra'], name, value)
        for name, value in content['bones'].items():
            self.bones[name] = self._bone(value)

    def named(self) -> dict[str, Shape]:
        """Return every solid by its name, and ``bone``, all bones together."""
        return {**self.soft, **self.bones, 'bone': shapes.union(list(self.bones.values()))}

    def _bend(self, content: Mapping[str, Any]) -> None:
        """Lordosis: turn the frames above and below the fixed joint about it, oppositely."""
        pivot = np.array(content['fixed_point']) * (0, 1, 1)
        for name, frame in self._frames.items() if self._variation.lordosis else ():
            above = frame[2, 3] - pivot[2]
            if name in ('L4', 'L5', 'J45'):
                continue
            angle = self._variation.lordosis * np.clip(above / 0.05, -1.5, 1.5)
            turn = rotation_from_vector(np.array([-angle, 0.0, 0.0]))
            self._frames[name] = transform(turn, pivot - turn @ pivot) @ frame

    def _in_patient(self, shape: Shape) -> Shape:
        pose = self._variation.pose
        return shapes.placed(shape, pose, self._variation.scale)

    def _add_soft(self, name: str, value: Mapping[str, Any]) -> None:
        frame = self._frames[value['frame']] if 'frame' in value else np.eye(4)
        shape = shapes.placed(_soft_shape(value), frame)
        sides = {f'{name}_left': shape} if value.get('mirror') else {name: shape}
        if value.get('mirror'):
            flip = np.diag([-1.0, 1.0, 1.0, 1.0])
            sides[f'{name}_right'] = _flipped(shape, flip)
        for side, solid in sides.items():
            self.soft[side] = self._in_patient(solid)
            self.tissue[side] = Tissue[value['tissue']]

    def _add_disc(self, name: str, upper: str, lower: str) -> None:
        top, bottom = self._frames[upper], self._frames[lower]
        first = transform_points(top, np.array([0.0, 0.0, -0.0135]))
        second = transform_points(bottom, np.array([0.0, 0.0, 0.0135]))
        axis = top[:3, 2] + bottom[:3, 2]
        tilt = float(np.arctan2(-axis[1], axis[2]))
        frame = transform(rotation_from_vector(np.array([tilt, 0.0, 0.0])), (first + second) / 2)
        height = float(np.linalg.norm(first - second)) / 2
        half = self._variation.body * np.array([0.0245, 0.0178, height + 0.002])
        disc = shapes.drum(np.zeros(3), half, 0.003, notch=0.001)
        self.soft[name] = self._in_patient(shapes.placed(disc, frame))
        self.tissue[name] = Tissue.DISC

    def _vertebra(self, template: Mapping[str, Any], name: str,
                  value: Mapping[str, Any]) -> Shape:
        frame, size = self._frames[name], float(value['size'])
        roles = {role: self._frames[value[role]] for role in ('above', 'below')}
        parts = [self._part(part, frame, size, roles) for part in template['parts'].values()]
        return self._in_patient(shapes.placed(shapes.union(parts, template['blend']), frame))

    def _bone(self, template: Mapping[str, Any]) -> Shape:
        """Return a bone of its own: parts in frames (or in ``patient``), melted together."""
        parts = []
        for part in template['parts'].values():
            frame = self._frames[part['frame']] if 'frame' in part else np.eye(4)
            parts.append(shapes.placed(self._part(part, frame, 1.0, self._frames), frame))
        bone = shapes.union(parts, template['blend'])
        if 'socket' in template:
            bone = shapes.carved(bone, np.array(template['socket']['centre']),
                                 template['socket']['radius'])
        return self._in_patient(bone)

    def _part(self, part: Mapping[str, Any], frame: Transform, size: float,
              roles: Mapping[str, Transform]) -> Shape:
        """Return one part of a bone in the bone's own frame."""
        size = size * (self._variation.body if part['shape'] == 'drum' else 1.0)
        stretch = self._variation.process if part.get('process') else 1.0

        def local(value: Any) -> Array:
            if isinstance(value, dict):
                return transform_points(inverse(frame) @ roles[value['frame']],
                                        np.array(value['at']))
            return np.array(value) * size

        shape = _bone_shape(part, local, size, stretch)
        if 'cut' in part:
            plane = part['cut']
            turn = (inverse(frame) @ roles[plane['frame']])[:3, :3]
            shape = shapes.cut(shape, local(plane), turn @ np.array(plane['normal']))
        return shapes.mirrored(shape) if part.get('mirror') else shape


def _frame(value: Mapping[str, Any]) -> Transform:
    tilt = rotation_from_vector(np.radians([value['tilt_deg'], 0.0, 0.0]))
    turn = np.radians(value.get('turn_deg', 0.0))
    # Facet joints: y along the joint line, turned from posterior towards the side.
    joint = np.array([[np.cos(turn), np.sin(turn), 0.0],
                      [-np.sin(turn), np.cos(turn), 0.0],
                      [0.0, 0.0, 1.0]])
    return transform(tilt @ joint, np.array(value['position'], dtype=float))


def _flipped(shape: Shape, flip: Array) -> Shape:
    if shape.parts:
        return shapes.union([_flipped(part, flip) for part in shape.parts], shape.blend)

    def distance(x: Field, y: Field, z: Field) -> Field:
        return shape.distance(-x, y, z)

    corners = np.stack([shape.lower, shape.upper]) @ flip[:3, :3]
    return Shape(distance, corners.min(axis=0), corners.max(axis=0))


def _soft_shape(value: Mapping[str, Any]) -> Shape:
    """Return a soft solid in its frame."""
    kind = value['shape']
    if kind == 'tube':
        shape = shapes.tube(np.array(value['points']), value['radius'])
    elif kind == 'band':
        shape = shapes.band(np.array(value['points']), value['radius'], np.array(value['wide']))
    elif kind == 'capsule':
        shape = shapes.capsule(np.array(value['from']), np.array(value['to']), value['radius'],
                               value.get('end_radius'))
    elif kind == 'superquadric':
        shape = _turned(value, shapes.superquadric(
            np.zeros(3), np.array(value['radii']), value['power']))
    elif 'turn_deg' in value:
        shape = _turned(value, shapes.ellipsoid(np.zeros(3), np.array(value['radii'])))
    else:
        shape = shapes.ellipsoid(np.array(value['centre']), np.array(value['radii']))
    return shape


def _turned(value: Mapping[str, Any], shape: Shape) -> Shape:
    """Place a solid at ``centre``, turned by ``turn_deg``: a rotation vector in degrees."""
    turn = rotation_from_vector(np.radians(value.get('turn_deg', np.zeros(3))))
    return shapes.placed(shape, transform(turn, np.array(value['centre'], dtype=float)))


def _bone_shape(part: Mapping[str, Any], local: Any, size: float, stretch: float) -> Shape:
    if part['shape'] in ('ellipsoid', 'superquadric'):
        return _soft_shape(part)
    if part['shape'] == 'drum':
        return shapes.drum(local(part['centre']), np.array(part['half']) * size,
                           part['rounding'], part.get('waist', 0.0), part.get('notch', 0.0),
                           part.get('dome', 0.0))
    if part['shape'] == 'box':
        half = np.array(part['half']) * size
        grown = half * (1.0, stretch, 1.0)
        centre = local(part['centre']) + np.array([0.0, grown[1] - half[1], 0.0])
        return shapes.box(centre, grown, part['rounding'])
    start, end = local(part['from']), local(part['to'])
    if stretch != 1.0 and not part.get('mirror'):
        shift = np.array([0.0, 0.028 * size * (stretch - 1.0), 0.0])
        start, end = start + shift, end + shift
    elif stretch != 1.0:
        end = start + stretch * (end - start)
    return shapes.capsule(start, end, part['radius'] * size,
                          part.get('end_radius', part['radius']) * size)


def _field(grid: Grid, shape: Shape, margin: float) -> tuple[tuple[slice, ...], Field]:
    """Return a window of the grid and the distances in it, each part only near itself."""
    margin = max(margin, shape.blend)
    window = grid.window(shape.lower - margin, shape.upper + margin)
    x, y, z = grid.axes()
    if not shape.parts:
        return window, _distances(shape, x[..., window[2]], y[:, window[1]], z[window[0]])
    field = np.full([piece.stop - piece.start for piece in window], margin + shape.blend,
                    np.float32)
    for part in shape.parts:
        inner = grid.window(part.lower - margin, part.upper + margin)
        local = tuple(slice(a.start - b.start, a.stop - b.start)
                      for a, b in zip(inner, window, strict=True))
        if not field[local].size:
            continue
        for slab in _slabs(field[local].shape):
            near = field[local][slab]
            distance = part.distance(x[..., inner[2]], y[:, inner[1]], z[inner[0]][slab])
            near[:] = shapes.smooth_minimum(near, distance, shape.blend)
    return window, field


def _distances(shape: Shape, x: Field, y: Field, z: Field) -> Field:
    """Return a solid's distances on a box of voxels, float32."""
    field = np.empty((z.shape[0], y.shape[1], x.shape[2]), np.float32)
    for slab in _slabs(field.shape):
        field[slab] = shape.distance(x, y, z[slab])
    return field


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of an array's first axis: few enough voxels to stay in the cache."""
    step = max(_SLAB // max(shape[1] * shape[2], 1), 1)
    for first in range(0, shape[0], step):
        yield slice(first, first + step)


def _paint(grid: Grid, labels: Voxels, sheets: Voxels, shape: Shape, tissue: Tissue) -> None:
    window, field = _field(grid, shape, 2 * grid.spacing)
    if not field.size:
        return
    # A muscle drawn by proportion may reach the skin of a thin patient: it stays inside.
    inside = (field < 0.0) & (labels[window] != Tissue.AIR)
    labels[window][inside] = tissue
    wall = np.exp(-(field / np.float32(0.0006)) ** 2) * np.float32(110.0)
    keep = np.where(field < 0.0, 0, sheets[window])
    sheets[window] = np.maximum(keep, wall.astype(np.uint8))


def _bones(grid: Grid, labels: Voxels, sheets: Voxels, bones: Mapping[str, Shape],
           seed: int) -> tuple[Voxels, Voxels]:
    """Paint bones; return how much of each voxel is bone, and its mineral, (Z, Y, X) uint8."""
    occupancy = np.zeros(grid.shape, np.uint8)
    mineral = np.zeros(grid.shape, np.uint8)
    marrow = _trabeculae(seed)
    for shape in bones.values():
        window, field = _field(grid, shape, 0.006)
        if not field.size:
            continue
        spongy = np.tile(marrow, [1, *(-(-n // m) for n, m in zip(
            field.shape[1:], marrow.shape[1:], strict=True))])
        spongy = spongy[:, :field.shape[1], :field.shape[2]]
        views = [volume[window] for volume in (labels, sheets, mineral, occupancy)]
        for slab in _slabs(field.shape):
            layers = np.arange(len(field))[slab] % len(marrow)
            _bone_slab(field[slab], spongy[layers], grid.spacing, *(view[slab] for view in views))
    return occupancy, mineral


def _bone_slab(field: Field, spongy: Field, spacing: float, labels: Voxels, sheets: Voxels,
               mineral: Voxels, occupancy: Voxels) -> None:
    """Paint one bone into a slab of all volumes, in place."""
    inside = field < 0.0
    labels[inside] = np.where(field < -CORTEX, Tissue.CANCELLOUS, Tissue.CORTICAL)[inside]
    sheets[field < spacing] = 0
    ramp = np.float32(1.0 / spacing)
    full = np.clip(0.5 - field * ramp, 0.0, 1.0)
    shell = full - np.clip(0.5 - (field + np.float32(CORTEX)) * ramp, 0.0, 1.0)
    density = 255.0 * shell + spongy * (full - shell)
    mineral[:] = np.maximum(mineral, density.astype(np.uint8))
    occupancy[:] = np.maximum(occupancy, (255.0 * full).astype(np.uint8))


def _trabeculae(seed: int) -> Field:
    """Return a periodic (48, 48, 48) tile of mineral in spongy bone, in steps of 1/255."""
    noise = np.random.default_rng((seed, 1)).standard_normal((48, 48, 48)).astype(np.float32)
    # OpenCV does not blur round a period, so blur more than one.
    noise = np.pad(noise, 8, mode='wrap')
    noise = np.stack([cv2.GaussianBlur(layer, (0, 0), 0.9) for layer in noise])
    # Trabeculae stand upright.
    upright = cv2.GaussianBlur(noise.reshape(len(noise), -1), (1, 13), sigmaX=1.0, sigmaY=2.0)
    noise = upright.reshape(noise.shape)[8:-8, 8:-8, 8:-8]
    return np.asarray(np.clip(44.0 + 26.0 * noise / noise.std(), 10.0, 120.0), np.float32)


def _surround(outlines: Outlines | Layers, fine: Grid) -> Surround:
    """Paint the body round a grid; just inside its faces it takes over little by little.

    Both are interpolated linearly, so what they add up to is exact, and no edge of the box shows.
    Where nothing but air lies beyond a face, the fine voxels keep all.
    """
    step = SURROUND_STEP * fine.spacing
    lower = fine.origin - fine.spacing / 2
    inner = np.array(fine.shape[::-1]) // SURROUND_STEP
    before = np.ceil(np.maximum(SURROUND_REACH + lower, 0.0) / step).astype(int)
    upper = lower + inner * step
    after = np.ceil(np.maximum(SURROUND_REACH - upper, 0.0) / step).astype(int)
    start = lower - before * step
    grid = Grid.covering(start, start + (before + inner + after) * step, step)
    if isinstance(outlines, Layers):
        density = outlines.density(*grid.axes(), step)
    else:
        density = _prism(outlines, start + fine.spacing / 2, fine.spacing, grid.shape)
    ramps, left = [], []
    for axis, first, count, voxels in zip(range(3), before[::-1], inner[::-1], fine.shape,
                                          strict=True):
        layers = np.moveaxis(density, axis, 0)
        goes_on = [0 <= place < len(layers) and bool(layers[place].any())
                   for place in (int(first) - 1, int(first + count))]
        ramps.append(ramp(int(first), int(count), len(layers), *goes_on))
        places = first - 0.5 + (np.arange(voxels) + 0.5) / SURROUND_STEP
        left.append(np.interp(places, np.arange(len(layers)), ramps[-1]))
    share = 1.0 - ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
    taken = np.round(density * share).astype(np.uint8)
    return Surround(grid, taken, (left[0], left[1], left[2]))


def ramp(first: int, inner: int, count: int, below: bool, above: bool,
         reach: int = _RAMP) -> Array:
    """Return along one axis how much of each coarse voxel is left to the fine ones, (count,).

    Args:
        first: the first that lies in the box of the fine ones.
        inner: how many do.
        count: of all.
        below: the body goes on before the box.
        above: and behind it.
        reach: over how many voxels the fine ones fade.
    """
    place = np.arange(count) - first
    rise = place / reach if below else np.where(place < 0, 0.0, 1.0)
    fall = (inner - 1.0 - place) / reach if above else np.where(place >= inner, 0.0, 1.0)
    within = np.clip(np.minimum(rise, fall), 0.0, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * within), np.float32)


def _prism(outlines: Outlines, origin: Points, spacing: float,
           shape: tuple[int, int, int]) -> Voxels:
    """Repeat one slice; layers are thinner than these voxels, so average a fine one."""
    labels, _ = outlines.paint(origin, spacing,
                               (1, SURROUND_STEP * shape[1], SURROUND_STEP * shape[2]))
    flat = cv2.resize(cv2.LUT(labels[0], density_table()), shape[:0:-1],
                      interpolation=cv2.INTER_AREA)
    return np.repeat(np.asarray(flat, np.uint8)[None], shape[0], axis=0)


def empty_patient(grid: Grid, **volumes: Voxels) -> Patient:
    """Return a patient of nothing but air, or of the volumes given: for phantoms.

    Args:
        grid: of the volumes.
        volumes: any of ``labels``, ``mineral``, ``bone``, ``sheets``.
    """
    blank = np.zeros(grid.shape, np.uint8)
    patient = Patient('phantom', 0, grid, blank, blank, blank, blank, {})
    return replace(patient, **volumes)  # type: ignore[arg-type]
