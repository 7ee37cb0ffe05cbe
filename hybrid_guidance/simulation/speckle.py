"""Speckle: scatterers that belong to the tissue, seen through the pulse and the beam.

Scatterers are a periodic volume of complex noise in ``patient``, which the pulse and the beam blur
(Ng et al., IEEE TUFFC 2006;53:638: linear convolution model).
"""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Transform
from hybrid_guidance.simulation.beams import Beams, Polar, Scan

Window = tuple[slice, slice]

SIZE = 128
# Cells are 25 fractional bits of 32: what overflows is whole periods.
_BITS, _FRACTION = 7, 25


class Speckle:
    """The scatterers of one patient, and the point spread of one probe.

    Args:
        beams: where samples lie.
        scan: pulse, beam and cell.
        seed: of scatterers and noise.
    """

    def __init__(self, beams: Beams, scan: Scan, seed: int) -> None:
        self._beams, self._cell, self._seed = beams, scan.cell, seed
        self._scatterers = _scatterers(seed)
        self._rows = np.arange(beams.shape[0], dtype=np.uint32)[:, None]
        self._index, self._cells = (np.empty(beams.shape, np.uint32) for _ in range(2))
        self._axial = kernel(scan.pulse / beams.step)
        self._zones = self._lateral(scan)
        self.gain = self._unit_gain()
        self._moment = -1, 0, 0
        self._bank = self._noise_bank(10.0 ** (scan.noise_db / 20.0))

    def scattered(self, patient_T_image: Transform) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Return real and imaginary part of the scatterers at every sample, (samples, beams)."""
        starts, ways = self._beams.along(patient_T_image)
        index = self._index
        for axis, cells in ((0, index), (1, self._cells), (2, self._cells)):
            np.multiply(self._rows, _fixed(ways[axis] * (self._beams.step / self._cell)),
                        out=cells)
            cells += _fixed(starts[axis] / self._cell)
            cells >>= np.uint32(_FRACTION - axis * _BITS)
            if axis:
                cells &= np.uint32((SIZE - 1) << axis * _BITS)
                index |= cells
        pairs = self._scatterers.take(index.view(np.int32))
        real, imaginary = cv2.split(pairs.view(np.int8).reshape(*index.shape, 2))
        return np.asarray(real, np.int8), np.asarray(imaginary, np.int8)

    def blur(self, field: Polar, result: Polar, window: Window | None = None) -> Polar:
        """Convolve with the pulse and with the beam of each depth zone.

        Args:
            field: (samples, beams).
            result: filled, and returned.
            window: rows and columns to fill, beyond which the field is taken to go on; None: all.
        """
        rows, columns = window or (slice(0, len(field)), slice(0, field.shape[1]))
        reach = len(self._axial) // 2
        for first, last, lateral in self._zones:
            first, last = max(first, rows.start), min(last, rows.stop)
            if first >= last:
                continue
            top, bottom = max(first - reach, 0), min(last + reach, len(field))
            part = cv2.sepFilter2D(field[top:bottom, columns], -1, lateral, self._axial,
                                   borderType=cv2.BORDER_REPLICATE)
            result[first:last, columns] = part[first - top:last - top]
        return result

    def noise(self, time: float) -> tuple[Polar, Polar]:
        """Return the electronic noise of a moment, real and imaginary."""
        moment = round(abs(time) * 1e6)
        # Asked for twice in a moment: by the picture and by the colour in it.
        if self._moment[0] != moment:
            rng = np.random.default_rng((self._seed, moment))
            top, left = rng.integers(0, 64, 2).tolist()
            self._moment = moment, top, left
        _, top, left = self._moment
        samples, beams = self._beams.shape
        window = (slice(top, top + samples), slice(left, left + beams))
        return self._bank[0][window], self._bank[1][window]

    @property
    def crest(self) -> float:
        """What is left of a flat surface's height, one sample thick, in the blur."""
        return float(self._axial.max())

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns that a point is blurred over to each side, at most."""
        return len(self._axial) // 2, max(len(lateral) // 2 for _, _, lateral in self._zones)

    def _lateral(self, scan: Scan) -> list[tuple[int, int, NDArray[np.float32]]]:
        """Return depth zones (first and last row), each with its lateral blur."""
        zones = []
        for first, last in pairwise(np.linspace(0, scan.samples, 6).astype(int)):
            depth = self._beams.ranges[(first + last) // 2]
            width = scan.beam_at_focus * np.hypot(1.0, (depth - scan.focus) / 0.040)
            zones.append((int(first), int(last), kernel(float(width / self._beams.pitch(depth)))))
        return zones

    def _unit_gain(self) -> Array:
        """Return the (samples, 1) gain that makes speckle unit power."""
        power = np.zeros((self._beams.shape[0], 1))
        for index in range(4):
            pose = np.eye(4)
            pose[:3, 3] = 0.0071 * index
            for part in self.scattered(pose):
                field = part.astype(np.float32)
                power += np.mean(self.blur(field, np.empty_like(field)) ** 2, axis=1,
                                 keepdims=True)
        smooth = cv2.blur(power / 4, (1, self._beams.shape[0] // 8),
                          borderType=cv2.BORDER_REPLICATE)
        return np.asarray(1.0 / np.sqrt(smooth))

    def _noise_bank(self, level: float) -> Polar:
        rng = np.random.default_rng((self._seed, 2))
        samples, beams = self._beams.shape
        bank = rng.standard_normal((2, samples + 64, beams + 64), dtype=np.float32)
        blurred = [cv2.sepFilter2D(part, -1, kernel(0.7), self._axial) for part in bank]
        return np.stack([np.asarray(part / part.std(), np.float32) for part in blurred]
                        ) * np.float32(level)


def _fixed(cells: Array) -> NDArray[np.uint32]:
    """Return cells in fixed point, modulo the period of the scatterers."""
    return np.round(cells * 2.0**_FRACTION).astype(np.int64).astype(np.uint32)


def _scatterers(seed: int) -> NDArray[np.int16]:
    """Return a periodic volume of complex normal noise: two int8 in one int16."""
    rng = np.random.default_rng((seed, 4))
    parts = rng.standard_normal((SIZE**3, 2), dtype=np.float32)
    np.clip(np.round(parts * 32.0, out=parts), -127, 127, out=parts)
    return np.asarray(parts.astype(np.int8).view(np.int16)[:, 0])


def kernel(sigma: float) -> NDArray[np.float32]:
    """Return a Gaussian that sums to one; sigma in samples."""
    reach = max(int(np.ceil(3.0 * sigma)), 1)
    values = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return np.asarray(values / values.sum(), np.float32)
