"""The CT that a scanner makes of a digital patient: thicker slices, blur, noise."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Points
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.tissues import WATER_LEVEL, density_table

# Of water, at the effective energy of a CT: 1 500 HU for compact bone beside its own 10 % of
# soft tissue (ICRU Report 44: 1.92 g/cm³).
_MINERAL = 2400.0


@dataclass(frozen=True)
class Tomogram:
    """A CT, its axes along those of ``patient``.

    Attributes:
        volume: (Z, Y, X) int16, Hounsfield units.
        origin: (3,) metres, x, y, z of the first voxel's centre.
        spacing: (3,) metres, x, y, z.
    """

    volume: NDArray[np.int16]
    origin: Points
    spacing: Array


def scanned(patient: Patient, seed: int = 0, spacing: tuple[float, float, float] = (
        0.0009, 0.0009, 0.0015), crop: float = 0.015, noise: float = 20.0) -> Tomogram:
    """Return a CT of a digital patient.

    Args:
        patient: in voxels.
        seed: of the noise and of where the first voxel lies.
        spacing: metres, x, y, z; every voxel is the mean over its edges.
        crop: metres that the scan leaves out at the top and at the bottom.
        noise: Hounsfield units.
    """
    random = np.random.default_rng([seed, 0xC7])
    soft = cv2.LUT(patient.labels, density_table()).astype(np.float32)
    volume = 1000.0 / WATER_LEVEL * soft + _MINERAL / 255.0 * patient.mineral - 1000.0
    grid, edges = patient.grid, np.asarray(spacing)
    first = random.uniform(0.0, 1.0, 3) * edges + [0.0, 0.0, crop]
    size = np.array(grid.shape[::-1]) * grid.spacing - first - [0.0, 0.0, crop]
    for axis in range(3):
        edge, count = edges[2 - axis], int(size[2 - axis] / edges[2 - axis])
        places = first[2 - axis] + np.arange(count) * edge
        # A voxel is the mean over its edge, here of three places in it.
        thirds = [_along(volume, axis, (places + part * edge) / grid.spacing)
                  for part in (-1 / 3, 0.0, 1 / 3)]
        volume = np.asarray(sum(thirds), np.float32) / np.float32(3.0)
    volume = volume + noise * random.standard_normal(volume.shape, dtype=np.float32)
    return Tomogram(np.round(volume).astype(np.int16), grid.origin + first, edges)


def _along(volume: NDArray[np.float32], axis: int, places: Array) -> NDArray[np.float32]:
    """Return a volume interpolated at places (in voxels) along one axis."""
    places = np.clip(places, 0.0, volume.shape[axis] - 1.0)
    low = np.minimum(places.astype(int), volume.shape[axis] - 2)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (places - low).astype(np.float32).reshape(shape)
    below, above = np.take(volume, low, axis), np.take(volume, low + 1, axis)
    return np.asarray(below + share * (above - below), np.float32)
