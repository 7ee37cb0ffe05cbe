"""A needle on its way from a sensor to the filter, against what a wrong calibration does to it."""

import numpy as np

from hybrid_guidance.fusion.needle_filter import NeedleFilter
from hybrid_guidance.fusion.observe import observe
from hybrid_guidance.geometry.needle import NeedleEstimate
from hybrid_guidance.geometry.rigid import perturbed, pose_along, transform

MOUNT = transform(pose_along(np.zeros(3), np.array([0.3, -0.5, 0.8]))[:3, :3],
                  np.array([0.4, -0.1, 0.9]))
MOUNT_T_SENSOR = transform(pose_along(np.zeros(3), np.array([0.2, 0.9, 0.1]))[:3, :3],
                           np.array([0.02, 0.12, -0.05]))
SEEN = pose_along(np.array([0.01, 0.04, 0.0]), np.array([0.5, 0.8, 0.1]))
DEVIATION = np.array([1e-4, 2e-4, 3e-4, 1e-3, 3e-3, 2e-3])


def seen(offset: np.ndarray):
    """What the filter is given when the calibration is off by a (6,) pose error."""
    return observe('ultrasound', 10**9, NeedleEstimate(SEEN, 1e-12 * np.eye(6)),
                   perturbed(MOUNT_T_SENSOR, offset), MOUNT, np.zeros((6, 6)))


def test_an_error_of_calibration_moves_the_needle_as_the_filter_reckons() -> None:
    """Central differences of the needle's tip and direction, by each of six errors."""
    step = 1e-6
    moved = np.empty((6, 6))
    for axis, unit in enumerate(np.eye(6)):
        before, after = (seen(sign * step * unit).needle for sign in (-1.0, 1.0))
        moved[:3, axis] = (after.tip - before.tip) / (2.0 * step)
        moved[3:, axis] = (after.direction - before.direction) / (2.0 * step)
    expected = moved @ np.diag(DEVIATION**2) @ moved.T
    needle_filter = NeedleFilter({'ultrasound': np.diag(DEVIATION**2)})
    update = needle_filter.add(seen(np.zeros(6)))
    found = needle_filter.estimate(update.state).covariance
    direction = update.state.direction
    stray = 0.08 * 0.005**2 * np.outer(direction, direction)
    assert np.allclose(found[:3, :3] - stray, expected[:3, :3], atol=1e-10)
    # A turn by w moves the direction by w x direction.
    turned = np.cross(np.eye(3), direction)
    assert np.allclose(turned @ found[3:, 3:] @ turned.T, expected[3:, 3:], atol=1e-10)
