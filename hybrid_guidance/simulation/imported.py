"""A digital patient from a CT and a label map.

What X-rays see comes from the CT's own numbers: every voxel is a mixture of soft tissue and
compact bone (two-material decomposition at the CT's effective energy). What ultrasound sees comes
from labels, and from Hounsfield units where there is no label. Surfaces run between the slices of
a label map by interpolating signed distances (shape-based interpolation: Raya and Udupa, IEEE TMI
1990;9:32).
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import ndimage

from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.imaging.volume import Volume
from hybrid_guidance.simulation.anatomy import (
    CORTEX,
    AnatomyError,
    Grid,
    Patient,
    Surround,
    Voxels,
    ramp,
)
from hybrid_guidance.simulation.shapes import Field, Shape
from hybrid_guidance.simulation.tissues import PROPERTIES, WATER_LEVEL, Tissue

SPACING = 0.0007
SIZE = (0.18, 0.18, 0.18)
VOXELS = 'patient.npz'
# Attenuation of compact bone over water's at the effective energy of a CT at 120 kVp, 70 keV
# (the same tables as in ``xray``).
BONE_OVER_WATER = 50.0 / 19.3
# Hounsfield units: where the body, and soft tissue that is no fat, begin, and what is bone though
# no label says so (vessels with contrast are labelled, or stay below).
_BODY, _LEAN, _BONY = -300.0, -30.0, 250.0
_MARGIN = 0.020
_SOLID_SPACING = 0.001
_STEP = 1e-5
# The surround's voxels in fine ones, and over how many of them it takes over from those.
_COARSE, _RAMP = 3, 4
# The skin goes on beyond the fine voxels: a probe or an entry may be there.
_SKIN_MARGIN, _SKIN_SPACING = 0.030, 0.0015
_SKIN = 0.0018
# Partial volume: so far outside its surface a bone still shows in the CT.
_HALO = 0.0025
_BONES = (Tissue.CORTICAL, Tissue.CANCELLOUS)


@dataclass(frozen=True)
class LabelRule:
    """What one structure of a label map is.

    Attributes:
        labels: values in the label map.
        tissue: a bone is ``CORTICAL``: its inside becomes ``CANCELLOUS``.
    """

    labels: tuple[int, ...]
    tissue: Tissue


@dataclass(frozen=True)
class Solid:
    """A structure by samples of its signed distance.

    Attributes:
        grid: holds the structure (of bone and skin: all fine voxels).
        steps: (Z, Y, X) int16, hundredths of a millimetre, negative inside.
    """

    grid: Grid
    steps: NDArray[np.int16]

    @classmethod
    def of(cls, grid: Grid, distance: Field) -> 'Solid':
        """Return the solid of signed distances in metres (beyond 0.3 m: 0.3 m)."""
        return cls(grid, np.asarray(np.clip(np.rint(distance / _STEP), -32767, 32767), np.int16))

    def shape(self) -> Shape:
        """Return the solid as a shape that interpolates."""
        last = np.array(self.grid.shape[::-1]) - 1.0
        return Shape(self._at, self.grid.origin.copy(),
                     self.grid.origin + self.grid.spacing * last)

    def _at(self, x: Field, y: Field, z: Field) -> Field:
        grid = self.grid
        last = np.array(grid.shape[::-1]) - 1.0
        cells = np.broadcast_arrays(*[(np.asarray(value, float) - start) / grid.spacing
                                      for value, start in zip((x, y, z), grid.origin, strict=True)])
        held = [np.clip(cell, 0.0, end) for cell, end in zip(cells, last, strict=True)]
        found = _STEP * ndimage.map_coordinates(
            self.steps, np.stack(held[::-1]).reshape(3, -1), order=1,
            output=np.float64).reshape(held[0].shape)
        beside = grid.spacing * np.sqrt(sum(
            (cell - near) ** 2 for cell, near in zip(cells, held, strict=True)))
        # Outside a convex box that holds the solid its distance is at least this: to the box, and
        # on from there at no acute angle.
        return np.asarray(np.where(beside > 0.0, np.hypot(np.maximum(found, 0.0), beside), found))


@dataclass(frozen=True)
class Imported:
    """All of a patient that was made of a CT, as it is kept in a file.

    Attributes:
        region: a name for it.
        grid: of the fine volumes.
        volumes: ``labels``, ``mineral``, ``bone``, ``sheets``, ``density`` as in ``Patient``.
        surround: the rest of the CT.
        solids: every structure, ``bone`` (all bones) and ``skin``.
    """

    region: str
    grid: Grid
    volumes: Mapping[str, Voxels]
    surround: Surround
    solids: Mapping[str, Solid]

    def patient(self, seed: int = 0) -> Patient:
        """Return the patient; the seed makes no other anatomy."""
        structures = {name: solid.shape() for name, solid in self.solids.items()}
        return Patient(self.region, seed, self.grid, structures=structures,
                       surround=self.surround, **self.volumes)


def read_rules(path: Path) -> dict[str, LabelRule]:
    """Read which labels are which structures.

    Args:
        path: YAML, ``structures: {NAME: {labels: [N, ...], tissue: TISSUE}}``.

    Raises:
        AnatomyError: unreadable, or a rule that makes no sense.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        table = content['structures']
        rules = {str(name): LabelRule(tuple(int(label) for label in rule['labels']),
                                      Tissue[str(rule['tissue'])])
                 for name, rule in table.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnatomyError(
            f'{path}: cannot be read as label rules ({error!r}); write structures: {{NAME: '
            f'{{labels: [1], tissue: {", ".join(Tissue.__members__)}}}}}') from error
    taken = [label for rule in rules.values() for label in rule.labels]
    double = sorted({label for label in taken if taken.count(label) > 1})
    if double or not rules or 0 in taken:
        raise AnatomyError(f'{path}: label {double or 0} may be only one structure, and 0 none; '
                           'correct it')
    return rules


def centre_of(labels: Volume, rules: Mapping[str, LabelRule], names: tuple[str, ...]) -> Points:
    """Return the (3,) middle of the box round some structures, metres.

    Args:
        labels: the label map.
        rules: what its labels are.
        names: of structures; none are all bones.

    Raises:
        AnatomyError: no such structure in the rules or in the label map.
    """
    names = names or tuple(name for name, rule in rules.items() if rule.tissue in _BONES)
    unknown = [name for name in names if name not in rules]
    if unknown:
        raise AnatomyError(f'no structure {", ".join(unknown)}; there are {", ".join(rules)}')
    values = [label for name in names for label in rules[name].labels]
    found = np.argwhere(np.isin(labels.values, values))
    if not len(found):
        raise AnatomyError(f'the label map holds nothing of {", ".join(names)}; name others')
    middle = (found.min(axis=0) + found.max(axis=0)) / 2.0
    return transform_points(labels.patient_T_voxel, middle[::-1])


def import_patient(ct: Volume, labels: Volume, rules: Mapping[str, LabelRule], centre: Points,
                   size: tuple[float, float, float] = SIZE, spacing: float = SPACING,
                   name: str = 'imported') -> Imported:
    """Make a patient of a CT.

    Args:
        ct: Hounsfield units.
        labels: whole numbers; its voxels may be others than the CT's.
        rules: what its labels are; other labels are left to Hounsfield units.
        centre: (3,) middle of the fine voxels, metres, in the CT's LPS axes: they are ``patient``.
        size: of the fine voxels, metres; the rest of the CT is coarse and for X-rays only.
        spacing: of the fine voxels, metres.
        name: becomes the patient's ``region``.

    Raises:
        AnatomyError: the box is not in the CT, or there is no bone or no body in it.
    """
    body = body_of(ct)
    grid = _grid(ct, np.asarray(centre, float), np.array(size), spacing)
    solids = dict(_solids(labels, rules, grid))
    outer = _solid(_crop(Volume(body, ct.patient_T_voxel), grid, _SKIN_MARGIN + _MARGIN), grid,
                   _SKIN_SPACING, _SKIN_MARGIN)
    bony = _bone_mask(ct, body, labels, rules, grid)
    if outer is None or not bony.values.any():
        raise AnatomyError(f'no {"body" if outer is None else "bone"} within {1e3 * max(size):.0f} '
                           f'mm of {np.round(1e3 * np.asarray(centre)).tolist()} mm (LPS); move '
                           'the centre')
    # Bone and skin are asked for anywhere in the box, not only near themselves.
    bone = _solid(bony, grid, _SOLID_SPACING)
    assert bone is not None
    solids |= {'bone': bone, 'skin': outer}
    surround, share = _surround(ct, body, grid)
    volumes = _voxels(ct, grid, rules, {key: solid.shape() for key, solid in solids.items()})
    _fade(volumes, grid, surround, share)
    return Imported(name, grid, volumes, surround, solids)


def _grid(ct: Volume, centre: Points, size: Array, spacing: float) -> Grid:
    """Return whole voxels of the surround round the centre, cut at the CT's ends."""
    corners = _corners(ct)
    step = _COARSE * spacing
    lower = np.maximum(centre - size / 2, corners.min(axis=0))
    upper = np.minimum(centre + size / 2, corners.max(axis=0))
    counts = np.floor((upper - lower) / step + 1e-6)
    if np.any(counts < 4 * _RAMP):
        raise AnatomyError(f'the box round {np.round(1e3 * centre).tolist()} mm is not in the CT, '
                           f'which reaches from {np.round(1e3 * corners.min(axis=0)).tolist()} to '
                           f'{np.round(1e3 * corners.max(axis=0)).tolist()} mm (LPS)')
    return Grid.covering(lower, lower + counts * step, spacing)


def _corners(volume: Volume) -> Points:
    ends = np.array(volume.values.shape[::-1]) - 1
    choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
    return transform_points(volume.patient_T_voxel, choice * ends)


def body_of(ct: Volume) -> NDArray[np.bool_]:
    """Return what of a CT is the patient: the largest thing, gas in it too, without the table."""
    dense = ct.values > _BODY
    # Wide enough to part a table that touches the back; padding counts in voxels of a slice.
    width = max(round(0.004 / float(ct.spacing[:2].min())), 1)
    core = ndimage.binary_opening(dense, np.ones((1, width, width), bool))
    parts, count = ndimage.label(core)
    if not count:
        raise AnatomyError('the CT shows no body: nothing is denser than '
                           f'{_BODY:.0f} Hounsfield units; check its rescale')
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    grown = ndimage.binary_dilation(parts == largest, np.ones((1, width, width), bool)) & dense
    return np.stack([ndimage.binary_fill_holes(layer) for layer in grown])


def _crop(volume: Volume, grid: Grid, margin: float = _MARGIN) -> Volume:
    """Return what of a volume is in a grid and a margin round it; at least one voxel."""
    ends = np.array(grid.shape[::-1]) - 1
    choice = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8).T
    places = grid.origin + grid.spacing * choice * ends + margin * (2 * choice - 1)
    cells = transform_points(np.asarray(np.linalg.inv(volume.patient_T_voxel)), places)
    limits = np.array(volume.values.shape[::-1])
    low = np.clip(np.floor(cells.min(axis=0)).astype(int), 0, limits - 1)
    high = np.clip(np.ceil(cells.max(axis=0)).astype(int) + 1, low + 1, limits)
    affine = volume.patient_T_voxel.copy()
    affine[:3, 3] = transform_points(volume.patient_T_voxel, low.astype(float))
    window = tuple(slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))
    return Volume(volume.values[window], affine)


def sampled(volume: Volume, grid: Grid, order: int = 1) -> Field:
    """Return a volume at the voxels of a grid, (Z, Y, X) float32; its ends go on outside it."""
    inverse = np.asarray(np.linalg.inv(volume.patient_T_voxel))
    start = transform_points(inverse, grid.origin)[::-1]
    matrix = inverse[:3, :3][::-1, ::-1] * grid.spacing
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
        matrix = np.diag(matrix).copy()  # along the axes SciPy is quicker
    return np.asarray(ndimage.affine_transform(
        volume.values.astype(np.float32), matrix, start, output_shape=grid.shape, order=order,
        mode='nearest'), np.float32)


def _solid(mask: Volume, grid: Grid, spacing: float, margin: float = 0.0) -> Solid | None:
    """Return the signed distances of a mask on a coarser grid over the same box, or None."""
    if not mask.values.any():
        return None
    millimetres = 1e3 * mask.spacing[::-1]
    # Distances are to the next voxel's middle, and the surface is half a voxel nearer.
    half = 0.5 * float(np.prod(millimetres)) ** (1.0 / 3.0)
    field = np.where(mask.values, half - ndimage.distance_transform_edt(mask.values, millimetres),
                     ndimage.distance_transform_edt(~mask.values, millimetres) - half)
    # Steps of the mask are smoothed.
    field = ndimage.gaussian_filter(field.astype(np.float32), 0.6)
    lower = grid.origin - grid.spacing / 2 - margin
    size = np.array(grid.shape[::-1]) * grid.spacing + 2 * margin
    counts = np.ceil(size / spacing - 1e-6)
    coarse = Grid.covering(lower, lower + counts * spacing, spacing)
    distance = 1e-3 * sampled(Volume(field, mask.patient_T_voxel), coarse)
    # Between two voxels further apart than the mean the field rises too fast.
    slope = np.sqrt(sum(part**2 for part in np.gradient(distance, spacing)))
    return Solid.of(coarse, distance / np.maximum(slope, 1.0))


def _solids(labels: Volume, rules: Mapping[str, LabelRule],
            grid: Grid) -> Iterator[tuple[str, Solid]]:
    """Yield every structure that is in the grid or near it, each on a box of its own."""
    near = _crop(labels, grid)
    for name, rule in rules.items():
        mask = np.isin(near.values, rule.labels)
        if not mask.any():
            continue
        held = np.argwhere(mask)[:, ::-1]
        ends = transform_points(near.patient_T_voxel, np.array(
            [held.min(axis=0) - 0.5, held.max(axis=0) + 0.5]))
        low, high = ends.min(axis=0) - 0.012, ends.max(axis=0) + 0.012
        box = Grid.covering(low, high, _SOLID_SPACING)
        solid = _solid(_crop(Volume(mask, near.patient_T_voxel), box), box, _SOLID_SPACING)
        assert solid is not None
        yield name, solid


def _bone_mask(ct: Volume, body: NDArray[np.bool_], labels: Volume,
               rules: Mapping[str, LabelRule], grid: Grid) -> Volume:
    """Return what is bone: by its label, or by Hounsfield units where there is no label."""
    near = _crop(ct, grid)
    inside = _crop(Volume(body, ct.patient_T_voxel), grid).values
    found = _labels_on(near, labels)
    is_bone = np.isin(found, [label for rule in rules.values() if rule.tissue in _BONES
                              for label in rule.labels])
    known = np.isin(found, [label for rule in rules.values() for label in rule.labels])
    smooth = ndimage.gaussian_filter(near.values.astype(np.float32), 0.5)
    return Volume(is_bone | (inside & ~known & (smooth > _BONY)), near.patient_T_voxel)


def _labels_on(volume: Volume, labels: Volume) -> NDArray[Any]:
    """Return the nearest label of every voxel of another volume; 0 outside the label map."""
    if (labels.values.shape == volume.values.shape
            and np.allclose(labels.patient_T_voxel, volume.patient_T_voxel, atol=1e-7)):
        return labels.values
    to = np.linalg.inv(labels.patient_T_voxel) @ volume.patient_T_voxel
    return np.asarray(ndimage.affine_transform(
        np.asarray(labels.values, np.int32), to[:3, :3][::-1, ::-1], to[:3, 3][::-1],
        output_shape=volume.values.shape, order=0, mode='constant'))


def mixture(hounsfield: Field) -> tuple[Field, Field]:
    """Split bone into soft tissue and compact bone at the CT's effective energy.

    Returns:
        Volume share of compact bone, and density of the rest over water's: what
        ``Patient.mineral`` (as 255) and ``Patient.density`` (as ``WATER_LEVEL``) hold.
    """
    soft = np.float32(PROPERTIES[Tissue.MUSCLE].density)
    rest = np.float32(PROPERTIES[Tissue.CORTICAL].density)
    attenuation = np.maximum(1.0 + hounsfield / np.float32(1000.0), 0.0)
    share = np.clip((attenuation - soft) / (BONE_OVER_WATER + rest - soft), 0.0, 1.0)
    density = np.where(share > 0.0, soft + share * (rest - soft), np.minimum(attenuation, soft))
    return np.asarray(share, np.float32), np.asarray(density, np.float32)


def _voxels(ct: Volume, grid: Grid, rules: Mapping[str, LabelRule],
            structures: Mapping[str, Shape]) -> dict[str, Voxels]:
    """Return the fine volumes of a patient."""
    near = _crop(ct, grid)
    axes = grid.axes()
    skin = _on_grid(structures['skin'], grid)
    hounsfield = np.where(skin < 0.0, sampled(near, grid), np.float32(-1000.0))
    calm = Volume(ndimage.gaussian_filter(near.values.astype(np.float32),
                                          0.0008 / near.spacing[::-1]), near.patient_T_voxel)
    smooth = sampled(calm, grid)
    labels = np.where(smooth > _LEAN, np.uint8(Tissue.MUSCLE), np.uint8(Tissue.FAT))
    sheets = _fascia(smooth, grid)
    for name, rule in rules.items():
        if name in structures and rule.tissue not in _BONES:
            _paint(labels, sheets, grid, structures[name], rule.tissue, axes)
    gas = (smooth < _BODY) & (skin < -0.003)
    labels[gas] = Tissue.GAS
    labels[skin > -_SKIN] = Tissue.SKIN
    labels[skin > 0.0] = Tissue.AIR
    sheets[(skin > -_SKIN) | gas] = 0
    bone = _on_grid(structures['bone'], grid)
    labels[bone < 0.0] = Tissue.CORTICAL
    labels[bone < -CORTEX] = Tissue.CANCELLOUS
    sheets[bone < grid.spacing] = 0
    share, density = mixture(hounsfield)
    soft = np.clip(1.0 + hounsfield / np.float32(1000.0), 0.0, 255.0 / WATER_LEVEL)
    # Contrast medium is no bone, but dims a beam much as bone does.
    near_bone = (bone < _HALO) | (smooth > _BONY)
    density = np.where(near_bone, density, soft)
    share[~near_bone] = 0.0
    full = np.clip(0.5 - bone / np.float32(grid.spacing), 0.0, 1.0)
    return {'labels': labels, 'mineral': _bytes(255.0 * share), 'bone': _bytes(255.0 * full),
            'sheets': sheets, 'density': _bytes(WATER_LEVEL * density)}


def _bytes(values: Array | Field) -> Voxels:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _on_grid(shape: Shape, grid: Grid) -> Field:
    """Return a solid's distances at every voxel, slice by slice, float32."""
    x, y, z = grid.axes()
    field = np.empty(grid.shape, np.float32)
    for index in range(grid.shape[0]):
        field[index] = shape.distance(x[0], y[0], z[index])
    return field


def _paint(labels: Voxels, sheets: Voxels, grid: Grid, shape: Shape, tissue: Tissue,
           axes: tuple[Field, Field, Field]) -> None:
    """Paint a structure and its wall."""
    window = grid.window(shape.lower, shape.upper)
    if any(piece.stop <= piece.start for piece in window):
        return
    x, y, z = axes
    field = shape.distance(x[..., window[2]], y[:, window[1]], z[window[0]])
    labels[window][field < 0.0] = tissue
    wall = (110.0 * np.exp(-(field / 0.0006) ** 2)).astype(np.uint8)
    sheets[window] = np.maximum(np.where(field < 0.0, 0, sheets[window]), wall)


def _fascia(smooth: Field, grid: Grid) -> Voxels:
    """Return sheets where fat meets muscle: there the CT passes between their values."""
    slope = np.sqrt(sum(part**2 for part in np.gradient(smooth, grid.spacing)))
    away = np.abs(smooth - np.float32(_LEAN)) / np.maximum(slope, 1.0)
    # Fat and muscle differ by some 150 units within a millimetre or two; noise by less.
    edge = np.clip(slope / np.float32(40e3) - 0.25, 0.0, 1.0) * (smooth > -250.0)
    return np.asarray(110.0 * edge * np.exp(-(away / np.float32(0.0006)) ** 2), np.uint8)


def _surround(ct: Volume, body: NDArray[np.bool_], fine: Grid) -> tuple[Surround, Field]:
    """Return the CT outside the fine voxels, bone as the water that attenuates as much.

    Just inside the faces of the fine voxels it takes over little by little.

    Returns:
        The surround, and the share of each of its voxels that is not left to the fine ones.
    """
    step = _COARSE * fine.spacing
    lower = fine.origin - fine.spacing / 2
    inner = np.array(fine.shape[::-1]) // _COARSE
    corners = _corners(ct)
    before = np.maximum(np.ceil((lower - corners.min(axis=0)) / step), 0).astype(int)
    after = np.maximum(np.ceil((corners.max(axis=0) - lower) / step) - inner, 0).astype(int)
    start = lower - before * step
    grid = Grid.covering(start, start + (before + inner + after) * step, step)
    water = np.where(body, np.maximum(1.0 + ct.values / np.float32(1000.0), 0.0), np.float32(0.0))
    calm = ndimage.gaussian_filter(np.asarray(water, np.float32), 0.4 * step / ct.spacing[::-1])
    density = WATER_LEVEL * sampled(Volume(calm, ct.patient_T_voxel), grid)
    # Beyond its ends a CT does not go on.
    axes = [start[axis] + step * (np.arange(grid.shape[2 - axis]) + 0.5) for axis in range(3)]
    kept = [(line > low) & (line < high) for line, low, high in zip(
        axes, corners.min(axis=0), corners.max(axis=0), strict=True)]
    density *= kept[2][:, None, None] & kept[1][:, None] & kept[0]
    # At an end of the CT nothing goes on: the fine voxels keep all.
    left = [ramp(int(first), int(count), int(first + count + end), bool(first), bool(end), _RAMP)
            for first, count, end in zip(before, inner, after, strict=True)]
    share = 1.0 - left[2][:, None, None] * left[1][:, None] * left[0]
    return Surround(grid, _bytes(density * share)), share


def _fade(volumes: Mapping[str, Voxels], fine: Grid, surround: Surround, share: Field) -> None:
    """Take off the fine volumes, in place, what X-rays meet in the surround already.

    Both are interpolated linearly, so what they add up to is exact, and no edge of the box shows.
    """
    affine = np.diag([*[surround.grid.spacing] * 3, 1.0])
    affine[:3, 3] = surround.grid.origin
    left = 1.0 - sampled(Volume(share, affine), fine)
    for name in ('density', 'mineral'):
        volumes[name][:] = _bytes(volumes[name] * left)


_FORMAT = 1


def save_imported(folder: Path, imported: Imported, about: Mapping[str, Any]) -> Path:
    """Write ``patient.yaml``, which is a region like those of ``config/anatomy``, and its voxels.

    Args:
        folder: made if missing.
        imported: the patient.
        about: where it is from, kept in the file for people.

    Returns:
        The path of ``patient.yaml``: the ``region`` of a procedure.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {'format': _FORMAT, 'grid': _numbers(imported.grid),
                              'surround': imported.surround.density,
                              'surround.grid': _numbers(imported.surround.grid),
                              **{f'volume.{name}': voxels
                                 for name, voxels in imported.volumes.items()}}
    for name, solid in imported.solids.items():
        arrays[f'solid.{name}'] = solid.steps
        arrays[f'solid.{name}.grid'] = _numbers(solid.grid)
    np.savez_compressed(folder / VOXELS, **arrays)
    path = folder / 'patient.yaml'
    path.write_text(yaml.safe_dump(
        {'region': imported.region, 'voxels': VOXELS, 'structures': sorted(imported.solids),
         'about': dict(about)}, sort_keys=False), encoding='utf-8')
    return path


def _numbers(grid: Grid) -> Array:
    return np.array([*grid.origin, grid.spacing])


def load_imported(path: Path) -> Imported:
    """Read a patient that ``save_imported`` wrote.

    Args:
        path: of its ``patient.yaml``.

    Raises:
        AnatomyError: its voxels are missing, damaged or of another version.
    """
    with _opened(path) as (region, arrays):
        grid = _grid_of(arrays, 'grid', arrays['volume.labels'].shape)
        volumes = {name.removeprefix('volume.'): arrays[name] for name in arrays
                   if name.startswith('volume.')}
        density = arrays['surround']
        surround = Surround(_grid_of(arrays, 'surround.grid', density.shape), density)
        return Imported(region, grid, volumes, surround, _kept_solids(arrays))


def load_solids(path: Path) -> dict[str, Shape]:
    """Return the structures of an imported patient, without its voxels.

    Raises:
        AnatomyError: as ``load_imported``.
    """
    with _opened(path) as (_, arrays):
        return {name: solid.shape() for name, solid in _kept_solids(arrays).items()}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        with np.load(path.parent / content['voxels'], allow_pickle=False) as arrays:
            if int(arrays['format']) != _FORMAT:
                raise ValueError(f'format {int(arrays["format"])}, not {_FORMAT}')
            yield str(content['region']), arrays
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, BadZipFile,
            zlib.error) as error:
        raise AnatomyError(f'{path}: its voxels cannot be read ({error}); import the patient '
                           'again') from error


def _grid_of(arrays: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Grid:
    numbers = arrays[name]
    return Grid(numbers[:3], float(numbers[3]), (shape[0], shape[1], shape[2]))


def _kept_solids(arrays: Mapping[str, Any]) -> dict[str, Solid]:
    solids = {}
    for key in arrays:
        if key.startswith('solid.') and not key.endswith('.grid'):
            steps = arrays[key]
            grid = _grid_of(arrays, f'{key}.grid', steps.shape)
            solids[key.removeprefix('solid.')] = Solid(grid, steps)
    return solids
