"""Soft tissue of a limb girdle: layers at depths under a skin that is any solid."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array
from hybrid_guidance.simulation.shapes import Field, Shape
from hybrid_guidance.simulation.tissues import Tissue, density_table

Voxels = NDArray[np.uint8]

_COARSE = 4
"""Voxels per sample of the skin's distance, which is smooth."""
_STEP = 0.0001
_DEEPEST = 0.1


class Layers:
    """Paints what lies under a skin: at each depth one tissue, between two of them a sheet.

    Args:
        skin: the surface of the body.
        content: layer name to its ``tissue``, the ``depth`` where it begins (metres) and the
            thickness of the ``sheet`` on it, outermost first.
        fat: metres of subcutaneous fat more than in the mean patient: what lies under fat
            (``deep: true``) begins by as much deeper.
    """

    def __init__(self, skin: Shape, content: Mapping[str, Any], fat: float) -> None:
        self.skin = skin
        depth = np.arange(-_DEEPEST, _DEEPEST, _STEP)
        self._labels = np.zeros(len(depth), np.uint8)
        sheets = np.zeros(len(depth))
        for value in content.values():
            start = value['depth'] + (fat if value.get('deep') else 0.0)
            self._labels[depth >= start] = Tissue[value['tissue']]
            if 'sheet' in value:
                wall = np.exp(-((depth - start) / (0.75 * value['sheet'])) ** 2)
                sheets = np.maximum(sheets, wall * min(value['sheet'] / 0.0013, 1.0))
        self._sheets = (255 * sheets).astype(np.uint8)

    def paint(self, origin: Array, spacing: float,
              shape: tuple[int, int, int]) -> tuple[Voxels, Voxels]:
        """Return labels and sheets, (Z, Y, X) uint8 each.

        Args:
            origin: (3,) centre of the first voxel, metres.
            spacing: metres.
            shape: (Z, Y, X).
        """
        rough = self._rough(origin, spacing, shape)
        labels, sheets = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        rows, columns = np.indices(shape[1:], dtype=np.float32) / np.float32(_COARSE)
        for index in range(shape[0]):
            below, share = divmod(index / _COARSE, 1.0)
            layer = cv2.addWeighted(rough[int(below)], 1.0 - share, rough[int(below) + 1],
                                    share, 0.0)
            depth = cv2.remap(layer, columns, rows, cv2.INTER_LINEAR)
            wave = self._ripple(origin, spacing, shape, index)
            place = self._place(np.where(depth < -0.004, depth + wave, depth))
            labels[index], sheets[index] = self._labels[place], self._sheets[place]
        return labels, sheets

    def density(self, x: Field, y: Field, z: Field, step: float) -> Voxels:
        """Return X-ray densities of coarse voxels: the skin is where a voxel is half full."""
        field = np.asarray(self.skin.distance(x, y, z))
        tissue = density_table()[self._labels[self._place(np.minimum(field, -step / 2))]]
        return np.asarray(tissue * np.clip(0.5 - field / step, 0.0, 1.0), np.uint8)

    def _rough(self, origin: Array, spacing: float, shape: tuple[int, int, int]) -> Field:
        counts = [-(-count // _COARSE) + 2 for count in shape]
        z, y, x = (np.float32(start) + np.float32(spacing * _COARSE)
                   * np.arange(count, dtype=np.float32)
                   for start, count in zip(origin[::-1], counts, strict=True))
        return np.asarray(self.skin.distance(
            x[None, None, :], y[None, :, None], z[:, None, None]), np.float32)

    @staticmethod
    def _ripple(origin: Array, spacing: float, shape: tuple[int, int, int], index: int) -> Field:
        """No fascia is as smooth as a formula."""
        x = origin[0] + spacing * np.arange(shape[2])
        y = origin[1] + spacing * np.arange(shape[1])[:, None]
        z = origin[2] + spacing * index
        wave = 0.5 * np.sin(310.0 * x + 150.0 * z) + 0.4 * np.sin(290.0 * y - 210.0 * z)
        return np.asarray(0.001 * wave, np.float32)

    @staticmethod
    def _place(distance: Field) -> NDArray[np.int32]:
        count = round(2 * _DEEPEST / _STEP)
        return np.clip((_DEEPEST - distance) / _STEP, 0, count - 1).astype(np.int32)
