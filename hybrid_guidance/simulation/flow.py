"""Blood: how it flows, how arteries pulsate, and the colours of a Doppler image.

Both are vectors on a grid, made once of the patient's vessels. Flow is along a vessel, where its
distance does not change (the least eigenvector of the structure tensor), with a parabolic profile
(Poiseuille); arteries away from the heart, veins back. A wall moves outward by a share of the
radius, and what is round it as an incompressible body must: by the inverse of the distance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hybrid_guidance.geometry.types import Image, Transform
from hybrid_guidance.simulation.anatomy import Grid, Patient
from hybrid_guidance.simulation.shapes import Shape

Vectors = NDArray[np.float32]

_COARSE = 2
_REACH = 0.012
# Peak on the axis of the common femoral artery and vein, m/s. Artery: 1.14 ± 0.25 in 55 healthy
# subjects (Jager et al. 1985, in Bernstein, Noninvasive Diagnostic Techniques in Vascular Disease).
# Vein: an order of magnitude.
_ARTERY, _VEIN = 0.9, 0.18
REST = 0.15
PERIOD = 0.86


def heartbeat(time: float) -> float:
    """Return 0 (end of diastole) to 1 (systole): a quick rise, a slower fall."""
    phase = (time / PERIOD) % 1.0
    return float(np.sin(np.pi * phase**0.5) ** 4)


@dataclass(frozen=True)
class Blood:
    """Vessels of a patient.

    Attributes:
        grid: of the vectors.
        vectors: (Z, Y, X, 9) float16 in ``patient``: velocity in arteries at systole, in veins,
            m/s, and the displacement at systole of walls that move by their radius, m.
        there: (Z, Y, X) uint8, 1 where flow is, 2 where walls move, 3 for both.
    """

    grid: Grid
    vectors: NDArray[np.float16]
    there: NDArray[np.uint8]

    def seen(self, patient_T_image: Transform, x: NDArray[np.float32],
             y: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.uint8], Vectors]:
        """Return where in a slice something is, what, and the vectors there in the image's axes.

        Args:
            patient_T_image: (4, 4) pose of the slice.
            x: (H, W) metres.
            y: (H, W) metres.

        Returns:
            (N,) indices into the flattened places, (N,) of ``there``, and (N, 3, 3): velocity in
            arteries and veins, displacement of walls.
        """
        flat = np.zeros(x.shape, np.int32)
        held = np.ones(x.shape, bool)
        for axis, count in zip((2, 1, 0), self.grid.shape, strict=True):
            row = patient_T_image[axis] / self.grid.spacing
            start = row[3] - self.grid.origin[axis] / self.grid.spacing
            cell = x * np.float32(row[0])
            cell += y * np.float32(row[1])
            cell += np.float32(start + 0.5)
            held &= (cell >= 0.0) & (cell < count)
            flat *= np.int32(count)
            flat += cell.astype(np.int32)
        flat[~held] = 0
        found = self.there.reshape(-1).take(flat)
        chosen = np.flatnonzero((found > 0) & held)
        vectors = self.vectors.reshape(-1, 9).take(flat.reshape(-1)[chosen], axis=0)
        axes = patient_T_image[:3, :3].astype(np.float32)
        turned = vectors.astype(np.float32).reshape(-1, 3) @ axes
        return chosen, found.reshape(-1)[chosen], turned.reshape(-1, 3, 3)


def make_blood(patient: Patient) -> Blood:
    """Return the flow in a patient's arteries (``*artery*``, ``aorta``) and veins (``*vein*``...).

    Vessels are known by their names; a patient without any has no flow.
    """
    spacing = _COARSE * patient.grid.spacing
    shape = tuple(-(-count // _COARSE) for count in patient.grid.shape)
    grid = Grid(patient.grid.origin, spacing, (shape[0], shape[1], shape[2]))
    vectors = np.zeros((*shape, 9), np.float16)
    arteries, veins, walls = (vectors[..., first:first + 3] for first in (0, 3, 6))
    for is_artery, vessel in _vessels(patient):
        window = grid.window(vessel.lower - _REACH, vessel.upper + _REACH)
        if min(piece.stop - piece.start for piece in window) < 3:
            continue
        x, y, z = grid.axes()
        distance = np.asarray(vessel.distance(x[..., window[2]], y[:, window[1]], z[window[0]]),
                              np.float32)
        radius = -float(distance.min())
        if radius <= 0.0:
            continue
        slopes: list[NDArray[np.float32]] = list(np.gradient(distance, spacing))
        slope = np.stack(slopes[::-1], axis=-1)
        flow = _flow(distance, slope, radius) * np.float32(-_ARTERY if is_artery else _VEIN)
        part = (arteries if is_artery else veins)[window]
        np.copyto(part, flow, where=(distance < 0.0)[..., None])
        if is_artery:
            walls[window] += _swelling(distance, radius)[..., None] * slope
    flows = np.any(vectors[..., :6], axis=-1)
    return Blood(grid, vectors, (flows + 2 * np.any(walls, axis=-1)).astype(np.uint8))


def _vessels(patient: Patient) -> Iterator[tuple[bool, Shape]]:
    for name, shape in patient.structures.items():
        if 'artery' in name or 'aorta' in name:
            yield True, shape
        elif 'vein' in name or 'vena' in name:
            yield False, shape


def _flow(distance: NDArray[np.float32], slope: Vectors, radius: float) -> Vectors:
    """Return unit speed on the axis, zero at the wall, towards the head."""
    inside = distance < 0.0
    tensor = np.empty((*distance.shape, 6), np.float32)
    for index, (row, column) in enumerate(((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))):
        tensor[..., index] = ndimage.gaussian_filter(slope[..., row] * slope[..., column], 2.0)
    values = tensor[inside][:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    axis = np.linalg.eigh(values)[1][..., 0]
    axis *= np.where(axis[:, 2:] < 0.0, -1.0, 1.0)
    flow = np.zeros((*distance.shape, 3), np.float32)
    flow[inside] = axis * (1.0 - (1.0 + distance[inside] / radius) ** 2)[:, None]
    return flow


def _swelling(distance: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Return how far tissue goes outward when the wall goes as far as its radius, m."""
    away = np.maximum(distance + radius, 0.0)
    out = radius * np.where(distance < 0.0, away / radius, radius / np.maximum(away, radius))
    return np.asarray(out * np.clip((_REACH - distance) / 0.004, 0.0, 1.0), np.float32)


def painted(velocity: NDArray[np.float32], scale: float, kind: str) -> Image:
    """Return what stands for velocities in a colour scale, blue-green-red, (N, 3).

    Args:
        velocity: (N,) m/s, towards the probe.
        scale: m/s of the brightest; beyond it colours turn over, as pulses come too seldom.
        kind: ``colour`` (red towards the probe, blue away) or ``power``.
    """
    if kind == 'power':
        level = np.sqrt(np.minimum(np.abs(velocity) / np.float32(scale), 1.0))
        return np.asarray(_POWERS[np.asarray(255.0 * level, np.uint8)])
    turned = (velocity / np.float32(scale) + 1.0) % 2.0
    return np.asarray(_COLOURS[np.asarray(127.5 * turned, np.uint8)])


def _ramps() -> tuple[Image, Image]:
    level = np.linspace(-1.0, 1.0, 256)
    much = np.abs(level)
    towards = np.stack([0 * much, 255 * np.clip(2 * much - 1, 0, 1), 90 + 165 * np.clip(
        2 * much, 0, 1)], axis=-1)
    away = towards[:, ::-1]
    power = np.linspace(0.0, 1.0, 256)
    warm = np.stack([0 * power, 220 * np.clip(1.6 * power - 0.6, 0, 1), 60 + 195 * np.clip(
        1.5 * power, 0, 1)], axis=-1)
    return (np.asarray(np.where(level[:, None] > 0.0, towards, away), np.uint8),
            np.asarray(warm, np.uint8))


_COLOURS, _POWERS = _ramps()
