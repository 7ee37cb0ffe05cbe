"""From a needle in a sensor's frame to an observation for the filter, and between modalities."""

import numpy as np

from hybrid_guidance.fusion.needle_filter import Observation
from hybrid_guidance.geometry.covariance import compose, rotate
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.projection import Projection
from hybrid_guidance.geometry.rigid import transform_points
from hybrid_guidance.geometry.types import Array, Points, Transform

_ARM = 0.01
"""m: a second point of the shaft, to draw its line through."""


def observe(source: str, stamp_ns: int, needle: NeedleEstimate, mount_T_sensor: Transform,
            world_T_mount: Transform, tracking: Array) -> Observation:
    """Take a needle from its sensor's frame to the world.

    Args:
        source: name of the sensor.
        stamp_ns: acquisition time.
        needle: in the sensor's frame.
        mount_T_sensor: (4, 4) from calibration; its error is a state of the filter, not noise.
        world_T_mount: (4, 4) tracked, at the acquisition time.
        tracking: (6, 6) covariance of one tracked pose, in world axes at the mount's origin.
    """
    mount_T_needle = mount_T_sensor @ needle.pose
    covariance = compose(world_T_mount, tracking, mount_T_needle,
                         rotate(mount_T_sensor, needle.covariance))
    return Observation(source, stamp_ns, NeedleEstimate(
        world_T_mount @ mount_T_needle, covariance, needle.probability), world_T_mount)


def distance_to_shaft(tip: Points, sensor_T_world: Transform, needle: NeedleEstimate,
                      projection: Projection) -> float:
    """Return how many pixels a point lies beside a needle that another sensor saw.

    The needle may have slid along itself since; across, it must still fit.

    Args:
        tip: (3,) m, in the world: the tip according to one modality.
        sensor_T_world: (4, 4) of the other sensor, when it saw the needle.
        needle: what the other sensor saw, in its own frame.
        projection: of the other sensor.
    """
    shaft = np.stack([needle.tip, needle.tip - _ARM * needle.direction])
    first, second = projection.pixels(shaft)
    along = (second - first) / np.linalg.norm(second - first)
    offset = projection.pixels(transform_points(sensor_T_world, tip)) - first
    return float(abs(offset[0] * along[1] - offset[1] * along[0]))
