"""What a patient's voxels do to sound: bone, scatter, sheets and attenuation, looked up at once."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.geometry.types import Array, Points, Transform
from hybrid_guidance.simulation.anatomy import Patient
from hybrid_guidance.simulation.beams import Beams, Polar
from hybrid_guidance.simulation.tissues import Tissue, table

# OpenCV counts pixels of a picture in 16 bits.
_MOST_ROWS = 32700
# To either side of a place along x, y and z, in voxels: (3, 6, 1).
_HALVES = 0.5 * np.concatenate([np.eye(3), -np.eye(3)]).T[:, :, None]


@dataclass(frozen=True)
class Acoustics:
    """Four channels of uint8 per voxel: bone, scatter ((dB + 80)·3), sheets, attenuation (·100).

    Layers of the volume lie under and beside each other in one picture, so that OpenCV looks all
    channels up at once. The outermost voxels are air: what is beyond looks like them.

    Attributes:
        sheet: (rows, columns, 4) the layers.
        corners: (Z,) first column and row of every layer, two int16 in one int32.
        shape: (Z, Y, X) of the volume.
        origin: (3,) centre of its first voxel, metres, in ``patient``.
        spacing: edge of a voxel, metres.
    """

    sheet: NDArray[np.uint8]
    corners: NDArray[np.int32]
    shape: tuple[int, int, int]
    origin: Points
    spacing: float

    def seen(self, patient_T_image: Transform,
             beams: Beams) -> tuple[Polar, Polar, Polar, Polar]:
        """Return what is at the coarse ranges of every beam, trilinear, (rows, beams) each.

        Returns:
            Bone (0 to 1), scatter (dB), sheets (0 to 1), attenuation (dB/(cm·MHz)); air outside.
        """
        starts, ways = beams.along(patient_T_image)
        ranges = np.stack([beams.coarse, np.ones(len(beams.coarse))], axis=-1)
        lines = np.stack([ways.ravel(), (starts - self.origin[:, None]).ravel()]) / self.spacing
        all_places, beam_count = _float32(ranges) @ _float32(lines), ways.shape[1]
        places = [cv2.min(cv2.max(all_places[:, first:first + beam_count], 0.0), count - 1.001)
                  for first, count in zip(range(0, 3 * beam_count, beam_count), self.shape[::-1],
                                          strict=True)]
        bone, scatter, sheet, attenuation = (
            channel * np.float32(scale) for channel, scale in zip(
                cv2.split(self._mixed(*places)), (1 / 255, 1 / 3, 1 / 255, 0.01), strict=True))
        scatter -= np.float32(80.0)
        return bone, scatter, sheet, attenuation

    def into_bone(self, points: Points) -> Array:
        """Return the normals of bone's surface at (3, N) points on it, pointing into bone."""
        if not points.size:
            return points
        places = (points - self.origin[:, None]) / self.spacing
        # Half a voxel to each side: no farther, or a voxel is all bone or none.
        apart = places[:, None] + _HALVES
        x, y, z = (cv2.min(cv2.max(_float32(place), 0.0), count - 1.001)
                   for place, count in zip(apart, self.shape[::-1], strict=True))
        bone = self._mixed(x, y, z)[..., 0].astype(float)
        gradient = bone[:3] - bone[3:]
        return np.asarray(gradient / np.maximum(np.sqrt((gradient**2).sum(axis=0)), 1e-6))

    def _mixed(self, x: Polar, y: Polar, z: Polar) -> NDArray[np.uint8]:
        """Return all channels at places in voxels, (rows, columns, 4)."""
        whole = np.floor(z)
        layer, share = whole.astype(np.intp), z - whole
        inside, fraction = cv2.convertMaps(x, y, cv2.CV_16SC2)
        # Column and row, 16 bits each, are added at once: neither ever carries.
        below, above = ((inside.view(np.int32)[..., 0] + corners.take(layer))[..., None]
                        for corners in (self.corners, self.corners[1:]))
        below, above = (cv2.remap(self.sheet, place.view(np.int16), fraction, cv2.INTER_LINEAR)
                        for place in (below, above))
        return np.asarray(cv2.blendLinear(below, above, np.float32(1.0) - share, share))


def make_acoustics(patient: Patient, seed: int) -> Acoustics:
    """Return what a patient's voxels do to sound; seed is of septa and wandering echoes."""
    scatter = np.clip(np.round((table('scatter_db') + 80.0) * 3.0), 0, 255)
    scatter[[label for label in range(256) if label not in set(Tissue)]] = 0
    loss = np.clip(np.round(table('attenuation') * 100.0), 0, 255)
    depth, height, width = patient.labels.shape
    high = min(_MOST_ROWS // height, depth)
    strips = -(-depth // high)
    layers = np.arange(depth)
    sheet = np.zeros((high * height, strips * width, 4), np.uint8)
    tops, lefts = layers % high * height, layers // high * width
    septa = _Septa(seed)
    # A homogeneous phantom stays one.
    patches = _patches(seed) if np.ptp(patient.labels) else None
    for index, labels in enumerate(patient.labels):
        echoes = cv2.LUT(labels, scatter.astype(np.uint8))
        if patches is not None:
            wandering = cv2.add(echoes, _tiled(patches, index, labels.shape), dtype=cv2.CV_8U)
            np.copyto(echoes, np.maximum(wandering, 1), where=echoes > 0)
        sheets = septa.drawn(patient.sheets[index], labels, index)
        layer = cv2.merge([patient.bone[index], echoes, sheets,
                           cv2.LUT(labels, loss.astype(np.uint8))])
        if 0 < index < depth - 1:
            sheet[tops[index] + 1:tops[index] + height - 1,
                  lefts[index] + 1:lefts[index] + width - 1] = layer[1:-1, 1:-1]
    corners = np.stack([lefts, tops], axis=-1).astype(np.int16).view(np.int32)[:, 0]
    return Acoustics(sheet, corners, (depth, height, width), patient.grid.origin,
                     patient.grid.spacing)


class _Septa:
    """Perimysium and fat septa: zero surfaces of smooth noise, drawn out along the body."""

    def __init__(self, seed: int) -> None:
        self._tiles = {tissue: (_septa(seed + number, sizes) * (255.0 * strength)).astype(np.uint8)
                       for number, (tissue, sizes, strength) in enumerate((
                           (Tissue.MUSCLE, (12.0, 1.3, 3.6), 1.0),
                           (Tissue.FAT, (6.0, 1.6, 6.0), 0.60)))}

    def drawn(self, sheets: NDArray[np.uint8], labels: NDArray[np.uint8],
              layer: int) -> NDArray[np.uint8]:
        """Return a layer's sheets with its septa."""
        result = sheets.copy()
        for tissue, tile in self._tiles.items():
            np.maximum(result, _tiled(tile, layer, labels.shape), out=result,
                       where=labels == tissue)
        return result


def _tiled(tile: NDArray[np.generic], layer: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return a layer of a periodic volume, as large as asked for."""
    depth, height, width = tile.shape
    repeated = np.tile(tile[layer % depth], (-(-shape[0] // height), -(-shape[1] // width)))
    return np.ascontiguousarray(repeated[:shape[0], :shape[1]])


def _patches(seed: int) -> NDArray[np.int8]:
    """No muscle is uniform: its echo wanders by a few decibels over millimetres."""
    noise = _smooth_noise(seed + 2, (9.0, 4.0, 7.0))
    return np.asarray(np.clip(np.round(noise * 7.0), -24, 24), np.int8)


def _septa(seed: int, sizes: tuple[float, float, float]) -> NDArray[np.float32]:
    """Return a periodic (96, 96, 128) volume, 1 on septa; sizes (z, y, x) in voxels."""
    noise = _smooth_noise(seed, sizes)
    patches = np.clip(1.0 + 0.9 * np.roll(noise, 37, axis=1), 0.0, 1.2) / 1.2
    return np.asarray(np.exp(-(noise / 0.19) ** 2) * patches, np.float32)


def _smooth_noise(seed: int, sizes: tuple[float, float, float]) -> Array:
    """Return periodic (96, 96, 128) noise of unit variance; sizes (z, y, x) in voxels."""
    shape = (96, 96, 128)
    rng = np.random.default_rng((seed, 3))
    spectrum = np.fft.rfftn(rng.standard_normal(shape))
    for axis, size in enumerate(sizes):
        count = shape[axis]
        frequency = np.fft.rfftfreq(count) if axis == 2 else np.fft.fftfreq(count)
        response = np.exp(-2.0 * (np.pi * frequency * size) ** 2)
        spectrum *= response.reshape([-1 if other == axis else 1 for other in range(3)])
    noise = np.fft.irfftn(spectrum, shape, axes=(0, 1, 2))
    return np.asarray(noise / noise.std())


def _float32(values: Array) -> Polar:
    return np.asarray(values, np.float32)
