"""The bone of a CT, ready to be rendered as X-rays see it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Image, Points
from hybrid_guidance.registration.result import RegistrationError
from hybrid_guidance.simulation.anatomy import Grid
from hybrid_guidance.simulation.xray import Stack

_SPACINGS = (0.003, 0.0016, 0.001)
# Hounsfield units at which bone begins, and that one step of a voxel stands for.
_SOFT, _STEP = 100.0, 5.0
# How far from the faces of the volume bone fades: a cut bone is no edge of the patient, metres.
_FADE = 0.012

Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Bone:
    """The bone of a CT, ready to be rendered at several resolutions.

    Attributes:
        stacks: from coarse to fine.
        spacings: edges of their voxels, metres.
        centre: (3,) metres, middle of the bone, in ``moving``.
    """

    stacks: tuple[Stack, ...]
    spacings: tuple[float, ...]
    centre: Points

    @classmethod
    def from_hounsfield(cls, volume: Image, origin: Points, spacing: Array,
                        mask: NDArray[np.bool_] | None = None,
                        spacings: Sequence[float] = _SPACINGS) -> 'Bone':
        """Take the bone out of a CT.

        Args:
            volume: (Z, Y, X) Hounsfield units, axes along those of ``moving``.
            origin: (3,) metres, x, y, z of the first voxel's centre.
            spacing: (3,) metres, x, y, z.
            mask: (Z, Y, X) True where bone counts (one vertebra, a block), a little larger
                than the bone itself; None is everywhere.
            spacings: from coarse to fine, metres.

        Raises:
            RegistrationError: no bone.
        """
        bone = np.clip((np.asarray(volume, np.float32) - _SOFT) / _STEP, 0.0, 255.0)
        if mask is not None:
            bone *= mask
        bone *= _faded(bone.shape, np.asarray(spacing, float)[::-1])
        if not np.any(bone > 20.0):
            raise RegistrationError('the CT has no bone above 200 HU there; check its units and '
                                    'the region')
        place = [np.average(np.arange(count), weights=bone.sum(axis=tuple(
            axis for axis in range(3) if axis != which))) for which, count in enumerate(bone.shape)]
        stacks = []
        for edge in spacings:
            voxels, start = _resampled(bone, np.asarray(origin, float), np.asarray(spacing, float),
                                       edge)
            stacks.append(Stack(voxels, Grid(start, edge, voxels.shape)))
        return cls(tuple(stacks), tuple(spacings), origin + spacing * np.array(place[::-1]))


def _faded(shape: tuple[int, ...], spacing: Array) -> Picture:
    """Return what is left of bone near the faces of the volume, (Z, Y, X)."""
    ramps = (step / _FADE * np.minimum(np.arange(count), np.arange(count)[::-1])
             for count, step in zip(shape, spacing, strict=True))
    z, y, x = (np.clip(ramp, 0.0, 1.0) for ramp in ramps)
    return np.asarray(z[:, None, None] * y[:, None] * x, np.float32)


def _resampled(volume: Picture, origin: Points, spacing: Array,
               edge: float) -> tuple[NDArray[np.uint8], Points]:
    """Return a volume in cubic voxels, (Z, Y, X) uint8, and the centre of its first voxel."""
    start = origin.copy()
    for axis in range(3):
        width = float(spacing[2 - axis])
        count = max(round(volume.shape[axis] * width / edge), 1)
        flat = np.moveaxis(volume, axis, 0).reshape(volume.shape[axis], -1)
        rest = [size for which, size in enumerate(volume.shape) if which != axis]
        place = np.asarray((np.arange(count) + 0.5) * edge / width - 0.5, float)
        volume = np.moveaxis(_averaged(flat, place, edge / width).reshape(count, *rest), 0, axis)
        start[2 - axis] += place[0] * width
    return np.ascontiguousarray(np.clip(np.round(volume), 0, 255).astype(np.uint8)), start


def _averaged(rows: Picture, place: Array, width: float) -> Picture:
    """Return rows interpolated at places (in rows), each averaged over a width."""
    result = np.zeros((len(place), rows.shape[1]), np.float32)
    steps = max(int(np.ceil(width)), 1)
    for step in range(steps):
        at = np.clip(place + ((step + 0.5) / steps - 0.5) * width * (steps > 1), 0.0,
                     len(rows) - 1.0)
        low = np.minimum(at.astype(int), max(len(rows) - 2, 0))
        share = (at - low).astype(np.float32)[:, None]
        high = np.minimum(low + 1, len(rows) - 1)
        result += (rows[low] * (1 - share) + rows[high] * share) / np.float32(steps)
    return result
