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
_BITS = 7
_BLOCK = 120
_UNTOUCHED = np.ones(1, np.float32)


class Speckle:
    """The scatterers of one patient, and the point spread of one probe.

    Args:
        beams: where samples lie.
        scan: pulse, beam and cell.
        seed: of scatterers and noise.
    """

    def __init__(self, beams: Beams, scan: Scan, seed: int) -> None:
        self._beams, self._cell, self._seed = beams, scan.cell, seed
        self._scatterers, self._axes = _scatterers(seed), (2, 1, 0)
        samples, columns = beams.shape
        self._rows = np.stack([np.arange(samples), np.ones(samples)], axis=-1).astype(np.float32)
        # Beside so large a number a float of 32 bits is a fixed-point number: its last bits are
        # fractions of a cell, the next ones whole cells, and what lies above is whole periods.
        power = max(int(np.ceil(np.log2(scan.depth / scan.cell + SIZE))) + 1, 10)
        self._fraction, self._offset = 23 - power, 1.5 * 2.0**power
        self._cells = np.empty((3, _BLOCK, columns), np.float32)
        self._pairs = np.empty(beams.shape, np.int16)
        self._across = np.empty(beams.shape, np.float32)
        self._axial = kernel(scan.pulse / beams.step)
        self._zones = self._lateral(scan)
        self.gain = self._unit_gain()
        self._bank = self._noise_bank(10.0 ** (scan.noise_db / 20.0))

    def scattered(self, patient_T_image: Transform) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """Return real and imaginary part of the scatterers at every sample, (samples, beams)."""
        self._turn(np.abs(patient_T_image[:3, 0]))
        starts, ways = self._beams.along(patient_T_image)
        lines = np.stack([ways * (self._beams.step / self._cell),
                          starts / self._cell % SIZE + self._offset], axis=1).astype(np.float32)
        lines = lines[list(self._axes[::-1])]
        for first in range(0, len(self._rows), _BLOCK):
            self._gather(slice(first, first + _BLOCK), lines)
        real, imaginary = cv2.split(self._pairs.view(np.int8).reshape(*self._pairs.shape, 2))
        return np.asarray(real, np.int8), np.asarray(imaginary, np.int8)

    def _turn(self, across: Array) -> None:
        """Lay scatterers out so that those beside each other in a row of samples are in memory.

        Args:
            across: (3,) how far the slice's lateral axis runs along x, y and z.
        """
        if across.max() <= 1.3 * across[self._axes[2]]:
            return
        last = int(np.argmax(across))
        axes = (*(axis for axis in self._axes if axis != last), last)
        volume = self._scatterers.reshape((SIZE,) * 3)
        turned = volume.transpose([self._axes.index(axis) for axis in axes])
        self._axes, self._scatterers = (axes[0], axes[1], axes[2]), turned.reshape(-1)

    def _gather(self, block: slice, lines: Polar) -> None:
        """Look up the pairs of some samples of all beams; few enough to stay in the cache.

        Args:
            block: samples.
            lines: (3, 2, beams) cells from a sample to the next, and at the first; along the axis
                of neighbours in memory first.
        """
        rows, fraction = self._rows[block], self._fraction
        cells = self._cells[:, :len(rows)]
        for along, line in zip(cells, lines, strict=True):
            np.dot(rows, line, out=along)
        index, row, layer = (along.view(np.uint32) for along in cells)
        for along in (index, row, layer):
            along &= np.uint32((SIZE - 1) << fraction)
        index >>= np.uint32(fraction)
        row >>= np.uint32(fraction - _BITS)
        layer <<= np.uint32(2 * _BITS - fraction)
        index |= row
        index |= layer
        self._scatterers.take(index.view(np.int32), out=self._pairs[block], mode='clip')

    def blur(self, field: Polar, result: Polar, window: Window | None = None) -> Polar:
        """Convolve with the pulse and with the beam of each depth zone.

        Args:
            field: (samples, beams).
            result: filled, and returned.
            window: rows and columns to fill, beyond which the field is taken to go on; None: all.
        """
        rows, columns = window or (slice(0, len(field)), slice(0, field.shape[1]))
        reach = len(self._axial) // 2
        top, bottom = max(rows.start - reach, 0), min(rows.stop + reach, len(field))
        for first, last, lateral in self._zones:
            part = slice(max(first, top), min(last, bottom)), columns
            if part[0].start < part[0].stop:
                cv2.sepFilter2D(field[part], -1, lateral, _UNTOUCHED, dst=self._across[part],
                                borderType=cv2.BORDER_REPLICATE)
        across = self._across[top:bottom, columns]
        if across.shape == result.shape:
            cv2.sepFilter2D(across, -1, _UNTOUCHED, self._axial, dst=result,
                            borderType=cv2.BORDER_REPLICATE)
            return result
        found = cv2.sepFilter2D(across, -1, _UNTOUCHED, self._axial,
                                borderType=cv2.BORDER_REPLICATE)
        result[rows, columns] = found[rows.start - top:rows.stop - top]
        return result

    def noise(self, time: float) -> tuple[Polar, Polar]:
        """Return the electronic noise of a moment, real and imaginary."""
        chosen = _mixed(round(abs(time) * 1e6) ^ _mixed(self._seed))
        top, left = chosen & 63, chosen >> 6 & 63
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


def _mixed(number: int) -> int:
    """Return 64 bits that look random (SplitMix64, Steele et al., OOPSLA 2014)."""
    number = (number * 0x9E3779B97F4A7C15) & _WORD
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _WORD
    return number ^ number >> 31


_WORD = 2**64 - 1


def _scatterers(seed: int) -> NDArray[np.int16]:
    """Return a periodic volume of complex normal noise: two int8 in one int16, (z, y, x) cells."""
    rng = np.random.default_rng((seed, 4))
    parts = rng.standard_normal((SIZE**3, 2), dtype=np.float32)
    np.clip(np.round(parts * 32.0, out=parts), -127, 127, out=parts)
    return np.asarray(parts.astype(np.int8).view(np.int16)[:, 0])


def kernel(sigma: float) -> NDArray[np.float32]:
    """Return a Gaussian that sums to one; sigma in samples."""
    reach = max(int(np.ceil(3.0 * sigma)), 1)
    values = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    return np.asarray(values / values.sum(), np.float32)
