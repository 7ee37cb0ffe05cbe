"""From a needle in a sensor's frame to an observation for the filter."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hybrid_guidance.fusion.needle_filter import Observation
from hybrid_guidance.geometry.covariance import lever, rotate
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import inverse, transform
from hybrid_guidance.geometry.types import Array, Points, Transform


@dataclass(frozen=True)
class Sighting:
    """A needle in one image, with all that says how surely it is where it seems to be.

    Attributes:
        source: name of the sensor.
        stamp_ns: acquisition time.
        needle: in the sensor's frame.
        mount_T_sensor: (4, 4) from calibration.
        world_T_mount: (4, 4) tracked, at the acquisition time.
        tracking: (6, 6) covariance of one tracked pose, in world axes at the mount's origin.
        calibration: (6, 6) covariance of ``mount_T_sensor``, in the mount's axes.
        tracked: (4, 4) ``world_T_mount`` as it was tracked, where a breath was taken out of it.
        breath: (3, 3) m², how well that breath is known, in world axes.
    """

    source: str
    stamp_ns: int
    needle: NeedleEstimate
    mount_T_sensor: Transform
    world_T_mount: Transform
    tracking: Array
    calibration: Array
    tracked: Transform | None = None
    breath: Array = field(default_factory=lambda: np.zeros((3, 3)))

    @property
    def marker(self) -> Transform:
        """(4, 4) where the tracker saw the mount."""
        return self.world_T_mount if self.tracked is None else self.tracked

    @cached_property
    def world_T_sensor(self) -> Transform:
        """(4, 4) where the sensor was."""
        return self.world_T_mount @ self.mount_T_sensor

    @cached_property
    def sensor_T_world(self) -> Transform:
        """(4, 4) inverse of it."""
        return inverse(self.world_T_sensor)

    @cached_property
    def _calibration_in_world(self) -> Array:
        return rotate(self.world_T_mount, self.calibration)

    @cached_property
    def observation(self) -> Observation:
        """The needle in the world; the calibration's error is a state of the filter, not noise."""
        return observe(self.source, self.stamp_ns, self.needle, self.mount_T_sensor,
                       self.world_T_mount, self.tracking, self.breath)

    def pose_error(self, point: Points) -> Array:
        """Return the (6, 6) covariance, in the world, of a pose at a (3,) point of the world.

        That is of what is fixed to the sensor: from calibration, which turns about the sensor,
        and tracking, which turns about the mount; and from the breath taken out of it.
        """
        at_sensor = lever(point - self.world_T_sensor[:3, 3])
        at_mount = lever(point - self.world_T_mount[:3, 3])
        error = (at_sensor @ self._calibration_in_world @ at_sensor.T
                 + at_mount @ self.tracking @ at_mount.T)
        error[:3, :3] += self.breath
        return np.asarray(error)


def observe(source: str, stamp_ns: int, needle: NeedleEstimate, mount_T_sensor: Transform,
            world_T_mount: Transform, tracking: Array, breath: Array | None = None) -> Observation:
    """Take a needle from its sensor's frame to the world.

    Args:
        source: name of the sensor.
        stamp_ns: acquisition time.
        needle: in the sensor's frame.
        mount_T_sensor: (4, 4) from calibration; its error is a state of the filter, not noise.
        world_T_mount: (4, 4) tracked, at the acquisition time.
        tracking: (6, 6) covariance of one tracked pose, in world axes at the mount's origin.
        breath: (3, 3) m², how well the breath is known that was taken out of it.
    """
    world_T_sensor = world_T_mount @ mount_T_sensor
    pose = world_T_sensor @ needle.pose
    moved = lever(pose[:3, 3] - world_T_mount[:3, 3])
    covariance = moved @ tracking @ moved.T + rotate(world_T_sensor, needle.covariance)
    passing = np.zeros((3, 3)) if breath is None else breath
    covariance[:3, :3] += passing
    return Observation(source, stamp_ns, NeedleEstimate(pose, covariance, needle.probability),
                       transform(world_T_mount[:3, :3], world_T_sensor[:3, 3]), passing)
