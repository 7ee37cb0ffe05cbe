"""The echo of needles: bright where square to the beam, with a tail, and a shadow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.simulation.beams import COARSE, Beams, Polar, Scan
from hybrid_guidance.simulation.instruments import Needle
from hybrid_guidance.simulation.speckle import kernel

_STEP = 0.00012
# Less of a shaft than this in the slice is not worth an echo.
_ABSENT = 1e-4


@dataclass(frozen=True)
class Shaft:
    """The points of needles that lie in the sector.

    Attributes:
        beams: (N,) fractional.
        samples: (N,) fractional.
        presence: (N,) how much of it is in the slice, 0 to 1.
        amplitude: (N,) of the echo in tissue that takes no sound.
        tail: (N,) samples from an echo to the next out of the steel.
    """

    beams: Array
    samples: Array
    presence: Array
    amplitude: Array
    tail: Array


class ShaftEcho:
    """How one probe sees needles.

    Args:
        beams: where samples lie.
        scan: slice thickness, echo and reverberation of steel.
        seed: of the roughness of the steel.
    """

    def __init__(self, beams: Beams, scan: Scan, seed: int) -> None:
        self._beams, self._scan = beams, scan
        self._roughness = _roughness(seed)

    def shaft(self, image_T_patient: Transform, needles: Sequence[Needle]) -> Shaft | None:
        """Return what of needles is in the slice; None if nothing.

        The echo lies on the axis: the front wall is nearer by less than the pulse is long.
        """
        lengths = np.array([needle.length for needle in needles])
        ends = np.cumsum(lengths)
        place = np.arange(0.0, ends[-1], _STEP)
        piece = np.minimum(np.searchsorted(ends, place, side='right'), len(ends) - 1)
        along = place - (ends - lengths)[piece]
        poses = image_T_patient @ np.stack([needle.pose for needle in needles])
        points = poses[piece, :3, 3] - along[:, None] * poses[piece, :3, 2]
        columns, rows = self._beams.polar(points[:, :2])
        presence = self._presence(points[:, 2], rows * self._beams.step)
        inside = np.flatnonzero(
            (columns >= 0) & (columns < self._beams.shape[1] - 1) & (rows >= 0)
            & (rows < self._beams.shape[0] - 1) & (presence > _ABSENT))
        if not len(inside):
            return None
        piece, presence = piece[inside], presence[inside]
        grain = self._roughness[(place[inside] / _STEP).astype(int) % len(self._roughness)]
        amplitude = presence * np.maximum(1.0 + 0.3 * grain, 0.5)
        amplitude *= self._specular(points[inside, :2], poses[piece, :3, 2])
        glints = np.array([needle.glint for needle in needles])[piece]
        amplitude[glints & (along[inside] < 0.0010)] *= 1.8
        # Sound goes to and fro across steel at 5 900 m/s: it seems nearer than it is.
        tails = np.array([max(needle.diameter * 1540.0 / 5900.0 * 3.0, 0.0003)
                          for needle in needles]) / self._beams.step
        return Shaft(columns[inside], rows[inside], presence, amplitude, tails[piece])

    def _presence(self, aside: Array, depth: Array) -> Array:
        """Return how much of the shaft is in the slice."""
        return np.asarray(np.exp(-0.5 * (aside / self._scan.slice_width(depth)) ** 2))

    def _specular(self, points: Points, direction: Points) -> Array:
        """Return the echo amplitude by the angle between shaft and beam."""
        ways = self._beams.direction(points)
        cosine = ways[:, 0] * direction[:, 0] + ways[:, 1] * direction[:, 1]
        sine = np.sqrt(np.maximum(1.0 - cosine**2, 0.0))
        level = 10.0 ** (self._scan.needle_db / 20.0)
        # Mirror lobe about 12 degrees wide on a diffuse floor: ground steel.
        lobe = np.exp(-0.5 * (np.arccos(sine) / 0.21) ** 2)
        return np.asarray(level * (0.36 * sine**2 + 0.64 * lobe))

    def splat(self, shaft: Shaft, passed: Polar, echo: Polar) -> tuple[slice, slice]:
        """Add echoes and their reverberation, shared between the four nearest samples.

        Args:
            shaft: what is in the slice.
            passed: (rows, beams) share of the sound that comes back from coarse ranges.
            echo: (samples, beams), added to.

        Returns:
            Rows and columns that may have been added to.
        """
        through = passed[(shaft.samples / COARSE).astype(int), shaft.beams.astype(int)]
        pitch = self._beams.pitch(self._beams.step * shaft.samples)
        density = _STEP / np.hypot(0.7 * pitch, 0.7 * self._beams.step)
        order = np.arange(7 if self._scan.reverberation > 0.0 else 1)[:, None]
        rows = shaft.samples + order * shaft.tail
        keep = rows < self._beams.shape[0] - 1
        weight = (shaft.amplitude * through * density * self._scan.reverberation**order)[keep]
        rows, columns = rows[keep], np.broadcast_to(shaft.beams, keep.shape)[keep]
        row, column = rows.astype(int), columns.astype(int)
        v, u = rows - row, columns - column
        first, flat = row * self._beams.shape[1] + column, echo.reshape(-1)
        for offset, share in ((0, (1 - v) * (1 - u)), (1, (1 - v) * u),
                              (self._beams.shape[1], v * (1 - u)),
                              (self._beams.shape[1] + 1, v * u)):
            np.add.at(flat, first + offset, (weight * share).astype(np.float32))
        return (slice(int(row.min()), int(row.max()) + 2),
                slice(int(column.min()), int(column.max()) + 2))

    def darken(self, shaft: Shaft, parts: Polar) -> None:
        """Steel lets little sound through: darken what lies below it, in place.

        Args:
            shaft: what is in the slice.
            parts: (2, samples, beams).
        """
        samples, beams = self._beams.shape
        column = shaft.beams.round().astype(int)
        first, depth = np.full(beams, samples), np.zeros(beams)
        np.minimum.at(first, column, shaft.samples.astype(int))
        np.maximum.at(depth, column, 0.35 * shaft.presence)
        top = int(first.min()) + 5
        window = (slice(top, samples), slice(int(column.min()), int(column.max()) + 1))
        below = np.arange(top, samples)[:, None] > first[window[1]] + 4
        light = np.where(below, np.asarray(1.0 - depth[window[1]], np.float32), np.float32(1.0))
        parts[:, window[0], window[1]] *= light


def _roughness(seed: int) -> NDArray[np.float64]:
    """Return how the echo varies along a shaft, per step, unit variance: ground steel."""
    noise = np.random.default_rng((seed, 5)).standard_normal(4096)
    smooth = np.convolve(noise, kernel(4.0), mode='same')
    return np.asarray(smooth / smooth.std())
