"""What a patient's voxels do to sound: bone, scatter, sheets and attenuation, looked up at once."""

from collections.abc import Iterator, Sequence
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
# Layers across x, y and z: what runs across, down and along them; and layers turned at once.
_ORDERS = (0, 1, 2), (1, 2, 0), (2, 1, 0)
_SLAB = 16
# To either side of a place along x, y and z, in voxels: (3, 6, 1).
_HALVES = 0.5 * np.concatenate([np.eye(3), -np.eye(3)]).T[:, :, None]


@dataclass(frozen=True)
class Acoustics:
    """Four channels of uint8 per voxel: bone, scatter ((dB + 80)·3), sheets, attenuation (·100).

    Layers of the volume lie under and beside each other in one picture, so that OpenCV looks all
    channels up at once. A slice along the layers meets few of them, which is what processors are
    quick at. The outermost voxels are air: what is beyond looks like them.

    Attributes:
        sheet: (rows, columns, 4) the layers.
        corners: (layers,) first column and row of every layer, two int16 in one int32.
        order: axes of ``patient`` (0 is x) across the layers, down their rows and columns.
        shape: (Z, Y, X) of the volume.
        origin: (3,) centre of its first voxel, metres, in ``patient``.
        spacing: edge of a voxel, metres.
    """

    sheet: NDArray[np.uint8]
    corners: NDArray[np.int32]
    order: tuple[int, int, int]
    shape: tuple[int, int, int]
    origin: Points
    spacing: float

    def suits(self, patient_T_image: Transform) -> bool:
        """Tell whether the layers run along a slice as well as others would, or nearly so."""
        across = np.abs(patient_T_image[:3, 2])
        return bool(across.max() <= 1.3 * across[self.order[0]])

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
                cv2.split(self._mixed(places)), (1 / 255, 1 / 3, 1 / 255, 0.01), strict=True))
        scatter -= np.float32(80.0)
        return bone, scatter, sheet, attenuation

    def into_bone(self, points: Points) -> Array:
        """Return the normals of bone's surface at (3, N) points on it, pointing into bone."""
        if not points.size:
            return points
        places = (points - self.origin[:, None]) / self.spacing
        # Half a voxel to each side: no farther, or a voxel is all bone or none.
        apart = places[:, None] + _HALVES
        held = [_float32(cv2.min(cv2.max(_float32(place), 0.0), count - 1.001))
                for place, count in zip(apart, self.shape[::-1], strict=True)]
        bone = self._mixed(held)[..., 0].astype(float)
        gradient = bone[:3] - bone[3:]
        return np.asarray(gradient / np.maximum(np.sqrt((gradient**2).sum(axis=0)), 1e-6))

    def _mixed(self, places: Sequence[Polar]) -> NDArray[np.uint8]:
        """Return all channels at places in voxels along x, y and z, (rows, columns, 4)."""
        across, down, along = (places[axis] for axis in self.order)
        whole = np.floor(across)
        layer, share = whole.astype(np.intp), across - whole
        inside, fraction = cv2.convertMaps(along, down, cv2.CV_16SC2)
        # Column and row, 16 bits each, are added at once: neither ever carries.
        below, above = ((inside.view(np.int32)[..., 0] + corners.take(layer))[..., None]
                        for corners in (self.corners, self.corners[1:]))
        below, above = (cv2.remap(self.sheet, place.view(np.int16), fraction, cv2.INTER_LINEAR)
                        for place in (below, above))
        return np.asarray(cv2.blendLinear(below, above, np.float32(1.0) - share, share))


def make_acoustics(patient: Patient, seed: int, patient_T_image: Transform) -> Acoustics:
    """Return what a patient's voxels do to sound, in layers that suit a slice.

    Args:
        patient: in voxels.
        seed: of septa and wandering echoes.
        patient_T_image: (4, 4) pose of the slice.
    """
    order = _ORDERS[int(np.argmax(np.abs(patient_T_image[:3, 2])))]
    layers, height, width = (patient.labels.shape[2 - axis] for axis in order)
    high = min(_MOST_ROWS // height, layers)
    strips = -(-layers // high)
    sheet = np.zeros((high, height, strips, width), np.uint32)
    depth, window = len(patient.labels), [slice(None)] * 3
    drawn = _drawn(patient, seed)
    for first in range(0, depth, _SLAB):
        slab = np.stack([next(drawn) for _ in range(min(_SLAB, depth - first))])
        turned = slab.transpose([2 - axis for axis in order])
        window[order.index(2)] = slice(first, first + len(slab))
        start = first if order[0] == 2 else 0
        for strip in range(strips):
            low = max(start, strip * high)
            end = min(start + len(turned), (strip + 1) * high)
            if low < end:
                sheet[low - strip * high:end - strip * high, window[1], strip,
                      window[2]] = turned[low - start:end - start]
    index = np.arange(layers)
    corners = np.stack([index // high * width, index % high * height], axis=-1)
    return Acoustics(sheet.reshape(high * height, -1, 1).view(np.uint8),
                     corners.astype(np.int16).view(np.int32)[:, 0], order, patient.labels.shape,
                     patient.grid.origin, patient.grid.spacing)


def _drawn(patient: Patient, seed: int) -> Iterator[NDArray[np.uint32]]:
    """Return the layers along z, four channels of uint8 in one, (Y, X) each; the rim is air."""
    scatter = np.clip(np.round((table('scatter_db') + 80.0) * 3.0), 0, 255)
    scatter[[label for label in range(256) if label not in set(Tissue)]] = 0
    loss = np.clip(np.round(table('attenuation') * 100.0), 0, 255)
    septa, last = _Septa(seed), len(patient.labels) - 1
    # A homogeneous phantom stays one.
    patches = _patches(seed) if np.ptp(patient.labels) else None
    for index, labels in enumerate(patient.labels):
        echoes = cv2.LUT(labels, scatter.astype(np.uint8))
        if patches is not None:
            wandering = cv2.add(echoes, _tiled(patches, index, labels.shape), dtype=cv2.CV_8U)
            np.copyto(echoes, np.maximum(wandering, 1), where=echoes > 0)
        sheets = septa.drawn(patient.sheets[index], labels, index)
        layer = cv2.merge([patient.bone[index], echoes, sheets,
                           cv2.LUT(labels, loss.astype(np.uint8))]).view(np.uint32)[..., 0]
        layer[[0, -1]] = 0
        layer[:, [0, -1]] = 0
        yield layer if 0 < index < last else np.zeros_like(layer)


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
