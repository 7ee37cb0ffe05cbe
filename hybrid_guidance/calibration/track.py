"""Tracked poses by time, read between samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid_guidance.calibration.file import CalibrationError
from hybrid_guidance.geometry.types import Array


@dataclass(frozen=True)
class Track:
    """Poses of one frame in another.

    Attributes:
        times: (N,) seconds, rising.
        poses: (N, 4, 4) parent_T_child, metres.
    """

    times: Array
    poses: Array

    def __post_init__(self) -> None:
        if len(self.times) < 2 or len(self.times) != len(self.poses) \
                or not np.all(np.diff(self.times) > 0.0):
            raise CalibrationError('a track needs two poses or more, in order of time; record '
                                   'again with the tracker running and the marker in view')

    def without_glitches(self, least: float = 2e-3) -> 'Track':
        """Return the track without poses that jump out of a continuous motion.

        A pose is left out where it lies far from the median of itself and two neighbours on
        either side (Hampel's filter); rotations count at 10 cm. For motion filmed in one go, not
        for poses taken one by one.

        Args:
            least: metres, of a jump; more where the motion itself is rough.
        """
        values = np.concatenate([self.poses[:, :3, 3], 0.1 * self.poses[:, :3, :3].reshape(-1, 9)],
                                axis=1)
        padded = np.pad(values, ((2, 2), (0, 0)), mode='edge')
        medians = np.median([padded[shift:shift + len(values)] for shift in range(5)], axis=0)
        jumps = np.linalg.norm(values - medians, axis=1)
        # Beside a jump the median is up to two ordinary steps off.
        step = float(np.median(np.linalg.norm(np.diff(values, axis=0), axis=1)))
        keep = jumps <= max(least, 8.0 * float(np.median(jumps)), 2.5 * step)
        return Track(self.times[keep], self.poses[keep])

    def at(self, times: Array, gap: float = 0.25) -> tuple[Array, NDArray[np.bool_]]:
        """Return poses at (M,) times: position linear, rotation by the shortest arc.

        Args:
            times: seconds.
            gap: longest time between samples that is bridged.

        Returns:
            (M, 4, 4), and (M,) whether there are samples on both sides; where not, the nearest.
        """
        index = np.clip(np.searchsorted(self.times, times, side='right') - 1,
                        0, len(self.times) - 2)
        before, after = self.times[index], self.times[index + 1]
        inside = (times >= self.times[0]) & (times <= self.times[-1]) & (after - before <= gap)
        fraction = np.clip((times - before) / (after - before), 0.0, 1.0)
        first, second = self.poses[index], self.poses[index + 1]
        poses = np.tile(np.eye(4), (len(times), 1, 1))
        step = _vectors(first[:, :3, :3].swapaxes(1, 2) @ second[:, :3, :3])
        poses[:, :3, :3] = first[:, :3, :3] @ _rotations(step * fraction[:, None])
        poses[:, :3, 3] = ((1.0 - fraction)[:, None] * first[:, :3, 3]
                           + fraction[:, None] * second[:, :3, 3])
        return poses, inside


def _vectors(rotations: Array) -> Array:
    """Return (N, 3) rotation vectors of small (N, 3, 3) rotations (steps of a tracker)."""
    axis = 0.5 * np.stack([rotations[:, 2, 1] - rotations[:, 1, 2],
                           rotations[:, 0, 2] - rotations[:, 2, 0],
                           rotations[:, 1, 0] - rotations[:, 0, 1]], axis=1)
    sine = np.linalg.norm(axis, axis=1)
    cosine = 0.5 * (np.trace(rotations, axis1=1, axis2=2) - 1.0)
    factor = np.where(sine > 1e-9, np.arctan2(sine, cosine) / np.maximum(sine, 1e-12), 1.0)
    return np.asarray(axis * factor[:, None])


def _rotations(vectors: Array) -> Array:
    """Return (N, 3, 3) rotations of (N, 3) rotation vectors (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=1)
    safe = np.maximum(angle, 1e-12)
    skew = np.zeros((len(vectors), 3, 3))
    x, y, z = (vectors / safe[:, None]).T
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -z, y, -x
    skew -= skew.swapaxes(1, 2)
    return np.asarray(np.eye(3) + np.sin(angle)[:, None, None] * skew
                      + (1.0 - np.cos(angle))[:, None, None] * skew @ skew)
