"""Soft tissue of the trunk: axial outlines, painted one over the other along the body."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array
from hybrid_guidance.simulation.shapes import Field, Shape
from hybrid_guidance.simulation.tissues import Tissue

Voxels = NDArray[np.uint8]


@dataclass(frozen=True)
class Torso:
    """Skin: a superellipse, its back flat with a furrow over the spine.

    Attributes:
        centre_y: metres.
        half_width: metres.
        back: from the centre to the back, metres.
        front: from the centre to the belly, metres.
        power: of the superellipse; 2 is an ellipse.
        furrow: depth over the spinous processes, metres.
    """

    centre_y: float
    half_width: float
    back: float
    front: float
    power: float
    furrow: float

    def distance(self, x: Field, y: Field, z: Field) -> Field:
        """Signed distance in metres, to first order; the trunk does not end along z."""
        del z
        furrow = self.furrow * np.exp(-(x / 0.013) ** 2)
        py = y - self.centre_y
        half = np.where(py > 0, self.back - furrow, self.front)
        u, v = np.abs(x) / self.half_width, np.abs(py) / half
        level = (u**self.power + v**self.power) ** (1.0 / self.power) + 1e-9
        slope = np.hypot((u / level) ** (self.power - 1.0) / self.half_width,
                         (v / level) ** (self.power - 1.0) / half)
        return np.asarray((level - 1.0) / np.maximum(slope, 1e-3))


class Outlines:
    """Paints the soft tissue of a region.

    Args:
        content: outline name to its description, in painting order; see ``config/anatomy``.
        fat: metres of subcutaneous fat more than in the mean patient.
    """

    def __init__(self, content: Mapping[str, Any], fat: float) -> None:
        self._content = content
        self._fat = fat
        torso = Torso(**content['skin']['torso'])
        reach = np.array([torso.half_width, max(torso.front, torso.back) + abs(torso.centre_y),
                          10.0])
        self.skin = Shape(torso.distance, -reach, reach)

    def paint(self, origin: Array, spacing: float,
              shape: tuple[int, int, int]) -> tuple[Voxels, Voxels]:
        """Return labels and sheets, (Z, Y, X) uint8 each.

        Args:
            origin: (3,) centre of the first voxel, metres.
            spacing: metres.
            shape: (Z, Y, X).
        """
        x = origin[0] + spacing * np.arange(shape[2])[None, :]
        y = origin[1] + spacing * np.arange(shape[1])[:, None]
        labels = np.zeros(shape[1:], np.uint8)
        sheets = np.zeros(shape[1:])
        skin = self.skin.distance(x, y, np.zeros(1))
        for name, value in self._content.items():
            field = self._outline(name, value, x, y, skin)
            inside = field < 0.0
            labels[inside] = Tissue[value['tissue']]
            sheets[field < -spacing] *= 0.0
            if 'sheet' in value:
                wall = np.exp(-(field / (0.75 * value['sheet'])) ** 2)
                sheets = np.maximum(sheets, wall * min(value['sheet'] / 0.0013, 1.0))
        flat = (255 * sheets).astype(np.uint8)
        return _sweep(labels, flat, origin, spacing, shape)

    def _outline(self, name: str, value: Mapping[str, Any], x: Field, y: Field,
                 skin: Field) -> Field:
        if name == 'skin':
            return skin
        if 'shrink' in value:
            extra = self._fat if value['tissue'] != 'FAT' else 0.5 * self._fat
            phase = len(name) + 1500.0 * self._fat
            wave = 0.0005 * np.sin(x * 310.0 + phase) + 0.0004 * np.sin(x * 740.0 + 2.0 * phase)
            deep = value['shrink'] > 0.004
            return np.asarray(skin + value['shrink'] + (extra + wave if deep else 0.0))
        return _ellipse(value, np.abs(x) if value['centre'][0] else x, y)


def _ellipse(value: Mapping[str, Any], x: Field, y: Field) -> Field:
    angle = np.radians(value.get('turn_deg', 0.0))
    px, py = x - value['centre'][0], y - value['centre'][1]
    u = (px * np.cos(angle) + py * np.sin(angle)) / value['radii'][0]
    v = (py * np.cos(angle) - px * np.sin(angle)) / value['radii'][1]
    level = np.sqrt(u * u + v * v) + 1e-9
    slope = np.hypot(u / value['radii'][0], v / value['radii'][1]) / level
    return np.asarray((level - 1.0) / (slope + 1e-9))


def _sweep(labels: Voxels, sheets: Voxels, origin: Array, spacing: float,
           shape: tuple[int, int, int]) -> tuple[Voxels, Voxels]:
    """Repeat an axial slice along z, the inside of the body swaying a little.

    Muscles are no prisms: below the skin the outlines shift by up to 1.5 mm and back.
    """
    volume = np.empty(shape, np.uint8)
    walls = np.empty(shape, np.uint8)
    rows = origin[1] + spacing * np.arange(shape[1])[:, None]
    depth = np.clip((0.074 - rows) / 0.02, 0.0, 1.0).astype(np.float32)
    lines, columns = np.indices(shape[1:], dtype=np.float32)
    for index in range(shape[0]):
        z = origin[2] + spacing * index
        right = depth * np.float32(0.0012 * np.sin(z * 47.0) / spacing)
        down = depth * np.float32(0.0015 * np.sin(z * 61.0 + 1.0) / spacing)
        cv2.remap(labels, columns + right, lines + down, cv2.INTER_NEAREST, volume[index],
                  cv2.BORDER_REPLICATE)
        cv2.remap(sheets, columns + right, lines + down, cv2.INTER_LINEAR, walls[index],
                  cv2.BORDER_REPLICATE)
    return volume, walls
