"""Whether ultrasound and X-ray show the same needle: in pixels of the X-ray, and in σ.

Outside the filter, image against image: what ultrasound says is projected into the last X-ray
and compared with the shaft there. The deviation of that difference is propagated from both
images, both trackers and both calibrations, and grows with the time between the two images, so
that σ means what it says: for consistent data ``Difference.squared`` is χ² with two degrees.
Two modalities that contradict each other are said to do so; nobody takes their mean for a needle.
"""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np

from hybrid_guidance.fusion.holder import Motion
from hybrid_guidance.fusion.observe import Sighting
from hybrid_guidance.geometry.covariance import rotate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import cross, transform_points
from hybrid_guidance.geometry.types import Array

CONTRADICTION = 20.0
"""χ² of two degrees beyond which two images contradict each other: once in 22 000 by chance."""

WEAKER = 1.5
"""A comparison whose deviation is so much larger cannot refute a contradiction that was found."""


class Agreement(Enum):
    """What the two modalities say of each other."""

    CONSISTENT = 'consistent'
    CONTRADICTING = 'contradicting'
    ONLY_ONE = 'only one'
    NONE = 'none'


@dataclass(frozen=True)
class Difference:
    """How far a needle lies beside the shaft that a perspective image shows.

    Attributes:
        stamp_ns: of the later image.
        pixels: signed, of the tip, across the shaft.
        deviation: px, σ of ``pixels``.
        squared: χ² with two degrees: across the shaft, and the angle between both shafts.
        along: m, how much further in the tip is than the image shows.
        along_deviation: m, σ of ``along`` if both ends are the tip.
        millimetres: ``pixels`` at the depth of the needle.
        age_s: time between the two images, positive where the perspective image is older.
    """

    stamp_ns: int
    pixels: float
    deviation: float
    squared: float
    along: float
    along_deviation: float
    millimetres: float
    age_s: float

    @property
    def sigma(self) -> float:
        """``pixels`` in deviations, positive."""
        return abs(self.pixels) / self.deviation

    @property
    def contradicts(self) -> bool:
        """Whether chance hardly explains it."""
        return self.squared > CONTRADICTION


def difference(seen: Sighting, line: Sighting, projection: Projection,
               motion: Motion) -> Difference:
    """Compare a needle with the shaft that a perspective image shows.

    The needle may have slid along itself between the two images; across, it must still fit.

    Args:
        seen: the needle with its tip in space, that is ultrasound.
        line: the needle in the perspective image, that is X-ray.
        projection: of the perspective image.
        motion: how much the needle may move sideways and turn between the two images.
    """
    residual, spread, scale = _residual(seen, line, projection, motion)
    across, _, angle = residual.tolist()
    (one, _, mixed), (_, _, _), (_, _, other) = spread.tolist()
    squared = (other * across**2 - 2.0 * mixed * across * angle + one * angle**2) / (
        one * other - mixed**2)
    return Difference(
        max(seen.stamp_ns, line.stamp_ns), float(residual[0]), float(spread[0, 0])**0.5, squared,
        float(residual[1]) / scale[1], float(spread[1, 1])**0.5 / scale[1],
        float(abs(residual[0])) / scale[0] * 1e3, (seen.stamp_ns - line.stamp_ns) * 1e-9)


def _residual(seen: Sighting, line: Sighting, projection: Projection, motion: Motion
              ) -> tuple[Array, Array, tuple[float, float]]:
    """Return (across px, along px, angle rad), their (3, 3) covariance, and px/m of the first two.

    All in the perspective image: u is the projected tip, w the projected direction per metre.
    """
    tip, direction = seen.observation.needle.tip, seen.observation.needle.direction
    sensor_T_world = line.sensor_T_world
    point = transform_points(sensor_T_world, tip)
    to_pixels = projection.jacobian(point) @ sensor_T_world[:3, :3]
    at_line = projection.jacobian(line.needle.tip)
    shaft = at_line @ line.needle.direction
    length = math.hypot(*shaft)
    along = (shaft / length).tolist()
    axes = np.array([(-along[1], along[0]), along])
    offset = axes @ (projection.pixels(point) - projection.pixels(line.needle.tip))
    in_line = axes @ to_pixels
    slope = in_line @ direction
    size = max(math.hypot(*slope), 1e-9)
    turned = np.array([slope[1], -slope[0]]) @ in_line / size**2
    rows = np.zeros((3, 6))
    rows[:2, :3], rows[2, 3:] = in_line, cross(direction, turned)
    seen_in_line = np.zeros((3, 6))
    seen_in_line[:2, :3] = axes @ at_line
    seen_in_line[2, 3:] = cross(line.needle.direction, seen_in_line[0, :3]) / length
    # A line that is turned at its tip is further off where the other tip is.
    seen_in_line[0, 3:] = offset[1] * seen_in_line[2, 3:]
    spread = (rows @ (rotate(seen.world_T_sensor, seen.needle.covariance)
                      + seen.pose_error(tip) + line.pose_error(tip)) @ rows.T
              + seen_in_line @ line.needle.covariance @ seen_in_line.T)
    since = abs(seen.stamp_ns - line.stamp_ns) * 1e-9
    spread[:2, :2] += since * motion.tip**2 * (in_line @ in_line.T)
    spread[2, 2] += since * motion.direction**2 * float(turned @ turned)
    residual = np.array([*offset, math.atan2(slope[0], slope[1])])
    return residual, spread, (math.hypot(*in_line[0]), max(float(slope[1]), 0.1 * size))


class Consistency:
    """Keeps what the modalities last said of each other, by the time of their images.

    Args:
        motion: of the needle between two images.
        fresh_s: a modality that has shown nothing for so long is not there.
        keep_s: how long the last perspective image counts; exposures are far apart.
    """

    def __init__(self, motion: Motion | None = None, fresh_s: float = 0.5,
                 keep_s: float = 5.0) -> None:
        self._motion = motion or Motion()
        self._fresh_ns, self._keep_ns = int(fresh_s * 1e9), int(keep_s * 1e9)
        self._seen: Sighting | None = None
        self._line: tuple[Sighting, Projection] | None = None
        self._streak = 0
        self._sharpest = math.inf
        self.difference: Difference | None = None
        """The last comparison."""

    def forget(self) -> None:
        """Start over, as after a new calibration."""
        self._seen, self._line, self.difference = None, None, None
        self._streak, self._sharpest = 0, math.inf

    @property
    def pair(self) -> tuple[Sighting | None, tuple[Sighting, Projection] | None]:
        """The last needle in space, and the last in a perspective image with its projection."""
        return self._seen, self._line

    def see(self, sighting: Sighting, projection: Projection | None = None) -> Difference | None:
        """Take what an image shows; return how it compares with the other modality's last.

        Args:
            sighting: the needle.
            projection: of the image, where it is the perspective one.
        """
        if projection is None:
            if self._seen is not None and sighting.stamp_ns <= self._seen.stamp_ns:
                return None
            self._seen = sighting
        elif self._line is not None and sighting.stamp_ns <= self._line[0].stamp_ns:
            return None
        else:
            self._line = sighting, projection
        if self._seen is None or self._line is None or abs(
                self._seen.stamp_ns - self._line[0].stamp_ns) > self._keep_ns:
            return None
        found = self.difference = difference(self._seen, *self._line, self._motion)
        if found.contradicts:
            self._streak, self._sharpest = self._streak + 1, found.deviation
        elif found.deviation < WEAKER * self._sharpest:
            self._streak, self._sharpest = 0, math.inf
        return found

    @property
    def contradicting(self) -> bool:
        """Whether several comparisons in a row contradicted."""
        return self._streak >= 3

    def state(self, now_ns: int) -> Agreement:
        """Return what holds now."""
        seen = self._seen is not None and now_ns - self._seen.stamp_ns < self._fresh_ns
        line = self._line is not None and now_ns - self._line[0].stamp_ns < self._keep_ns
        if not seen and not line:
            return Agreement.NONE
        if not (seen and line):
            return Agreement.ONLY_ONE
        return Agreement.CONTRADICTING if self.contradicting else Agreement.CONSISTENT
