"""The bone of a CT near a target: where its surface is, and what X-rays see of it."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Array, Image, Points
from hybrid_guidance.imaging.volume import Volume, read_volume
from hybrid_guidance.procedure import Procedure
from hybrid_guidance.registration.bone import Bone
from hybrid_guidance.registration.result import RegistrationError
from hybrid_guidance.registration.surface import BoneField
from hybrid_guidance.simulation.anatomy import build_patient
from hybrid_guidance.simulation.scanner import scanned

REACH = np.array([0.085, 0.06, 0.075])
"""How far from the target a sweep over bone goes, metres along x, y, z."""

BONE = 200.0
"""Hounsfield units that the densest place of a piece of bone has at least."""

# Of what lies on bone: muscle, cartilage.
_SOFT = 50.0
# Where in its cortex the densest place is looked for, metres.
_CORTEX = 0.002

# How much larger than its labels a masked bone is, metres: gradients need its edge.
_ROUND = 0.004
# Of the place of a bone's surface, and the width over which it is smoothed, in voxels of the CT.
_DOUBT, _SMOOTH = 0.3, 0.6
# What is parted from the rest and smaller is no bone (vessels, contrast medium), m³.
_SPECK = 1e-7
# Marrow and the sutures of a cortex thinner than a voxel are closed over this, metres.
_GAP = 0.002


@dataclass(frozen=True)
class Scan:
    """A CT along the axes of the patient.

    Attributes:
        values: (Z, Y, X) Hounsfield units.
        origin: (3,) metres, x, y, z of the first voxel's centre.
        spacing: (3,) metres, x, y, z.
        mask: (Z, Y, X) True where bone counts; None is everywhere.
    """

    values: Image
    origin: Points
    spacing: Array
    mask: NDArray[np.bool_] | None = None

    def near(self, target: Points, reach: float | Array) -> 'Scan':
        """Return what lies within a reach of the target along each axis.

        Raises:
            RegistrationError: nothing does.
        """
        size = np.array(self.values.shape[::-1])
        first, last = (np.clip(np.rint((target + side * np.asarray(reach) - self.origin)
                                       / self.spacing), 0, size).astype(int) for side in (-1, 1))
        part = tuple(slice(*ends) for ends in zip(first[::-1], last[::-1], strict=True))
        if min(self.values[part].shape) < 2:
            raise RegistrationError('the CT does not hold the target '
                                    f'{np.round(1e3 * target, 1).tolist()} mm (LPS)')
        return Scan(self.values[part], self.origin + first * self.spacing, self.spacing,
                    None if self.mask is None else self.mask[part])

    def bone(self) -> Bone:
        """Return the bone as X-rays see it."""
        return Bone.from_hounsfield(self.values, self.origin, self.spacing, self.mask)

    def surface(self, least: float = BONE, edge: float = 0.001) -> BoneField:
        """Return the signed distance to bone.

        Its surface is where half of the way from soft tissue to the densest place of the cortex
        behind is gone: a fixed level moves outwards with the blur of a CT (Prevrhal et al., Phys.
        Med. Biol. 1999). Distances are smoothed: a surface has no steps of voxels.

        Args:
            least: Hounsfield units of the densest place of bone.
            edge: metres, of the cells of the field.

        Raises:
            RegistrationError: no bone.
        """
        upper = self.origin + self.spacing * (np.array(self.values.shape[::-1]) - 1)
        counts = np.floor((upper - self.origin) / edge + 1e-6).astype(int) + 1
        step = edge / self.spacing
        values = ndimage.affine_transform(
            np.asarray(self.values, np.float32), np.diag(step[::-1]), output_shape=counts[::-1],
            order=1)
        values = ndimage.gaussian_filter(values, 0.5)
        if self.mask is not None:
            kept = ndimage.affine_transform(self.mask.astype(np.float32), np.diag(step[::-1]),
                                            output_shape=counts[::-1], order=1) > 0.5
            values = np.where(kept, values, np.minimum(values, _SOFT))
        densest = ndimage.maximum_filter(values, 2 * round(_CORTEX / edge) + 1)
        excess = values - 0.5 * (np.maximum(densest, least) + _SOFT)
        distance = _signed_distance(np.asarray(excess, np.float32), edge)
        distance = ndimage.gaussian_filter(distance, _SMOOTH * self.spacing[::-1] / edge)
        return BoneField(self.origin, edge, np.asarray(distance.transpose(2, 1, 0), float),
                         _DOUBT * self.spacing)


def aligned(volume: Volume, edge: float = 0.001) -> tuple[Image, Points, Array]:
    """Return a volume as (values, origin, spacing) along the axes of the patient.

    One whose slices lie square to them (most CTs) is turned; any other is interpolated.

    Args:
        volume: of a CT or of labels.
        edge: metres, of the voxels where it is interpolated.
    """
    turn = volume.patient_T_voxel[:3, :3] / volume.spacing
    if np.abs(np.abs(turn) - np.rint(np.abs(turn))).max() < 1e-3:
        # Which axis of the file runs along x, y, z of the patient, and whether backwards.
        order = np.argmax(np.abs(turn), axis=1)
        backwards = [bool(turn[axis, which] < 0.0) for axis, which in enumerate(order)]
        values = volume.values.transpose([2 - order[axis] for axis in (2, 1, 0)])
        values = values[tuple(slice(None, None, -1 if backwards[axis] else 1)
                              for axis in (2, 1, 0))]
        first = np.zeros(3)
        for axis, which in enumerate(order):
            if backwards[axis]:
                first[which] = volume.values.shape[2 - which] - 1
        return values, transform_points(volume.patient_T_voxel, first), volume.spacing[order]
    ends = [(0.0, count - 1.0) for count in volume.values.shape[::-1]]
    corners = transform_points(volume.patient_T_voxel, np.array(list(product(*ends)), np.float64))
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    shape = np.ceil((upper - lower) / edge).astype(int) + 1
    voxel_T_patient = np.linalg.inv(volume.patient_T_voxel)
    matrix = edge * voxel_T_patient[:3, :3]
    start = transform_points(np.asarray(voxel_T_patient, float), lower)
    values = ndimage.affine_transform(volume.values.astype(np.float32), matrix[::-1, ::-1],
                                      start[::-1], tuple(shape[::-1]), order=1,
                                      cval=float(volume.values.min()))
    return values, lower, np.full(3, edge)


def _signed_distance(excess: NDArray[np.float32], edge: float) -> NDArray[np.float32]:
    """Return metres to where ``excess`` is zero at the outside of bone, negative inside."""
    solid = excess > 0.0
    labels, count = ndimage.label(solid)
    small = np.bincount(labels.ravel(), minlength=count + 1) * edge**3 < _SPECK
    solid &= ~small[labels]
    if not solid.any():
        raise RegistrationError('the CT has no bone near the target; check its units, the target '
                                'and the level of bone')
    ball = _ball(round(_GAP / edge))
    closed = solid | ndimage.binary_closing(np.pad(solid, len(ball)), ball)[
        tuple(slice(len(ball), -len(ball)) for _ in range(3))]
    for layer in closed:
        ndimage.binary_fill_holes(layer, output=layer)
    excess = np.where(closed & ~solid, np.float32(1e3), np.where(closed, excess,
                                                                np.minimum(excess, -1.0)))
    toward = _crossings(excess)
    steep = np.sqrt((toward**2).sum(axis=0))
    seeds = steep > 0.0
    feet = np.indices(excess.shape, np.float32) + toward / np.maximum(steep, 1e-6)**2
    nearest = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    away = np.indices(excess.shape, np.float32) - feet[:, nearest[0], nearest[1], nearest[2]]
    length = edge * np.sqrt((away**2).sum(axis=0))
    return np.asarray(np.where(closed, -length, length), np.float32)


def _crossings(excess: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how near the surface is along each axis, (3, Z, Y, X): 1 / cells, 0 where it is not.

    A plane that crosses the axes at a, b, c is at 1 / sqrt(1/a² + 1/b² + 1/c²).
    """
    found = np.zeros((3, *excess.shape), np.float32)
    for axis in range(3):
        here, ahead = (np.moveaxis(excess, axis, 0)[part] for part in (slice(-1), slice(1, None)))
        own = np.moveaxis(found[axis], axis, 0)
        crossed = (here > 0.0) != (ahead > 0.0)
        share = np.where(crossed, here / np.where(crossed, here - ahead, 1.0), 0.5)
        share = np.clip(share, 0.02, 0.98)
        own[:-1] = np.where(crossed, 1.0 / share, 0.0)
        back = np.where(crossed, -1.0 / (1.0 - share), 0.0)
        own[1:] = np.where(np.abs(back) > np.abs(own[1:]), back, own[1:])
    return found


def _ball(radius: int) -> NDArray[np.bool_]:
    line = np.arange(-radius, radius + 1)
    return np.asarray(line[:, None, None]**2 + line[:, None]**2 + line**2 <= radius**2 + 1)


def read_scan(path: Path, labels: Path | None = None, chosen: Collection[int] = ()) -> Scan:
    """Read a CT, and which bones of a label map count.

    Args:
        path: .nii, .nii.gz, .nrrd or folder of DICOM slices.
        labels: label map of the same patient, on the same grid.
        chosen: labels that count; none are all.

    Raises:
        RegistrationError: labels are chosen without a label map, or on another grid.
    """
    values, origin, spacing = aligned(read_volume(path))
    if not chosen:
        return Scan(values, origin, spacing)
    if labels is None:
        raise RegistrationError('--label needs the label map; name it with --labels')
    marks, place, _ = aligned(read_volume(labels))
    if marks.shape != values.shape or not np.allclose(place, origin, atol=1e-4):
        raise RegistrationError(f'{labels}: is on another grid than {path}; resample it to that '
                                'of the CT')
    distance = ndimage.distance_transform_edt(~np.isin(marks, list(chosen)),
                                              sampling=tuple(spacing[::-1]))
    return Scan(values, origin, spacing, np.asarray(distance < _ROUND))


def named_scan(name: str, procedure: Procedure, seed: int) -> Scan:
    """Return the CT that a node's parameter names.

    Args:
        name: ``simulated``, the ``patient.yaml`` of an imported patient, or a path for
            ``read_scan``.
        procedure: whose region is simulated.
        seed: of the simulated patient.

    Raises:
        AnatomyError, SourceError, RegistrationError: there is none that can be used.
    """
    if name != 'simulated' and not name.endswith('.yaml'):
        return read_scan(Path(name))
    region = procedure.region if name == 'simulated' else name
    made = scanned(build_patient(region, seed, procedure.target), seed)
    return Scan(made.volume, made.origin, made.spacing)
