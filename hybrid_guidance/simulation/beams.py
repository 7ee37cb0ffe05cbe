"""Where the samples of an ultrasound frame lie: ranges along the beams of a probe.

Samples form an array of (samples, beams): rows are ranges, columns beams. A point of the slice is
``start + range * way`` of its beam, for any probe. Tissue changes over millimetres, so it is looked
at once in ``COARSE`` samples, and interpolated.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.procedure import Probe

Polar = NDArray[np.float32]
Numbers = NDArray[Any]

COARSE = 4


@dataclass(frozen=True)
class Scan:
    """How a frame is made.

    Attributes:
        beams: lines per frame.
        samples: per line.
        depth: reach below the transducer face, metres.
        pulse: standard deviation of the pulse's envelope along the beam, metres.
        beam_at_focus: standard deviation of the beam in the image plane, metres.
        focus: range of the focus, metres.
        slice_thickness: standard deviation across the image plane at the focus, metres.
        gain_db: added to every echo.
        dynamic_range_db: black to white.
        attenuation_compensated: of the time gain compensation, dB/(cm·MHz).
        noise_db: electronic noise before time gain, against the brightest bone.
        needle_db: echo of a shaft square to the beam.
        reverberation: amplitude of each further echo from within the steel, over the one before.
        cell: edge of the cube that one scatterer stands for, metres; below the pulse's length.
    """

    beams: int = 224
    samples: int = 480
    depth: float = 0.075
    pulse: float = 0.00022
    beam_at_focus: float = 0.00042
    focus: float = 0.040
    slice_thickness: float = 0.0012
    gain_db: float = 4.0
    dynamic_range_db: float = 60.0
    attenuation_compensated: float = 0.62
    noise_db: float = -100.0
    needle_db: float = 2.0
    reverberation: float = 0.36
    cell: float = 0.0004

    def slice_width(self, ranges: Array) -> Array:
        """Return the standard deviation across the image plane at ranges, thinnest at the focus."""
        return np.asarray(self.slice_thickness * np.hypot(1.0, (ranges - self.focus) / 0.030))


def summed_down(values: Polar) -> Polar:
    """Return the running sums down the columns of (rows, N) values.

    In steps of 1, 2, 4... rows: a third of the time that ``np.cumsum`` takes across rows.
    """
    total, step = values.copy(), 1
    while step < len(total):
        total[step:] += total[:-step]
        step *= 2
    return total


class Beams:
    """The samples of a probe's frame.

    Args:
        probe: the transducer.
        scan: how a frame is made.

    Attributes:
        shape: (samples, beams).
        angles: (beams,) radians; of a linear probe metres along the face.
        ranges: (samples,) metres from the face.
        step: metres from a sample to the next.
        coarse: (rows,) ranges of the middles of ``COARSE`` samples each.
    """

    def __init__(self, probe: Probe, scan: Scan) -> None:
        half = probe.field_of_view / 2
        self.shape = (scan.samples, scan.beams)
        self.angles = np.linspace(-half, half, scan.beams)
        self.ranges = np.arange(scan.samples) * (scan.depth / (scan.samples - 1))
        self.step = float(self.ranges[1])
        rows = -(-scan.samples // COARSE)
        self.coarse = (COARSE * np.arange(rows) + (COARSE - 1) / 2) * self.step
        self._radius = probe.radius
        self._curved = bool(np.isfinite(probe.radius))
        self._width = float(self.angles[1] - self.angles[0])
        self._starts, self.ways = self.rays(np.arange(scan.beams))

    def rays(self, columns: Numbers) -> tuple[Array, Array]:
        """Return (N, 2) starts on the face, m, and (N, 2) directions, of beams (fractional)."""
        angles = self.angles[0] + self._width * columns
        if not self._curved:
            return (np.stack([angles, 0.0 * angles], axis=-1),
                    np.broadcast_to([0.0, 1.0], (len(angles), 2)))
        ways = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        return self._radius * ways - (0.0, self._radius), ways

    def along(self, patient_T_image: Transform) -> tuple[Array, Array]:
        """Return the beams in ``patient``: (3, beams) starts, m, and (3, beams) directions."""
        axes = patient_T_image[:3, :2]
        return axes @ self._starts.T + patient_T_image[:3, 3:], axes @ self.ways.T

    def direction(self, points: Points) -> Array:
        """Return the (N, 2) directions of sound at (N, 2) points x, y of the slice."""
        if not self._curved:
            return np.broadcast_to([0.0, 1.0], points.shape)
        away = points + (0.0, self._radius)
        return np.asarray(away / np.hypot(away[..., 0], away[..., 1])[..., None])

    def pitch(self, ranges: Numbers) -> Array:
        """Return the distance between neighbouring beams at ranges, metres."""
        return self._width * (self._radius + ranges if self._curved else np.ones_like(ranges))

    def polar(self, points: Points) -> tuple[Array, Array]:
        """Return beam and sample indices (fractional) of (..., 2) points x, y of the slice."""
        if not self._curved:
            across, along = points[..., 0], points[..., 1]
        else:
            below = points[..., 1] + self._radius
            across = np.arctan2(points[..., 0], below)
            along = np.hypot(points[..., 0], below) - self._radius
        return (across - self.angles[0]) / self._width, along / self.step

    def grid(self, ranges: Numbers, columns: Numbers) -> tuple[Polar, Polar]:
        """Return x and y, m, of all ranges (R,) on all beams (N,, fractional): (R, N) each."""
        starts, ways = self.rays(columns)
        x, y = (np.asarray(starts[:, axis] + ranges[:, None] * ways[:, axis], np.float32)
                for axis in (0, 1))
        return x, y

    def fine(self, coarse: Polar) -> Polar:
        """Return (rows, N) values at coarse ranges at every sample, (samples, N)."""
        size = (coarse.shape[1], COARSE * coarse.shape[0])
        return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR),
                          np.float32)[:self.shape[0]]

    def picture_maps(self, projection: Projection,
                     shrunk: int = 1) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Return the maps of ``cv2.remap`` from samples to pixels, outside the sector -10.

        Args:
            projection: orthographic, to the picture.
            shrunk: each element stands for so many beams and samples.
        """
        pixels = np.stack(np.meshgrid(np.arange(projection.width), np.arange(projection.height)),
                          axis=-1)
        beams, samples = self.polar(projection.back_project(pixels.astype(float))[..., :2])
        outside = ((beams < 0) | (beams > self.shape[1] - 1)
                   | (samples < 0) | (samples > self.shape[0] - 1))
        maps = [np.asarray(np.where(outside, -10.0, (index - (shrunk - 1) / 2) / shrunk),
                           np.float32) for index in (beams, samples)]
        first, second = cv2.convertMaps(maps[0], maps[1], cv2.CV_16SC2)
        return np.asarray(first, np.int16), np.asarray(second, np.uint16)
